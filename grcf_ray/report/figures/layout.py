"""Layout of all figures: width of the page, legend below, axes that fit their labels, text shown literally."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grcf_ray.console import spaced
from grcf_ray.report.figures.palette import MARKS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_LEGEND_PX = 70
_TOP_PX = 30
_TICKS = 6
"""Most steps between the ticks of an axis."""


def new_figure(height: int, panels: Mapping[str, Any] | None = None, **layout: Any) -> Figure:
    """Return an empty figure of this height in pixels, legend included, and of the page's width.

    panels: arguments of plotly's `make_subplots`.
    """
    from plotly.subplots import make_subplots

    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    margin = {"l": 10, "r": 10, "t": _TOP_PX, "b": _LEGEND_PX}
    figure: Figure = make_subplots(**panels or {})
    return figure.update_layout(height=height, autosize=True, **{"legend": legend, "margin": margin, **layout})


def two_columns(count: int, **more: Any) -> tuple[dict[str, Any], list[dict[str, int]]]:
    """Return the `panels` of `new_figure` for this number of panels in two columns, and the place of each."""
    rows = -(-count // 2)
    specs: list[list[Any]] = [[{}, {} if 2 * row + 1 < count else None] for row in range(rows)]
    places = [{"row": index // 2 + 1, "col": index % 2 + 1} for index in range(count)]
    return {"rows": rows, "cols": 2, "specs": specs, **more}, places


def points(entries: Iterable[Mapping[str, Any]], x: str, y: str, *custom: str) -> dict[str, Any]:
    """Return x, y and custom data of a trace, each by its key in the entries."""
    entries = list(entries)
    data = {"x": [entry[x] for entry in entries], "y": [entry[y] for entry in entries]}
    return data | {"customdata": [[entry[key] for key in custom] for entry in entries]} if custom else data


def add_trials(
    figure: Figure,
    trials: Iterable[Mapping[str, Any]],
    keys: tuple[str, ...],
    *,
    outline: float = 0,
    marker: Mapping[str, Any],
    **more: Any,
) -> None:
    """Add the trials, each with its `state`, as a trace of markers for each state. keys: see `points`."""
    trials = list(trials)
    for state, mark in MARKS.items():
        chosen = [trial for trial in trials if trial["state"] == state]
        if chosen:
            line = {"color": mark.colour, "width": outline}
            looks = {"color": mark.colour, "symbol": mark.symbol, "line": line, **marker}
            figure.add_scatter(**points(chosen, *keys), mode="markers", name=mark.title, marker=looks, **more)


def share_legend(figure: Figure) -> Figure:
    """Return the figure with one entry in the legend, and one switch, for all traces of a name."""
    seen: set[str] = set()
    for trace in figure.data:
        trace.update(legendgroup=trace.name, showlegend=trace.name not in seen)
        seen.add(trace.name)
    return figure


def name_axis(names: Sequence[str]) -> dict[str, Any]:
    """Return an axis with these names at 0, 1, 2 and so on."""
    return {"tickvals": list(range(len(names))), "ticktext": names}


def count_axis(most: int) -> dict[str, Any]:
    """Return an axis of counts up to `most`, with ticks at whole numbers."""
    steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    return {"tick0": 0, "dtick": next(step for step in steps if most <= _TICKS * step)}


def log_axis(low: float, high: float) -> dict[str, Any]:
    """Return a logarithmic axis from `low` to `high`, both above 0, with a margin at its ends."""
    first, last = math.log10(low), math.log10(high)
    room = max(0.06 * (last - first), 0.05)
    ticks = log_ticks(10 ** (first - room), 10 ** (last + room))
    names = [tick_text(tick) for tick in ticks]
    return {"type": "log", "range": (first - room, last + room), "tickvals": ticks, "ticktext": names}


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


def shown(value: object, room: int = 40) -> str:
    """Return a text that plotly shows literally, HTML included, on one line of at most `room` characters."""
    plain = spaced(str(value))
    return html.escape(plain if len(plain) <= room else f"{plain[: room - 1]}…", quote=False)
