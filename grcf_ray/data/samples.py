"""Pickles that hold a list of samples for each split, a sample being nested tuples: what their importers share."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from grcf_ray.data.frames import Frames
from grcf_ray.data.raw import RAW_SCHEMA, RawTable
from grcf_ray.data.schema import MODALITIES, SPLITS
from grcf_ray.data.sniff import check_kind, pickle_start
from grcf_ray.data.splits import SPLIT_ALIASES
from grcf_ray.data.unpickle import read_pickle, repaired_text
from grcf_ray.data.validation import Fault
from grcf_ray.errors import DataError, faults_message

__all__ = [
    "Cells",
    "Form",
    "Rows",
    "Start",
    "alone",
    "begins_with",
    "first_sample",
    "is_array",
    "is_text_array",
    "items",
    "kind_of",
    "only_file",
    "read_samples",
    "shown",
    "text_of",
]

Start = tuple[str, ...]
"""How a pickle begins, see `pickle_start`."""
Rows = npt.NDArray[Any]
"""[n, d] feature rows, of any kind of number."""

_ARRAYS = ("._reconstruct", "._frombuffer", ".scalar")
_THEIR_NAMES = {"train": "train", "valid": "dev", "test": "test"}
_REQUIRED = ("id", "split", "text", "label")
_TEXT_SHOWN = 40
_MOST_NESTED = 3


@dataclass(frozen=True, kw_only=True)
class Form:
    """What the pickles of one format are called, and how their samples are built."""

    name: str
    """With its article, such as `a MAG-BERT pickle`."""
    sample: str
    """A sample as its authors write it."""
    members: int
    """How many members that has."""
    cells: Callable[[Sequence[Any], Cells], dict[str, Any]]
    """Cells of a row of the table, by column, from the members of a sample; audio and vision are `Rows`."""


class Cells:
    """Reads the cells of one sample after the other; keeps their faults, and counts what was done to them."""

    def __init__(self) -> None:
        self.row = 0
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()

    def fault(self, column: str, what: str) -> None:
        """Note what is wrong with a cell of the sample at hand."""
        self.faults.append(Fault(self.row, column, what))

    def text(self, column: str, name: str, cell: Any) -> str | None:
        """A text as it was meant, None with a fault where there is none."""
        text = text_of(cell)
        if text is None:
            self.fault(column, f"{name} {shown(cell)} is not a text")
        return text

    def number(self, column: str, name: str, cell: Any) -> float | None:
        """A number, alone in lists or arrays or not, None with a fault where there is none."""
        number = alone(cell)
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            try:
                return float(number)
            except OverflowError:
                pass
        self.fault(column, f"{name} {shown(cell)} is not a number")
        return None

    def rows(self, column: str, name: str, cell: Any) -> Rows | None:
        """An array of feature rows, None where it is missing, empty or, with a fault, of another form."""
        if cell is None or (isinstance(cell, (list, tuple, np.ndarray)) and not _count(cell)):
            return None
        if not isinstance(cell, np.ndarray) or cell.dtype.kind not in "fiu":
            self.fault(column, f"{name} is {kind_of(cell)}, not an array of numbers")
        elif cell.ndim != 2:
            self.fault(column, f"{name} is of shape {cell.shape}, not rows of values")
        else:
            return cell
        return None


def begins_with(source: Path, test: Callable[[Start], bool]) -> list[Path]:
    """The pickles of a source that begin in a certain way: the file itself, or those of the folder."""
    paths = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    return [path for path in paths if test(pickle_start(path))]


def first_sample(start: Start) -> Start:
    """The start's tokens from the first sample on; none where it is no dict of splits that are lists."""
    if start[:1] != ("dict",) or start[2:3] != ("list",):
        return ()
    return start[3:] if start[1].strip('"').lower() in SPLIT_ALIASES else ()


def is_array(token: str) -> bool:
    """Whether a token of a start is that of an array, or of one of numpy's scalars."""
    return token.endswith(_ARRAYS)


