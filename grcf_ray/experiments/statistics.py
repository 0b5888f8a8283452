"""What a difference between two ways of training is worth, over seeds and over test utterances.

A arms, S seeds, N utterances. Arms that are compared have the same seeds and the same utterances, in the same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000

Floats = NDArray[np.float64]
Metric = Callable[[Floats, Floats], float]
"""Of scores [N] and labels [N]; nan where it is undefined."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """A figure over seeds."""

    values: tuple[float, ...]
    mean: float
    deviation: float | None
    """With n - 1; None of a single seed."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """An arm minus the reference, paired by seed."""

    mean: float
    p: float | None
    """Two-sided paired t test over seeds; None below two seeds, or where all differences are the same."""
    low: float
    high: float
    """95 % interval of the paired bootstrap over (seed, test utterance), widened for few seeds."""
    p_holm: float | None = None
    """`p` after Holm's correction over the rows of its table."""


def spread(values: Sequence[float]) -> Spread:
    """Mean and deviation of a figure over seeds. ValueError where there are none."""
    if not values:
        raise ValueError("no seed has this figure")
    array = np.asarray(values, dtype=np.float64)
    return Spread(tuple(values), float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None)


def compare(
    reference_SN: Floats,
    arms: Mapping[str, Floats],
    label_N: Floats,
    metric: Metric,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Difference]:
    """The difference of a metric between each arm and the reference, [S, N] scores each, with Holm's correction.

    A percentile interval over five seeds covers the truth five times in six. It is widened around the mean as Student's
    interval is wider than one of a known deviation, which is too wide where utterances matter more than seeds.
    """
    from scipy import stats

    base_S = np.array([metric(score_N, label_N) for score_N in reference_SN])
    intervals = bootstrap_intervals(reference_SN, arms, label_N, metric, seed=seed, resamples=resamples)
    n = len(base_S)
    wider = float(stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975) * (n / (n - 1)) ** 0.5) if n > 1 else 1.0
    found: dict[str, Difference] = {}
    for name, score_SN in arms.items():
        ours_S = np.array([metric(score_N, label_N) for score_N in score_SN])
        gain_S = ours_S - base_S
        mean, (low, high) = float(gain_S.mean()), intervals[name]
        found[name] = Difference(mean, paired_p(gain_S), mean - wider * (mean - low), mean + wider * (high - mean))
    return corrected(found)


def paired_p(gain_S: Floats) -> float | None:
    """Of a paired t test over seeds; None below two of them, or where all differences [S] are the same."""
    from scipy import stats

    return float(stats.ttest_1samp(gain_S, 0).pvalue) if len(gain_S) > 1 and np.ptp(gain_S) > 0 else None


def corrected(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """The differences with Holm's correction over all of them."""
    by_name = holm({name: difference.p for name, difference in differences.items()})
    return {name: dataclasses.replace(difference, p_holm=by_name[name]) for name, difference in differences.items()}


def bootstrap_intervals(
    reference_SN: Floats,
    arms: Mapping[str, Floats],
    label_N: Floats,
    metric: Metric,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of the mean differences, seeds and utterances drawn anew together.

    One draw takes S seeds and N utterances with replacement, the same ones for all arms. A draw on which the metric is
    undefined, such as one of a single class, is left out. ValueError where none is left.
    """
    for name, score_SN in arms.items():
        if score_SN.shape != reference_SN.shape or score_SN.shape[1:] != label_N.shape:
            raise ValueError(f"{name}: {score_SN.shape} scores, {reference_SN.shape} of the reference, {label_N.shape}")
    n_seeds, n = reference_SN.shape
    rng = np.random.default_rng(seed)
    gains: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(resamples):
        seeds = [int(drawn) for drawn in rng.integers(n_seeds, size=(n_seeds,))]
        drawn_N = rng.integers(n, size=n)
        label = label_N[drawn_N]
        # A seed that is drawn twice has the same figure twice.
        base = {s: metric(reference_SN[s, drawn_N], label) for s in set(seeds)}
        for name, score_SN in arms.items():
            ours = {s: metric(score_SN[s, drawn_N], label) for s in set(seeds)}
            gains[name].append(float(np.mean([ours[s] - base[s] for s in seeds])))
    return {name: _interval(name, values) for name, values in gains.items()}


def _interval(name: str, values: Sequence[float]) -> tuple[float, float]:
    array = np.asarray(values)
    kept = array[np.isfinite(array)]
    if not len(kept):
        raise ValueError(f"{name}: the metric is undefined on every draw")
    low, high = np.percentile(kept, [2.5, 97.5])
    return float(low), float(high)


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down correction over the rows that have a p-value: the chance of any false claim is the level's."""
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    highest = 0.0
    for rank, (p, name) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[name] = highest
    return corrected
