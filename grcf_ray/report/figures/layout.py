"""What the figures have in common: no width of their own, legends below, axes that make room for their labels."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_LEGEND_PX = 70
_TOP_PX = 30
_TICKS = 6
"""Steps between an axis's ticks at most."""


def new_figure(height: int, **layout: Any) -> Figure:
    """An empty figure so many pixels high, legend included, and as wide as the page."""
    from plotly.graph_objects import Figure

    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    margin = {"l": 10, "r": 10, "t": _TOP_PX, "b": _LEGEND_PX}
    return Figure(layout={"height": height, "autosize": True, "legend": legend, "margin": margin, **layout})


def rows(heights: list[float], gap: float) -> list[tuple[float, float]]:
    """Domains of axes one above the other, the topmost first. heights: in any unit; gap: share of the whole."""
    scale = (1 - gap * (len(heights) - 1)) / sum(heights)
    domains, top = [], 1.0
    for height in heights:
        domains.append((max(0.0, top - height * scale), top))
        top -= height * scale + gap
    return domains


def count_axis(most: int) -> dict[str, Any]:
    """An axis of counts up to `most`: its ticks stand at whole numbers."""
    steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    return {"tick0": 0, "dtick": next(step for step in steps if most <= _TICKS * step)}


def log_axis(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis that shows values from `low` to `high`, both above 0, with room at its ends."""
    ends = math.log10(low), math.log10(high)
    room = max(0.06 * (ends[1] - ends[0]), 0.05)
    ticks = log_ticks(10 ** (ends[0] - room), 10 ** (ends[1] + room))
    return {
        "type": "log",
        "range": (ends[0] - room, ends[1] + room),
        "tickvals": ticks,
        "ticktext": [tick_text(tick) for tick in ticks],
    }


def log_ticks(low: float, high: float) -> list[float]:
    """Two values or more between the ends of a logarithmic axis: powers of ten, else round numbers, else the ends."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = 1 + (last - first) // _TICKS
    for digits in ((1,), (1, 2, 5)):
        values = [float(f"{digit}e{power}") for power in range(first, last + 1, step) for digit in digits]
        inside = [value for value in values if low <= value <= high]
        if len(inside) > 1:
            return inside
    return [low, high]


def tick_text(tick: float) -> str:
    """A tick's number, of two digits."""
    return f"{float(f'{tick:.2g}'):g}"
