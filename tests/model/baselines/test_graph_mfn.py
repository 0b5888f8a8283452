from __future__ import annotations

import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    """The graph of three modalities, edge by edge; its efficacies come in the order of the edges."""
    small = {"text_width": 3, "vision_width": 2, "audio_width": 2, "vertex_width": 3, "memory_width": 4}
    model = rivals.built("graph-mfn", backbone, hidden_width=5, fusion_width=6, **small)
    t, v, a = "text", "vision", "audio"
    graph = model.graph
    edges = [(t, f"{t}_{v}"), (v, f"{t}_{v}"), (t, f"{t}_{a}"), (a, f"{t}_{a}"), (v, f"{v}_{a}"), (a, f"{v}_{a}")]
    edges += [(below, f"{t}_{v}_{a}") for below in (t, v, a, f"{t}_{v}", f"{t}_{a}", f"{v}_{a}")]
    edges += [(below, "output") for below in (t, v, a, f"{t}_{v}", f"{t}_{a}", f"{v}_{a}", f"{t}_{v}_{a}")]

    def by_hand(token_L: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> Tensor:
        vision_TV, audio_TA = (rivals.shares(row_LX, len(token_L)) for row_LX in (vision_LV, audio_LA))
        rows = {t: rivals.states_of(model, token_L), v: vision_TV, a: audio_TA}
        present = {t: True, v: len(vision_LV) > 0, a: len(audio_LA) > 0}
        states = {name: rivals.lstm_cell(model.lstms.cells[name], row_TX) for name, row_TX in rows.items()}
        outputs = torch.cat([states[name][0][-1] * present[name] for name in rows])
        memory = torch.zeros(4, dtype=torch.float64)
        for step in range(len(token_L)):
            vertex = {}
            for name in rows:
                after = states[name][1][step] * present[name]
                before = states[name][1][step - 1] * present[name] if step else torch.zeros_like(after)
                vertex[name] = (graph.singletons[name].weight @ torch.cat([before, after])).clamp_min(0)
            efficacy = torch.sigmoid(rivals.mapping(graph.efficacies, torch.cat(list(vertex.values()))))
            for name in (f"{t}_{v}", f"{t}_{a}", f"{v}_{a}", f"{t}_{v}_{a}", "output"):
                pairs = zip(edges, efficacy, strict=True)
                read = [weight * vertex[below] for (below, above), weight in pairs if above == name]
                vertex[name] = rivals.mapping(graph.vertices[name], torch.cat(read))
            memory = rivals.gated_memory(model.memory, vertex["output"], memory)
        return rivals.linear(model.head, rivals.dense(model.fusion, torch.cat([outputs, memory])))[0]

    rivals.check_equations(model, tiny_features, by_hand)


def test_parameters_are_those_of_the_papers_graph(backbone: nn.Module) -> None:
    """Three modalities have 19 edges: 2 to each pair, 6 to the triple, 7 to the output."""
    model = rivals.built("graph-mfn", backbone)
    dims, widths = (32, 3, 5), (256, 256, 32)
    lstms = sum(4 * width * (dim + width + 2) for dim, width in zip(dims, widths, strict=True))
    singletons = sum(2 * width * width for width in widths)
    total, out, hidden, memory = sum(widths), 64, 64, 300
    read = [*(total - width for width in widths), total + 3 * out, total + 4 * out]
    vertices = sum((number + 1) * hidden + (hidden + 1) * out for number in read)
    efficacies = (total + 1) * hidden + (hidden + 1) * 19
    gates = 3 * ((out + 1) * hidden + (hidden + 1) * memory)
    last = (total + memory + 1) * 256 + 257
    own = rivals.own_parameters(model)
    assert own == lstms + singletons + vertices + efficacies + gates + last
