"""Several one-thread trials side by side, against one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from grcf_ray.cluster import connect

import ray

from grcf_ray.bench.measure import Timing
from grcf_ray.bench.step import SMALL_STEP
from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.data.store import DatasetStore
from grcf_ray.search.calibration import Placement, WorkerSet
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features

_STEPS = 4


def packing_table(
    store: DatasetStore, config: RunConfig, repetitions: int, say: Callable[[str], None], cache: Path, processes: int
) -> Table:
    """Wall-clock throughput of one process, and of as many as there are CPUs."""
    config = build_config({**flatten(config), **SMALL_STEP})
    connect()
    features = ray.put(prepare_features(store, config, cache=cache))
    counts = sorted({1, processes})
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    say(f"{processes} processes start")
    with WorkerSet(features, config, Placement(processes, 1, 0.0)) as crew:
        for round_ in range(repetitions):
            for count in counts:
                say(f"{count} at a time, {round_ + 1}/{repetitions}")
                taken, _ = crew.run(_STEPS, members=count)
                seconds[count].append(taken)
    timings = {count: Timing(tuple(seconds[count])) for count in counts}
    return Table(
        "packing",
        "Trials side by side, a thread each",
        (
            Column("name", f"{_STEPS} steps of 32 pairs each"),
            Column("median", "median s, wall", "{:.2f}"),
            Column("speed_up", "throughput", "{:.2f}"),
            Column("bound", "bound by CPUs", "{}"),
        ),
        [
            {
                "name": f"{count} process{'es' * (count > 1)}",
                "median": timing.median,
                "speed_up": count * timings[1].median / timing.median,
                "bound": count,
                "seconds": timing.seconds,
            }
            for count, timing in timings.items()
        ],
    )
