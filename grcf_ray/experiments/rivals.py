"""Compare the run's model with other models: the same data, encoder, cost of search and seeds (`main --models`).

Each rival has a search of its own (`own_searches`), whose winner is trained under the seeds of all rows. The same
command with more models searches and trains those alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grcf_ray import console
from grcf_ray.config import ModelConfig, nearest
from grcf_ray.data.schema import MODALITIES
from grcf_ray.errors import ConfigError, NoWinnerError
from grcf_ray.experiments.arms import arm_result, differences, full_arm, head_metrics
from grcf_ray.experiments.context import ExperimentContext, Model
from grcf_ray.experiments.model_pool import Arm, configured
from grcf_ray.experiments.own_searches import search_anew, search_session, spent, winner_settings
from grcf_ray.experiments.plotting import draw_ranks
from grcf_ray.experiments.result import ExperimentResult, Picture, shown_columns
from grcf_ray.metrics import METRIC_DIRECTIONS, METRIC_TITLES
from grcf_ray.model.card import card_of
from grcf_ray.plugins import model_names, model_title
from grcf_ray.report.summary import Cost
from grcf_ray.search.host_memory import meta_model, parameter_counts
from grcf_ray.search.model_space import model_space
from grcf_ray.search.session import Session
from grcf_ray.statistics import Difference, corrected, finite_spread, mean_ranks
from grcf_ray.tables import P_VALUE, Column, Table

_COMMAND = "main --models"
_COMPARED = (
    Column("difference", "difference", "{:+.4f}"),
    Column("low", "95 % from", "{:+.4f}"),
    Column("high", "to", "{:+.4f}"),
    Column("p_holm", "p (Holm)", P_VALUE),
    Column("seeds", "seeds"),
)
Trained = Mapping[str, Sequence[Model]]
"""The models of each arm, by its name."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model in one way of training, a row of the tables."""

    arm: Arm
    """With the settings of its search's winner, once there is one."""
    search: Session | None = None
    """The search of its own; None for the run's model, and for a model that does not apply."""
    status: str = ""
    """Why it has no models."""
    reason: str = ""
    """The error behind the status."""
    ended: str | None = None
    """The time at which its search ended."""
    cost: Cost | None = None
    """The cost of its search."""
    alone: str = ""
    """For a rival in two stages: the arm of the same rival in one."""


def rivals(context: ExperimentContext) -> ExperimentResult:
    """Search and train the models that --models names as the run's own, and compare them with it on test."""
    names, info = _names(context), context.store.info
    arm = dataclasses.replace(full_arm(context), title=model_title(context.config.model.name))
    reference = Contender(arm, cost=Cost.of(context.view.all_trials))
    planned = [_planned(context, name, two_stage=False) for name in names]
    if context.options.two_stage:
        planned += [
            _planned(context, name, two_stage=True)
            for name, alone in zip(names, planned, strict=True)
            if alone.search and not card_of(name).two_stage
        ]
    found = [reference, *_searched(context, planned)]
    trained = [contender.arm for contender in found if not contender.status]
    models: Trained = {**{contender.arm.name: [] for contender in found}, **context.models(trained, _COMMAND)}
    rows = [contender for contender in found if not contender.alone]
    result = arm_result(
        context,
        [contender.arm for contender in rows if not contender.status],
        models,
        {arm.name: context.printed_results, **_printed(context, names)},
        name="main-models",
        title=f"Models on {info.name}, at equal cost of search",
        notes=_notes(context, found),
    )
    tables = _overview(context, rows, models, result.tables)
    if both := [contender for contender in found if contender.alone]:
        tables.append(_stages_table(context, both, {row.arm.name: row for row in rows}, models))
    pictures = [*rank_pictures(context, [row.arm for row in rows], models), *result.pictures]
    return dataclasses.replace(result, tables=[*tables, *result.tables], pictures=pictures)


def _names(context: ExperimentContext) -> list[str]:
    """Return the rivals by name, in the order of the list of models."""
    own, asked = context.config.model.name, set(context.options.models)
    if own != ModelConfig.name:
        raise ConfigError(
            f"--models starts from a search of {model_title(ModelConfig.name)}, whose space it fits to the others; "
            f"this run is a search of {model_title(own)}"
        )
    if unknown := sorted(asked - {*model_names(), "all"}):
        raise ConfigError(
            f"--models {unknown[0]}: no such model{nearest(unknown[0], model_names())} "
            "(list them: python -m grcf_ray.models list)"
        )
    if context.options.two_stage and not (context.config.stage1.epochs and context.config.stage2.epochs):
        raise ConfigError("--two-stage trains the models in the stages of the run, and this run has one stage")
    return [name for name in model_names() if name != own and asked & {name, "all"}]


def _printed(context: ExperimentContext, names: Sequence[str]) -> dict[str, Mapping[str, float]]:
    """Return the paper's figures of the models that have a row in its tables."""
    printed = context.printed("baselines")
    rows = {name: card_of(name).paper_row or card_of(name).title for name in names}
    return {name: printed[row] for name, row in rows.items() if row in printed}


