"""Measure what many trials at a time cost the driver of a search, and what a proposal costs after many trials.

python benchmarks/scale.py --data DIR
"""

from __future__ import annotations

import contextlib
import pickle
import random
import statistics
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import grcf_ray.cluster  # noqa: F401  before Ray

import optuna
from study import run_study

from grcf_ray.bench.setup import Setup
from grcf_ray.config import flatten
from grcf_ray.report.listener import PageListener
from grcf_ray.report.progress_lines import ProgressLines
from grcf_ray.report.tensorboard import TensorBoardListener
from grcf_ray.search.events import SearchFinished, SearchStarted
from grcf_ray.search.record import RunRecord, TrialRecord, now
from grcf_ray.search.searcher import OptunaSearcher, distributions
from grcf_ray.search.simulation import Clock, FedSearch, FedTrial
from grcf_ray.search.winner import versions
from grcf_ray.storage import StoragePath, storage_path
from grcf_ray.tables import Column, Table

AT_A_TIME = (64, 256, 1024)
EPOCHS, GRACE_EPOCHS = 6, 3
FIGURES = 30
"""Metrics of an epoch, about as many as in a real trial."""
EPOCH_S = 10.0
"""Mean seconds of an epoch; each trial has its own, within a third."""
RECORDED = (100, 1000, 10_000)
_PROPOSALS = 5
_WARM_UP = 8
"""Trials of a search that does not count: the first report imports modules."""


class Costs(Clock):
    """A clock that shows the real time, and keeps the cost of the driver's work."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, list[tuple[float, float]]] = defaultdict(list)
        """Wall-clock and CPU seconds of the main thread for each `launch`, `epoch` and `end`."""
        self.reported: dict[int, dict[int, float]] = defaultdict(dict)
        """Times of the reports that are not on record yet, by trial and epoch."""
        self.behind = 0.0
        """Longest time from the report of an epoch until it was on record, in seconds."""
        self.memory = 0
        """Bytes of all Python objects after the last event, if they are traced."""

    def now(self) -> float:
        """Return the time."""
        return time.perf_counter()

    def wait(self, until: float) -> None:
        """Wait until a time."""
        time.sleep(max(0.0, until - time.perf_counter()))

    @contextlib.contextmanager
    def event(self) -> Iterator[dict[str, str]]:
        """Time work of the main thread; it counts if the caller enters its `kind`."""
        about: dict[str, str] = {}
        wall, cpu = time.perf_counter(), time.thread_time()
        yield about
        if "kind" in about:
            self.costs[about["kind"]].append((time.perf_counter() - wall, time.thread_time() - cpu))
            self.memory, _ = tracemalloc.get_traced_memory()

    def milliseconds(self, kind: str) -> tuple[float, float]:
        """Return the mean wall-clock and CPU time of an event of the main thread, in ms."""
        wall, cpu = zip(*self.costs[kind], strict=True)
        return 1e3 * statistics.fmean(wall), 1e3 * statistics.fmean(cpu)


class _WatchedRecord(RunRecord):
    """A record that measures how far it is behind."""

    def __init__(self, place: StoragePath, costs: Costs) -> None:
        super().__init__(place)
        self._costs = costs

    def _write_trial(self, trial: TrialRecord) -> None:
        super()._write_trial(trial)
        reported = self._costs.reported[trial.number]
        for epoch in [epoch for epoch in reported if epoch <= trial.epoch]:
            self._costs.behind = max(self._costs.behind, time.perf_counter() - reported.pop(epoch))


class _TimedTrial(FedTrial):
    """A trial with a made curve; its results are copied, as they come from another process."""

    def __init__(self, name: str, config: dict[str, Any], epochs: int, epoch_s: float, costs: Costs) -> None:
        draw = random.Random(config["number"])
        epoch_s *= draw.uniform(2 / 3, 4 / 3)
        top = draw.uniform(0.55, 0.8)
        curve = [
            {
                "epoch": epoch,
                "valid/pairwise_acc": top - 0.3 / epoch + draw.gauss(0.0, 0.01),
                # Trials begin together, but their epochs do not end together.
                "seconds": epoch_s * (random.Random(config["number"]).random() if epoch == 1 else 1.0),
                "utterance_passes": 1.0,
                **{f"figure_{index}": draw.random() for index in range(FIGURES)},
            }
            for epoch in range(1, epochs + 1)
        ]
        super().__init__(name, config, curve, "valid/pairwise_acc")
        self._costs = costs

    def step(self) -> dict[str, Any]:
        """Return the result of the next epoch, and note its time."""
        result: dict[str, Any] = pickle.loads(pickle.dumps(super().step()))
        self._costs.reported[self.key[1]][result["epoch"]] = time.perf_counter()
        return result


def scale_table(setup: Setup, *, at_a_time: Sequence[int] = AT_A_TIME, epoch_s: float = EPOCH_S) -> Table:
    """Measure the driver's time an event and its memory a trial, and how far the record is behind."""
    where = storage_path(setup.storage) if setup.storage else storage_path(setup.folder)
    setup.say("memory")
    _fed(setup, where, _WARM_UP, 0.0)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    memory = _fed(setup, where, at_a_time[0], 0.0)["memory"] - before
    tracemalloc.stop()
    rows = []
    for count in at_a_time:
        setup.say(f"{count} trials at a time")
        rows.append(_fed(setup, where, count, epoch_s))
    return Table(
        "scale",
        f"A search whose trials report an epoch every {epoch_s:g} s, without processes, {_kind(where)}",
        (
            Column("name", "trials at a time"),
            Column("epochs", "epochs", "{}"),
            Column("epoch", "ms an epoch", "{:.2f}"),
            Column("epoch_cpu", "of them CPU", "{:.2f}"),
            Column("launch", "ms a launch", "{:.1f}"),
            Column("end", "ms an end", "{:.1f}"),
            Column("process", "CPU ms of all threads an event", "{:.2f}"),
            Column("behind", "record behind, s", "{:.1f}"),
        ),
        rows,
        (
            f"the driver needs {memory / _trials(at_a_time[0]) / 1e3:.0f} kB of Python objects a trial",
            "searcher, scheduler, record, terminal, TensorBoard and page are those of a search; the results of "
            f"{EPOCHS} epochs of {FIGURES + 4} figures come from the same process, at random times",
            "a time is the mean of the driver's main thread; an epoch that ends a trial counts as an end",
            "behind: the longest time from the report of an epoch until it was on record",
        ),
    )


