"""Damage the files of every format by a seed, import them, and report the outcome.

An import must end with a table or a DataError, in little time and memory. A table must have the modalities of the
whole files, unless a note says otherwise. Damage in one place may change one utterance or one column only.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from data.foreign import DOWNLOADS, STRANGE, dumped
from data.formats import FORMATS, Files, arrow_bytes, parquet_bytes, put_files

from grcf_ray.data.importers import ImportOptions, import_source
from grcf_ray.errors import DataError

MOST_BYTES = 1 << 30
"""Of address space beyond what the process has when it begins."""

_OF_BYTES = {"flip", "letters", "hole", "insert", "twice", "zeros"}
"""Damage to single bytes, after which any value may be another."""
_OF_LINES = {"csv", "semicolons", "tsv", "jsonl"}
"""Formats whose files may end after any line."""


def damaged(files: Files, rng: random.Random) -> tuple[Files, str]:
    """Damage one of the files; return all of them, and a description of the damage."""
    name = rng.choice(list(files))
    content = bytearray(files[name])
    ways = ["flip", "flip", "letters", "cut", "hole", "insert", "twice", "zeros", "download", "empty", "join", "swap"]
    way = rng.choice([*ways, "value", "value", "value", "value"])
    head = min(len(content), rng.choice([300, 2000, 10**9]))
    at = rng.randrange(head)
    size = rng.choice([1, 2, 8, 64])
    if way == "flip":
        for _ in range(rng.choice([1, 4, 40])):
            content[rng.randrange(head)] ^= 1 << rng.randrange(8)
    elif way == "letters":
        # Names and numbers stand in letters, and other bytes seldom make another name.
        places = [place for place, byte in enumerate(content) if chr(byte).isascii() and chr(byte).isalnum()]
        for place in rng.sample(places, min(len(places), rng.choice([1, 4]))):
            content[place] = ord(rng.choice("aeosxR019"))
    elif way == "cut":
        del content[at:]
    elif way == "hole":
        del content[at : at + size]
    elif way == "insert":
        content[at:at] = rng.randbytes(size)
    elif way == "twice":
        content[at:at] = content[at : at + size]
    elif way == "zeros":
        content[at : at + size] = bytes(len(content[at : at + size]))
    elif way == "download":
        content[:] = rng.choice([*DOWNLOADS.values(), b"not found", b"{}", b"\x80\x04N.", b"[]"])
    elif way == "empty":
        content[:] = b"\n" * rng.randrange(2)
    elif way == "join":
        content += files[rng.choice(list(files))]
    elif way == "swap":
        content[:] = files[rng.choice(list(files))]
    else:
        changed = _with_another_value(name, bytes(content), rng)
        content[:] = changed
    return {**files, name: bytes(content)}, f"{way} {name}"


def _with_another_value(name: str, content: bytes, rng: random.Random) -> bytes:
    """Replace, drop or repeat one value of a file, and write it in its own format."""
    if content.startswith(b"\x89HDF"):
        return _other_hdf5(content, rng)
    if name.endswith(".parquet"):
        return parquet_bytes(_other_table(pq.read_table(io.BytesIO(content)), rng))
    if name.endswith(".arrow"):
        return arrow_bytes(_other_table(pa.ipc.open_stream(content).read_all(), rng))
    if name.endswith((".json", ".jsonl")):
        lines = [content] if name.endswith(".json") else content.splitlines()
        row = rng.randrange(len(lines))
        value = json.loads(lines[row])
        _change(value, [None, "x", 7, 1.5, True, [], {}, [[]], [[None]], {"a": 1}, 10**30, float("nan"), "\ud800"], rng)
        return b"\n".join([*lines[:row], json.dumps(value).encode(), *lines[row + 1 :]])
    if name.endswith((".csv", ".tsv")):
        lines = content.splitlines()
        row = rng.randrange(len(lines))
        cells = lines[row].split(b"," if name.endswith("csv") else b"\t")
        cells[rng.randrange(len(cells))] = rng.choice(
            [b"", b"x", b"nan", b"1e999", b'""', b'"', b"[[1]]", b"\xff", b"\x00"]
        )
        return b"\n".join([*lines[:row], b",".join(cells), *lines[row + 1 :]])
    value = pickle.loads(content, encoding="latin-1")
    _change(value, STRANGE, rng)
    return dumped(value, rng.choice([0, 2, 4, 5]))


def _change(value: Any, strange: list[Any], rng: random.Random) -> None:
    """Replace one value within lists, dicts, tuples and arrays by a strange one."""
    while True:
        if isinstance(value, dict):
            keys: list[Any] = list(value)
        else:
            keys = list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = value[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.7:
            value = inner
            continue
        if isinstance(inner, tuple) and inner and rng.random() < 0.8:
            inner = list(inner)
            _change(inner, strange, rng)
            value[key] = tuple(inner)
            return
        way = rng.choice(["other", "other", "out", "array"])
        if way == "out":
            del value[key]
        elif way == "array" and isinstance(inner, np.ndarray) and inner.size:
            shapes = [inner[:1], inner[:0], inner.T, inner * 0, inner.astype(str), inner.astype(object), inner[..., :1]]
            value[key] = rng.choice(shapes)
        else:
            value[key] = rng.choice(strange)
        return


def _other_hdf5(content: bytes, rng: random.Random) -> bytes:
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        way = rng.choice(["out", "move", "data", "group", "link", "twice"])
        if way == "move":
            file.move(name, rng.choice([f"{name}x", f"{name.rpartition('/')[0]}/renamed".strip("/"), "other"]))
        elif way == "twice":
            file[f"{name}x"] = file[name]
        else:
            del file[name]
            if way == "data":
                kinds = [np.ones(3), np.ones((3, 2)), np.ones((0, 74)), b"x", np.full((3, 1), np.nan), np.arange(9)]
                file.create_dataset(name, data=rng.choice(kinds))
            elif way == "group":
                file.create_group(name)
            elif way == "link":
                file[name] = rng.choice([h5py.SoftLink("/"), h5py.ExternalLink("audio.csd", "/")])
    return buffer.getvalue()


def _other_table(table: pa.Table, rng: random.Random) -> pa.Table:
    at = rng.randrange(table.num_columns)
    name = table.column_names[at]
    strange: list[Any] = [
        pa.array(cells * table.num_rows, kind)
        for cells, kind in (
            ([None], pa.null()),
            (["x"], pa.string()),
            ([7], pa.int8()),
            ([[]], pa.list_(pa.list_(pa.float32()))),
            ([[[]]], pa.list_view(pa.list_(pa.float16()))),
            ([[[1, 2]]], pa.list_view(pa.list_view(pa.float64()))),
            ([{"a": 1}], pa.struct({"a": pa.int8()})),
            ([b"\xff"], pa.binary()),
            ([True], pa.bool_()),
        )
    ]
    way = rng.choice(["other", "other", "out", "name", "twice"])
    # Without one of the columns that need not be there it is a whole table of other data.
    if way == "out" and name not in ("audio", "vision", "context"):
        table = table.drop_columns([name])
    elif way == "name":
        table = table.rename_columns([f"{item}x" if item == name else item for item in table.column_names])
    elif way == "twice":
        table = table.append_column(name, table[name])
    else:
        table = table.set_column(at, name, rng.choice(strange))
    return table


def outcome(name: str, seed: int, folder: Path) -> tuple[str, str]:
    """The outcome of one import, and details: `imported` or `refused`, else a fault of the importer."""
    rng = random.Random(f"{name} {seed}")
    kind = FORMATS[name]
    whole = kind.files(rng)
    files, told = damaged(whole, rng)
    try:
        table, notes = imported(folder / "damaged", files, kind.options)
    except DataError as error:
        text = str(error)
        text.encode()
        # The bounds of an importer name a file; an error of Python or a library about memory means a missing bound.
        return ("memory" if "MemoryError" in text or "nable to allocate" in text else "refused"), f"{told}: {text}"
    except Exception as error:
        return "traceback", f"{told}: {type(error).__name__}: {error}"
    before, whole_notes = imported(folder / "whole", whole, kind.options)
    for modality in ("audio", "vision"):
        count, was = (
            len(rows) - rows[modality].null_count if modality in rows.column_names else 0 for rows in (table, before)
        )
        noted = any(modality in note or "not used" in note for note in notes if note not in whole_notes)
        # A sample that is left out as a whole takes its modalities with it.
        if count < was and not noted and (not count or len(table) == len(before)):
            return "rows lost" if count else "lost", f"{told}: {modality} {was} -> {count}; {notes}"
    way = told.split()[0]
    if way == "cut" and name not in _OF_LINES and not table.equals(before):
        return "changed", told
    if way not in _OF_BYTES and (strayed := _strayed(before, table, notes)):
        return "changed", f"{told}: {strayed}"
    if way == "value" and name not in _OF_LINES and len(before) - len(table) > 1:
        return "utterances lost", told
    return "imported", told


def _strayed(before: pa.Table, after: pa.Table, notes: tuple[str, ...]) -> str:
    """Describe the cells that differ; empty if all are of one utterance or of one column."""
    rows = {row["id"]: row for row in before.to_pylist()}
    names = {*before.column_names, *after.column_names}
    if any("no valid split" in note for note in notes):
        # One row more or less may change the drawn rows.
        names.discard("split")
    cells = {
        (row["id"], name)
        for row in after.to_pylist()
        for name in names
        if row["id"] in rows and row.get(name) != rows[row["id"]].get(name)
    }
    ids, columns = {at for at, _ in cells}, {name for _, name in cells}
    return "" if len(ids) <= 1 or len(columns) <= 1 else f"{sorted(ids)[:5]} {sorted(columns)}"


def imported(folder: Path, files: Files, options: ImportOptions) -> tuple[pa.Table, tuple[str, ...]]:
    """Import files; return the table and the notes."""
    shutil.rmtree(folder, ignore_errors=True)
    table, info = import_source(put_files(folder, files), options)
    table.validate(full=True)
    assert sum(info.splits.values()) == table.num_rows
    return table, info.notes


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Let this process have little more address space than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
