"""Self-MM: each modality also learns a label of its own, which the training makes from the annotated one.

Yu, Xu, Yuan and Wu, 2021. Learning Modality-Specific Representations with Self-Supervised Multi-Task Learning for
Multimodal Sentiment Analysis. AAAI.

    F_text: the text vector      F_s = W_s LSTM_s(x_s)  (vision, audio)
    F*_m = relu(W_m [F_text; F_vision; F_audio])      y^_m = w_m . F*_m      (multimodal: the score)
    F*_s = relu(W_s F_s)                              y^_s = w_s . F*_s      (unimodal, s = text, vision, audio)
    loss = |y^_m - y_m| + sum_s tanh(|y_s - y_m|) |y^_s - y_s|, y_s the label of the modality

The labels begin as y_s = y_m. From the second epoch i on, after each step, for its utterances:

    D_i+ = |F*_i - C_i+|^2 / sqrt(d_i), C_i+ the mean of F*_i over training utterances with y_i > 0; D_i- for y_i < 0
    a_i = (D_i- - D_i+) / (D_i+ + eps)      (i = m, s)
    new_s = y_m a_s / (2 a_m) + (y_m + a_s - a_m) / 2      y_s <- (i - 1) / (i + 1) y_s + 2 / (i + 1) new_s

Readings: pairs are drawn freely, so an epoch ends when the steps have had as many utterances as the training split
has. As in the authors' code, new_s stays inside the label range, and a_m has eps added. F* of the whole training
split, and the labels, are buffers, which checkpoints hold; F* is computed by the layers after the step, without
dropout. MMSA publishes the widths for CMU-MOSI; it tunes the dropout of each layer to 0 or 0.1, here all share one. A
modality that a sample lacks gives F_s = 0 and no unimodal loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from grcf_ray.model.base import ModelSetup
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import LastState, RowNetwork, dense
from grcf_ray.model.vectors import VectorModel, width_options
from grcf_ray.settings import PositiveCount, Probability

_EPSILON = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of Self-MM."""

    fusion_width: PositiveCount = 128
    """Width of the multimodal representation."""
    text_width: PositiveCount = 32
    """Width of the text's representation."""
    vision_width: PositiveCount = 32
    """Width of the vision's LSTM, vector and representation."""
    audio_width: PositiveCount = 16
    """Width of the audio's LSTM, vector and representation."""
    dropout: Probability = 0.1
    """Dropout rate on the vectors."""


