"""What an importer hands over: the rows of foreign files under our column names, not yet checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from grcf_ray.data.frames import FRAMES
from grcf_ray.data.validation import Fault

_T = TypeVar("_T")

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
        path, number = _within(row, self.files)
        return f"row {number}" if len(self.files) == 1 else f"{path.name}: row {number}"


@dataclass(frozen=True, kw_only=True)
class SplitTable(RawTable):
    """Rows of one file that has a part for each split, or is divided by one: their place is their number in it."""

    splits: tuple[tuple[str, int], ...]
    """What the splits are called, and how many rows each has, in the order of the table."""

    def place(self, row: int) -> str:
        """Where a row of the table stands: its split, and its number in it."""
        split, number = _within(row, self.splits)
        return f"{split} row {number}"


def _within(row: int, parts: Iterable[tuple[_T, int]]) -> tuple[_T, int]:
    """The part that a row is in, and its number there, from 1."""
    for part, rows in parts:
        if row < rows:
            return part, row + 1
        row -= rows
    raise IndexError(row)
