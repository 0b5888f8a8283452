"""Rows to be scored, which need neither labels nor splits nor ids: checked first, then read part by part.

Tables are streamed, twice: what is wrong with the last row is known before the first is scored. Files of other formats
are held as a whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from grcf_ray.data.frames import Frames
from grcf_ray.data.importers import find_importer, table
from grcf_ray.data.raw import RawTable
from grcf_ray.data.schema import MODALITIES
from grcf_ray.data.store import DatasetStore, is_store
from grcf_ray.data.validation import Fault, FaultList, alignment_faults, input_faults
from grcf_ray.errors import DataError, faults_message

_KEPT = ("id", "split", "label")
"""What is no input of a model, and is kept beside its scores."""
_OPTIONAL = ("label",)
"""What is left out, and no fault, where it cannot be read: no score hangs on it."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the check has found."""

    rows: int
    """How many there are."""
    columns: tuple[str, ...]
    """Which of split and label some file has."""
    widths: dict[str, int]
    """Values in a row of audio and vision; what no utterance has is not there."""


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """A file or folder of any format that the importers read, or a table without ids, splits or labels."""

    source: Path
    format: str = "auto"
    """Importer's name, or `auto`."""
    inputs: Collection[str]
    """What the model reads: which of text, audio, vision and context; nothing else is opened or checked."""
    part: int
    """Rows that are read at a time."""
    non_finite: Literal["fail", "zero"] = "fail"
    """What to do with NaN and infinity in audio and vision."""
    usually_aligned: bool = False
    """Whether a plain table's audio and vision follow words, which it cannot say itself."""

    @property
    def name(self) -> str:
        """What messages call the rows."""
        return self.source.name or str(self.source)

    @functools.cached_property
    def whole(self) -> RawTable | None:
        """The rows of a format that is read as a whole; None for tables. DataError where the source is neither."""
        importer = find_importer(self.source, self.format)
        if importer.read is table.read:
            return None
        return importer.read(self.source, next(iter(importer.VARIANTS), ""))

    @functools.cached_property
    def word_aligned(self) -> bool:
        """Whether audio and vision have a row for each word of the text."""
        if self.whole is not None:
            return self.whole.word_aligned
        return DatasetStore.open(self.source).info.word_aligned if is_store(self.source) else self.usually_aligned

    def check(self) -> Shape:
        """Read all rows; DataError with what is wrong with them, each by its place and id."""
        faults = FaultList()
        rows = 0
        columns: set[str] = set()
        widths: dict[str, int] = {}
        for part, found, place in self._parts():
            found = [*found, *self._faults(part, widths, {fault[:2] for fault in found})]
            ids = part["id"] if "id" in part.column_names else None
            for fault in sorted(found, key=lambda fault: fault.row):
                named = f" (id {_printable(ids[fault.row].as_py())})" if ids is not None else ""
                faults.add(f"{place(fault.row)}{named}", fault)
            rows += part.num_rows
            columns |= set(part.column_names)
        if faults.count:
            raise self._error(faults)
        return Shape(rows=rows, columns=tuple(name for name in _KEPT[1:] if name in columns), widths=widths)

    def parts(self, shape: Shape) -> Iterator[pa.Table]:
        """The rows in their order, `part` at a time, in the types of an utterance table. Ids are made where none is.

        A row without an id has its number, the first being 1.
        """
        first = 1
        for part, _, _ in self._parts():
            number = pa.array(range(first, first + part.num_rows)).cast(pa.string())
            own = part["id"] if "id" in part.column_names else pa.nulls(part.num_rows, pa.string())
            columns = {"id": pc.coalesce(own, number)}
            for name, kind in (("split", pa.string()), ("label", pa.float32())):
                if name in shape.columns:
                    has = name in part.column_names
                    columns[name] = part[name].cast(kind, safe=False) if has else pa.nulls(part.num_rows, kind)
            if "text" in self.inputs:
                columns["text"] = part["text"]
            for name, width in shape.widths.items():
                frames = Frames.of(part[name]) if name in part.column_names else None
                columns[name] = (
                    pa.nulls(part.num_rows, pa.list_(pa.list_(pa.float32(), width)))
                    if frames is None
                    else frames.to_arrow(width=width, zero_non_finite=self.non_finite == "zero")
                )
            if "context" in part.column_names:
                columns["context"] = part["context"]
            yield pa.table(columns)
            first += part.num_rows

    def _error(self, faults: FaultList) -> DataError:
        """All faults, and what to do where anything can be done by an option."""
        lines = faults.lines()
        head = f"{self.source}: {lines[0]}" if faults.count == 1 else f"{self.source}: {faults.count} faults"
        clean = ["Take such values as 0: --non-finite zero"] if any("non-finite" in line for line in lines) else []
        return DataError("\n".join([faults_message(head, [] if faults.count == 1 else lines), *clean]))

    def _faults(self, part: pa.Table, widths: dict[str, int], unread: set[tuple[int, str]]) -> list[Fault]:
        """What is wrong with the cells that could be read; widths that are seen for the first time are noted."""
        found = list(input_faults(part, non_finite=self.non_finite, widths=widths))
        # Without their text there are no words to count.
        if self.word_aligned and "text" in part.column_names:
            found += alignment_faults(part)
        for name in MODALITIES:
            if name in part.column_names and name not in widths and (width := Frames.of(part[name]).width()):
                widths[name] = width
        return [fault for fault in found if fault[:2] not in unread]

    def _parts(self) -> Iterator[tuple[pa.Table, list[Fault], Callable[[int], str]]]:
        """Tables of what is asked for, what could not be read of them, and where a row of each stands."""
        columns = [*_KEPT, *self.inputs]
        if self.whole is None:
            yield from self._streamed(columns)
            return
        known = self.whole.table.select([name for name in self.whole.table.column_names if name in columns])
        for start in range(0, known.num_rows, self.part):
            stop = start + self.part
            faults = [
                fault._replace(row=fault.row - start)
                for fault in self.whole.faults
                if start <= fault.row < stop and fault.column in columns and fault.column not in _OPTIONAL
            ]
            yield known.slice(start, self.part), faults, _place(self.whole.place, start)

    def _streamed(self, columns: Collection[str]) -> Iterator[tuple[pa.Table, list[Fault], Callable[[int], str]]]:
        paths = table.files(self.source) or [self.source]
        for path in paths:
            start = 0
            name = f"{path.name}: " if len(paths) > 1 else ""
            for part, faults in table.stream(path, columns, self.part, optional=_OPTIONAL):
                yield part, faults, _place(lambda row, name=name: f"{name}row {row + 1}", start)  # type: ignore[misc]
                start += part.num_rows


def _printable(text: str | None) -> str:
    """An id as a terminal may be given it: without control codes."""
    return "".join(letter if letter.isprintable() else " " for letter in text or "-")


def _place(place: Callable[[int], str], start: int) -> Callable[[int], str]:
    return lambda row: place(start + row)
