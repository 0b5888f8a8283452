"""Compare the CPU time of a whole search with that of the same trials run in the naive way.

    python benchmarks/end_to_end.py --dataset mosi --data DIR --out docs/performance

Runs on a Linux machine without GPUs, in about 10 minutes on two cores. The test split is not read.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

import grcf_ray.cluster  # noqa: F401  before Ray

import naive_trial
import numpy as np
from cpu_clock import INTERVAL_S, CpuClock
from study import run_study

from grcf_ray.bench.setup import Setup
from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.errors import ConfigError, GrcfError
from grcf_ray.search.callback import stage_job
from grcf_ray.search.events import Event, TrialEnded
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.space import stage_budgets
from grcf_ray.search.stages import config_of
from grcf_ray.storage import storage_path
from grcf_ray.tables import Column, Table

SAMPLED = 3
"""Trials of each stage that are started in the naive way."""
STEPS = 3
"""Timed optimizer steps of each, after an untimed one."""
LENGTH = 50
"""Subwords to which the paper's loop pads every text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """CPU seconds of the parts of a naive trial."""

    process: float
    """Start-up of a process: imports, tokenizer, cached features, pretrained weights, first calls."""
    building: float
    """The model with its weights, and the optimizer."""
    step: float
    """An optimizer step of full groups of pairs."""
    validation: float
    saving: float
    """A checkpoint."""
    steps: float
    """Steps of an epoch; a smaller last step counts as a fraction."""

    def seconds(self, *, processes: int, trials: int, epochs: int) -> float:
        """Return the CPU seconds of that many processes, trials and epochs."""
        epoch = self.steps * self.step + self.validation + self.saving
        return processes * self.process + trials * self.building + epochs * epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the measured search, and the parts of its trials when run naively."""

    stage: Literal[1, 2]
    trials: int
    slots: int
    """Trials at a time."""
    whole: int
    """Epochs of all trials without early stopping."""
    ran: int
    """Epochs of all trials with early stopping."""
    samples: Sequence[Parts]

    @property
    def parts(self) -> Parts:
        """Return the mean of the samples."""
        names = [field.name for field in dataclasses.fields(Parts)]
        return Parts(**{name: statistics.fmean(getattr(sample, name) for sample in self.samples) for name in names})


def end_to_end_tables(setup: Setup) -> list[Table]:
    """Measure the space's search, start some of its trials naively, and extrapolate to all trials."""
    config = setup.config
    _check(config)
    length = min(LENGTH, config.features.max_tokens)
    # Both ways read their features from the cache.
    setup.features()
    naive_trial.token_features(setup.store, _naive(config, length), setup.folder)
    record = RunRecord(storage_path(setup.folder / "whole"))
    budgets = stage_budgets(config)
    started = time.perf_counter()
    with CpuClock() as clock:
        slots = setup.slots(config, *(trials for trials, _ in budgets.values()))
        setup.search(record, setup.space, slots, functools.partial(_tell, setup))
    wall = time.perf_counter() - started
    stages = [_stage(setup, record, stage, epochs, slots, length) for stage, (_, epochs) in budgets.items()]
    shares = clock.shares
    return [
        Table(
            "naive",
            "CPU time of a whole search",
            (
                Column("name", "variant"),
                Column("trials", "trials", "{}"),
                Column("processes", "processes", "{}"),
                Column("epochs", "epochs", "{}"),
                Column("seconds", "CPU s", "{:,.0f}"),
                Column("ratio", "ratio to the measured search", "{:.2f}"),
            ),
            variant_rows(stages, clock.seconds),
            (
                f"last line, measured: all processes of a search of {wall:.0f} s of wall-clock time, {slots} trials "
                f"at a time, from joining Ray to the winner; the trials' processes took {shares['workers']:.0f} s of "
                f"the CPU time, the driver {shares['driver']:.0f} s, Ray's daemons {shares['daemons']:.0f} s; the "
                "driver's imports and the preparation of features do not count",
                f"an ended process counts up to its last sample, one every {INTERVAL_S:g} s: at most about "
                f"{clock.unseen:.1f} s are missing",
                f"other lines, extrapolated from {sum(len(stage.samples) for stage in stages)} of the search's trials: "
                f"each starts in a new process, takes {STEPS} optimizer steps, validates and writes a checkpoint, "
                "after a first round that does not count, with as many processes at a time as in the search",
                "extrapolation: the means of each stage's samples, times its processes, trials, steps and epochs; a "
                "naive driver costs nothing",
                f"naive: both members of every pair encoded, every text padded to {length} subwords, validation in the "
                "split's order with the same padding, a process for each trial, no early stopping; tokens are cached, "
                "the output of frozen layers is not",
                "the last line includes the cost of the driver and of Ray",
            ),
        ),
        Table(
            "naive parts",
            "CPU seconds of the parts of a naive trial",
            (
                Column("name", "stage"),
                Column("sampled", "trials sampled", "{}"),
                Column("process", "process", "{:.2f}"),
                Column("building", "model, optimizer", "{:.2f}"),
                Column("step", "a step", "{:.3f}"),
                Column("steps", "steps an epoch", "{:.1f}"),
                Column("validation", "validation", "{:.2f}"),
                Column("saving", "checkpoint", "{:.2f}"),
            ),
            [
                {
                    "name": f"{stage.stage}",
                    "sampled": len(stage.samples),
                    **dataclasses.asdict(stage.parts),
                    "samples": [dataclasses.asdict(sample) for sample in stage.samples],
                }
                for stage in stages
            ],
        ),
    ]


