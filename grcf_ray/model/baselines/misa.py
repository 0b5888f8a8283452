"""MISA: each modality in a space that all share and in one of its own; attention fuses the six vectors.

Hazarika, Zimmermann and Poria, 2020. MISA: Modality-Invariant and -Specific Representations for Multimodal Sentiment
Analysis. ACM MM.

    u_m = norm(relu(W_m f_m))      c_m = sigmoid(W_c u_m)      p_m = sigmoid(W_p,m u_m)
    h = Transformer([p_text, p_vision, p_audio, c_text, c_vision, c_audio])      y = w . relu(W h) + b
    loss = task + alpha L_sim + beta L_diff + gamma L_recon
    L_sim = the mean over pairs of modalities of CMD(c_m, c_n),
            CMD(X, Y) = |E X - E Y| + sum over k = 2..5 of |E (X - E X)^k - E (Y - E Y)^k|
    L_diff = sum_m |C_m^T P_m|^2 + the sum over pairs of |P_m^T P_n|^2, with rows of zero mean and unit length
    L_recon = the mean over modalities of |u_m - D_m (c_m + p_m)|^2 / width

f_text is the mean of the subword states. For the others, f_m joins the end states of two bidirectional LSTMs as wide as
the rows, with a norm in between. The expectations run over the utterances of a group of pairs that have the modality.

Readings: as in the authors' code, the squared norms of L_diff are means over the entries, each modality has a decoder
D_m, and the Transformer is one layer of torch with two heads, 2048 units between its layers and dropout 0.1. The task
loss is that of the stage, where the paper has the squared error. A modality that a sample lacks gives zeros, to which
nothing attends. Weights and widths are the authors' for CMU-MOSI.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from grcf_ray.errors import ConfigError
from grcf_ray.model.base import ModelSetup
from grcf_ray.model.card import ModelCard
from grcf_ray.model.subnetworks import RowNetwork
from grcf_ray.model.vectors import VectorModel, mean_of_present
from grcf_ray.settings import NonNegative, PositiveCount, Probability

_MOMENTS, _HEADS, _BETWEEN, _RATE = 5, 2, 2048, 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of MISA."""

    width: PositiveCount = 128
    """Width of the vectors, an even number."""
    dropout: Probability = 0.5
    """Dropout rate of the layer after the Transformer."""
    similarity_weight: NonNegative = 1.0
    """Weight alpha of the similarity loss."""
    difference_weight: NonNegative = 0.3
    """Weight beta of the difference loss."""
    reconstruction_weight: NonNegative = 1.0
    """Weight gamma of the reconstruction loss."""


