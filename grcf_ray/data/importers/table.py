"""Import a user's tables: a Parquet, Arrow, CSV, TSV or JSON Lines file, or a folder of them.

Columns in any order: text and label; optionally id, split, audio and vision (lists of feature rows), context (list of
strings) and video_id. Other names of the first four: see `choose_columns`. Files may be named after splits. In CSV and
TSV, lists are JSON. A line of JSON Lines is an object with the columns of a row. Other columns are ignored.

A folder may also be one that Hugging Face's `datasets` saved, or a data set of its hub. Its classes have names.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from grcf_ray.console import Progress
from grcf_ray.data.columns import ROLES, choose_columns
from grcf_ray.data.frames import FRAMES
from grcf_ray.data.raw import RAW_SCHEMA, RawTable
from grcf_ray.data.schema import MODALITIES
from grcf_ray.data.sniff import files_of
from grcf_ray.data.splits import SPLIT_ALIASES
from grcf_ray.data.table_files import SUFFIXES, class_names, is_binary, read_batches, read_header
from grcf_ray.data.validation import Fault
from grcf_ray.errors import DataError, collect_error, data_error

VARIANTS: dict[str, str] = {}

_REQUIRED = ("text", "label")
_GUESSED = ("text", "label", "id", "split")
_OPTIONAL = (*MODALITIES, "context", "video_id")
_NUMBERS = ("label", *MODALITIES)
_ROWS_AT_A_TIME = 1000
# A CSV row with features can be long, and must fit one block of Arrow's reader.
_LARGEST_BLOCK = 1 << 30
_CELL_SHOWN = 40
_STREAMED_BLOCK = 1 << 24
"""Bytes of a streamed CSV file that are read at a time."""
_SHARD = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<parts>\d{5})")
"""The name of a file that is one numbered part of a table."""
_CLASSES = (("negative", "positive"), ("neg", "pos"), ("no", "yes"), ("false", "true"))
"""Words for the classes 0 and 1."""
_NAMES_SHOWN = 10


def files(source: Path) -> list[Path]:
    """List the tables of a source; in a folder with tables named after splits, only these.

    A folder without tables may have them in the folder `data`, or in folders named after splits.
    """
    if source.is_file():
        return [source] if source.suffix.lower() in SUFFIXES or is_binary(source) else []
    inner = [folder for folder in _inner(source) if folder.name in ("data", *SPLIT_ALIASES)]
    tables = _tables(source) or [path for folder in inner for path in _tables(folder)]
    return [path for path in tables if _split_of(path)] or tables


def _inner(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _tables(folder: Path) -> list[Path]:
    # Hugging Face's datasets keeps intermediate results in files named cache.
    return [
        path
        for path in files_of(folder)
        if path.suffix.lower() in SUFFIXES and not (path.name.startswith("cache-") and path.suffix == ".arrow")
    ]


def _split_of(path: Path) -> str | None:
    """Return the split that a file's name tells, or the name of its folder if it is a part named data."""
    shard = _SHARD.fullmatch(path.stem)
    name = shard["name"] if shard else path.stem
    name = path.absolute().parent.name if shard and name == "data" else name
    return name if name.lower() in SPLIT_ALIASES else None


def read(source: Path, variant: str = "", columns: Mapping[str, str] = MappingProxyType({})) -> RawTable:
    """Read all tables of a source; DataError names every unreadable file and every missing column.

    columns: the columns that options name, by role.
    """
    tables: list[pa.Table] = []
    faults: list[Fault] = []
    notes: dict[str, None] = {}
    ignored: dict[str, None] = {}
    paths = files(source) or [source]
    problems = _missing_parts(paths) if source.is_dir() else []
    for path in paths:
        if file := collect_error(problems, _read_file, path, columns):
            table, file_faults, file_notes, others = file
            before = sum(table.num_rows for table in tables)
            faults += [fault._replace(row=before + fault.row) for fault in file_faults]
            notes |= dict.fromkeys(file_notes)
            ignored |= dict.fromkeys(others)
            tables.append(table)
    if problems:
        raise data_error(source, problems, named=True)
    if ignored:
        notes[f"columns that are not used: {', '.join(map(repr, ignored))}"] = None
    folders = [source, *_inner(source)] if source.is_dir() else []
    if unread := [path for folder in folders for path in _tables(folder) if path not in paths]:
        notes[f"tables that are not used: {', '.join(str(path.relative_to(source)) for path in unread)}"] = None
    return RawTable(
        table=pa.concat_tables(tables, promote_options="default"),
        files=tuple((path, table.num_rows) for path, table in zip(paths, tables, strict=True)),
        faults=tuple(faults),
        notes=tuple(notes),
    )


