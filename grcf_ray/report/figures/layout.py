"""What the figures have in common: no width of their own, legends below, axes that make room for their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["new_figure", "rows"]

_LEGEND_PX = 70
_TOP_PX = 30


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