def _kind(where: StoragePath) -> str:
    return "on a disk" if where.local is not None else "in object storage"


def _trials(at_a_time: int) -> int:
    """Return the number of trials of a search."""
    return at_a_time + at_a_time // 4


def _fed(setup: Setup, where: StoragePath, count: int, epoch_s: float) -> dict[str, Any]:
    """Run a search of `count` trials at a time; return its row, with the bytes of all Python objects at its end."""
    trials, info = _trials(count), setup.store.info
    changes = {
        "search.stage1_trials": trials,
        "search.grace_epochs": GRACE_EPOCHS,
        "stage1.epochs": EPOCHS,
        "stage2.epochs": 0,
    }
    space, costs = setup.space.with_settings(changes), Costs()
    record = _WatchedRecord(where / f"scale-{time.time_ns()}", costs)
    record.write_run(
        {
            "state": "running",
            "starts": [{"time": now(), "command": "bench"}],
            "space": space.as_dict(),
            "settings": flatten(space.config()),
            "data": {
                "folder": str(setup.store.folder),
                "name": info.name,
                "task": info.task,
                "fingerprint": info.fingerprint,
                "label_range": list(info.label_range),
                "metrics": setup.protocol,
            },
            "versions": versions(),
        }
    )
    # Without trials' processes, only the reach of the scores is read.
    features: Any = SimpleNamespace(half_range=info.half_range, task=info.task)
    cpu = time.process_time()
    with (
        (setup.folder / "progress").open("w") as terminal,
        contextlib.redirect_stderr(terminal),
        PageListener(record) as page,
        TensorBoardListener(record) as tensorboard,
    ):
        search = FedSearch(
            record=record,
            space=space,
            features=features,
            protocol=setup.protocol,
            concurrent=count,
            listeners=(ProgressLines(), tensorboard, page),
            feed=lambda name, config: _TimedTrial(name, config, EPOCHS, epoch_s, costs),
            clock=costs,
        )
        search.tell(SearchStarted(count, {1: (trials, EPOCHS)}, info.task))
        search.run()
        cpu = time.process_time() - cpu
        search.tell(SearchFinished())
    (epoch, epoch_cpu), (launch, _), (end, _) = (costs.milliseconds(kind) for kind in ("epoch", "launch", "end"))
    return {
        "name": str(count),
        "epochs": len(costs.costs["epoch"]),
        "epoch": epoch,
        "epoch_cpu": epoch_cpu,
        "launch": launch,
        "end": end,
        "process": 1e3 * cpu / sum(map(len, costs.costs.values())),
        "behind": costs.behind,
        "memory": costs.memory,
    }


def proposals_table(setup: Setup, *, recorded: Sequence[int] = RECORDED) -> Table:
    """Measure the CPU time of a proposal after many trials."""
    space = distributions(setup.space.stage1)
    rows = []
    for count in recorded:
        setup.say(f"{count} recorded trials")
        searcher = OptunaSearcher(
            space,
            starts=[],
            budget=count + _PROPOSALS,
            trials=_drawn(space, count),
            stage=1,
            epochs=EPOCHS,
            seed=setup.config.seed,
            n_startup_trials=10,
            feasible=lambda params: True,
            launch=lambda number, params: params,
        )
        seconds = []
        for number in range(_PROPOSALS):
            before = time.thread_time()
            searcher.suggest(str(number))
            seconds.append(time.thread_time() - before)
        rows.append({"name": str(count), "median": 1e3 * statistics.median(seconds), "seconds": tuple(seconds)})
    return Table(
        "proposals",
        f"A proposal of TPE over {len(space)} settings",
        (Column("name", "recorded trials"), Column("median", "median CPU ms", "{:.1f}")),
        rows,
        ("a third of the trials is complete, the others were stopped early",),
    )


def _drawn(space: dict[str, Any], count: int) -> list[TrialRecord]:
    """Return trials with random settings and results."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    draw, trials = random.Random(0), []
    for number in range(count):
        epochs = draw.choice((1, 3, EPOCHS))
        curve = [{"epoch": epoch, "valid/pairwise_acc": draw.random()} for epoch in range(1, epochs + 1)]
        trials.append(
            TrialRecord(
                number=number,
                stage=1,
                attempt=1,
                params=study.ask(space).params,
                seed=number,
                state="complete" if epochs == EPOCHS else "pruned",
                curve=curve,
            )
        )
    return trials


if __name__ == "__main__":
    run_study("scale", __file__, lambda setup: [scale_table(setup), proposals_table(setup)])
