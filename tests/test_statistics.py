from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from grcf_ray.statistics import (
    Difference,
    bootstrap_intervals,
    compare,
    corrected,
    expected_maximum,
    finite_spread,
    mean_ranks,
    rank_correlation,
    rank_test,
    sampling_deviations,
    spread,
)

WIDER = 2.7764 / 1.95996 * math.sqrt(5 / 4)
"""Student's interval over the normal one, of five seeds."""


def mae(score_N: np.ndarray, label_N: np.ndarray) -> float:
    return float(np.abs(score_N - label_N).mean())


def test_spread_is_of_a_sample() -> None:
    over = spread([1.0, 2.0, 4.0])
    assert (over.mean, over.deviation) == (pytest.approx(7 / 3), pytest.approx(math.sqrt(7 / 3)))
    assert spread([1.0]).deviation is None
    assert spread([1.0]).half_width is None
    low, high = stats.t.interval(0.95, 2, over.mean, stats.sem([1.0, 2.0, 4.0]))
    assert over.half_width == pytest.approx((high - low) / 2)
    with pytest.raises(ValueError, match="no seed"):
        spread([])
    assert finite_spread([None, math.nan, math.inf, 2.0]) == spread([2.0])
    assert finite_spread([None]) is None


def test_paired_t_is_scipys_and_its_own_formula() -> None:
    rng = np.random.default_rng(0)
    label_N = rng.normal(size=40)
    reference_SN = label_N + rng.normal(size=(6, 40))
    arm_SN = label_N + 0.8 * rng.normal(size=(6, 40))
    difference = compare(reference_SN, {"ours": arm_SN}, label_N, mae, seed=0)["ours"]
    gains = [mae(a, label_N) - mae(b, label_N) for a, b in zip(arm_SN, reference_SN, strict=True)]
    t = np.mean(gains) / (np.std(gains, ddof=1) / math.sqrt(6))
    assert difference.mean == pytest.approx(np.mean(gains))
    assert difference.p == pytest.approx(2 * stats.t.sf(abs(t), 5))
    assert difference.low < difference.mean < difference.high


def test_no_test_of_one_seed_or_of_the_same_difference_everywhere() -> None:
    label_N = np.linspace(-1, 1, 20)
    assert compare(label_N[None], {"a": label_N[None] + 1}, label_N, mae, seed=0)["a"].p is None
    same = compare(np.stack([label_N, label_N]), {"a": np.stack([label_N + 1, label_N + 1])}, label_N, mae, seed=0)["a"]
    assert (same.p, same.mean, same.low, same.high) == (None, *[pytest.approx(1.0)] * 3)


@pytest.fixture
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grcf_ray.statistics.RESAMPLES", 200)


@pytest.mark.usefixtures("_few_draws")
def test_bootstrap_is_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    label_N = rng.normal(size=15)
    arm_SN, reference_SN = rng.normal(size=(3, 15)), rng.normal(size=(3, 15))
    draws, again = [], np.random.default_rng(9)
    for _ in range(200):
        seeds, rows = again.integers(3, size=3), again.integers(15, size=15)
        total = 0.0
        for s in seeds:
            for r in rows:
                total += abs(arm_SN[s, r] - label_N[r]) - abs(reference_SN[s, r] - label_N[r])
        draws.append(total / 45)
    low, high = bootstrap_intervals(reference_SN, {"a": arm_SN}, label_N, mae, seed=9)["a"]
    assert (low, high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])))


@pytest.mark.usefixtures("_few_draws")
def test_intervals_of_five_seeds_cover_the_truth() -> None:
    """Seeds differ and utterances do too; the truth is a difference of 0."""
    rng, covered, plain = np.random.default_rng(3), 0, 0
    for trial in range(120):
        label_N = np.zeros(40)
        arm_SN = 10 + rng.normal(size=(5, 1)) + 0.5 * rng.normal(size=(5, 40))
        difference = compare(np.full((5, 40), 10.0), {"a": arm_SN}, label_N, mae, seed=trial)["a"]
        covered += difference.low <= 0 <= difference.high
        # The bootstrap's interval, before it is widened.
        low, high = (difference.mean + (end - difference.mean) / WIDER for end in (difference.low, difference.high))
        plain += low <= 0 <= high
    assert covered >= 110 > plain


def test_the_interval_is_the_bootstraps_widened_as_students_is() -> None:
    rng = np.random.default_rng(4)
    label_N = rng.normal(size=30)
    reference_SN, arm_SN = rng.normal(size=(2, 5, 30))
    difference = compare(reference_SN, {"a": arm_SN}, label_N, mae, seed=1)["a"]
    low, high = bootstrap_intervals(reference_SN, {"a": arm_SN}, label_N, mae, seed=1)["a"]
    assert (difference.mean - difference.low) / (difference.mean - low) == pytest.approx(WIDER, rel=1e-4)
    assert (difference.high - difference.mean) / (high - difference.mean) == pytest.approx(WIDER, rel=1e-4)


def test_bootstrap_leaves_undefined_draws_out_and_refuses_other_shapes() -> None:
    def of_both_classes(score_N: np.ndarray, label_N: np.ndarray) -> float:
        return mae(score_N, label_N) if np.ptp(label_N) > 0 else math.nan

    label_N = np.array([0.0, 1.0])
    low, high = bootstrap_intervals(np.ones((2, 2)), {"a": np.zeros((2, 2))}, label_N, of_both_classes, seed=0)["a"]
    assert (low, high) == (0.0, 0.0)
    with pytest.raises(ValueError, match="of the reference"):
        bootstrap_intervals(np.ones((2, 2)), {"a": np.ones((2, 2))}, np.ones(3), mae, seed=0)
    with pytest.raises(ValueError, match="every draw"):
        bootstrap_intervals(np.ones((2, 2)), {"a": np.ones((2, 2))}, np.ones(2), of_both_classes, seed=0)


