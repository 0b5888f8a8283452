"""Validate every row of an import, and report all faults in one message."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from grcf_ray.config import Task
from grcf_ray.data.frames import Frames
from grcf_ray.data.schema import LABEL_DECIMALS, MODALITIES, SPLITS
from grcf_ray.errors import DataError, faults_message

_LABEL_TOLERANCE = 10**-LABEL_DECIMALS / 2
FEWEST_PAIRED = 3
"""Fewest utterances of a split: the correlation of two is always 1 or -1."""
FEWEST_ROWS = 20
"""Fewest utterances of a valid split for a useful selection."""
FEWEST_OF_A_CLASS = 10
"""Fewest utterances of each of two classes for a useful selection."""
_NARROW = 0.5
"""Smallest share of the label range that labels usually cover."""
_ALONE = 5
"""Most faults of one kind that are listed one by one."""
_EXAMPLES = 3
"""Faults that are listed of a kind with more."""
_VALUES = re.compile(r"""'[^']*'|"[^"]*"|[-+]?\b\d[\w.+-]*|\b(?:nan|inf)\b""")
"""The parts in which faults of one kind differ."""


_REMEDIES = {
    "is not a number": "If another column holds the labels, name it: --label-column NAME",
    "has the same id": "If the column holds no ids, number the rows: --id-column ''",
    "not one of train, valid, test": "Let the splits be drawn: --split-column ''",
    "the split test holds no utterance": "Let the splits be drawn: --split-column ''",
}
"""The option that settles a wrong guess about a user's own table, by a part of the faults that it makes."""


class Fault(NamedTuple):
    """A fault of one cell."""

    row: int
    """Row of the table, counted from 0."""
    column: str
    """Column of the utterance table."""
    problem: str
    """The problem and the value."""


def validate(
    table: pa.Table,
    *,
    task: Task = "regression",
    label_range: tuple[float, float],
    non_finite: Literal["fail", "zero"] = "fail",
    splits: Sequence[str] = SPLITS,
    word_aligned: bool = False,
    parse_faults: Sequence[Fault] = (),
    source: str = "utterance table",
    place: Callable[[int], str] = lambda row: f"row {row + 1}",
    command: str = "python -m grcf_ray.data import SOURCE --dataset NAME",
    custom_range: bool = False,
    own_table: bool = False,
) -> None:
    """Raise one DataError with all faults of all rows, by the row's number (the first is 1) and its id.

    Many faults of one kind are listed once, with their number, the first few and a likely remedy.

    table: the columns id, split, text and label, and optionally audio, vision and context, of types that
    `schema.conform` can cast. splits: each must have rows. word_aligned: audio and vision have a row for each word of
    the text. parse_faults: faults from reading, which replace any other fault of their cells. place: describes the
    place of a row in its file. command: this import, to which the message may add an option. custom_range: the user
    may choose the label range. own_table: the user may name the columns.
    """
    parsed = {fault[:2] for fault in parse_faults}
    cell_faults = [
        *_id_faults(table["id"], place),
        *_split_faults(table["split"]),
        *_label_faults(table["label"], task, label_range),
        *input_faults(table, non_finite=non_finite),
        *(alignment_faults(table) if word_aligned else ()),
    ]
    faults = [*parse_faults, *(fault for fault in cell_faults if fault[:2] not in parsed)]
    faults.sort(key=lambda fault: fault.row)
    ids = table["id"].to_pylist() if faults else []
    listed = FaultList()
    for fault in faults:
        listed.add(f"{place(fault.row)} (id {ids[fault.row]})", fault)
    lines = listed.lines()
    present = set(pc.unique(table["split"]).to_pylist())
    empty = [f"the split {split} holds no utterance" for split in splits if split not in present]
    count = len(faults) + len(empty)
    if not count:
        return
    problems = [fault.problem for fault in faults]
    remedies = []

    def often(part: str) -> bool:
        # A few faults are typing errors; many mean another range or column.
        return part in empty or sum(part in problem for problem in problems) > _ALONE

    if custom_range and task == "regression" and often("lies outside"):
        remedies += _range_remedy(table["label"])
    if own_table:
        remedies += dict.fromkeys(remedy for part, remedy in _REMEDIES.items() if often(part))
    if any("non-finite" in problem for problem in problems):
        remedies.append(f"Clean it: {command} --non-finite zero")
    if count == 1:
        raise DataError(". ".join([f"{source}: {[*lines, *empty][0]}", *remedies]))
    raise DataError("\n".join([faults_message(f"{source}: {count} faults", [*lines, *empty]), *remedies]))


