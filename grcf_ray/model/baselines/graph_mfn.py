"""Graph-MFN: the memory fusion network with a graph of all combinations of modalities in place of its attention.

Zadeh, Liang, Poria, Cambria and Morency, 2018. Multimodal Language Analysis in the Wild: CMU-MOSEI Dataset and
Interpretable Dynamic Fusion Graph. ACL.

    h_m,t, c_m,t = LSTM_m(x_m,t, h_m,t-1, c_m,t-1)              (the system of LSTMs, as in MFN)
    v_m = relu(W_m [c_m,t-1; c_m,t])                            (a vertex for each modality m)
    e = sigmoid(D_e([v_m over m]))                              (the efficacy of each edge)
    v_C = D_C([e_C'C v_C' over C' < C])                         (a vertex for each set C of two modalities or more)
    s_t = D([e_C v_C over all C])                               (the output vertex)
    u_t = sigmoid(D_1(s_t)) * u_t-1 + sigmoid(D_2(s_t)) * tanh(D_u(s_t))      (the multi-view gated memory)
    y = v relu(W [h_m,T over m; u_T] + b) + d

Readings: C' < C are the proper subsets, so three modalities give 7 vertices, the output and 19 edges. The vertices of
the modalities read the LSTMs' memories, as the attention of MFN does. Each D has one hidden layer of ReLU units with
dropout. W_m has no bias, so that the vertex of a modality that a sample lacks is zero. Steps and gates are
those of MFN, the widths those of the toolkit MMSA for CMU-MOSI.
"""

from __future__ import annotations

import dataclasses
from itertools import combinations

import torch
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.model.base import ModelSetup, MultimodalModel
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import GatedMemory, StepLstms, dense, mapping
from grcf_ray.model.vectors import width_options
from grcf_ray.settings import PositiveCount, Probability


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of Graph-MFN."""

    text_width: PositiveCount = 256
    """Width of the text's LSTM and vertex."""
    vision_width: PositiveCount = 256
    """Width of the vision's LSTM and vertex."""
    audio_width: PositiveCount = 32
    """Width of the audio's LSTM and vertex."""
    vertex_width: PositiveCount = 64
    """Width of the other vertices."""
    memory_width: PositiveCount = 300
    """Width of the multi-view gated memory."""
    hidden_width: PositiveCount = 64
    """Width of the hidden layer of each vertex, of the efficacies and of each gate."""
    fusion_width: PositiveCount = 256
    """Width of the layer after the LSTMs and the memory."""
    dropout: Probability = 0.2
    """Dropout rate of the graph and the gates, and before the last layers."""


class FusionGraph(nn.Module):
    """The dynamic fusion graph of the module's docstring. widths: those of the modalities' vertices."""

    def __init__(self, widths: dict[str, int], options: Options) -> None:
        super().__init__()
        out, hidden, dropout = options.vertex_width, options.hidden_width, options.dropout
        sets = [names for size in range(1, len(widths) + 1) for names in combinations(widths, size)]
        width = {"_".join(names): widths[names[0]] if len(names) == 1 else out for names in sets}
        self.below = {
            "_".join(names): ["_".join(other) for other in sets if set(other) < set(names)]
            for names in sets
            if len(names) > 1
        }
        self.below["output"] = list(width)
        self.singletons = nn.ModuleDict({name: nn.Linear(2 * h, h, bias=False) for name, h in widths.items()})
        n_edges = sum(len(below) for below in self.below.values())
        self.efficacies = mapping(sum(widths.values()), hidden, n_edges, dropout)
        self.vertices = nn.ModuleDict(
            {name: mapping(sum(width[o] for o in below), hidden, out, dropout) for name, below in self.below.items()}
        )

    def forward(self, memories: list[Tensor]) -> Tensor:
        """Return the output vertex [B, T, D] of the memories [B, T, 2 H] of each modality."""
        pairs = zip(self.singletons.items(), memories, strict=True)
        vertex: dict[str, Tensor] = {name: torch.relu(layer(memory)) for (name, layer), memory in pairs}
        efficacies = torch.sigmoid(self.efficacies(torch.cat(list(vertex.values()), dim=-1)))
        edges = iter(torch.split(efficacies, 1, dim=-1))
        for name, below in self.below.items():
            vertex[name] = self.vertices[name](torch.cat([vertex[other] * next(edges) for other in below], dim=-1))
        return vertex["output"]


class GraphMemoryFusion(MultimodalModel):
    """The network of the module's docstring. z_final is the output of the layer after the LSTMs and the memory."""

    reads_states = True

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        options: Options = setup.options
        self.width = options.fusion_width
        widths = width_options(options, self.sequence_dims)
        self.lstms = StepLstms(self.sequence_dims, widths)
        self.graph = FusionGraph(widths, options)
        self.memory = GatedMemory(options.vertex_width, options.hidden_width, options.memory_width, options.dropout)
        self.fusion = dense(sum(widths.values()) + options.memory_width, options.fusion_width, 1, options.dropout)
        self.head = nn.Linear(options.fusion_width, 1)

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Return the last outputs of the LSTMs, and the memory after the last step."""
        output_BH, memories, mask_BT = self.lstms(self.sequences(text, batch))
        return torch.cat([output_BH, self.memory(self.graph(memories), mask_BT)], dim=-1)


CARD = ModelCard(
    title="Graph-MFN",
    paper="Multimodal Language Analysis in the Wild: CMU-MOSEI Dataset and Interpretable Dynamic Fusion Graph",
    year=2018,
    venue="ACL",
    networks={"regression": GraphMemoryFusion, "classification": GraphMemoryFusion},
    options=Options,
    search={
        "text_width": {"low": 32, "high": 256, "log": True},
        "vision_width": {"low": 16, "high": 256, "log": True},
        "audio_width": {"low": 8, "high": 64, "log": True},
        "vertex_width": {"low": 32, "high": 128, "log": True},
        "memory_width": {"low": 64, "high": 400, "log": True},
        "dropout": {"low": 0.0, "high": 0.7},
    },
)
