"""Statistics of pairs: which pairs have different labels, and what predicts their weight beyond chance.

Pairs that share an utterance are not independent, so the p of a plain regression is too small. The permutation test
shuffles the utterances: labels and unimodal scores move together, the weights stay. N utterances, P pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grcf_ray.statistics import Floats

Ints = NDArray[np.int64]
Statistic = Callable[[Floats, Ints], Floats]
"""A function of weights [P] and pairs [P, 2] that returns K figures; nan for an undefined one."""

SEED = 0
"""Of all random draws of pairs and permutations."""


def differing_pairs(label_N: Floats, most: int, *, seed: int) -> tuple[Ints, int]:
    """Return [P, 2] pairs of different labels, the higher one first, and the number of all such pairs.

    Above `most` pairs, `most` are drawn uniformly without replacement.
    """
    order_N = np.argsort(label_N, kind="stable")
    sorted_N = label_N[order_N]
    # An utterance is the higher one of as many pairs as there are labels strictly below its own.
    below_N = np.searchsorted(sorted_N, sorted_N, side="left")
    ends_N = np.cumsum(below_N)
    total = int(ends_N[-1]) if len(ends_N) else 0
    drawn_P = np.arange(total)
    if total > most:
        drawn_P = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    high_P = np.searchsorted(ends_N, drawn_P, side="right")
    low_P = drawn_P - (ends_N - below_N)[high_P]
    return np.stack([order_N[high_P], order_N[low_P]], axis=1).astype(np.int64), total


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fit by ordinary least squares."""

    terms: Mapping[str, Mapping[str, float]]
    """Of `const` and each predictor: `coefficient`, `error`, `t` and `p`.

    error: the standard error as if the observations were independent. p: two-sided, by Student's t.
    """
    r2: float
    n: int


def fit_ols(response_P: Floats, predictors: Mapping[str, Floats]) -> Fit:
    """Fit the response on a constant, `const`, and the predictors [P].

    ValueError if observations are too few, or if a predictor is constant or a combination of others.
    """
    from scipy import stats

    names = ("const", *predictors)
    design_PK = np.stack([np.ones(len(response_P)), *predictors.values()], axis=1)
    freedom = len(response_P) - len(names)
    if freedom < 1:
        raise ValueError(f"{len(response_P)} observations for {len(names)} coefficients")
    q_PK, r_KK = np.linalg.qr(design_PK)
    if (np.abs(np.diag(r_KK)) <= 1e-10 * np.linalg.norm(design_PK, axis=0)).any():
        raise ValueError("a predictor is constant, or is a combination of the others")
    inverse_KK = np.linalg.inv(r_KK)
    coefficient_K = inverse_KK @ (q_PK.T @ response_P)
    rest_P = response_P - design_PK @ coefficient_K
    variance = float(rest_P @ rest_P) / freedom
    error_K = np.sqrt(variance * np.square(inverse_KK).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        t_K = coefficient_K / error_K
    p_K = 2 * stats.t.sf(np.abs(t_K), freedom)
    spread = float(np.square(response_P - response_P.mean()).sum())
    keys, figures = ("coefficient", "error", "t", "p"), np.stack([coefficient_K, error_K, t_K, p_K], axis=1).tolist()
    terms = {name: dict(zip(keys, values, strict=True)) for name, values in zip(names, figures, strict=True)}
    return Fit(terms, 1 - float(rest_P @ rest_P) / spread if spread else 0.0, len(response_P))


def permuted_p(
    weight_P: Floats, pairs_P2: Ints, utterances: int, statistic: Statistic, *, seed: int, permutations: int
) -> list[float | None]:
    """Return the two-sided p of each figure, if the weights are unrelated to the utterances of their pairs.

    Each draw renames the utterances in the pairs, so pairs that share an utterance still do (quadratic assignment
    procedure). The statistic leaves out the pairs that a draw leaves undefined. None for an undefined figure.
    """
    rng = np.random.default_rng(seed)
    observed_K = np.abs(statistic(weight_P, pairs_P2))
    reached_K, drawn_K = np.zeros(len(observed_K)), np.zeros(len(observed_K))
    for _ in range(permutations):
        name_N = rng.permutation(utterances)
        figure_K = np.abs(statistic(weight_P, name_N[pairs_P2]))
        drawn_K += np.isfinite(figure_K)
        # Figures that differ by rounding alone count as equal.
        reached_K += figure_K >= observed_K * (1 - 1e-12)
    # The data count as one of the draws.
    p_K: Any = (1 + reached_K) / (1 + drawn_K)
    return [float(p) if np.isfinite(figure) else None for p, figure in zip(p_K, observed_K, strict=True)]
