"""C-MIB: an information bottleneck on each modality, and one on their fusion.

Mai, Zeng and Hu, 2022. Multimodal Information Bottleneck: Learning Minimal Sufficient Unimodal and Multimodal
Representations. IEEE Transactions on Multimedia. C-MIB is the complete variant; E-MIB and L-MIB have one of its parts.

    x_m = F_m(rows of m)      z_m ~ N(mean_m, deviation_m^2) = bottleneck_m(x_m)      y_m = v_m . z_m + c_m     eq. 18
    x = relu(V [z_m for each m])      z ~ N(mean, deviation^2) = bottleneck(x)        y = w . z + b
    loss = error of y + sum_m error of y_m + beta (KL(z) + sum_m KL(z_m))                                  eqs. 21-23

KL is the divergence from N(0, 1), as the mean over widths; errors are absolute for regression, the cross-entropy for
classification (eqs. 11, 12). F_text is a convolution over the subwords, F_m of audio and vision a convolution and a
Transformer; x_m is their last step.

Readings: the last step is the last real row, where the authors' code takes the last one of the padding. A bottleneck is
a ReLU layer, then a layer each for the mean and the deviation; that is softplus(h - 5), as in the code. The paper has
several fusions; this is its default, the concatenation. All layers of the Transformers share one dropout rate; the code
has 0.2 to 0.5. Each slot, and each own term, draws its own noise in training; scores use the means, where the code
draws noise for them too. A modality that a sample lacks gives x_m = 0; one that the data lack has no bottleneck.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from grcf_ray.model.base import ModelSetup
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import (
    Convolution,
    Transformer,
    gaussian_divergence,
    gaussian_sample,
    last_row,
    mapping,
    positions,
)
from grcf_ray.model.vectors import VectorModel
from grcf_ray.settings import Count, NonNegative, PositiveCount, Probability


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of C-MIB."""

    heads: PositiveCount = 5
    """Number of attention heads of the Transformers."""
    head_width: PositiveCount = 10
    """Width of a head; the vectors of all modalities have the width heads * head_width."""
    layers: Count = 3
    """Number of layers of each Transformer."""
    hidden_width: PositiveCount = 1024
    """Width of the hidden layer of the bottlenecks."""
    divergence_weight: NonNegative = 1e-3
    """Weight beta of the divergences."""
    dropout: Probability = 0.3
    """Dropout rate of the Transformers."""


class LastConvolution(nn.Module):
    """The last real row of a convolution over three rows at a time."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.convolved = Convolution(dim, width, 3)

    def forward(self, row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the row [B, D]; zeros for a sample without rows."""
        return last_row(self.convolved(row_BLA, mask_BL), mask_BL)


class RowTransformer(nn.Module):
    """The last real row of a Transformer on such a convolution, with sinusoidal positions."""

    def __init__(self, dim: int, width: int, options: Options) -> None:
        super().__init__()
        self.convolved = Convolution(dim, width, 3)
        self.dropout = nn.Dropout(options.dropout)
        self.transformer = Transformer(width, options.heads, options.layers, options.dropout)

    def forward(self, row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the row [B, D]; zeros for a sample without rows."""
        state_BLD = self.convolved(row_BLA, mask_BL)
        state_BLD = self.dropout(math.sqrt(state_BLD.shape[2]) * state_BLD + positions(state_BLD))
        return last_row(self.transformer(state_BLD, mask_BL), mask_BL)


class Bottleneck(nn.Module):
    """The layers that give mean and deviation of a Gaussian."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = mapping(width, hidden, 2 * width)

    def forward(self, x_SD: Tensor) -> tuple[Tensor, Tensor]:
        """Return z [S, D], with noise in training, and its divergence [S]."""
        mean_SD, raw_SD = self.layers(x_SD).chunk(2, dim=-1)
        deviation_SD = functional.softplus(raw_SD - 5)
        divergence_S = gaussian_divergence(mean_SD, deviation_SD).mean(-1)
        return gaussian_sample(mean_SD, deviation_SD, self.training), divergence_S


class CompleteBottleneck(VectorModel):
    """The network of the module's docstring. z_final is z; the vectors are x_m."""

    reads_states = True

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        options: Options = setup.options
        self.width, self.divergence_weight = options.heads * options.head_width, options.divergence_weight
        self.vector_widths = dict.fromkeys(self.sequence_dims, self.width)
        self.networks = nn.ModuleDict(
            {name: RowTransformer(dim, self.width, options) for name, dim in self.modality_dims.items()}
        )
        if self.text_encoder is not None:
            self.networks["text"] = LastConvolution(self.text_encoder.width, self.width)
        names = list(self.vector_widths)
        self.bottlenecks = nn.ModuleDict({name: Bottleneck(self.width, options.hidden_width) for name in names})
        self.heads = nn.ModuleDict({name: nn.Linear(self.width, 1) for name in names})
        self.fusion = nn.Linear(len(names) * self.width, self.width)
        self.bottleneck = Bottleneck(self.width, options.hidden_width)
        self.head = nn.Linear(self.width, 1)

    def auxiliary(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> Mapping[str, Tensor]:
        """Return the errors of the modalities' own predictions, and the weighted divergences."""
        latents, _, divergence_U = self._compressed(vector_UW)
        error = functional.l1_loss if self.task == "regression" else functional.binary_cross_entropy_with_logits
        heads = zip(self.heads.values(), latents, strict=True)
        errors = [error(head(z_UD)[:, 0], label_U) for head, z_UD in heads]
        return {"unimodal": torch.stack(errors).sum(), "divergence": self.divergence_weight * divergence_U.mean()}

    def _represent(self, vector_SW: Tensor) -> Tensor:
        return self._compressed(vector_SW)[1]

    def _compressed(self, vector_SW: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return z_m of each modality [S, D], z [S, D], and the sum [S] of all divergences."""
        pairs = zip(self.bottlenecks.values(), self.vectors(vector_SW)[0], strict=True)
        latents, divergences = zip(*(bottleneck(x_SD) for bottleneck, x_SD in pairs), strict=True)
        z_SD, divergence_S = self.bottleneck(torch.relu(self.fusion(torch.cat(latents, dim=-1))))
        return list(latents), z_SD, divergence_S + torch.stack(divergences).sum(0)


CARD = ModelCard(
    title="C-MIB",
    paper="Multimodal Information Bottleneck: Learning Minimal Sufficient Unimodal and Multimodal Representations",
    year=2022,
    venue="IEEE TMM",
    networks={"regression": CompleteBottleneck, "classification": CompleteBottleneck},
    published="109,835,748 on CMU-MOSI with BERT-base, audio 74 and vision 47 wide (Table XI)",
    options=Options,
    search={
        "head_width": {"low": 4, "high": 32, "log": True},
        "layers": {"low": 1, "high": 4},
        "hidden_width": {"low": 128, "high": 1024, "log": True},
        "divergence_weight": {"low": 1e-4, "high": 1e-1, "log": True},
        "dropout": {"low": 0.0, "high": 0.5},
    },
)
