"""What the differences between recorded trials come from: configurations, seeds, and the Stage 1 model."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from search_endings import MEMBERS, ensemble_error
from study import PAIRED, paired_interval

from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.search.trial_table import KnownTrial, TrialTable
from grcf_ray.statistics import RESAMPLES
from grcf_ray.tables import Column, Table
from grcf_ray.train.curve import objective_name

CANDIDATES, KEPT = 8, 3
"""Trials of Stage 1 that a judge compares, and those that are kept."""
SHORT = 2
"""Epochs of a short trial of Stage 2."""
MODELS = (2, 3, 5, 10)
"""Numbers of models of an ensemble."""
GROUP = 6
"""Trials of a group, each in one, within which ensembles are compared with the best trial."""


def by_configuration(table: TrialTable, stage: Literal[1, 2]) -> dict[str, NDArray[np.float64]]:
    """Return the objectives at the best epoch on valid, [configurations, seeds] by split.

    Configurations of which a seed is missing are left out.
    """
    seeds: dict[int, list[KnownTrial]] = {}
    for trial in table.recorded(stage):
        seeds.setdefault(trial.configuration, []).append(trial.known)
    most = max(map(len, seeds.values()))
    whole = [known for known in seeds.values() if len(known) == most]
    return {
        split: np.array([[known.objective[split][known.best] for known in row] for row in whole])
        for split in whole[0][0].objective
    }


def variance_table(table: TrialTable) -> Table:
    """Take the variance of the recorded figures apart: configurations, and seeds within one."""
    rows = []
    for stage in table.stages:
        figures = by_configuration(table, stage)
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
    configurations, seeds = by_configuration(table, 1)["valid"].shape
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
    """Tell what Stage 2 would gain from other judges of the Stage 1 models that it starts from."""
    started = [trial for trial in table.recorded(2) if trial.origin is not None]
    origins, group_T = np.unique([trial.origin for trial in started], axis=0, return_inverse=True)
    # NumPy 2.0 has one more dimension.
    group_T = group_T.reshape(-1)
    accuracy_T = np.array([trial.finalist for trial in started], np.float64)
    figures = {
        split: np.array([trial.known.objective[split][trial.known.best] for trial in started])
        for split in ("valid", "test")
    }
    metric = METRIC_TITLES[objective_name(2, table.task)]
    judges = {
        f"{METRIC_TITLES[objective_name(1, table.task)]} of Stage 1 on valid": -accuracy_T,
        f"{metric} on valid after {SHORT} epochs of Stage 2": np.array([t.known.values_E[SHORT - 1] for t in started]),
        f"{metric} on valid of a whole trial of Stage 2": figures["valid"],
    }
    rows = []
    for judge, judged_T in judges.items():
        rows.append({"judge": judge})
        for split, figure_T in figures.items():
            gain, low, high = judged_gain(judged_T, figure_T, group_T)
            rows[-1] |= {split: f"{gain:+.4f} [{low:+.4f}, {high:+.4f}]"}
    shares = [explained_share(figure_T, group_T) for figure_T in figures.values()]
    said = [f"{share:.0%} [{low:.0%}, {high:.0%}]" for share, low, high in shares]
    return Table(
        "finalists",
        f"What a judge of Stage 1 models is worth: {len(started)} trials of Stage 2 from {len(origins)} models",
        (Column("judge", "judge"), Column("valid", f"{metric} on valid"), Column("test", f"{metric} on test")),
        rows,
        (
            f"mean change of a figure of Stage 2 if the judge keeps the best {KEPT} of {CANDIDATES} models, with its "
            "95 % interval over the models; what the judge costs is not counted",
            f"the Stage 1 model explains {said[0]} of the variance of {metric} on valid, and {said[1]} on test "
            "(one-way analysis of variance)",
        ),
    )


def judged_gain(
    judged_T: NDArray[np.float64], figure_T: NDArray[np.float64], group_T: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Return the mean change of a figure if the groups with the least judged values are kept, with its 95 % interval.

    For normal values it is the intensity of the selection times covariance over deviation (the breeder's equation). The
    covariance is that of different trials of a group, so a trial's own luck is not in it. Bootstrap over groups.
    """
    rng = np.random.default_rng(0)
    intensity = np.sort(rng.normal(size=(100_000, CANDIDATES)))[:, :KEPT].mean()
    size_G = np.bincount(group_T)
    judged_T, figure_T = judged_T - judged_T.mean(), figure_T - figure_T.mean()
    sum_G, other_G, own_G = (np.bincount(group_T, value_T) for value_T in (judged_T, figure_T, judged_T * figure_T))
    drawn = rng.integers(len(size_G), size=(RESAMPLES, len(size_G)))
    rows = [np.arange(len(size_G))[None], drawn]
    gains = [
        intensity
        * ((sum_G * other_G - own_G)[row].sum(axis=1) / (size_G * (size_G - 1))[row].sum(axis=1))
        / judged_T.std(ddof=1)
        for row in rows
    ]
    low, high = np.percentile(gains[1], [2.5, 97.5]).tolist()
    return float(gains[0][0]), low, high


def averaging_table(table: TrialTable) -> Table:
    """Tell what the mean score of several recorded trials of Stage 2, whichever they are, is worth."""
    models = [trial.known for trial in table.recorded(2)]
    rng, rows = np.random.default_rng(0), []
    for size in MODELS:
        row: dict[str, Any] = {"size": size}
        drawn = [rng.choice(len(models), size, replace=False).tolist() for _ in range(RESAMPLES)]
        for split in ("valid", "test"):
            gains = [averaging_gain([models[index] for index in chosen], split) for chosen in drawn]
            low, high = np.percentile(gains, [2.5, 97.5]).tolist()
            row[split] = f"{fmean(gains):+.4f} [{low:+.4f}, {high:+.4f}]"
        rows.append(row)
    metric = METRIC_TITLES[objective_name(2, table.task)]
    return Table(
        "averaging",
        f"What averaging scores is worth: {len(models)} trials of Stage 2",
        (
            Column("size", "models", "{}"),
            Column("valid", f"{metric} on valid", "{}"),
            Column("test", f"{metric} on test", "{}"),
        ),
        rows,
        (
            f"{metric} of the mean score of as many trials, less their mean {metric}; in brackets, 95 % of "
            f"{RESAMPLES:,} random choices of trials",
        ),
    )


def averaging_gain(models: Sequence[KnownTrial], split: Literal["valid", "test"]) -> float:
    """Return the MAE of the mean score of some models, less their mean MAE."""
    return ensemble_error(models, split) - fmean(ensemble_error([model], split) for model in models)


def ensembles_table(table: TrialTable) -> Table:
    """Compare ensembles of recorded trials of Stage 2 with the best trial by validation, within groups of trials."""
    models = [trial.known for trial in table.recorded(2)]
    order = np.random.default_rng(0).permutation(len(models))
    groups = [
        sorted((models[index] for index in group), key=lambda model: model.best_value)
        for group in order[: len(order) // GROUP * GROUP].reshape(-1, GROUP).tolist()
    ]
    single = [ensemble_error(group[:1], "test") for group in groups]
    rows: list[dict[str, Any]] = []
    for name, size in {
        "the best by validation": 1,
        "ensemble of the best three": MEMBERS,
        "ensemble of all": GROUP,
    }.items():
        tests = [ensemble_error(group[:size], "test") for group in groups]
        valid = fmean(ensemble_error(group[:size], "valid") for group in groups)
        row = {"name": name, "models": size, "valid": valid, "test": fmean(tests), "deviation": stdev(tests)}
        rows.append({**row, **paired_interval(tests, single)} if size > 1 else row)
    return Table(
        "ensembles",
        f"Ensembles of recorded trials: {METRIC_TITLES[objective_name(2, table.task)]}",
        (
            Column("name", "ending"),
            Column("models", "models"),
            Column("valid", "on valid", "{:.4f}"),
            Column("test", "on test", "{:.4f}"),
            Column("deviation", "deviation", "{:.4f}"),
            *PAIRED,
        ),
        rows,
        (
            f"means over {len(groups)} groups of {GROUP} trials, which validation orders; difference on test to the "
            "first line with its 95 % t interval, paired",
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
