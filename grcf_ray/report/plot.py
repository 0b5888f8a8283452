"""A plot of a report: its data, apart from how it is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """What one figure shows.

    data: plain JSON values, all that is drawn, saved beside the page. draw: makes a figure of the data alone, without
    colours of paper or text, which the page's theme has.
    """

    name: str
    """Its anchor in the page and its key in report.json: lower case, with hyphens."""
    title: str
    caption: str
    """A sentence or two: what is seen, and what it does not say. Plain text; the page escapes it."""
    summary: str
    """What a screen reader says in the figure's place: its finding, in words and numbers. Plain text."""
    data: Mapping[str, Any]
    draw: Callable[[Mapping[str, Any]], Figure]
    warning: str | None = None
    """Why it may mislead, such as too few trials."""
