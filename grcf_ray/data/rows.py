"""Read rows to be scored, which need no labels, splits or ids: check all rows, then read them part by part.

Tables are streamed twice, so that every fault is reported before the first row is scored. Files of other formats are
read as a whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from grcf_ray.console import spaced
from grcf_ray.data.columns import check_nameable
from grcf_ray.data.frames import Frames
from grcf_ray.data.importers import find_importer, table
from grcf_ray.data.raw import RawTable
from grcf_ray.data.schema import MODALITIES
from grcf_ray.data.store import DatasetStore, is_store
from grcf_ray.data.validation import Fault, FaultList, alignment_faults, input_faults
from grcf_ray.errors import DataError, faults_message

_KEPT = ("id", "split", "label")
"""Columns that are not input of a model, but are kept with its scores."""
_OPTIONAL = ("label",)
"""Columns whose unreadable cells are null without a fault, since scores do not need them."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The result of a check."""

    rows: int
    """Number of rows."""
    columns: tuple[str, ...]
    """Those of split and label that a file has."""
    widths: dict[str, int]
    """Values in a row of audio and vision, without a modality that no utterance has."""


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Rows to be scored: a source of any importer, or a table that may lack ids, splits and labels."""

    source: Path
    format: str = "auto"
    """Importer's name, or `auto`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The columns of a table that options name, by role."""
    inputs: Collection[str]
    """The inputs of the model, of text, audio, vision and context; no other column is checked."""
    part: int
    """Rows read at a time."""
    non_finite: Literal["fail", "zero"] = "fail"
    """What to do with NaN and infinity in audio and vision."""
    usually_aligned: bool = False
    """Whether audio and vision of a plain table have a row for each word, which the table does not record."""

    @property
    def name(self) -> str:
        """Return the name of the source in messages."""
        return self.source.name or str(self.source)

    @functools.cached_property
    def whole(self) -> RawTable | None:
        """Read the rows of a format that is not streamed; None for tables. DataError for a source of no format."""
        importer = find_importer(self.source, self.format)
        if importer.read is table.read:
            return None
        check_nameable(self.source, self.columns)
        return importer.read(self.source, next(iter(importer.VARIANTS), ""))

    @functools.cached_property
    def word_aligned(self) -> bool:
        """Return whether audio and vision have a row for each word of the text."""
        if self.whole is not None:
            return self.whole.word_aligned
        return DatasetStore.open(self.source).info.word_aligned if is_store(self.source) else self.usually_aligned

    def check(self) -> Shape:
        """Read all rows; DataError with every fault, by place and id."""
        faults = FaultList()
        rows = 0
        columns: set[str] = set()
        widths: dict[str, int] = {}
        for part, unread, place, start in self._parts():
            part_faults = [*unread, *self._faults(part, widths, {fault[:2] for fault in unread})]
            ids = part["id"] if "id" in part.column_names else None
            for fault in sorted(part_faults, key=lambda fault: fault.row):
                label = f" (id {spaced(ids[fault.row].as_py() or '-')})" if ids is not None else ""
                faults.add(f"{place(start + fault.row)}{label}", fault)
            rows += part.num_rows
            columns |= set(part.column_names)
        if faults.count:
            raise self._error(faults)
        return Shape(rows=rows, columns=tuple(name for name in _KEPT[1:] if name in columns), widths=widths)

    def parts(self, shape: Shape) -> Iterator[pa.Table]:
        """Yield the rows in their order, `part` at a time, in the types of an utterance table.

        A row without an id gets its number, from 1.
        """
        first = 1
        for part, *_ in self._parts():
            number = pa.array(range(first, first + part.num_rows)).cast(pa.string())
            present = set(part.column_names)
            ids = part["id"] if "id" in present else pa.nulls(part.num_rows, pa.string())
            columns = {"id": pc.coalesce(ids, number)}
            for name, kind in (("split", pa.string()), ("label", pa.float32())):
                if name in shape.columns:
                    cells = part[name].cast(kind, safe=False) if name in present else pa.nulls(part.num_rows, kind)
                    columns[name] = cells
            if "text" in self.inputs:
                columns["text"] = part["text"]
            for name, width in shape.widths.items():
                if name in present:
                    frames = Frames.of(part[name])
                    columns[name] = frames.to_arrow(width=width, zero_non_finite=self.non_finite == "zero")
                else:
                    columns[name] = pa.nulls(part.num_rows, pa.list_(pa.list_(pa.float32(), width)))
            if "context" in present:
                columns["context"] = part["context"]
            yield pa.table(columns)
            first += part.num_rows

    def _error(self, faults: FaultList) -> DataError:
        """Write one error for all faults, with the option that helps, if there is one."""
        lines = faults.lines()
        head = f"{self.source}: {lines[0]}" if faults.count == 1 else f"{self.source}: {faults.count} faults"
        clean = ["Set such values to 0: --non-finite zero"] if any("non-finite" in line for line in lines) else []
        return DataError("\n".join([faults_message(head, [] if faults.count == 1 else lines), *clean]))

    def _faults(self, part: pa.Table, widths: dict[str, int], unread: set[tuple[int, str]]) -> list[Fault]:
        """List the faults of the cells that could be read, and record new widths."""
        faults = list(input_faults(part, non_finite=self.non_finite, widths=widths))
        if self.word_aligned and "text" in part.column_names:
            faults += alignment_faults(part)
        for name in MODALITIES:
            if name in part.column_names and name not in widths and (width := Frames.of(part[name]).width()):
                widths[name] = width
        return [fault for fault in faults if fault[:2] not in unread]

    def _parts(self) -> Iterator[tuple[pa.Table, list[Fault], Callable[[int], str], int]]:
        """Yield parts of the rows, the faults of their unreadable cells, a function that describes the place of a row,
        and the number of the part's first row for this function."""
        columns = [*_KEPT, *self.inputs]
        if self.whole is None:
            paths = table.files(self.source) or [self.source]
            for path in paths:
                start = 0
                place = functools.partial("{}row {}".format, f"{path.name}: " * (len(paths) > 1))
                for part, faults in table.stream(path, columns, self.part, optional=_OPTIONAL, columns=self.columns):
                    yield part, faults, place, start + 1
                    start += part.num_rows
            return
        rows = self.whole.table.select([name for name in self.whole.table.column_names if name in columns])
        for start in range(0, rows.num_rows, self.part):
            stop = start + self.part
            faults = [
                fault._replace(row=fault.row - start)
                for fault in self.whole.faults
                if start <= fault.row < stop and fault.column in columns and fault.column not in _OPTIONAL
            ]
            yield rows.slice(start, self.part), faults, self.whole.place, start
