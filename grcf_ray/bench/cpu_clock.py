"""CPU time of a process and of all that it starts, those that end with them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from grcf_ray.errors import ConfigError

_PROC = Path("/proc")
LOOK = 0.2
"""Seconds between two looks at the processes."""
_DAEMONS = ("ray::DashboardA", "ray::RuntimeEnv")
"""Daemons of Ray's that are named like its workers, as /proc cuts their names."""


class CpuClock:
    """CPU time, user and system, of this process and of all that descend from it, while it is entered.

    Ray's raylet ignores the end of its children, so that Linux adds their time to nobody's: a thread looks at all
    processes again and again, and an ended one counts with what it had at the last look. The thread's own time is
    taken off.
    """

    def __init__(self) -> None:
        if not (_PROC / "self" / "stat").exists():
            raise ConfigError("the CPU time of a search is read from /proc, which this machine does not have")
        self._before: dict[tuple[int, int], float] = {}
        self._last: dict[tuple[int, int], tuple[str, float]] = {}
        self._alive: set[tuple[int, int]] = set()
        self._looked = 0.0
        self._watching = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.unseen = 0.0
        """Wall-clock seconds between the last look at a process and the first without it, over all that ended."""

    def __enter__(self) -> CpuClock:
        self._look()
        self._before = {process: seconds for process, (_, seconds) in self._last.items()}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._look()

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self.shares.values())

    @property
    def shares(self) -> dict[str, float]:
        """It by `driver` (this process), `workers` (Ray's), and `daemons` (all else)."""
        shares = {"driver": -self._watching, "workers": 0.0, "daemons": 0.0}
        for process, (name, seconds) in self._last.items():
            if process[0] == os.getpid():
                kind = "driver"
            else:
                kind = "workers" if name.startswith("ray::") and name not in _DAEMONS else "daemons"
            shares[kind] += seconds - self._before.get(process, 0.0)
        return shares

    def _watch(self) -> None:
        before = time.thread_time()
        while not self._end.wait(LOOK):
            self._look()
        self._watching = time.thread_time() - before

    def _look(self) -> None:
        now = time.monotonic()
        found = {pid: (parent, start, name, seconds) for pid, parent, start, name, seconds in _processes()}
        children: dict[int, list[int]] = {}
        for pid, (parent, *_) in found.items():
            children.setdefault(parent, []).append(pid)
        # One whose parent ended has another now, and is ours still.
        ours = [os.getpid(), *(pid for pid, start in self._alive if pid in found and found[pid][1] == start)]
        alive = set()
        while ours:
            pid = ours.pop()
            _, start, name, seconds = found[pid]
            if (pid, start) not in alive:
                alive.add((pid, start))
                self._last[pid, start] = (name, seconds)
                ours += children.get(pid, [])
        self.unseen += len(self._alive - alive) * (now - self._looked)
        self._alive, self._looked = alive, now


def _processes() -> Iterator[tuple[int, int, int, str, float]]:
    """Process, parent, time of start, name and CPU seconds of all there are."""
    tick = os.sysconf("SC_CLK_TCK")
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text(errors="replace")
            except OSError:
                # It has just ended.
                continue
            head, _, tail = text.rpartition(")")
            fields = tail.split()
            seconds = (int(fields[11]) + int(fields[12])) / tick
            yield int(folder.name), int(fields[1]), int(fields[19]), head.partition("(")[2], seconds
