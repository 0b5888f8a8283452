from __future__ import annotations

import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("tfn", backbone, text_width=3, other_width=2, fusion_width=5)
    one = torch.ones(1, dtype=torch.float64)

    def by_hand(token_L: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> Tensor:
        network = model.networks["text"]
        last = rivals.lstm(network.summary.lstm, rivals.states_of(model, token_L))[-1]
        text = torch.cat([rivals.dense(network.layers, last), one])
        vision, audio = (
            torch.cat([rivals.dense(model.networks[name].layers, rivals.mean(row_LX)) * (len(row_LX) > 0), one])
            for name, row_LX in (("vision", vision_LV), ("audio", audio_LA))
        )
        product = torch.stack([t * v * a for t in text for v in vision for a in audio])
        output = rivals.linear(model.head, rivals.dense(model.inference, product))[0]
        return 6 * torch.sigmoid(output) - 3

    rivals.check_equations(model, tiny_features, by_hand)


def test_parameters_are_those_of_the_papers_layers(backbone: nn.Module) -> None:
    """Liu et al. (2018) count about 12.5 million for these widths; the layer on the product has most of them."""
    model = rivals.built("tfn", backbone, text_width=64)
    text = 4 * 64 * (32 + 64 + 2) + 2 * (64 * 64 + 64)
    others = sum(dim * 32 + 32 + 2 * (32 * 32 + 32) for dim in (5, 3))
    product = 65 * 33 * 33 * 128 + 128
    own = rivals.own_parameters(model)
    assert own == text + others + product + (128 * 128 + 128) + 129
    assert 9.0e6 < product < own < 12.5e6