def _check(config: RunConfig) -> None:
    """Raise ConfigError if CPU time of this machine's processes is not the cost of the search."""
    if config.search.gpus:
        raise ConfigError(
            f"search.gpus_per_worker is {config.search.gpus:g}; this study measures CPU time alone. "
            "Add --set search.gpus_per_worker=0"
        )
    if address := os.environ.get("RAY_ADDRESS"):
        raise ConfigError(f"RAY_ADDRESS = {address}, but this study measures CPU time on this machine. Unset it")


def _naive(config: RunConfig, length: int) -> RunConfig:
    return build_config({**flatten(config), "features.max_tokens": length, "pairs.pairing": "sampled"})


def _tell(setup: Setup, event: Event) -> None:
    if isinstance(event, TrialEnded):
        setup.say(f"trial {event.trial.number} of stage {event.trial.stage} ended")


def _stage(setup: Setup, record: RunRecord, stage: Literal[1, 2], epochs: int, slots: int, length: int) -> Stage:
    trials = record.trials(stage)
    slots = min(slots, len(trials))
    # As many at a time as in the search: on shared cores they take more CPU time than alone.
    with concurrent.futures.ThreadPoolExecutor(slots) as pool:
        samples = list(pool.map(functools.partial(_sample, setup, record, length), spread(trials, SAMPLED)))
    return Stage(
        stage=stage,
        trials=len(trials),
        slots=slots,
        # A trial that diverged ends early in the naive way too.
        whole=sum(trial.epoch if trial.state in ("diverged", "failed") else epochs for trial in trials),
        ran=sum(trial.epoch for trial in trials),
        samples=samples,
    )


def spread(trials: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """Return up to `count` trials, evenly spaced from the first to the last."""
    places = np.linspace(0, len(trials) - 1, min(count, len(trials))).round().astype(int)
    return [trials[place] for place in places.tolist()]


def _sample(setup: Setup, record: RunRecord, length: int, trial: TrialRecord) -> Parts:
    """Start a recorded trial in the naive way, in a process of its own."""
    setup.say(f"trial {trial.number} of stage {trial.stage}, naively")
    folder = setup.folder / f"naive-{trial.stage}-{trial.number}"
    folder.mkdir()
    job = stage_job(
        record,
        trial,
        config=_naive(config_of(setup.space, record, trial), length),
        protocol=setup.protocol,
        folder=storage_path(folder / "checkpoints").uri,
    )
    task = {"store": str(setup.store.folder), "cache": str(setup.folder), "steps": STEPS, "job": vars(job)}
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    # Ray sets this variable for a trial's process.
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    answer, total = run_process([sys.executable, naive_trial.__file__, str(folder / "task.json")], environment)
    shutil.rmtree(folder)
    parts = json.loads(answer)
    return Parts(process=total - parts.pop("counted"), **parts)


def run_process(command: Sequence[str], environment: dict[str, str]) -> tuple[str, float]:
    """Return a process's standard output, and its CPU seconds from start to end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with process.stdout as out:
        answer = out.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise GrcfError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return answer, usage.ru_utime + usage.ru_stime


def variant_rows(stages: Sequence[Stage], measured: float) -> list[dict[str, Any]]:
    """Return a row for each variant, from the naive search to the measured one; each adds one difference."""
    variants = (
        ("naive", False, False),
        ("  with early stopping", True, False),
        ("  and a process for each slot and stage", True, True),
    )
    rows: list[dict[str, Any]] = []
    for name, stopped, kept in variants:
        row: dict[str, Any] = {"name": name, "processes": 0, "epochs": 0, "seconds": 0.0}
        for stage in stages:
            processes = stage.slots if kept else stage.trials
            epochs = stage.ran if stopped else stage.whole
            row["processes"] += processes
            row["epochs"] += epochs
            row["seconds"] += stage.parts.seconds(processes=processes, trials=stage.trials, epochs=epochs)
        rows.append(row)
    rows.append({**rows[-1], "name": "  and each utterance once, by length: measured", "seconds": measured})
    trials = sum(stage.trials for stage in stages)
    return [{**row, "trials": trials, "ratio": row["seconds"] / measured} for row in rows]


if __name__ == "__main__":
    run_study("end-to-end", __file__, end_to_end_tables)
