"""Measure the CPU time of a process and of all its descendants."""

from __future__ import annotations

import collections
import os
import threading
import time
from typing import Any

import psutil

INTERVAL_S = 0.2
"""Seconds between two samples of the processes."""
_DAEMONS = ("ray::DashboardA", "ray::RuntimeEnv")
"""Prefixes of Ray's daemons whose names resemble those of its workers."""


class CpuClock:
    """CPU time, user and system, of this process and its descendants while the context lasts.

    Ray's raylet does not wait for its children, so the system adds their time to no other process. Therefore a thread
    samples all processes; an ended process counts with its last sample. The thread's own time is subtracted.
    """

    def __init__(self) -> None:
        self._before: dict[Any, float] = {}
        self._last: dict[Any, tuple[str, float]] = {}
        self._alive: set[Any] = set()
        self._sampled = 0.0
        self._sampling = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample_repeatedly, daemon=True)
        self.unseen = 0.0
        """Wall-clock seconds between the last sample of a process and the first without it, summed over ended ones."""

    def __enter__(self) -> CpuClock:
        self._sample()
        self._before = {process: seconds for process, (_, seconds) in self._last.items()}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._sample()

    @property
    def seconds(self) -> float:
        """Return the CPU seconds of all processes."""
        return sum(self.shares.values())

    @property
    def shares(self) -> dict[str, float]:
        """Return the CPU seconds of `driver` (this process), Ray's `workers`, and `daemons` (all other processes)."""
        shares = {"driver": -self._sampling, "workers": 0.0, "daemons": 0.0}
        for process, (name, seconds) in self._last.items():
            if process.pid == os.getpid():
                kind = "driver"
            else:
                kind = "workers" if name.startswith("ray::") and not name.startswith(_DAEMONS) else "daemons"
            shares[kind] += seconds - self._before.get(process, 0.0)
        return shares

    def _sample_repeatedly(self) -> None:
        before = time.thread_time()
        while not self._end.wait(INTERVAL_S):
            self._sample()
        self._sampling = time.thread_time() - before

    def _sample(self) -> None:
        now = time.monotonic()
        children = collections.defaultdict(list)
        processes = list(psutil.process_iter(["ppid", "name", "cpu_times"]))
        for process in processes:
            children[process.info["ppid"]].append(process)
        # A known process stays a descendant when its parent ends and another process adopts it.
        descendants = [process for process in processes if process.pid == os.getpid() or process in self._alive]
        alive = set()
        while descendants:
            process = descendants.pop()
            if process not in alive:
                alive.add(process)
                times = process.info["cpu_times"]
                self._last[process] = (process.info["name"], times.user + times.system)
                descendants += children[process.pid]
        self.unseen += len(self._alive - alive) * (now - self._sampled)
        self._alive, self._sampled = alive, now
