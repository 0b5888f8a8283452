"""Text from data in a figure: plotly takes a few HTML tags and entities in every string, links among them."""

from __future__ import annotations

import html


def shown(value: object, room: int = 40) -> str:
    """A string from data as plotly shows it literally, on one line, cut to `room` characters."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return html.escape(plain if len(plain) <= room else f"{plain[: room - 1]}…", quote=False)
