"""TMSON: a Gaussian for each modality, their Bayesian fusion, and a triplet loss that orders the fused Gaussians.

Xie, Yang, Wang, Liu and Li, 2024. Trustworthy Multimodal Fusion for Sentiment Analysis in Ordinal Sentiment Space.
IEEE Transactions on Circuits and Systems for Video Technology.

    f_m = tanh(P_m x_m)   h_m = tanh(LayerNorm(E_m f_m))   mean_m = sigmoid(A_m h_m)   variance_m = sigmoid(B_m h_m)
    1 / variance = sum_m 1 / variance_m      mean = variance sum_m mean_m / variance_m      z ~ N(mean, variance)
    y = dense([x_m for each m; z]) w + b     y_m = dense_m(x_m) w_m + b_m
    loss = error of y + sum_m u_m |y_m - label| + w_ordinal L_ordinal
           + w_divergence sum_m KL(N(mean_m, variance_m) || N(0, 1)) / M
           + w_reconstruction sum_m |f_m - D_m(z_m)|^2 / (H M)

x_text is the text vector, x_m of audio and vision the last state of an LSTM; M is the number of modalities, H the width
of f_m. L_ordinal takes each utterance a with another, r, and with the utterance h whose label differs from a's by
nearly, but not exactly, as much as r's does. Of these two, the one whose label differs more must be farther from a, by
a margin of 1, in the 2-Wasserstein distance of the fused Gaussians: max(0, 1 + d(nearer) - d(farther)), the mean of
positive ones.

Readings: the equations are those of the abstract and the authors' code; the paper's own were not seen. The sigmoid
gives the variance everywhere; the code takes it for the logarithm of the variance in z, KL and L_ordinal, and limits
sums of variances in the fusion. Its extra layer behind the LSTM is left out. In a group, one random number says how far
behind its a each r lies. Widths and weights: the code's for CMU-MOSI. Noise is drawn for each slot, and for own terms,
in training. A modality that a sample lacks gives x_m = 0, and does not count in the fusion and the own terms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from grcf_ray.model.base import ModelSetup
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import LastState, dense, gaussian_divergence, gaussian_sample
from grcf_ray.model.vectors import VectorModel, width_options
from grcf_ray.settings import NonNegative, PositiveCount, Probability

_UNIMODAL = {"text": 0.8, "vision": 0.1, "audio": 0.1}
"""Weights u_m of the modalities' own errors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of TMSON."""

    vision_width: PositiveCount = 32
    """Width of vision's LSTM, vector, and own prediction."""
    audio_width: PositiveCount = 16
    """Width of audio's LSTM, vector, and own prediction."""
    text_width: PositiveCount = 32
    """Width of the text's own prediction."""
    hidden_width: PositiveCount = 128
    """Width of f_m, and of the layers around the Gaussians."""
    latent_width: PositiveCount = 64
    """Width of the Gaussians."""
    fusion_width: PositiveCount = 128
    """Width of the two layers after the fusion."""
    ordinal_weight: NonNegative = 0.5
    """Weight of the triplet loss."""
    divergence_weight: NonNegative = 0.01
    """Weight of the divergences."""
    reconstruction_weight: NonNegative = 0.1
    """Weight of the reconstruction of f_m."""
    dropout: Probability = 0.0
    """Dropout rate on the input of the layers after the fusion, and of the modalities' own predictions."""


class Estimate(NamedTuple):
    """The Gaussians of a modality, their inputs, and 1 for samples that have the modality, else 0."""

    x_SD: Tensor
    feature_SH: Tensor
    mean_SK: Tensor
    variance_SK: Tensor
    seen_S: Tensor


class Uncertainty(nn.Module):
    """The layers of one modality, from its vector to its Gaussian, back, and to its own prediction."""

    def __init__(self, width: int, own_width: int, weight: float, options: Options) -> None:
        super().__init__()
        self.weight, hidden, latent = weight, options.hidden_width, options.latent_width
        self.projection = nn.Linear(width, hidden)
        self.encoder = _normalised(hidden, hidden)
        self.gaussian = nn.Linear(hidden, 2 * latent)
        self.decoder = nn.Sequential(_normalised(latent, hidden), _normalised(hidden, hidden))
        self.prediction = nn.Sequential(dense(width, own_width, 1, options.dropout), nn.Linear(own_width, 1))

    def forward(self, x_SD: Tensor, seen_S: Tensor) -> Estimate:
        """Return the Gaussians of the vectors. seen_S: 1 for samples that have the modality, else 0."""
        feature_SH = torch.tanh(self.projection(x_SD))
        mean_SK, variance_SK = torch.sigmoid(self.gaussian(self.encoder(feature_SH))).chunk(2, dim=1)
        return Estimate(x_SD, feature_SH, mean_SK, variance_SK, seen_S)

    def losses(self, estimate: Estimate, label_S: Tensor) -> Tensor:
        """Return the weighted error of y_m, the divergence and the reconstruction: [3], means over samples."""
        x_SD, feature_SH, mean_SK, variance_SK, seen_S = estimate
        error_S = self.weight * (self.prediction(x_SD).squeeze(1) - label_S).abs()
        divergence_S = gaussian_divergence(mean_SK, variance_SK.sqrt()).sum(1)
        decoded_SH = self.decoder(gaussian_sample(mean_SK, variance_SK.sqrt(), self.training))
        return (torch.stack([error_S, divergence_S, (decoded_SH - feature_SH).square().mean(1)]) * seen_S).mean(1)


