"""Pad ragged features to tensors, in micro-batches of utterances of similar length.

B utterances of a micro-batch; L their longest text; A, V widths of audio and vision rows; D of the text encoder.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grcf_ray.data.features import Features, Ragged, SplitFeatures, rounded_up

BATCH_COST = {"cpu": 32, "cuda": 8192}
"""Cost of one more batch, in subwords: measured on a CPU, about the launch of its kernels on a GPU."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """One micro-batch of model input; absent modalities are None."""

    token_BL: Tensor | None
    """Subword ids; None if the frozen layers' output replaces them, and for models without text."""
    mask_BL: Tensor | None
    hidden_BLD: Tensor | None
    vector_BD: Tensor | None
    audio_BLA: Tensor | None
    audio_mask_BL: Tensor | None
    vision_BLV: Tensor | None
    vision_mask_BL: Tensor | None
    word_BLD: Tensor | None = None
    """Word embeddings of the subwords, if they were looked up for several batches at once."""
    full: bool = dataclasses.field(default=False, kw_only=True)
    """Whether every text is known to be as long as the longest; reading the mask on a GPU would wait for the GPU."""

    def __len__(self) -> int:
        """Return the number of utterances."""
        return len(next(iter(self.tensors().values())))

    @property
    def tokens(self) -> int:
        """Subwords that the text encoder processes, padding included; 0 if it has no layer to run."""
        return 0 if self.mask_BL is None else self.mask_BL.numel()

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
        """Copy the batch to a device, floating-point values in the given type."""
        moved: dict[str, Any] = {
            name: value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)
            for name, value in self.tensors().items()
        }
        return dataclasses.replace(self, **moved)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are present, by field."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def length_sorted(split: SplitFeatures, index_U: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort utterances by length (`SplitFeatures.lengths_of`), ties by their place in the split."""
    return index_U[np.argsort(split.lengths_of(index_U), kind="stable")]


def micro_batches(
    features: Features,
    split: SplitFeatures,
    index_U: NDArray[np.int64],
    token_budget: int,
    *,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Yield batches of at most `token_budget` padded subwords, in the given order.

    index_U: utterances by rising length (`length_sorted`). A batch ends where the length rises, at the places that
    minimise padding plus the cost of more batches. device: the encoder's device; the CPU by default.
    """
    for index_B in cut(features, split, index_U, token_budget, device=device):
        yield collate(features, split, index_B)


def cut(
    features: Features,
    split: SplitFeatures,
    index_U: NDArray[np.int64],
    token_budget: int,
    *,
    device: torch.device | None = None,
) -> list[NDArray[np.int64]]:
    """Return the utterances of each batch of `micro_batches`."""
    length_U = rounded_up(split.lengths_of(index_U), features.length_multiple)
    stops = _cuts(length_U, token_budget, BATCH_COST.get(device.type if device else "cpu", BATCH_COST["cuda"]))
    return [index_U[start:stop] for start, stop in itertools.pairwise([0, *stops])]


def _cuts(length_U: NDArray[np.int64], token_budget: int, batch_cost: int) -> list[int]:
    """Return the ends of the cheapest batches.

    A dynamic programme over the distinct lengths: `least[k]` is the cost of the k shortest lengths, in subwords.
    """
    if not len(length_U):
        return []
    length_K, count_K = np.unique(length_U, return_counts=True)
    before_K = np.concatenate([[0], np.cumsum(count_K)])
    least = np.zeros(len(length_K) + 1)
    begin = np.zeros(len(length_K) + 1, dtype=np.int64)
    size_K = np.maximum(1, token_budget // np.maximum(1, length_K))
    for k, (length, size) in enumerate(zip(length_K.tolist(), size_K.tolist(), strict=True), start=1):
        # One run of lengths from each place up to this one, padded to this one.
        utterances = before_K[k] - before_K[:k]
        cost = least[:k] + utterances * length + batch_cost * -(-utterances // size)
        # Of equal costs the first, which is the longest run and so gives the fewest batches.
        begin[k] = cost.argmin()
        least[k] = cost[begin[k]]
    stops: list[int] = []
    k = len(length_K)
    while k:
        first, last = int(before_K[begin[k]]), int(before_K[k])
        stops += [*range(last, first, -int(size_K[k - 1]))]
        k = int(begin[k])
    return stops[::-1]


def collate(features: Features, split: SplitFeatures, index_B: NDArray[np.int64]) -> Batch:
    """Pad the chosen utterances of a split to tensors."""
    multiple = features.length_multiple
    token_BL = mask_BL = hidden_BLD = vector_BD = None
    if split.vector_ND is not None:
        vector_BD = torch.from_numpy(split.vector_ND[index_B])
    elif split.hidden is not None:
        hidden_BLD, mask_BL = _tensors(split.hidden, index_B, multiple)
    elif split.tokens is not None:
        token_BL, mask_BL = _tensors(split.tokens, index_B, multiple, features.pad_token_id)
        assert token_BL is not None
        token_BL = token_BL.long()
    audio_BLA, audio_mask_BL = _tensors(split.audio, index_B, multiple)
    vision_BLV, vision_mask_BL = _tensors(split.vision, index_B, multiple)
    return Batch(
        token_BL,
        mask_BL,
        hidden_BLD,
        vector_BD,
        audio_BLA,
        audio_mask_BL,
        vision_BLV,
        vision_mask_BL,
        full=mask_BL is None or bool(mask_BL.numpy().all()),
    )


def _tensors(
    ragged: Ragged | None, index_B: NDArray[np.int64], multiple: int, fill: float = 0
) -> tuple[Tensor | None, Tensor | None]:
    if ragged is None:
        return None, None
    values, mask = ragged.padded(index_B, fill, multiple=multiple)
    return torch.from_numpy(values), torch.from_numpy(mask)
