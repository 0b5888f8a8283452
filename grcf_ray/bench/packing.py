"""Several one-thread processes that train side by side, against one."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from grcf_ray.bench.measure import Column, Table, Timing
from grcf_ray.bench.step import SMALL_STEP, new_loop
from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.data.store import Store
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.stage import use_deterministic_torch

__all__ = ["packing_table"]

_STEPS = 4


def packing_table(
    store: Store, config: RunConfig, repetitions: int, say: Callable[[str], None], cache: Path, processes: int
) -> Table:
    """Wall-clock throughput of one process, and of as many as there are CPUs."""
    settings = {**flatten(config), **SMALL_STEP}
    prepare_features(store, build_config(settings), cache=cache)
    counts = (1, processes)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for round_ in range(repetitions):
        for count in counts:
            say(f"{count} at a time, {round_ + 1}/{repetitions}")
            seconds[count].append(_together(count, str(store.folder), settings, str(cache)))
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


def _together(count: int, store: str, settings: Mapping[str, Any], cache: str) -> float:
    """Seconds from when all processes are ready until the last of them is done."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(count + 1), context.Barrier(count + 1)
    workers = [
        context.Process(target=_work, args=(store, dict(settings), cache, ready, done), daemon=True)
        for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    ready.wait(timeout=600)
    start = time.perf_counter()
    done.wait(timeout=600)
    seconds = time.perf_counter() - start
    for worker in workers:
        worker.join()
    return seconds


def _work(store: str, settings: dict[str, Any], cache: str, ready: Barrier, done: Barrier) -> None:
    use_deterministic_torch(1)
    config = build_config(settings)
    features = prepare_features(Store.open(Path(store)), config, cache=Path(cache))
    loop = new_loop(features, config, torch.device("cpu"), {})
    steps = list(loop._steps())[:_STEPS]
    loop.backward(steps[0])
    ready.wait()
    for step in steps:
        loop.optimizer.zero_grad(set_to_none=True)
        loop.backward(step)
        loop.optimizer.step()
    done.wait()
