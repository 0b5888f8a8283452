"""The data of a plot as tables, for readers who cannot see it or want the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grcf_ray.report.html import Table

ROWS = 200
"""Rows of a table on the page; report.json has all."""


def tables_of(data: Mapping[str, Any]) -> list[Table]:
    """Return the parts of the data that have the form of a table, in the data's order; a caption is the path of a part.

    These are lists of mappings to plain values, lists of rows of one length, and neighbouring lists of plain values of
    one length. A mapping of plain values makes two columns. The key `table`, which the page shows, is omitted.
    """
    return list(_tables("", {name: value for name, value in data.items() if name != "table"}))


def _tables(name: str, data: Mapping[str, Any]) -> Iterator[Table]:
    plain = {key: value for key, value in data.items() if _plain(value)}
    if plain:
        yield Table(name, ("", "Value"), list(plain.items()))
    by_length: dict[int, dict[str, Sequence[Any]]] = {}
    for key, value in data.items():
        if isinstance(value, (list, tuple)) and value and all(map(_plain, value)):
            by_length.setdefault(len(value), {})[key] = value
    for columns in by_length.values():
        yield Table(name, tuple(columns), list(zip(*columns.values(), strict=True)))
    for key, value in data.items():
        below = f"{name}, {key}" if name else key
        if isinstance(value, Mapping):
            yield from _tables(below, value)
        elif isinstance(value, (list, tuple)) and value and not all(map(_plain, value)):
            yield from _listed(below, value)


def _listed(name: str, values: Sequence[Any]) -> Iterator[Table]:
    if all(isinstance(value, Mapping) for value in values):
        columns = list(dict.fromkeys(key for value in values for key, part in value.items() if _plain(part)))
        if columns:
            shown = [[part if _plain(part := value.get(key)) else None for key in columns] for value in values]
            yield Table(name, columns, shown)
        for index, value in enumerate(values):
            deeper = {key: part for key, part in value.items() if not _plain(part)}
            yield from _tables(f"{name} {index + 1}", deeper)
    elif all(isinstance(value, (list, tuple)) and all(map(_plain, value)) for value in values):
        width = max(map(len, values))
        if all(len(value) == width for value in values):
            yield Table(name, [str(index + 1) for index in range(width)], values)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))
