"""MFM: factors that decide the label, and factors that only describe a modality; both together generate its rows.

Tsai, Liang, Zadeh, Morency and Salakhutdinov, 2019. Learning Factorized Multimodal Representations. ICLR.

    Z_y = W [outputs and memory of MFN on all modalities] + b      Z_m = W_m LSTM(x_m) + b_m      (the encoders)
    F_y = G_y(Z_y)      F_m = G_m(Z_m)      G(z) = relu(W' relu(W z))                             (the factors)
    x^_m = W_m LSTM([F_y; F_m])             y = w . relu(W F_y) + b                               (the generators)
    loss = task + sum_m weight_m E |x_m - x^_m|^2 + prior_weight (MMD(Z_y) + sum_m MMD(Z_m))
    MMD(Z) = E k(Z, Z') - 2 E k(Z, N) + E k(N, N'), k(u, v) = exp(-|u - v|^2 / d^2), N and N' standard normal

The encoders are deterministic; d is the width of Z. The first two expectations run over the utterances of a group of
pairs that have the modality.

Readings: published on GloVe, here the text's rows are the subword states of the shared encoder; as a target they have
no gradient. |x_m - x^_m|^2 is the mean over rows and columns. The expectations over N are exact, where the authors draw
samples. A decoding LSTM reads the factors in its first step and zeros later. That gives the same functions as the
authors' decoder, which reads its own output. MMSA publishes the widths and weights for CMU-MOSI. It has a width for
each Z, each F and each network of MFN, here one for each kind. A modality that a sample lacks gives Z_m = 0, and does
not count in the terms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.model.base import ModelSetup, MultimodalModel
from grcf_ray.model.card import ModelCard
from grcf_ray.model.pooling import masked_mean
from grcf_ray.model.subnetworks import LastState, MemoryNetwork, RowNetwork, mapping
from grcf_ray.model.vectors import mean_of_present, width_options
from grcf_ray.settings import NonNegative, PositiveCount, Probability


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of MFM."""

    text_width: PositiveCount = 128
    """Width of the text's LSTM in MFN."""
    vision_width: PositiveCount = 128
    """Width of the vision's LSTM in MFN."""
    audio_width: PositiveCount = 32
    """Width of the audio's LSTM in MFN."""
    memory_width: PositiveCount = 64
    """Width of MFN's memory."""
    hidden_width: PositiveCount = 64
    """Width of the hidden layer of MFN's attention and gates."""
    latent_width: PositiveCount = 80
    """Width d of each Z."""
    factor_width: PositiveCount = 64
    """Width of each F."""
    dropout: Probability = 0.5
    """Dropout rate of MFN's attention and gates, and of the layers that give the factors."""
    text_weight: NonNegative = 0.5
    """Weight of the error of the generated text states."""
    vision_weight: NonNegative = 0.5
    """Weight of the error of the generated vision rows."""
    audio_weight: NonNegative = 0.01
    """Weight of the error of the generated audio rows."""
    prior_weight: NonNegative = 100.0
    """Weight of the distance of Z to its prior."""


