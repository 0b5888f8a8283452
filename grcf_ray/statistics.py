"""Statistics over seeds and over test utterances: spread, intervals, paired tests, corrections, rank correlation.

A arms, S seeds, N utterances, K orders. Arms that are compared have the same seeds and the same utterances, in the same
order. scipy is imported by the functions that need it: commands that list runs start without it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
"""Draws of the bootstrap."""
_DEVIATION_DRAWS = 200
"""Draws of the bootstrap of a standard deviation, which has an error of 5 % then."""

Floats = NDArray[np.float64]
Metric = Callable[[Floats, Floats], float]
"""A function of scores [N] and labels [N]; nan if the metric is undefined."""

_ORDERS = 40_320
"""Orders of a permutation test: all of up to 8 values."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """A figure over seeds."""

    values: tuple[float, ...]
    mean: float
    deviation: float | None
    """With n - 1; None for a single seed."""

    @property
    def half_width(self) -> float | None:
        """Half the width of the mean's 95 % t interval; None for a single seed."""
        if self.deviation is None:
            return None
        from scipy import stats

        n = len(self.values)
        return float(float(stats.t.ppf(0.975, n - 1)) * self.deviation / n**0.5)


@dataclasses.dataclass(frozen=True)
class Difference:
    """An arm minus the reference, paired by seed."""

    mean: float
    p: float | None
    """Two-sided paired t test over seeds; None below two seeds, or if all differences are equal."""
    low: float
    high: float
    """95 % interval of the paired bootstrap over (seed, test utterance), widened for few seeds."""
    p_holm: float | None = None
    """`p` after Holm's correction over the rows of its table."""


def spread(values: Sequence[float]) -> Spread:
    """Return the mean and deviation of a figure over seeds. ValueError without any value."""
    if not values:
        raise ValueError("no seed has this figure")
    array = np.asarray(values, dtype=np.float64)
    return Spread(tuple(values), float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None)


def finite_spread(values: Iterable[float | None]) -> Spread | None:
    """Return the spread of the values that are neither None nor infinite nor nan; None if no such value is left."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return spread(known) if known else None


@dataclasses.dataclass(frozen=True)
class MeanRanks:
    """Mean ranks of arms, 1 for the best, and whether they differ."""

    ranks: tuple[float, ...]
    """In the order of the arms."""
    p: float
    """Friedman's test that all arms rank alike, by its chi-square approximation."""
    critical: float
    """Nemenyi's critical difference: two mean ranks that are further apart differ, at 5 % for all pairs together."""


def mean_ranks(cost_SA: Floats) -> MeanRanks:
    """Rank the arms within each seed by a figure to minimise, [S, A], ties by their mean rank. ValueError below A = 3.

    Demsar, 2006. Statistical Comparisons of Classifiers over Multiple Data Sets. JMLR 7, section 3.2.2. The blocks are
    the seeds, independent repetitions of a training. Utterances are no blocks: those of one model share its training.
    """
    from scipy import stats

    seeds, arms = cost_SA.shape
    rank_SA = stats.rankdata(cost_SA, axis=1)
    # With nothing but ties, Friedman's statistic is 0 / 0.
    p = float(stats.friedmanchisquare(*cost_SA.T).pvalue) if np.ptp(rank_SA) else 1.0
    quantile = float(stats.studentized_range.ppf(0.95, arms, np.inf)) / 2**0.5
    critical = quantile * (arms * (arms + 1) / (6 * seeds)) ** 0.5
    return MeanRanks(tuple(rank_SA.mean(axis=0).tolist()), p, critical)


def paired_p(gain_S: Floats) -> float | None:
    """Return the p of a paired t test over seeds; None below two seeds, or if all differences [S] are equal."""
    from scipy import stats

    return float(stats.ttest_1samp(gain_S, 0).pvalue) if len(gain_S) > 1 and np.ptp(gain_S) > 0 else None


def compare(
    reference_SN: Floats, arms: Mapping[str, Floats], label_N: Floats, metric: Metric, *, seed: int
) -> dict[str, Difference]:
    """Return the difference of a metric between each arm and the reference, [S, N] scores each, without a correction.

    A percentile interval over five seeds covers the truth five times in six. It is widened around the mean by the ratio
    of Student's interval to the normal one. That is too wide if utterances matter more than seeds.
    """
    from scipy import stats

    base_S = np.array([metric(score_N, label_N) for score_N in reference_SN])
    intervals = bootstrap_intervals(reference_SN, arms, label_N, metric, seed=seed)
    n = len(base_S)
    wider = float(stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975) * (n / (n - 1)) ** 0.5) if n > 1 else 1.0
    differences: dict[str, Difference] = {}
    for name, score_SN in arms.items():
        gain_S = np.array([metric(score_N, label_N) for score_N in score_SN]) - base_S
        mean, (low, high) = float(gain_S.mean()), intervals[name]
        differences[name] = Difference(
            mean, paired_p(gain_S), mean - wider * (mean - low), mean + wider * (high - mean)
        )
    return differences


