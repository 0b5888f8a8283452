"""Read the columns of a table's file in parts: Parquet, Arrow, CSV, TSV or JSON Lines."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from grcf_ray.data.cells import is_unicode, shown, unique_names
from grcf_ray.data.sniff import check_kind
from grcf_ray.errors import DataError, data_error, faults_message, reason

_JSON_LINES = {".jsonl", ".ndjson"}
_ARROW = {".arrow", ".feather"}
SUFFIXES = {".parquet", ".csv", ".tsv", *_JSON_LINES, *_ARROW}
_MAGIC = {b"PAR1": "Parquet", b"ARRO": "Arrow", b"\xff\xff\xff\xff": "Arrow stream"}
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_NAMES = ("id", "video_id")
_ANY_VALUE = ("label", "audio", "vision", "context")
"""Columns whose cells in JSON need not be texts."""


def is_binary(path: Path) -> bool:
    """Return whether the first bytes of a file are those of Parquet or Arrow."""
    return _magic(path) in _MAGIC


def read_header(path: Path) -> tuple[list[str], int]:
    """Return the names of a file's columns, and the most rows that it can have.

    DataError for a file that is not such a table.
    """
    check_kind(path)
    if kind := _kind(path):
        with _readable(path, kind), _opened(path, kind) as file:
            if kind == "Parquet":
                return list(file.schema_arrow.names), file.metadata.num_rows
            return list(file.schema.names), sum(batch.num_rows for batch in _arrow_batches(file))
    lines = _check_encoding(path)
    if path.suffix.lower() in _JSON_LINES:
        return _json_columns(path), lines
    with _readable(path, "CSV"), path.open(encoding="utf-8-sig", newline="") as file:
        return next(filter(None, csv.reader(file, delimiter=_delimiter(path))), []), lines


def read_batches(path: Path, columns: dict[str, str], rows: int, *, largest_block: int) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a file, about `rows` rows at a time.

    columns: the file's column of each name in `RAW_SCHEMA`. largest_block: bytes of a CSV file that are read at a time.
    """
    if kind := _kind(path):
        return _binary_batches(path, kind, columns, rows)
    if path.suffix.lower() in _JSON_LINES:
        return _json_batches(path, columns, rows)
    return _csv_batches(path, columns, largest_block)


def class_names(path: Path, column: str) -> list[str]:
    """Return the names that Hugging Face's datasets wrote for the whole numbers of a column; empty for none."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if kind := _kind(path):
            with _readable(path, kind), _opened(path, kind) as file:
                metadata = (file.schema_arrow if kind == "Parquet" else file.schema).metadata
            return [str(name) for name in json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]]
    return []


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _kind(path: Path) -> str | None:
    """Return the kind of a file that is not text."""
    suffix = path.suffix.lower()
    kind = "Parquet" if suffix == ".parquet" else "Arrow stream" if suffix in _ARROW else None
    return _MAGIC.get(_magic(path), kind)


@contextlib.contextmanager
def _opened(path: Path, kind: str) -> Iterator[Any]:
    """Open a Parquet file, or an Arrow file of either layout."""
    if kind == "Parquet":
        with pq.ParquetFile(path) as file:
            yield file
        return
    with pa.memory_map(str(path)) as content:
        if kind == "Arrow":
            yield pa.ipc.open_file(content)
            return
        content.seek(max(0, content.size() - len(_END_OF_STREAM)))
        if content.read() != _END_OF_STREAM:
            raise ValueError("the end is missing")
        content.seek(0)
        yield pa.ipc.open_stream(content)


def _arrow_batches(file: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(file, pa.ipc.RecordBatchFileReader):
        return (file.get_batch(at) for at in range(file.num_record_batches))
    return iter(file)


def _binary_batches(path: Path, kind: str, columns: dict[str, str], rows: int) -> Iterator[pa.RecordBatch]:
    names = list(columns.values())
    with _readable(path, kind), _opened(path, kind) as file:
        batches = file.iter_batches(rows, columns=names) if kind == "Parquet" else _arrow_batches(file)
        for batch in batches:
            # Arrow does not check that texts are UTF-8. A table's error names the column better than a batch's.
            pa.Table.from_batches([batch]).select(names).validate(full=True)
            yield batch


def _json_columns(path: Path) -> list[str]:
    """Return the names in all rows; DataError with every line that is not a row."""
    faults: list[str] = []
    present: dict[str, None] = {}
    for number, line in _json_lines(path):
        try:
            present |= dict.fromkeys(_json_row(line))
        except (ValueError, RecursionError) as error:
            faults.append(f"line {number}: {reason(error)}")
    if faults:
        raise data_error(path, faults)
    return list(present)


def _json_batches(path: Path, columns: dict[str, str], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield up to `rows` rows at a time, with lists and numbers as texts, as in CSV.

    DataError with every line of which a cell cannot be read.
    """
    schema = pa.schema(dict.fromkeys(columns.values(), pa.string()))
    faults: list[str] = []
    lines = _json_lines(path)
    while part := list(itertools.islice(lines, rows)):
        cells = []
        for number, line in part:
            try:
                cells.append(_json_cells(_json_row(line), columns))
            except ValueError as error:
                faults.append(f"line {number}: {reason(error)}")
        if not faults:
            yield pa.RecordBatch.from_pylist(cells, schema)
    if faults:
        raise data_error(path, faults)


def _json_lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _json_row(line: str) -> dict[str, Any]:
    """Parse a line; ValueError for anything but an object, or for a name that occurs twice."""
    value = json.loads(line, object_pairs_hook=unique_names)
    if not isinstance(value, dict):
        raise ValueError('not an object, such as {"text": ..., "label": ...}')
    return value


def _json_cells(row: dict[str, Any], columns: dict[str, str]) -> dict[str, str | None]:
    """Return the cells of some columns as texts; ValueError for another value in place of a text."""
    cells: dict[str, str | None] = {}
    for name, column in columns.items():
        cell = row.get(column)
        if cell is None or isinstance(cell, str):
            cells[column] = cell
            if cell is not None and not is_unicode(cell):
                raise ValueError(f"{column} has an incomplete character (a lone surrogate)")
        elif name in _ANY_VALUE or (name in _NAMES and type(cell) is int):
            cells[column] = json.dumps(cell)
        else:
            raise ValueError(f"{column} is {shown(cell)}, not a text{' or a whole number' if name in _NAMES else ''}")
    return cells


def _csv_batches(path: Path, columns: dict[str, str], largest_block: int) -> Iterator[pa.RecordBatch]:
    names = list(columns.values())
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
    """Return a tab for TSV; for CSV, the mark of `,;|` or tab that makes the most cells of the header."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(filter(str.strip, file), "")
    return max(",;\t|", key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


@contextlib.contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Turn the errors of Arrow into a DataError that names the file."""
    try:
        yield
    except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable {kind} file ({reason(error)})") from error


def _check_encoding(path: Path) -> int:
    """Return the number of lines; raise DataError if a file is not text in UTF-8."""
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: line {number} is not UTF-8 ({error.reason}). Save the file in UTF-8"
                ) from error
    return number