def _missing_parts(paths: list[Path]) -> list[str]:
    """List the missing files of tables that were written in numbered parts."""
    missing = {
        part
        for path in paths
        if (shard := _SHARD.fullmatch(path.stem))
        for number in range(int(shard["parts"]))
        if (part := path.with_name(f"{shard['name']}-{number:05}-of-{shard['parts']}{path.suffix}")) not in paths
    }
    return [f"{part}: a part of the table is missing: download it again" for part in sorted(missing)]


def stream(
    path: Path,
    names: Collection[str],
    rows: int,
    *,
    optional: Collection[str] = (),
    columns: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[pa.Table, list[Fault]]]:
    """Yield one table of a source, up to `rows` rows at a time, with the faults of each part; to score its rows.

    names: the columns of `RAW_SCHEMA` to read; `text`, if asked for, must exist, others may be missing. optional:
    columns whose unreadable cells are null without a fault. columns: the columns that options name, by role. A fault's
    row is counted within its part.
    """
    present, _ = read_header(path)
    text = [name for name in ("text",) if name in names]
    chosen = choose_columns(path, present, columns, required=text, guessed=text, others=_OPTIONAL)
    chosen = {name: column for name, column in chosen.items() if name in names}
    yield from _parts(path, chosen, rows, largest_block=_STREAMED_BLOCK, optional=optional)


def _read_file(path: Path, columns: Mapping[str, str]) -> tuple[pa.Table, list[Fault], list[str], list[str]]:
    """Read the rows of a file, the faults of their cells, remarks on its columns, and the names of unused columns."""
    present, most = read_header(path)
    chosen = choose_columns(path, present, columns, required=_REQUIRED, guessed=_GUESSED, others=_OPTIONAL)
    tables: list[pa.Table] = []
    faults: list[Fault] = []
    pairs: set[tuple[str, str]] = set()
    rows, progress = 0, Progress(f"reading rows of {path.name}", most)
    for part, part_faults in _parts(path, chosen, _ROWS_AT_A_TIME, largest_block=_LARGEST_BLOCK, pairs=pairs):
        faults += [fault._replace(row=rows + fault.row) for fault in part_faults]
        rows += part.num_rows
        progress.add(part.num_rows)
        tables.append(part)
    table = pa.concat_tables(tables)
    # Without a split column, the file's name tells the split.
    if "split" not in chosen and (split := _split_of(path)):
        table = table.append_column("split", pa.repeat(pa.scalar(split), rows))
    roles = {name: role for role, name in ROLES.items()}
    others = [f"{roles.get(name, name)} from {column!r}" for name, column in chosen.items() if name != column]
    notes = [f"columns: {', '.join(others)}"] if others else []
    notes += [f"labels {no!r} and {yes!r} are read as 0 and 1" for no, yes in sorted(pairs)]
    if pairs and not pc.all(pc.is_in(table["label"].drop_null(), value_set=pa.array([0.0, 1.0]))).as_py():
        raise DataError(f"{path}: some labels are words for two classes, others are numbers. Write all in one way")
    if names := class_names(path, chosen["label"]):
        notes.append(f"labels 0 to {len(names) - 1} are {', '.join(map(repr, names[:_NAMES_SHOWN]))}")
    return table, faults, notes, [name for name in present if name not in chosen.values()]


def _parts(
    path: Path,
    columns: dict[str, str],
    rows: int,
    *,
    largest_block: int,
    optional: Collection[str] = (),
    pairs: set[tuple[str, str]] | None = None,
) -> Iterator[tuple[pa.Table, list[Fault]]]:
    """Yield up to `rows` rows of some columns at a time, in the types of `RAW_SCHEMA`, and the faults of their cells.

    DataError for a file without rows. columns: the file's column of each name in `RAW_SCHEMA`. largest_block: bytes of
    a CSV file that are read at a time. pairs: words for classes are read as labels, and added; None to read none.
    """
    any_rows = False
    for batch in read_batches(path, columns, rows, largest_block=largest_block):
        table = pa.Table.from_batches([batch]).select(list(columns.values())).rename_columns(list(columns))
        for start in range(0, table.num_rows, rows):
            any_rows = True
            yield _typed(path, table.slice(start, rows), optional, pairs)
    if not any_rows:
        raise DataError(f"{path}: no rows")


