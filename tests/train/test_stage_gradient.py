"""The gradient of a step against a loop over pairs that is written from the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from same_training import gradient, relative
from torch import Tensor, nn

from grcf_ray.data.batches import Batch, collate
from grcf_ray.data.pairs import draw_pairs
from grcf_ray.train.stage import StageLoop

if TYPE_CHECKING:
    from tests.train.conftest import NewLoop

GROUPS = [(-3.0, -1.5), (-2.0, 0.0), (-0.5, 0.5), (0.0, 2.0), (1.5, 3.0)]
EXACT = {"train__precision": "float64", "ranking__intra_margin": 0.2, "ranking__base_margin": 0.6}


def wide(loop: StageLoop) -> StageLoop:
    """Scores that reach beyond the label range, so that no loss term is zero."""
    with torch.no_grad():
        loop.model.head[2].weight *= 20  # type: ignore[operator]
    return loop


def score_alone(loop: StageLoop, utterance: int) -> Tensor:
    """One utterance's score from a batch of its own, without padding."""
    batch = collate(loop.features, loop.features.train, np.array([utterance]))
    score_1: Tensor = loop.model([batch.to(loop.device, torch.float64)], torch.zeros(1, dtype=torch.int64))
    return score_1[0]


def group_of_pairs_loss(
    loop: StageLoop, scored: Sequence[tuple[Tensor, float]], pairs: Sequence[tuple[int, int]]
) -> dict[str, Tensor]:
    """Eqs. 6-13 over one group. scored: (score, label) of each slot; pairs: indices of slots."""
    config, zero = loop.config, scored[0][0] * 0
    compared = []
    for i, j in pairs:
        (score_i, label_i), (score_j, label_j) = scored[i], scored[j]
        if label_i == label_j:
            continue
        gap = score_i - score_j if label_i > label_j else score_j - score_i
        held = [{k for k, (low, high) in enumerate(GROUPS) if low <= label <= high} for label in (label_i, label_j)]
        apart = 0 if held[0] & held[1] else max(abs(a - b) for a in held[0] for b in held[1])
        margin = config.ranking.base_margin + apart * config.ranking.margin_step
        compared.append((gap, config.ranking.intra_margin if apart == 0 else margin))
    rewards = [1 / (1 + math.exp(-gap.item())) for gap, _ in compared]
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    ranked = zero
    for (gap, margin), reward in zip(compared, rewards, strict=True):
        weight = max(0.0, -(reward - mean) / (deviation + 1e-8))
        ranked = ranked + weight * torch.clamp(margin - gap, min=0) / len(compared)

    scores = [score for score, _ in scored]
    labels = [label for _, label in scored]
    n = len(scored)
    mean_p, mean_r = sum(scores, zero) / n, sum(labels) / n
    deviation_p = (sum(((score - mean_p) ** 2 for score in scores), zero) / n) ** 0.5
    deviation_r = (sum((label - mean_r) ** 2 for label in labels) / n) ** 0.5
    margin = config.stage1.reg_margin
    reg = torch.clamp((mean_p - mean_r) ** 2 - margin, min=0) + torch.clamp(
        (deviation_p - deviation_r) ** 2 - margin, min=0
    )
    bound = sum((torch.clamp(score.abs() - 3.0, min=0) for score in scores), zero) / n
    mae = sum(((score - label).abs() for score, label in scored), zero) / n
    if loop.stage == 1:
        weights = config.stage1
        total = weights.group_weight * ranked + weights.reg_weight * reg + weights.boundary_weight * bound
        return {"loss/group": ranked, "loss/reg": reg, "loss/bound": bound, "loss/total": total}
    later = config.stage2
    total = later.mae_weight * mae + later.group_weight * ranked + later.boundary_weight * bound
    return {"loss/group": ranked, "loss/mae": mae, "loss/bound": bound, "loss/total": total}


