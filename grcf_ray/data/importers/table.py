"""Import tables of this package's own layout: a Parquet, CSV, TSV or JSON Lines file, or a folder of them.

Columns in any order: id, text, label; split, unless files are named train, valid and test; optionally audio and vision
(lists of feature rows), context (list of strings) and video_id. In CSV and TSV, lists are JSON. A line of JSON Lines is
an object with the columns of a row. Other columns are ignored.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import itertools
import json
import shlex
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from grcf_ray.console import Progress
from grcf_ray.data.cells import is_unicode, shown, unique_names
from grcf_ray.data.frames import FRAMES
from grcf_ray.data.raw import RAW_SCHEMA, RawTable
from grcf_ray.data.schema import MODALITIES
from grcf_ray.data.sniff import check_kind, files_of
from grcf_ray.data.splits import SPLIT_ALIASES
from grcf_ray.data.validation import Fault
from grcf_ray.errors import DataError, collect_error, data_error, faults_message, reason

VARIANTS: dict[str, str] = {}

_JSON_LINES = {".jsonl", ".ndjson"}
_SUFFIXES = {".parquet", ".csv", ".tsv", *_JSON_LINES}
_REQUIRED = ("id", "split", "text", "label")
_OPTIONAL = (*MODALITIES, "context", "video_id")
_NUMBERS = ("label", *MODALITIES)
_NAMES = ("id", "video_id")
_ROWS_AT_A_TIME = 1000
# A CSV row with features can be long, and must fit one block of Arrow's reader.
_LARGEST_BLOCK = 1 << 30
_CELL_SHOWN = 40
_STREAMED_BLOCK = 1 << 24
"""Bytes of a streamed CSV file that are read at a time."""


def files(source: Path) -> list[Path]:
    """List the tables of a source; in a folder with tables named after splits, only these."""
    if source.is_file():
        return [source] if source.suffix.lower() in _SUFFIXES or _is_parquet(source) else []
    tables = [path for path in files_of(source) if path.suffix.lower() in _SUFFIXES]
    return [path for path in tables if path.stem.lower() in SPLIT_ALIASES] or tables


def read(source: Path, variant: str = "") -> RawTable:
    """Read all tables of a source; DataError names every unreadable file and every missing column."""
    tables: list[pa.Table] = []
    faults: list[Fault] = []
    problems: list[str] = []
    ignored: dict[str, None] = {}
    paths = files(source) or [source]
    for path in paths:
        if file := collect_error(problems, _read_file, path):
            table, file_faults, others = file
            before = sum(table.num_rows for table in tables)
            faults += [fault._replace(row=before + fault.row) for fault in file_faults]
            ignored |= dict.fromkeys(others)
            tables.append(table)
    if problems:
        raise data_error(source, problems, named=True)
    return RawTable(
        table=pa.concat_tables(tables, promote_options="default"),
        files=tuple((path, table.num_rows) for path, table in zip(paths, tables, strict=True)),
        faults=tuple(faults),
        notes=(f"columns that are not used: {', '.join(map(repr, ignored))}",) if ignored else (),
    )


def stream(
    path: Path, columns: Collection[str], rows: int, *, optional: Collection[str] = ()
) -> Iterator[tuple[pa.Table, list[Fault]]]:
    """Yield one table of a source, up to `rows` rows at a time, with the faults of each part; to score its rows.

    columns: the columns of `RAW_SCHEMA` to read; `text`, if asked for, must exist, others may be missing. optional:
    columns whose unreadable cells are null without a fault. A fault's row is counted within its part.
    """
    present, _ = _header(path)
    _check_columns(path, present, ("text",) if "text" in columns else ())
    names = [name for name in present if name in columns]
    yield from _parts(path, names, rows, largest_block=_STREAMED_BLOCK, optional=optional)


def _read_file(path: Path) -> tuple[pa.Table, list[Fault], list[str]]:
    """Read the rows of a file, the faults of their cells, and the names of unknown columns."""
    present, most = _header(path)
    # Without a split column, the file's name tells the split.
    named = "split" not in present and path.stem.lower() in SPLIT_ALIASES
    _check_columns(path, [*present, *["split"] * named], _REQUIRED)
    names = [name for name in RAW_SCHEMA.names if name in present]
    tables: list[pa.Table] = []
    faults: list[Fault] = []
    rows, progress = 0, Progress(f"reading rows of {path.name}", most)
    for part, part_faults in _parts(path, names, _ROWS_AT_A_TIME, largest_block=_LARGEST_BLOCK):
        faults += [fault._replace(row=rows + fault.row) for fault in part_faults]
        rows += part.num_rows
        progress.add(part.num_rows)
        tables.append(part)
    table = pa.concat_tables(tables)
    if named:
        table = table.append_column("split", pa.repeat(pa.scalar(path.stem), rows))
    return table, faults, [name for name in present if name not in RAW_SCHEMA.names]


def _header(path: Path) -> tuple[list[str], int]:
    """Return the names of a file's columns, and the most rows that it can have.

    DataError for a file that is not such a table.
    """
    check_kind(path)
    if _is_parquet(path):
        with _readable(path, "Parquet"), pq.ParquetFile(path) as file:
            return list(file.schema_arrow.names), file.metadata.num_rows
    lines = _check_encoding(path)
    if path.suffix.lower() in _JSON_LINES:
        return _json_columns(path), lines
    with _readable(path, "CSV"), path.open(encoding="utf-8-sig", newline="") as file:
        return next(filter(None, csv.reader(file, delimiter=_delimiter(path))), []), lines


def _parts(
    path: Path, names: list[str], rows: int, *, largest_block: int, optional: Collection[str] = ()
) -> Iterator[tuple[pa.Table, list[Fault]]]:
    """Yield up to `rows` rows of some columns at a time, in the types of `RAW_SCHEMA`, and the faults of their cells.

    DataError for a file without rows. largest_block: bytes of a CSV file that are read at a time.
    """
    if _is_parquet(path):
        batches = _parquet_batches(path, names, rows)
    elif path.suffix.lower() in _JSON_LINES:
        batches = _json_batches(path, names, rows)
    else:
        batches = _csv_batches(path, names, largest_block)
    any_rows = False
    for batch in batches:
        table = pa.Table.from_batches([batch])
        for start in range(0, table.num_rows, rows):
            any_rows = True
            yield _typed(path, table.slice(start, rows), optional)
    if not any_rows:
        raise DataError(f"{path}: no rows")


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix.lower() == ".parquet" or file.read(4) == b"PAR1"


def _parquet_batches(path: Path, names: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    with _readable(path, "Parquet"), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(rows, columns=names):
            # Arrow does not check that texts are UTF-8. A table's error names the column better than a batch's.
            pa.Table.from_batches([batch]).validate(full=True)
            yield batch


def _json_columns(path: Path) -> list[str]:
    """Return the names in all rows; DataError with every line that is not a row."""
    faults: list[str] = []
    present: dict[str, None] = {}
    for number, line in _json_lines(path):
        try:
            _, names = _json_cells(line)
            present |= dict.fromkeys(names)
        except (ValueError, RecursionError) as error:
            faults.append(f"line {number}: {reason(error)}")
    if faults:
        raise data_error(path, faults)
    return list(present)


def _json_batches(path: Path, names: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield up to `rows` rows at a time, with lists and numbers as texts, as in CSV."""
    schema = pa.schema(dict.fromkeys(names, pa.string()))
    lines = (_json_cells(line)[0] for _, line in _json_lines(path))
    while part := list(itertools.islice(lines, rows)):
        yield pa.RecordBatch.from_pylist(part, schema)


