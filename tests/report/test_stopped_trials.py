"""Trials that were stopped early, beside the complete ones that survived it."""

from __future__ import annotations

import numpy as np
import pytest
from report.figures.synthetic import trial

from grcf_ray.report.noise_model import Posterior, draw_posterior
from grcf_ray.report.stopped_trials import draw_finished, rung_values
from grcf_ray.statistics import Floats

NOISE = 0.3


def test_values_at_the_rungs_are_the_best_so_far() -> None:
    trials = [
        trial(0, 2, {}, [0.9, 0.7, 0.8, 0.6]),
        trial(1, 2, {}, [0.9, 0.95], "pruned"),
        trial(2, 2, {}, [1.0], "pruned"),
        trial(3, 2, {}, [0.8, None, 0.9, 0.85]),
    ]
    nan = np.nan
    expected = [[0.9, 0.7, 0.6], [0.9, 0.9, nan], [1.0, nan, nan], [0.8, 0.8, 0.8]]
    assert rung_values(trials) == pytest.approx(np.array(expected), nan_ok=True)
    rising = [trial(0, 1, {}, [0.7, 0.6]), trial(1, 1, {}, [0.5], "pruned")]
    assert rung_values(rising) == pytest.approx(np.array([[0.7, 0.7], [0.5, nan]]), nan_ok=True)


def test_complete_trials_keep_their_values_and_stopped_ones_follow_the_others() -> None:
    rng = np.random.default_rng(0)
    first = rng.standard_normal(200)
    last = 0.5 * first - 1 + 0.1 * rng.standard_normal(200)
    stopped = first > 0
    value_TR = np.column_stack([first, np.where(stopped, np.nan, last)])
    drawn = np.stack([draw_finished(value_TR, rng) for _ in range(50)])
    assert (drawn[:, ~stopped] == last[~stopped]).all()
    assert drawn[:, stopped].mean(axis=0) == pytest.approx(0.5 * first[stopped] - 1, abs=0.12)
    assert drawn[:, stopped].std(axis=0).mean() == pytest.approx(0.1, rel=0.15)
    assert draw_finished(last[:, None], rng) == pytest.approx(last)


def test_survivors_of_early_stopping_are_lucky_and_all_trials_are_not() -> None:
    """Half of 48 trials is stopped at each of two rungs, by figures that share part of their noise with the last."""
    lucky, survivors, everyone = [], [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        place_TC, value_TR = rng.random((48, 4)), stopped_twice(rng)
        complete = np.isfinite(value_TR[:, 2])
        best = int(np.nanargmin(value_TR[:, 2]))
        lucky.append(value_TR[best, 2])
        alone = draw_posterior(place_TC[complete], value_TR[complete, 2], place_TC[[best]], draws=500)
        survivors.append(alone.level_DP.mean())
        drawn = [draw_finished(value_TR, rng) for _ in range(4)]
        pooled = Posterior.pooled([draw_posterior(place_TC, v_T, place_TC[[best]], draws=125) for v_T in drawn])
        assert len(pooled.level_DP) == len(pooled.share_D) == 500
        everyone.append(pooled.level_DP.mean())
    # The truth is 0: no parameter matters.
    assert np.mean(lucky) < -2 * NOISE
    assert np.mean(survivors) < -0.9 * NOISE
    assert abs(np.mean(everyone)) < 0.4 * NOISE


def stopped_twice(rng: np.random.Generator) -> Floats:
    last = rng.standard_normal(48)
    middle = 0.7 * last + 0.51**0.5 * rng.standard_normal(48)
    first = 0.7 * middle + 0.51**0.5 * rng.standard_normal(48)
    value_TR = NOISE * np.column_stack([first, middle, last])
    value_TR[np.argsort(value_TR[:, 0])[24:], 1:] = np.nan
    value_TR[np.argsort(value_TR[:, 1])[12:], 2] = np.nan
    return value_TR