def test_holm_on_a_worked_example() -> None:
    """Four hypotheses, as in textbooks: 0.01 x 4, 0.02 x 3, then nothing smaller than what came before."""

    def adjusted(**p_values: float | None) -> dict[str, float | None]:
        differences = {name: Difference(0.0, p, 0.0, 0.0) for name, p in p_values.items()}
        return {name: difference.p_holm for name, difference in corrected(differences).items()}

    assert adjusted(a=0.01, b=0.04, c=0.03, d=0.02, none=None) == {
        **{"a": pytest.approx(0.04), "b": pytest.approx(0.06), "c": pytest.approx(0.06), "d": pytest.approx(0.06)},
        "none": None,
    }
    assert adjusted(a=0.9, b=0.8) == {"a": 1.0, "b": 1.0}


def test_rank_correlation_is_scipys_with_ties() -> None:
    rng = np.random.default_rng(2)
    one_P, other_P = rng.normal(size=60), rng.integers(0, 4, 60).astype(float)
    assert rank_correlation(one_P, other_P) == pytest.approx(stats.spearmanr(one_P, other_P).statistic)
    assert np.isnan(rank_correlation(one_P, np.ones(60)))


def test_rank_test_agrees_with_every_order_counted() -> None:
    first, second = [1.0, 2.0, 2.0, 5.0, 4.0], [0.3, 0.1, 0.4, 0.9, 0.4]
    rho, p = rank_test(first, second)
    assert rho == pytest.approx(stats.spearmanr(first, second).statistic)
    others = [abs(stats.spearmanr(first, order).statistic) for order in itertools.permutations(second)]
    assert p == np.mean([other >= abs(rho or 0) - 1e-9 for other in others])
    assert rank_test([1, 2], [2, 1]) == (-1.0, 1.0)
    assert rank_test([1, 1], [2, 1]) == rank_test([1], [1]) == (None, None)
    many = [float(k) for k in range(12)]
    rho, p = rank_test(many, many)
    assert rho == pytest.approx(1) and p is not None and 0 < p < 1e-3


def test_the_expected_largest_of_normal_values() -> None:
    """Known in closed form for two and three (Johnson, Kotz, Balakrishnan 1994, 13.9); of many, by simulation."""
    assert expected_maximum(1) == pytest.approx(0, abs=1e-9)
    assert expected_maximum(2) == pytest.approx(np.pi**-0.5)
    assert expected_maximum(3) == pytest.approx(1.5 * np.pi**-0.5)
    drawn = np.random.default_rng(0).standard_normal((20_000, 40)).max(axis=1)
    assert expected_maximum(40) == pytest.approx(drawn.mean(), abs=0.02)
    assert 4.3 < expected_maximum(100_000) < 4.5


def test_deviations_over_samples_of_utterances() -> None:
    """Those of a mean are known; two models with the same errors differ by nothing."""
    rng = np.random.default_rng(0)
    label_N = rng.standard_normal(300)
    first_N, second_N = (label_N + rng.standard_normal(300) for _ in range(2))
    errors = [np.abs(score_N - label_N) for score_N in (first_N, second_N)]
    single, paired = sampling_deviations(np.stack([first_N, second_N]), label_N, mae, seed=0)
    assert single == pytest.approx((np.mean([e.var() for e in errors]) / 300) ** 0.5, rel=0.15)
    assert paired == pytest.approx((errors[0] - errors[1]).std() / 300**0.5, rel=0.15)
    assert sampling_deviations(first_N[None], label_N, mae, seed=0)[1] is None
    same = sampling_deviations(np.stack([first_N, first_N]), label_N, mae, seed=0)
    assert same[1] == pytest.approx(0, abs=1e-9)
    undefined, none = sampling_deviations(first_N[None], label_N, lambda *_: float("nan"), seed=0)
    assert np.isnan(undefined) and none is None


DEMSAR = np.array(
    [
        *([0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967]),
        *([0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931]),
        *([0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875]),
        *([1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669]),
        *([0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970]),
    ]
)
"""AUC of four variants of C4.5 on 14 data sets: Table 6 of Demsar (2006), whose ranks break one tie, here 0.9751."""


def test_mean_ranks_are_those_of_demsars_example() -> None:
    over = mean_ranks(-DEMSAR)
    assert over.ranks == pytest.approx((3.143, 2.000, 2.893, 1.964), abs=5e-4)
    assert over.critical == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
    assert over.p == stats.friedmanchisquare(*DEMSAR.T).pvalue


def test_friedmans_p_is_that_of_its_equation() -> None:
    cost_SA = np.random.default_rng(0).normal(size=(6, 5)) + np.arange(5)
    over = mean_ranks(cost_SA)
    ranks = [sum(sorted(row).index(row[arm]) + 1 for row in cost_SA.tolist()) / 6 for arm in range(5)]
    assert over.ranks == pytest.approx(ranks)
    chi2 = 12 * 6 / (5 * 6) * (sum(rank**2 for rank in ranks) - 5 * 6**2 / 4)
    assert over.p == pytest.approx(stats.chi2.sf(chi2, 4))
    assert mean_ranks(np.ones((3, 4))).p == 1.0
