"""Write in the background: the latest state of each trial, at most once a second."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

PAUSE_S = 1.0
"""Pause after everything that waited is written."""


class BackgroundWriter:
    """Writes what may be a second late while its context lasts, so that its caller does not wait for the storage.

    A write replaces a waiting one under the same key, so that slow storage delays writes but does not queue them. An
    error ends the writing: the next call, or the end of the context, raises it. The end of the context writes what
    waits. Outside of the context, every write takes place at once. threads: writes at a time.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, Callable[[], None]] = {}
        self._busy: set[Hashable] = set()
        self._error: BaseException | None = None
        self._open = self._hurry = False
        self._thread = threading.Thread()

    def later(self, key: Hashable, write: Callable[[], None]) -> None:
        """Write within about a second, unless a later write has the same key.

        write: reads nothing that the caller changes afterwards.
        """
        with self._changed:
            self._check()
            if self._open:
                self._waiting[key] = write
                return
        write()

    def settle(self, key: Hashable) -> None:
        """Drop the waiting write of a key, and let one in progress end: the caller writes a newer state itself."""
        with self._changed:
            self._waiting.pop(key, None)
            self._changed.wait_for(lambda: key not in self._busy)
            self._check()

    def flush(self, seconds: float | None = None) -> None:
        """Write at once what waits. Return when it is written, an error occurred, or the seconds have passed.

        A signal handler may call this, whatever the main thread does.
        """
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error or not (self._waiting or self._busy), seconds)

    def __enter__(self) -> BackgroundWriter:
        self._open = True
        self._thread = threading.Thread(target=self._run, name="background-writer", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._open, self._hurry = False, True
            self._changed.notify_all()
        self._thread.join()
        try:
            if error is None:
                self._check()
        finally:
            self._error = None

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        with ThreadPoolExecutor(self._threads, thread_name_prefix="background-write") as pool:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._hurry, PAUSE_S)
                    self._hurry, ended, keys = False, not self._open, list(self._waiting)
                # Each takes its write only when it starts, so that the caller can still replace or drop it.
                list(pool.map(self._write, keys))
                if ended:
                    return

    def _write(self, key: Hashable) -> None:
        with self._changed:
            write = self._waiting.pop(key, None)
            if write is None or self._error is not None:
                return
            self._busy.add(key)
        try:
            write()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._busy.discard(key)
                self._changed.notify_all()
