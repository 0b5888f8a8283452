"""Measure the time that a search spends outside training."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grcf_ray.cluster  # noqa: F401  before Ray

import torch

from grcf_ray.bench.setup import Setup
from grcf_ray.bench.step import new_loop
from grcf_ray.config import build_config, flatten
from grcf_ray.data.store import DatasetStore
from grcf_ray.search.events import (
    EpochFinished,
    Event,
    StageEnded,
    StageStarted,
    TrialBroke,
    TrialEnded,
    TrialLeft,
    TrialStarted,
)
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.storage import storage_path
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.saving import CheckpointSaver
from grcf_ray.train.stage import use_deterministic_torch

_SAVES = 5


class SlotClock:
    """A listener that adds up where the time of the slots goes.

    concurrent: number of slots. saving: seconds of a checkpoint, which every epoch writes.
    """

    def __init__(self, concurrent: int, saving: float, say: Callable[[str], None]) -> None:
        self._concurrent, self._saving, self._say = concurrent, saving, say
        self._free: list[tuple[float, bool]] = []
        self._waiting: dict[str, tuple[float, bool]] = {}
        self._begun = False
        self.trained = self.idle = 0.0
        self.epochs = 0
        self.starts: list[float] = []
        """Seconds from the start of the search to the first epoch of a process, by process."""
        self.turnarounds: list[float] = []
        """Seconds from the report of a trial's last epoch to the next trial's first epoch in the same process."""

    def __call__(self, event: Event) -> None:
        """Note the time of an event of the search."""
        now = time.perf_counter()
        if isinstance(event, StageStarted):
            # Processes go on from stage to stage.
            if not self._begun:
                self._begun, self._free = True, [(now, True)] * self._concurrent
        elif isinstance(event, TrialStarted):
            self._waiting[event.trial.name] = self._free.pop(0)
        elif isinstance(event, (EpochFinished, TrialEnded)):
            trial = event.trial
            if (waited := self._waiting.pop(trial.name, None)) is not None and trial.curve:
                since, first = waited
                (self.starts if first else self.turnarounds).append(
                    now - since - trial.curve[0]["seconds"] - self._saving
                )
            if isinstance(event, TrialEnded):
                self._free.append((now, False))
                self.trained += trial.seconds
                self.epochs += len(trial.curve)
                self._say(f"trial {trial.number} of stage {trial.stage} ended")
        elif isinstance(event, (TrialBroke, TrialLeft)):
            self._free.append((now, False))
        elif isinstance(event, StageEnded):
            self.idle += sum(now - since for since, _ in self._free)
            self._free = [(now, first) for _, first in self._free]


class _TimedRecord(RunRecord):
    """A record that adds up the seconds spent on writing trials."""

    seconds = 0.0

    def write_trial(self, trial: TrialRecord) -> None:
        before = time.perf_counter()
        super().write_trial(trial)
        self.seconds += time.perf_counter() - before

    def export_trials(self, stage: int) -> None:
        before = time.perf_counter()
        super().export_trials(stage)
        self.seconds += time.perf_counter() - before


def search_table(setup: Setup) -> Table:
    """Run a search and divide the time of its slots.

    A slot runs one trial at a time; its first trial starts a process.
    """
    config, trials = setup.config, setup.trials
    budgets = {"search.stage1_trials": trials // 2, "search.stage2_trials": trials - trials // 2}
    concurrent = setup.slots(config, trials // 2)
    setup.features()
    setup.say("checkpoints")
    saving = _saving(setup, concurrent)
    record = _TimedRecord(storage_path(setup.folder / "bench"))
    clock = SlotClock(concurrent, saving, setup.say)
    started = time.perf_counter()
    setup.search(record, setup.space.with_settings(budgets), concurrent, clock)
    wall = time.perf_counter() - started
    slots = concurrent * wall
    outside = slots - clock.trained - clock.idle
    parts = [
        ("all slots together", slots),
        ("training and validation", clock.trained),
        ("idle at the end of a stage, without a trial", clock.idle),
        ("everything else", outside),
        ("  processes started, one a slot", sum(clock.starts)),
        (f"  checkpoints, one an epoch of {saving:.2f} s", clock.epochs * saving),
        ("  from trial to trial", sum(clock.turnarounds)),
        ("  writing the trials' records", record.seconds),
    ]
    return Table(
        "search",
        f"A search of {trials} trials, {concurrent} at a time",
        (
            Column("name", "part"),
            Column("seconds", "seconds", "{:.2f}"),
            Column("share", "of all slots", "{:.1%}"),
        ),
        [
            *({"name": name, "seconds": seconds, "share": seconds / slots} for name, seconds in parts),
            *(
                {"name": f"from trial to trial, {name}", "seconds": statistic(clock.turnarounds), "share": None}
                for name, statistic in (("median", statistics.median), ("longest", max))
                # Empty if every process ran a single trial.
                if clock.turnarounds
            ),
        ],
        (
            f"{clock.epochs} epochs in {wall:.0f} s of wall-clock time",
            "from trial to trial: from the report of a trial's last epoch to the start of the next trial; the first "
            "trial of a process does not count",
        ),
    )


def _saving(setup: Setup, processes: int) -> float:
    """Return the seconds of a checkpoint with the optimizer's state, to its end, when all processes write at once."""
    arguments = [
        (str(setup.store.folder), flatten(setup.config), str(setup.folder), number) for number in range(processes)
    ]
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return statistics.median(second for seconds in pool.map(_save, arguments) for second in seconds)


def _save(arguments: tuple[str, dict[str, Any], str, int]) -> list[float]:
    store, settings, cache, number = arguments
    use_deterministic_torch(1)
    config = build_config(settings)
    features = prepare_features(DatasetStore.open(Path(store)), config, cache=Path(cache))
    loop = new_loop(features, config, torch.device("cpu"), {})
    loop.take_step(next(loop.steps()))
    seconds = []
    for _ in range(_SAVES):
        before = time.perf_counter()
        folder = Path(cache) / f"checkpoints-{number}"
        saver = CheckpointSaver(storage_path(folder), folder / "scratch", minutes=0)
        saver.save(loop.model, loop.optimizer, {"stage": 1, "epoch": 1, "curve": []}, ["whole"])
        saver.finish()
        seconds.append(time.perf_counter() - before)
    return seconds
