"""CPU time of a whole search, against the same trials driven naively. The test split is not read.

    python -m grcf_ray.bench.naive TASK.json

is what a trial's naive process does, some steps of it, and prints what they took: `naive_tables` starts it.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

# What starts Ray is imported where it is used: this file is also the naive process, which is spared Ray's imports.
import numpy as np
import torch
from torch import nn

from grcf_ray.bench.cpu_clock import LOOK, CpuClock
from grcf_ray.bench.step import LiteralStep, padded
from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.data.batches import collate
from grcf_ray.data.features import Features, build_features
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import ConfigError, GrcfError
from grcf_ray.metrics import split_metrics
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features, pretrained_backbone
from grcf_ray.train.checkpoint import save_checkpoint
from grcf_ray.train.job import StageJob, open_loop
from grcf_ray.train.stage import StageLoop, use_deterministic_torch

if TYPE_CHECKING:
    from grcf_ray.bench.setup import Setup
    from grcf_ray.search.events import Event
    from grcf_ray.search.record import RunRecord, TrialRecord

SAMPLED = 3
"""Trials of each stage that are begun naively."""
STEPS = 3
"""Optimizer steps of each of them that are timed, after one that is not."""
LENGTH = 50
"""Subwords that the paper's loop pads every text to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """CPU seconds of the parts of a naive trial."""

    process: float
    """What a process takes once: imports, tokenizer, features from the cache, pretrained weights, first calls."""
    building: float
    """The trial's model, its weights, the optimizer."""
    step: float
    """An optimizer step of a whole number of pairs."""
    validation: float
    saving: float
    """A checkpoint."""
    steps: float
    """Of an epoch, a smaller last one by its share."""

    def seconds(self, *, processes: int, trials: int, epochs: int) -> float:
        """So many of each."""
        epoch = self.steps * self.step + self.validation + self.saving
        return processes * self.process + trials * self.building + epochs * epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the search that was run, and the parts of its trials where they are run naively."""

    stage: Literal[1, 2]
    trials: int
    slots: int
    """Trials at a time."""
    whole: int
    """Epochs of all trials without early stopping."""
    ran: int
    """Epochs that they really had."""
    samples: Sequence[Parts]

    @property
    def parts(self) -> Parts:
        """The samples' mean."""
        names = [field.name for field in dataclasses.fields(Parts)]
        return Parts(**{name: statistics.fmean(getattr(sample, name) for sample in self.samples) for name in names})


