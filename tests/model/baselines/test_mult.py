from __future__ import annotations

import math
from typing import Any

import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features
from grcf_ray.model.subnetworks import positions


def norm(layer: Any, row_LA: Tensor) -> Tensor:
    centred = row_LA - row_LA.mean(1, keepdim=True)
    deviation = (centred.square().mean(1, keepdim=True) + layer.eps).sqrt()
    return centred / deviation * layer.weight + layer.bias


def attended(attention: Any, query_LA: Tensor, key_RA: Tensor) -> Tensor:
    """Each row's mean of the values, head by head."""
    if not len(key_RA):
        return torch.zeros_like(query_LA)
    parts = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    query, key, value = (
        [weight @ row + bias for row in rows]
        for (weight, bias), rows in zip(parts, (query_LA, key_RA, key_RA), strict=True)
    )
    width = query_LA.shape[1] // attention.num_heads
    result = []
    for q in query:
        heads = []
        for head in (slice(start, start + width) for start in range(0, len(q), width)):
            weights = [torch.exp(q[head] @ k[head] / math.sqrt(width)) for k in key]
            heads.append(sum(w * v[head] for w, v in zip(weights, value, strict=True)) / sum(weights))
        result.append(attention.out_proj.weight @ torch.cat(heads) + attention.out_proj.bias)
    return torch.stack(result)


def transformer(network: Any, row_LA: Tensor, other_RA: Tensor | None = None) -> Tensor:
    for layer in network.layers:
        query = norm(layer.norm, row_LA)
        key = query if other_RA is None else norm(layer.norm, other_RA)
        row_LA = row_LA + attended(layer.attention, query, key)
        row_LA = row_LA + torch.stack([rivals.mapping(layer.network, row) for row in norm(layer.last_norm, row_LA)])
    return norm(network.norm, row_LA)


def projected(layer: Any, row_LA: Tensor) -> Tensor:
    """The convolution with zeros beyond both ends, and the positions."""
    out, _, kernel = layer.weight.shape
    rows = []
    for place in range(len(row_LA)):
        row = torch.zeros(out, dtype=row_LA.dtype)
        for k in range(kernel):
            if 0 <= place + k - kernel // 2 < len(row_LA):
                row = row + layer.weight[:, :, k] @ row_LA[place + k - kernel // 2]
        angles = [place / 10000 ** (2 * (column // 2) / out) for column in range(out)]
        waves = [math.cos(angle) if column % 2 else math.sin(angle) for column, angle in enumerate(angles)]
        rows.append(row + torch.tensor(waves, dtype=row_LA.dtype))
    return torch.stack(rows) if rows else torch.zeros(0, out, dtype=row_LA.dtype)


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("mult", backbone, heads=2, head_width=3, layers=2)
    for name, parameter in model.named_parameters():
        if "bias" in name and "text_encoder" not in name:
            nn.init.normal_(parameter)

    def by_hand(token_L: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> Tensor:
        given = {"text": rivals.states_of(model, token_L), "vision": vision_LV, "audio": audio_LA}
        rows = {name: projected(model.projections[name].convolution, row_LX) for name, row_LX in given.items()}
        last = []
        for name, row_LA in rows.items():
            if not len(row_LA):
                last.append(torch.zeros(12, dtype=torch.float64))
                continue
            streams = [
                transformer(model.crossmodal[f"{other}_to_{name}"], row_LA, rows[other])
                for other in rows
                if other != name
            ]
            last.append(transformer(model.self_attention[name], torch.cat(streams, dim=1))[-1])
        together = torch.cat(last)
        state = together + rivals.mapping(model.residual, together)
        return rivals.linear(model.head, state)[0]

    rivals.check_equations(model, tiny_features, by_hand)


def test_positions_of_a_width_of_4() -> None:
    expected = [[math.sin(p), math.cos(p), math.sin(p / 100), math.cos(p / 100)] for p in range(3)]
    assert torch.allclose(positions(torch.zeros(1, 3, 4)), torch.tensor(expected))


def test_the_order_of_rows_counts(backbone: nn.Module) -> None:
    model, audio = rivals.built("mult", backbone), torch.randn(1, 6, 5).double()
    tokens, vision = torch.tensor([[5, 6, 7]]), torch.randn(1, 2, 3).double()
    slots = torch.zeros(1, dtype=torch.int64)
    given, reversed_rows = (rivals.batch_of(tokens, rows, vision) for rows in (audio, audio.flip(1)))
    assert (model([given], slots) - model([reversed_rows], slots)).abs() > 1e-4


def test_parameters_are_those_of_the_papers_layers(backbone: nn.Module) -> None:
    """Three convolutions, six crossmodal transformers, three of twice the width, and the last layers."""
    model = rivals.built("mult", backbone)

    def layer(width: int) -> int:
        norms, attention = 2 * 2 * width, 4 * (width * width + width)
        return norms + attention + 2 * 4 * width * width + 5 * width

    convolutions = 40 * (32 + 3 * 3 + 3 * 5)
    last = 2 * (240 * 240 + 240) + 241
    own = rivals.own_parameters(model)
    assert own == convolutions + 6 * (4 * layer(40) + 2 * 40) + 3 * (4 * layer(80) + 2 * 80) + last
