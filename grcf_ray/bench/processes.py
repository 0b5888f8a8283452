"""Measure processes of trials: the memory of one that runs many, and several side by side."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grcf_ray.cluster import connect, leave, watched

import numpy as np
import ray

from grcf_ray.bench.measure import in_new_process, private_bytes
from grcf_ray.bench.setup import Setup
from grcf_ray.bench.step import SMALL_STEP
from grcf_ray.config import build_config, flatten
from grcf_ray.data.datasets import protocol_of
from grcf_ray.data.features import Ragged, SplitFeatures
from grcf_ray.data.store import DatasetStore
from grcf_ray.search.calibration import Placement, WorkerSet
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.job import JobRunner, StageJob

AFTER = (1, 5, 20, 50)
"""The memory is read after these numbers of trials."""
_UTTERANCES = 16
"""Utterances of each split: the memory that a trial leaves behind does not depend on its length."""


def memory_table(setup: Setup) -> Table:
    """Read the private memory of a new process after several trials of one epoch with model and checkpoint."""
    small = {"pairs.pairs_per_epoch": _UTTERANCES // 2, "stage1.epochs": 1, "model.frozen_layers": 0}
    config = setup.changed(small)
    setup.features(config)
    setup.say(f"{AFTER[-1]} trials in one process")
    after = in_new_process(_run_trials, str(setup.store.folder), flatten(config), str(setup.folder), AFTER)
    return Table(
        "memory",
        "A process that runs one trial after the other",
        (
            Column("name", "after trial"),
            Column("mb", "private memory, MB", "{:.0f}"),
            Column("share", "relative to trial 5", "{:.3f}"),
        ),
        [{"name": f"{number}", "mb": size / 1e6, "share": size / after[5]} for number, size in after.items()],
        (f"trials of one epoch on {_UTTERANCES} utterances; all layers are trained",),
    )


def _run_trials(store: str, settings: dict[str, Any], cache: str, counts: Sequence[int]) -> dict[int, int]:
    """Run trials in this process; return its private bytes after each number of trials in `counts`."""
    config, data = build_config(settings), DatasetStore.open(Path(store))
    features = prepare_features(data, config, cache=Path(cache))
    runner = JobRunner(dataclasses.replace(features, train=_first(features.train), valid=_first(features.valid)))
    folder = Path(cache) / "memory"
    after = {}
    for number in range(1, counts[-1] + 1):
        shutil.rmtree(folder, ignore_errors=True)
        job = StageJob(
            stage=1,
            seed=number,
            settings=settings,
            protocol=protocol_of(data.info.name, data.info.task),
            folder=str(folder),
            initial=None,
            initial_sha256=None,
            threads=1,
            gpu=0,
        )
        runner.start(job)
        runner.step()
        if number in counts:
            after[number] = private_bytes()
    return after


def _first(split: SplitFeatures) -> SplitFeatures:
    n = min(_UTTERANCES, len(split))

    def cut(ragged: Ragged | None) -> Ragged | None:
        return ragged and Ragged(np.array(ragged.values[: ragged.offsets[n]]), ragged.offsets[: n + 1])

    return SplitFeatures(split.label_N[:n], cut(split.tokens), cut(split.audio), cut(split.vision))


_STEPS = 4


def packing_table(setup: Setup) -> Table:
    """Measure the wall-clock throughput of one process, and of one process for each CPU, up to 8."""
    processes = min(setup.processes, 8)
    config = setup.changed(SMALL_STEP)
    connect()
    features = ray.put(setup.features(config))
    seconds = {}
    for count in sorted({1, processes}):
        setup.say(f"{count} at a time")
        with watched(leave), WorkerSet(features, config, Placement(count, 1, 0.0)) as workers:
            seconds[count] = [workers.run(_STEPS)[0] for _ in range(setup.repetitions)]
    medians = {count: statistics.median(taken) for count, taken in seconds.items()}
    columns = (
        Column("name", f"{_STEPS} steps of 32 pairs each"),
        Column("median", "median s, wall", "{:.2f}"),
        Column("speed_up", "throughput", "{:.2f}"),
        Column("bound", "bound by CPUs", "{}"),
    )
    rows = [
        {
            "name": f"{count} process{'es' * (count > 1)}",
            "median": median,
            "speed_up": count * medians[1] / median,
            "bound": count,
            "seconds": tuple(seconds[count]),
        }
        for count, median in medians.items()
    ]
    return Table("packing", "Trials side by side, one thread each", columns, rows)
