from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features
from grcf_ray.errors import ConfigError


def gated(gate: Any, state_LD: Tensor, rows: dict[str, Tensor], scales: list[float]) -> Tensor:
    """The output of the gate, subword by subword. scales: gets the factor of each shift."""
    result = []
    for place, state in enumerate(state_LD):
        shift = gate.bias
        for name, row_LA in rows.items():
            row, layer = row_LA[place], gate.gates[name]
            weight = (layer.weight @ torch.cat([state, row]) + layer.bias).clamp_min(0)
            shift = shift + weight * (gate.rows[name].weight @ row)
        scale = gate.beta * state.square().sum().sqrt() / shift.square().sum().sqrt()
        scales.append(min(scale.item(), 1.0))
        shifted = state + (scale if scale < 1 else 1) * shift
        centred = shifted - shifted.mean()
        result.append(centred / (centred.square().mean() + gate.norm.eps).sqrt() * gate.norm.weight + gate.norm.bias)
    return torch.stack(result)


@pytest.mark.parametrize(("layer", "frozen", "below"), [(0, 0, 0), (1, 0, 1), (2, 0, 2), (0, 1, 1), (0, "all", 2)])
def test_scores_and_gradients_are_those_of_the_equations(
    layer: int, frozen: int | str, below: int, backbone: nn.Module, tiny_features: Features
) -> None:
    """below: the number of the two layers that lie below the gate."""
    model = rivals.built("mag", backbone, layer=layer, frozen_layers=frozen, shift=0.4)
    nn.init.normal_(model.gate.bias, std=0.3)
    bert, scales = model.text_encoder.backbone, []

    def by_hand(token_L: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> Tensor:
        rows = {
            "vision": rivals.shares(vision_LV, len(token_L)),
            "audio": rivals.shares(audio_LA, len(token_L)),
        }
        states = bert.embeddings(input_ids=token_L[None])
        for number in range(3):
            if number == below:
                states = gated(model.gate, states[0], rows, scales)[None]
            if number < 2:
                states = bert.encoder.layer[number](states, None)
        return rivals.linear(model.head, rivals.mean(states[0]))[0]

    rivals.check_equations(model, tiny_features, by_hand)
    assert min(scales) < 1 == max(scales)


@pytest.mark.parametrize("frozen", [1, "all"])
def test_frozen_states_give_the_same_scores(frozen: int | str, backbone: nn.Module, tiny_features: Features) -> None:
    model, batch = rivals.built("mag", backbone, frozen_layers=frozen), rivals.some(tiny_features, *range(6))
    hidden = dataclasses.replace(batch, hidden_BLD=model.text_encoder.frozen_hidden(batch), token_BL=None)
    slots = torch.arange(6)
    torch.testing.assert_close(model([hidden], slots), model([batch], slots), rtol=1e-10, atol=1e-10)


def test_a_subword_without_audio_and_vision_is_only_normalised(backbone: nn.Module) -> None:
    gate = rivals.built("mag", backbone).gate
    states = torch.randn(1, 2, 32).double().requires_grad_()
    rows = {name: torch.zeros(1, 2, width).double() for name, width in (("vision", 3), ("audio", 5))}
    result = gate(states, rows)
    torch.testing.assert_close(result, nn.functional.layer_norm(states, (32,)))
    result.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in gate.parameters())


def test_a_gate_above_the_last_layer_is_refused(backbone: nn.Module) -> None:
    with pytest.raises(ConfigError, match="layer = 3: the backbone has 2 layers; use 0 to 2"):
        rivals.built("mag", backbone, layer=3)


def own(width: int, audio: int, vision: int) -> int:
    """A gate and a projection for each modality, the bias of the shift, the norm, and the last layer."""
    gates = sum((width + dim + 1) * width + dim * width for dim in (audio, vision))
    return gates + width + 2 * width + width + 1


def test_parameters_are_those_of_the_papers_gate(backbone: nn.Module) -> None:
    """Mai et al. (2022, Table XI) count 110,853,121 for the authors' code with BERT-base.

    That code has BERT's pooler, and a bias for each modality's projection where the paper's equation has one in all.
    """
    assert rivals.own_parameters(rivals.built("mag", backbone)) == own(32, 5, 3)
    bert, pooler, bias = 108_891_648, 768 * 768 + 768, 768
    assert bert + pooler + own(768, 74, 47) + bias == 110_853_121
