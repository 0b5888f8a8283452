"""An audio or vision column as flat arrays: what lets millions of feature rows be checked without a loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Frames", "is_frames_type"]


def is_frames_type(kind: Any) -> bool:
    """Whether an Arrow type is a list of rows of numbers."""
    return _is_list(kind) and _is_list(kind.value_type) and _is_number(kind.value_type.value_type)


@dataclass(frozen=True)
class Frames:
    """One modality of N utterances that hold F feature rows, called frames, between them."""

    lengths_N: npt.NDArray[np.int64]
    """Frames of each utterance; 0 where it lacks the modality."""
    widths_F: npt.NDArray[np.int64]
    """Values in each frame."""
    values: npt.NDArray[np.float32]
    """All values, frame after frame; a null is NaN."""

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Frames:
        """Read a column of type list of list of numbers; either list may be of fixed size."""
        frames = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
        values = [chunk.flatten().cast(pa.float32(), safe=False) for chunk in frames.chunks]
        return cls(_lengths(column), _lengths(frames), _joined(values, np.float32))

    def utterances_F(self) -> npt.NDArray[np.int64]:
        """The utterance that each frame belongs to."""
        return np.repeat(np.arange(len(self.lengths_N)), self.lengths_N)

    def non_finite_F(self) -> npt.NDArray[np.int64]:
        """How many values of each frame are NaN or infinite."""
        bad = ~np.isfinite(self.values)
        if not bad.any():
            return np.zeros(len(self.widths_F), np.int64)
        ends = np.concatenate([[0], np.cumsum(bad, dtype=np.int64)])
        stops = np.cumsum(self.widths_F)
        return np.asarray(ends[stops] - ends[stops - self.widths_F])

    def width(self) -> int | None:
        """The most frequent width, None where no utterance has a frame."""
        return int(np.bincount(self.widths_F).argmax()) if len(self.widths_F) else None

    def to_arrow(self, *, width: int | None = None, zero_non_finite: bool = False) -> pa.ListArray:
        """Lists of float32 rows, null where the modality is missing; frames must be equally wide.

        width: theirs, where there may be none to tell it.
        """
        values = self.values
        if zero_non_finite:
            values = np.where(np.isfinite(values), values, np.float32(0))
        frames = pa.FixedSizeListArray.from_arrays(pa.array(values), width or self.width())
        offsets = np.concatenate([[0], np.cumsum(self.lengths_N)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), frames, mask=pa.array(self.lengths_N == 0))


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def _lengths(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    lengths = [pc.fill_null(pc.list_value_length(chunk).cast(pa.int64()), 0) for chunk in column.chunks]
    return _joined(lengths, np.int64)


def _joined(chunks: list[pa.Array], kind: Any) -> npt.NDArray[Any]:
    arrays = [np.asarray(chunk.to_numpy(zero_copy_only=False), dtype=kind) for chunk in chunks]
    return np.concatenate(arrays) if arrays else np.empty(0, kind)