def is_text_array(start: Start) -> bool:
    """Whether tokens begin with an array or scalar of texts or of objects."""
    if not start or not is_array(start[0]):
        return False
    codes = (token.strip('"<>=|') for token in start if token.startswith('"'))
    kinds = [code[0] for code in codes if code[1:].isdigit()]
    return bool(kinds) and kinds[0] in "USO"


def only_file(source: Path, found: Sequence[Path], name: str) -> Path:
    """The one pickle found, or a file that is to be read as one; DataError where there are several, or is none."""
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{source} holds {len(found)} files, each {name} ({names}). Name one")
    if found:
        return found[0]
    if source.is_dir():
        raise DataError(f"{source}: none of its files is {name}")
    check_kind(source)
    if not pickle_start(source):
        raise DataError(f"{source}: not a pickle")
    return source


def read_samples(path: Path, form: Form, *, notes: Iterable[str] = (), word_aligned: bool = False) -> RawTable:
    """Read a pickle into a table; DataError names every split and sample of another form, and all faults beside."""
    content = read_pickle(path)
    names, problems = _split_names(path, content, form)
    notes = [*notes, *_left_out(content, names.values())]
    cells = Cells()
    rows: list[dict[str, Any]] = []
    counts = []
    for split, name in names.items():
        samples = list(content.pop(name))
        counts.append((name, len(samples)))
        for number, sample in enumerate(_taken(samples), 1):
            cells.row = len(rows)
            rows.append({"split": split})
            if isinstance(sample, (list, tuple)) and len(sample) == form.members:
                rows[-1] |= form.cells(sample, cells)
            else:
                problems.append(f"{name} row {number} is {kind_of(sample)}, not {form.sample}")
    if rows and all(len(row) == 1 for row in rows):
        raise DataError(f"{path}: not {form.name}: none of its {len(rows)} samples is {form.sample}")
    raw = _Samples(
        table=_table(rows, cells),
        files=((path, len(rows)),),
        faults=tuple(sorted(cells.faults, key=lambda fault: fault.row)),
        word_aligned=word_aligned,
        notes=(*notes, *(f"{what}: {count}" for what, count in sorted(cells.counts.items()) if count)),
        splits=tuple(counts),
    )
    if problems:
        ids = raw.table["id"].to_pylist()
        problems += [f"{raw.place(fault.row)} (id {ids[fault.row]}): {fault.what}" for fault in raw.faults]
        raise DataError(f"{path}: {problems[0]}" if len(problems) == 1 else faults_message(f"{path}:", problems))
    return raw


def items(cell: Any) -> Sequence[Any] | None:
    """The members of a list, or of an array [n] or [n, 1] of texts; None for what is neither."""
    if isinstance(cell, np.ndarray):
        return cell.reshape(-1).tolist() if cell.dtype.kind in "USO" and cell.shape[:1] == (cell.size,) else None
    return cell if isinstance(cell, (list, tuple)) else None


def text_of(cell: Any) -> str | None:
    """A text, alone in lists or arrays or not, as it was meant; None for what is none."""
    cell = alone(cell)
    if not isinstance(cell, (str, bytes)):
        return None
    text = repaired_text(cell)
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text


def alone(cell: Any) -> Any:
    """What stands alone in lists or arrays, some of which hold themselves."""
    for _ in range(_MOST_NESTED):
        if isinstance(cell, np.ndarray) and cell.size == 1:
            cell = cell.item()
        elif isinstance(cell, (list, tuple)) and len(cell) == 1:
            cell = cell[0]
        else:
            break
    return cell


def shown(cell: Any) -> str:
    """A short text for a value of any kind."""
    return repr(cell[:_TEXT_SHOWN]) if isinstance(cell, (str, bytes)) else f"({kind_of(cell)})"


def kind_of(cell: Any) -> str:
    """What a value is, in words."""
    if isinstance(cell, np.ndarray):
        kinds = {"f": "numbers", "i": "numbers", "u": "numbers", "b": "truth values", "O": "objects"}
        return f"an array of {kinds.get(cell.dtype.kind, 'texts')} of shape {cell.shape}"
    if isinstance(cell, (list, tuple)):
        return f"a {type(cell).__name__} of {len(cell)}"
    return f"of type {type(cell).__name__}"


