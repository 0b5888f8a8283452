"""Run searches without training: each trial's results come from elsewhere, at their times on a clock.

Searcher, early stopping, hand-off and record are those of a search. A simulation draws the results from recorded
trials, under a virtual clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import grcf_ray.cluster  # noqa: F401  before Ray

import numpy as np
from ray import tune

from grcf_ray.config import Task, flatten
from grcf_ray.metrics import MetricProtocol
from grcf_ray.search.callback import RecordCallback
from grcf_ray.search.events import EpochFinished, Event, TrialEnded
from grcf_ray.search.lanes import Lanes
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.space import Space, stage_epochs
from grcf_ray.search.stages import Search
from grcf_ray.search.trial_table import KnownTrial
from grcf_ray.storage import storage_path
from grcf_ray.train.curve import minimised, objective_name

_SHA256 = "0" * 64
"""Of weights that nobody reads."""


class Clock:
    """A virtual clock, in seconds since it was made: waiting takes no time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        """Return the time."""
        return self.seconds

    def wait(self, until: float) -> None:
        """Wait until a time."""
        self.seconds = max(self.seconds, until)

    @contextlib.contextmanager
    def event(self) -> Iterator[dict[str, str]]:
        """Enter an event of the driver; the caller notes its `kind`: launch, epoch or end."""
        yield {}


class FedTrial:
    """A trial as Tune shows it to callbacks and schedulers, with a known curve.

    curve: the metrics of each epoch. objective: the name of the one to compare.
    """

    def __init__(self, name: str, config: dict[str, Any], curve: Sequence[dict[str, Any]], objective: str) -> None:
        self.trial_id, self.config = name, config
        self.key: tuple[int, int] = config["stage"], config["number"]
        self._curve, self._objective, self._epoch = list(curve), objective, 0

    @property
    def seconds(self) -> float:
        """Seconds of the next epoch."""
        seconds: float = self._curve[self._epoch]["seconds"]
        return seconds

    def step(self) -> dict[str, Any]:
        """Return the result of the next epoch in the format of `JobRunner.step`."""
        self._epoch += 1
        curve = self._curve[: self._epoch]
        return {
            "epoch": self._epoch,
            "curve": curve,
            "objective": curve[-1][self._objective],
            "notes": [],
            "done": self._epoch == len(self._curve),
            "checkpoint": "best-00001.safetensors",
            "checkpoint_sha256": _SHA256,
        }


class _FedCallback(RecordCallback):
    """A callback that asks no process for the weights of a pruned trial."""

    def _finish(self, trial: TrialRecord, tuned: Any) -> None:
        self._ranking.put(trial)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FedSearch(Search):
    """A search whose results come from this process instead of trials' processes.

    feed: called with a name and the configuration of a proposal for Tune, returns its trial.
    """

    keeper = _FedCallback

    feed: Callable[[str, dict[str, Any]], FedTrial]
    clock: Clock

    def _fit(self, lanes: Lanes) -> None:
        due: list[tuple[float, int, int, FedTrial]] = []
        names = map("trial-{}".format, itertools.count())
        controller: Any = None
        with self.record.background:
            while True:
                while trial := self._launch(lanes, next(names)):
                    lanes.scheduler.on_trial_add(controller, trial)
                    heapq.heappush(due, (self.clock.now() + trial.seconds, *trial.key, trial))
                if not due or lanes.stopped:
                    return
                at, *_, trial = heapq.heappop(due)
                self.clock.wait(at)
                if self._step(trial, lanes):
                    heapq.heappush(due, (at + trial.seconds, *trial.key, trial))

    def export_finalist(self, trial: TrialRecord) -> str:
        """Return a hash: a finalist has no weights."""
        return _SHA256

    def _launch(self, lanes: Lanes, name: str) -> FedTrial | None:
        with self.clock.event() as about:
            config = lanes.searcher.suggest(name)
            if not isinstance(config, dict):
                return None
            about["kind"] = "launch"
        return self.feed(name, config)

    def _step(self, trial: FedTrial, lanes: Lanes) -> bool:
        """Report the next epoch of a trial; return whether the trial goes on."""
        result = trial.step()
        controller: Any = None
        with self.clock.event() as about:
            # In Tune's order.
            if not result["done"]:
                decision = lanes.scheduler.on_trial_result(controller, trial, result)
                result["done"] = decision == tune.schedulers.TrialScheduler.STOP
            if result["done"]:
                lanes.scheduler.on_trial_complete(controller, trial, result)
                lanes.searcher.on_trial_complete(trial.trial_id, result)
            lanes.callback.on_trial_result(0, [], trial, result)
            about["kind"] = "end" if result["done"] else "epoch"
        return not result["done"]


