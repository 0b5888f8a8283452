from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypedDict

import pytest
import torch
from torch import Tensor

from grcf_ray.losses.groups import OrdinalGroups
from grcf_ray.losses.regression import (
    boundary_loss,
    distribution_loss,
    group_ranking_loss,
    mae_loss,
    ranking_terms,
)


class Margins(TypedDict):
    intra_margin: float
    base_margin: float
    margin_step: float


MARGINS: Margins = {"intra_margin": 0.2, "base_margin": 0.5, "margin_step": 0.1}
EPS = 1e-8
GROUPS = OrdinalGroups.named("overlap,5")
NO_PAIRS = torch.empty(0, 2, dtype=torch.int64)
LOSSES: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda score_B, label_B: group_ranking_loss(score_B, label_B, every_pair(len(score_B)), GROUPS, **MARGINS),
    lambda score_B, label_B: distribution_loss(score_B, label_B, 0.01),
    lambda score_B, label_B: boundary_loss(score_B, 1.0),
    mae_loss,
]


def every_pair(slots: int) -> Tensor:
    return torch.combinations(torch.arange(slots)).reshape(-1, 2)


def batch(seed: int, slots: int = 12, pairs: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels on MOSI's steps of 0.2 (so that labels tie) and pairs drawn with repeats."""
    generator = torch.Generator().manual_seed(seed)
    score_B = torch.randn(slots, generator=generator, dtype=torch.float64) * 1.5
    label_B = torch.randint(-15, 16, (slots,), generator=generator).double() / 5
    label_B[1] = label_B[0]
    return score_B, label_B, torch.randint(0, slots, (pairs, 2), generator=generator)


def gradient(loss: Callable[[Tensor], Tensor], score_B: Tensor) -> Tensor:
    score_B = score_B.clone().requires_grad_()
    (grad_B,) = torch.autograd.grad(loss(score_B), score_B)
    return grad_B


def assert_same(actual: Callable[[Tensor], Tensor], loop: Callable[[Tensor], Tensor], score_B: Tensor) -> None:
    """Value and gradient agree."""
    torch.testing.assert_close(actual(score_B), loop(score_B), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(actual, score_B), gradient(loop, score_B), rtol=1e-12, atol=1e-12)


def ranking_loop(
    score_B: Tensor, label_B: Tensor, pairs_P2: Tensor, *, advantage_weighting: bool, dynamic_margin: bool
) -> Tensor:
    """Eqs. 6-9, pair by pair."""
    gaps, margins = [], []
    for i, j in pairs_P2.tolist():
        if label_B[i] == label_B[j]:
            continue
        if label_B[i] < label_B[j]:
            i, j = j, i
        gaps.append(score_B[i] - score_B[j])
        held = [
            {k for k, (low, high) in enumerate(GROUPS.intervals) if low <= label_B[index].item() <= high}
            for index in (i, j)
        ]
        apart = 0 if held[0] & held[1] else max(abs(a - b) for a in held[0] for b in held[1])
        margin = MARGINS["base_margin"] + apart * MARGINS["margin_step"]
        if not dynamic_margin:
            margin = MARGINS["base_margin"]
        elif apart == 0:
            margin = MARGINS["intra_margin"]
        margins.append(margin)
    if not gaps:
        return score_B.sum() * 0

    rewards = [1 / (1 + math.exp(-gap.item())) for gap in gaps]
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    total = score_B.sum() * 0
    for gap, margin, reward in zip(gaps, margins, rewards, strict=True):
        advantage = (reward - mean) / (deviation + EPS)
        weight = max(0.0, -advantage) if advantage_weighting else 1.0
        if margin - gap.item() > 0:
            total = total + weight * (margin - gap)
    return total / len(gaps)


def distribution_loop(score_B: Tensor, label_B: Tensor, margin: float) -> Tensor:
    """Eq. 10, slot by slot."""
    slots = len(score_B)
    mean_p, mean_r = sum(score_B) / slots, sum(label_B) / slots
    deviation_p = (sum((score - mean_p) ** 2 for score in score_B) / slots) ** 0.5
    deviation_r = (sum((label - mean_r) ** 2 for label in label_B) / slots) ** 0.5
    total = score_B.sum() * 0
    for gap in (mean_p - mean_r, deviation_p - deviation_r):
        if gap**2 > margin:
            total = total + gap**2 - margin
    return total


@pytest.mark.parametrize("advantage_weighting", [True, False])
@pytest.mark.parametrize("dynamic_margin", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_group_ranking_matches_a_loop(seed: int, advantage_weighting: bool, dynamic_margin: bool) -> None:
    score_B, label_B, pairs_P2 = batch(seed)
    switches = {"advantage_weighting": advantage_weighting, "dynamic_margin": dynamic_margin}
    assert_same(
        lambda score: group_ranking_loss(score, label_B, pairs_P2, GROUPS, **MARGINS, **switches),
        lambda score: ranking_loop(score, label_B, pairs_P2, **switches),
        score_B,
    )


@pytest.mark.parametrize("margin", [0.0, 0.01, 0.5, 10.0])
@pytest.mark.parametrize("seed", range(4))
def test_distribution_matches_a_loop(seed: int, margin: float) -> None:
    score_B, label_B, _ = batch(seed)
    assert_same(
        lambda score: distribution_loss(score, label_B, margin),
        lambda score: distribution_loop(score, label_B, margin),
        score_B,
    )


@pytest.mark.parametrize("limit", [0.5, 3.0, 100.0])
def test_boundary_and_mae_match_a_loop(limit: float) -> None:
    def boundary(score_B: Tensor) -> Tensor:
        total = score_B.sum() * 0
        for score in score_B:
            if abs(score.item()) > limit:
                total = total + abs(score) - limit
        return total / len(score_B)

    def mae(score_B: Tensor) -> Tensor:
        return sum((abs(p - y) for p, y in zip(score_B, label_B, strict=True)), score_B.sum() * 0) / len(score_B)

    score_B, label_B, _ = batch(0)
    assert_same(lambda score: boundary_loss(score, limit), boundary, score_B)
    assert_same(lambda score: mae_loss(score, label_B), mae, score_B)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pairs_P2", [NO_PAIRS, every_pair(6)])
@pytest.mark.parametrize("advantage_weighting", [True, False])
def test_ranking_is_zero_and_keeps_the_graph_where_no_pair_is_left(
    pairs_P2: Tensor, advantage_weighting: bool, dtype: torch.dtype
) -> None:
    """Either there are no pairs, or all labels are equal."""
    score_B = torch.linspace(-1, 1, 6, dtype=dtype).requires_grad_()
    label_B = torch.ones(6, dtype=dtype)
    terms = ranking_terms(score_B, label_B, pairs_P2, GROUPS, **MARGINS, advantage_weighting=advantage_weighting)
    assert [value.item() for value in (terms.loss(), *terms.figures().values())] == [0, 0, 0]
    (grad_B,) = torch.autograd.grad(terms.loss(), score_B)
    assert torch.equal(grad_B, torch.zeros_like(score_B))


@pytest.mark.parametrize("loss", LOSSES)
def test_no_slots_give_zero_and_keep_the_graph(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    score_B = torch.empty(0, dtype=torch.float64)
    assert loss(score_B, score_B).item() == 0
    assert gradient(lambda score: loss(score, torch.empty(0)), score_B).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -2.7])
@pytest.mark.parametrize("loss", LOSSES)
def test_equal_scores_have_a_finite_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], value: float, dtype: torch.dtype
) -> None:
    label_B = torch.linspace(-3, 3, 7, dtype=dtype)
    grad_B = gradient(lambda score: loss(score, label_B), torch.full((7,), value, dtype=dtype))
    assert grad_B.isfinite().all()
    grad_B = gradient(lambda score: loss(score, torch.zeros_like(score)), torch.full((7,), value, dtype=dtype))
    assert grad_B.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pairs", [1, 2, 21, 96])
