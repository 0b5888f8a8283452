"""Search: Stage 1 -> finalists -> Stage 2 -> winner. Each start continues from the run record."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import grcf_ray.cluster  # noqa: F401  before Ray

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from grcf_ray.config import RunConfig, check_margins
from grcf_ray.data.features import Features
from grcf_ray.errors import ClusterError, GrcfError, NoWinnerError
from grcf_ray.files import scratch_folder
from grcf_ray.metrics import MetricProtocol
from grcf_ray.search.callback import RecordCallback
from grcf_ray.search.events import (
    Event,
    Listener,
    WinnerFixed,
)
from grcf_ray.search.failures import NodeHealth, failures_by_cause
from grcf_ray.search.lanes import Lanes
from grcf_ray.search.record import RunRecord, TrialRecord, rank, spent
from grcf_ray.search.scheduler import build_scheduler
from grcf_ray.search.searcher import OptunaSearcher
from grcf_ray.search.space import Space, stage_epochs
from grcf_ray.search.stopping import STAGE_SHARES, Stop
from grcf_ray.search.trial import Shared, TrialTrainable
from grcf_ray.train.checkpoint import export_weights
from grcf_ray.train.interfaces import named_interfaces
from grcf_ray.train.location import selector
from grcf_ray.train.resuming import find_last
from grcf_ray.train.stage import stage_seed

_CLEARING_S = 10.0
"""Seconds to wait at the end of a run for the processes of pruned trials."""


class Retrainings(Protocol):
    """Trials whose parameters and seeds are fixed in advance."""

    def params(self, stage: Literal[1, 2], finalists: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
        """Return the parameters of a stage's trials, in order of trial number."""
        ...

    def seed_for(self, stage: Literal[1, 2], params: Mapping[str, Any], number: int) -> int:
        """Return the seed of a trial."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A search over both stages on a connected cluster.

    concurrent: trials at a time; a function is called before each proposal. resources: of each worker, under Ray's
    names, by default those of the settings. reopen: give a Stage 2 that has spent its budget the finalists of an
    extended Stage 1, and its first budget again. retrainings: trials to run instead of a search. health: the failures
    by node, of all stages and retrainings. A subclass may name others to propose, train, record and stop trials.
    """

    searcher: ClassVar[type[OptunaSearcher]] = OptunaSearcher
    trainable: ClassVar[type[tune.Trainable]] = TrialTrainable
    keeper: ClassVar[type[RecordCallback]] = RecordCallback
    scheduler: ClassVar[Callable[..., TrialScheduler]] = staticmethod(build_scheduler)

    record: RunRecord
    space: Space
    features: Features
    protocol: MetricProtocol
    concurrent: int | Callable[[], int]
    listeners: Sequence[Listener] = ()
    stop: Stop = dataclasses.field(default_factory=Stop)
    reopen: bool = False
    retrainings: Retrainings | None = None
    resources: Mapping[str, float] | None = None
    health: NodeHealth = dataclasses.field(default_factory=NodeHealth)

    @property
    def config(self) -> RunConfig:
        """The configuration of the starting point."""
        return self.space.config()

    @property
    def worker_resources(self) -> Mapping[str, float]:
        """The resources of each worker, under Ray's names."""
        return self.config.search.worker_resources if self.resources is None else self.resources

    def room(self) -> int:
        """Return how many trials to run at a time now."""
        return self.concurrent if isinstance(self.concurrent, int) else self.concurrent()

    @property
    def stages(self) -> list[Literal[1, 2]]:
        """The stages that have epochs."""
        return list(stage_epochs(self.config))

    def epochs(self, stage: Literal[1, 2]) -> int:
        """Return the epochs of a full trial."""
        return stage_epochs(self.config)[stage]

    def config_of(self, trial: TrialRecord) -> RunConfig:
        """Return the whole configuration of a trial."""
        return config_of(self.space, self.record, trial)

    @property
    def complete(self) -> bool:
        """Whether every stage has spent its budget."""
        search, info = self.config.search, self.record.info()
        budgets = {1: search.stage1_trials, 2: max(search.stage2_trials, info.stage2_trials)}
        if self.retrainings and self.stages == [1, 2]:
            # Stage 2 has a retraining for each finalist.
            budgets[2] = len(info.finalists) or 1
        return all(spent(self.record.trials(stage)) >= budgets[stage] for stage in self.stages)

    def run(self) -> TrialRecord:
        """Run the trials that the record lacks, and return the winner.

        Raises NoWinnerError if no trial has a usable result or too many failed in a row, ClusterError if trials cannot
        run for causes outside of them, KeyboardInterrupt if the search was asked to stop.
        """
        lanes = Lanes(self)
        while lanes.advance():
            self._fit(lanes)
            self._check(lanes)
            lanes.close()
        ranked = self.record.ranked(self.stages[-1])
        if not ranked:
            raise NoWinnerError(self.no_result(self.stages[-1]))
        self.tell(WinnerFixed(ranked[0]))
        return ranked[0]

    def time_is_up(self, stage: Literal[1, 2]) -> bool:
        """Return whether the share of a stage in the time budget has passed."""
        # The time budget covers the search alone; retrainings always run in full.
        return not self.retrainings and self.stop.time_is_up(STAGE_SHARES[stage])

    def seed(self, stage: Literal[1, 2], params: Mapping[str, Any], number: int) -> int:
        """Return the seed of a trial."""
        if self.retrainings:
            return self.retrainings.seed_for(stage, params, number)
        return stage_seed(self.config.seed, stage, number)

    def feasible(self, params: Mapping[str, Any]) -> bool:
        """Return whether a trial's margins fit each other."""
        return not check_margins(self.space.config(params), self.features.half_range, self.features.task)

    def _fit(self, lanes: Lanes) -> None:
        """Run the trials of the open lanes, and of those that open in the meantime."""
        search = self.config.search
        shared = Shared(ray.put(self.features), search.workers, self.worker_resources, named_interfaces())
        resources = functools.partial(_resources, search.workers, self.worker_resources)
        try:
            with scratch_folder("grcf-tune-") as scratch, self.stop.deferred(), self.record.background:
                tune.Tuner(
                    tune.with_resources(tune.with_parameters(self.trainable, shared=shared), resources),
                    tune_config=tune.TuneConfig(
                        search_alg=lanes.searcher,
                        scheduler=lanes.scheduler,
                        # The searcher ends the run: a trial whose process died takes a second sample.
                        num_samples=-1,
                        reuse_actors=True,
                    ),
                    run_config=tune.RunConfig(
                        name="search",
                        storage_path=str(scratch),
                        verbose=0,
                        callbacks=[lanes.callback],
                        stop=_StopWhen(lambda: lanes.stopped),
                        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    ),
                ).fit()
                for lane in lanes.all:
                    lane.keeper.clear(_CLEARING_S)
        except tune.TuneError as error:
            raise _origin(error) from error

    def _check(self, lanes: Lanes) -> None:
        """Raise the error that ended a run of lanes, if there is one."""
        if self.stop.requested:
            raise KeyboardInterrupt
        for lane in lanes.hopeless:
            raise NoWinnerError(self._hopeless(lane.stage, lane.keeper.failing))
        if lanes.stuck:
            raise ClusterError(self._stuck([lane.stage for lane in lanes.open]))

    def export_finalist(self, trial: TrialRecord) -> str:
        """Copy a trial's weights to `finalists/`, those of its best or its last epoch; return their SHA-256.

        Raises DamagedError if they are damaged.
        """
        place = self.record.finalist_folder(trial.number) / "model.safetensors"
        if self.config.stage2.start == "last":
            return export_weights(find_last(self.record.attempt_folders(trial)), place)
        assert trial.checkpoint is not None
        return export_weights(self.record.at(trial.checkpoint), place, sha256=trial.checkpoint_sha256)

    def tell(self, event: Event) -> None:
        """Send an event to the listeners."""
        for listener in self.listeners:
            listener(event)

    def no_result(self, stage: int) -> str:
        """Return why a stage has no usable result."""
        trials = self.record.trials(stage)
        cut = [trial for trial in trials if not trial.finished]
        if len(cut) == len(trials):
            return f"stage {stage}: no trial finished within the time budget. Record: {self.record}"
        return (
            f"stage {stage}: none of {len(trials)} trials has a usable result.{_reasons(trials)} "
            f"Record: {self.record}. To repeat a trial: python -m grcf_ray.train --from {self.record} "
            f"--trial stage{stage}/NUMBER"
        )

    def _hopeless(self, stage: int, failing: int) -> str:
        trials = self.record.trials(stage)
        sound = len(rank(trials))
        return (
            f"stage {stage}: {failing} trials failed in a row, so the search stops; {sound} trials succeeded and are "
            f"kept.{_reasons(trials)} Record: {self.record}"
        )

    def _stuck(self, stages: Sequence[int]) -> str:
        reasons = []
        for name in self.record.info().left:
            stage, number = name.removeprefix("stage").split("/")
            failure = self.record.trial(int(stage), int(number)).failures[-1]
            reasons.append(f"{name}: {failure['cause']}: {failure['error']}")
        return (
            f"stage {' and '.join(map(str, stages))}: trials fail for causes outside of them and none progresses, so "
            f"the search stops; every finished epoch is kept. {'; '.join(reasons)}. Record: {self.record}. Remove the "
            "cause, then run the same command again"
        )


