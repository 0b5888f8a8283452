"""The classification losses against plain loops written from eqs. 18-26, in float64, with gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from grcf_ray.losses.classification import bce_loss, boundary_loss, centering_loss, compactness_loss, separation_loss

MARGIN, CLIP, EPS = 1.0, 2.0, 1e-8
NO_PAIRS = torch.empty(0, 2, dtype=torch.int64)


def batch(seed: int, slots: int = 12, pairs: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels of both classes as offsets from their centre, and pairs drawn with repeats."""
    generator = torch.Generator().manual_seed(seed)
    logit_B = torch.randn(slots, generator=generator, dtype=torch.float64) * 2
    label_B = torch.randint(0, 2, (slots,), generator=generator).double() - 0.5
    label_B[:2] = torch.tensor([-0.5, 0.5])
    return logit_B, label_B, torch.randint(0, slots, (pairs, 2), generator=generator)


def gradient(loss: Callable[[Tensor], Tensor], logit_B: Tensor) -> Tensor:
    logit_B = logit_B.clone().requires_grad_()
    (grad_B,) = torch.autograd.grad(loss(logit_B), logit_B)
    return grad_B


def assert_same(actual: Callable[[Tensor], Tensor], loop: Callable[[Tensor], Tensor], logit_B: Tensor) -> None:
    """Value and gradient agree."""
    torch.testing.assert_close(actual(logit_B), loop(logit_B), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(actual, logit_B), gradient(loop, logit_B), rtol=1e-12, atol=1e-12)


def separation_loop(logit_B: Tensor, label_B: Tensor, pairs_P2: Tensor, weighting: bool) -> Tensor:
    """Eqs. 18-20, pair by pair."""
    terms = []
    for i, j in pairs_P2.tolist():
        if label_B[i] == label_B[j]:
            continue
        pos, neg = (i, j) if label_B[i] > 0 else (j, i)
        rank = torch.clamp(MARGIN - (logit_B[pos] - logit_B[neg]), min=0)
        weight = 1 - 1 / (1 + math.exp(-(logit_B[pos] - logit_B[neg]).item())) if weighting else 1.0
        terms.append(weight * rank)
    return torch.stack(terms).mean()


