"""Stop a search on Ctrl-C, SIGTERM or a time budget. The record is always complete, so stopping needs no clean-up."""

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
"""Share of a time budget at which a stage ends; the rest is for saving the winner and reading test."""

_DURATION = re.compile(
    r"\s*".join(
        rf"(?:(\d+(?:\.\d+)?)\s*(?:{unit}))?" for unit in ("h|hrs?|hours?", "m|mins?|minutes?", "s|secs?|seconds?")
    ),
    re.IGNORECASE,
)


class Stop:
    """The state of a request to stop a search, from a signal or a time budget.

    The first Ctrl-C ends the running trials in order. A second Ctrl-C calls `last_words` and exits at once; so does
    SIGTERM, because SIGKILL may follow within seconds.
    """

    def __init__(self, *, time_budget: float | None = None, last_words: Callable[[str], None] | None = None) -> None:
        self.requested = False
        """Whether to end the running trials in order, and the search: the user has pressed Ctrl-C."""
        self._started, self._budget, self._last_words = time.monotonic(), time_budget, last_words
        self._deferring = False

    def time_is_up(self, share: float) -> bool:
        """Return whether this share of the time budget has passed."""
        return self.seconds_until(share) == 0

    def seconds_until(self, share: float) -> float | None:
        """Return the seconds until this share of the time budget has passed, 0 afterwards; None without a budget."""
        if self._budget is None:
            return None
        return max(0.0, self._started + share * self._budget - time.monotonic())

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM while the context lasts; outside the main thread, do nothing."""
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
        """Make the first Ctrl-C a request while the context lasts; otherwise it raises KeyboardInterrupt."""
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
        # The signal may interrupt another print, which raises RuntimeError.
        with contextlib.suppress(RuntimeError):
            progress("Stopping the running trials; press Ctrl-C again to exit at once")

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._leave("Terminated")

    def _leave(self, how: str) -> None:
        try:
            if self._last_words:
                self._last_words(how)
        finally:
            # Do no more: SIGKILL may follow soon. Ray's processes end with this one.
            clear_scratch()
            os._exit(130)


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as `2h`, `90m`, `1h 30m` or `45 seconds`. Raises ConfigError otherwise."""
    match = _DURATION.fullmatch(text.strip())
    if not match or not any(match.groups()):
        raise ConfigError(f"--time-budget {text}: should be a time such as 2h, 90m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds
