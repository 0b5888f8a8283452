"""Text from data in figures, where plotly would interpret HTML tags, links and entities."""

from __future__ import annotations

import html


def shown(value: object, room: int = 40) -> str:
    """Return a text that plotly shows literally, on one line of at most `room` characters."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return html.escape(plain if len(plain) <= room else f"{plain[: room - 1]}…", quote=False)
