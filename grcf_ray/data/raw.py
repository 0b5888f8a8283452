"""The result of an importer: the rows of foreign files under this package's column names, not yet validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from grcf_ray.data.frames import FRAMES
from grcf_ray.data.validation import Fault

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
"""The columns of an importer's table; the first four are required."""


def typed_arrays(columns: Mapping[str, Sequence[Any]]) -> dict[str, pa.Array]:
    """Convert columns of Python values to the types of `RAW_SCHEMA`."""
    return {name: pa.array(values, RAW_SCHEMA.field(name).type) for name, values in columns.items()}


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """The rows of one source, file after file."""

    table: pa.Table
    """Columns of `RAW_SCHEMA`, null where a cell is empty; optional columns may be missing."""
    files: tuple[tuple[Path, int], ...]
    """Every file read, and the number of its rows."""
    faults: tuple[Fault, ...] = ()
    """Cells that could not be read; they are null in the table."""
    word_aligned: bool = False
    """Whether audio and vision have one row for each word of the text; single spaces separate words."""
    notes: tuple[str, ...] = ()
    """Remarks on the import for readers of results."""

    splits: tuple[tuple[str, int], ...] = ()
    """The file's name of each split and the number of its rows, for a source whose rows count within their splits."""

    def place(self, row: int) -> str:
        """Describe the place of a row: its number in its split, else in its file, with the name of one of several."""
        several = len(self.files) > 1
        # The parts of a table may have one name in the folder of each split.
        shared = len({path.name for path, _ in self.files}) < len(self.files)
        names = [f"{path.parent.name}/{path.name}" if shared else path.name for path, _ in self.files]
        files = [(f"{name}:" * several, rows) for name, (_, rows) in zip(names, self.files, strict=True)]
        for name, rows in self.splits or files:
            if row < rows:
                return f"{name} row {row + 1}".lstrip()
            row -= rows
        raise IndexError(row)
