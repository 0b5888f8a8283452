"""Training pairs with the weight that a model's loss gives them, and the conflicts of its modalities.

N utterances that have every modality which the model sees; P pairs of different labels, the higher one first.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from grcf_ray.config import Task
from grcf_ray.data.features import LABEL_DECIMALS
from grcf_ray.data.frames import Frames
from grcf_ray.experiments.pair_statistics import Ints
from grcf_ray.losses.classification import separation_weight
from grcf_ray.losses.regression import advantage_weight
from grcf_ray.statistics import Floats

if TYPE_CHECKING:
    import pyarrow as pa

    from grcf_ray.train.export import SavedModel

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
        gap_P = torch.from_numpy(gaps(self.score_N, self.pairs_P2))
        weigh = separation_weight if self.task == "classification" else advantage_weight
        weight_P: Floats = weigh(gap_P).numpy()
        return weight_P

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
    """Return scores [N] of each modality alone, the others masked; {} if the model sees the text alone.

    Audio and vision are masked as missing, the text by zeros in place of its vector.
    """
    import pyarrow as pa

    names = ["text", *saved.model.modality_dims]
    if len(names) == 1:
        return {}
    scores = {}
    for kept in names:
        alone = table
        for name in saved.model.modality_dims:
            if name != kept:
                place = table.column_names.index(name)
                alone = alone.set_column(place, name, pa.nulls(len(table), table[name].type))
        if kept == "text":
            scores[kept] = saved.score(alone)
            continue
        assert saved.model.text_encoder is not None
        hook = saved.model.text_encoder.register_forward_hook(lambda _, __, vector_BD: torch.zeros_like(vector_BD))
        try:
            scores[kept] = saved.score(alone)
        finally:
            hook.remove()
    return scores


def complete_rows(saved: SavedModel, table: pa.Table) -> pa.Table:
    """Return the utterances that have every modality which the model sees."""
    import pyarrow as pa

    has_N = np.ones(len(table), bool)
    for name in saved.model.modality_dims:
        has_N &= Frames.of(table[name]).lengths_N > 0
    return table.filter(pa.array(has_N))
