"""Measure what many trials at a time cost the driver of a search, and what a proposal costs after many trials."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import pickle
import random
import statistics
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import grcf_ray.cluster  # noqa: F401  before Ray

import optuna
from ray import tune

from grcf_ray.bench.idle import FIGURES
from grcf_ray.bench.setup import Setup
from grcf_ray.config import flatten
from grcf_ray.report.listener import PageListener
from grcf_ray.report.progress_lines import ProgressLines
from grcf_ray.report.tensorboard import TensorBoardListener
from grcf_ray.search.callback import RecordCallback
from grcf_ray.search.events import SearchStarted
from grcf_ray.search.record import RunRecord, TrialRecord, now
from grcf_ray.search.searcher import OptunaSearcher, distributions
from grcf_ray.search.stages import Search
from grcf_ray.search.winner import versions
from grcf_ray.storage import StoragePath, storage_path
from grcf_ray.tables import Column, Table

AT_A_TIME = (64, 256, 1024)
EPOCHS, GRACE_EPOCHS = 6, 3
EPOCH_S = 10.0
"""Mean seconds of an epoch; each trial has its own, within a third."""
RECORDED = (100, 1000, 10_000)
_PROPOSALS = 5
_WARM_UP = 8
"""Trials of a search that does not count: the first report imports modules."""


@dataclasses.dataclass
class Costs:
    """The cost of the driver's work."""

    seconds: dict[str, list[tuple[float, float]]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    """Wall-clock and CPU seconds of the main thread for each `launch`, `epoch` and `end`."""
    reported: dict[int, dict[int, float]] = dataclasses.field(default_factory=lambda: defaultdict(dict))
    """Times of the reports that are not on record yet, by trial and epoch."""
    behind: float = 0.0
    """Longest time from the report of an epoch until it was on record, in seconds."""
    memory: int = 0
    """Bytes of all Python objects when the last trial has ended, if they are traced."""

    @contextlib.contextmanager
    def timed(self) -> Iterator[dict[str, str]]:
        """Time work of the main thread; the caller enters its `kind`, if it counts."""
        about: dict[str, str] = {}
        wall, cpu = time.perf_counter(), time.thread_time()
        yield about
        if "kind" in about:
            self.seconds[about["kind"]].append((time.perf_counter() - wall, time.thread_time() - cpu))

    def milliseconds(self, kind: str) -> tuple[float, float]:
        """Return the mean wall-clock and CPU time of an event of the main thread, in ms."""
        wall, cpu = zip(*self.seconds[kind], strict=True)
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


class _FedCallback(RecordCallback):
    """A callback that asks no process for the weights of a pruned trial."""

    def _finish(self, trial: TrialRecord, tuned: Any) -> None:
        self._ranking.put(trial)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FedSearch(Search):
    """A search whose results come from this process instead of trials' processes, each at its time."""

    keeper = _FedCallback

    costs: Costs
    epoch_s: float

    def _fit(
        self,
        stage: Literal[1, 2],
        searcher: OptunaSearcher,
        scheduler: tune.schedulers.TrialScheduler,
        keeper: RecordCallback,
        stopped: Callable[[], bool],
    ) -> None:
        due: list[tuple[float, int, _FedTrial]] = []
        controller: Any = None
        with self.record.background:
            while True:
                while trial := self._launch(searcher, stage):
                    scheduler.on_trial_add(controller, trial)  # type: ignore[arg-type]
                    first = time.perf_counter() + trial.epoch_s * random.Random(trial.number).random()
                    heapq.heappush(due, (first, trial.number, trial))
                if not due:
                    self.costs.memory, _ = tracemalloc.get_traced_memory()
                    return
                at, number, trial = heapq.heappop(due)
                time.sleep(max(0.0, at - time.perf_counter()))
                result: dict[str, Any] = trial.step()
                self.costs.reported[number][result["epoch"]] = time.perf_counter()
                with self.costs.timed() as about:
                    # In Tune's order.
                    if not result["done"]:
                        decision = scheduler.on_trial_result(controller, trial, result)  # type: ignore[arg-type]
                        result["done"] = decision == tune.schedulers.TrialScheduler.STOP
                    if result["done"]:
                        scheduler.on_trial_complete(controller, trial, result)  # type: ignore[arg-type]
                        searcher.on_trial_complete(trial.trial_id, result)
                    keeper.on_trial_result(0, [], trial, result)
                    about["kind"] = "end" if result["done"] else "epoch"
                if not result["done"]:
                    heapq.heappush(due, (at + trial.epoch_s, number, trial))

    def _launch(self, searcher: OptunaSearcher, stage: Literal[1, 2]) -> _FedTrial | None:
        name = f"trial-{len(self.costs.seconds['launch'])}"
        with self.costs.timed() as about:
            config = searcher.suggest(name)
            if not isinstance(config, dict):
                return None
            about["kind"] = "launch"
        return _FedTrial(name, config, self.epochs(stage), self.epoch_s)


class _FedTrial:
    """A trial as Tune shows it to callbacks and schedulers, with a known curve."""

    def __init__(self, name: str, config: dict[str, Any], epochs: int, epoch_s: float) -> None:
        self.trial_id, self.config, self.number = name, config, config["number"]
        draw = random.Random(self.number)
        self.epoch_s = epoch_s * draw.uniform(2 / 3, 4 / 3)
        top = draw.uniform(0.55, 0.8)
        self._curve = [
            {
                "epoch": epoch,
                "valid/pairwise_acc": top - 0.3 / epoch + draw.gauss(0.0, 0.01),
                "seconds": self.epoch_s,
                "utterance_passes": 1.0,
                **{f"figure_{index}": draw.random() for index in range(FIGURES)},
            }
            for epoch in range(1, epochs + 1)
        ]
        self._epoch = 0
        self._checkpoint = {"checkpoint": "best-00001.safetensors", "checkpoint_sha256": "ab" * 32}

    def step(self) -> dict[str, Any]:
        """Return the result of the next epoch in the format of `JobRunner.step`, as it comes from another process."""
        self._epoch += 1
        curve = pickle.loads(pickle.dumps(self._curve[: self._epoch]))
        objective, done = curve[-1]["valid/pairwise_acc"], self._epoch == len(self._curve)
        result = {"epoch": self._epoch, "curve": curve, "objective": objective, "notes": [], "done": done}
        return result | self._checkpoint


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
    low, high = info.label_range
    features: Any = SimpleNamespace(half_range=(high - low) / 2, task=info.task)
    cpu = time.process_time()
    with (
        (setup.folder / "progress").open("w") as terminal,
        contextlib.redirect_stderr(terminal),
        PageListener(record) as page,
        TensorBoardListener(record) as tensorboard,
    ):
        search = _FedSearch(
            record=record,
            space=space,
            features=features,
            protocol=setup.protocol,
            concurrent=count,
            listeners=(ProgressLines(), tensorboard, page),
            costs=costs,
            epoch_s=epoch_s,
        )
        search.tell(SearchStarted(count, {1: (trials, EPOCHS)}, info.task))
        search.run()
        cpu = time.process_time() - cpu
    (epoch, epoch_cpu), (launch, _), (end, _) = (costs.milliseconds(kind) for kind in ("epoch", "launch", "end"))
    return {
        "name": str(count),
        "epochs": len(costs.seconds["epoch"]),
        "epoch": epoch,
        "epoch_cpu": epoch_cpu,
        "launch": launch,
        "end": end,
        "process": 1e3 * cpu / sum(map(len, costs.seconds.values())),
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
