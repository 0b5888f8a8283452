"""Training pairs with the weight that a model's loss gives them, the conflicts of its modalities, and their statistics.

N utterances that have every modality which the model sees; P pairs of different labels, the higher one first. Pairs
that share an utterance are not independent, so the p of a plain regression is too small. The permutation test shuffles
the utterances: labels and unimodal scores move together, the weights stay.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grcf_ray.config import Task
from grcf_ray.data.frames import Frames
from grcf_ray.data.schema import LABEL_DECIMALS
from grcf_ray.experiments.masking import Rescorer
from grcf_ray.report.figures.predictions import pair_weights
from grcf_ray.statistics import Floats

if TYPE_CHECKING:
    import pyarrow as pa

    from grcf_ray.train.export import SavedModel

Ints = NDArray[np.int64]
Statistic = Callable[[Floats, Ints], Floats]
"""A function of weights [P] and pairs [P, 2] that returns K figures; nan for an undefined one."""

SEED = 0
"""Of all random draws of pairs and permutations."""
TOP, ALL = "top 5 %", "all"
"""The subsets of pairs that the tables compare."""
_TOP_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class WeightedPairs:
    """Pairs with the scores of one model."""

    label_N: Floats
    score_N: Floats
    """Of the whole model."""
    alone: Mapping[str, Floats]
    """Scores [N] by modality; empty if the model sees the text alone, whose conflicts are the model's own errors."""
    pairs_P2: Ints
    task: Task

    @cached_property
    def weight_P(self) -> Floats:
        """Return the loss's own weight over all these pairs together: eq. 9, or eq. 19 for two classes."""
        return pair_weights(gaps(self.score_N, self.pairs_P2), self.task)

    @cached_property
    def conflict(self) -> Mapping[str, NDArray[np.bool_]]:
        """Return [P] by modality: whether it orders the pair against its labels."""
        return {name: gaps(score_N, self.pairs_P2) < 0 for name, score_N in self.alone.items()}

    @cached_property
    def count_P(self) -> Ints:
        """Return the number of modalities in conflict."""
        none_P = np.zeros(len(self.pairs_P2), np.int64)
        count_P: Ints = np.sum([none_P, *self.conflict.values()], axis=0)
        return count_P

    @cached_property
    def subsets(self) -> Mapping[str, Ints]:
        """Return the indices of the pairs by subset; the top is the heaviest twentieth, heaviest first."""
        count = len(self.pairs_P2)
        heaviest = np.argsort(-self.weight_P, kind="stable")
        return {TOP: heaviest[: max(1, round(_TOP_SHARE * count))], ALL: np.arange(count)}

    def weights(self, subset: str, count: int | None = None) -> Floats:
        """Return the weights of a subset's pairs [with this many modalities in conflict]."""
        index = self.subsets[subset]
        weight_P: Floats = self.weight_P[index]
        return weight_P if count is None else weight_P[self.count_P[index] == count]

    def disagree(self, first: str, second: str) -> NDArray[np.bool_]:
        """Return [P] whether two modalities order the pair differently."""
        product_P: Floats = gaps(self.alone[first], self.pairs_P2) * gaps(self.alone[second], self.pairs_P2)
        return product_P < 0

    def predictors(self, pairs_P2: Ints, closeness: str) -> tuple[dict[str, Floats], NDArray[np.bool_]]:
        """Return the predictors `proximity` of the labels and `conflict` count, and [P] which pairs have an order.

        The pairs may be in either order. Pairs of equal labels have no order, and no predictors. A constant predictor
        is left out.
        """
        distance_P = gaps(self.label_N, pairs_P2)
        ordered_P = distance_P != 0
        pairs_P2, distance_P = pairs_P2[ordered_P], distance_P[ordered_P]
        far_P = np.round(np.abs(distance_P), LABEL_DECIMALS)
        predictors = {"proximity": -far_P if closeness == "minus distance" else 1 / far_P}
        if self.alone:
            against = [gaps(score_N, pairs_P2) * distance_P < 0 for score_N in self.alone.values()]
            predictors["conflict"] = np.sum(against, axis=0).astype(np.float64)
        return {name: values for name, values in predictors.items() if len(values) and np.ptp(values)}, ordered_P

    @property
    def conflict_sets(self) -> list[tuple[str, ...]]:
        """Return all sets of modalities, the smallest first; none without modalities."""
        sizes = range(len(self.alone) + 1) if self.alone else ()
        return [names for size in sizes for names in itertools.combinations(self.alone, size)]

    def conflict_share(self, subset: str, names: Sequence[str]) -> float:
        """Return the share of a subset's pairs in which exactly these modalities are in conflict."""
        index = self.subsets[subset]
        exactly = [conflict_P[index] == (name in names) for name, conflict_P in self.conflict.items()]
        return float(np.all(exactly, axis=0).mean())


def gaps(value_N: Floats, pairs_P2: Ints) -> Floats:
    """Return [P] the value of the first of each pair less that of the second."""
    gap_P: Floats = value_N[pairs_P2[:, 0]] - value_N[pairs_P2[:, 1]]
    return gap_P


def set_title(names: Sequence[str]) -> str:
    """Return the title of a set of modalities in conflict."""
    return " and ".join(names) or "no conflict"


def unimodal_scores(saved: SavedModel, table: pa.Table) -> dict[str, Floats]:
    """Return scores [N] by each modality alone, the others masked; {} if the model sees the text alone."""
    if not saved.model.modality_dims:
        return {}
    rescorer = Rescorer(saved, table)
    return {name: rescorer.score_by([name]) for name in ("text", *saved.model.modality_dims)}


def complete_rows(saved: SavedModel, table: pa.Table) -> pa.Table:
    """Return the utterances that have every modality which the model sees."""
    import pyarrow as pa

    has_N = np.ones(len(table), bool)
    for name in saved.model.modality_dims:
        has_N &= Frames.of(table[name]).lengths_N > 0
    return table.filter(pa.array(has_N))


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
