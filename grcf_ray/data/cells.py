"""Cells of foreign files, in whatever form people wrote them: what is meant, or what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from grcf_ray.data.frames import Frames, Rows, joined
from grcf_ray.data.unpickle import repaired_text
from grcf_ray.data.validation import Fault

_T = TypeVar("_T")

_TEXT_SHOWN = 40
_LARGEST_SHOWN = 10**15
# Longer ones Python does not write out.
_LARGEST_ID = 10**100
_MOST_NESTED = 3


class Cells:
    """Reads the cells of one row after the other; keeps their faults, and counts what was done to them."""

    def __init__(self) -> None:
        self.row = 0
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()

    def each(self, rows: Iterable[_T], start: int = 0) -> Iterator[_T]:
        """Go through rows, or through the cells of a column, from the table's row `start` on."""
        for self.row, one in enumerate(rows, start):
            yield one

    def fault(self, column: str, what: str) -> None:
        """Note what is wrong with a cell of the row at hand."""
        self.faults.append(Fault(self.row, column, what))

    def read(self, column: str, name: str, cell: Any, parse: Callable[[Any], _T | None], needs: str) -> _T | None:
        """What `parse` makes of a cell, None with a fault where there is nothing, or where it makes nothing of it.

        name: what the file calls the cell; needs: what it should be, with its article.
        """
        found = None if cell is None else parse(cell)
        if found is None:
            self.fault(column, f"{name} is missing" if cell is None else f"{name} {shown(cell)} is not {needs}")
        return found

    def text(self, column: str, name: str, cell: Any) -> str | None:
        """A text as it was meant, None with a fault where there is none."""
        return self.read(column, name, cell, text_of, "a text")

    def number(self, column: str, name: str, cell: Any) -> float | None:
        """A number, None with a fault where there is none."""
        return self.read(column, name, cell, number_of, "a number")

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

    def frames(self, name: str, arrays: list[Rows | None]) -> Frames:
        """A modality from the rows of all utterances, which leave the list; a fault where their width is odd."""
        frames, odd = joined(arrays)
        self.faults += [Fault(row, name, f"{name} {what}") for row, what in odd.items()]
        return frames


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


def text_of(cell: Any) -> str | None:
    """A text, alone in lists or arrays or not, as it was meant; None for what is none."""
    cell = alone(cell)
    text = repaired_text(cell) if isinstance(cell, (str, bytes)) else None
    return text if text is not None and is_unicode(text) else None


def is_unicode(text: str) -> bool:
    """Whether a text can be written: half of a character cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def number_of(cell: Any) -> float | None:
    """A number, alone in lists or arrays or not; None for what is none, such as a truth value."""
    cell = alone(cell)
    if isinstance(cell, bool) or not isinstance(cell, (int, float)):
        return None
    try:
        return float(cell)
    except OverflowError:
        return None


def class_of(cell: Any) -> float | None:
    """0 or 1 from a number or a truth value, alone in lists or arrays or not; None for anything else."""
    cell = alone(cell)
    return float(cell) if isinstance(cell, (int, float)) and cell in (0, 1) else None


def id_of(cell: Any) -> str | None:
    """An id as a text, which some files have as a whole number; None for what is neither."""
    number = alone(cell)
    if isinstance(number, int) and not isinstance(number, bool) and abs(number) < _LARGEST_ID:
        return str(number)
    return text_of(number)


def items(cell: Any) -> Sequence[Any] | None:
    """The members of a list, or of an array [n] or [n, 1] of texts; None for what is neither."""
    if isinstance(cell, np.ndarray):
        return cell.reshape(-1).tolist() if cell.dtype.kind in "USO" and cell.shape[:1] == (cell.size,) else None
    return cell if isinstance(cell, (list, tuple)) else None


def shown(cell: Any) -> str:
    """A short text for a value of any kind."""
    if isinstance(cell, (str, bytes)):
        return repr(cell[:_TEXT_SHOWN])
    if isinstance(cell, float):
        return f"{cell:g}"
    return str(cell) if isinstance(cell, int) and abs(cell) < _LARGEST_SHOWN else f"({kind_of(cell)})"


def kind_of(cell: Any) -> str:
    """What a value is, in words."""
    if isinstance(cell, np.ndarray):
        kinds = {"f": "numbers", "i": "numbers", "u": "numbers", "b": "truth values", "O": "objects"}
        return f"an array of {kinds.get(cell.dtype.kind, 'texts')} of shape {cell.shape}"
    if isinstance(cell, (list, tuple)):
        return f"a {type(cell).__name__} of {len(cell)}"
    return f"of type {type(cell).__name__}"


def _count(cell: Any) -> int:
    return int(cell.size) if isinstance(cell, np.ndarray) else len(cell)
