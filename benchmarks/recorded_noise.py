"""What the differences between recorded trials come from: configurations, seeds, and the Stage 1 model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.search.trial_table import TrialTable
from grcf_ray.statistics import expected_maximum
from grcf_ray.tables import Column, Table
from grcf_ray.train.curve import objective_name

CANDIDATES = 8
"""Trials of Stage 1 among which a judge of their use for Stage 2 would choose."""


def variance_table(table: TrialTable) -> Table:
    """Take the variance of the recorded figures apart: configurations, and seeds within one."""
    rows = []
    for stage in table.stages:
        figures = table.by_configuration(stage)
        means = {split: value_CS.mean(axis=1) for split, value_CS in figures.items()}
        for split, value_CS in figures.items():
            within = float(value_CS.var(axis=1, ddof=1).mean())
            between = max(0.0, float(means[split].var(ddof=1)) - within / value_CS.shape[1])
            rows.append(
                {
                    "stage": f"{stage}: {METRIC_TITLES[objective_name(stage, table.task)]}, {split}",
                    "mean": float(value_CS.mean()),
                    "seed": within**0.5,
                    "configuration": between**0.5,
                    "share": between / (between + within),
                    "again": float(stats.spearmanr(figures["valid"][:, 0], value_CS[:, 1]).statistic),
                }
            )
    configurations, seeds = table.by_configuration(1)["valid"].shape
    return Table(
        "variance",
        f"Where the differences come from: {configurations} configurations of each stage under {seeds} seeds",
        (
            Column("stage", "stage and split"),
            Column("mean", "mean", "{:.4f}"),
            Column("seed", "deviation over seeds", "{:.4f}"),
            Column("configuration", "over configurations", "{:.4f}"),
            Column("share", "share of configurations", "{:.0%}"),
            Column("again", "rank correlation", "{:+.2f}"),
        ),
        rows,
        (
            "figures of the best epoch on valid",
            "rank correlation: between a configuration's figure on valid under one seed and the line's under another",
        ),
    )


def finalists_table(table: TrialTable) -> Table:
    """Tell how much of a Stage 2 figure the Stage 1 model explains that it starts from."""
    started = [trial for trial in table.recorded(2) if trial.finalist is not None]
    # Two Stage 1 models do not have the same PairwiseAcc, to all digits.
    models, group_T = np.unique([trial.finalist for trial in started], return_inverse=True)
    accuracy_T = models[group_T]
    rows = []
    for split in ("valid", "test"):
        figure_T = np.array([trial.known.objective[split][trial.known.best] for trial in started])
        share, low, high = explained_share(figure_T, group_T)
        best = expected_maximum(CANDIDATES) * float(figure_T.std(ddof=1))
        rows.append(
            {
                "figure": f"{METRIC_TITLES[objective_name(2, table.task)]}, {split}",
                "share": share,
                "low": low,
                "high": high,
                "correlation": float(stats.spearmanr(accuracy_T, figure_T).statistic),
                "judged": best * share,
                "perfect": best * share**0.5,
                "most": best * high**0.5,
            }
        )
    return Table(
        "finalists",
        f"What Stage 2 owes to the model that it starts from: {len(started)} trials from {len(models)} Stage 1 models",
        (
            Column("figure", "figure of Stage 2"),
            Column("share", "share of its variance", "{:.0%}"),
            Column("low", "from", "{:.0%}"),
            Column("high", "to", "{:.0%}"),
            Column("correlation", "rank correlation with PairwiseAcc", "{:+.2f}"),
            Column("judged", f"gain from judging {CANDIDATES}", "{:.4f}"),
            Column("perfect", "with a perfect judge", "{:.4f}"),
            Column("most", "at most", "{:.4f}"),
        ),
        rows,
        (
            "share of the variance between Stage 1 models, with its 95 % interval (one-way analysis of variance)",
            f"gain from judging {CANDIDATES}: the best of {CANDIDATES} Stage 1 models over their mean, if a whole "
            "Stage 2 trial judges each; a perfect judge knows without noise which one is best for Stage 2; at most: "
            "with the upper end of the interval",
        ),
    )


def explained_share(value_T: NDArray[np.float64], group_T: NDArray[np.int64]) -> tuple[float, float, float]:
    """Return the share of the variance that lies between groups, and its 95 % interval, none below 0.

    The interval is that of the F statistic with a mean group size, an approximation if the sizes differ (Thomas and
    Hultquist, Annals of Statistics 6, 1978).
    """
    size_G = np.bincount(group_T)
    mean_G = np.bincount(group_T, value_T) / size_G
    between, within = len(size_G) - 1, len(value_T) - len(size_G)
    ratio = float((size_G * (mean_G - value_T.mean()) ** 2).sum() / between)
    ratio /= float(((value_T - mean_G[group_T]) ** 2).sum() / within)
    size = float(len(value_T) - (size_G**2).sum() / len(value_T)) / between
    low, high = (float(ratio / stats.f.ppf(q, between, within)) for q in (0.975, 0.025))
    share, low, high = (max(0.0, (f - 1) / (f + size - 1)) for f in (ratio, low, high))
    return share, low, high
