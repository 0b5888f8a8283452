"""Experiments that train a grid of arms from the winner: ablation, margins, stability, backbones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from grcf_ray.config import ABLATIONS, flatten, short_name
from grcf_ray.errors import ConfigError
from grcf_ray.experiments.arms import arm_result, head_metrics
from grcf_ray.experiments.context import ExperimentContext
from grcf_ray.experiments.model_pool import Arm, configured
from grcf_ray.experiments.own_searches import search_anew, search_session, spent, winner_settings
from grcf_ray.experiments.paper import TABLES
from grcf_ray.experiments.plotting import draw_lines, metric_panel, spread_line
from grcf_ray.experiments.result import ExperimentResult, Picture, few_seeds_notes
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.search.direct_baseline import INHERITED, ONE_DROPOUT, direct_space
from grcf_ray.search.space import Space, stage_budgets
from grcf_ray.statistics import finite_spread
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features

_TITLES = {
    "full": "Full model",
    "no-advantage": "w/o advantage weighting",
    "static-margin": "w/o dynamic margin",
    "no-stage1": "w/o Stage 1",
    "no-stage2": "w/o Stage 2",
    "direct-mae": "direct MAE",
}


def ablation(context: ExperimentContext) -> ExperimentResult:
    """Reproduce Table 3: the gain of each part of the method, at the winner's parameters and with --retune."""
    arms = ablation_arms(context)
    direct = _titles(context)["direct-mae"]
    notes = [
        f"Every row has the winner's parameters, as in the paper. {direct} has the epochs of both stages, w/o Stage 1 "
        "those of Stage 2 alone."
    ]
    if context.options.retune:
        # The run's own search tuned the full model.
        full, *ablations = arms
        arms = [full, *(row for arm in ablations for row in (arm, retuned_arm(context, arm, arm.name)))]
        notes = [
            "Plain rows have the winner's parameters, as in the paper. Retuned rows have the parameters of a search of "
            "their own, with as many epochs in total as the run's, early stops aside; for w/o Stage 1 these are more "
            f"trials. {direct} has the epochs of both stages in each trial.",
            INHERITED,
        ]
    return arm_result(
        context,
        arms,
        context.models(arms, "ablation"),
        context.printed("ablation"),
        changes=context.printed("ablation changes"),
        name="ablation-retuned" if context.options.retune else "",
        title=f"Ablation on {context.store.info.name}, at the winner's parameters"
        + (" and retuned" if context.options.retune else ""),
        notes=(
            *notes,
            "w/o Stage 2, at the winner's parameters, is the full model after Stage 1 under the same seeds.",
        ),
    )


def ablation_arms(context: ExperimentContext) -> list[Arm]:
    """Return the full model, the model without each part, and direct MAE. ConfigError for a run of one stage."""
    config = context.config
    if not (config.stage1.epochs and config.stage2.epochs):
        raise ConfigError("the ablations remove parts from a search of both stages; this run has one stage")
    arms, titles = [], _titles(context)
    for name, settings in ABLATIONS.items():
        if name == "static-margin" and context.store.info.task == "classification":
            continue
        # Direct MAE has the cost of both stages; Stage 2 is left out by its arm, not by its settings.
        more = {"stage2.epochs": config.stage1.epochs + config.stage2.epochs} if name == "direct-mae" else {}
        cut = name == "no-stage2"
        arms.append(Arm(name, titles[name], {} if cut else {**settings, **more}, stage=1 if cut else 2))
    return arms


def _titles(context: ExperimentContext) -> dict[str, str]:
    """Return the ablations' titles; two classes replace the MAE by the cross-entropy."""
    return {**_TITLES, **({"direct-mae": "direct BCE"} if context.store.info.task == "classification" else {})}


def retuned_space(space: Space, ablation: str) -> Space:
    """Return the space of an ablation's search; its total epochs are those of both stages, early stops aside.

    Without Stage 1, Stage 2 also searches the parameters of model, pairs and margins that Stage 1 searched.
    """
    if ablation == "direct-mae":
        return direct_space(space)
    config, retuned = space.config(), space.with_settings(ABLATIONS[ablation])
    epochs = sum(trials * epochs for trials, epochs in stage_budgets(config).values())
    if ablation == "no-stage1":
        inherited = {path: dim for path, dim in retuned.stage1.items() if not path.startswith("stage1.")}
        retuned = retuned.with_settings(ONE_DROPOUT)
        retuned = dataclasses.replace(retuned, stage1={}, stage2={**inherited, **retuned.stage2})
        return retuned.with_settings({"search.stage2_trials": round(epochs / config.stage2.epochs)})
    if ablation == "no-stage2":
        retuned = dataclasses.replace(retuned, stage2={})
        return retuned.with_settings({"search.stage1_trials": round(epochs / config.stage1.epochs)})
    return retuned


def retuned_arm(context: ExperimentContext, arm: Arm, ablation: str) -> Arm:
    """Return the ablation's arm with the parameters that its own search finds; a finished search is not repeated."""
    session = search_session(context, ablation, retuned_space(spent(context), ablation))
    search_anew(context, session, arm.title)
    settings = winner_settings(context, session.record)
    return Arm(f"{arm.name}-retuned", f"{arm.title}, retuned", settings, stage=arm.stage)