def bootstrap_intervals(
    reference_SN: Floats, arms: Mapping[str, Floats], label_N: Floats, metric: Metric, *, seed: int
) -> dict[str, tuple[float, float]]:
    """Return 95 % percentile intervals of the mean differences; each draw resamples seeds and utterances together.

    A draw takes S seeds and N utterances with replacement, the same for all arms. Draws on which the metric is
    undefined, such as draws of a single class, are left out. ValueError if no draw is left, or if the shapes differ.
    """
    for name, score_SN in arms.items():
        if score_SN.shape != reference_SN.shape or score_SN.shape[1:] != label_N.shape:
            raise ValueError(f"{name}: {score_SN.shape} scores, {reference_SN.shape} of the reference, {label_N.shape}")
    n_seeds, n = reference_SN.shape
    rng = np.random.default_rng(seed)
    gains: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(RESAMPLES):
        seeds = rng.integers(n_seeds, size=(n_seeds,)).tolist()
        drawn_N = rng.integers(n, size=n)
        label = label_N[drawn_N]
        # A seed drawn twice has the same figure twice.
        base = {s: metric(reference_SN[s, drawn_N], label) for s in set(seeds)}
        for name, score_SN in arms.items():
            figures = {s: metric(score_SN[s, drawn_N], label) for s in set(seeds)}
            gains[name].append(float(np.mean([figures[s] - base[s] for s in seeds])))
    intervals = {}
    for name, values in gains.items():
        finite = np.array(values)[np.isfinite(values)]
        if not len(finite):
            raise ValueError(f"{name}: the metric is undefined on every draw")
        low, high = np.percentile(finite, [2.5, 97.5]).tolist()
        intervals[name] = (low, high)
    return intervals


def corrected(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """Return the differences with Holm's step-down correction over all that have a p."""
    known = sorted((difference.p, name) for name, difference in differences.items() if difference.p is not None)
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, (p, name) in enumerate(known):
        highest = adjusted[name] = max(highest, min(1.0, (len(known) - rank) * p))
    return {name: dataclasses.replace(over, p_holm=adjusted.get(name)) for name, over in differences.items()}


def rank_correlation(first_N: Floats, second_N: Floats) -> float:
    """Return Spearman's correlation, ties by their mean rank; nan if either is constant."""
    from scipy import stats

    if len(first_N) < 2 or not np.ptp(first_N) or not np.ptp(second_N):
        return math.nan
    return float(np.corrcoef(stats.rankdata(first_N), stats.rankdata(second_N))[0, 1])


def rank_test(first_N: Sequence[float], second_N: Sequence[float]) -> tuple[float | None, float | None]:
    """Return Spearman's correlation and its two-sided permutation p-value; None for both if either is constant.

    p is the share of all orders of `second_N` whose correlation is as far from 0. It is exact up to 8 values; of more
    values, `_ORDERS` orders are drawn.
    """
    from scipy import stats

    count = len(first_N)
    if count < 2 or len(set(first_N)) < 2 or len(set(second_N)) < 2:
        return None, None
    rank_N, other_N = (stats.rankdata(values) - (count + 1) / 2 for values in (first_N, second_N))
    scale = float(np.sqrt((rank_N @ rank_N) * (other_N @ other_N)))
    test = stats.permutation_test(
        (other_N,),
        lambda orders_KN, axis: np.abs(orders_KN @ rank_N),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=_ORDERS,
        alternative="greater",
        random_state=0,
    )
    return float(rank_N @ other_N) / scale, float(test.pvalue)


def expected_maximum(count: int) -> float:
    """Return the expected largest of `count` independent standard normal values."""
    from scipy import integrate, stats

    def density(value: float) -> float:
        return float(value * count * stats.norm.pdf(value) * stats.norm.cdf(value) ** (count - 1))

    # Beyond 10 deviations there is nothing to integrate; with infinite limits quad misses the narrow peak.
    return float(integrate.quad(density, -10, 10, points=[0, 2, 4], limit=200)[0])


def sampling_deviations(score_MN: Floats, label_N: Floats, metric: Metric, *, seed: int) -> tuple[float, float | None]:
    """Return the standard deviation over samples of utterances of a model's metric, and of the difference of two.

    The first is the root mean square over the M models, the second over all pairs of them; None for a single model. A
    bootstrap draws the same utterances for all models. nan if the metric is undefined on every draw.
    """
    rng, figures = np.random.default_rng(seed), []
    for _ in range(_DEVIATION_DRAWS):
        drawn_N = rng.integers(len(label_N), size=len(label_N))
        figures.append([metric(score_N[drawn_N], label_N[drawn_N]) for score_N in score_MN])
    figure_RM = np.array(figures)
    figure_RM = figure_RM[np.isfinite(figure_RM).all(axis=1)]
    if len(figure_RM) < 2:
        return math.nan, None
    cov_MM = np.atleast_2d(np.cov(figure_RM.T))
    pairs = list(itertools.combinations(range(len(score_MN)), 2))
    apart = [cov_MM[i, i] + cov_MM[j, j] - 2 * cov_MM[i, j] for i, j in pairs]
    # Rounding makes the variance of a difference of equal models negative.
    return float(np.trace(cov_MM) / len(cov_MM)) ** 0.5, max(float(np.mean(apart)), 0.0) ** 0.5 if pairs else None