def _planned(context: ExperimentContext, name: str, *, two_stage: bool) -> Contender:
    """Return a rival with its search, or with the reason why it does not apply."""
    arm = Arm(name, model_title(name))
    if two_stage:
        arm = Arm(f"{name}-two-stage", f"{arm.title}, two stages")
    space = model_space(spent(context), {"model.name": name}, two_stage=two_stage)
    try:
        meta_model(space.config(), context.store.info)
    except ConfigError as error:
        return Contender(arm, status="not applicable", reason=str(error))
    return Contender(arm, search_session(context, arm.name, space), alone=name if two_stage else "")


def _searched(context: ExperimentContext, planned: Sequence[Contender]) -> list[Contender]:
    """Run the unfinished searches, one after the other; return the rivals with the settings of the winners."""
    left = [contender for contender in planned if contender.search and not contender.search.finished()]
    found, start = [], time.monotonic()
    for contender in planned:
        if contender.search is None:
            found.append(contender)
            continue
        if contender in left:
            done = left.index(contender)
            seconds = (time.monotonic() - start) / max(1, done) * (len(left) - done)
            eta = f"  ETA of all searches {console.duration(seconds)}" if done else ""
            console.progress(f"Search {done + 1} of {len(left)}{eta}")
        record = contender.search.record
        try:
            search_anew(context, contender.search, contender.arm.title)
        except NoWinnerError as error:
            found.append(dataclasses.replace(contender, status="no winner in its search", reason=str(error)))
            continue
        arm = dataclasses.replace(contender.arm, settings=winner_settings(context, record))
        cost, ended = Cost.of([*record.trials(1), *record.trials(2)]), record.search_info().ended
        found.append(dataclasses.replace(contender, arm=arm, cost=cost, ended=ended))
    return found


def _overview(
    context: ExperimentContext, rows: Sequence[Contender], models: Trained, by_metric: Sequence[Table]
) -> list[Table]:
    """Return the tables of all models: the main metric, with differences to the run's; other metrics and costs."""
    figures = {table.name: {row["name"]: row for row in table.rows} for table in by_metric}
    metrics = head_metrics(context)
    main, title = metrics[0], METRIC_TITLES[metrics[0]]
    cells: list[dict[str, Any]] = []
    for row in rows:
        name, cost = row.arm.name, row.cost
        compared = figures[main].get(name, {})
        cells.append(
            {
                **{key: compared.get(key) for key in ("paper", "deviation", "difference", "low", "high", "p_holm")},
                **{metric: figures[metric].get(name, {}).get("mean") for metric in metrics},
                "name": name,
                "title": row.arm.title,
                "seeds": len(models[name]),
                "parameters": None if row.status else _parameters(context, row.arm),
                "passes": cost and cost.utterance_passes,
                "minutes": cost and cost.trial_seconds / 60,
                "status": row.status or (None if models[name] else "every training failed"),
            }
        )
    model = Column("title", "model")
    columns = (
        model,
        Column("paper", f"{title}, paper", "{:.3f}"),
        Column(main, title, "{:.4f}"),
        Column("deviation", "deviation", "{:.4f}"),
        *_COMPARED,
        Column("status", "status"),
    )
    others = (
        model,
        *(Column(metric, METRIC_TITLES[metric], "{:.4f}") for metric in metrics[1:]),
        Column("parameters", "trained parameters", "{:,}"),
        Column("passes", "search, passes", "{:,.0f}"),
        Column("minutes", "search, minutes", "{:,.1f}"),
    )
    split = f"{context.store.info.name}, test"
    notes = [
        f"means over seeds; difference: less {rows[0].arm.title} under the same seeds",
        *(f"{row.arm.title}: {row.reason}" for row in rows if row.reason),
    ]
    spent = (
        "search: passes over the training split, and minutes in trials; all had the same to spend, and early stopping "
        "saves a part"
    )
    return [
        Table("models", f"{split}: {title} of all models", shown_columns(columns, cells), cells, notes),
        Table("others", f"{split}: other metrics and costs", shown_columns(others, cells), cells, [spent]),
    ]


def _parameters(context: ExperimentContext, arm: Arm) -> int:
    """Return the trained parameters of an arm's network, text encoder included."""
    return parameter_counts(meta_model(configured(context.config, arm), context.store.info))[0]


