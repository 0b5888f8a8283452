"""Read an audio or vision column as flat arrays, so that no loop over millions of feature rows is needed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from grcf_ray.memory import return_memory

FRAMES = pa.list_(pa.list_(pa.float32()))
"""Type of audio and vision columns whose rows may differ in width."""
Rows = npt.NDArray[Any]
"""[n, d] feature rows of one utterance, of any numeric type."""


@dataclass(frozen=True)
class Frames:
    """One modality of N utterances with F feature rows (frames) in total."""

    lengths_N: npt.NDArray[np.int64]
    """Frames of each utterance; 0 if it lacks the modality."""
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
        """Return the utterance of each frame."""
        return np.repeat(np.arange(len(self.lengths_N)), self.lengths_N)

    def non_finite_F(self) -> npt.NDArray[np.int64]:
        """Count the NaN and infinite values of each frame."""
        bad = ~np.isfinite(self.values)
        if not bad.any():
            return np.zeros(len(self.widths_F), np.int64)
        ends = np.concatenate([[0], np.cumsum(bad, dtype=np.int64)])
        stops = np.cumsum(self.widths_F)
        return np.asarray(ends[stops] - ends[stops - self.widths_F])

    def width(self) -> int | None:
        """Return the most frequent width, None without a frame."""
        return int(np.bincount(self.widths_F).argmax()) if len(self.widths_F) else None

    def to_arrow(self, *, width: int | None = None, zero_non_finite: bool = False) -> pa.ListArray:
        """Convert to lists of float32 rows, null where the modality is missing; all frames must have one width.

        width: needed if there may be no frame; without it, a column of nulls has the type `FRAMES`.
        """
        width = width or self.width()
        if width is None:
            return pa.nulls(len(self.lengths_N), FRAMES)
        values = self.values
        if zero_non_finite:
            values = np.where(np.isfinite(values), values, np.float32(0))
        frames = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
        offsets = np.concatenate([[0], np.cumsum(self.lengths_N)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), frames, mask=pa.array(self.lengths_N == 0))


def joined(arrays: list[Rows | None]) -> tuple[Frames, dict[int, str]]:
    """Concatenate the rows of all utterances; leave out arrays of a rare width, and return a fault for each.

    Each array is removed from the list when it is copied, so that memory never holds the modality twice.
    """
    widths = Counter(array.shape[1] for array in arrays if array is not None)
    width = widths.most_common(1)[0][0] if widths else 0
    odd: dict[int, str] = {}
    for row, array in enumerate(arrays):
        if array is not None and array.shape[1] != width:
            odd[row] = f"has rows of {array.shape[1]} values, where most have {width}"
            arrays[row] = None
    lengths_N = np.array([0 if array is None else len(array) for array in arrays], np.int64)
    values_FD = np.empty((lengths_N.sum(), width), np.float32)
    stops_N = np.cumsum(lengths_N)
    for row, array in enumerate(arrays):
        if array is not None:
            with np.errstate(over="ignore"):
                values_FD[stops_N[row] - len(array) : stops_N[row]] = array
            arrays[row] = None
    return_memory()
    return Frames(lengths_N, np.full(len(values_FD), width), values_FD.reshape(-1)), odd


def _lengths(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    lengths = [pc.fill_null(pc.list_value_length(chunk).cast(pa.int64()), 0) for chunk in column.chunks]
    return _joined(lengths, np.int64)


def _joined(chunks: list[pa.Array], kind: Any) -> npt.NDArray[Any]:
    arrays = [np.asarray(chunk.to_numpy(zero_copy_only=False), dtype=kind) for chunk in chunks]
    return np.concatenate(arrays) if arrays else np.empty(0, kind)
