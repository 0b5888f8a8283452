"""A plot of the report: its data, its drawing and its texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """One figure.

    data: all that is drawn, as JSON values; saved beside the page. draw: makes a figure from the data alone, without
    colours of background and text, which the page's theme sets.
    """

    name: str
    """Its anchor in the page and its key in report.json: lower case, with hyphens."""
    title: str
    caption: str
    """A sentence or two on what the figure shows and what it cannot show; plain text."""
    summary: str
    """The finding in words and numbers, for screen readers; plain text."""
    data: Mapping[str, Any]
    draw: Callable[[Mapping[str, Any]], Figure]
    warning: str | None = None
    """Why the figure may mislead, such as too few trials."""