def literal_step(loop: StageLoop, pairs_M2: NDArray[np.int64]) -> dict[str, Tensor]:
    """The terms of a step's loss, its members encoded one at a time, once for each slot that they fill."""
    config = loop.config.pairs
    labels = loop.features.train.label_N
    terms: dict[str, Tensor] = {}
    for start in range(0, len(pairs_M2), config.pairs_per_group):
        drawn = pairs_M2[start : start + config.pairs_per_group].tolist()
        if config.pairing == "sampled":
            members = [utterance for pair in drawn for utterance in pair]
            pairs = [(2 * place, 2 * place + 1) for place in range(len(drawn))]
        else:
            members = sorted({utterance for pair in drawn for utterance in pair})
            pairs = [(i, j) for i in range(len(members)) for j in range(i)]
        scored = [(score_alone(loop, utterance), float(labels[utterance])) for utterance in members]
        for name, value in group_of_pairs_loss(loop, scored, pairs).items():
            terms[name] = terms.get(name, 0) + len(drawn) / len(pairs_M2) * value
    return terms


@pytest.mark.parametrize("pairing", ["sampled", "all"])
@pytest.mark.parametrize("stage", [1, 2])
def test_gradient_is_that_of_a_loop_over_pairs(new_loop: NewLoop, stage: Literal[1, 2], pairing: str) -> None:
    """A whole step, then the last one of the epoch, which has two groups, the second of four pairs."""
    changes = {**EXACT, "pairs__pairs_per_group": 8, "pairs__pairs_per_epoch": 24 + 12, "pairs__pairing": pairing}
    loop = wide(new_loop(stage, **changes, dropout=False))
    loop.model.train()
    pairs_M2 = draw_pairs(48, 36, np.random.default_rng([loop.seed, stage, 0]))
    steps = list(loop.steps())
    assert [len(step.groups) for step in steps] == [3, 2]
    for step, drawn in zip(steps, (pairs_M2[:24], pairs_M2[24:]), strict=True):
        loop.optimizer.zero_grad()
        terms = loop.backward(step)
        actual = gradient(loop)
        loop.optimizer.zero_grad()
        literal = literal_step(loop, drawn)
        literal["loss/total"].backward()
        assert relative(actual, gradient(loop)) < 1e-12
        assert len(actual) == sum(p.numel() for p in loop.model.parameters())
        for name, value in literal.items():
            assert value.item() > 1e-3, f"{name} is to be tested"
            assert terms[name].item() == pytest.approx(value.item(), rel=1e-12)


@pytest.mark.parametrize("tokens", [1, 30, 100_000])
def test_micro_batches_do_not_change_the_gradient(new_loop: NewLoop, tokens: int) -> None:
    grads = []
    for size in (64, tokens):
        loop = new_loop(2, pairs__micro_batch_tokens=size, **EXACT, dropout=False)
        loop.backward(next(loop.steps()))
        grads.append(gradient(loop))
    assert relative(grads[1], grads[0]) < 1e-12


@pytest.mark.parametrize("stage", [1, 2])
def test_activations_that_are_computed_twice_give_the_same_gradient(new_loop: NewLoop, stage: Literal[1, 2]) -> None:
    """Each utterance is encoded once a step, or twice. With dropout, both passes have the same masks, and later random
    numbers stay the same."""
    result = []
    for most in (100_000, 1):
        loop = wide(new_loop(stage, pairs__activation_tokens=most, pairs__micro_batch_tokens=64, **EXACT))
        loop.model.train()
        torch.manual_seed(7)
        encoded, step = 0, next(loop.steps())

        def count(_: nn.Module, given: tuple[Any, ...]) -> None:
            nonlocal encoded
            encoded += len(given[0].token_BL)

        loop.model.text_encoder.register_forward_pre_hook(count)
        terms = loop.backward(step)
        assert encoded == len(step.utterance_U) * (2 if most == 1 else 1)
        assert len(step.utterance_U) < sum(len(group.slot_S) for group in step.groups)
        result.append((gradient(loop), {name: value.item() for name, value in terms.items()}, torch.rand(3)))
    (kept, kept_terms, kept_next), (twice, twice_terms, twice_next) = result
    assert relative(twice, kept) < 1e-12
    assert twice_terms == kept_terms
    assert torch.equal(twice_next, kept_next)


def test_activations_are_kept_up_to_two_groups_of_the_longest_texts(new_loop: NewLoop) -> None:
    loop = new_loop(1, pairs__pairs_per_group=8)
    most = 4 * 8 * loop.config.features.max_tokens

    def batch(tokens: int) -> Batch:
        mask = torch.ones(1, tokens, dtype=torch.bool)
        return Batch(mask.long(), mask, None, None, None, None, None, None)

    assert loop.limits.keeps([batch(most - 5), batch(5)])
    assert not loop.limits.keeps([batch(most - 5), batch(6)])
