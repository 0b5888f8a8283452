"""Memory of this process, as Linux tells it."""

from __future__ import annotations

import threading
from pathlib import Path

STATUS = Path("/proc/self/status")
"""Where Linux, and no other system, tells of a process's memory."""


class Watch:
    """The most private memory that this process has beyond what it began with, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.program = resident()
        """What it began with, by kind."""
        self._most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def most(self) -> int:
        """Since the start or the last call."""
        most, self._most = max(self._most, resident()["RssAnon"]), 0
        return most - self.program["RssAnon"]

    def _look(self) -> None:
        while not self._ended.wait(0.003):
            self._most = max(self._most, resident()["RssAnon"])


def resident() -> dict[str, int]:
    """Bytes of this process that lie in memory, by kind."""
    fields = (line.split() for line in STATUS.read_text().splitlines() if line.startswith("Rss"))
    return {name.rstrip(":"): 1024 * int(size) for name, size, *_ in fields}
