from __future__ import annotations

from typing import Any

import pytest
import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features
from grcf_ray.model.baselines.moac import ordinal_loss

SIZES: dict[str, Any] = {"vision_width": 3, "audio_width": 2, "fusion_width": 5}


def state(model: Any, token_L: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> Tensor:
    """z of an utterance."""
    parts = [rivals.mean(rivals.states_of(model, token_L))]
    for name, row_LX in (("vision", vision_LV), ("audio", audio_LA)):
        width = model.vector_widths[name]
        lstm = model.networks[name].lstm
        parts.append(rivals.lstm(lstm, row_LX)[-1] if len(row_LX) else torch.zeros(width).double())
    fused: Tensor = rivals.dense(model.fusion, torch.cat(parts)) - model.neutral
    return fused


def f(model: Any, value: Tensor) -> Tensor:
    first, _, _, last = model.head
    return rivals.linear(last, torch.relu(rivals.linear(first, value)))[0]


def with_reference(backbone: nn.Module, **changes: Any) -> Any:
    """A model whose neutral embedding is not 0."""
    model = rivals.built("moac", backbone, **SIZES, **changes)
    with torch.no_grad():
        model.neutral.copy_(torch.linspace(-0.4, 0.6, 5))
    return model


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model = with_reference(backbone)
    rivals.check_equations(model, tiny_features, lambda *utterance: f(model, state(model, *utterance)))


def test_own_terms_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model = with_reference(backbone, margin=0.3)

    def by_hand(utterances: list[tuple[Tensor, Tensor, Tensor]], label_U: Tensor) -> dict[str, Tensor]:
        states = [state(model, *utterance) for utterance in utterances]
        scores = [f(model, z) for z in states]
        hinges, differences = [], []
        for i, label in enumerate(label_U):
            for j, other in enumerate(label_U):
                if i != j:
                    differences.append((f(model, states[i] - states[j]) - (label - other)).abs())
                if label > other:
                    hinges.append(torch.relu(0.3 - (scores[i] - scores[j])))
        score_U = torch.stack(scores)
        deviations = [((value - value.mean()) ** 2).mean().sqrt() for value in (score_U, label_U)]
        square = (score_U.mean() - label_U.mean()) ** 2 + (deviations[0] - deviations[1]) ** 2
        return {
            "ordinal": 0.5 * torch.stack(hinges).mean(),
            "distribution": 0.1 * square,
            "difference": 0.5 * torch.stack(differences).mean(),
        }

    rivals.check_terms(model, tiny_features, by_hand)


def test_scores_in_the_order_of_the_labels_have_no_ordinal_loss() -> None:
    label_U = torch.tensor([-3.0, -1.0, -1.0, 2.0]).double()
    assert ordinal_loss(label_U, label_U, 0.1) == 0
    # Of the five pairs, the two of -1 with -3 need 0.5 more; equal labels are no pair.
    torch.testing.assert_close(ordinal_loss(label_U, label_U, 2.5), torch.tensor(2 * 0.5 / 5).double())


@pytest.mark.parametrize("labels", [[1.0], [1.0, 1.0]])
def test_a_group_without_order_has_finite_terms(
    labels: list[float], backbone: nn.Module, tiny_features: Features
) -> None:
    model = rivals.built("moac", backbone).train()
    index = list(range(len(labels)))
    vector_UW = model.encode(rivals.some(tiny_features, *index))
    terms = model.auxiliary(vector_UW, torch.tensor(labels).double(), torch.tensor(index))
    assert terms["ordinal"] == 0
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_parameters_are_those_of_the_layers(backbone: nn.Module) -> None:
    lstm = sum(4 * width * (dim + width + 2) for dim, width in ((5, 16), (3, 32)))
    fusion = (32 + 16 + 32) * 128 + 128
    assert rivals.own_parameters(rivals.built("moac", backbone)) == lstm + fusion + 128 + (128 * 128 + 128) + 129
