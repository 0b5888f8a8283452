"""The model of parameters and seed noise: its algebra, and that a choice among trials does not bias it."""

from __future__ import annotations

import numpy as np
import pytest

from grcf_ray.report.noise_model import FRACTIONS, draw_posterior, fit_kernel, kernel
from grcf_ray.statistics import Floats

NOISE = 0.3
TRIALS = 24


def test_a_fit_is_that_of_plain_linear_algebra() -> None:
    """With the inverse of the whole covariance, and the levels' covariance written out."""
    rng = np.random.default_rng(0)
    place_TC, at_PC, value_T = rng.random((7, 3)), rng.random((2, 3)), rng.standard_normal(7)
    squares, freedom = 0.8, 4
    k_TT, k_PT, k_PP = (
        kernel(*both, 0.5, additive=False) for both in ((place_TC, place_TC), (at_PC, place_TC), (at_PC, at_PC))
    )
    one, centring = np.ones(7), np.eye(7) - 1 / 7
    for fraction, fit in zip(FRACTIONS, fit_kernel(k_TT, k_PT, k_PP, value_T, squares, freedom), strict=True):
        covariance = fraction * k_TT + (1 - fraction) * np.eye(7)
        inverse = np.linalg.inv(covariance)
        information = one @ inverse @ one
        mean = one @ inverse @ value_T / information
        residual = value_T - mean
        whole = residual @ inverse @ residual + squares / (1 - fraction)
        assert fit.squares == pytest.approx(whole)
        assert fit.level_P == pytest.approx(mean + fraction * k_PT @ inverse @ residual)
        rest = 1 - fraction * k_PT @ inverse @ one
        known = fraction * k_PP - fraction**2 * k_PT @ inverse @ k_PT.T
        assert fit.covariance_PP == pytest.approx(known + np.outer(rest, rest) / information)
        level = fraction * k_TT @ inverse @ residual
        assert fit.level_squares == pytest.approx(level @ centring @ level)
        rest = one - fraction * k_TT @ inverse @ one
        levels = fraction * k_TT - fraction**2 * k_TT @ inverse @ k_TT + np.outer(rest, rest) / information
        assert fit.unknown_squares == pytest.approx(np.trace(centring @ levels))
        evidence = np.linalg.slogdet(covariance)[1] + np.log(information) + freedom * np.log(1 - fraction)
        assert fit.log_evidence == pytest.approx(-(evidence + (6 + freedom) * np.log(whole)) / 2)


def test_both_kernels_fall_from_one_with_the_distance() -> None:
    first, second = np.zeros((1, 2)), np.array([[0.0, 0.0], [0.5, 0.0], [0.5, 0.5]])
    near = np.exp(-0.5)
    assert kernel(first, second, 0.5, additive=True)[0] == pytest.approx([1, (1 + near) / 2, near])
    assert kernel(first, second, 0.5, additive=False)[0] == pytest.approx([1, np.exp(-0.25), near])


def bowl(place_TC: Floats) -> Floats:
    return 3 * (place_TC[:, 0] - 0.6) ** 2 + 1.5 * (place_TC[:, 1] - 0.4) ** 2


def flat(place_TC: Floats) -> Floats:
    return np.zeros(len(place_TC))


def searched(truth: object, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """A search: places [T, 4], true levels and figures. The second half of the trials is near the best of the first."""
    assert callable(truth)
    place_TC = rng.random((TRIALS, 4))
    half = TRIALS // 2
    best = place_TC[np.argmin(truth(place_TC[:half]) + NOISE * rng.standard_normal(half))]
    place_TC[half:] = np.clip(best + 0.25 * rng.standard_normal((TRIALS - half, 4)), 0, 1)
    level_T = truth(place_TC)
    return place_TC, level_T, level_T + NOISE * rng.standard_normal(TRIALS)


@pytest.mark.parametrize("truth", [bowl, flat])
def test_the_estimate_of_the_chosen_trial_is_not_lucky(truth: object) -> None:
    """The best figure itself is too good by more than a deviation of the noise."""
    lucky, errors, inside, start = [], [], [], []
    for seed in range(120):
        place_TC, level_T, value_T = searched(truth, np.random.default_rng(seed))
        best = int(value_T.argmin())
        level_DP = draw_posterior(place_TC, value_T, place_TC[[best, 0]]).level_DP
        low, high = np.percentile(level_DP[:, 0], [2.5, 97.5])
        lucky.append(value_T[best] - level_T[best])
        errors.append(level_DP[:, 0].mean() - level_T[best])
        start.append(level_DP[:, 1].mean() - level_T[0])
        inside.append(low <= level_T[best] <= high)
    assert np.mean(lucky) < -1.5 * NOISE
    assert abs(np.mean(errors)) < 0.3 * NOISE
    assert abs(np.mean(start)) < 0.1 * NOISE
    assert np.mean(inside) >= 0.92


@pytest.mark.parametrize("slope", [0.0, 0.5, 2.0])
def test_the_share_of_the_parameters_is_that_of_the_variance(slope: float) -> None:
    rng = np.random.default_rng(1)
    place_TC = rng.random((100, 3))
    level_T = slope * place_TC[:, 0]
    posterior = draw_posterior(place_TC, level_T + NOISE * rng.standard_normal(100), place_TC[:1])
    share = level_T.var() / (level_T.var() + NOISE**2)
    low, high = np.percentile(posterior.share_D, [1, 99])
    assert low - 0.01 <= share <= high
    assert posterior.variance_D.mean() ** 0.5 == pytest.approx(NOISE, rel=0.2)


def test_repeated_trainings_measure_the_noise() -> None:
    """A dozen trials on a rough surface look like noise; repeats say that they are not."""
    rng = np.random.default_rng(2)
    place_TC = rng.random((12, 4))
    value_T = np.sin(20 * place_TC[:, 0]) + 0.01 * rng.standard_normal(12)
    alone = draw_posterior(place_TC, value_T, place_TC[:1])
    repeated = draw_posterior(place_TC, value_T, place_TC[:1], squares=20 * 0.01**2, freedom=20)
    assert alone.variance_D.mean() ** 0.5 > 0.3
    assert repeated.variance_D.mean() ** 0.5 < 0.1
    assert repeated.share_D.mean() > 0.95 > alone.share_D.mean()


def test_units_do_not_matter_and_the_draws_repeat() -> None:
    rng = np.random.default_rng(3)
    place_TC, value_T = rng.random((15, 2)), rng.standard_normal(15)
    first = draw_posterior(place_TC, value_T, place_TC[:2], squares=1.0, freedom=3)
    again = draw_posterior(place_TC, 100 * value_T + 7, place_TC[:2], squares=1e4, freedom=3)
    assert again.level_DP == pytest.approx(100 * first.level_DP + 7)
    assert again.variance_D == pytest.approx(1e4 * first.variance_D)
    assert again.share_D == pytest.approx(first.share_D)
