"""Read pickles of a list of samples for each split, where a sample is nested tuples; shared by their importers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from grcf_ray.console import Progress
from grcf_ray.data.cells import Cells, kind_of, shown
from grcf_ray.data.raw import RAW_SCHEMA, RawTable
from grcf_ray.data.schema import MODALITIES, SPLITS
from grcf_ray.data.sniff import Start
from grcf_ray.data.splits import SPLIT_ALIASES
from grcf_ray.errors import DataError, data_error

_ARRAYS = ("._reconstruct", "._frombuffer", ".scalar")
_FILE_NAMES = {"train": "train", "valid": "dev", "test": "test"}
"""The usual name of each split in these files."""
_REQUIRED = ("id", "split", "text", "label")


@dataclass(frozen=True, kw_only=True)
class Form:
    """A format: its name in messages, and the structure of its samples."""

    name: str
    """With its article, such as `a MAG-BERT pickle`."""
    sample: str
    """A sample, as the authors of the format write it."""
    members: int
    """Members of a sample."""
    cells: Callable[[Sequence[Any], Cells], dict[str, Any]]
    """Makes the cells of a row, by column, from the members of a sample; audio and vision are `Rows`."""


def first_sample(start: Start) -> Start:
    """Return the tokens from the first sample on; none for anything but a dict of splits that are lists."""
    if start[:1] != ("dict",) or start[2:3] != ("list",):
        return ()
    return start[3:] if start[1].strip('"').lower() in SPLIT_ALIASES else ()


def is_array(token: str) -> bool:
    """Return whether a token stands for a NumPy array or scalar."""
    return token.endswith(_ARRAYS)


def is_array_of(start: Start, kinds: str) -> bool:
    """Return whether tokens begin with an array or scalar of one of these NumPy kinds: texts are `USO`."""
    if not start or not is_array(start[0]):
        return False
    texts = (token.strip('"<>=|') for token in start if token.startswith('"'))
    kind = next((text[0] for text in texts if text[1:].isdigit()), None)
    return kind is not None and kind in kinds


def samples_table(
    path: Path,
    content: Any,
    form: Form,
    *,
    files: Mapping[str, Path] | None = None,
    notes: Iterable[str] = (),
    word_aligned: bool = False,
) -> RawTable:
    """Make a table from the content of a pickle, which is emptied on the way; the split valid may be missing.

    files: with several files in the folder `path`, the file of each split by its name in the content. DataError names
    every split and sample of another structure, and all other faults.
    """
    names, problems = _split_names(path, content, form)
    notes = [*notes, *_left_out(content, names.values())]
    cells = Cells()
    rows: list[dict[str, Any]] = []
    counts = []
    progress = Progress("parsing samples", sum(len(content[name]) for name in names.values()))
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
            progress.add(1)
    if rows and all(len(row) == 1 for row in rows):
        raise DataError(f"{path}: not {form.name}: none of its {len(rows)} samples is {form.sample}")
    raw = RawTable(
        table=_table(rows, cells),
        files=((path, len(rows)),) if files is None else tuple((files[name], count) for name, count in counts),
        faults=tuple(sorted(cells.faults, key=lambda fault: fault.row)),
        word_aligned=word_aligned,
        notes=(*notes, *(f"{repair}: {count}" for repair, count in sorted(cells.counts.items()) if count)),
        splits=tuple(counts),
    )
    if problems:
        ids = raw.table["id"].to_pylist()
        problems += [f"{raw.place(fault.row)} (id {ids[fault.row]}): {fault.problem}" for fault in raw.faults]
        raise data_error(path, problems)
    return raw


def _split_names(path: Path, content: Any, form: Form) -> tuple[dict[str, str], list[str]]:
    """Return the file's name of each split, in the order of `SPLITS`, and the faults of the splits."""
    aliases: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in content if isinstance(content, dict) else ():
        if isinstance(name, str) and name.lower() in SPLIT_ALIASES:
            aliases[SPLIT_ALIASES[name.lower()]].append(name)
    lists = {name for group in aliases.values() for name in group if isinstance(content[name], (list, tuple))}
    if not lists:
        raise DataError(
            f"{path}: not {form.name}, which is a dict of the splits {', '.join(_FILE_NAMES.values())}, "
            f"each a list of {form.sample}"
        )
    names: dict[str, str] = {}
    problems = []
    for split, present in aliases.items():
        if not present and split != "valid":
            problems.append(f"the split {_FILE_NAMES[split]} is missing")
        elif len(present) > 1:
            problems.append(f"{' and '.join(present)} are names of one split")
        elif present and present[0] not in lists:
            problems.append(f"the split {present[0]} is {kind_of(content[present[0]])}, not a list of samples")
        elif present:
            names[split] = present[0]
    return names, problems


def _left_out(content: dict[Any, Any], used: Collection[str]) -> Iterator[str]:
    for name in [name for name in content if name not in used]:
        yield f"{shown(name)}, {kind_of(content[name])}, is left out"


def _taken(samples: list[Any]) -> Iterator[Any]:
    """Yield the samples in their order, and free each before the next."""
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
