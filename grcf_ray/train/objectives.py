"""The losses of a group of pairs, for each task and stage."""

from __future__ import annotations

from functools import partial
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


def choose_losses(task: Task, config: RunConfig, stage: Literal[1, 2], half_range: float) -> Losses:
    """Return the losses of a task in a stage. half_range: S, half the label range."""
    if task == "classification":
        return partial(_classification_losses, config, stage)
    return partial(_regression_losses, config, stage, half_range, ordinal_groups(config.ranking, half_range))


def ordinal_groups(ranking: RankingConfig, half_range: float) -> OrdinalGroups:
    """Return the ordinal groups of a setting. half_range: S, half the label range."""
    return OrdinalGroups.named(ranking.groups, half_range if ranking.group_edges == "scaled" else 3.0)


def _regression_losses(
    config: RunConfig,
    stage: Literal[1, 2],
    limit: float,
    groups: OrdinalGroups,
    group: Group,
    score_S: Tensor,
    label_S: Tensor,
) -> dict[str, Tensor]:
    """Return the terms of eq. 12 in Stage 1, of eq. 13 in Stage 2."""
    ranking = config.ranking
    terms = regression.ranking_terms(
        score_S,
        label_S,
        torch.from_numpy(group.pairs_P2).to(score_S.device),
        groups,
        intra_margin=ranking.intra_margin,
        base_margin=ranking.base_margin,
        margin_step=ranking.margin_step,
        advantage_weighting=ranking.advantage_weighting,
        dynamic_margin=ranking.dynamic_margin,
    )
    losses = {"loss/group": terms.loss(), "loss/bound": regression.boundary_loss(score_S, limit)}
    if stage == 1:
        losses["loss/reg"] = regression.distribution_loss(score_S, label_S, config.stage1.reg_margin)
        total = config.stage1.reg_weight * losses["loss/reg"]
    else:
        losses["loss/mae"] = regression.mae_loss(score_S, label_S)
        total = config.stage2.mae_weight * losses["loss/mae"]
    weights = config.stage1 if stage == 1 else config.stage2
    total = total + weights.group_weight * losses["loss/group"] + weights.boundary_weight * losses["loss/bound"]
    return losses | {"loss/total": total} | terms.figures()


def _classification_losses(
    config: RunConfig, stage: Literal[1, 2], group: Group, score_S: Tensor, label_S: Tensor
) -> dict[str, Tensor]:
    """Return the terms of eq. 17 in Stage 1, of eq. 26 in Stage 2; the scores are logits."""
    if stage == 2:
        bce = classification.bce_loss(score_S, label_S)
        return {"loss/bce": bce, "loss/total": bce}
    classes, weights, weighting = config.classes, config.stage1, config.ranking.advantage_weighting
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
        weights.separation_weight * losses["loss/sep"]
        + weights.compactness_weight * losses["loss/comp"]
        + weights.boundary_weight * losses["loss/bound"]
        + weights.centering_weight * losses["loss/cal"]
    )
    return losses | {"loss/total": total} | terms.figures()