class FaultList:
    """A list of faults for a message: many of one kind appear once, with their number and the first few."""

    def __init__(self) -> None:
        self.count = 0
        self._kinds: dict[tuple[str, str], list[tuple[int, str]]] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, where: str, fault: Fault) -> None:
        """Add a fault, of which only the first few of a kind are kept. where: the place of its row."""
        kind = (fault.column, _VALUES.sub("...", fault.problem))
        first = self._kinds.setdefault(kind, [])
        if len(first) < _ALONE:
            first.append((self.count, f"{where}: {fault.problem}"))
        self._counts[kind] += 1
        self.count += 1

    def lines(self) -> list[str]:
        """Return the lines of a message, in the order in which the faults were added."""
        lines: list[tuple[int, str]] = []
        for kind, first in self._kinds.items():
            if self._counts[kind] <= _ALONE:
                lines += first
                continue
            examples = [line for _, line in first[:_EXAMPLES]]
            more = f"... and {self._counts[kind] - _EXAMPLES} more"
            lines.append((first[0][0], "\n    ".join([f"{self._counts[kind]} times: {kind[1]}", *examples, more])))
        return [line for _, line in sorted(lines)]


def whole_range(label_N: NDArray[np.float64]) -> tuple[float, float]:
    """Return a range of whole numbers that holds the finite labels: [1, 5], [0, 100]; symmetric around 0 if both signs
    occur. A span of 20 or more ends at whole tens, of 200 or more at whole hundreds, and so on.
    """
    low, high = (round(float(edge), LABEL_DECIMALS) for edge in (label_N.min(), label_N.max()))
    step = 10 ** max(0, math.floor(math.log10((high - low) / 2))) if high > low else 1
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    if low < 0 < high:
        high = max(-low, high)
        low = -high
    return float(low), float(high)


def _range_remedy(column: pa.ChunkedArray) -> list[str]:
    """Suggest a range that holds the labels; nothing without labels."""
    label_N = column.to_numpy().astype(np.float64)
    label_N = label_N[np.isfinite(label_N)]
    if not len(label_N):
        return []
    low, high = whole_range(label_N)
    return [f"Labels run from {label_N.min():g} to {label_N.max():g}: --label-range {low:g} {high:g}?"]


def label_remarks(
    labels: Mapping[str, NDArray[np.float64]], task: Task, label_range: tuple[float, float], *, custom_range: bool
) -> tuple[list[str], list[str]]:
    """List the faults of the labels that prevent training, and the remarks on uncertain figures.

    labels: the labels of train and valid. custom_range: the user may choose the label range.
    """
    faults, notes = [], []
    for split, label_N in labels.items():
        values, counts = np.unique(label_N, return_counts=True)
        if len(values) < 2:
            state = f"are {values[0]:g}" if len(values) else "are missing"
            faults.append(f"all labels of the {split} split {state}: a model cannot learn or be ranked by one value")
        elif len(label_N) < FEWEST_PAIRED:
            faults.append(f"the {split} split has {len(label_N)} utterances: at least {FEWEST_PAIRED} are needed")
        elif split == "valid" and len(label_N) < FEWEST_ROWS:
            notes.append(
                f"the valid split has {len(label_N)} utterances: selection by fewer than {FEWEST_ROWS} is nearly random"
            )
        elif split == "valid" and task == "classification" and counts.min() < FEWEST_OF_A_CLASS:
            notes.append(
                f"the valid split has {counts.min()} utterances of class {values[counts.argmin()]:g}: selection by "
                f"fewer than {FEWEST_OF_A_CLASS} is nearly random"
            )
    label_N = np.concatenate(list(labels.values()))
    if custom_range and task == "regression" and not faults and np.ptp(label_N) < np.ptp(label_range) * _NARROW:
        low, high = label_range
        notes.append(
            f"labels run from {label_N.min():g} to {label_N.max():g}, a small part of the range {low:g} to {high:g}, "
            "which sets the margins. If the annotation scheme has another range, import again with --label-range"
        )
    return faults, notes


