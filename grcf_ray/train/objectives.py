"""The losses of all groups of pairs of a step, for each task and stage.

G groups; S scored slots of a step, [G, S] the slots by group, padded; P pairs of a step, [G, P] by group, padded.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grcf_ray.config import RankingConfig, RunConfig, Task
from grcf_ray.data.pairs import Group
from grcf_ray.losses import classification, regression
from grcf_ray.losses.groups import OrdinalGroups

Arrays = dict[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The places of values that are divided by group, in a row for each group."""

    real_GX: NDArray[np.bool_]
    """Whether the place has a value; a row is as long as the largest group."""

    @classmethod
    def of_groups(cls, group_X: NDArray[np.int64], n_groups: int) -> _Rows:
        """Return the places of values whose groups rise."""
        count_G = np.bincount(group_X, minlength=n_groups)
        return cls(np.arange(count_G.max()) < count_G[:, None])

    def __call__(self, value_X: NDArray[Any]) -> NDArray[Any]:
        """Return the values by group, with zeros as padding."""
        value_GX = np.zeros(self.real_GX.shape, value_X.dtype)
        value_GX[self.real_GX] = value_X
        return value_GX

    def share(self, chosen_GX: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Return 1/n for the n values of a group, or for the chosen ones, and 0 elsewhere."""
        chosen_GX = self.real_GX if chosen_GX is None else chosen_GX & self.real_GX
        share_GX: NDArray[np.float64] = chosen_GX / np.maximum(chosen_GX.sum(1, keepdims=True), 1)
        return share_GX


@dataclasses.dataclass(frozen=True)
class _Slots:
    """The scored slots of a step, and the pairs of them."""

    label_S: NDArray[np.float64]
    utterance_S: NDArray[np.int64]
    rows: _Rows
    """The slots by group."""
    pairs_P2: NDArray[np.int64]
    """Indices into S, in the order of the groups."""
    group_P: NDArray[np.int64]
    n_groups: int


class Objective(ABC):
    """The losses of a stage. Each group of a step has its own, and one call computes those of all groups.

    The labels alone decide about pairs, orders, margins and counts. `constants` derives them on the host, so that
    `terms` reads nothing back from a GPU. Losses are computed in float64, which costs nothing at this size.

    label_N: the labels of the training split, as offsets from the centre of their range.
    """

    def __init__(self, config: RunConfig, stage: Literal[1, 2], label_N: NDArray[np.float64]) -> None:
        self.config, self.stage, self.label_N = config, stage, label_N

    def constants(self, utterance_U: NDArray[np.int64], groups: Sequence[Group]) -> Arrays:
        """Return what the labels decide about a step, by name.

        utterance_U: the step's distinct utterances, to which the groups' slots refer.
        """
        utterance_S = utterance_U[np.concatenate([group.slot_S for group in groups])]
        slots_G = [len(group.slot_S) for group in groups]
        first_G = np.cumsum([0, *slots_G[:-1]])
        pairs_P2 = np.concatenate([group.pairs_P2 + first for group, first in zip(groups, first_G, strict=True)])
        group_P = np.repeat(np.arange(len(groups)), [len(group.pairs_P2) for group in groups])
        rows = _Rows.of_groups(np.repeat(np.arange(len(groups)), slots_G), len(groups))
        return {
            "weight_G": np.array([group.weight for group in groups]),
            "slot_GS": rows(np.arange(len(utterance_S))),
            "share_GS": rows.share(),
            **self._constants(_Slots(self.label_N[utterance_S], utterance_S, rows, pairs_P2, group_P, len(groups))),
        }

    def terms(self, score_S: Tensor, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss terms of each group, including `loss/total`, and values to log: [G] each.

        score_S: the scores of all groups' slots. known: `constants`, on the device of the scores.
        """
        score_S = score_S.double()
        return self._terms(score_S, score_S[known["slot_GS"]], known)

    @abstractmethod
    def _constants(self, slots: _Slots) -> Arrays:
        """Return the constants of a task."""

    @abstractmethod
    def _terms(self, score_S: Tensor, score_GS: Tensor, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms of a task. score_S, score_GS: the same scores, flat and by group; float64."""


def choose_objective(
    task: Task, config: RunConfig, stage: Literal[1, 2], half_range: float, label_N: NDArray[np.float64]
) -> Objective:
    """Return the losses of a task in a stage. half_range: S, half the label range. label_N: as in `Objective`."""
    if task == "classification":
        return _Classification(config, stage, label_N)
    return _Regression(config, stage, label_N, half_range)


def ordinal_groups(ranking: RankingConfig, half_range: float) -> OrdinalGroups:
    """Return the ordinal groups of a setting. half_range: S, half the label range."""
    return OrdinalGroups.named(ranking.groups, half_range if ranking.group_edges == "scaled" else 3.0)


class _Regression(Objective):
    """The terms of eq. 12 in Stage 1, of eq. 13 in Stage 2."""

    def __init__(
        self, config: RunConfig, stage: Literal[1, 2], label_N: NDArray[np.float64], half_range: float
    ) -> None:
        super().__init__(config, stage, label_N)
        self.limit = half_range

    @cached_property
    def member_NK(self) -> Tensor:
        """Which ordinal groups contain each training label."""
        return ordinal_groups(self.config.ranking, self.limit).membership(torch.from_numpy(self.label_N.copy()))

    def _constants(self, slots: _Slots) -> Arrays:
        label_S, pairs_P2, ranking = slots.label_S, slots.pairs_P2, self.config.ranking
        differ_P = label_S[pairs_P2[:, 0]] != label_S[pairs_P2[:, 1]]
        i_P, j_P = pairs_P2[differ_P].T
        swapped_P = label_S[i_P] < label_S[j_P]
        high_P, low_P = np.where(swapped_P, j_P, i_P), np.where(swapped_P, i_P, j_P)
        pairs = _Rows.of_groups(slots.group_P[differ_P], slots.n_groups)
        known = {"high_GP": pairs(high_P), "low_GP": pairs(low_P), "share_GP": pairs.share()}
        if ranking.dynamic_margin:
            members = (self.member_NK[torch.from_numpy(slots.utterance_S[place_P])] for place_P in (high_P, low_P))
            distance_P = OrdinalGroups.membership_distance(*members)
            margin_P = regression.margins(distance_P, ranking.intra_margin, ranking.base_margin, ranking.margin_step)
            known["margin_GP"] = pairs(margin_P.numpy())
        label_GS = slots.rows(label_S)
        if self.stage == 1:
            mean_G, deviation_G = regression.moments(torch.from_numpy(label_GS), torch.from_numpy(slots.rows.share()))
            return known | {"label_mean_G": mean_G.numpy(), "label_deviation_G": deviation_G.numpy()}
        return known | {"label_GS": label_GS}

    def _terms(self, score_S: Tensor, score_GS: Tensor, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ranking, share_GS = self.config.ranking, known["share_GS"]
        ranked = regression.ordered_terms(
            score_S,
            known["high_GP"],
            known["low_GP"],
            known.get("margin_GP", ranking.base_margin),
            known["share_GP"],
            advantage_weighting=ranking.advantage_weighting,
        )
        losses = {"loss/group": ranked.loss(), "loss/bound": regression.boundary_loss(score_GS, self.limit, share_GS)}
        if self.stage == 1:
            labels = known["label_mean_G"], known["label_deviation_G"]
            losses["loss/reg"] = regression.moments_loss(score_GS, *labels, self.config.stage1.reg_margin, share_GS)
            total = self.config.stage1.reg_weight * losses["loss/reg"]
        else:
            losses["loss/mae"] = regression.mae_loss(score_GS, known["label_GS"], share_GS)
            total = self.config.stage2.mae_weight * losses["loss/mae"]
        weights = self.config.stage1 if self.stage == 1 else self.config.stage2
        total = total + weights.group_weight * losses["loss/group"] + weights.boundary_weight * losses["loss/bound"]
        return losses | {"loss/total": total} | ranked.figures()


class _Classification(Objective):
    """The terms of eq. 17 in Stage 1, of eq. 26 in Stage 2; the scores are logits."""

    def _constants(self, slots: _Slots) -> Arrays:
        label_S = slots.label_S
        if self.stage == 2:
            return {"label_GS": slots.rows(label_S)}
        positive_S, positive_GS = label_S > 0, slots.rows(label_S) > 0
        i_P, j_P = slots.pairs_P2.T
        mixed_P = positive_S[i_P] != positive_S[j_P]
        mixed, alike = (_Rows.of_groups(slots.group_P[chosen_P], slots.n_groups) for chosen_P in (mixed_P, ~mixed_P))
        first_P = positive_S[i_P]
        return {
            "positive_GP": mixed(np.where(first_P, i_P, j_P)[mixed_P]),
            "negative_GP": mixed(np.where(first_P, j_P, i_P)[mixed_P]),
            "mixed_share_GP": mixed.share(),
            "i_GP": alike(i_P[~mixed_P]),
            "j_GP": alike(j_P[~mixed_P]),
            "alike_share_GP": alike.share(),
            "positive_share_GS": slots.rows.share(positive_GS),
            "negative_share_GS": slots.rows.share(~positive_GS),
        }

    def _terms(self, score_S: Tensor, score_GS: Tensor, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.stage == 2:
            bce = classification.bce_loss(score_GS, known["label_GS"], known["share_GS"])
            return {"loss/bce": bce, "loss/total": bce}
        classes, weights = self.config.classes, self.config.stage1
        weighting = self.config.ranking.advantage_weighting
        mixed = classification.ordered_terms(
            score_S,
            known["positive_GP"],
            known["negative_GP"],
            classes.separation_margin,
            known["mixed_share_GP"],
            advantage_weighting=weighting,
        )
        losses = {
            "loss/sep": mixed.loss(),
            "loss/comp": classification.alike_loss(
                score_S,
                known["i_GP"],
                known["j_GP"],
                classes.advantage_clip,
                known["alike_share_GP"],
                advantage_weighting=weighting,
            ),
            "loss/bound": classification.sides_loss(
                score_GS, classes.boundary_margin, known["positive_share_GS"], known["negative_share_GS"]
            ),
            "loss/cal": classification.centering_loss(score_GS, known["share_GS"]),
        }
        total = (
            weights.separation_weight * losses["loss/sep"]
            + weights.compactness_weight * losses["loss/comp"]
            + weights.boundary_weight * losses["loss/bound"]
            + weights.centering_weight * losses["loss/cal"]
        )
        return losses | {"loss/total": total} | mixed.figures()