def _normalised(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.Tanh())


def bayesian_fusion(estimates: Sequence[Estimate]) -> tuple[Tensor, Tensor]:
    """Return mean and variance [S, K] of the product of a sample's Gaussians; 0 and 1 without any modality."""
    precision_MSK = torch.stack([each.seen_S.unsqueeze(1) / each.variance_SK for each in estimates])
    # No variance exceeds 1, so this limit changes no other sample.
    total_SK = precision_MSK.sum(0).clamp_min(1)
    mean_SK = (precision_MSK * torch.stack([each.mean_SK for each in estimates])).sum(0) / total_SK
    return mean_SK, 1 / total_SK


def ordinal_loss(mean_UK: Tensor, variance_UK: Tensor, label_U: Tensor, other_U: Tensor) -> Tensor:
    """Return L_ordinal of a group's fused Gaussians: a scalar, 0 if no triplet is violated. other_U: each a's r."""
    # Rounded, since equal differences of labels such as 0.1 and 0.3 are not equal as floating-point numbers.
    gap_UU = (label_U.unsqueeze(1) - label_U).abs().round(decimals=4)
    gap_U = (label_U - label_U[other_U]).abs().round(decimals=4)
    off_UU = (gap_UU - gap_U.unsqueeze(1)).abs()
    near_U = off_UU.masked_fill(off_UU == 0, torch.finfo(off_UU.dtype).max).fill_diagonal_(torch.inf).argmin(1)
    # Their 2-Wasserstein distance is that of means and deviations.
    point_UC = torch.cat([mean_UK, variance_UK.sqrt()], dim=1)
    to_r_U = torch.linalg.vector_norm(point_UC - point_UC[other_U], dim=1)
    to_h_U = torch.linalg.vector_norm(point_UC - point_UC[near_U], dim=1)
    sign_U = (gap_U - gap_UU.gather(1, near_U.unsqueeze(1)).squeeze(1)).sign()
    hinge_U: Tensor = (1 - sign_U * (to_r_U - to_h_U)).clamp_min(0) * sign_U.abs()
    return hinge_U.sum() / (hinge_U > 0).sum().clamp_min(1)


class TrustworthyFusion(VectorModel):
    """The network of the module's docstring. z_final follows the fusion. The vectors are x_m."""

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        options: Options = setup.options
        own = width_options(options, self.sequence_dims)
        self.vector_widths = {**self.sequence_dims, **{name: own[name] for name in self.modality_dims}}
        self.networks = nn.ModuleDict({name: LastState(dim, own[name]) for name, dim in self.modality_dims.items()})
        self.uncertainties = nn.ModuleDict(
            {
                name: Uncertainty(width, own[name], _UNIMODAL[name], options)
                for name, width in self.vector_widths.items()
            }
        )
        self.options, self.width = options, options.fusion_width
        self.fusion = dense(sum(self.vector_widths.values()) + options.latent_width, self.width, 2, options.dropout)
        self.head = nn.Linear(self.width, 1)

    def auxiliary(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> Mapping[str, Tensor]:
        """Return the weighted terms of the loss behind the error of y."""
        options, estimates, count = self.options, self._estimates(vector_UW), len(label_U)
        parts = zip(self.uncertainties.values(), estimates, strict=True)
        losses = [cast(Uncertainty, part).losses(estimate, label_U) for part, estimate in parts]
        error_M, divergence_M, reconstruction_M = torch.stack(losses, dim=1)
        first = torch.randint(1, max(2, count), (1,), device=label_U.device)
        other_U = (torch.arange(count, device=label_U.device) + first) % count
        return {
            "unimodal": error_M.sum(),
            "ordinal": options.ordinal_weight * ordinal_loss(*bayesian_fusion(estimates), label_U, other_U),
            "divergence": options.divergence_weight * divergence_M.mean(),
            "reconstruction": options.reconstruction_weight * reconstruction_M.mean(),
        }

    def _represent(self, vector_SW: Tensor) -> Tensor:
        mean_SK, variance_SK = bayesian_fusion(self._estimates(vector_SW))
        z_SK = gaussian_sample(mean_SK, variance_SK.sqrt(), self.training)
        return cast(Tensor, self.fusion(torch.cat([*self.vectors(vector_SW)[0], z_SK], dim=1)))

    def _estimates(self, vector_SW: Tensor) -> list[Estimate]:
        """Return the Gaussians of each modality."""
        vectors, present_SM = self.vectors(vector_SW)
        parts = zip(self.uncertainties.values(), vectors, present_SM.unbind(1), strict=True)
        return [part(x_SD, seen_S) for part, x_SD, seen_S in parts]


CARD = ModelCard(
    title="TMSON",
    paper="Trustworthy Multimodal Fusion for Sentiment Analysis in Ordinal Sentiment Space",
    year=2024,
    venue="IEEE TCSVT",
    networks={"regression": TrustworthyFusion},
    source="its abstract and its authors' code",
    options=Options,
    search={
        "latent_width": {"low": 16, "high": 128, "log": True},
        "ordinal_weight": {"low": 0.0, "high": 1.0},
        "divergence_weight": {"low": 1e-3, "high": 0.1, "log": True},
        "reconstruction_weight": {"low": 0.01, "high": 1.0, "log": True},
        "dropout": {"low": 0.0, "high": 0.5},
    },
)
