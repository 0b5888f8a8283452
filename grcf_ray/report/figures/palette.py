"""Colours and marks of all figures, defined once.

Every colour has a contrast of 3 and more on white and on #111, so that a figure is read in a light and in a dark page.
People who cannot tell two of them apart have shapes, dashes or labels to go by.
"""

from __future__ import annotations

import dataclasses

from grcf_ray.search.record import TrialState

BLUE, ORANGE, GREEN, PURPLE, OCHRE, GREY = "#2271b2", "#d55e00", "#208a65", "#b5539c", "#9a7d0a", "#808080"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, OCHRE)
"""For lines and bars of equal standing, in this order."""
SCALE = ((0.0, ORANGE), (0.5, GREY), (1.0, BLUE))
"""From worse to better, and from the lowest label to the highest."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """How the trials of a state are drawn."""

    title: str
    colour: str
    symbol: str


MARKS: dict[TrialState, Mark] = {
    "complete": Mark("complete", BLUE, "circle"),
    "pruned": Mark("pruned", OCHRE, "triangle-down-open"),
    "running": Mark("unfinished", GREEN, "square-open"),
    "diverged": Mark("diverged", ORANGE, "x-thin-open"),
    "failed": Mark("failed", PURPLE, "cross-thin-open"),
}
