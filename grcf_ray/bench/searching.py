"""What a search costs beyond the training of its trials. The test split is not read."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grcf_ray.cluster import connect

import torch

from grcf_ray.bench.step import new_loop
from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.data.datasets import protocol_of
from grcf_ray.data.store import DatasetStore
from grcf_ray.search.events import (
    EpochFinished,
    Event,
    StageEnded,
    StageStarted,
    TrialBroke,
    TrialEnded,
    TrialStarted,
)
from grcf_ray.search.nodes import cluster_nodes
from grcf_ray.search.preflight import find_capacity
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.space import Space
from grcf_ray.search.stages import Search
from grcf_ray.storage import storage_path
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.checkpoint import save_checkpoint
from grcf_ray.train.stage import use_deterministic_torch

_SAVES = 5


class SlotClock:
    """Notes where the time of the slots goes.

    concurrent: how many slots there are. saving: seconds that a checkpoint takes, of which every epoch writes one.
    """

    def __init__(self, concurrent: int, saving: float, say: Callable[[str], None]) -> None:
        self._concurrent, self._saving, self._say = concurrent, saving, say
        self._free: list[tuple[float, bool]] = []
        self._waiting: dict[int, tuple[float, bool]] = {}
        self.trained = self.idle = 0.0
        self.epochs = 0
        self.starts: list[float] = []
        """From when a stage begins until a process begins its first epoch, by process."""
        self.turnarounds: list[float] = []
        """From when a process reports a trial's last epoch until it begins the next one's first."""

    def __call__(self, event: Event) -> None:
        """Note the time of an event of the search."""
        now = time.perf_counter()
        if isinstance(event, StageStarted):
            self._free, self._waiting = [(now, True)] * self._concurrent, {}
        elif isinstance(event, TrialStarted):
            self._waiting[event.trial.number] = self._free.pop(0)
        elif isinstance(event, (EpochFinished, TrialEnded)):
            trial = event.trial
            if (waited := self._waiting.pop(trial.number, None)) is not None and trial.curve:
                since, first = waited
                (self.starts if first else self.turnarounds).append(
                    now - since - trial.curve[0]["seconds"] - self._saving
                )
            if isinstance(event, TrialEnded):
                self._free.append((now, False))
                self.trained += trial.seconds
                self.epochs += len(trial.curve)
                self._say(f"trial {trial.number} of stage {trial.stage} has ended")
        elif isinstance(event, TrialBroke):
            self._free.append((now, False))
        elif isinstance(event, StageEnded):
            self.idle += sum(now - since for since, _ in self._free)


class _TimedRecord(RunRecord):
    """Counts the time that writing trials takes."""

    seconds = 0.0

    def write_trial(self, trial: TrialRecord) -> None:
        before = time.perf_counter()
        super().write_trial(trial)
        self.seconds += time.perf_counter() - before

    def export_trials(self, stage: int) -> None:
        before = time.perf_counter()
        super().export_trials(stage)
        self.seconds += time.perf_counter() - before


def search_table(
    store: DatasetStore, config: RunConfig, space: Space, say: Callable[[str], None], folder: Path, trials: int
) -> Table:
    """A search of `trials` trials: where the time of its slots went.

    A slot is the room of one trial at a time; the first trial of each stage in a slot starts a process.
    """
    space = space.with_settings({"search.stage1_trials": trials // 2, "search.stage2_trials": trials - trials // 2})
    connect()
    room = find_capacity(cluster_nodes(), config, [trials // 2])
    features = prepare_features(store, config, cache=folder)
    say("checkpoints")
    saving = _saving(store, config, folder, room.concurrent)
    record = _TimedRecord(storage_path(folder / "bench"))
    record.write_run({"state": "running", "settings": flatten(config)})
    clock = SlotClock(room.concurrent, saving, say)
    started = time.perf_counter()
    job = Search(
        record=record,
        space=space,
        features=features,
        protocol=protocol_of(store.info.name, store.info.task),
        concurrent=room.concurrent,
        listeners=(clock,),
    )
    job.run()
    wall = time.perf_counter() - started
    slots = room.concurrent * wall
    outside = slots - clock.trained - clock.idle
    parts = [
        ("its slots, together", slots),
        ("training and validation", clock.trained),
        ("idle at the end of a stage, for want of trials", clock.idle),
        ("all else", outside),
        ("  processes started, one a slot and stage", sum(clock.starts)),
        (f"  checkpoints, one an epoch of {saving:.2f} s", clock.epochs * saving),
        ("  from trial to trial", sum(clock.turnarounds)),
        ("  writing the record of its trials", record.seconds),
    ]
    return Table(
        "search",
        f"A search of {trials} trials, {room.concurrent} at a time",
        (
            Column("name", "part"),
            Column("seconds", "seconds", "{:.2f}"),
            Column("share", "of its slots", "{:.1%}"),
        ),
        [
            *({"name": name, "seconds": seconds, "share": seconds / slots} for name, seconds in parts),
            *(
                {"name": f"from trial to trial, {what}", "seconds": of(clock.turnarounds), "share": None}
                for what, of in (("median", statistics.median), ("longest", max))
                # There is none where every process had one trial alone.
                if clock.turnarounds
            ),
        ],
        (
            f"{clock.epochs} epochs in {wall:.0f} s of wall-clock time",
            "from trial to trial: from the report of a trial's last epoch until the next one's first begins; a "
            "process's first trial in a stage, for which it is started, is not among them",
        ),
    )


def _saving(store: DatasetStore, config: RunConfig, folder: Path, processes: int) -> float:
    """Seconds that a checkpoint of the whole model takes, with the optimizer's moments, where so many write at once."""
    given = [(str(store.folder), flatten(config), str(folder), number) for number in range(processes)]
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return statistics.median(second for seconds in pool.map(_save, given) for second in seconds)


def _save(given: tuple[str, dict[str, Any], str, int]) -> list[float]:
    store, settings, cache, number = given
    use_deterministic_torch(1)
    config = build_config(settings)
    features = prepare_features(DatasetStore.open(Path(store)), config, cache=Path(cache))
    loop = new_loop(features, config, torch.device("cpu"), {})
    loop.take_step(next(loop.steps()))
    seconds = []
    for _ in range(_SAVES):
        before = time.perf_counter()
        save_checkpoint(storage_path(Path(cache) / f"{number}.safetensors"), loop.model, loop.optimizer, {})
        seconds.append(time.perf_counter() - before)
    return seconds
