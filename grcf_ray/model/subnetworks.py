"""Parts that several published models share: a network per modality, and rows brought to the steps of another.

B utterances; L rows or subwords; R rows to be brought to T steps; A the width of a row; H of a hidden layer. Masks are
true for real rows, which lie before the padding.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from grcf_ray.model.pooling import masked_mean


def dense(width: int, hidden: int, layers: int, dropout: float) -> nn.Sequential:
    """Return dropout on the input, then layers of `hidden` ReLU units."""
    parts: list[nn.Module] = [nn.Dropout(dropout)]
    for number in range(layers):
        parts += [nn.Linear(hidden if number else width, hidden), nn.ReLU()]
    return nn.Sequential(*parts)


class RowNetwork(nn.Module):
    """Dense layers on the mean of the rows."""

    def __init__(self, width: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = dense(width, hidden, layers, dropout)

    def forward(self, row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
        """Return [B, H]; zeros for a sample without rows."""
        return cast(Tensor, self.layers(masked_mean(row_BLA, mask_BL))) * mask_BL.any(1, keepdim=True)


class SequenceNetwork(nn.Module):
    """Dense layers on the last state of an LSTM."""

    def __init__(self, width: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.layers = dense(hidden, hidden, layers, dropout)

    def forward(self, row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
        """Return [B, H]; zeros for a sample without rows."""
        return cast(Tensor, self.layers(last_state(self.lstm, row_BLA, mask_BL))) * mask_BL.any(1, keepdim=True)


def last_state(lstm: nn.LSTM, row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
    """Return an LSTM's output [B, H] at the last real row; zeros for a sample without rows."""
    state_BLH, _ = lstm(row_BLA)
    return last_row(state_BLH, mask_BL)


def last_row(row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the last real row [B, A]; zeros for a sample without rows."""
    last_B = (mask_BL.sum(1) - 1).clamp_min(0)
    return row_BLA[torch.arange(len(row_BLA), device=row_BLA.device), last_B] * mask_BL.any(1, keepdim=True)


def gaussian_sample(mean: Tensor, deviation: Tensor, noise: bool) -> Tensor:
    """Return mean + deviation e with e ~ N(0, 1), differentiable in both; the mean without noise."""
    return mean + deviation * torch.randn_like(mean) if noise else mean


def gaussian_divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """Return KL(N(mean, deviation^2) || N(0, 1)) of each element."""
    return (mean.square() + deviation.square() - 1) / 2 - deviation.log()


def equal_shares(row_BRA: Tensor, mask_BR: Tensor, mask_BT: Tensor) -> Tensor:
    """Return rows brought to the steps of another sequence, [B, T, A]: step t of n is the mean of its n-th of the time.

    A row that lies in two steps counts in each by its share. Steps of padding, and samples without rows, are zero.
    """
    step_T1 = torch.arange(mask_BT.shape[1], device=mask_BT.device).unsqueeze(1)
    row_R = torch.arange(mask_BR.shape[1], device=mask_BR.device)
    steps_B11, rows_B11 = mask_BT.sum(1)[:, None, None], mask_BR.sum(1)[:, None, None]
    # In units of 1 / (steps x rows) of the whole time, step and row begin and end at whole numbers.
    begin_BTR = torch.maximum(step_T1 * rows_B11, row_R * steps_B11)
    end_BTR = torch.minimum((step_T1 + 1) * rows_B11, (row_R + 1) * steps_B11)
    share_BTR = (end_BTR - begin_BTR).clamp_min(0).to(row_BRA.dtype) / rows_B11.clamp_min(1)
    return (share_BTR * mask_BT.unsqueeze(2) * mask_BR.unsqueeze(1)) @ row_BRA
