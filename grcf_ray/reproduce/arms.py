"""Arms side by side on test: the paper's figure, ours over seeds, and the difference to the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from grcf_ray.metrics import METRIC_DIRECTIONS, split_metric
from grcf_ray.report.terminal import METRIC_TITLES
from grcf_ray.reproduce.lab import Lab, Model
from grcf_ray.reproduce.pool import Arm
from grcf_ray.reproduce.statistics import FEW_SEEDS, Metric, compare, spread
from grcf_ray.tables import Column, Table

__all__ = ["arm_tables", "few_seeds", "head_metrics", "metric_of"]

_HEAD = {
    "mosi": ("mae", "corr", "pairwise_acc", "acc7", "acc2_non0", "f1_positive"),
    "sims": ("mae", "corr", "pairwise_acc", "acc5", "acc3", "acc2_mmsa", "f1_weighted_mmsa"),
    "binary": ("bce", "acc2", "f1_positive", "auroc"),
}
_COLUMNS = (
    Column("title", "row"),
    Column("paper", "paper", "{:.3f}"),
    Column("mean", "mean", "{:.4f}"),
    Column("deviation", "deviation", "{:.4f}"),
    Column("seeds", "seeds"),
    Column("difference", "difference", "{:+.4f}"),
    Column("low", "from", "{:+.4f}"),
    Column("high", "to", "{:+.4f}"),
    Column("p", "p", "{:.3f}"),
    Column("p_holm", "p (Holm)", "{:.3f}"),
)


def head_metrics(lab: Lab) -> tuple[str, ...]:
    """The metrics that the data set's tables show."""
    return _HEAD[lab.protocol]


def metric_of(lab: Lab, name: str) -> Metric:
    """A metric of the data set's protocol as a function of scores and labels [N]."""
    return partial(split_metric, name, protocol=lab.protocol, limit=lab.half_range, center=lab.center)


def few_seeds(seeds: int) -> str | None:
    """What has to be said of so few seeds; None where there are enough."""
    return None if seeds >= FEW_SEEDS else f"too few seeds for a claim: {seeds}, and {FEW_SEEDS} are the least"


def arm_tables(
    lab: Lab,
    arms: Sequence[Arm],
    models: Mapping[str, Sequence[Model]],
    *,
    paper: Mapping[str, Mapping[str, float]] | None = None,
    metrics: Sequence[str] = (),
) -> list[Table]:
    """A table for each metric, a row for each arm; the first arm is the reference.

    Differences are over the seeds under which both arms were trained. `paper`: figures by arm and metric.
    """
    reference, *others = arms
    shared = _shared(models, arms)
    tables = []
    for name in metrics or head_metrics(lab):
        rows = []
        found = {}
        if shared and others:
            stacked = {arm.name: _scores(models[arm.name], shared) for arm in arms}
            base = stacked.pop(reference.name)
            label_N = models[reference.name][0].scored("test").label_N
            found = compare(base, stacked, label_N, metric_of(lab, name), seed=lab.config.seed)
        for arm in arms:
            figure = spread([model.metrics["test"][name] for model in models[arm.name]])
            row: dict[str, Any] = {
                "name": arm.name,
                "title": arm.title,
                "paper": (paper or {}).get(arm.name, {}).get(name),
                "mean": figure.mean,
                "deviation": figure.deviation,
                "seeds": len(figure.values),
                "values": list(figure.values),
            }
            if arm.name in found:
                gain = found[arm.name]
                row |= {"difference": gain.mean, "low": gain.low, "high": gain.high, "p": gain.p, "p_holm": gain.p_holm}
            rows.append(row)
        better = "lower" if METRIC_DIRECTIONS[name] == "min" else "higher"
        notes = [note for note in (few_seeds(len(shared)),) if note]
        columns = [c for c in _COLUMNS if c.key == "title" or any(row.get(c.key) is not None for row in rows)]
        tables.append(Table(name, f"{METRIC_TITLES[name]} on test ({better} is better)", columns, rows, notes))
    return tables


def _shared(models: Mapping[str, Sequence[Model]], arms: Sequence[Arm]) -> list[int]:
    """The seeds under which every arm was trained."""
    sets = [{model.index for model in models[arm.name]} for arm in arms]
    return sorted(set.intersection(*sets))


def _scores(models: Sequence[Model], indices: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[S, N] test scores under these seeds."""
    by_index = {model.index: model for model in models}
    return np.stack([by_index[index].scored("test").score_N for index in indices])
