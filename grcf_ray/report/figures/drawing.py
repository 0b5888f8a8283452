"""What the figures of a model share: colours, text that plotly takes literally, and which utterances are shown."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["BLUE", "GREEN", "GREY", "MOST_SHOWN", "ORANGE", "SCALE", "new_figure", "of_split", "shown", "spread_rows"]

BLUE, ORANGE, GREEN, GREY = "#2271b2", "#d55e00", "#208a65", "#808080"
"""Each is read on white and on a dark page; where two meet, symbols or words tell them apart too."""
SCALE = ((0.0, ORANGE), (0.5, GREY), (1.0, BLUE))
"""From the lowest label to the highest."""
MOST_SHOWN = 3000
"""Utterances that a figure has points, or pairs, for."""


def shown(value: object, room: int = 40) -> str:
    """A string from data as plotly shows it literally, on one line, cut to `room` characters."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return html.escape(plain if len(plain) <= room else f"{plain[: room - 1]}…", quote=False)


def new_figure(height: int, **layout: Any) -> Figure:
    """An empty figure so many pixels high, with its legend below, and as wide as the page."""
    from plotly.graph_objects import Figure

    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    margin = {"l": 10, "r": 10, "t": 30, "b": 70}
    return Figure(layout={"height": height, "autosize": True, "legend": legend, "margin": margin, **layout})


def spread_rows(label_N: NDArray[np.float64], most: int = MOST_SHOWN) -> NDArray[np.int64]:
    """[min(N, most)] rows in ascending order, drawn without chance: evenly spaced in the order of their labels.

    So every label keeps its share, as nearly as whole numbers allow.
    """
    count = len(label_N)
    if count <= most:
        return np.arange(count)
    places = np.linspace(0, count - 1, most).round().astype(np.int64)
    return np.sort(np.argsort(label_N, kind="stable")[places])


def of_split(split: Literal["valid", "test"], rows: int, total: int) -> str:
    """The sentence of a caption that says which utterances are shown."""
    which = f"{total} utterances" if rows == total else f"{rows} of {total} utterances, evenly spaced by label,"
    if split == "test":
        return f"{which} of the test split, which was read after the model had been chosen."
    return f"{which} of the validation split, which the model was chosen on: optimistic."
