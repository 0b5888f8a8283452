from __future__ import annotations

import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("lf-dnn", backbone, text_width=6, audio_width=3, vision_width=4, fusion_width=5)

    def by_hand(token_L: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> Tensor:
        parts = [rivals.dense(model.networks["text"].layers, rivals.mean(rivals.states_of(model, token_L)))]
        for name, row_LX in (("vision", vision_LV), ("audio", audio_LA)):
            parts.append(rivals.dense(model.networks[name].layers, rivals.mean(row_LX)) * (len(row_LX) > 0))
        return rivals.linear(model.head, rivals.dense(model.fusion, torch.cat(parts)))[0]

    rivals.check_equations(model, tiny_features, by_hand)