class SelfSupervised(VectorModel):
    """The network of the module's docstring: N training utterances, M modalities, I = 1 + M, R the width of all F*.

    The vectors are F_s. z_final is F*_m.
    """

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        options: Options = setup.options
        widths = width_options(options, self.sequence_dims)
        self.width, self.half_range = options.fusion_width, setup.half_range
        self.vector_widths = {**self.sequence_dims, **{name: widths[name] for name in self.modality_dims}}
        self.star_widths = [self.width, *widths.values()]
        self.networks = nn.ModuleDict(
            {
                name: RowNetwork(nn.Linear(widths[name], widths[name]), LastState(dim, widths[name]))
                for name, dim in self.modality_dims.items()
            }
        )
        self.fusion = dense(sum(self.vector_widths.values()), self.width, 1, options.dropout)
        self.unimodal = nn.ModuleDict(
            {name: dense(dim, widths[name], 1, options.dropout) for name, dim in self.vector_widths.items()}
        )
        self.unimodal_heads = nn.ModuleDict({name: nn.Linear(width, 1) for name, width in widths.items()})
        self.head = nn.Linear(options.fusion_width, 1)
        self.passed: Tensor
        """Number of utterances that the steps have had."""
        self.star_NR: Tensor
        """F* of the last step that had the utterance, the multimodal one first; zeros before."""
        self.label_NI: Tensor
        """The annotated label y_m in each column; 0 before the first step, and for a modality that a sample lacks."""
        self.shift_NI: Tensor
        """y_s - y_m of each modality, and 0 in the first column."""
        self.register_buffer("passed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("star_NR", torch.zeros(setup.n_train, sum(self.star_widths)))
        self.register_buffer("label_NI", torch.zeros(setup.n_train, len(self.star_widths)))
        self.register_buffer("shift_NI", torch.zeros(setup.n_train, len(self.star_widths)))

    def auxiliary(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> Mapping[str, Tensor]:
        """Return the loss of the unimodal scores."""
        vectors, present_UM = self.vectors(vector_UW)
        parts = zip(self.unimodal_heads.values(), self.unimodal.values(), vectors, strict=True)
        score_UM = torch.cat([head(layers(vector_UD)) for head, layers, vector_UD in parts], dim=-1)
        shift_UM = self.shift_NI[utterance_U, 1:]
        error_UM = (score_UM - label_U.unsqueeze(1) - shift_UM).abs() * present_UM
        return {"unimodal": (shift_UM.abs().tanh() * error_UM).sum(1).mean()}

    @torch.no_grad()
    def after_step(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> None:
        """Move the unimodal labels of the step's utterances, and keep their F*."""
        vectors, present_UM = self.vectors(vector_UW)
        parts = zip((self.fusion, *self.unimodal.values()), (torch.cat(vectors, dim=-1), *vectors), strict=True)
        # The first of the layers is the dropout.
        stars = [cast(nn.Sequential, layers)[1:](vector_UD) for layers, vector_UD in parts]
        multimodal_U, *unimodal = (self._ratio(number, star_UD) for number, star_UD in enumerate(stars))
        epoch = 1 + self.passed // max(1, len(self.star_NR))
        rate = torch.where(epoch > 1, 2 / (epoch + 1), 0)
        for number, ratio_U in enumerate(unimodal, start=1):
            product_U = label_U * ratio_U / (2 * (multimodal_U + _EPSILON))
            new_U = (product_U + (label_U + ratio_U - multimodal_U) / 2).clamp(-self.half_range, self.half_range)
            shift_U = self.shift_NI[utterance_U, number]
            moved_U = shift_U + rate * (new_U - label_U - shift_U)
            self.shift_NI[utterance_U, number] = moved_U * present_UM[:, number - 1]
        self.label_NI[utterance_U] = label_U.unsqueeze(1) * nn.functional.pad(present_UM, (1, 0), value=1.0)
        self.star_NR[utterance_U] = torch.cat(stars, dim=-1)
        self.passed += len(utterance_U)

    def _ratio(self, number: int, star_UD: Tensor) -> Tensor:
        """Return a [U], how much nearer F* lies to the positive centre than to the negative one."""
        star_ND = torch.split(self.star_NR, self.star_widths, dim=-1)[number]
        label_N = self.label_NI[:, number] + self.shift_NI[:, number]
        distances = []
        for side_N in (label_N < 0, label_N > 0):
            centre_D = side_N.to(star_ND.dtype) @ star_ND / side_N.sum().clamp_min(1)
            distances.append((star_UD - centre_D).square().sum(-1) / math.sqrt(star_UD.shape[1]))
        negative_U, positive_U = distances
        ratio_U: Tensor = (negative_U - positive_U) / (positive_U + _EPSILON)
        return ratio_U


CARD = ModelCard(
    title="Self-MM",
    paper="Learning Modality-Specific Representations with Self-Supervised Multi-Task Learning for Multimodal "
    "Sentiment Analysis",
    year=2021,
    venue="AAAI",
    networks={"regression": SelfSupervised},
    options=Options,
    search={
        "fusion_width": {"low": 32, "high": 256, "log": True},
        "text_width": {"low": 16, "high": 128, "log": True},
        "vision_width": {"low": 16, "high": 64, "log": True},
        "audio_width": {"low": 8, "high": 64, "log": True},
        "dropout": {"low": 0.0, "high": 0.5},
    },
)
