"""MMIM: maximise the mutual information between the modalities, and between each modality and their fusion.

Han, Chen and Poria, 2021. Improving Multimodal Fusion with Hierarchical Mutual Information Maximization for Multimodal
Sentiment Analysis. EMNLP.

    x_text: the text vector      x_m = W_m LSTM_m(rows)  (m = vision, audio)
    z = tanh(W_2 tanh(W_1 [x_text; x_vision; x_audio]))      y = w . z + b
    loss = task + contrast_weight sum_m N_m - information_weight sum over vision, audio of (E log q(x_m | x_text) + H_m)

    log q(x_m | x_text) = -|x_m - mu|^2 / (2 sigma^2) - log sigma, the Barber-Agakov bound; mu and sigma of x_text
    H_m = (log det C_m+ + log det C_m-) / 4: the entropy of two Gaussians, C_m+ the covariance of positive utterances
    N_m = -E_i log(exp s_ii / sum_j exp s_ij), s_ij = cos(G_m z_i, x_m,j): contrastive predictive coding in a group

After each step, a second optimizer step fits q to the same utterances. The covariances are those of a group of pairs
and of a memory, which has the latest utterances of earlier steps.

Readings: as in the authors' code, the entropy is that of tanh(V_m x_m), a quarter as wide, and V_m keeps its initial
values. An utterance in the middle of the label range is on neither side. The memory has the size of their batches. A
tanh bounds log sigma^2, as in their settings; log q keeps the term, as in the paper. The covariances have 1e-6 added on
the diagonal. A modality that a sample lacks gives x_m = 0, and does not count in the terms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from grcf_ray.model.base import ModelSetup
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import LastState, RowNetwork, mapping
from grcf_ray.model.vectors import VectorModel, mean_of_present
from grcf_ray.settings import NonNegative, PositiveCount, Probability

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of MMIM."""

    width: PositiveCount = 16
    """Width of the LSTMs and the vectors of vision and audio."""
    fusion_width: PositiveCount = 128
    """Width of the two layers of the fusion."""
    dropout: Probability = 0.1
    """Dropout rate after the LSTMs, and on the input of the fusion."""
    memory: PositiveCount = 32
    """Number of utterances in the memory."""
    contrast_weight: NonNegative = 0.1
    """Weight of the contrastive term."""
    information_weight: NonNegative = 0.1
    """Weight of the bound on the information between the text and the others."""


