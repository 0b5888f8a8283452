"""What a search costs its driver: the time and the memory of trials that do nothing. The test split is not read."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grcf_ray.cluster import connect

from ray import tune

from grcf_ray.bench.resident import STATUS, resident
from grcf_ray.data.datasets import protocol_of
from grcf_ray.search.events import Event, TrialEnded
from grcf_ray.search.nodes import cluster_nodes
from grcf_ray.search.preflight import find_capacity
from grcf_ray.search.record import RunRecord
from grcf_ray.search.stages import Search
from grcf_ray.search.trial import Shared
from grcf_ray.storage import storage_path
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features

if TYPE_CHECKING:
    from grcf_ray.bench.setup import Setup

TRIALS = 500
PARTS = 4
"""The search is told of in so many parts, one after the other: a cost that grows would show."""
FIGURES = 30
"""Of an epoch, about as many as a real one has."""


class IdleTrainable(tune.Trainable):
    """A trial of one epoch that takes no time; its value comes from its number."""

    def setup(self, config: dict[str, Any], shared: Shared) -> None:  # type: ignore[override]
        """Once a process."""
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Once a trial."""
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """A whole trial, as `JobRunner.step` tells of its last epoch."""
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
    """A listener that notes clocks and memory at the end of every trial."""

    def __init__(self) -> None:
        self.marks = [self._mark()]

    def __call__(self, event: Event) -> None:
        """Take a measurement when a trial ends."""
        if isinstance(event, TrialEnded):
            self.marks.append(self._mark())

    def costs(self, parts: int) -> list[dict[str, Any]]:
        """Of a trial in each part of the search: seconds, the driver's CPU seconds, its memory in KB."""
        # The first trial waits for the first process to start.
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
                    "memory": memory / count / 1e3 if STATUS.exists() else None,
                }
            )
        return rows

    @staticmethod
    def _mark() -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), resident()["RssAnon"] if STATUS.exists() else 0


def scheduler_tables(setup: Setup, *, trials: int = TRIALS) -> Sequence[Table]:
    """Proposals, early stopping, the record and Tune's own work, for trials that take no time of their own."""
    changes = {"search.stage1_trials": trials, "stage1.epochs": 1, "stage2.epochs": 0}
    space = setup.space.with_settings(changes)
    connect()
    room = find_capacity(cluster_nodes(), space.config(), [trials])
    record = RunRecord(storage_path(setup.folder / "scheduler"))
    record.write_run({"state": "running"})
    meter = Meter()
    Search(
        record=record,
        space=space,
        features=prepare_features(setup.store, setup.config, cache=setup.folder),
        protocol=protocol_of(setup.store.info.name, setup.store.info.task),
        concurrent=room.concurrent,
        listeners=(meter,),
        trainable=IdleTrainable,
    ).run()
    rows = meter.costs(PARTS)
    counted = sum(row["trials"] for row in rows)
    whole = {key: sum(row[key] * row["trials"] for row in rows) / counted for key in ("wall", "cpu")}
    return [
        Table(
            "scheduler",
            f"A search of {trials} trials that do nothing, {room.concurrent} at a time",
            (
                Column("name", "trials"),
                Column("wall", "s a trial", "{:.3f}"),
                Column("cpu", "driver's CPU s a trial", "{:.3f}"),
                Column("memory", "driver's KB a trial", "{:.0f}"),
            ),
            rows,
            (
                f"{len(space.stage1)} searched settings; each trial is proposed by TPE, judged by ASHA, and recorded "
                "at its start and at its end; of the first one, for which a process is started, nothing is counted",
                f"over all: {whole['wall']:.3f} s and {whole['cpu']:.3f} CPU s a trial",
            ),
        )
    ]
