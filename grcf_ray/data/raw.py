"""What an importer hands over: the rows of foreign files under our column names, not yet checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from grcf_ray.data.validation import Fault

__all__ = ["FRAMES", "RAW_SCHEMA", "RawTable"]

FRAMES = pa.list_(pa.list_(pa.float32()))
"""Audio and vision before their widths are known to be equal."""

RAW_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "split": pa.string(),
        "text": pa.string(),
        "label": pa.float64(),
        "audio": FRAMES,
        "vision": FRAMES,
        "context": pa.list_(pa.string()),
        "video_id": pa.string(),
    }
)
"""The columns an importer may hand over; the first four it must."""


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """The rows of one source, files one after another."""

    table: pa.Table
    """Columns of `RAW_SCHEMA`, nulls where a cell is empty; the optional ones may be missing."""
    files: tuple[tuple[Path, int], ...]
    """Every file read, and how many rows came from it."""
    faults: tuple[Fault, ...] = ()
    """Cells that could not be read; they are null in the table."""
    word_aligned: bool = False
    """Whether audio and vision have one row for each word of the text, which are those between single spaces."""
    notes: tuple[str, ...] = ()
    """What a reader of results should know about the reading."""

    def place(self, row: int) -> str:
        """Where a row of the table stands: its number in its file, and the file where there are several."""
        for path, rows in self.files:
            if row < rows:
                return f"row {row + 1}" if len(self.files) == 1 else f"{path.name}: row {row + 1}"
            row -= rows
        raise IndexError(row)