def _stages_table(
    context: ExperimentContext, both: Sequence[Contender], alone: Mapping[str, Contender], models: Trained
) -> Table:
    """Return the table of rivals in two stages less the same rivals in one, in the main metric.

    both: the rivals in two stages. alone: those in one, by arm.
    """
    metric = head_metrics(context)[0]
    title = METRIC_TITLES[metric]
    rows: list[dict[str, Any]] = []
    gains: dict[str, Difference] = {}
    for contender in both:
        one = alone[contender.alone]
        row: dict[str, Any] = {"name": contender.alone, "title": one.arm.title}
        row["status"] = contender.status or one.status or None
        for key, arm in (("one", one.arm), ("two", contender.arm)):
            if over := finite_spread(model.metrics["test"].get(metric) for model in models[arm.name]):
                row |= {key: over.mean, "seeds": len(over.values)}
        if models[one.arm.name]:
            gains |= differences(context, metric, models, one.arm, [contender.arm])
        rows.append(row)
    # The correction is over all rivals, each with a reference of its own.
    gains = corrected(gains)
    for row, contender in zip(rows, both, strict=True):
        if gain := gains.get(contender.arm.name):
            row |= {"difference": gain.mean, "low": gain.low, "high": gain.high, "p": gain.p, "p_holm": gain.p_holm}
    columns = (
        Column("title", "model"),
        Column("one", f"{title} alone", "{:.4f}"),
        Column("two", "two stages", "{:.4f}"),
        *_COMPARED,
        Column("status", "status"),
    )
    notes = [
        f"difference: {title} of the model that is trained in two stages, less that of the same model trained on the "
        f"{title} alone, under the same seeds; each has a search of its own, at the same cost",
        *(f"{contender.arm.title}: {contender.reason}" for contender in both if contender.reason),
    ]
    return Table("stages", f"Two stages or one: {title} on test", shown_columns(columns, rows), rows, notes)


def rank_pictures(context: ExperimentContext, arms: Sequence[Arm], models: Trained) -> list[Picture]:
    """Return the critical-difference diagram of the main metric; [] below three models or two seeds that they share."""
    metric = head_metrics(context)[0]
    by_arm = {
        arm.title: {model.index: model.metrics["test"][metric] for model in models[arm.name]}
        for arm in arms
        if models[arm.name]
    }
    shared = sorted(set.intersection(*map(set, by_arm.values())))
    if len(by_arm) < 3 or len(shared) < 2:
        return []
    sign = 1 if METRIC_DIRECTIONS[metric] == "min" else -1
    over = mean_ranks(sign * np.array([[values[seed] for values in by_arm.values()] for seed in shared]))
    ranked = sorted(zip(over.ranks, by_arm, strict=True))
    # From each row to the last one within reach; a group inside of another has no bar of its own.
    lasts = [max(n for n, (rank, _) in enumerate(ranked) if rank - first <= over.critical) for first, _ in ranked]
    groups = [(n, last) for n, last in enumerate(lasts) if last > n and (n == 0 or last > lasts[n - 1])]
    caption = (
        f"Mean ranks in {METRIC_TITLES[metric]} on test over {len(shared)} seeds (Friedman p = {over.p:.3g}). A bar "
        "joins models whose ranks are no further apart than Nemenyi's critical difference: the seeds do not tell them "
        "apart. The ranks are of this test split; the intervals of the tables are over its utterances, too."
    )
    rows = [{"title": title, "rank": rank} for rank, title in ranked]
    data = {"rows": rows, "critical": over.critical, "p": over.p, "groups": groups}
    return [Picture(name="ranks", caption=caption, data=data, draw=draw_ranks)]


def _notes(context: ExperimentContext, found: Sequence[Contender]) -> list[str]:
    """Return what all rows share, and what does not compare."""
    own, title = found[0].arm.title, METRIC_TITLES[head_metrics(context)[0]]
    notes = [
        f"Each model has a search of its own, with as many epochs of training in total as {own}'s, early stops aside, "
        f"and the same text encoder, data and seeds. Rivals are trained on the {title} and their own loss terms, for "
        "the epochs of both stages.",
        f"If modalities are searched: Stage 1's ranking chooses those of {own}, and a rival on the {title} alone "
        "searches them itself.",
        "Valid chose every configuration. The searches of the rivals opened no test split: the models of all rows were "
        "measured after them.",
    ]
    if absent := [name for name in MODALITIES if name not in context.store.info.dims]:
        notes.append(
            f"The data have no {' and no '.join(absent)}, so every model lacks what it does with that. With text "
            "alone, some are little more than the text encoder."
        )
    reads = (context.view.provenance or {}).get("test_reads", ())
    first = min((read["time"] for read in reads if read["command"] == f"reproduce {_COMMAND}"), default=None)
    if late := [row.arm.title for row in found if first and row.ended and row.ended > first]:
        notes.append(f"Searched after test had been read for other rows, in the same way: {', '.join(late)}.")
    cards = [card_of(row.arm.name) for row in found[1:] if not (row.alone or row.status)]
    notes += [
        f"{card.title}: the paper's equations were not seen; written from {card.source}."
        for card in cards
        if card.source
    ]
    if context.printed("baselines"):
        notes.append(
            "The paper's figures do not compare with those here: some are from the original papers, with other text "
            "encoders, splits and tuning, and it gives one seed. Its F1 is the weighted one for the rivals."
        )
    return notes
