"""The check that every import passes: all rows, all faults, one message."""

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
from grcf_ray.data.schema import MODALITIES, SPLITS
from grcf_ray.errors import DataError, faults_message

# Half of the step to which labels are rounded before they are compared with anything.
_LABEL_TOLERANCE = 5e-5
FEWEST_PAIRED = 3
"""Utterances: of two the correlation is 1 or -1, whatever their scores."""
FEWEST_ROWS = 20
"""Utterances of a valid split that choices can be made by."""
FEWEST_OF_A_CLASS = 10
"""And of each of two classes."""
_NARROW = 0.5
"""Share of the label range that labels of a scheme cover at least."""
_ALONE = 5
"""As many faults of one kind are told by themselves."""
_EXAMPLES = 3
"""Faults that are told of a kind with more."""
_VALUES = re.compile(r"""'[^']*'|"[^"]*"|[-+]?\b\d[\w.+-]*|\b(?:nan|inf)\b""")
"""What differs between faults of one kind."""


class Fault(NamedTuple):
    """What is wrong with one cell."""

    row: int
    """Row of the table, counted from 0."""
    column: str
    """Column of the utterance table."""
    what: str
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
    own: bool = False,
) -> None:
    """Raise one DataError that names all faults of all rows, by the row's number (the first is 1) and its id.

    Many faults of one kind are told once, with their number, the first few of them, and what is likely to mend them.

    The table has the columns id, split, text and label, and may have audio, vision and context, of types that
    `schema.conform` can cast. `splits` must hold rows. `word_aligned`: audio and vision have a row for each word of
    the text. `parse_faults` were found while reading: they join the list and stand for their cells. `place` says
    where a row stands in its file; `command` is this import, to which the message may add an option. `own`: the label
    range is the user's to give.
    """
    parsed = {fault[:2] for fault in parse_faults}
    found = list(_faults(table, task, label_range, non_finite, place))
    if word_aligned:
        found += alignment_faults(table)
    faults = [fault for fault in found if fault[:2] not in parsed]
    faults = sorted([*parse_faults, *faults], key=lambda fault: fault.row)
    ids = table["id"].to_pylist() if faults else []
    told = FaultList()
    for fault in faults:
        told.add(f"{place(fault.row)} (id {ids[fault.row]})", fault)
    lines = told.lines()
    present = set(pc.unique(table["split"]).to_pylist())
    empty = [f"the split {split} holds no utterance" for split in splits if split not in present]
    count = len(faults) + len(empty)
    if not count:
        return
    whats = [fault.what for fault in faults]
    remedies = []
    # Few of them are slips of whoever typed the rows.
    if own and task == "regression" and sum("lies outside" in what for what in whats) > _ALONE:
        remedies += _range_remedy(table["label"], label_range)
    if any("non-finite" in what for what in whats):
        remedies.append(f"Clean it: {command} --non-finite zero")
    if count == 1:
        raise DataError(". ".join([f"{source}: {[*lines, *empty][0]}", *remedies]))
    raise DataError("\n".join([faults_message(f"{source}: {count} faults", [*lines, *empty]), *remedies]))


class FaultList:
    """Faults as a message tells them: many of one kind once, with their number and the first few of them."""

    def __init__(self) -> None:
        self.count = 0
        self._kinds: dict[tuple[str, str], list[tuple[int, str]]] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, where: str, fault: Fault) -> None:
        """Add one. where: what messages call its row. Of a kind the first few are kept, however many there are."""
        kind = (fault.column, _VALUES.sub("...", fault.what))
        first = self._kinds.setdefault(kind, [])
        if len(first) < _ALONE:
            first.append((self.count, f"{where}: {fault.what}"))
        self._counts[kind] += 1
        self.count += 1

    def lines(self) -> list[str]:
        """The message's lines, in the order in which faults were added."""
        found: list[tuple[int, str]] = []
        for kind, first in self._kinds.items():
            if self._counts[kind] <= _ALONE:
                found += first
                continue
            examples = [line for _, line in first[:_EXAMPLES]]
            more = f"... and {self._counts[kind] - _EXAMPLES} more"
            found.append((first[0][0], "\n    ".join([f"{self._counts[kind]} times: {kind[1]}", *examples, more])))
        return [line for _, line in sorted(found)]


def _range_remedy(column: pa.ChunkedArray, label_range: tuple[float, float]) -> list[str]:
    """The range that the labels ask for, where they have one: whole numbers, and alike on both sides as the old one."""
    label_N = column.to_numpy().astype(np.float64)
    label_N = label_N[np.isfinite(label_N)]
    if not len(label_N):
        return []
    low, high = math.floor(label_N.min()), math.ceil(label_N.max())
    if sum(label_range) == 0:
        low, high = min(low, -high), max(high, -low)
    return [f"Labels run from {label_N.min():g} to {label_N.max():g}: --label-range {low} {high}?"]


