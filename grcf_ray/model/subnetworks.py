"""Layers that several published models share: networks for rows, Gaussians, memories and Transformers, shared steps.

B utterances; L rows or subwords; R rows to be brought to T steps; A the width of a row; H of a hidden layer; M of a
memory. Masks are true for real rows, which lie before the padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def mapping(width: int, hidden: int, out: int, dropout: float = 0.0) -> nn.Sequential:
    """Return a network of one hidden layer of ReLU units, with dropout on these."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, out))


class RowNetwork(nn.Module):
    """Layers on a summary of the rows: a module or function of rows and mask, by default the mean."""

    def __init__(self, layers: nn.Module, summary: Callable[[Tensor, Tensor], Tensor] = masked_mean) -> None:
        super().__init__()
        self.summary, self.layers = summary, layers

    def forward(self, row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
        """Return [B, H]; of no meaning for a sample without rows."""
        return cast(Tensor, self.layers(self.summary(row_BLA, mask_BL)))


class LastState(nn.Module):
    """The output of an LSTM at the last real row."""

    def __init__(self, width: int, hidden: int, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True, dropout=dropout)

    def forward(self, row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
        """Return [B, H]; zeros for a sample without rows."""
        state_BLH, _ = self.lstm(row_BLA)
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


class MemoryNetwork(nn.Module):
    """The memory fusion network of Zadeh et al. (2018): LSTMs, attention to their memories, and a gated memory.

    dims, widths: as in `StepLstms`. hidden: the width of the hidden layer of attention and gates.
    """

    def __init__(
        self, dims: Mapping[str, int], widths: Mapping[str, int], memory: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        total = sum(widths.values())
        self.lstms = StepLstms(dims, widths)
        self.attention = mapping(2 * total, hidden, 2 * total, dropout)
        self.memory = GatedMemory(2 * total, hidden, memory, dropout)
        self.width = total + memory
        """Width of the result."""

    def forward(self, sequences: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Return the last outputs of the LSTMs, and the memory after the last step: [B, width]."""
        output_BH, memories, mask_BT = self.lstms(sequences)
        memory_BTC = torch.cat(memories, dim=-1)
        attended_BTC = memory_BTC * self.attention(memory_BTC).softmax(-1)
        return torch.cat([output_BH, self.memory(attended_BTC, mask_BT)], dim=-1)


class Convolution(nn.Module):
    """A temporal convolution without bias that keeps the number of rows; an odd `kernel`."""

    def __init__(self, dim: int, width: int, kernel: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(dim, width, kernel, padding="same", bias=False)

    def forward(self, row_BLA: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the convolved rows [B, L, H]; beyond the real rows lie zeros."""
        real_BLA = row_BLA.masked_fill(~mask_BL.unsqueeze(2), 0)
        convolved_BLH: Tensor = self.convolution(real_BLA.transpose(1, 2)).transpose(1, 2)
        return convolved_BLH


def positions(row_BLA: Tensor) -> Tensor:
    """Return the sinusoidal positions [L, A]: sin(p / 10000^(2j/A)) in column 2j, the cosine in column 2j + 1."""
    place_L1 = torch.arange(row_BLA.shape[1], device=row_BLA.device, dtype=row_BLA.dtype).unsqueeze(1)
    column_A = torch.arange(row_BLA.shape[2], device=row_BLA.device)
    power_A = (column_A // 2 * 2).to(row_BLA.dtype) / len(column_A)
    angle_LA = place_L1 / torch.pow(10000.0, power_A)
    return torch.where(column_A % 2 == 0, angle_LA.sin(), angle_LA.cos())


class TransformerLayer(nn.Module):
    """Attention to other rows or to the same ones, then a network for each row; both read normalised rows."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.network = mapping(width, 4 * width, width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, row_BLA: Tensor, other_BRA: Tensor, mask_BR: Tensor) -> Tensor:
        """Return the new rows [B, L, A]. other_BRA: the rows to attend to, with their mask."""
        key_BRA, present_B1 = self.norm(other_BRA), mask_BR.any(1, keepdim=True)
        # A sample without rows attends to its padding, so that no softmax is NaN; the result is left out.
        hidden_BR = ~mask_BR & present_B1
        seen_BLA, _ = self.attention(
            self.norm(row_BLA), key_BRA, key_BRA, key_padding_mask=hidden_BR, need_weights=False
        )
        row_BLA = row_BLA + self.dropout(seen_BLA) * present_B1.unsqueeze(2)
        new_BLA: Tensor = row_BLA + self.dropout(self.network(self.last_norm(row_BLA)))
        return new_BLA


class Transformer(nn.Module):
    """Layers that attend to the rows of another modality, or without them to their own; then a norm."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, row_BLA: Tensor, mask_BR: Tensor, other_BRA: Tensor | None = None) -> Tensor:
        """Return the new rows [B, L, A]. mask_BR: that of the rows to attend to."""
        for layer in self.layers:
            row_BLA = layer(row_BLA, row_BLA if other_BRA is None else other_BRA, mask_BR)
        normed_BLA: Tensor = self.norm(row_BLA)
        return normed_BLA


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
