"""Export a run's trials as a table with typed columns: CSV, Parquet or JSON, one row per trial."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grcf_ray.errors import ConfigError
from grcf_ray.report.selection import Row, columns_of
from grcf_ray.storage import StoragePath

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a text that a spreadsheet would run as a formula."""


def export_rows(rows: Sequence[Row], place: StoragePath, *, about: str) -> None:
    """Write the rows in the format of the file name's ending. ConfigError: see `check_format`.

    about: the run, which JSON and Parquet store. In CSV an apostrophe precedes a text that a spreadsheet would take for
    a formula; JSON and Parquet have all texts unchanged.
    """
    ending = check_format(place)
    with place.writing() as path:
        FORMATS[ending](rows, path, about)


def check_format(place: StoragePath) -> str:
    """Return the format of a file name's ending. ConfigError if it is not one of `FORMATS`."""
    ending = place.name.rpartition(".")[2].lower()
    if ending not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise ConfigError(
            f"{place}: the name should end in {endings}, or be an Optuna storage such as sqlite:///trials.db"
        )
    return ending


def typed_table(rows: Sequence[Row]) -> pa.Table:
    """Return the rows as Arrow columns of booleans, integers or floats; a column of mixed types becomes strings."""
    columns = {}
    for name in _columns(rows):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except pa.ArrowException:
            columns[name] = pa.array([None if value is None else str(value) for value in values])
        if pa.types.is_null(columns[name].type):
            columns[name] = columns[name].cast(pa.string())
    return pa.table(columns)


def _write_csv(rows: Sequence[Row], path: Path, about: str) -> None:
    names = _columns(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        # Python writes a float in the fewest digits that read back as the same float.
        csv.writer(file).writerows([map(_harmless, names), *(map(_harmless, map(row.get, names)) for row in rows)])


def _write_parquet(rows: Sequence[Row], path: Path, about: str) -> None:
    pq.write_table(typed_table(rows).replace_schema_metadata({"run": about}), path)


def _write_json(rows: Sequence[Row], path: Path, about: str) -> None:
    content = {"run": about, "trials": [dict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns of all rows, metrics after the parameters of both stages."""
    return sorted(columns_of(rows), key=lambda name: name.startswith("best/"))


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


FORMATS: Mapping[str, Callable[[Sequence[Row], Path, str], None]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "json": _write_json,
}
"""Writer of each format, by the file name's ending."""
