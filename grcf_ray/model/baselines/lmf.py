"""LMF: the tensor fusion of TFN with weights of low rank, so that no tensor is built.

Liu, Shen, Lakshminarasimhan, Liang, Zadeh and Morency, 2018. Efficient Low-rank Multimodal Fusion with
Modality-Specific Factors. ACL.

    y = sum_i a_i prod_m (w_m,i . [z_m; 1]) + b      over the factors i = 1..r and the modalities m

Readings: published on GloVe, here the text input is the subword states of the shared encoder. z_text is the last state
of an LSTM through one ReLU layer, the others the mean of the rows through two. The product has one output (d_h = 1),
with a weight a_i for each factor. Factors are initialised as linear layers of torch; the bias weighs the appended 1.
The widths are those of MMSA for CMU-MOSI. A modality that a sample lacks gives z_m = 0; one that the data lack has no
factor.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor, nn

from grcf_ray.model.base import ModelSetup
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import LastState, RowNetwork, dense
from grcf_ray.model.vectors import VectorModel, width_options
from grcf_ray.settings import PositiveCount, Probability


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of LMF."""

    rank: PositiveCount = 4
    """Number r of factors."""
    text_width: PositiveCount = 128
    """Width of the text's vector and LSTM."""
    vision_width: PositiveCount = 128
    """Width of the vision's vector."""
    audio_width: PositiveCount = 16
    """Width of the audio's vector."""
    dropout: Probability = 0.3
    """Dropout rate of the networks of the modalities."""


class LowRankFusion(VectorModel):
    """The network of the module's docstring. z_final is the vector of the factors' products."""

    reads_states = True

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        options: Options = setup.options
        self.width, self.vector_widths = options.rank, width_options(options, self.sequence_dims)
        widths = self.vector_widths
        self.networks = nn.ModuleDict(
            {name: RowNetwork(dense(dim, widths[name], 2, options.dropout)) for name, dim in self.modality_dims.items()}
        )
        if self.text_encoder is not None:
            layers = dense(options.text_width, options.text_width, 1, options.dropout)
            self.networks["text"] = RowNetwork(layers, LastState(self.text_encoder.width, options.text_width))
        self.factors = nn.ModuleDict({name: nn.Linear(width, options.rank) for name, width in widths.items()})
        self.head = nn.Linear(options.rank, 1)

    def _represent(self, vector_SW: Tensor) -> Tensor:
        """Return the product of each factor over the modalities."""
        vectors, _ = self.vectors(vector_SW)
        pairs = zip(self.factors.values(), vectors, strict=True)
        factors: list[Tensor] = [layer(vector_SD) for layer, vector_SD in pairs]
        return functools.reduce(torch.mul, factors)


CARD = ModelCard(
    title="LMF",
    paper="Efficient Low-rank Multimodal Fusion with Modality-Specific Factors",
    year=2018,
    venue="ACL",
    networks={"regression": LowRankFusion, "classification": LowRankFusion},
    published="about 1.1 million with rank 4 and vectors of 64, 32 and 32, the networks included",
    options=Options,
    search={
        "rank": {"low": 1, "high": 16, "log": True},
        "text_width": {"low": 32, "high": 256, "log": True},
        "vision_width": {"low": 16, "high": 128, "log": True},
        "audio_width": {"low": 8, "high": 64, "log": True},
        "dropout": {"low": 0.0, "high": 0.5},
    },
)
