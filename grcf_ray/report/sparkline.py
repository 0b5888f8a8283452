"""Curves and bars of block characters, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["bar", "sparkline"]

_LEVELS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], *, width: int) -> str:
    """A letter a value, the lowest lowest, a space for None; of more values than `width` the last of each equal share.

    All at half height where they are all the same.
    """
    if len(values) > width:
        values = [values[(index + 1) * len(values) // width - 1] for index in range(width)]
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ""
    low, high = min(known), max(known)

    def letter(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return " "
        share = 0.5 if high == low else (value - low) / (high - low)
        return _LEVELS[min(len(_LEVELS) - 1, int(share * len(_LEVELS)))]

    return "".join(map(letter, values))


def bar(share: float, *, width: int) -> str:
    """A bar filled to a share from 0 to 1."""
    full = round(min(1.0, max(0.0, share)) * width)
    return "█" * full + "░" * (width - full)
