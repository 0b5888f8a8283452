"""What trials that were stopped early would have come to.

The complete trials of a search have survived its early stopping, so their figures are lucky, and a model of them alone
takes the luck for skill. With the stopped trials beside them, all trials count whatever their luck.

T trials, R rungs: the epochs at which a trial was stopped, and the last epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grcf_ray.search.record import TrialRecord
from grcf_ray.statistics import Floats
from grcf_ray.train.curve import best_epoch, objective_value


def rung_values(trials: Sequence[TrialRecord]) -> Floats:
    """Return the best objective up to each rung [T, R]; nan after a trial's stop, and where it is undefined."""
    rungs = sorted({trial.epoch for trial in trials})
    value_TR = np.full((len(trials), len(rungs)), np.nan)
    for row, trial in zip(value_TR, trials, strict=True):
        for column, epoch in enumerate(rungs):
            best = best_epoch(trial.stage, trial.curve[:epoch]) if epoch <= trial.epoch else None
            value = None if best is None else objective_value(trial.stage, best)
            row[column] = np.nan if value is None else value
    return value_TR


def draw_finished(value_TR: Floats, rng: np.random.Generator) -> Floats:
    """Return values [T] at the last rung, drawn for the trials that lack them; all have a value at the first.

    From rung to rung, a regression on the value before predicts the next one. It is fitted to all trials that reached
    the next rung: early stopping chose them by the value before, which does not bias it. Its coefficients and residuals
    are drawn from their posterior (Rubin 1987, Multiple Imputation, section 5.3).
    """
    drawn_T = value_TR[:, 0].copy()
    for value_T in value_TR.T[1:]:
        known_T = np.isfinite(value_T)
        design_T2 = np.column_stack([np.ones(len(drawn_T)), drawn_T])
        fitted_T2, target_T = design_T2[known_T], value_T[known_T]
        inverse_22 = np.linalg.pinv(fitted_T2.T @ fitted_T2)
        slope_2 = inverse_22 @ fitted_T2.T @ target_T
        squares = float(((target_T - fitted_T2 @ slope_2) ** 2).sum())
        variance = squares / rng.chisquare(max(1, len(target_T) - 2))
        slope_2 = rng.multivariate_normal(slope_2, variance * inverse_22)
        residual_T = variance**0.5 * rng.standard_normal(len(drawn_T))
        drawn_T = np.where(known_T, value_T, design_T2 @ slope_2 + residual_T)
    return drawn_T
