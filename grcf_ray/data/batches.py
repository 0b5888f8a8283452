"""Padded tensors from ragged features, in micro-batches of utterances of like length.

B utterances of a micro-batch; L their longest text; A, V widths of audio and vision rows; D of the text encoder.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grcf_ray.data.features import Features, Ragged, SplitFeatures

__all__ = ["Batch", "collate", "length_sorted", "micro_batches"]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Utterances as the model takes them; absent modalities are None."""

    token_BL: Tensor | None
    """Subword ids; None where the frozen layers' output stands in for them."""
    mask_BL: Tensor | None
    hidden_BLD: Tensor | None
    vector_BD: Tensor | None
    audio_BLA: Tensor | None
    audio_mask_BL: Tensor | None
    vision_BLV: Tensor | None
    vision_mask_BL: Tensor | None

    @property
    def tokens(self) -> int:
        """Subwords that the text encoder takes, padding included; 0 where it has no layer to run."""
        return 0 if self.mask_BL is None else self.mask_BL.numel()

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
        """The same batch on a device, its floating-point values of the given type."""

        def moved(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            return value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)

        return Batch(*(moved(getattr(self, field.name)) for field in dataclasses.fields(self)))


def length_sorted(split: SplitFeatures, index_U: NDArray[np.int64]) -> NDArray[np.int64]:
    """The utterances by rising text length, ties by their place in the split."""
    return index_U[np.argsort(split.tokens.lengths[index_U], kind="stable")]


def micro_batches(
    features: Features, split: SplitFeatures, index_U: NDArray[np.int64], token_budget: int
) -> list[Batch]:
    """The utterances, in the order given, in batches of at most `token_budget` padded subwords each."""
    length_U = split.tokens.lengths[index_U]
    batches = []
    start = 0
    while start < len(index_U):
        stop, longest = start + 1, int(length_U[start])
        while stop < len(index_U):
            longest = max(longest, int(length_U[stop]))
            if longest * (stop + 1 - start) > token_budget:
                break
            stop += 1
        batches.append(collate(features, split, index_U[start:stop]))
        start = stop
    return batches


def collate(features: Features, split: SplitFeatures, index_B: NDArray[np.int64]) -> Batch:
    """The chosen utterances of a split as padded tensors."""
    token_BL = mask_BL = hidden_BLD = vector_BD = None
    if split.vector_ND is not None:
        vector_BD = torch.from_numpy(split.vector_ND[index_B])
    elif split.hidden is not None:
        hidden_BLD, mask_BL = _tensors(split.hidden, index_B)
    else:
        token_BL, mask_BL = _tensors(split.tokens, index_B, features.pad_token_id)
        assert token_BL is not None
        token_BL = token_BL.long()
    audio_BLA, audio_mask_BL = _tensors(split.audio, index_B)
    vision_BLV, vision_mask_BL = _tensors(split.vision, index_B)
    return Batch(token_BL, mask_BL, hidden_BLD, vector_BD, audio_BLA, audio_mask_BL, vision_BLV, vision_mask_BL)


def _tensors(ragged: Ragged | None, index_B: NDArray[np.int64], fill: float = 0) -> tuple[Tensor | None, Tensor | None]:
    if ragged is None:
        return None, None
    values, mask = ragged.padded(index_B, fill)
    return torch.from_numpy(values), torch.from_numpy(mask)