class _StopWhen(tune.Stopper):
    """Stop the whole run on a condition; never stop a single trial."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition = condition

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no trial ends here."""
        return False

    def stop_all(self) -> bool:
        """Return whether the condition holds."""
        return self._condition()

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Tune pickles the stopper for a restore that is not used."""
        return {}


def _origin(error: tune.TuneError) -> BaseException:
    """Return the error that a callback raised, which Tune has replaced by its text, if it is a known kind of error."""
    inner = error.__context__
    return inner if isinstance(inner, (OSError, GrcfError)) else error


def config_of(space: Space, record: RunRecord, trial: TrialRecord) -> RunConfig:
    """Return the whole configuration of a trial; a Stage 2 trial inherits the parameters of its finalist."""
    if "finalist" not in trial.params:
        return space.config(trial.searched)
    inherited = record.read_finalist(int(trial.params["finalist"]))["params"]
    return space.config({**inherited, **trial.searched})


def _reasons(trials: Sequence[TrialRecord]) -> str:
    causes = failures_by_cause(trials)
    if not causes:
        return ""
    reasons = [f"{len(failed)} x {cause}: {failed[-1].error}" for cause, failed in causes.items()]
    return f" Errors: {'; '.join(reasons)}."


def _resources(workers: int, wanted: Mapping[str, float], trial: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """Return the resources that Tune reserves for a trial. A trial of several workers reserves theirs itself, and its
    process takes a little memory: Ray starts it on the node with most memory left, so that no node gets all of them.

    wanted: of each worker. trial: the configuration of the trial; `avoid` names the nodes that may not run it. Tune
    reuses a process only for trials with equal requests, so no process of those nodes gets the trial.
    """
    bundle = {"memory": 1e6} if workers > 1 else dict(wanted)
    return tune.PlacementGroupFactory([bundle], bundle_label_selector=[selector(trial.get("avoid", ()))])
