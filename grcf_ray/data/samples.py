"""Pickles that hold a list of samples for each split, a sample being nested tuples: what their importers share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from grcf_ray.data.cells import Cells, kind_of, shown
from grcf_ray.data.raw import RAW_SCHEMA, SplitTable
from grcf_ray.data.schema import MODALITIES, SPLITS
from grcf_ray.data.sniff import Start
from grcf_ray.data.splits import SPLIT_ALIASES
from grcf_ray.errors import DataError, data_error

_ARRAYS = ("._reconstruct", "._frombuffer", ".scalar")
_THEIR_NAMES = {"train": "train", "valid": "dev", "test": "test"}
_REQUIRED = ("id", "split", "text", "label")


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


def first_sample(start: Start) -> Start:
    """The start's tokens from the first sample on; none where it is no dict of splits that are lists."""
    if start[:1] != ("dict",) or start[2:3] != ("list",):
        return ()
    return start[3:] if start[1].strip('"').lower() in SPLIT_ALIASES else ()


def is_array(token: str) -> bool:
    """Whether a token of a start is that of an array, or of one of numpy's scalars."""
    return token.endswith(_ARRAYS)


def is_array_of(start: Start, kinds: str) -> bool:
    """Whether tokens begin with an array or scalar of one of these kinds, as numpy writes them: texts are `USO`."""
    if not start or not is_array(start[0]):
        return False
    codes = (token.strip('"<>=|') for token in start if token.startswith('"'))
    found = [code[0] for code in codes if code[1:].isdigit()]
    return bool(found) and found[0] in kinds


def samples_table(
    path: Path,
    content: Any,
    form: Form,
    *,
    files: Mapping[str, Path] | None = None,
    notes: Iterable[str] = (),
    word_aligned: bool = False,
) -> SplitTable:
    """A table from what a pickle holds, which it takes apart; valid may be missing.

    files: the file of each split, by its name in the content, where there are several, of the folder `path`.
    DataError names every split and sample of another form, and all faults beside.
    """
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
    raw = SplitTable(
        table=_table(rows, cells),
        files=((path, len(rows)),) if files is None else tuple((files[name], count) for name, count in counts),
        faults=tuple(sorted(cells.faults, key=lambda fault: fault.row)),
        word_aligned=word_aligned,
        notes=(*notes, *(f"{what}: {count}" for what, count in sorted(cells.counts.items()) if count)),
        splits=tuple(counts),
    )
    if problems:
        ids = raw.table["id"].to_pylist()
        problems += [f"{raw.place(fault.row)} (id {ids[fault.row]}): {fault.what}" for fault in raw.faults]
        raise data_error(path, problems)
    return raw


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
        if not found and split != "valid":
            problems.append(f"the split {_THEIR_NAMES[split]} is missing")
        elif len(found) > 1:
            problems.append(f"{' and '.join(found)} are names of one split")
        elif found and found[0] not in lists:
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
            frames = cells.frames(field.name, [row.pop(field.name, None) for row in rows])
            if len(frames.values):
                arrays[field.name] = frames.to_arrow()
        elif field.name in _REQUIRED or any(field.name in row for row in rows):
            arrays[field.name] = pa.array([row.get(field.name) for row in rows], field.type)
    return pa.table(arrays)
