"""Write the page during a search and at its end, without delaying the search."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from grcf_ray.console import progress
from grcf_ray.errors import reason
from grcf_ray.report.page import write_report
from grcf_ray.search.events import Event, SearchFinished, SearchStarted, StageEnded, StageStarted, WinnerFixed
from grcf_ray.search.record import RunRecord

_PAUSE_S = 60.0
_PAUSE_SHARE = 50
"""After a build of t seconds, wait 50 t: the page takes at most 2 % of the driver's time."""


class PageListener:
    """Writes the run's `report.html` and `report.json` from its record, in the driver alone.

    During the search, a thread writes them at the start and end of a stage, when the winner is fixed, and about once a
    minute. When it has finished they are written with the figures of the best model; if it ends early, without them, at
    the end of the context. Nothing is written before the search starts. A fault of the report is one line of progress;
    the search continues.
    """

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._going_on = False
        """Whether the search has begun, and not finished."""
        self._next = math.inf
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grcf-report")
        self._waiting: Future[None] | None = None

    def __call__(self, event: Event) -> None:
        """Start writing the page if it is due; wait for the last one."""
        self._going_on |= isinstance(event, SearchStarted)
        if isinstance(event, SearchFinished):
            self._pool.shutdown(cancel_futures=True)
            self._going_on = False
            progress("Writing the report")
            self._write()
        elif isinstance(event, (StageStarted, StageEnded, WinnerFixed)) or time.monotonic() >= self._next:
            self._next = math.inf
            # A write that has not started yet will read the latest record.
            if self._waiting is None or self._waiting.running() or self._waiting.done():
                self._waiting = self._pool.submit(self._write)

    def __enter__(self) -> PageListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._going_on:
            self._write()

    def _write(self) -> None:
        started = time.monotonic()
        try:
            write_report(self._record, going_on=self._going_on)
        except Exception as error:
            progress(f"The report was not written; the search is not affected: {reason(error)}")
        ended = time.monotonic()
        self._next = ended + max(_PAUSE_S, _PAUSE_SHARE * (ended - started))