def _typed(
    path: Path, table: pa.Table, optional: Collection[str], pairs: set[tuple[str, str]] | None
) -> tuple[pa.Table, list[Fault]]:
    """Convert every column to its type in `RAW_SCHEMA`; a cell that cannot be converted is null, and a fault.

    optional: columns in which it is not a fault. pairs: as in `_parts`.
    """
    faults: list[Fault] = []
    columns = {}
    for name in table.column_names:
        column, wanted = table[name], RAW_SCHEMA.field(name).type
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_string_view(column.type):
            column = column.cast(pa.large_string())
        if _has_views(column.type):
            column = pa.chunked_array([_plain_lists(chunk) for chunk in column.chunks])
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        if is_text and name in _WRITTEN:
            if name == "label" and pairs is not None:
                column = _without_words(column, pairs)
            column, column_faults = _parsed(column, name, wanted)
            faults += [] if name in optional else column_faults
        else:
            try:
                # Numbers may be rounded; texts must be UTF-8.
                column = column.cast(wanted, safe=name not in _NUMBERS)
            except pa.ArrowException as error:
                if name not in optional:
                    raise DataError(f"{path}: column {name} is of type {column.type}, needs {wanted}") from error
                column = pa.nulls(len(column), wanted)
        columns[name] = column
    return pa.table(columns), faults


def _without_words(column: pa.ChunkedArray, pairs: set[tuple[str, str]]) -> pa.ChunkedArray:
    """Replace labels by 0 and 1 if all are words for two classes, and add these words to `pairs`."""
    plain = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    for pair in _CLASSES:
        number = pc.index_in(plain, value_set=pa.array(pair, plain.type))
        if number.null_count == column.null_count < len(column):
            pairs.add(pair)
            return number.cast(pa.string())
    return column


def _has_views(kind: Any) -> bool:
    views = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    return bool(views or (_is_nested(kind) and _has_views(kind.value_type)))


def _plain_lists(array: Any) -> Any:
    """Convert lists of any kind to lists with offsets: Arrow's own cast of list views makes invalid arrays."""
    if not _is_nested(array.type):
        return array
    lengths = pc.fill_null(pc.list_value_length(array).cast(pa.int64()), 0)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False))]), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, _plain_lists(array.flatten()), mask=array.is_null())


def _is_nested(kind: Any) -> bool:
    # Structs and maps have no values of one type.
    return pa.types.is_nested(kind) and hasattr(kind, "value_type") and not pa.types.is_map(kind)


def _parsed(column: pa.ChunkedArray, name: str, wanted: Any) -> tuple[pa.ChunkedArray, list[Fault]]:
    if name == "label":
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(column, ""), None, column)
        try:
            return column.cast(wanted), []
        except pa.ArrowInvalid:
            pass
    parse, needs = _WRITTEN[name]
    values, faults = [], []
    for row, cell in enumerate(column.to_pylist()):
        value, readable = _read_cell(parse, cell)
        values.append(value)
        if not readable:
            short = cell if len(cell) <= _CELL_SHOWN else f"{cell[:_CELL_SHOWN]}..."
            faults.append(Fault(row, name, f"{name} {short!r} is not {needs}"))
    return pa.chunked_array([pa.array(values, wanted)]), faults


def _read_cell(parse: Callable[[str], Any], cell: str | None) -> tuple[Any, bool]:
    if cell is None or not cell.strip():
        return None, True
    try:
        return parse(cell), True
    except (ValueError, TypeError, RecursionError):
        return None, False


def _listed(kind: Any, cell: str, **how: Any) -> list[Any]:
    values = json.loads(cell, **how)
    if not isinstance(values, list):
        raise TypeError(values)
    pa.array(values, kind)
    return values


_rows = functools.partial(_listed, FRAMES.value_type, parse_int=float)
_WRITTEN: dict[str, tuple[Callable[[str], Any], str]] = {
    "label": (float, "a number"),
    "audio": (_rows, "a JSON list of rows of numbers"),
    "vision": (_rows, "a JSON list of rows of numbers"),
    "context": (functools.partial(_listed, pa.string()), "a JSON list of strings"),
}