def label_remarks(
    labels: Mapping[str, NDArray[np.float64]], task: Task, label_range: tuple[float, float], *, own: bool
) -> tuple[list[str], list[str]]:
    """What keeps a model from being trained and chosen by these labels, and what makes its figures uncertain.

    labels: those of train and valid. own: the label range is the user's to give.
    """
    faults, notes = [], []
    for split, label_N in labels.items():
        values, counts = np.unique(label_N, return_counts=True)
        if len(values) < 2:
            what = f"are {values[0]:g}" if len(values) else "are missing"
            faults.append(f"all labels of the {split} split {what}: there is no order to learn or to measure")
        elif len(label_N) < FEWEST_PAIRED:
            faults.append(f"the {split} split has {len(label_N)} utterances: {FEWEST_PAIRED} are needed at least")
        elif split == "valid" and len(label_N) < FEWEST_ROWS:
            notes.append(
                f"the valid split has {len(label_N)} utterances: choosing by fewer than {FEWEST_ROWS} is near chance"
            )
        elif split == "valid" and task == "classification" and counts.min() < FEWEST_OF_A_CLASS:
            notes.append(
                f"the valid split has {counts.min()} utterances of class {values[counts.argmin()]:g}: choosing by "
                f"fewer than {FEWEST_OF_A_CLASS} is near chance"
            )
    every = np.concatenate(list(labels.values()))
    if own and task == "regression" and not faults and np.ptp(every) < np.ptp(label_range) * _NARROW:
        low, high = label_range
        notes.append(
            f"labels run from {every.min():g} to {every.max():g}, a small part of {low:g} to {high:g}, which margins "
            "follow. If it is not the scheme's, import again with --label-range"
        )
    return faults, notes


def _faults(
    table: pa.Table,
    task: Task,
    label_range: tuple[float, float],
    non_finite: Literal["fail", "zero"],
    place: Callable[[int], str],
) -> Iterable[Fault]:
    yield from _id_faults(table["id"], place)
    yield from _split_faults(table["split"])
    yield from _label_faults(table["label"], task, label_range)
    yield from input_faults(table, non_finite=non_finite)


def input_faults(
    table: pa.Table, *, non_finite: Literal["fail", "zero"] = "fail", widths: Mapping[str, int] | None = None
) -> Iterable[Fault]:
    """What is wrong with what a model reads: text, audio and vision.

    widths: of the rows of audio and vision that came before, where the table is one part of many.
    """
    for row in _rows(pc.is_null(table["text"])) if "text" in table.column_names else ():
        yield Fault(row, "text", "text is missing")
    for name in MODALITIES:
        if name in table.column_names:
            frames = Frames.of(table[name])
            yield from _width_faults(name, frames, (widths or {}).get(name))
            if non_finite == "fail":
                yield from _non_finite_faults(name, frames)


def _id_faults(column: pa.ChunkedArray, place: Callable[[int], str]) -> Iterable[Fault]:
    for row in _rows(pc.fill_null(pc.equal(column, ""), True)):
        yield Fault(row, "id", "id is missing")
    if pc.count_distinct(column).as_py() == len(column):
        return
    first: dict[str, int] = {}
    for row, name in enumerate(column.to_pylist()):
        if name and first.setdefault(name, row) != row:
            yield Fault(row, "id", f"{place(first[name])} has the same id")


def _split_faults(column: pa.ChunkedArray) -> Iterable[Fault]:
    rows = _rows(pc.invert(pc.is_in(column, value_set=pa.array(SPLITS))))
    for row in rows:
        yield Fault(row, "split", f"split is {column[row].as_py()!r}, not one of {', '.join(SPLITS)}")


def _label_faults(column: pa.ChunkedArray, task: Task, label_range: tuple[float, float]) -> Iterable[Fault]:
    label_N = column.to_numpy().astype(np.float64)
    low, high = label_range
    for row in np.flatnonzero(np.isnan(label_N)).tolist():
        yield Fault(row, "label", "label is missing")
    # A comparison with NaN is false, so what is missing is not reported again.
    outside_N = (label_N < low - _LABEL_TOLERANCE) | (label_N > high + _LABEL_TOLERANCE)
    for row in np.flatnonzero(outside_N).tolist():
        yield Fault(row, "label", f"label {label_N[row]:g} lies outside [{low:g}, {high:g}]")
    if task == "classification":
        between_N = ~outside_N & ~np.isnan(label_N) & ~np.isin(label_N, label_range)
        for row in np.flatnonzero(between_N).tolist():
            yield Fault(row, "label", f"label {label_N[row]:g} is neither {low:g} nor {high:g}")


def _width_faults(name: str, frames: Frames, before: int | None) -> Iterable[Fault]:
    width = before or frames.width()
    odd_F = np.flatnonzero(frames.widths_F != width) if width else np.arange(len(frames.widths_F))
    utterances_F, widths_F = frames.utterances_F()[odd_F], frames.widths_F[odd_F]
    for row in np.unique(utterances_F).tolist():
        found = ", ".join(str(found) for found in np.unique(widths_F[utterances_F == row]))
        most = f", where {'those before' if before else 'most'} have {width}" if width else ""
        yield Fault(row, name, f"{name} has rows of {found} values{most}")


def alignment_faults(table: pa.Table) -> Iterable[Fault]:
    """Audio and vision that are to have a row for each word of the text, and have not."""
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


def _rows(mask: Any) -> list[int]:
    """The positions at which an Arrow mask is true."""
    return [] if not pc.any(mask).as_py() else pc.indices_nonzero(mask).to_pylist()
