"""A model of a stage's trials, which tells the effect of their parameters from that of the seed.

The objective is a Gaussian process over the parameters, plus white noise. With a dozen trials, the most likely kernel
often explains everything or nothing, so the model averages over a grid of kernels by their evidence. Choosing the best
trial does not flatter its estimate: the model shrinks a lucky figure towards its neighbours.

T trials, C coordinates, P places to estimate, D draws from the posterior.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from grcf_ray.statistics import Floats

FRACTIONS = np.sin(np.linspace(0, 0.95 * np.pi / 2, 20)) ** 2
"""Share of the variance that belongs to the parameters a priori; denser at the ends (arcsine prior)."""
LENGTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Length scales, in root mean square distance over coordinates that reach from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class Posterior:
    """Draws from the posterior."""

    level_DP: Floats
    """The objective without noise."""
    variance_D: Floats
    """Variance of the noise."""
    share_D: Floats
    """The share of the parameters in the variance between the trials."""

    @classmethod
    def pooled(cls, parts: Sequence[Posterior]) -> Posterior:
        """Return the draws of several posteriors together."""
        return cls(
            *(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(cls))
        )


def draw_posterior(
    place_TC: Floats, value_T: Floats, at_PC: Floats, *, squares: float = 0.0, freedom: int = 0, draws: int = 4000
) -> Posterior:
    """Return draws from the posterior of trials with these coordinates and objectives, not all equal.

    squares, freedom: sum of squares and degrees of freedom of further trainings that repeat a configuration; they
    measure the noise directly. The prior is flat in the mean and in the logarithm of the variance.
    """
    scale = float(value_T.std())
    standard_T = (value_T - value_T.mean()) / scale
    fits = [
        fit
        for additive, length in itertools.product((False, True), LENGTHS)
        for fit in fit_kernel(
            kernel(place_TC, place_TC, length, additive=additive),
            kernel(at_PC, place_TC, length, additive=additive),
            kernel(at_PC, at_PC, length, additive=additive),
            standard_T,
            squares / scale**2,
            freedom,
        )
    ]
    rng = np.random.default_rng(0)
    weight = np.exp(np.array([fit.log_evidence for fit in fits]) - max(fit.log_evidence for fit in fits))
    chosen_D = rng.choice(len(fits), size=draws, p=weight / weight.sum())
    fraction_D, squares_D, apart_D, unknown_D = (
        np.array([getattr(fit, name) for fit in fits])[chosen_D]
        for name in ("fraction", "squares", "level_squares", "unknown_squares")
    )
    variance_D = squares_D / rng.chisquare(len(value_T) - 1 + freedom, size=draws)
    noise_D = (1 - fraction_D) * variance_D
    between_D = (apart_D + unknown_D * variance_D) / (len(value_T) - 1)
    # The jitter keeps the covariance of two equal places positive definite.
    roots = np.linalg.cholesky(np.stack([fit.covariance_PP for fit in fits]) + 1e-9 * np.eye(len(at_PC)))
    normal_DP = rng.standard_normal((draws, len(at_PC)))
    spread_DP = np.sqrt(variance_D)[:, None] * np.einsum("dpq,dq->dp", roots[chosen_D], normal_DP)
    level_DP = np.stack([fit.level_P for fit in fits])[chosen_D] + spread_DP
    return Posterior(value_T.mean() + scale * level_DP, scale**2 * noise_D, between_D / (between_D + noise_D))


def kernel(first_NC: Floats, second_MC: Floats, length: float, *, additive: bool) -> Floats:
    """Return the squared exponential kernel [N, M] of all coordinates together, or the mean of one of each.

    The additive kernel describes many coordinates with few trials, the joint one their interactions.
    """
    distance_NMC = ((first_NC[:, None] - second_MC[None]) / length) ** 2
    if additive:
        return np.asarray(np.exp(-distance_NMC / 2).mean(axis=2))
    return np.asarray(np.exp(-distance_NMC.mean(axis=2) / 2))


class Fit(NamedTuple):
    """The posterior for one kernel and one fraction; variances are in units of the total one."""

    fraction: float
    log_evidence: float
    squares: float
    """Of the trials' residuals, whitened, and of the repeated trainings."""
    level_P: Floats
    covariance_PP: Floats
    level_squares: float
    """Sum of squares of the trials' expected levels about their mean."""
    unknown_squares: float
    """Expected addition to it, since the levels are not known."""


def fit_kernel(
    kernel_TT: Floats, cross_PT: Floats, kernel_PP: Floats, value_T: Floats, squares: float, freedom: int
) -> Iterator[Fit]:
    """Yield the fit for each fraction f of the covariance f K + (1 - f) I (Rasmussen and Williams 2006, eq. 2.42)."""
    count = len(value_T)
    eigen_T, basis_TT = np.linalg.eigh(kernel_TT)
    # Rounding makes the smallest ones negative.
    eigen_T = eigen_T.clip(0)
    one_T, turned_T, cross_TP = basis_TT.sum(axis=0), basis_TT.T @ value_T, basis_TT.T @ cross_PT.T
    for fraction in FRACTIONS.tolist():
        inverse_T = 1 / (fraction * eigen_T + 1 - fraction)
        information = float(inverse_T @ one_T**2)
        mean = float(inverse_T @ (one_T * turned_T)) / information
        residual_T = turned_T - mean * one_T
        whole = float(inverse_T @ residual_T**2) + squares / (1 - fraction)
        weighted_TP = fraction * inverse_T[:, None] * cross_TP
        rest_P = 1 - weighted_TP.T @ one_T
        level_T = basis_TT @ (fraction * eigen_T * inverse_T * residual_T)
        unknown_T = fraction * (1 - fraction) * eigen_T * inverse_T
        rest_T = (1 - fraction) * (basis_TT @ (inverse_T * one_T))
        log_evidence = np.log(inverse_T).sum() - np.log(information) - freedom * np.log(1 - fraction)
        yield Fit(
            fraction=fraction,
            log_evidence=float(log_evidence - (count - 1 + freedom) * np.log(whole)) / 2,
            squares=whole,
            level_P=mean + weighted_TP.T @ residual_T,
            covariance_PP=fraction * (kernel_PP - weighted_TP.T @ cross_TP) + np.outer(rest_P, rest_P) / information,
            level_squares=float(count * level_T.var()),
            unknown_squares=float(unknown_T.sum() - unknown_T @ one_T**2 / count + count * rest_T.var() / information),
        )
