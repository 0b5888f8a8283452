from __future__ import annotations

import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    small = {"text_width": 3, "vision_width": 2, "audio_width": 2, "memory_width": 4, "hidden_width": 5}
    model = rivals.built("mfn", backbone, fusion_width=6, **small)

    def by_hand(token_L: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> Tensor:
        vision_TV, audio_TA = (rivals.shares(row_LX, len(token_L)) for row_LX in (vision_LV, audio_LA))
        rows = {"text": rivals.states_of(model, token_L), "vision": vision_TV, "audio": audio_TA}
        present = {"text": True, "vision": len(vision_LV) > 0, "audio": len(audio_LA) > 0}
        states = {name: rivals.lstm_cell(model.network.lstms.cells[name], row_TX) for name, row_TX in rows.items()}
        outputs = torch.cat([states[name][0][-1] * present[name] for name in rows])
        memory = torch.zeros(4, dtype=torch.float64)
        for t in range(len(token_L)):
            parts = []
            for name in rows:
                after = states[name][1][t] * present[name]
                before = states[name][1][t - 1] * present[name] if t else torch.zeros_like(after)
                parts += [before, after]
            change = torch.cat(parts)
            weight = rivals.mapping(model.network.attention, change).exp()
            attended = change * weight / weight.sum()
            memory = rivals.gated_memory(model.network.memory, attended, memory)
        return rivals.linear(model.head, rivals.dense(model.fusion, torch.cat([outputs, memory])))[0]

    rivals.check_equations(model, tiny_features, by_hand)


def test_parameters_are_those_of_the_papers_parts(backbone: nn.Module) -> None:
    model = rivals.built("mfn", backbone)
    dims, widths = (32, 3, 5), (256, 256, 32)
    lstms = sum(4 * width * (dim + width + 2) for dim, width in zip(dims, widths, strict=True))
    total, hidden, memory = sum(widths), 64, 400
    attention = (2 * total + 1) * hidden + (hidden + 1) * 2 * total
    gates = 3 * ((2 * total + 1) * hidden + (hidden + 1) * memory)
    last = (total + memory + 1) * 128 + 129
    own = rivals.own_parameters(model)
    assert own == lstms + attention + gates + last