class InformationMaximisation(VectorModel):
    """The network of the module's docstring: M modalities besides the text, K utterances in the memory. z_final is z.

    The vectors are x_m.
    """

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        self.options: Options = setup.options
        width, self.width = self.options.width, self.options.fusion_width
        self.vector_widths = {"text": self.sequence_dims["text"]} | dict.fromkeys(self.modality_dims, width)
        self.networks = nn.ModuleDict()
        for name, dim in self.modality_dims.items():
            layers = nn.Sequential(nn.Dropout(self.options.dropout), nn.Linear(width, width))
            self.networks[name] = RowNetwork(layers, LastState(dim, width))
        self.bounds = nn.ModuleDict({name: _Bound(self.sequence_dims["text"], width) for name in self.modality_dims})
        self.projections = nn.ModuleDict({name: nn.Linear(width, max(1, width // 4)) for name in self.modality_dims})
        self.predictors = nn.ModuleDict({name: nn.Linear(self.width, dim) for name, dim in self.vector_widths.items()})
        inner, outer = nn.Linear(sum(self.vector_widths.values()), self.width), nn.Linear(self.width, self.width)
        self.fusion = nn.Sequential(nn.Dropout(self.options.dropout), inner, nn.Tanh(), outer, nn.Tanh())
        self.head = nn.Linear(self.width, 1)
        self.memory_KMP: Tensor
        """The values tanh(V_m x_m) of each utterance and modality; the latest utterances come last."""
        self.polarity_KM: Tensor
        """The side of the label range, 1 or -1; 0 for neither, for a modality that a sample lacks, and at the start."""
        self.register_buffer("memory_KMP", torch.zeros(self.options.memory, len(self.bounds), max(1, width // 4)))
        self.register_buffer("polarity_KM", torch.zeros(self.options.memory, len(self.bounds)))

    def auxiliary(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> Mapping[str, Tensor]:
        """Return the contrastive term, and the two parts of the bound on the information, weighted."""
        vectors, present_UM = self.vectors(vector_UW)
        fused_UD = self._represent(vector_UW)
        contrast = entropy = vector_UW.new_zeros(())
        for layer, vector_UD, present_U in zip(self.predictors.values(), vectors, present_UM.unbind(1), strict=True):
            contrast = contrast + _contrast(layer(fused_UD), vector_UD, present_U)
        polarity_NM = torch.cat([self.polarity_KM, self._polarity(label_U, present_UM)])
        for number, (layer, vector_UH) in enumerate(zip(self.projections.values(), vectors[1:], strict=True)):
            value_NP = torch.cat([self.memory_KMP[:, number], torch.tanh(layer(vector_UH))])
            for sign in (1, -1):
                entropy = entropy + _log_determinant(value_NP, polarity_NM[:, number] == sign) / 4
        return {
            "contrast": self.options.contrast_weight * contrast,
            "likelihood": -self.options.information_weight * self._likelihood(vectors, present_UM),
            "entropy": -self.options.information_weight * entropy,
        }

    def after_step(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> Tensor | None:
        """Put the utterances into the memory; return the loss that fits q to them, None if there is only text."""
        vectors, present_UM = self.vectors(vector_UW)
        new = [torch.tanh(layer(x)) for layer, x in zip(self.projections.values(), vectors[1:], strict=True)]
        if not new:
            return None
        values, sides = torch.stack(new, dim=1).detach(), self._polarity(label_U, present_UM)
        self.memory_KMP.copy_(torch.cat([self.memory_KMP, values])[-self.options.memory :])
        self.polarity_KM.copy_(torch.cat([self.polarity_KM, sides])[-self.options.memory :])
        return -self._likelihood(vectors, present_UM)

    def separate_parameters(self) -> Sequence[nn.Parameter]:
        """Return the parameters of q, and the projections of the entropy, which no loss trains."""
        return [*self.bounds.parameters(), *self.projections.parameters()]

    def _likelihood(self, vectors: Sequence[Tensor], present_UM: Tensor) -> Tensor:
        """Return E log q, the sum over the modalities."""
        bounds = enumerate(self.bounds.values(), start=1)
        means = (mean_of_present(bound(vectors[0], vectors[at]), present_UM[:, at]) for at, bound in bounds)
        return sum(means, start=present_UM.new_zeros(()))

    def _polarity(self, label_U: Tensor, present_UM: Tensor) -> Tensor:
        """Return the side of the label range of each modality but the text, 0 for what a sample lacks."""
        return (label_U.sign() if self.task == "regression" else 2 * label_U - 1).unsqueeze(1) * present_UM[:, 1:]


class _Bound(nn.Module):
    """q of a modality."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.mean, self.log_variance = mapping(width, out, out), mapping(width, out, out)

    def forward(self, text_UD: Tensor, vector_UH: Tensor) -> Tensor:
        """Return log q [U], up to a constant."""
        log_variance_UH = torch.tanh(self.log_variance(text_UD))
        squared_UH: Tensor = (vector_UH - self.mean(text_UD)).square()
        return -(squared_UH / log_variance_UH.exp() + log_variance_UH).sum(-1) / 2


def _contrast(predicted_UD: Tensor, vector_UD: Tensor, present_U: Tensor) -> Tensor:
    """Return N_m among the utterances that have the modality."""
    cosine_UV = nn.functional.normalize(predicted_UD, dim=-1) @ nn.functional.normalize(vector_UD, dim=-1).T
    others_UV = cosine_UV.masked_fill(present_U == 0, torch.finfo(cosine_UV.dtype).min)
    return mean_of_present(others_UV.logsumexp(-1) - cosine_UV.diagonal(), present_U)


def _log_determinant(value_NP: Tensor, side_N: Tensor) -> Tensor:
    """Return log det of the covariance over one side."""
    weight_N1 = side_N.unsqueeze(1).to(value_NP.dtype)
    centred_NP = (value_NP - mean_of_present(value_NP, weight_N1)) * weight_N1
    covariance_PP = centred_NP.T @ centred_NP / weight_N1.sum().clamp_min(1)
    return torch.logdet(covariance_PP + torch.full_like(value_NP[0], _EPSILON).diag())


CARD = ModelCard(
    title="MMIM",
    paper="Improving Multimodal Fusion with Hierarchical Mutual Information Maximization for Multimodal Sentiment "
    "Analysis",
    year=2021,
    venue="EMNLP",
    networks={"regression": InformationMaximisation, "classification": InformationMaximisation},
    needs_text=True,
    options=Options,
    search={
        "width": {"low": 8, "high": 64, "log": True},
        "fusion_width": {"low": 32, "high": 256, "log": True},
        "dropout": {"low": 0.0, "high": 0.5},
        "contrast_weight": {"low": 0.01, "high": 1.0, "log": True},
        "information_weight": {"low": 0.01, "high": 1.0, "log": True},
    },
)
