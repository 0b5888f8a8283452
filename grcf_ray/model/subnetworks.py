"""Parts that several published models share: a network per modality, and rows brought to the steps of another.

B utterances; L rows or subwords; R rows to be brought to T steps; A the width of a row; H of a hidden layer; M of a
memory. Masks are true for real rows, which lie before the padding.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def mapping(width: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    """Return a network of one hidden layer: `dense`, then a linear layer."""
    return nn.Sequential(*dense(width, hidden, 1, dropout), nn.Linear(hidden, out))


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


class SequenceProjection(nn.Module):
    """A linear layer on the last state of an LSTM, with dropout in between; both have the same width."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.dropout, self.layer = nn.Dropout(dropout), nn.Linear(hidden, hidden)

    def forward(self, row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
        """Return [B, H]; zeros for a sample without rows."""
        state_BH = self.dropout(last_state(self.lstm, row_BLA, mask_BL))
        return cast(Tensor, self.layer(state_BH)) * mask_BL.any(1, keepdim=True)


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


class StepLstms(nn.Module):
    """An LSTM for each modality, all on the same steps: the system of LSTMs of Zadeh et al. (2018).

    dims, widths: the width of the rows, and of the LSTM, by modality.
    """

    def __init__(self, dims: Mapping[str, int], widths: Mapping[str, int]) -> None:
        super().__init__()
        self.cells = nn.ModuleDict({name: nn.LSTMCell(dim, widths[name]) for name, dim in dims.items()})

    def forward(self, sequences: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the last outputs of all LSTMs [B, sum of H], the memories of each, and the mask [B, T] of the steps.

        The memories [B, T, 2 H] are those of each step and of the step before it. A modality that a sample lacks has
        outputs and memories of zero.
        """
        rows, mask_BT = on_shared_steps(sequences)
        outputs, memories = [], []
        for name, cell in self.cells.items():
            states = [cell(rows[name][:, 0])]
            for row_BA in rows[name].unbind(1)[1:]:
                states.append(cell(row_BA, states[-1]))
            # torch's LSTM over all steps returns the memory of the last one only.
            present_B11 = sequences[name][1].any(1)[:, None, None]
            output_BTH, memory_BTH = (torch.stack(part, dim=1) * present_B11 for part in zip(*states, strict=True))
            before_BTH = nn.functional.pad(memory_BTH, (0, 0, 1, 0))[:, :-1]
            outputs.append(last_row(output_BTH, mask_BT))
            memories.append(torch.cat([before_BTH, memory_BTH], dim=-1))
        return torch.cat(outputs, dim=-1), memories, mask_BT


class GatedMemory(nn.Module):
    """The multi-view gated memory of Zadeh et al. (2018), whose gates and proposals are networks of one hidden layer.

    u_t = sigmoid(retain(x_t)) * u_t-1 + sigmoid(update(x_t)) * tanh(propose(x_t)), u_0 = 0
    """

    def __init__(self, width: int, hidden: int, memory: int, dropout: float) -> None:
        super().__init__()
        self.retain = mapping(width, hidden, memory, dropout)
        self.update = mapping(width, hidden, memory, dropout)
        self.propose = mapping(width, hidden, memory, dropout)

    def forward(self, row_BTA: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the memory after the last step, [B, M]."""
        retained_BTM = torch.sigmoid(self.retain(row_BTA))
        added_BTM = torch.sigmoid(self.update(row_BTA)) * torch.tanh(self.propose(row_BTA))
        memories = [added_BTM[:, 0]]
        for retained_BM, added_BM in zip(retained_BTM.unbind(1)[1:], added_BTM.unbind(1)[1:], strict=True):
            memories.append(retained_BM * memories[-1] + added_BM)
        return last_row(torch.stack(memories, dim=1), mask_BT)


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


def on_shared_steps(sequences: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the rows of each modality brought to the same steps, [B, T, A], and the mask [B, T] of the steps.

    The steps are the subwords. Without text, an utterance has as many as its longest modality has rows.
    sequences: those of `MultimodalModel.sequences`.
    """
    if "text" in sequences:
        mask_BT = sequences["text"][1]
    else:
        masks = [mask for _, mask in sequences.values()]
        longest = max(mask.shape[1] for mask in masks)
        mask_BT = torch.stack([nn.functional.pad(mask, (0, longest - mask.shape[1])) for mask in masks]).any(0)
    rows = {
        name: row if mask is mask_BT else equal_shares(row, mask, mask_BT) for name, (row, mask) in sequences.items()
    }
    return rows, mask_BT