def input_faults(
    table: pa.Table, *, non_finite: Literal["fail", "zero"] = "fail", widths: Mapping[str, int] | None = None
) -> Iterable[Fault]:
    """Yield the faults of a model's input: text, audio and vision.

    widths: widths of audio and vision in the parts before this table, if it is one part of many.
    """
    if "text" in table.column_names:
        yield from _each("text", pc.is_null(table["text"]), lambda _: "text is missing")
    for name in MODALITIES:
        if name in table.column_names:
            frames = Frames.of(table[name])
            yield from _width_faults(name, frames, (widths or {}).get(name))
            if non_finite == "fail":
                yield from _non_finite_faults(name, frames)


def _id_faults(column: pa.ChunkedArray, place: Callable[[int], str]) -> Iterable[Fault]:
    yield from _each("id", pc.fill_null(pc.equal(column, ""), True), lambda _: "id is missing")
    if pc.count_distinct(column).as_py() == len(column):
        return
    first: dict[str, int] = {}
    for row, name in enumerate(column.to_pylist()):
        if name and first.setdefault(name, row) != row:
            yield Fault(row, "id", f"{place(first[name])} has the same id")


def _split_faults(column: pa.ChunkedArray) -> Iterable[Fault]:
    others = pc.invert(pc.is_in(column, value_set=pa.array(SPLITS)))
    return _each("split", others, lambda row: f"split is {column[row].as_py()!r}, not one of {', '.join(SPLITS)}")


def _label_faults(column: pa.ChunkedArray, task: Task, label_range: tuple[float, float]) -> Iterable[Fault]:
    label_N = column.to_numpy().astype(np.float64)
    low, high = label_range
    yield from _each("label", np.isnan(label_N), lambda _: "label is missing")
    # A comparison with NaN is false, so a missing label is not reported twice.
    outside_N = (label_N < low - _LABEL_TOLERANCE) | (label_N > high + _LABEL_TOLERANCE)
    yield from _each("label", outside_N, lambda row: f"label {label_N[row]:g} lies outside [{low:g}, {high:g}]")
    if task == "classification":
        between_N = ~outside_N & ~np.isnan(label_N) & ~np.isin(label_N, label_range)
        yield from _each("label", between_N, lambda row: f"label {label_N[row]:g} is neither {low:g} nor {high:g}")


def _width_faults(name: str, frames: Frames, before: int | None) -> Iterable[Fault]:
    width = before or frames.width()
    odd_F = np.flatnonzero(frames.widths_F != width) if width else np.arange(len(frames.widths_F))
    utterances_F, widths_F = frames.utterances_F()[odd_F], frames.widths_F[odd_F]
    for row in np.unique(utterances_F).tolist():
        widths = ", ".join(map(str, np.unique(widths_F[utterances_F == row])))
        usual = f", where {'those before' if before else 'most'} have {width}" if width else ""
        yield Fault(row, name, f"{name} has rows of {widths} values{usual}")


def alignment_faults(table: pa.Table) -> Iterable[Fault]:
    """Yield a fault for audio and vision without exactly one row for each word of the text."""
    words_N = pc.add(pc.count_substring(pc.fill_null(table["text"], ""), " "), 1).to_numpy()
    for name in MODALITIES:
        if name in table.column_names:
            rows_N = pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy()
            for row in np.flatnonzero((rows_N > 0) & (rows_N != words_N)).tolist():
                yield Fault(row, name, f"{name} has {rows_N[row]} rows for {words_N[row]} words")


def _non_finite_faults(name: str, frames: Frames) -> Iterable[Fault]:
    bad_F = frames.non_finite_F()
    count_N = np.bincount(frames.utterances_F(), bad_F, len(frames.lengths_N)).astype(np.int64)
    for row in np.flatnonzero(count_N).tolist():
        yield Fault(row, name, f"{name} has {count_N[row]} non-finite value{'s' if count_N[row] > 1 else ''}")


def _each(column: str, mask: Any, problem: Callable[[int], str]) -> Iterable[Fault]:
    """Yield a fault for each row at which a mask of Arrow or NumPy is true."""
    return (Fault(row, column, problem(row)) for row in np.flatnonzero(np.asarray(mask)).tolist())
