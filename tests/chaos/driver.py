"""A search that something is killed in: the command as people type it, and shots at named moments of it.

python tests/chaos/driver.py SHOTS -- ARGUMENTS OF THE SEARCH

SHOTS is JSON: a list of [moment, count, victim]. At the count-th time that the moment comes, the victim is killed
(SIGKILL): the driver itself, the process of a trial, a worker of one, Ray's raylet, or everything at once. Moments are
the events that listeners are told, and the driver's writes, before and after they take effect.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from processes import marked

VICTIMS = ("driver", "trial", "worker", "raylet", "machine")
TITLES = {"trial": r"ray::\w*Trainable", "worker": "ray::RayTrainWorker", "raylet": "raylet/raylet"}
"""Of the processes; that of a trial has another name while it is at work than between two epochs."""


def shoot(victim: str) -> None:
    """Kill it; the driver where there is no such process now, so that no shot is lost."""
    running = marked(f"GRCF_CHAOS={os.environ['GRCF_CHAOS']}")
    targets = [pid for pid, title in running.items() if victim in TITLES and re.search(TITLES[victim], title)]
    if victim == "machine":
        targets = [*running, os.getpid()]
    print(f"SHOT {victim if targets else 'driver'}", file=sys.stderr, flush=True)
    for target in (targets if victim == "machine" else targets[:1]) or [os.getpid()]:
        with suppress(ProcessLookupError):
            os.kill(target, signal.SIGKILL)


class Trigger:
    """Counts the coming of moments."""

    def __init__(self, shots: Sequence[tuple[str, int, str]]) -> None:
        self._shots = shots
        self._seen: dict[str, int] = {}

    def __call__(self, moment: str) -> None:
        self._seen[moment] = self._seen.get(moment, 0) + 1
        for name, count, victim in self._shots:
            if name == moment and count == self._seen[moment]:
                shoot(victim)


def watch_events(trigger: Trigger) -> None:
    """A listener of the search is told its events."""
    from grcf_ray.api import searching
    from grcf_ray.report import progress_lines

    class Witness(progress_lines.ProgressLines):
        def __call__(self, event: Any) -> None:
            super().__call__(event)
            trial = getattr(event, "trial", None)
            stage = getattr(event, "stage", trial.stage if trial else "")
            trigger(f"{type(event).__name__} {stage}".strip())

    searching.ProgressLines = Witness  # type: ignore[misc]


def watch_writes(trigger: Trigger) -> None:
    """Every write of the driver goes through `Place.writing`."""
    from grcf_ray.storage import LocalPath

    write: Callable[[LocalPath], AbstractContextManager[Path]] = LocalPath.writing

    @contextmanager
    def writing(self: LocalPath) -> Iterator[Path]:
        kind = "trial" if self.name[:4].isdigit() else self.name
        with write(self) as path:
            yield path
            trigger(f"before {kind}")
        trigger(f"after {kind}")

    LocalPath.writing = writing  # type: ignore[method-assign]


def main() -> None:
    separator = sys.argv.index("--")
    shots = json.loads(sys.argv[1])
    argv = sys.argv[separator + 1 :]
    sys.argv = ["grcf_ray.search", *argv]
    from grcf_ray import console
    from grcf_ray.cli.search import app

    trigger = Trigger(shots)
    watch_events(trigger)
    watch_writes(trigger)
    console.run(app, argv)


if __name__ == "__main__":
    main()