class Factorised(MultimodalModel):
    """The network of the module's docstring, M modalities. z_final is the output of the layer after F_y.

    W: Z_y, Z_m of each modality, the errors of the generated rows, and which modalities the sample has.
    """

    reads_states = True

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        self.options: Options = setup.options
        options, dims = self.options, self.sequence_dims
        widths, latent = width_options(options, dims), options.latent_width
        self.width, factors = options.factor_width, 2 * options.factor_width
        self.network = MemoryNetwork(dims, widths, options.memory_width, options.hidden_width, options.dropout)
        self.label_encoder = nn.Linear(self.network.width, latent)
        self.encoders = nn.ModuleDict(
            {name: RowNetwork(nn.Linear(latent, latent), LastState(dim, latent)) for name, dim in dims.items()}
        )
        self.label_factor = _factor_network(options)
        self.factors = nn.ModuleDict({name: _factor_network(options) for name in dims})
        self.decoders = nn.ModuleDict({name: nn.LSTM(factors, factors, batch_first=True) for name in dims})
        self.outputs = nn.ModuleDict({name: nn.Linear(factors, dim) for name, dim in dims.items()})
        self.inference = nn.Sequential(nn.Linear(self.width, self.width), nn.ReLU())
        self.head = nn.Linear(self.width, 1)

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Return Z of the label and of each modality, with the errors of the generated rows.

        The errors are worked out here, since nothing later sees the rows.
        """
        sequences = self.sequences(text, batch)
        latent_BD = self.label_encoder(self.network(sequences))
        factor_BF = self.label_factor(latent_BD)
        latents, errors, present = [latent_BD], [], []
        for name, (row_BLA, mask_BL) in sequences.items():
            present.append(mask_BL.any(1, keepdim=True).to(row_BLA.dtype))
            latents.append(self.encoders[name](row_BLA, mask_BL) * present[-1])
            factors_BF = torch.cat([factor_BF, self.factors[name](latents[-1])], dim=-1)
            steps_BLF = nn.functional.pad(factors_BF.unsqueeze(1), (0, 0, 0, mask_BL.shape[1] - 1))
            error_BL = (self.outputs[name](self.decoders[name](steps_BLF)[0]) - row_BLA.detach()).square().mean(-1)
            errors.append(masked_mean(error_BL.unsqueeze(2), mask_BL))
        return torch.cat([*latents, *errors, *present], dim=-1)

    def _represent(self, vector_SW: Tensor) -> Tensor:
        return cast(Tensor, self.inference(self.label_factor(vector_SW[:, : self.options.latent_width])))

    def auxiliary(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> Mapping[str, Tensor]:
        """Return the error of the generated rows, and the distance of Z to its prior, weighted."""
        count, width = len(self.factors), self.options.latent_width
        *latents, error_UM, present_UM = torch.split(vector_UW, [width] * (1 + count) + [count, count], dim=-1)
        weights = [getattr(self.options, f"{name}_weight") for name in self.factors]
        generation = (mean_of_present(error_UM, present_UM) * error_UM.new_tensor(weights)).sum()
        present_UZ = nn.functional.pad(present_UM, (1, 0), value=1.0)
        distances = [_distance(z_UD, real_U) for z_UD, real_U in zip(latents, present_UZ.unbind(1), strict=True)]
        return {"generation": generation, "prior": self.options.prior_weight * torch.stack(distances).sum()}


def _factor_network(options: Options) -> nn.Sequential:
    """Return G, the network from Z to F."""
    width = options.factor_width
    return nn.Sequential(*mapping(options.latent_width, width, width, options.dropout), nn.ReLU())


def _distance(latent_UD: Tensor, present_U: Tensor) -> Tensor:
    """Return the squared MMD between the utterances that have the modality and the prior; 0 without one."""
    width = latent_UD.shape[1]
    scale, share_U = width**2, present_U / present_U.sum().clamp_min(1)
    square_UV = (latent_UD.unsqueeze(1) - latent_UD).square().sum(-1)
    among = share_U @ torch.exp(-square_UV / scale) @ share_U
    to_prior_U = (scale / (scale + 2)) ** (width / 2) * torch.exp(-latent_UD.square().sum(-1) / (scale + 2))
    distance: Tensor = among - 2 * share_U @ to_prior_U + share_U.sum() * (scale / (scale + 4)) ** (width / 2)
    return distance


CARD = ModelCard(
    title="MFM",
    paper="Learning Factorized Multimodal Representations",
    year=2019,
    venue="ICLR",
    networks={"regression": Factorised, "classification": Factorised},
    options=Options,
    search={
        "memory_width": {"low": 32, "high": 256, "log": True},
        "latent_width": {"low": 16, "high": 128, "log": True},
        "factor_width": {"low": 16, "high": 128, "log": True},
        "dropout": {"low": 0.0, "high": 0.7},
        "text_weight": {"low": 0.01, "high": 1.0, "log": True},
        "prior_weight": {"low": 1.0, "high": 200.0, "log": True},
    },
)