class TrialSource(Protocol):
    """Where the results of trials come from, with the facts of their data: a `TrialTable`, or one for another space."""

    @property
    def task(self) -> Task:
        """The task."""
        ...

    @property
    def protocol(self) -> MetricProtocol:
        """The metric protocol."""
        ...

    @property
    def half_range(self) -> float:
        """Half the label range."""
        ...

    def draw(
        self, stage: Literal[1, 2], params: Mapping[str, Any], rng: np.random.Generator, finalist: float | None = None
    ) -> KnownTrial:
        """Return a trial with these parameters. finalist: the Stage 1 objective that a trial of Stage 2 starts from."""
        ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of a simulated search."""

    seconds: float
    """Time from its start to its end."""
    trials: Sequence[TrialRecord]
    """Of all stages."""
    results: Mapping[tuple[int, int], KnownTrial]
    """What each trial would have come to without early stopping, by stage and number, those on test included."""
    winner: TrialRecord
    progress: Sequence[tuple[float, float]]
    """The best figure of the last stage so far and its time, whenever it improved."""

    @property
    def busy(self) -> float:
        """Seconds of all trials together."""
        return sum(trial.seconds for trial in self.trials)

    @property
    def passes(self) -> float:
        """Encoded utterances of all trials over training utterances."""
        return sum(trial.utterance_passes for trial in self.trials)

    @property
    def known(self) -> KnownTrial:
        """The winner's results."""
        return self.results[self.winner.stage, self.winner.number]


def simulate(source: TrialSource, space: Space, *, slots: int, seed: int, kind: type[FedSearch] = FedSearch) -> Outcome:
    """Run a search on a number of slots; each runs a trial at a time.

    space: the source's, with other settings of the search. seed: of proposals and results. kind: the class of the
    search; a subclass may have another searcher.
    """
    space = space.with_settings({"seed": seed})
    last = max(stage_epochs(space.config()))
    results: dict[tuple[int, int], KnownTrial] = {}
    progress: list[tuple[float, float]] = []
    clock = Clock()

    def feed(name: str, config: dict[str, Any]) -> FedTrial:
        stage = config["stage"]
        trial = record.trial(stage, config["number"])
        finalist = trial.params.get("finalist")
        first = None if finalist is None else record.read_finalist(int(finalist))["objective"]
        rng = np.random.default_rng([seed, stage, trial.number])
        drawn = results[stage, trial.number] = source.draw(stage, trial.params, rng, first)
        metric = f"valid/{objective_name(stage, source.task)}"
        return FedTrial(name, config, _curve(metric, drawn), metric)

    def note(event: Event) -> None:
        if isinstance(event, (EpochFinished, TrialEnded)) and event.trial.stage == last:
            value = event.trial.objective
            if value is not None and (not progress or minimised(last, value) < minimised(last, progress[-1][1])):
                progress.append((clock.seconds, value))

    # Simulations write as searches do, so they need a quick disk.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        record = RunRecord(storage_path(folder) / "run")
        record.write_run({"state": "running", "settings": flatten(space.config())})
        # Without trials' processes, only the reach of the scores is read.
        features: Any = SimpleNamespace(half_range=source.half_range, task=source.task)
        search = kind(
            record=record,
            space=space,
            features=features,
            protocol=source.protocol,
            concurrent=slots,
            listeners=[note],
            feed=feed,
            clock=clock,
        )
        winner = search.run()
        trials = [trial for stage in search.stages for trial in record.trials(stage)]
    return Outcome(clock.seconds, trials, results, winner, progress)


def _curve(metric: str, drawn: KnownTrial) -> list[dict[str, Any]]:
    """Return a trial's results as the metrics of its epochs."""
    figures = zip(drawn.values_E.tolist(), drawn.seconds_E.tolist(), drawn.passes_E.tolist(), strict=True)
    return [
        {"epoch": epoch, metric: value, "seconds": seconds, "utterance_passes": passes}
        for epoch, (value, seconds, passes) in enumerate(figures, start=1)
    ]
