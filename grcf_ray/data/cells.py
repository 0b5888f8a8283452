"""Parse the cells of foreign files, in any of the forms in which people write them, and collect their faults."""

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
# Python refuses to print much longer integers.
_LARGEST_ID = 10**100
_MOST_NESTED = 3


class Cells:
    """A reader of cells, row by row, which collects faults and counts repairs."""

    def __init__(self) -> None:
        self.row = 0
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()

    def each(self, rows: Iterable[_T], start: int = 0) -> Iterator[_T]:
        """Yield rows, or the cells of a column, and keep `row` at the table's row; start: the first of these."""
        for self.row, item in enumerate(rows, start):
            yield item

    def fault(self, column: str, problem: str) -> None:
        """Record a fault of the current row."""
        self.faults.append(Fault(self.row, column, problem))

    def read(self, column: str, name: str, cell: Any, parse: Callable[[Any], _T | None], needs: str) -> _T | None:
        """Return the parsed cell; None and a fault if the cell is missing or `parse` rejects it.

        name: the cell's name in the file; needs: the accepted kind of value, with its article.
        """
        value = None if cell is None else parse(cell)
        if value is None:
            self.fault(column, f"{name} is missing" if cell is None else f"{name} {shown(cell)} is not {needs}")
        return value

    def id(self, column: str, name: str, cell: Any) -> str | None:
        """Return an id as a text; None and a fault if the cell is not one."""
        return self.read(column, name, cell, id_of, "a text or a whole number")

    def text(self, column: str, name: str, cell: Any) -> str | None:
        """Return a decoded text; None and a fault if the cell is not one."""
        return self.read(column, name, cell, text_of, "a text")

    def texts(self, column: str, name: str, cell: Any, parse: Callable[[Any], str | None]) -> list[str] | None:
        """Return the members of a list, parsed as texts; None and a fault if `parse` rejects one."""
        return self.read(column, name, cell, lambda value: texts_of(value, parse), "a list of texts")

    def number(self, column: str, name: str, cell: Any) -> float | None:
        """Return a number; None and a fault if the cell is not one."""
        return self.read(column, name, cell, number_of, "a number")

    def rows(self, column: str, name: str, cell: Any) -> Rows | None:
        """Return an array of feature rows; None if it is missing or empty, None and a fault for any other value."""
        if cell is None or (isinstance(cell, (list, tuple)) and not cell):
            return None
        if isinstance(cell, np.ndarray) and not cell.size:
            return None
        if not isinstance(cell, np.ndarray) or cell.dtype.kind not in "fiu":
            self.fault(column, f"{name} is {kind_of(cell)}, not an array of numbers")
        elif cell.ndim != 2:
            self.fault(column, f"{name} is of shape {cell.shape}, not rows of values")
        else:
            return cell
        return None

    def frames(self, name: str, arrays: list[Rows | None]) -> Frames:
        """Join the rows of all utterances, emptying the list; a fault for each utterance of a rare width."""
        frames, odd = joined(arrays)
        self.faults += [Fault(row, name, f"{name} {problem}") for row, problem in odd.items()]
        return frames


def alone(cell: Any) -> Any:
    """Unwrap a value from lists and arrays of length 1; at most three levels, since a list may contain itself."""
    for _ in range(_MOST_NESTED):
        if isinstance(cell, np.ndarray) and cell.size == 1:
            cell = cell.item()
        elif isinstance(cell, (list, tuple)) and len(cell) == 1:
            cell = cell[0]
        else:
            break
    return cell


def text_of(cell: Any) -> str | None:
    """Decode a text, unwrapped if need be; None for anything else."""
    cell = alone(cell)
    text = repaired_text(cell) if isinstance(cell, (str, bytes)) else None
    return text if text is not None and is_unicode(text) else None


def texts_of(cell: Any, parse: Callable[[Any], str | None] = text_of) -> list[str] | None:
    """Parse the members of a list or tuple; None for anything else, or if `parse` rejects a member."""
    texts = [parse(member) for member in cell] if isinstance(cell, (list, tuple)) else [None]
    known = [text for text in texts if text is not None]
    return known if len(known) == len(texts) else None


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def number_of(cell: Any) -> float | None:
    """Parse a number, unwrapped if need be; None for anything else, including a boolean."""
    cell = alone(cell)
    if isinstance(cell, bool) or not isinstance(cell, (int, float)):
        return None
    try:
        return float(cell)
    except OverflowError:
        return None


def class_of(cell: Any) -> float | None:
    """Parse a class, 0 or 1, from a number or a boolean, unwrapped if need be; None for anything else."""
    cell = alone(cell)
    return float(cell) if isinstance(cell, (int, float)) and cell in (0, 1) else None


def id_of(cell: Any) -> str | None:
    """Parse an id, a text or a whole number, as a text; None for anything else."""
    number = alone(cell)
    if isinstance(number, int) and not isinstance(number, bool) and abs(number) < _LARGEST_ID:
        return str(number)
    return text_of(number)


def items(cell: Any) -> Sequence[Any] | None:
    """Return the members of a list, or of an array [n] or [n, 1] of texts; None for anything else."""
    if isinstance(cell, np.ndarray):
        return cell.reshape(-1).tolist() if cell.dtype.kind in "USO" and cell.shape[:1] == (cell.size,) else None
    return cell if isinstance(cell, (list, tuple)) else None


def unique_names(pairs: Sequence[tuple[str, _T]]) -> dict[str, _T]:
    """Build a JSON object; ValueError for a name that occurs twice. For `json.loads(object_pairs_hook=...)`."""
    values = dict(pairs)
    if len(values) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {shown(name)} occurs twice in one object")
    return values


def shown(cell: Any) -> str:
    """Format a value of any kind in a few characters."""
    if isinstance(cell, (str, bytes)):
        return repr(cell[:_TEXT_SHOWN])
    if isinstance(cell, float):
        return f"{cell:g}"
    return str(cell) if isinstance(cell, int) and abs(cell) < _LARGEST_SHOWN else f"({kind_of(cell)})"


def kind_of(cell: Any) -> str:
    """Describe the type of a value, and its length or shape."""
    if isinstance(cell, np.ndarray):
        kinds = {"f": "numbers", "i": "numbers", "u": "numbers", "b": "truth values", "O": "objects"}
        return f"an array of {kinds.get(cell.dtype.kind, 'texts')} of shape {cell.shape}"
    if isinstance(cell, (list, tuple)):
        return f"a {type(cell).__name__} of {len(cell)}"
    return f"of type {type(cell).__name__}"