def test_pairs_that_are_equally_hard_have_no_advantage(pairs: int, dtype: torch.dtype) -> None:
    """The rounding of their mean reward must not be standardised into a weight."""
    pairs_P2 = torch.arange(2 * pairs).reshape(pairs, 2)
    label_B = torch.tensor([2.0, -1.0] * pairs, dtype=dtype)
    for gap in torch.linspace(-2, 2, 41).tolist():
        score_B = torch.tensor([gap, 0.0] * pairs, dtype=dtype)
        terms = ranking_terms(score_B, label_B, pairs_P2, GROUPS, **MARGINS)
        assert terms.weight_P.max() < 1e-6


def test_margins_of_the_papers_examples() -> None:
    """-1.6 over -1.8 shares groups: the intra margin. 2.5 over 0.2 is two groups apart: base + 2 steps."""
    label_B = torch.tensor([-1.8, -1.6, 0.2, 2.5], dtype=torch.float64)
    score_B, pairs_P2 = torch.zeros(4, dtype=torch.float64), torch.tensor([[0, 1], [2, 3]])
    terms = ranking_terms(score_B, label_B, pairs_P2, GROUPS, **MARGINS, advantage_weighting=False)
    torch.testing.assert_close(terms.hinge_P, torch.tensor([0.2, 0.7], dtype=torch.float64))
    torch.testing.assert_close(terms.loss(), torch.tensor(0.45, dtype=torch.float64))