def _json_lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _json_cells(line: str) -> tuple[dict[str, str | None], list[str]]:
    """Return the known cells of an object as texts, and all its names.

    ValueError for anything but an object, a name that occurs twice, or another value in place of a text.
    """
    value = json.loads(line, object_pairs_hook=unique_names)
    if not isinstance(value, dict):
        raise ValueError('not an object, such as {"id": ..., "text": ...}')
    cells: dict[str, str | None] = {}
    for name in RAW_SCHEMA.names:
        if name not in value:
            continue
        cell = value[name]
        if cell is None or isinstance(cell, str):
            cells[name] = cell
            if cell is not None and not is_unicode(cell):
                raise ValueError(f"{name} has an incomplete character (a lone surrogate)")
        elif name in _WRITTEN or (name in _NAMES and type(cell) is int):
            cells[name] = json.dumps(cell)
        else:
            raise ValueError(f"{name} is {shown(cell)}, not a text{' or a whole number' if name in _NAMES else ''}")
    return cells, list(value)


def _csv_batches(path: Path, names: list[str], largest_block: int) -> Iterator[pa.RecordBatch]:
    broken: list[Any] = []

    def skip(row: Any) -> str:
        broken.append(row)
        return "skip"

    # Arrow counts rows only with a single thread.
    read = pyarrow.csv.ReadOptions(use_threads=False, block_size=min(path.stat().st_size + 1, largest_block))
    parse = pyarrow.csv.ParseOptions(delimiter=_delimiter(path), newlines_in_values=True, invalid_row_handler=skip)
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=names)
    with _readable(path, "CSV"), pyarrow.csv.open_csv(path, read, parse, convert) as reader:
        for batch in reader:
            if not broken:
                yield batch
    if broken:
        lines = [f"row {row.number - 1} has {row.actual_columns} cells, not {row.expected_columns}" for row in broken]
        raise DataError(faults_message(f"{path}: {len(lines)} rows do not fit the header", lines))


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