class SharedPrivate(VectorModel):
    """The network of the module's docstring, M modalities. z_final is the output of the layer after the Transformer.

    The vectors are u_m. ConfigError if the heads do not divide the width.
    """

    reads_states = True

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        self.options: Options = setup.options
        width = self.options.width
        if width % _HEADS:
            raise ConfigError(f"misa.width = {width} is odd; use an even number")
        self.vector_widths = dict.fromkeys(self.sequence_dims, width)
        self.networks = nn.ModuleDict(
            {m: RowNetwork(_projection(4 * dim, width), _StackedLSTM(dim)) for m, dim in self.modality_dims.items()}
        )
        if self.text_encoder is not None:
            self.networks["text"] = RowNetwork(_projection(self.text_encoder.width, width))
        self.shared = nn.Linear(width, width)
        self.private, self.decoders = (
            nn.ModuleDict({name: nn.Linear(width, width) for name in self.vector_widths}) for _ in range(2)
        )
        self.width = width * len(self.vector_widths)
        self.transformer = nn.TransformerEncoderLayer(width, _HEADS, _BETWEEN, _RATE, batch_first=True)
        fusion = nn.Linear(2 * self.width, self.width)
        self.fusion = nn.Sequential(fusion, nn.Dropout(self.options.dropout), nn.ReLU())
        self.head = nn.Linear(self.width, 1)

    def _represent(self, vector_SW: Tensor) -> Tensor:
        _, shared_SMD, private_SMD, present_SM1 = self._spaces(vector_SW)
        present_ST1 = torch.cat([present_SM1, present_SM1], dim=1)
        absent_ST = present_ST1.squeeze(-1) == 0
        # A sample without any modality would be a softmax over nothing.
        hidden_ST = absent_ST & ~absent_ST.all(1, keepdim=True)
        state_STD = self.transformer(torch.cat([private_SMD, shared_SMD], dim=1), src_key_padding_mask=hidden_ST)
        return cast(Tensor, self.fusion((state_STD * present_ST1).flatten(1)))

    def auxiliary(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> Mapping[str, Tensor]:
        """Return the similarity, difference and reconstruction losses, weighted."""
        u_UMD, shared_UMD, private_UMD, present_UM1 = self._spaces(vector_UW)
        means = mean_of_present(shared_UMD, present_UM1), mean_of_present(private_UMD, present_UM1)
        centred = [(shared_UMD - means[0]) * present_UM1, (private_UMD - means[1]) * present_UM1]
        central = [mean_of_present(centred[0] ** k, present_UM1) for k in range(2, _MOMENTS + 1)]
        moments_KMD = torch.stack([means[0], *central])
        shared, private = (nn.functional.normalize(value, dim=-1) for value in centred)
        count_M1 = present_UM1.sum(0)
        pairs = list(itertools.combinations(range(len(self.vector_widths)), 2))
        similarity = vector_UW.new_zeros(())
        for i, j in pairs:
            distance = torch.linalg.vector_norm(moments_KMD[:, i] - moments_KMD[:, j], dim=-1).sum()
            similarity = similarity + distance * (count_M1[i] * count_M1[j] > 0).squeeze() / len(pairs)
        couples = [*zip(shared.unbind(1), private.unbind(1), strict=True)]
        couples += [(private[:, i], private[:, j]) for i, j in pairs]
        difference = torch.stack([(one_UD.T @ other_UD).square().mean() for one_UD, other_UD in couples]).sum()
        error_UMD = (_each(self.decoders, shared_UMD + private_UMD) - u_UMD).square()
        reconstruction = mean_of_present(error_UMD, present_UM1).mean()
        return {
            "similarity": self.options.similarity_weight * similarity,
            "difference": self.options.difference_weight * difference,
            "reconstruction": self.options.reconstruction_weight * reconstruction,
        }

    def _spaces(self, vector_SW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return u, c and p of the modalities, [S, M, D], and which of them the sample has, [S, M, 1]."""
        vectors, present_SM = self.vectors(vector_SW)
        u_SMD, present_SM1 = torch.stack(vectors, dim=1), present_SM.unsqueeze(-1)
        shared_SMD = torch.sigmoid(self.shared(u_SMD)) * present_SM1
        private_SMD = torch.sigmoid(_each(self.private, u_SMD)) * present_SM1
        return u_SMD, shared_SMD, private_SMD, present_SM1


class _StackedLSTM(nn.Module):
    """The end states of two bidirectional LSTMs, with a norm in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(2))
        self.norm = nn.LayerNorm(2 * width)
        self.second = nn.ModuleList(nn.LSTM(2 * width, width, batch_first=True) for _ in range(2))

    def forward(self, row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
        """Return [B, 4 A]; of no meaning for a sample without rows."""
        state_BLH, first_BH = _both_ways(self.first, row_BLA, mask_BL)
        return torch.cat([first_BH, _both_ways(self.second, self.norm(state_BLH), mask_BL)[1]], dim=-1)


def _both_ways(lstms: nn.ModuleList, row_BLA: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states [B, L, 2 H] of a forward and a backward LSTM, and their last states [B, 2 H]."""
    forth_BLH, _ = lstms[0](row_BLA)
    back_BLH, _ = lstms[1](_reversed(row_BLA, mask_BL))
    states_BLH = torch.cat([forth_BLH, _reversed(back_BLH, mask_BL)], dim=-1)
    return states_BLH, torch.cat([_reversed(forth_BLH, mask_BL)[:, 0], _reversed(back_BLH, mask_BL)[:, 0]], dim=-1)


def _reversed(row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the real rows in reverse order. Packed sequences would wait for a GPU to send their lengths."""
    step_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    order_BL = torch.where(mask_BL, mask_BL.sum(1, keepdim=True) - 1 - step_L, step_L)
    return row_BLA[torch.arange(len(row_BLA), device=row_BLA.device).unsqueeze(1), order_BL]


def _projection(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out), nn.ReLU(), nn.LayerNorm(out))


def _each(layers: nn.ModuleDict, value_SMD: Tensor) -> Tensor:
    """Return the results [S, M, D] of each modality's own layer."""
    return torch.stack([layer(v) for layer, v in zip(layers.values(), value_SMD.unbind(1), strict=True)], dim=1)


CARD = ModelCard(
    title="MISA",
    paper="MISA: Modality-Invariant and -Specific Representations for Multimodal Sentiment Analysis",
    year=2020,
    venue="ACM MM",
    networks={"regression": SharedPrivate, "classification": SharedPrivate},
    options=Options,
    search={
        "width": {"choices": [64, 128, 256]},
        "dropout": {"low": 0.0, "high": 0.6},
        "similarity_weight": {"low": 0.1, "high": 1.0, "log": True},
        "difference_weight": {"low": 0.03, "high": 1.0, "log": True},
        "reconstruction_weight": {"low": 0.1, "high": 1.0, "log": True},
    },
)
