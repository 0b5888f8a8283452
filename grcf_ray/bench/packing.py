"""Compare several one-thread trials side by side with one alone."""

from __future__ import annotations

from grcf_ray.cluster import connect

import ray

from grcf_ray.bench.measure import Timing
from grcf_ray.bench.setup import Setup
from grcf_ray.bench.step import SMALL_STEP
from grcf_ray.search.calibration import Placement, WorkerSet
from grcf_ray.tables import Column, Table

_STEPS = 4


def packing_table(setup: Setup) -> Table:
    """Measure the wall-clock throughput of one process, and of one process for each CPU, up to 8."""
    processes = min(setup.processes, 8)
    config = setup.changed(SMALL_STEP)
    connect()
    features = ray.put(setup.features(config))
    counts = sorted({1, processes})
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    setup.say(f"starting {processes} processes")
    with WorkerSet(features, config, Placement(processes, 1, 0.0)) as workers:
        for round_ in range(setup.repetitions):
            for count in counts:
                setup.say(f"{count} at a time, {round_ + 1}/{setup.repetitions}")
                taken, _ = workers.run(_STEPS, members=count)
                seconds[count].append(taken)
    timings = {count: Timing(tuple(seconds[count])) for count in counts}
    return Table(
        "packing",
        "Trials side by side, one thread each",
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
