"""The losses of a group of pairs, for each task and stage."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from grcf_ray.config import RankingConfig, RunConfig, Task
from grcf_ray.data.pairs import Group
from grcf_ray.losses import classification, regression
from grcf_ray.losses.groups import OrdinalGroups


class Losses(Protocol):
    """The loss terms of a stage."""

    def __call__(self, group: Group, score_S: Tensor, label_S: Tensor) -> dict[str, Tensor]:
        """Return the loss terms of one group of pairs, including `loss/total`, and values to log.

        score_S, label_S: [S] of the group's slots; labels as offsets from the centre of their range.
        """


def ordinal_groups(ranking: RankingConfig, half_range: float) -> OrdinalGroups:
    """Return the ordinal groups of a setting. half_range: S, half the label range."""
    return OrdinalGroups.named(ranking.groups, half_range if ranking.group_edges == "scaled" else 3.0)


class RegressionLosses:
    """Eq. 12 in Stage 1, eq. 13 in Stage 2."""

    def __init__(self, config: RunConfig, stage: Literal[1, 2], half_range: float) -> None:
        self._config, self._stage, self._limit = config, stage, half_range
        self.groups = ordinal_groups(config.ranking, half_range)

    def __call__(self, group: Group, score_S: Tensor, label_S: Tensor) -> dict[str, Tensor]:
        """Return the terms of eq. 12 or 13 for one group of pairs."""
        ranking = self._config.ranking
        terms = regression.ranking_terms(
            score_S,
            label_S,
            torch.from_numpy(group.pairs_P2).to(score_S.device),
            self.groups,
            intra_margin=ranking.intra_margin,
            base_margin=ranking.base_margin,
            margin_step=ranking.margin_step,
            advantage_weighting=ranking.advantage_weighting,
            dynamic_margin=ranking.dynamic_margin,
        )
        losses = {"loss/group": terms.loss(), "loss/bound": regression.boundary_loss(score_S, self._limit)}
        if self._stage == 1:
            stage = self._config.stage1
            losses["loss/reg"] = regression.distribution_loss(score_S, label_S, stage.reg_margin)
            total = stage.reg_weight * losses["loss/reg"]
        else:
            stage = self._config.stage2  # type: ignore[assignment]
            losses["loss/mae"] = regression.mae_loss(score_S, label_S)
            total = self._config.stage2.mae_weight * losses["loss/mae"]
        total = total + stage.group_weight * losses["loss/group"] + stage.boundary_weight * losses["loss/bound"]
        return losses | {
            "loss/total": total,
            "active_pairs": terms.active_share(),
            "pair_weight": terms.mean_weight(),
        }


class ClassificationLosses:
    """Eq. 17 in Stage 1, eq. 26 in Stage 2."""

    def __init__(self, config: RunConfig, stage: Literal[1, 2]) -> None:
        self._config, self._stage = config, stage

    def __call__(self, group: Group, score_S: Tensor, label_S: Tensor) -> dict[str, Tensor]:
        """Return the terms of eq. 17 or 26 for one group of pairs; the scores are logits."""
        if self._stage == 2:
            bce = classification.bce_loss(score_S, label_S)
            return {"loss/bce": bce, "loss/total": bce}
        classes, stage = self._config.classes, self._config.stage1
        weighting = self._config.ranking.advantage_weighting
        pairs_P2 = torch.from_numpy(group.pairs_P2).to(score_S.device)
        terms = classification.separation_terms(
            score_S, label_S, pairs_P2, classes.separation_margin, advantage_weighting=weighting
        )
        losses = {
            "loss/sep": terms.loss(),
            "loss/comp": classification.compactness_loss(
                score_S, label_S, pairs_P2, classes.advantage_clip, advantage_weighting=weighting
            ),
            "loss/bound": classification.boundary_loss(score_S, label_S, classes.boundary_margin),
            "loss/cal": classification.centering_loss(score_S),
        }
        total = (
            stage.separation_weight * losses["loss/sep"]
            + stage.compactness_weight * losses["loss/comp"]
            + stage.boundary_weight * losses["loss/bound"]
            + stage.centering_weight * losses["loss/cal"]
        )
        return losses | {
            "loss/total": total,
            "active_pairs": terms.active_share(),
            "pair_weight": terms.mean_weight(),
        }


def choose_losses(task: Task, config: RunConfig, stage: Literal[1, 2], half_range: float) -> Losses:
    """Return the losses of a task in a stage. half_range: S, half the label range."""
    if task == "classification":
        return ClassificationLosses(config, stage)
    return RegressionLosses(config, stage, half_range)
