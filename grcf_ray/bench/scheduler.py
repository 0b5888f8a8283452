"""Measure the time and memory that trials without any work cost the driver. The test split is not read."""

from __future__ import annotations

import itertools
import time
from typing import Any

import grcf_ray.cluster  # noqa: F401  before Ray

from ray import tune

from grcf_ray.bench.measure import private_bytes
from grcf_ray.bench.setup import Setup
from grcf_ray.search.events import Event, TrialEnded
from grcf_ray.search.record import RunRecord
from grcf_ray.search.trial import Shared
from grcf_ray.storage import storage_path
from grcf_ray.tables import Column, Table

TRIALS = 500
PARTS = 4
"""Rows of the table: successive parts of the search, so that a growing cost shows."""
FIGURES = 30
"""Metrics of an epoch, about as many as in a real trial."""


class IdleTrainable(tune.Trainable):
    """A trial of one epoch that takes no time; its objective is a function of its number."""

    def setup(self, config: dict[str, Any], shared: Shared) -> None:  # type: ignore[override]
        """Store the first trial's configuration."""
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Store the next trial's configuration; the process is reused."""
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Return the result of a trial's last epoch in the format of `JobRunner.step`."""
        value = 0.5 + (7919 * self.config["number"] % 997) / 2000
        figures = {f"figure_{index}": value / (index + 1) for index in range(FIGURES)}
        epoch = {"epoch": 1, "valid/pairwise_acc": value, "seconds": 0.0, "utterance_passes": 0.0, **figures}
        return {
            "epoch": 1,
            "curve": [epoch],
            "objective": value,
            "notes": [],
            "checkpoint_sha256": None,
            "done": True,
        }


class Meter:
    """A listener that reads clocks and memory at the end of every trial."""

    def __init__(self) -> None:
        self.marks = [self._mark()]

    def __call__(self, event: Event) -> None:
        """Take a measurement when a trial ends."""
        if isinstance(event, TrialEnded):
            self.marks.append(self._mark())

    def costs(self, parts: int) -> list[dict[str, Any]]:
        """Return the cost of a trial in each part of the search: wall-clock s, driver CPU s, driver memory in KB."""
        # The first trial waits for a process to start, so it does not count.
        last, rows = len(self.marks) - 1, []
        edges = [1 + part * (last - 1) // parts for part in range(parts + 1)]
        for start, end in itertools.pairwise(edges):
            count = end - start
            wall, cpu, memory = (
                after - before for before, after in zip(self.marks[start], self.marks[end], strict=True)
            )
            rows.append(
                {
                    "name": f"{start + 1} to {end}",
                    "trials": count,
                    "wall": wall / count,
                    "cpu": cpu / count,
                    "memory": memory / count / 1e3,
                }
            )
        return rows

    @staticmethod
    def _mark() -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), private_bytes()


def scheduler_table(setup: Setup, *, trials: int = TRIALS) -> Table:
    """Measure proposals, early stopping, the record and Tune's own work."""
    changes = {"search.stage1_trials": trials, "stage1.epochs": 1, "stage2.epochs": 0}
    space = setup.space.with_settings(changes)
    concurrent = setup.slots(space.config(), trials)
    meter, record = Meter(), RunRecord(storage_path(setup.folder / "scheduler"))
    setup.search(record, space, concurrent, listeners=(meter,), trainable=IdleTrainable)
    rows = meter.costs(PARTS)
    counted = sum(row["trials"] for row in rows)
    whole = {key: sum(row[key] * row["trials"] for row in rows) / counted for key in ("wall", "cpu")}
    return Table(
        "scheduler",
        f"A search of {trials} trials without any work, {concurrent} at a time",
        (
            Column("name", "trials"),
            Column("wall", "s a trial", "{:.3f}"),
            Column("cpu", "driver's CPU s a trial", "{:.3f}"),
            Column("memory", "driver's KB a trial", "{:.0f}"),
        ),
        rows,
        (
            f"{len(space.stage1)} searched settings; TPE proposes each trial, ASHA judges it, the record is written "
            "at its start and its end; the first trial, which starts a process, does not count",
            f"mean of all trials: {whole['wall']:.3f} s and {whole['cpu']:.3f} CPU s a trial",
        ),
    )
