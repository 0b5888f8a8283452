"""MOAC: order among scores, differences of features, and a neutral embedding as the point of reference.

Mai, Zeng and Hu, 2025. Learning by Comparing: Boosting Multimodal Affective Computing through Ordinal Learning. WWW.

    z = dense([x_m for each m]) - e      y = f(z)      f(z) = relu(V z + c) w + b
    loss = error of y + w_ordinal L_lo + w_distribution L_reg + w_difference L_fd
    L_lo = mean of max(0, margin - (y_i - y_j)) over the pairs with label_i > label_j
    L_reg = (mean of y - mean of labels)^2 + (deviation of y - deviation of labels)^2
    L_fd = mean of |f(z_i - z_j) - (label_i - label_j)| over all i and j, i != j

x_text is the text vector, x_m of audio and vision the last state of an LSTM, and e, learned, the neutral embedding. The
terms are those of a group of pairs, which has each utterance once.

Readings: the paper's equations were not seen. Its abstract and the GRCF paper name the parts: the loss that asks
whether i lies above j, and demands the same of every pair; the regularisation of the distribution of scores; the
features' differences as new training samples; and the prediction of the difference from a neutral reference. Their
forms, widths and weights are chosen here, so its figures say little about the published model. L_reg is GRCF's (eq.
10) without a margin. A modality that a sample lacks gives x_m = 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from grcf_ray.losses.regression import distribution_loss
from grcf_ray.model.base import ModelSetup
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import LastState, dense, mapping
from grcf_ray.model.vectors import VectorModel, width_options
from grcf_ray.settings import NonNegative, PositiveCount, Probability


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of MOAC."""

    vision_width: PositiveCount = 32
    """Width of vision's LSTM."""
    audio_width: PositiveCount = 16
    """Width of audio's LSTM."""
    fusion_width: PositiveCount = 128
    """Width of the fused features, the neutral embedding, and f."""
    margin: NonNegative = 0.1
    """How far the score of the higher label must lie above the other, in label units."""
    ordinal_weight: NonNegative = 0.5
    """Weight of the order among scores."""
    distribution_weight: NonNegative = 0.1
    """Weight of the regularisation of the scores' distribution."""
    difference_weight: NonNegative = 0.5
    """Weight of the error of the features' differences."""
    dropout: Probability = 0.1
    """Dropout rate on the input of the fusion."""


def ordinal_loss(score_U: Tensor, label_U: Tensor, margin: float) -> Tensor:
    """Return L_lo of a group's scores: a scalar, 0 if all labels are equal."""
    higher_UU = label_U.unsqueeze(1) > label_U
    hinge_UU = (margin - (score_U.unsqueeze(1) - score_U)).clamp_min(0) * higher_UU
    return hinge_UU.sum() / higher_UU.sum().clamp_min(1)


class OrdinalFusion(VectorModel):
    """The network of the module's docstring. z_final is z. The vectors are x_m."""

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        options: Options = setup.options
        own = width_options(options, self.modality_dims)
        self.vector_widths = self.sequence_dims | own
        self.networks = nn.ModuleDict({name: LastState(dim, own[name]) for name, dim in self.modality_dims.items()})
        self.options, self.width = options, options.fusion_width
        self.neutral = nn.Parameter(torch.zeros(self.width))
        self.fusion = dense(sum(self.vector_widths.values()), self.width, 1, options.dropout)
        self.head = mapping(self.width, self.width, 1)

    def auxiliary(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> Mapping[str, Tensor]:
        """Return the weighted terms of the loss behind the error of y."""
        options, count = self.options, len(label_U)
        state_UD = self.represent(vector_UW)
        score_U = self.decide(state_UD)
        label_UU = label_U.unsqueeze(1) - label_U
        error_UU = (self.decide(state_UD.unsqueeze(1) - state_UD) - label_UU).abs()
        # f(0) has no part in it: an utterance is not paired with itself.
        difference = error_UU.fill_diagonal_(0).sum() / max(1, count * (count - 1))
        return {
            "ordinal": options.ordinal_weight * ordinal_loss(score_U, label_U, options.margin),
            "distribution": options.distribution_weight * distribution_loss(score_U, label_U, 0.0),
            "difference": options.difference_weight * difference,
        }

    def _represent(self, vector_SW: Tensor) -> Tensor:
        return super()._represent(vector_SW) - self.neutral


CARD = ModelCard(
    title="MOAC",
    paper="Learning by Comparing: Boosting Multimodal Affective Computing through Ordinal Learning",
    year=2025,
    venue="WWW",
    networks={"regression": OrdinalFusion},
    source="its abstract and the GRCF paper, which name its parts; their forms are chosen here",
    options=Options,
    search={
        "fusion_width": {"low": 32, "high": 256, "log": True},
        "margin": {"low": 0.01, "high": 1.0, "log": True},
        "ordinal_weight": {"low": 0.0, "high": 1.0},
        "distribution_weight": {"low": 0.0, "high": 1.0},
        "difference_weight": {"low": 0.0, "high": 1.0},
        "dropout": {"low": 0.0, "high": 0.5},
    },
)
