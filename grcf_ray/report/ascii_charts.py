"""Character charts for a terminal: curves, bars and the history of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

_LEVELS = "▁▂▃▄▅▆▇█"
_TRIAL, _BEST = "•", "─"
_AXIS_ROOM = 10
_STEP = 3
"""Columns of a trial in a chart that is wide enough."""


def sparkline(values: Sequence[float | None], *, width: int) -> str:
    """Return a bar character for each value, a space for None; equal values at half height, "" without values.

    More values than `width` are divided into equal groups, each shown by its last value.
    """
    if len(values) > width:
        values = [values[(index + 1) * len(values) // width - 1] for index in range(width)]
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ""
    low, high = min(known), max(known)

    def character(value: float | None) -> str:
        return " " if value is None or not math.isfinite(value) else _LEVELS[_level(value, low, high, len(_LEVELS))]

    return "".join(map(character, values))


def bar(share: float, *, width: int) -> str:
    """Return a bar that is filled to a share from 0 to 1."""
    full = round(min(1.0, max(0.0, share)) * width)
    return "█" * full + "░" * (width - full)


def history(
    values: Sequence[float | None], direction: Literal["min", "max"], *, width: int, height: int = 8
) -> list[str]:
    """Return the lines of a chart: a dot for each trial's value, a line for the best so far.

    Empty with fewer than two values. If there are more trials than columns, several share a column.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < 2:
        return []
    low, high = min(known), max(known)
    columns = min(len(values) * _STEP, max(1, width - _AXIS_ROOM))
    grid = [[" "] * columns for _ in range(height)]
    best_C: list[float | None] = [None] * columns
    best: float | None = None
    for index, value in enumerate(values):
        column, after = index * columns // len(values), (index + 1) * columns // len(values)
        if value is not None and math.isfinite(value):
            best = value if best is None else min(best, value) if direction == "min" else max(best, value)
            grid[_level(value, low, high, height)][column] = _TRIAL
        for each in range(column, max(column + 1, after)):
            best_C[each] = best
    for column, so_far in enumerate(best_C):
        if so_far is not None and grid[row := _level(so_far, low, high, height)][column] == " ":
            grid[row][column] = _BEST
    labels = {0: f"{low:.4f}", height - 1: f"{high:.4f}"}
    lines = [
        f"{labels.get(row, ''):>{_AXIS_ROOM - 2}} │{''.join(grid[row])}".rstrip() for row in reversed(range(height))
    ]
    return [*lines, f"{'':>{_AXIS_ROOM - 1}}└{_BEST * columns}"]


def _level(value: float, low: float, high: float, levels: int) -> int:
    share = 0.5 if high == low else (value - low) / (high - low)
    return min(levels - 1, int(share * levels))