def margins(context: ExperimentContext) -> ExperimentResult:
    """Reproduce Table 4: ordinal groups of the dynamic margin."""
    if context.store.info.task == "classification":
        raise ConfigError("margins compares ordinal groups, which two classes do not have")
    if not (context.config.stage1.epochs or context.config.stage2.group_weight):
        raise ConfigError(
            "margins compares ordinal groups of the ranking loss, and this run does not train with that loss"
        )
    names = ("overlap,5", "overlap,3", "overlap,7", "strict,5")
    arms = [Arm(name, name, {"ranking.groups": name}) for name in names]
    return arm_result(
        context,
        arms,
        context.models(arms, "margins"),
        context.printed("groups"),
        title=f"Groups of the dynamic margin on {context.store.info.name}",
        notes=("The edges of overlap,3 and overlap,7 are this project's: the paper prints none.",),
    )


def backbones(context: ExperimentContext) -> ExperimentResult:
    """Reproduce Table 11: other text encoders, each with the winner's parameters."""
    if not context.config.model.sees_text:
        raise ConfigError("backbones compares text encoders, and this run's model has no text")
    base = context.config.model.backbone
    # The paper compares them on MOSI alone; they suit other data too.
    others = [name for name in TABLES["backbones"]["mosi"] if short_name(name) != short_name(base)]
    if context.options.backbones:
        others = [str(Path(name).resolve()) if Path(name).is_dir() else name for name in context.options.backbones]
    names = dict.fromkeys([base, *others])
    arms = [Arm(name, short_name(name), {"model.backbone": name} if name != base else {}) for name in names]
    available, notes = [], []
    for arm in arms:
        try:
            # All encoders are checked before the first is trained.
            prepare_features(context.store, configured(context.config, arm))
            context.check_encoders([arm])
            available.append(arm)
        except ConfigError as error:
            notes.append(f"{arm.title} is not available here: {error}.")
    if not available:
        raise ConfigError(" ".join(notes))
    models = {**{arm.name: [] for arm in arms}, **context.models(available, "backbones")}
    printed = {short_name(name): figures for name, figures in context.printed("backbones").items()}
    return arm_result(
        context,
        arms,
        models,
        {arm.name: printed[arm.title] for arm in arms if arm.title in printed},
        title=f"Text encoders on {context.store.info.name}, with the winner's parameters",
        notes=(
            *notes,
            f"The parameters were searched with {short_name(base)}; the other encoders have them unchanged.",
            "The paper names ALBERT-Base and BERT-Base without versions.",
        ),
    )


LAMBDA1 = tuple(round(0.6 + 0.1 * step, 1) for step in range(10))
LAMBDA2 = tuple(round(0.01 + 0.01 * step, 2) for step in range(10))
"""The values of Figure 8."""
_SPLITS = {"valid": "valid, which may choose a setting", "test": "test"}


def stability(context: ExperimentContext) -> ExperimentResult:
    """Reproduce Figure 8: the weights of the ranking loss and of the regularisation, one at a time."""
    if context.store.info.task == "classification":
        raise ConfigError("stability varies the weights of Stage 1's ranking losses, which two classes do not have")
    if not context.config.stage1.epochs:
        raise ConfigError("stability varies the weights of Stage 1's losses, and this run has no Stage 1")
    metrics = [name for name in head_metrics(context) if name != "pairwise_acc"]
    printed = {"valid": {}, "test": context.printed("stability")}
    sweeps = {"stage1.group_weight": ("λ1", LAMBDA1), "stage1.reg_weight": ("λ2", LAMBDA2)}
    arms = {
        path: [Arm(f"{path}={value:g}", f"{symbol} = {value:g}", {path: value}) for value in values]
        for path, (symbol, values) in sweeps.items()
    }
    models = context.models([arm for swept in arms.values() for arm in swept], "stability", reference=False)
    tables, pictures = [], []
    for path, (symbol, values) in sweeps.items():
        swept = {arm.name: models[arm.name] for arm in arms[path]}
        over = {
            (name, split): [
                finite_spread(model.metrics[split].get(name) for model in seeds) for seeds in swept.values()
            ]
            for name in metrics
            for split in _SPLITS
        }
        notes = [
            f"the winner has {flatten(context.config)[path]:g}",
            *few_seeds_notes(min(filter(None, map(len, swept.values())), default=0)),
        ]
        for split, title in _SPLITS.items():
            columns = [Column("title", symbol)]
            rows: list[dict[str, Any]] = [
                {"title": f"{value:g}", "value": value, "seeds": len(seeds)}
                for value, seeds in zip(values, swept.values(), strict=True)
            ]
            for name in metrics:
                for row, arm_name, figure in zip(rows, swept, over[name, split], strict=True):
                    row[f"paper {name}"] = printed[split].get(arm_name, {}).get(name)
                    if figure:
                        row |= {name: figure.mean, f"{name} deviation": figure.deviation}
                if any(row[f"paper {name}"] for row in rows):
                    columns.append(Column(f"paper {name}", "paper", "{:.3f}"))
                columns.append(Column(name, METRIC_TITLES[name], "{:.4f}"))
                columns.append(Column(f"{name} deviation", "deviation", "{:.4f}"))
            columns.append(Column("seeds", "seeds"))
            tables.append(Table(f"{path} {split}", f"{symbol} ({path}): {title}", columns, rows, notes))
        panels = [
            metric_panel(name, symbol, [spread_line(split, values, over[name, split]) for split in _SPLITS])
            for name in metrics
        ]
        pictures.append(
            Picture(
                name=path.rpartition(".")[2].replace("_", "-"),
                caption=f"{symbol}: mean over seeds, bars of one deviation. The paper's Figure 8 shows test alone.",
                data={"panels": panels},
                draw=draw_lines,
            )
        )
    return ExperimentResult(
        title=f"Stability of the loss weights on {context.store.info.name}",
        tables=tables,
        pictures=pictures,
    )
