"""Send the input of a training step to the device, in one transfer for each type of number.

B utterances of a micro-batch; U of a step; L the longest sequence of a micro-batch.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grcf_ray.data.batches import Batch, collate, cut
from grcf_ray.data.features import Features, Ragged, rounded_up

_ALIGNED = 16
"""Each tensor starts at a multiple of this many elements, as vectorised kernels want."""


class Feed:
    """The training split as input for a model on a device.

    resident: keep the whole split on the device; a step then sends the places of its utterances only. dtype: of the
    model's floating-point input.
    """

    def __init__(self, features: Features, device: torch.device, dtype: torch.dtype, *, resident: bool) -> None:
        self._features, self._split = features, features.train
        self._device, self._dtype = device, dtype
        self._values: dict[str, Tensor] = {}
        if resident:
            split, pad = self._split, features.pad_token_id
            if split.vector_ND is not None:
                self._values["vector"] = self._kept(split.vector_ND)
            # The last row is padding.
            for name, sequences in self._sequences().items():
                shape = (1, *sequences.values.shape[1:])
                fill = np.full(shape, pad if name == "token" else 0, dtype=sequences.values.dtype)
                self._values[name] = self._kept(np.concatenate([sequences.values, fill]))

    def send(
        self, order_U: NDArray[np.int64], token_budget: int, arrays: Mapping[str, NDArray[Any]]
    ) -> tuple[list[Batch], dict[str, Tensor]]:
        """Return the micro-batches of a step and further arrays, on the device; nothing waits for the copies.

        order_U, token_budget: as for `micro_batches`. Arrays keep their type.
        """
        spans = cut(self._features, self._split, order_U, token_budget, device=self._device)
        given: dict[Any, Tensor] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self._values:
            for place, index_B in enumerate(spans):
                given[place, "index"] = torch.from_numpy(index_B)
                for name, sequences in self._sequences().items():
                    given[place, name, "start"] = torch.from_numpy(sequences.offsets[index_B])
                    given[place, name, "length"] = torch.from_numpy(sequences.lengths_of(index_B))
            sent = self._sent(given)
            batches = [self._gathered(place, index_B, sent) for place, index_B in enumerate(spans)]
        else:
            hosted = [collate(self._features, self._split, index_B) for index_B in spans]
            for place, batch in enumerate(hosted):
                given |= {(place, name): tensor for name, tensor in batch.tensors().items()}
            sent = self._sent(given)
            batches = [_replaced(batch, place, sent) for place, batch in enumerate(hosted)]
        return batches, {name: sent[name] for name in arrays}

    def _sequences(self) -> dict[str, Ragged]:
        """Return the split's sequences that the model reads, by name."""
        split = self._split
        text = (
            {} if split.vector_ND is not None else {"hidden": split.hidden} if split.hidden else {"token": split.tokens}
        )
        named = {**text, "audio": split.audio, "vision": split.vision}
        return {name: sequences for name, sequences in named.items() if sequences is not None}

    def _kept(self, values: NDArray[Any]) -> Tensor:
        if not np.issubdtype(values.dtype, np.floating):
            return torch.from_numpy(values.astype(np.int64)).to(self._device)
        return torch.from_numpy(values.copy()).to(self._device, self._dtype)

    def _gathered(self, place: int, index_B: NDArray[np.int64], sent: Mapping[Any, Tensor]) -> Batch:
        """Return what `collate` returns, from the values on the device."""
        padded: dict[str, tuple[Tensor, Tensor]] = {}
        full = True
        for name, sequences in self._sequences().items():
            length_B, values = sequences.lengths_of(index_B), self._values[name]
            longest = rounded_up(max(1, int(length_B.max())), self._features.length_multiple)
            step_L = torch.arange(longest, device=self._device)
            mask_BL = step_L < sent[place, name, "length"].unsqueeze(1)
            row_BL = (sent[place, name, "start"].unsqueeze(1) + step_L).masked_fill(~mask_BL, len(values) - 1)
            padded[name] = values[row_BL], mask_BL
            if name in ("token", "hidden"):
                full = len(step_L) == int(length_B.min())
        none = (None, None)
        text = padded.get("token") or padded.get("hidden") or none
        return Batch(
            padded.get("token", none)[0],
            text[1],
            padded.get("hidden", none)[0],
            self._values["vector"][sent[place, "index"]] if "vector" in self._values else None,
            *padded.get("audio", none),
            *padded.get("vision", none),
            full=full,
        )

    def _sent(self, given: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
        """Copy tensors to the device; those of single precision get the model's type."""
        kinds = {key: self._dtype if tensor.dtype == torch.float32 else tensor.dtype for key, tensor in given.items()}
        if self._device.type == "cpu":
            return {key: tensor.to(kinds[key]) for key, tensor in given.items()}
        keys_of: dict[torch.dtype, list[Any]] = defaultdict(list)
        for key, kind in kinds.items():
            keys_of[kind].append(key)
        sent: dict[Any, Tensor] = {}
        for kind, keys in keys_of.items():
            parts = _packed([given[key] for key in keys], kind, self._device)
            sent |= dict(zip(keys, parts, strict=True))
        return sent


def _replaced(batch: Batch, place: int, sent: Mapping[Any, Tensor]) -> Batch:
    changes: dict[str, Any] = {name: sent[place, name] for name in batch.tensors()}
    return dataclasses.replace(batch, **changes)


def _packed(tensors: Sequence[Tensor], kind: torch.dtype, device: torch.device) -> list[Tensor]:
    """Copy tensors to a device in one transfer."""
    rooms = [-(-tensor.numel() // _ALIGNED) * _ALIGNED for tensor in tensors]
    flat = torch.empty(sum(rooms), dtype=kind, pin_memory=device.type == "cuda")
    for part, tensor in zip(torch.split(flat, rooms), tensors, strict=True):
        part[: tensor.numel()].copy_(tensor.reshape(-1))
    parts = torch.split(flat.to(device, non_blocking=True), rooms)
    return [part[: tensor.numel()].view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
