"""The losses of all groups of a step at once, against the pure functions group by group, with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from grcf_ray.config import RunConfig
from grcf_ray.data.pairs import Group, draw_pairs, epoch_steps
from grcf_ray.losses import classification, regression
from grcf_ray.train.objectives import choose_objective, ordinal_groups

if TYPE_CHECKING:
    from tests.train.conftest import NewConfig

LIMIT = 3.0


def drawn_step(config: RunConfig, seed: int) -> tuple[np.ndarray[Any, Any], list[Group]]:
    """Three groups of 12, 12 and 4 pairs, and two without a pair to order: of one utterance, and of none."""
    pairs_M2 = draw_pairs(40, 28, np.random.default_rng(seed))
    step = next(iter(epoch_steps(pairs_M2, config.pairs)))
    alone = Group(np.array([3, 3]), np.array([[0, 1]]), 0.25)
    idle = Group(np.array([5]), np.zeros((0, 2), dtype=np.int64), 0.0)
    return step.utterance_U, [*step.groups, alone, idle]


def regression_terms(
    config: RunConfig, stage: int, group: Group, score_S: Tensor, label_S: Tensor
) -> dict[str, Tensor]:
    ranking = config.ranking
    terms = regression.ranking_terms(
        score_S,
        label_S,
        torch.from_numpy(group.pairs_P2),
        ordinal_groups(ranking, LIMIT),
        intra_margin=ranking.intra_margin,
        base_margin=ranking.base_margin,
        margin_step=ranking.margin_step,
        advantage_weighting=ranking.advantage_weighting,
        dynamic_margin=ranking.dynamic_margin,
    )
    losses = {"loss/group": terms.loss(), "loss/bound": regression.boundary_loss(score_S, LIMIT), **terms.figures()}
    if stage == 1:
        reg = regression.distribution_loss(score_S, label_S, config.stage1.reg_margin)
        total = config.stage1.reg_weight * reg + config.stage1.group_weight * losses["loss/group"]
        total = total + config.stage1.boundary_weight * losses["loss/bound"]
        return losses | {"loss/reg": reg, "loss/total": total}
    mae, weights = regression.mae_loss(score_S, label_S), config.stage2
    total = weights.mae_weight * mae + weights.group_weight * losses["loss/group"]
    return losses | {"loss/mae": mae, "loss/total": total + weights.boundary_weight * losses["loss/bound"]}


def class_terms(config: RunConfig, stage: int, group: Group, score_S: Tensor, label_S: Tensor) -> dict[str, Tensor]:
    if stage == 2:
        bce = classification.bce_loss(score_S, label_S)
        return {"loss/bce": bce, "loss/total": bce}
    pairs_P2, classes, weights = torch.from_numpy(group.pairs_P2), config.classes, config.stage1
    switch = {"advantage_weighting": config.ranking.advantage_weighting}
    mixed = classification.separation_terms(score_S, label_S, pairs_P2, classes.separation_margin, **switch)
    losses = {
        "loss/sep": mixed.loss(),
        "loss/comp": classification.compactness_loss(score_S, label_S, pairs_P2, classes.advantage_clip, **switch),
        "loss/bound": classification.boundary_loss(score_S, label_S, classes.boundary_margin),
        "loss/cal": classification.centering_loss(score_S),
    }
    total = weights.separation_weight * losses["loss/sep"] + weights.compactness_weight * losses["loss/comp"]
    total = total + weights.boundary_weight * losses["loss/bound"] + weights.centering_weight * losses["loss/cal"]
    return losses | {"loss/total": total, **mixed.figures()}


def gradient(total_G: Tensor, groups: Sequence[Group], score_S: Tensor) -> Tensor:
    weight_G = torch.tensor([group.weight for group in groups], dtype=torch.float64)
    (grad_S,) = torch.autograd.grad((weight_G * total_G).sum(), score_S)
    return grad_S


@pytest.mark.parametrize("advantage_weighting", [True, False])
@pytest.mark.parametrize("dynamic_margin", [True, False])
@pytest.mark.parametrize("pairing", ["sampled", "all"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("task", ["regression", "classification"])
def test_groups_at_once_are_groups_one_by_one(
    new_config: NewConfig,
    task: Literal["regression", "classification"],
    stage: Literal[1, 2],
    pairing: str,
    dynamic_margin: bool,
    advantage_weighting: bool,
) -> None:
    config = new_config(
        pairs__pairing=pairing,
        ranking__dynamic_margin=dynamic_margin,
        ranking__advantage_weighting=advantage_weighting,
        stage1__boundary_weight=0.3,
    )
    rng = np.random.default_rng(7)
    label_N = rng.integers(-15, 16, 40) / 5 if task == "regression" else rng.integers(0, 2, 40) - 0.5
    utterance_U, groups = drawn_step(config, 5)
    objective = choose_objective(task, config, stage, LIMIT, label_N)
    known = {name: torch.from_numpy(array) for name, array in objective.constants(utterance_U, groups).items()}
    sizes = [len(group.slot_S) for group in groups]
    score_S = torch.from_numpy(rng.normal(0, 2.5, sum(sizes))).requires_grad_()
    actual = objective.terms(score_S, known)

    one_by_one = regression_terms if task == "regression" else class_terms
    expected = []
    for group, part_S in zip(groups, torch.split(score_S, sizes), strict=True):
        label_S = torch.from_numpy(label_N[utterance_U[group.slot_S]])
        expected.append(one_by_one(config, stage, group, part_S, label_S))
    assert actual.keys() == expected[0].keys()
    for name, value_G in actual.items():
        each_G = torch.stack([terms[name] for terms in expected])
        torch.testing.assert_close(value_G, each_G, rtol=1e-12, atol=1e-14)
        assert each_G.count_nonzero(), f"{name} is to be tested"
    total_G = torch.stack([terms["loss/total"] for terms in expected])
    grad_S = gradient(actual["loss/total"], groups, score_S)
    torch.testing.assert_close(grad_S, gradient(total_G, groups, score_S), rtol=1e-12, atol=1e-14)
    assert grad_S.count_nonzero() > len(grad_S) / 4


def test_pairs_that_are_equally_hard_have_no_advantage_beside_larger_groups(new_config: NewConfig) -> None:
    """Padding must not enter the mean that hardness is measured against."""
    label_N = np.array([2.0, -1.0])
    pair, many = np.array([[0, 1]]), np.array([[0, 1], [2, 3], [4, 5]])
    groups = [Group(np.array([0, 1] * len(pairs)), pairs, 0.5) for pairs in (pair, many)]
    objective = choose_objective("regression", new_config(), 1, LIMIT, label_N)
    known = {name: torch.from_numpy(array) for name, array in objective.constants(np.arange(2), groups).items()}
    terms = objective.terms(torch.tensor([0.3, 0.0] * 4, dtype=torch.float32), known)
    assert terms["pair_weight"].max() < 1e-6
