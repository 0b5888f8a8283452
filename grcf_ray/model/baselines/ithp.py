"""ITHP: a chain of bottlenecks on the text; each keeps the information that one more modality shares.

Xiao, Liu, Gupta, Cao, Li, Li, Fang, Cheng and Bogdan, 2024. Neuro-Inspired Information-Theoretic Hierarchical
Perception for Multimodal Learning. ICLR.

    b_0 ~ N(m_0, s_0^2) = encoder_0(x_text)     b_1 ~ N(m_1, s_1^2) = encoder_1(b_0)
    L_0 = KL(N(m_0, s_0^2) || N(0, 1)) + beta  |detector_0(b_0) - x_audio|^2
    L_1 = KL(N(m_1, s_1^2) || N(0, 1)) + gamma |detector_1(b_1) - x_vision|^2
    z = LayerNorm(x_text + V b_1)               y = w . tanh(U z) + b
    loss = error of y + 2 / (beta + gamma) (L_0 + lambda L_1)

The score reads audio and vision through the weights that they trained, not through their rows.

Readings: the equations are those of the authors' code; we have not seen the paper's own. Each subword has its own b_0
and b_1; z is the vector that `model.text_vector` picks from the fused states (in the paper the first). Audio and vision
are brought to the subwords by equal shares. The detectors end in a sigmoid; the authors' code scales a batch's rows to
0..1 for them, here a sigmoid of the standardised rows does, so that no utterance depends on others. L_0 and L_1 are
means over widths, real subwords and utterances, and a modality that a sample lacks has no error. Noise is drawn once
per utterance in training; scores use the means. A modality that the data lack has no bottleneck. The defaults are those
of the code for CMU-MOSI. The error of y is the stage's, not the squared error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.model.base import ModelSetup, MultimodalModel
from grcf_ray.model.card import ModelCard
from grcf_ray.model.pooling import masked_mean
from grcf_ray.model.subnetworks import equal_shares, gaussian_divergence, gaussian_sample, mapping
from grcf_ray.settings import NonNegative, Positive, PositiveCount, Probability


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ITHP."""

    audio_width: PositiveCount = 128
    """Width of b_0, which detects audio."""
    vision_width: PositiveCount = 64
    """Width of b_1, which detects vision."""
    hidden_width: PositiveCount = 256
    """Width of the hidden layer of encoders and detectors."""
    audio_weight: Positive = 8.0
    """Weight beta of the error of audio."""
    vision_weight: Positive = 32.0
    """Weight gamma of the error of vision."""
    second_weight: NonNegative = 0.3
    """Weight lambda of the second bottleneck's loss."""
    hidden_dropout: Probability = 0.3
    """Dropout rate on the hidden layers of encoders and detectors."""
    dropout: Probability = 0.5
    """Dropout rate on z."""


class Bottleneck(nn.Module):
    """An encoder of one step of the chain, and the detector of its modality."""

    def __init__(self, width: int, kept: int, dim: int, options: Options, weight: float) -> None:
        super().__init__()
        hidden, dropout = options.hidden_width, options.hidden_dropout
        self.encoder = mapping(width, hidden, 2 * kept, dropout)
        self.detector = mapping(kept, hidden, dim, dropout)
        self.weight = weight

    def forward(self, state_BLH: Tensor, mask_BL: Tensor, row_BLA: Tensor, seen_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states b [B, L, K], and the loss of each utterance [B].

        mask_BL: real subwords. row_BLA: the modality at each subword; seen_B: whether the utterance has it.
        """
        mean_BLK, log_variance_BLK = self.encoder(state_BLH).chunk(2, dim=-1)
        deviation_BLK = (log_variance_BLK / 2).exp()
        kept_BLK = gaussian_sample(mean_BLK, deviation_BLK, self.training)
        error_BLA = (torch.sigmoid(self.detector(kept_BLK)) - torch.sigmoid(row_BLA)).square()
        divergence_B = masked_mean(gaussian_divergence(mean_BLK, deviation_BLK), mask_BL).mean(-1)
        return kept_BLK, divergence_B + self.weight * masked_mean(error_BLA, mask_BL).mean(-1) * seen_B


class HierarchicalPerception(MultimodalModel):
    """The network of the module's docstring. z_final is tanh(U z).

    Its vectors are z, and the loss of the utterance's bottlenecks behind it: W = D + 1.
    """

    reads_states = True

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        options: Options = setup.options
        self.second_weight, self.scale = options.second_weight, 2 / (options.audio_weight + options.vision_weight)
        width = self.width
        self.chain: list[str] = []
        for name, kept, weight in (
            ("audio", options.audio_width, options.audio_weight),
            ("vision", options.vision_width, options.vision_weight),
        ):
            if name in self.modality_dims:
                self.add_module(name, Bottleneck(width, kept, self.modality_dims[name], options, weight))
                self.chain.append(name)
                width = kept
        self.expand = nn.Linear(width, self.width)
        self.norm = nn.LayerNorm(self.width)
        self.dropout = nn.Dropout(options.dropout)
        self.pooler = nn.Linear(self.width, self.width)
        self.head = nn.Linear(self.width, 1)

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        """Return z and the loss of the bottlenecks."""
        assert text is not None and batch.mask_BL is not None and self.text_encoder is not None
        state_BLH, loss_B, weight = text, text.new_zeros(len(text)), 1.0
        for name in self.chain:
            rows, mask = self.rows(batch, name)
            row_BLA = equal_shares(rows, mask, batch.mask_BL)
            state_BLH, own_B = self.get_submodule(name)(state_BLH, batch.mask_BL, row_BLA, mask.any(1))
            loss_B, weight = loss_B + weight * own_B, self.second_weight
        fused_BLD = self.norm(text + self.expand(state_BLH))
        return torch.cat([self.text_encoder.pool(fused_BLD, batch.mask_BL), loss_B.unsqueeze(1)], dim=1)

    def auxiliary(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> Mapping[str, Tensor]:
        """Return the weighted loss of the bottlenecks."""
        return {"bottleneck": self.scale * vector_UW[:, -1].mean()}

    def _represent(self, vector_SW: Tensor) -> Tensor:
        return torch.tanh(self.pooler(self.dropout(vector_SW[:, :-1])))


CARD = ModelCard(
    title="ITHP",
    paper="Neuro-Inspired Information-Theoretic Hierarchical Perception for Multimodal Learning",
    year=2024,
    venue="ICLR",
    networks={"regression": HierarchicalPerception, "classification": HierarchicalPerception},
    needs_text=True,
    published="184,883,706 on CMU-MOSI with DeBERTa-v3-base, audio 74 and vision 47 wide (counted in GRCF's Table 12)",
    source="its authors' code",
    options=Options,
    search={
        "audio_width": {"low": 32, "high": 256, "log": True},
        "vision_width": {"low": 16, "high": 128, "log": True},
        "audio_weight": {"low": 1.0, "high": 64.0, "log": True},
        "vision_weight": {"low": 1.0, "high": 64.0, "log": True},
        "second_weight": {"low": 0.1, "high": 1.0, "log": True},
        "dropout": {"low": 0.0, "high": 0.6},
    },
)