def test_only_the_harder_pairs_count() -> None:
    """Two pairs have advantages of +1 and -1; the misordered one gets weight 1, the easy one 0."""
    score_B = torch.tensor([2.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    label_B = torch.tensor([2.5, 0.2, 0.2, -2.5], dtype=torch.float64)
    terms = ranking_terms(score_B, label_B, torch.tensor([[0, 1], [3, 2]]), GROUPS, **MARGINS)
    torch.testing.assert_close(terms.weight_P, torch.tensor([0.0, 1.0], dtype=torch.float64))
    # Misordered by 1 with the groups 0 and {2, 3}, three apart: 0.5 + 3 * 0.1 + 1.
    torch.testing.assert_close(terms.hinge_P, torch.tensor([0.0, 1.8], dtype=torch.float64))
    torch.testing.assert_close(terms.loss(), torch.tensor(0.9, dtype=torch.float64))
    assert [value.item() for value in terms.figures().values()] == [0.5, pytest.approx(0.5)]


def test_worked_distribution_boundary_and_mae() -> None:
    # M: 1 against 0; D: 1 against 2.
    score_B, label_B = torch.tensor([0.0, 2.0]), torch.tensor([-2.0, 2.0])
    assert distribution_loss(score_B, label_B, 0.25).item() == 1.5
    assert distribution_loss(score_B, label_B, 1.0).item() == 0
    score_B = torch.tensor([-3.5, 3.0, 0.0, 3.25])
    assert boundary_loss(score_B, 3.0).item() == 0.1875
    assert mae_loss(score_B, torch.tensor([-3.0, 3.0, 1.0, 3.25])).item() == 0.375


@pytest.mark.parametrize("loss", LOSSES)
def test_dtype_is_the_scores_and_float32_agrees(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    score_B, label_B, _ = batch(8)
    exact, single = loss(score_B, label_B), loss(score_B.float(), label_B.float())
    assert (exact.dtype, single.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(single, exact.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [LOSSES[0], LOSSES[1], mae_loss])
def test_shapes_that_would_broadcast_are_refused(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"\[4, 1\] and \[4\]"):
        loss(torch.zeros(4, 1), torch.zeros(4))


def test_inputs_are_left_alone() -> None:
    score_B, label_B, pairs_P2 = batch(9)
    before = [value.clone() for value in (score_B, label_B, pairs_P2)]
    group_ranking_loss(score_B, label_B, pairs_P2, GROUPS, **MARGINS)
    for loss in LOSSES:
        loss(score_B, label_B)
    assert all(torch.equal(a, b) for a, b in zip(before, (score_B, label_B, pairs_P2), strict=True))