def compactness_loop(logit_B: Tensor, label_B: Tensor, pairs_P2: Tensor, weighting: bool, clip: float) -> Tensor:
    """Eqs. 21-23, pair by pair."""
    distances = [(logit_B[i] - logit_B[j]) ** 2 for i, j in pairs_P2.tolist() if label_B[i] == label_B[j]]
    rewards = [math.exp(-distance.item()) for distance in distances]
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    terms = []
    for distance, reward in zip(distances, rewards, strict=True):
        advantage = max(-clip, min(clip, (reward - mean) / (deviation + EPS))) if weighting else -1.0
        terms.append(torch.clamp(distance * -advantage, min=0))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("weighting", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_separation_is_the_papers(seed: int, weighting: bool) -> None:
    logit_B, label_B, pairs_P2 = batch(seed)
    assert_same(
        lambda x: separation_loss(x, label_B, pairs_P2, MARGIN, advantage_weighting=weighting),
        lambda x: separation_loop(x, label_B, pairs_P2, weighting),
        logit_B,
    )


@pytest.mark.parametrize("clip", [CLIP, 0.5])
@pytest.mark.parametrize("weighting", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_compactness_is_the_papers(seed: int, weighting: bool, clip: float) -> None:
    logit_B, label_B, pairs_P2 = batch(seed)
    assert_same(
        lambda x: compactness_loss(x, label_B, pairs_P2, clip, advantage_weighting=weighting),
        lambda x: compactness_loop(x, label_B, pairs_P2, weighting, clip),
        logit_B,
    )


@pytest.mark.parametrize("seed", range(5))
def test_boundary_and_centering_are_the_papers(seed: int) -> None:
    logit_B, label_B, _ = batch(seed)

    def boundary_loop(x: Tensor) -> Tensor:
        positive = [torch.clamp(0.5 - v, min=0) for v, s in zip(x, label_B, strict=True) if s > 0]
        negative = [torch.clamp(v + 0.5, min=0) for v, s in zip(x, label_B, strict=True) if s < 0]
        return sum(positive) / len(positive) + sum(negative) / len(negative)  # type: ignore[return-value]

    assert_same(lambda x: boundary_loss(x, label_B, 0.5), boundary_loop, logit_B)
    assert_same(centering_loss, lambda x: abs(sum(x) / len(x)), logit_B)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("seed", range(5))
def test_bce_is_scikit_learns(seed: int) -> None:
    logit_B, label_B, _ = batch(seed)
    expected = log_loss((label_B > 0).int().numpy(), torch.sigmoid(logit_B).numpy())
    assert bce_loss(logit_B, label_B).item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(
        gradient(lambda x: bce_loss(x, label_B), logit_B), (torch.sigmoid(logit_B) - (label_B > 0).double()) / 12
    )


def test_a_worked_example() -> None:
    """One pair of both classes and two of one: the farther one has advantage -1, the nearer 1."""
    logit_B = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    label_B = torch.tensor([0.5, -0.5, 0.5], dtype=torch.float64)
    pairs_P2 = torch.tensor([[1, 0], [0, 2], [2, 2]])
    weight = 1 - 1 / (1 + math.exp(-0.5))
    assert separation_loss(logit_B, label_B, pairs_P2, 1.0).item() == pytest.approx(weight * 0.5)
    assert compactness_loss(logit_B, label_B, pairs_P2, 2.0).item() == pytest.approx((1.0 * 1 + 0) / 2)
    assert boundary_loss(logit_B, label_B, 0.5).item() == pytest.approx((0 + 0.5) / 2 + 1.0)
    assert centering_loss(logit_B).item() == pytest.approx(0.5)


@pytest.mark.parametrize("pairs", ["none", "of the other kind"])
def test_without_a_pair_value_and_gradient_are_0(pairs: str) -> None:
    logit_B, label_B, _ = batch(0)
    of_both, of_one = torch.tensor([[0, 1]]), torch.tensor([[0, 0]])
    for loss, other in (
        (lambda x, p: separation_loss(x, label_B, p, MARGIN), of_one),
        (lambda x, p: compactness_loss(x, label_B, p, CLIP), of_both),
    ):
        chosen = NO_PAIRS if pairs == "none" else other
        assert loss(logit_B, chosen).item() == 0
        assert gradient(lambda x, p=chosen, f=loss: f(x, p), logit_B).count_nonzero() == 0  # type: ignore[misc]


def test_with_one_class_or_nothing() -> None:
    logit_B = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    assert boundary_loss(logit_B, torch.tensor([0.5, 0.5]), 0.5).item() == pytest.approx(0.75)
    nothing = torch.empty(0, dtype=torch.float64)
    assert [f(nothing, nothing).item() for f in (bce_loss, lambda x, y: boundary_loss(x, y, 1.0))] == [0, 0]
    assert centering_loss(nothing).item() == 0


def test_equal_distances_have_no_advantage() -> None:
    """In float32 as well, where the mean of equal rewards is not quite one of them."""
    logit_B = torch.tensor([0.1, 0.4, 0.1, 0.4, 0.1, 0.4])
    pairs_P2 = torch.tensor([[0, 1], [2, 3], [4, 5]])
    assert compactness_loss(logit_B, torch.full((6,), 0.5), pairs_P2, CLIP).item() == 0


def test_shapes_that_would_broadcast_are_refused() -> None:
    logit_B, label_B, pairs_P2 = batch(0)
    for loss in (
        lambda x: separation_loss(x, label_B, pairs_P2, MARGIN),
        lambda x: compactness_loss(x, label_B, pairs_P2, CLIP),
        lambda x: boundary_loss(x, label_B, MARGIN),
        lambda x: bce_loss(x, label_B),
    ):
        with pytest.raises(ValueError, match=r"must both be \[B\]"):
            loss(logit_B.unsqueeze(1))


def test_large_logits_stay_finite() -> None:
    logit_B = torch.tensor([60.0, -60.0, 500.0, -500.0], requires_grad=True)
    label_B = torch.tensor([-0.5, 0.5, 0.5, -0.5])
    pairs_P2 = torch.tensor([[0, 1], [0, 3], [1, 2], [2, 3]])
    total = separation_loss(logit_B, label_B, pairs_P2, MARGIN) + compactness_loss(logit_B, label_B, pairs_P2, CLIP)
    total = total + boundary_loss(logit_B, label_B, MARGIN) + bce_loss(logit_B, label_B)
    (grad_B,) = torch.autograd.grad(total, logit_B)
    assert torch.isfinite(total)
    assert torch.isfinite(grad_B).all()
