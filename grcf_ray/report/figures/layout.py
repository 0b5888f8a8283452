"""Layout of all figures: width of the page, legend below, axes that fit their labels."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_LEGEND_PX = 70
_TOP_PX = 30
_TICKS = 6
"""Most steps between the ticks of an axis."""


def new_figure(height: int, **layout: Any) -> Figure:
    """Return an empty figure of this height in pixels, legend included, and of the page's width."""
    from plotly.graph_objects import Figure

    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    margin = {"l": 10, "r": 10, "t": _TOP_PX, "b": _LEGEND_PX}
    return Figure(layout={"height": height, "autosize": True, "legend": legend, "margin": margin, **layout})


def rows(heights: list[float], gap: float) -> list[tuple[float, float]]:
    """Return the domains of stacked axes, topmost first. heights: in any unit; gap: share of the whole."""
    scale = (1 - gap * (len(heights) - 1)) / sum(heights)
    domains, top = [], 1.0
    for height in heights:
        domains.append((max(0.0, top - height * scale), top))
        top -= height * scale + gap
    return domains


def count_axis(most: int) -> dict[str, Any]:
    """Return an axis of counts up to `most`, with ticks at whole numbers."""
    steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    return {"tick0": 0, "dtick": next(step for step in steps if most <= _TICKS * step)}


def log_axis(low: float, high: float) -> dict[str, Any]:
    """Return a logarithmic axis from `low` to `high`, both above 0, with a margin at its ends."""
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
    """Return at least two ticks of a logarithmic axis: powers of ten, else round numbers, else its ends."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = 1 + (last - first) // _TICKS
    for digits in ((1,), (1, 2, 5)):
        values = [float(f"{digit}e{power}") for power in range(first, last + 1, step) for digit in digits]
        inside = [value for value in values if low <= value <= high]
        if len(inside) > 1:
            return inside
    return [low, high]


def tick_text(tick: float) -> str:
    """Return a tick's label with two digits."""
    return f"{float(f'{tick:.2g}'):g}"
