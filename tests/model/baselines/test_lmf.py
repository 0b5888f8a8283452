from __future__ import annotations

import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    """The sum over the factors, as the paper writes it, with 1 appended to each vector."""
    model = rivals.built("lmf", backbone, rank=3, text_width=4, vision_width=3, audio_width=2)

    def by_hand(token_L: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> Tensor:
        network = model.networks["text"]
        last = rivals.lstm(network.summary.lstm, rivals.states_of(model, token_L))[-1]
        vectors = {"text": rivals.dense(network.layers, last)}
        for name, row_LX in (("vision", vision_LV), ("audio", audio_LA)):
            vectors[name] = rivals.dense(model.networks[name].layers, rivals.mean(row_LX)) * (len(row_LX) > 0)
        total = model.head.bias[0]
        for factor in range(3):
            product = model.head.weight[0, factor]
            for name, vector in vectors.items():
                layer = model.factors[name]
                weight = torch.cat([layer.weight[factor], layer.bias[factor, None]])
                product = product * (weight @ torch.cat([vector, torch.ones(1, dtype=torch.float64)]))
            total = total + product
        return total

    rivals.check_equations(model, tiny_features, by_hand)


def test_the_fusion_is_as_small_as_the_paper_says(backbone: nn.Module) -> None:
    """r (d_m + 1) weights for each modality, and r + 1 for the sum; the paper counts 1.1 million with its networks."""
    model = rivals.built("lmf", backbone, rank=4, text_width=64, vision_width=32, audio_width=32)
    own = {name: p.numel() for name, p in model.named_parameters() if not name.startswith("text_encoder.")}
    fusion = sum(number for name, number in own.items() if "factors" in name or name.startswith("head"))
    assert fusion == 4 * (65 + 33 + 33) + 4 + 1
    assert sum(own.values()) < 1.1e6
