"""Measure the CPU time of a process and of all its descendants, on Linux."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from grcf_ray.errors import ConfigError

_PROC = Path("/proc")
INTERVAL_S = 0.2
"""Seconds between two samples of the processes."""
_DAEMONS = ("ray::DashboardA", "ray::RuntimeEnv")
"""Ray's daemons whose names, truncated by /proc, resemble those of its workers."""


class CpuClock:
    """CPU time, user and system, of this process and its descendants while the context lasts.

    Ray's raylet does not wait for its children, so Linux adds their time to no other process. Therefore a thread
    samples all processes; an ended process counts with its last sample. The thread's own time is subtracted.
    """

    def __init__(self) -> None:
        if not (_PROC / "self" / "stat").exists():
            raise ConfigError("this machine has no /proc, from which CPU times are read. Run the study on Linux")
        self._before: dict[tuple[int, int], float] = {}
        self._last: dict[tuple[int, int], tuple[str, float]] = {}
        self._alive: set[tuple[int, int]] = set()
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
            if process[0] == os.getpid():
                kind = "driver"
            else:
                kind = "workers" if name.startswith("ray::") and name not in _DAEMONS else "daemons"
            shares[kind] += seconds - self._before.get(process, 0.0)
        return shares

    def _sample_repeatedly(self) -> None:
        before = time.thread_time()
        while not self._end.wait(INTERVAL_S):
            self._sample()
        self._sampling = time.thread_time() - before

    def _sample(self) -> None:
        now = time.monotonic()
        processes = {pid: (parent, start, name, seconds) for pid, parent, start, name, seconds in _processes()}
        children: dict[int, list[int]] = {}
        for pid, (parent, *_) in processes.items():
            children.setdefault(parent, []).append(pid)
        # A known process stays a descendant when its parent ends and init adopts it.
        known = (pid for pid, start in self._alive if pid in processes and processes[pid][1] == start)
        descendants = [os.getpid(), *known]
        alive = set()
        while descendants:
            pid = descendants.pop()
            _, start, name, seconds = processes[pid]
            if (pid, start) not in alive:
                alive.add((pid, start))
                self._last[pid, start] = (name, seconds)
                descendants += children.get(pid, [])
        self.unseen += len(self._alive - alive) * (now - self._sampled)
        self._alive, self._sampled = alive, now


def _processes() -> Iterator[tuple[int, int, int, str, float]]:
    """Yield id, parent, start time, name and CPU seconds of every process."""
    tick = os.sysconf("SC_CLK_TCK")
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text(errors="replace")
            except OSError:
                # The process has just ended.
                continue
            head, _, tail = text.rpartition(")")
            fields = tail.split()
            seconds = (int(fields[11]) + int(fields[12])) / tick
            yield int(folder.name), int(fields[1]), int(fields[19]), head.partition("(")[2], seconds
