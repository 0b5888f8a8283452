"""How a search is stopped: Ctrl-C, SIGTERM, a time budget. The record is always whole, so to stop is to leave."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from grcf_ray.console import progress
from grcf_ray.errors import ConfigError
from grcf_ray.files import clear_scratch

STAGE_SHARES = {1: 0.5, 2: 0.97}
"""Share of a time budget at which a stage hands on what it has; the rest is for saving the winner and reading test."""

_DURATION = re.compile(
    r"\s*".join(
        rf"(?:(\d+(?:\.\d+)?)\s*(?:{unit}))?" for unit in ("h|hrs?|hours?", "m|mins?|minutes?", "s|secs?|seconds?")
    ),
    re.IGNORECASE,
)


class Stop:
    """Whether a search should end: asked by a signal, or at the end of its time.

    The first Ctrl-C lets trials be put away; a second one, or SIGTERM, which is followed by SIGKILL within seconds,
    calls `last_words` and leaves at once.
    """

    def __init__(self, *, time_budget: float | None = None, last_words: Callable[[str], None] | None = None) -> None:
        self.requested = False
        """Whether Ctrl-C has been pressed."""
        self._started, self._budget, self._last_words = time.monotonic(), time_budget, last_words
        self._deferring = False

    def request(self) -> None:
        """Ask the search to end, as Ctrl-C does."""
        self.requested = True

    def time_is_up(self, share: float) -> bool:
        """Whether this share of the time budget has gone by."""
        return self.seconds_until(share) == 0

    def seconds_until(self, share: float) -> float | None:
        """Seconds until this share of the time budget has gone by, 0 once it has; None without a budget."""
        if self._budget is None:
            return None
        return max(0.0, self._started + share * self._budget - time.monotonic())

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM while the context lasts; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGINT, self._on_interrupt)
        signal.signal(signal.SIGTERM, self._on_terminate)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While the context lasts, the first Ctrl-C is a request; elsewhere it raises KeyboardInterrupt."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self._leave("Stopped")
        self.requested = True
        if not self._deferring:
            raise KeyboardInterrupt
        # It may come in the middle of another line.
        with contextlib.suppress(RuntimeError):
            progress("Stopping: trials end where they are. Ctrl-C again stops at once")

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._leave("Terminated")

    def _leave(self, how: str) -> None:
        try:
            if self._last_words:
                self._last_words(how)
        finally:
            # No more than this: it could take longer than whoever sent the signal waits. Ray's processes end with ours.
            clear_scratch()
            os._exit(130)


def parse_duration(text: str) -> float:
    """Seconds of `2h`, `90m`, `3min`, `1h 30m`, `45 seconds` or `0m`. ConfigError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if not match or not any(match.groups()):
        raise ConfigError(f"--time-budget {text}: should be a time such as 2h, 90m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds
