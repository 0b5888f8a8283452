"""The page as a listener: written as a search goes on, and whole at its end. It never stands in the search's way."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from grcf_ray.console import progress
from grcf_ray.errors import reason
from grcf_ray.report.page import write_report
from grcf_ray.search.events import Event, SearchStarted, StageEnded, StageStarted, WinnerFixed
from grcf_ray.search.record import RunRecord

_PAUSE_S = 60.0
_PAUSE_SHARE = 50
"""After a build that took t seconds, none follows for 50 t: the page takes 2 % of the driver's time at most."""


class PageListener:
    """Writes the run's `report.html` and `report.json` from its record, in the driver alone.

    At the start and end of a stage, when the winner is fixed, and every minute or so between, in a thread beside the
    search, which waits for none of it; and when the context ends, with the figures of the best model unless the search
    broke off. Of a search that never began nothing is written. A fault of the report is told in a line, and the search
    goes on.
    """

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._began = False
        self._next = math.inf
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grcf-report")
        self._waiting: Future[None] | None = None

    def __call__(self, event: Event) -> None:
        """Have the page written where it is due."""
        self._began |= isinstance(event, SearchStarted)
        if isinstance(event, (StageStarted, StageEnded, WinnerFixed)) or time.monotonic() >= self._next:
            self._next = math.inf
            # One that has not begun yet will find what has come since.
            if self._waiting is None or self._waiting.running() or self._waiting.done():
                self._waiting = self._pool.submit(self._write, going_on=True)

    def __enter__(self) -> PageListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._began:
            # What ends a search early has said how to go on, which stays the last line.
            if error is None:
                progress("Writing the report")
            self._write(going_on=error is not None)

    def _write(self, *, going_on: bool) -> None:
        started = time.monotonic()
        try:
            write_report(self._record, going_on=going_on)
        except Exception as error:
            progress(f"The report could not be written, the search is not affected: {reason(error)}")
        ended = time.monotonic()
        self._next = ended + max(_PAUSE_S, _PAUSE_SHARE * (ended - started))