def naive_tables(setup: Setup) -> list[Table]:
    """CPU time of the search that the space describes, and what it would be without what makes it fast."""
    from grcf_ray.cluster import connect

    from grcf_ray.search.nodes import cluster_nodes
    from grcf_ray.search.preflight import find_capacity
    from grcf_ray.search.record import RunRecord
    from grcf_ray.storage import storage_path

    config = setup.space.config()
    _check(config)
    length = min(LENGTH, config.features.max_tokens)
    # Both find their features in the cache.
    prepare_features(setup.store, config, cache=setup.folder)
    _naive_features(setup.store, _naive(config, length), setup.folder)
    record = RunRecord(storage_path(setup.folder / "whole"))
    record.write_run({"state": "running", "settings": flatten(config)})
    started = time.perf_counter()
    with CpuClock() as clock:
        connect()
        budgets = [config.search.stage1_trials] * (config.stage1.epochs > 0)
        budgets += [config.search.stage2_trials] * (config.stage2.epochs > 0)
        slots = find_capacity(cluster_nodes(), config, budgets).concurrent
        _search(setup, record, slots)
    wall = time.perf_counter() - started
    lengths: list[tuple[Literal[1, 2], int]] = [(1, config.stage1.epochs), (2, config.stage2.epochs)]
    stages = [_stage(setup, record, stage, epochs, slots, length) for stage, epochs in lengths if epochs]
    shares = clock.shares
    return [
        Table(
            "naive",
            "CPU time of a whole search",
            (
                Column("name", "way"),
                Column("trials", "trials", "{}"),
                Column("processes", "processes", "{}"),
                Column("epochs", "epochs", "{}"),
                Column("seconds", "CPU s", "{:,.0f}"),
                Column("ratio", "times the CPU time of ours", "{:.2f}"),
            ),
            _rows(stages, clock.seconds),
            (
                f"the last line was measured: every process of a search that took {wall:.0f} s of wall-clock time, "
                f"{slots} trials at a time, from joining Ray to the winner; the trials' processes took "
                f"{shares['workers']:.0f} s of it, the driver {shares['driver']:.0f} s, Ray's daemons "
                f"{shares['daemons']:.0f} s; not in it: the driver's imports, and features made anew",
                f"processes that ended count up to the last look at them, one every {LOOK:g} s or so: at most about "
                f"{clock.unseen:.1f} s are missing",
                "start-up, steps, validation and checkpoints of all other lines are extrapolated, from "
                f"{sum(len(stage.samples) for stage in stages)} of the search's own trials, each begun in a fresh "
                f"process that takes {STEPS} optimizer steps, validates and writes a checkpoint, each of them after a "
                "first one that does not count, as many processes at a time as the search had: the means of each "
                "stage's samples, times its processes, trials, steps and epochs; what drives naive trials counts "
                "nothing",
                f"naive: both members of every pair encoded, every text padded to {length} subwords; validation in "
                "the split's order, padded alike; a process for each trial; no early stopping; tokens are cached, the "
                "output of frozen layers is not",
                "the last line also has what our search costs beyond its trials: the driver, and Ray",
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
    """ConfigError where CPU time of this machine's processes is not what the search costs."""
    if config.search.gpus_per_worker:
        raise ConfigError("CPU time says little of trials on GPUs: --set search.gpus_per_worker=0")
    if address := os.environ.get("RAY_ADDRESS"):
        raise ConfigError(f"RAY_ADDRESS = {address}: CPU time is measured on this machine alone; unset it")


def _naive(config: RunConfig, length: int) -> RunConfig:
    return build_config({**flatten(config), "features.max_tokens": length, "pairs.pairing": "sampled"})


def _naive_features(store: DatasetStore, config: RunConfig, cache: Path) -> Features:
    """Tokens, and nothing that was computed from them."""
    return build_features(store, load_tokenizer(config.model.backbone), config.features, cache=cache)


def _search(setup: Setup, record: RunRecord, slots: int) -> None:
    from grcf_ray.data.datasets import protocol_of
    from grcf_ray.search.events import TrialEnded
    from grcf_ray.search.stages import Search

    def tell(event: Event) -> None:
        if isinstance(event, TrialEnded):
            setup.say(f"trial {event.trial.number} of stage {event.trial.stage} has ended")

    info = setup.store.info
    Search(
        record=record,
        space=setup.space,
        features=prepare_features(setup.store, setup.space.config(), cache=setup.folder),
        protocol=protocol_of(info.name, info.task),
        concurrent=slots,
        listeners=(tell,),
    ).run()


def _stage(setup: Setup, record: RunRecord, stage: Literal[1, 2], epochs: int, slots: int, length: int) -> Stage:
    trials = record.trials(stage)
    chosen = _spread(trials, SAMPLED)
    slots = min(slots, len(trials))
    # As many at a time as in the search: on shared cores they take more CPU time than alone.
    with concurrent.futures.ThreadPoolExecutor(slots) as pool:
        samples = list(pool.map(functools.partial(_sample, setup, record, length), chosen))
    return Stage(
        stage=stage,
        trials=len(trials),
        slots=slots,
        # Nothing would have kept a trial that diverged from it.
        whole=sum(trial.epoch if trial.state in ("diverged", "failed") else epochs for trial in trials),
        ran=sum(trial.epoch for trial in trials),
        samples=samples,
    )


def _spread(trials: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """So many of them, or all where there are fewer, evenly from the first to the last."""
    places = np.linspace(0, len(trials) - 1, min(count, len(trials))).round().astype(int)
    return [trials[place] for place in places.tolist()]


def _sample(setup: Setup, record: RunRecord, length: int, trial: TrialRecord) -> Parts:
    """Begin a trial of the record naively, in a process of its own."""
    from grcf_ray.data.datasets import protocol_of
    from grcf_ray.search.callback import stage_job
    from grcf_ray.search.stages import config_of
    from grcf_ray.storage import storage_path

    setup.say(f"trial {trial.number} of stage {trial.stage}, naively")
    folder = setup.folder / f"naive-{trial.stage}-{trial.number}"
    folder.mkdir()
    job = stage_job(
        record,
        trial,
        config=_naive(config_of(setup.space, record, trial), length),
        protocol=protocol_of(setup.store.info.name, setup.store.info.task),
        folder=storage_path(folder / "checkpoints").uri,
    )
    task = {"store": str(setup.store.folder), "cache": str(setup.folder), "steps": STEPS, "job": vars(job)}
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    # As Ray sets it for a trial's process.
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    answer, total = _run([sys.executable, "-m", "grcf_ray.bench.naive", str(folder / "task.json")], environment)
    shutil.rmtree(folder)
    taken = json.loads(answer)
    return Parts(process=total - taken.pop("counted"), **taken)


def _run(command: Sequence[str], environment: dict[str, str]) -> tuple[str, float]:
    """A process's standard output, and the CPU time that it took from its start to its end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with process.stdout as out:
        answer = out.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise GrcfError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return answer, usage.ru_utime + usage.ru_stime


def _rows(stages: Sequence[Stage], ours: float) -> list[dict[str, Any]]:
    """From the naive way to ours, one difference a line."""
    trials, slots = sum(stage.trials for stage in stages), sum(stage.slots for stage in stages)
    ways = (
        ("naive", False, False),
        ("  and trials stopped early", True, False),
        ("  and processes kept, one a slot and stage", True, True),
    )
    rows: list[dict[str, Any]] = []
    for name, stopped, kept in ways:
        counts = [(stage.slots if kept else stage.trials, stage.ran if stopped else stage.whole) for stage in stages]
        seconds = sum(
            stage.parts.seconds(processes=processes, trials=stage.trials, epochs=epochs)
            for stage, (processes, epochs) in zip(stages, counts, strict=True)
        )
        rows.append(
            {
                "name": name,
                "processes": sum(processes for processes, _ in counts),
                "epochs": sum(epochs for _, epochs in counts),
                "seconds": seconds,
            }
        )
    rows.append(
        {
            "name": "  and each utterance once, by length: ours, measured",
            "processes": slots,
            "epochs": sum(stage.ran for stage in stages),
            "seconds": ours,
        }
    )
    return [{**row, "trials": trials, "ratio": row["seconds"] / ours} for row in rows]


def _begin(task: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of a step of a naive trial, and of its other parts.

    counted: of all that was done of them; what more the process takes, from its start to its end, it takes once.
    """
    job = StageJob(**task["job"])
    use_deterministic_torch(job.threads)
    config = build_config(job.settings)
    features = _naive_features(DatasetStore.open(Path(task["store"])), config, Path(task["cache"]))
    pretrained_backbone(config.model.backbone)
    begun = time.process_time()
    loop = open_loop(job, features)
    building = time.process_time() - begun
    step = next(loop.steps())
    literal = LiteralStep(loop, step, sort=False)
    loop.model.train()
    assert loop.folder is not None
    checkpoint = loop.folder / "last.safetensors"
    timed: dict[str, tuple[Callable[[], object], int]] = {
        "step": (lambda: _take_step(loop, literal), task["steps"]),
        "validation": (lambda: _validate(loop, config.features.max_tokens), 1),
        "saving": (lambda: save_checkpoint(checkpoint, loop.model, loop.optimizer, {}), 1),
    }
    parts = {"building": building}
    for name, (call, count) in timed.items():
        # The first one imports and allocates, which a process does once.
        call()
        parts[name] = statistics.fmean(_seconds(call) for _ in range(count))
    counts = {"building": 1, **{name: 1 + count for name, (_, count) in timed.items()}}
    return {
        **parts,
        "steps": loop.n_pairs / sum(len(group.pairs_P2) for group in step.groups),
        "counted": sum(counts[name] * seconds for name, seconds in parts.items()),
    }


def _take_step(loop: StageLoop, literal: LiteralStep) -> None:
    loop.optimizer.zero_grad(set_to_none=True)
    literal.backward()
    nn.utils.clip_grad_norm_(loop.model.parameters(), loop.config.train.clip_norm)
    loop.optimizer.step()


@torch.no_grad()
def _validate(loop: StageLoop, length: int) -> dict[str, float]:
    """Metrics of the validation split, encoded in its own order with every text padded to a length."""
    loop.model.eval()
    features, valid = loop.features, loop.features.valid
    size = max(1, loop.config.pairs.micro_batch_tokens // length)
    scores = []
    for start in range(0, len(valid), size):
        index_B = np.arange(start, min(start + size, len(valid)))
        batch = padded(collate(features, valid, index_B), length, features.pad_token_id)
        scores.append(loop.model.score(loop.model.encode(batch.to(loop.device, loop.dtype))))
    loop.model.train()
    score_N = torch.cat(scores).double().cpu().numpy()
    return split_metrics(
        score_N,
        valid.label_N,
        protocol=loop.protocol,
        limit=features.half_range,
        origin=features.center,
        ties=loop.config.metrics.ties,
    )


def _seconds(call: Callable[[], object]) -> float:
    before = time.process_time()
    call()
    return time.process_time() - before


if __name__ == "__main__":
    print(json.dumps(_begin(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
