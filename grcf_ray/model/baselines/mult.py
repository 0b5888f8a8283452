"""MulT: each modality attends to the rows of each other one, without alignment, then to itself.

Tsai, Bai, Liang, Kolter, Morency and Salakhutdinov, 2019. Multimodal Transformer for Unaligned Multimodal Language
Sequences. ACL.

    X_m = Conv1D_m(x_m) + PE                                    (a temporal convolution, and sinusoidal positions)
    Z_0 = X_m                                                   (a crossmodal transformer n -> m of D layers)
    Y_i = CM_i(LN(Z_i-1), LN(X_n)) + Z_i-1      Z_i = f_i(LN(Y_i)) + Y_i      Z = LN(Z_D)
    CM(Q, K) = multi-head softmax(Q W_Q (K W_K)' / sqrt(d)) K W_V
    h_m = last row of a transformer on [Z of n -> m over n]     (self-attention: X_n is Z_i-1)
    z = [h_m over m]      y = w (z + W_2 relu(W_1 z)) + b

Readings: published on GloVe, here the text input is the subword states of the shared encoder, projected by a kernel of
1. Audio and vision have kernels of 3, with a row of zeros at each end, so that a sequence keeps its length. The
residual of a layer is Z, and a transformer ends with LN, as in the authors' code: it trains at larger learning rates
than with the paper's residual LN(Z). The code also scales X_m and masks later rows, which the paper does not. f is a
network of one hidden layer, four times as wide. The last layers are those of the code. Widths, heads and layers are
those of the paper for CMU-MOSI, whose dropout rates are 0.2 and, before the output, 0.1; here all are one. Attention to
a modality that a sample lacks gives zero, as does h_m of that modality. A modality without others attends to itself
only.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.model.base import ModelSetup, MultimodalModel
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import Convolution, Transformer, last_row, mapping, positions
from grcf_ray.settings import PositiveCount, Probability


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of MulT."""

    heads: PositiveCount = 10
    """Number of attention heads."""
    head_width: PositiveCount = 4
    """Width of a head; a modality's rows are as wide as all heads."""
    layers: PositiveCount = 4
    """Number D of layers of each transformer."""
    dropout: Probability = 0.2
    """Dropout rate of the text states, the attention, the sublayers and hidden layers, and the last layers."""


class CrossmodalTransformers(MultimodalModel):
    """The network of the module's docstring. z_final is the sum before the head."""

    reads_states = True

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        options: Options = setup.options
        names, width = list(self.sequence_dims), options.heads * options.head_width
        wide = width * max(1, len(names) - 1)
        self.width = wide * len(names)
        self.dropout = nn.Dropout(options.dropout)
        self.projections = nn.ModuleDict(
            {name: Convolution(dim, width, 1 if name == "text" else 3) for name, dim in self.sequence_dims.items()}
        )
        parts = options.heads, options.layers, options.dropout
        self.crossmodal = nn.ModuleDict(
            {f"{other}_to_{name}": Transformer(width, *parts) for name in names for other in names if other != name}
        )
        self.self_attention = nn.ModuleDict({name: Transformer(wide, *parts) for name in names})
        self.residual = mapping(self.width, self.width, self.width, options.dropout)
        self.head = nn.Linear(self.width, 1)

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Return the last rows of all modalities."""
        given = self.sequences(None if text is None else self.dropout(text), batch)
        masks = {name: mask for name, (_, mask) in given.items()}
        rows = {name: self.projections[name](*sequence) for name, sequence in given.items()}
        rows = {name: row_BLA + positions(row_BLA) for name, row_BLA in rows.items()}
        last = []
        for name, row_BLA in rows.items():
            parts = [
                self.crossmodal[f"{other}_to_{name}"](row_BLA, masks[other], rows[other])
                for other in rows
                if other != name
            ]
            fused_BLA = self.self_attention[name](torch.cat(parts or [row_BLA], dim=-1), masks[name])
            last.append(last_row(fused_BLA, masks[name]))
        return torch.cat(last, dim=-1)

    def _represent(self, vector_SW: Tensor) -> Tensor:
        state_SD: Tensor = vector_SW + self.residual(vector_SW)
        return state_SD


CARD = ModelCard(
    title="MulT",
    paper="Multimodal Transformer for Unaligned Multimodal Language Sequences",
    year=2019,
    venue="ACL",
    networks={"regression": CrossmodalTransformers, "classification": CrossmodalTransformers},
    options=Options,
    search={
        "heads": {"low": 2, "high": 12},
        "head_width": {"low": 2, "high": 8},
        "layers": {"low": 1, "high": 6},
        "dropout": {"low": 0.0, "high": 0.5},
    },
)
