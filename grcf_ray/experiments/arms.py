"""Compare arms on test: the paper's figure, the mean over seeds, and the difference to the reference arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grcf_ray.experiments.context import ExperimentContext, Model
from grcf_ray.experiments.model_pool import Arm
from grcf_ray.experiments.plotting import draw_differences
from grcf_ray.experiments.result import ExperimentResult, Picture, few_seeds_notes, shown_columns
from grcf_ray.metrics import METRIC_DIRECTIONS, METRIC_TITLES, classes_of, finite_metrics, split_metrics
from grcf_ray.search.predictions import Predictions
from grcf_ray.statistics import Difference, Floats, Metric, compare, corrected, finite_spread
from grcf_ray.tables import P_VALUE, Column, Table

_HEAD = {
    "mosi": ("mae", "corr", "pairwise_acc", "acc7", "acc2_non0", "f1_positive"),
    "sims": (
        *("mae", "corr", "pairwise_acc", "acc5", "acc3"),
        *("acc2_non0", "f1_weighted", "acc2_mmsa", "f1_weighted_mmsa"),
    ),
    "own": ("mae", "corr", "pairwise_acc", "acc_whole", "acc2_non0", "f1_positive"),
    "binary": ("bce", "acc2", "f1_positive", "auroc"),
}
_COLUMNS = (
    Column("title", "row"),
    Column("paper", "paper", "{:.3f}"),
    Column("paper change", "paper, change %", "{:+.2f}"),
    Column("mean", "mean", "{:.4f}"),
    Column("deviation", "deviation", "{:.4f}"),
    Column("seeds", "seeds"),
    Column("difference", "difference", "{:+.4f}"),
    Column("change", "change %", "{:+.2f}"),
    Column("low", "95 % from", "{:+.4f}"),
    Column("high", "to", "{:+.4f}"),
    Column("p", "p", P_VALUE),
    Column("p_holm", "p (Holm)", P_VALUE),
)


class Rescored:
    """A model's scores of a changed test split, such as one with noise."""

    def __init__(self, context: ExperimentContext, index: int, test: Predictions, score_N: Floats) -> None:
        """Measure scores [N] of the utterances of `test` by the data set's protocol."""
        self.index = index
        # The recorded states belong to the unchanged split.
        no_state = np.empty((len(score_N), 0), np.float32)
        self._test = dataclasses.replace(test, score_N=score_N, state_ND=no_state)
        self.metrics = {"test": figures(context, score_N, test.label_N)}

    def scored(self, split: str) -> Predictions:
        """Return the scores of test, the only split."""
        assert split == "test"
        return self._test


Measured = Model | Rescored
"""A model trained under a seed, with its metrics by split and its scores of test."""


def figures(context: ExperimentContext, score_N: Floats, label_N: Floats) -> dict[str, float]:
    """Return all metrics of the data set's protocol that are defined for these scores [N]."""
    return finite_metrics(split_metrics(score_N, label_N, **_measuring(context)))


def full_arm(context: ExperimentContext) -> Arm:
    """Return the arm of the winner's unchanged configuration; its last stage is the run's."""
    return Arm("full", "Full model", stage=2 if context.config.stage2.epochs else 1)


def head_metrics(context: ExperimentContext) -> tuple[str, ...]:
    """Return the metrics that the data set's tables show."""
    names = _HEAD[context.protocol]
    info = context.store.info
    if context.protocol == "own" and classes_of("own", limit=info.half_range, center=info.center) is None:
        return tuple(name for name in names if name != "acc_whole")
    return names


def metric_of(context: ExperimentContext, name: str, **changes: Any) -> Metric:
    """Return a metric of the data set's protocol as a function of scores and labels [N]. changes: such as `ties`."""
    measuring = _measuring(context) | changes
    return lambda score_N, label_N: split_metrics(score_N, label_N, only=name, **measuring).get(name, float("nan"))


def _measuring(context: ExperimentContext) -> dict[str, Any]:
    """Return the data set's arguments of `split_metrics`."""
    return {
        "protocol": context.protocol,
        "limit": context.store.info.half_range,
        "center": context.store.info.center,
        "ties": context.config.metrics.ties,
    }


