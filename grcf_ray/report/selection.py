"""Filter and sort rows by what people type: state=pruned, mae<0.8, --sort head_lr."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grcf_ray.config import nearest
from grcf_ray.errors import ConfigError

Row = Mapping[str, Any]
"""Values by column: strings, numbers, truth values, or None."""

_FILTER = re.compile(r"\s*(?P<column>[^=<>!\s]+)\s*(?P<relation>!=|<=|>=|=|<|>)\s*(?P<value>.*?)\s*")
_RELATIONS = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NONE = "-"
"""None in tables and filters."""


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Return the columns of all rows, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def column_named(name: str, columns: Sequence[str]) -> str:
    """Return the column of this name, or the only one that ends in it: head_lr for stage2.head_lr.

    ConfigError if there is none, or several.
    """
    if name in columns:
        return name
    ending = [column for column in columns if column.endswith((f".{name}", f"/{name}"))]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ConfigError(f"{name}: several columns end in it; give one in full: {', '.join(ending)}")
    shown = f"{nearest(name, columns)}. Columns: {', '.join(columns)}" if columns else "; the table is empty"
    raise ConfigError(f"{name}: no such column{shown}")


def select(rows: Sequence[Row], filters: Sequence[str]) -> list[Row]:
    """Return the rows that match every filter. ConfigError if a filter cannot be read.

    A filter is COLUMN=VALUE, or has != < <= > >= in place of =. The value `-` means None; < and > never match None.
    """
    chosen, columns = list(rows), columns_of(rows)
    for text in filters:
        match = _FILTER.fullmatch(text)
        if match is None:
            raise ConfigError(f"--filter {text!r}: should be COLUMN=VALUE, or have != < <= > >= in place of =")
        if not rows:
            continue
        column = column_named(match["column"], columns)
        relation, value = match["relation"], match["value"]
        if all(_number(row.get(column)) for row in rows if row.get(column) is not None) and value != _NONE:
            try:
                value = float(value)
            except ValueError as error:
                raise ConfigError(f"--filter {text!r}: {value!r} should be a number") from error
        chosen = [row for row in chosen if _holds(relation, row.get(column), value)]
    return chosen


def sorted_by(rows: Sequence[Row], column: str, *, reverse: bool = False) -> list[Row]:
    """Return the rows sorted by a column: numbers before strings, None always last; the sort is stable."""
    having = [row for row in rows if row.get(column) is not None]

    def key(row: Row) -> tuple[bool, Any]:
        cell = row[column]
        return (False, cell) if _number(cell) else (True, str(cell))

    return sorted(having, key=key, reverse=reverse) + [row for row in rows if row.get(column) is None]


def _number(cell: Any) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _holds(relation: str, cell: Any, value: Any) -> bool:
    if cell is None or value == _NONE:
        return relation in ("=", "!=") and (cell is None and value == _NONE) == (relation == "=")
    if isinstance(value, str):
        cell = str(cell).lower() if isinstance(cell, bool) else str(cell)
    return bool(_RELATIONS[relation](cell, value))