@contextlib.contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Turn the errors of Arrow into a DataError that names the file."""
    try:
        yield
    except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable {kind} file ({reason(error)})") from error


def _check_encoding(path: Path) -> int:
    """Return the number of lines; raise DataError if a file is not text in UTF-8, or has another delimiter."""
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: line {number} is not UTF-8 ({error.reason}). Save the file in UTF-8"
                ) from error
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    if path.suffix.lower() != ".csv" or "," in header:
        return number
    if "\t" in header:
        raise DataError(f"{path}: its cells are separated by tabs. Rename it to {path.with_suffix('.tsv').name}")
    for mark in ";|":
        if mark in header:
            code = (
                "import sys, pyarrow.csv as c; c.write_csv(c.read_csv(sys.argv[1], parse_options=c.ParseOptions("
                f'delimiter="{mark}", newlines_in_values=True)), sys.argv[2])'
            )
            raise DataError(
                f"{path}: its cells are separated by {mark!r}, not commas. Convert it: "
                + shlex.join(["python", "-c", code, str(path), str(path.with_name(f"{path.stem}-commas.csv"))])
            )
    return number


def _check_columns(path: Path, present: list[str], required: Collection[str]) -> None:
    if missing := [name for name in required if name not in present]:
        remedy = " (or files named train, valid and test)" if "split" in missing else ""
        raise DataError(f"{path}: missing columns {', '.join(missing)}{remedy}; present: {', '.join(present)}")
    misspelled = [
        f"{other!r} to {name}"
        for name in _OPTIONAL
        if name not in present
        for other in present
        if other.strip().lower() == name
    ]
    if misspelled:
        raise DataError(f"{path}: column names are lower case: rename {', '.join(misspelled)}")
    if twice := sorted({name for name in RAW_SCHEMA.names if present.count(name) > 1}):
        raise DataError(f"{path}: more than one column named {', '.join(twice)}")


def _typed(path: Path, table: pa.Table, optional: Collection[str] = ()) -> tuple[pa.Table, list[Fault]]:
    """Convert every column to its type in `RAW_SCHEMA`; a cell that cannot be converted is null, and a fault.

    optional: columns in which it is not a fault.
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