def arm_tables(
    context: ExperimentContext,
    arms: Sequence[Arm],
    models: Mapping[str, Sequence[Measured]],
    printed: Mapping[str, Mapping[str, float]] | None,
    changes: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Table]:
    """Return a table for each metric, with a row for each arm; the first arm that has models is the reference.

    An arm is compared over the seeds that it shares with the reference. An arm without models has the paper's figure
    alone. An arm with scores for which a metric is undefined has no difference in that metric.

    printed: the paper's figures by arm and metric. changes: as `printed`, the differences relative to the reference in
    per cent; if given, the tables show their own beside them.
    """
    trained = [arm for arm in arms if models[arm.name]]
    reference, *others = trained
    seeds = max(len(models[arm.name]) for arm in trained)
    tables = []
    for name in head_metrics(context):
        # A metric may be undefined, such as the correlation of constant scores.
        values = {
            arm.name: [model.metrics["test"][name] for model in models[arm.name] if name in model.metrics["test"]]
            for arm in trained
        }
        lacking = [arm for arm in trained if len(values[arm.name]) < len(models[arm.name])]
        compared = [arm for arm in others if arm not in lacking and reference not in lacking]
        gains = differences(context, name, models, reference, compared)
        rows = []
        for arm in arms:
            row: dict[str, Any] = {
                "name": arm.name,
                "title": arm.title,
                "paper": (printed or {}).get(arm.name, {}).get(name),
            }
            if changes is not None:
                row["paper change"] = changes.get(arm.name, {}).get(name)
            if over := finite_spread(values.get(arm.name, ())):
                row |= {"mean": over.mean, "deviation": over.deviation, "seeds": len(over.values)}
                row["values"] = list(over.values)
            if gain := gains.get(arm.name):
                row |= {"difference": gain.mean, "low": gain.low, "high": gain.high, "p": gain.p, "p_holm": gain.p_holm}
                if changes is not None:
                    row["change"] = _change(gain.mean, name, models[reference.name], models[arm.name])
            rows.append(row)
        notes = few_seeds_notes(min(len(models[arm.name]) for arm in trained))
        notes += [
            f"{arm.title}: {seeds - len(models[arm.name])} of {seeds} trainings failed"
            for arm in trained
            if len(models[arm.name]) < seeds
        ]
        notes += [f"undefined for the scores of {arm.title} under one seed or more, so not compared" for arm in lacking]
        title = f"{METRIC_TITLES[name]} on test ({_better(name)} is better)"
        tables.append(Table(name, title, shown_columns(_COLUMNS, rows), rows, notes))
    return tables


def arm_result(
    context: ExperimentContext,
    arms: Sequence[Arm],
    models: Mapping[str, Sequence[Measured]],
    printed: Mapping[str, Mapping[str, float]] | None,
    *,
    changes: Mapping[str, Mapping[str, float]] | None = None,
    **about: Any,
) -> ExperimentResult:
    """Return the result of an experiment that compares arms.

    printed, changes: as in `arm_tables`. about: the result's title, notes and name.
    """
    tables = arm_tables(context, arms, models, printed, changes)
    pictures = difference_pictures(tables)
    if pictures:
        reference = pictures[0].data["panels"][0]["reference"]
        about["notes"] = [
            *about["notes"],
            f"Difference: the row less {reference} under the same seeds. 95 %: bootstrap over seeds and test "
            "utterances, widened for few seeds by Student's t, for each row alone. p: paired t test over seeds. "
            "p (Holm): corrected over the rows of the table; a claim needs a small one.",
        ]
    return ExperimentResult(tables=tables, pictures=pictures, **about)


def difference_pictures(tables: Sequence[Table]) -> list[Picture]:
    """Return the differences of `arm_tables` as a figure; [] if no arm is compared."""
    panels = []
    for table in tables:
        keys = ("title", "difference", "low", "high")
        if rows := [{key: row[key] for key in keys} for row in table.rows if "difference" in row]:
            reference = next(row["title"] for row in table.rows if "mean" in row)
            title, better = METRIC_TITLES[table.name], _better(table.name)
            panels.append({"title": title, "better": better, "reference": reference, "rows": rows})
    if not panels:
        return []
    caption = (
        f"Test, each row less {panels[0]['reference']}: mean over seeds, and the 95 % interval over seeds and "
        "utterances, for each row alone. If an interval holds 0, the data show no difference."
    )
    return [Picture(name="differences", caption=caption, data={"panels": panels}, draw=draw_differences)]


def _change(difference: float, metric: str, reference: Sequence[Measured], arm: Sequence[Measured]) -> float | None:
    """Return a difference in per cent of the reference's mean over the shared seeds; None if that mean is 0."""
    shared = {model.index for model in arm}
    mean = float(np.mean([model.metrics["test"][metric] for model in reference if model.index in shared]))
    return 100 * difference / mean if mean else None


def _better(metric: str) -> str:
    return "lower" if METRIC_DIRECTIONS[metric] == "min" else "higher"


def differences(
    context: ExperimentContext, name: str, models: Mapping[str, Sequence[Measured]], reference: Arm, arms: Sequence[Arm]
) -> dict[str, Difference]:
    """Return a test metric of the arms less the reference's, over their shared seeds, by arm.

    Holm's correction is over all arms. An arm that shares no seed with the reference has no difference.
    """
    reference_seeds = {model.index for model in models[reference.name]}
    by_seeds: dict[tuple[int, ...], list[Arm]] = {}
    for arm in arms:
        if shared := tuple(sorted(reference_seeds & {model.index for model in models[arm.name]})):
            by_seeds.setdefault(shared, []).append(arm)
    found: dict[str, Difference] = {}
    for shared, members in by_seeds.items():
        found |= compare(
            _scores(models[reference.name], shared),
            {arm.name: _scores(models[arm.name], shared) for arm in members},
            models[reference.name][0].scored("test").label_N,
            metric_of(context, name),
            seed=context.config.seed,
        )
    return corrected(found)


def _scores(models: Sequence[Measured], indices: Sequence[int]) -> Floats:
    """Return test scores [S, N] under these seeds."""
    by_index = {model.index: model for model in models}
    return np.stack([by_index[index].scored("test").score_N for index in indices])
