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

from grcf_ray.config import ModelConfig
from grcf_ray.data.batches import Batch
from grcf_ray.model.base import DataShape, MultimodalModel
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import last_row
from grcf_ray.model.text_encoder import TextEncoder
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
    """Dropout rate of the text states, the attention, the other sublayers, and the last layers."""


class Layer(nn.Module):
    """A layer of a transformer: attention to other rows or to the same ones, then a network for each row."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, row_BLA: Tensor, other_BRA: Tensor, mask_BR: Tensor) -> Tensor:
        """Return the new rows [B, L, A]. other_BRA: the rows to attend to, with their mask."""
        key_BRA, present_B1 = self.norm(other_BRA), mask_BR.any(1, keepdim=True)
        # A sample without rows attends to its padding, so that no softmax is NaN; the result is left out.
        hidden_BR = ~mask_BR & present_B1
        seen_BLA, _ = self.attention(
            self.norm(row_BLA), key_BRA, key_BRA, key_padding_mask=hidden_BR, need_weights=False
        )
        row_BLA = row_BLA + self.dropout(seen_BLA) * present_B1.unsqueeze(2)
        new_BLA: Tensor = row_BLA + self.dropout(self.network(self.last_norm(row_BLA)))
        return new_BLA


class Transformer(nn.Module):
    """Layers that attend to the rows of another modality, or without them to their own."""

    def __init__(self, width: int, options: Options) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, options.heads, options.dropout) for _ in range(options.layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, row_BLA: Tensor, mask_BR: Tensor, other_BRA: Tensor | None = None) -> Tensor:
        """Return the new rows [B, L, A]. mask_BR: that of the rows to attend to."""
        for layer in self.layers:
            row_BLA = layer(row_BLA, row_BLA if other_BRA is None else other_BRA, mask_BR)
        normed_BLA: Tensor = self.norm(row_BLA)
        return normed_BLA


class CrossmodalTransformers(MultimodalModel):
    """The network of the module's docstring. z_final is the sum before the head."""

    reads_states = True

    def __init__(self, text_encoder: TextEncoder | None, config: ModelConfig, data: DataShape) -> None:
        super().__init__(text_encoder, config, data)
        options: Options = config.options
        names, width = list(self.sequence_dims), options.heads * options.head_width
        wide = width * max(1, len(names) - 1)
        self.width = wide * len(names)
        self.dropout = nn.Dropout(options.dropout)
        self.projections = nn.ModuleDict(
            {
                name: nn.Conv1d(dim, width, 1 if name == "text" else 3, padding="same", bias=False)
                for name, dim in self.sequence_dims.items()
            }
        )
        self.crossmodal = nn.ModuleDict(
            {f"{other}_to_{name}": Transformer(width, options) for name in names for other in names if other != name}
        )
        self.self_attention = nn.ModuleDict({name: Transformer(wide, options) for name in names})
        self.residual = nn.Sequential(
            nn.Linear(self.width, self.width), nn.ReLU(), nn.Dropout(options.dropout), nn.Linear(self.width, self.width)
        )
        self.head = nn.Linear(self.width, 1)

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Return the last rows of all modalities."""
        given = self.sequences(None if text is None else self.dropout(text), batch)
        masks = {name: mask for name, (_, mask) in given.items()}
        rows = {name: self._projected(name, *sequence) for name, sequence in given.items()}
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

    def _projected(self, name: str, row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
        """Return a modality's rows at the width of the transformers, with their positions."""
        real_BLA = row_BLA.masked_fill(~mask_BL.unsqueeze(2), 0)
        projected_BLA: Tensor = self.projections[name](real_BLA.transpose(1, 2)).transpose(1, 2)
        return projected_BLA + positions(projected_BLA)


def positions(row_BLA: Tensor) -> Tensor:
    """Return the sinusoidal positions [L, A]: sin(p / 10000^(2j/A)) in column 2j, the cosine in column 2j + 1."""
    place_L1 = torch.arange(row_BLA.shape[1], device=row_BLA.device, dtype=row_BLA.dtype).unsqueeze(1)
    column_A = torch.arange(row_BLA.shape[2], device=row_BLA.device)
    power_A = (column_A // 2 * 2).to(row_BLA.dtype) / len(column_A)
    angle_LA = place_L1 / torch.pow(10000.0, power_A)
    return torch.where(column_A % 2 == 0, angle_LA.sin(), angle_LA.cos())


CARD = ModelCard(
    title="MulT",
    paper="Multimodal Transformer for Unaligned Multimodal Language Sequences",
    year=2019,
    venue="ACL",
    networks={"regression": CrossmodalTransformers, "classification": CrossmodalTransformers},
    options=Options,
    search={
        "heads": {"low": 2, "high": 12, "start": 10},
        "head_width": {"low": 2, "high": 8, "start": 4},
        "layers": {"low": 1, "high": 6, "start": 4},
        "dropout": {"low": 0.0, "high": 0.5, "start": 0.2},
    },
)