@dataclass(frozen=True, kw_only=True)
class _Samples(RawTable):
    """Rows whose place is their number in their split, by the file's name for it."""

    splits: tuple[tuple[str, int], ...]

    def place(self, row: int) -> str:
        for split, rows in self.splits:
            if row < rows:
                return f"{split} row {row + 1}"
            row -= rows
        raise IndexError(row)


def _split_names(path: Path, content: Any, form: Form) -> tuple[dict[str, str], list[str]]:
    """The file's names of our splits, in our order, and what is wrong with these."""
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in content if isinstance(content, dict) else ():
        if isinstance(name, str) and name.lower() in SPLIT_ALIASES:
            names[SPLIT_ALIASES[name.lower()]].append(name)
    lists = {name for name in itertools.chain(*names.values()) if isinstance(content[name], (list, tuple))}
    if not lists:
        raise DataError(
            f"{path}: not {form.name}, which is a dict of the splits {', '.join(_THEIR_NAMES.values())}, "
            f"each a list of {form.sample}"
        )
    problems = []
    for split, found in names.items():
        if not found:
            problems.append(f"the split {_THEIR_NAMES[split]} is missing")
        elif len(found) > 1:
            problems.append(f"{' and '.join(found)} are names of one split")
        elif found[0] not in lists:
            problems.append(f"the split {found[0]} is {kind_of(content[found[0]])}, not a list of samples")
    return {split: found[0] for split, found in names.items() if len(found) == 1 and found[0] in lists}, problems


def _left_out(content: dict[Any, Any], used: Collection[str]) -> Iterator[str]:
    for name in [name for name in content if name not in used]:
        yield f"{shown(name)}, {kind_of(content[name])}, is left out"


def _taken(samples: list[Any]) -> Iterator[Any]:
    """The samples in their order, each of them freed when the next is taken."""
    samples.reverse()
    while samples:
        yield samples.pop()


def _table(rows: list[dict[str, Any]], cells: Cells) -> pa.Table:
    arrays = {}
    for field in RAW_SCHEMA:
        if field.name in MODALITIES:
            if (frames := _frames(field.name, rows, cells)) is not None:
                arrays[field.name] = frames
        elif field.name in _REQUIRED or any(field.name in row for row in rows):
            arrays[field.name] = pa.array([row.get(field.name) for row in rows], field.type)
    _return_memory()
    return pa.table(arrays)


def _return_memory() -> None:
    """Give back what many small arrays took: glibc, the only library with such a function, keeps it else."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _frames(name: str, rows: list[dict[str, Any]], cells: Cells) -> pa.Array | None:
    """A modality as one flat array, into which its arrays go and are freed; None where no sample has it."""
    arrays: list[Rows | None] = [row.pop(name, None) for row in rows]
    widths = Counter(array.shape[1] for array in arrays if array is not None)
    if not widths:
        return None
    width = widths.most_common(1)[0][0]
    for row, array in enumerate(arrays):
        if array is not None and array.shape[1] != width:
            cells.row = row
            cells.fault(name, f"{name} has rows of {array.shape[1]} values, where most have {width}")
            arrays[row] = None
    lengths_N = np.array([0 if array is None else len(array) for array in arrays], np.int64)
    values_FD = np.empty((lengths_N.sum(), width), np.float32)
    stops_N = np.cumsum(lengths_N)
    for row, array in enumerate(arrays):
        if array is not None:
            with np.errstate(over="ignore"):
                values_FD[stops_N[row] - len(array) : stops_N[row]] = array
            arrays[row] = None
    return Frames(lengths_N, np.full(len(values_FD), width), values_FD.reshape(-1)).to_arrow()


def _count(cell: Any) -> int:
    return int(cell.size) if isinstance(cell, np.ndarray) else len(cell)
