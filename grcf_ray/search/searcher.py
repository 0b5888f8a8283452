"""The searcher of a stage: Ray Tune's `OptunaSearch` with TPE, built from the run record at every start.

A trial's number is its Optuna number.
"""

from __future__ import annotations

import heapq
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import grcf_ray.cluster  # noqa: F401  before Ray

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from grcf_ray.config import config_faults
from grcf_ray.errors import ConfigError, DataError, reason
from grcf_ray.search.record import TrialRecord
from grcf_ray.search.space import Choice, Dimension, Range
from grcf_ray.train.curve import DIRECTIONS, objective_value

FEASIBLE_TRIES = 1000
CONSIDERED = 500
"""Ended trials that TPE's model is built of at most."""
_IMITATED = 25
"""Trials at most that TPE counts as good (Optuna's `gamma`)."""
Fate = Literal["again", "failed", "left"]
"""The decision about a trial whose process died."""


def startup_trials(budget: int) -> int:
    """Return the number of random trials before TPE's model."""
    return min(10, max(4, budget // 4))


def distributions(dimensions: Mapping[str, Dimension]) -> dict[str, BaseDistribution]:
    """Return the space for Optuna; a range of a whole-number setting yields whole numbers."""

    def distribution(path: str, dimension: Dimension) -> BaseDistribution:
        if isinstance(dimension, Choice):
            return CategoricalDistribution(dimension.choices)
        assert isinstance(dimension, Range)
        # A whole-number setting refuses a half.
        if config_faults({path: math.floor(dimension.low) + 0.5}):
            return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)

    return {path: distribution(path, dimension) for path, dimension in dimensions.items()}


def outcome(
    stage: int, epochs: int, curve: Sequence[Mapping[str, Any]], state: str | None
) -> tuple[OptunaState, dict[int, float], float | None]:
    """Return a trial's state for Optuna, its values by epoch and its last value.

    epochs: the number of a complete trial. state: `diverged`, `failed`, or any other for a trial that ended well or was
    stopped.
    """
    if state == "failed":
        return OptunaState.FAIL, {}, None
    scored = [] if state == "diverged" else [(m["epoch"], objective_value(stage, m)) for m in curve]
    values = {epoch: value for epoch, value in scored if value is not None}
    last = values[max(values)] if values else None
    return OptunaState.COMPLETE if max(values, default=0) >= epochs else OptunaState.PRUNED, values, last


class FeasibleTPE(optuna.samplers.TPESampler):
    """Multivariate TPE over a known space, which draws again if a proposal breaks a rule between settings.

    It samples the whole space jointly from the first trial on, so that random trials are checked too.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        feasible: Callable[[Mapping[str, Any]], bool],
        *,
        n_startup_trials: int,
        seed: int,
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(n_startup_trials=n_startup_trials, multivariate=True, constant_liar=True, seed=seed)
        self._space = dict(sorted(space.items()))
        self._feasible = feasible

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the whole space."""
        return {name: distribution for name, distribution in self._space.items() if not distribution.single()}

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a proposal for the whole space. ConfigError if none is found."""
        for _ in range(FEASIBLE_TRIES):
            params = super().sample_relative(study, trial, search_space) or {
                name: self.sample_independent(study, trial, name, distribution)
                for name, distribution in search_space.items()
            }
            if self._feasible(params):
                return params
        raise ConfigError(
            f"{FEASIBLE_TRIES} random settings in a row broke a margin rule (base margin at least the intra margin; "
            "the widest margin within the scores' reach). Widen the ranges of the margins in the search space"
        )

    def _sample(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        search_space: dict[str, BaseDistribution],
        *rest: Any,
    ) -> dict[str, Any]:
        # Optuna 4.6 has one more argument.
        considered: Any = _Considered(study)
        proposal: dict[str, Any] = super()._sample(considered, trial, search_space, *rest)
        return proposal


class _Considered:
    """A study without the trials that TPE's model leaves out: all but the good ones and the newest of the others.

    The model takes time in proportion to its trials, and Optuna gives old trials little weight anyway.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, **options: Any) -> list[optuna.trial.FrozenTrial]:
        trials: list[optuna.trial.FrozenTrial] = self._study._get_trials(**options)
        by_state: dict[OptunaState, list[optuna.trial.FrozenTrial]] = {state: [] for state in OptunaState}
        for trial in trials:
            by_state[trial.state].append(trial)
        running = by_state[OptunaState.RUNNING]
        if len(trials) - len(running) <= CONSIDERED:
            return trials
        kept = {trial.number: trial for trial in self._good(by_state) + running}
        for trial in reversed(trials):
            if len(kept) - len(running) == CONSIDERED:
                break
            kept[trial.number] = trial
        return [kept[number] for number in sorted(kept)]

    def _good(self, by_state: Mapping[OptunaState, list[optuna.trial.FrozenTrial]]) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that TPE counts as good, in its order: complete ones, then pruned ones by epoch."""
        sign = -1 if self._study.direction == optuna.study.StudyDirection.MAXIMIZE else 1

        def value(trial: optuna.trial.FrozenTrial) -> float:
            assert trial.value is not None
            return sign * trial.value

        def cost(trial: optuna.trial.FrozenTrial) -> tuple[float, float]:
            if not trial.intermediate_values:
                return 1, 0.0
            epoch, last = max(trial.intermediate_values.items())
            return -epoch, sign * last

        complete, pruned = by_state[OptunaState.COMPLETE], by_state[OptunaState.PRUNED]
        good = heapq.nsmallest(_IMITATED, complete, key=value)
        return good + heapq.nsmallest(_IMITATED - len(good), pruned, key=cost)


class OptunaSearcher(OptunaSearch):
    """Ray Tune's `OptunaSearch`, with proposals that depend on the record alone and outcomes told as they were.

    Three things differ from Ray's class. It starts from the recorded trials, under their numbers. It samples each
    proposal with a sampler of its own, seeded from (run, stage, number). It tells Optuna how a trial ended only at the
    end: COMPLETE, PRUNED at its epoch, PRUNED without a value, or FAIL. It uses `_ot_study`, `_ot_trials` and
    `_setup_study` of Ray's class.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        *,
        starts: Sequence[Mapping[str, Any]],
        budget: int,
        trials: Sequence[TrialRecord],
        stage: Literal[1, 2],
        epochs: int,
        seed: int,
        n_startup_trials: int,
        feasible: Callable[[Mapping[str, Any]], bool],
        launch: Callable[[int, dict[str, Any]], dict[str, Any]],
        room: Callable[[], int] = lambda: sys.maxsize,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Build the study from the record.

        starts: the parameters of the first trials. budget: the number of trials in all. trials: the record; unfinished
        trials are proposed again first, and a number that the record lacks is not given again. launch: called with the
        number and parameters of each proposal, returns the trial's configuration. room: returns how many trials can run
        now; a trial that waits to be launched again keeps its place.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._launch, self._epochs, self._stage, self._run_seed = launch, epochs, stage, seed
        self._sampler_settings = (dict(space), feasible, n_startup_trials)
        self._broken: dict[int, optuna.Trial] = {}
        self._waiting: list[tuple[float, optuna.Trial]] = []
        """Trials to launch again, each with the time from which on."""
        self._room, self._clock = room, clock
        super().__init__(dict(space), metric="objective", mode=DIRECTIONS[stage], sampler=self._sampler_for(0))
        if self._ot_study is None:
            # Ray takes an empty space for one that is not known yet.
            self._setup_study(DIRECTIONS[stage])
        recorded = {trial.number: trial for trial in trials}
        for number in range(max(recorded, default=-1) + 1):
            trial = recorded.get(number)
            if trial is None:
                self.study.add_trial(create_trial(state=OptunaState.FAIL))
            elif trial.finished:
                state, curve, value = self.outcome(trial.curve, trial.state)
                self.study.add_trial(self._frozen(trial, state=state, value=value, intermediate_values=curve))
            else:
                self.study.enqueue_trial(self._frozen(trial, state=OptunaState.WAITING).params)
        known = self.study.get_trials(deepcopy=False)
        self.proposed, self._total = sum(trial.state.is_finished() for trial in known), max(budget, len(known))
        """Trials proposed so far, those of earlier starts included, and all of the budget."""
        for start in starts[len(known) : budget]:
            self.study.enqueue_trial(dict(start))

    @property
    def study(self) -> optuna.Study:
        """The Optuna study: all proposals, and what it was told of them."""
        study: optuna.Study = self._ot_study  # type: ignore[assignment]
        return study

    @property
    def waiting(self) -> bool:
        """Whether a trial waits for a slot, or will: one that broke, or one that is still to be proposed."""
        return bool(self._waiting or self._broken) or not self.all_proposed

    @property
    def all_proposed(self) -> bool:
        """Whether no trial of the budget is left to propose; some may still run."""
        return self.proposed >= self._total

    @property
    def pending(self) -> int:
        """Number of trials that hold a slot: those that run, and those that broke until their fate is settled."""
        return len(self._ot_trials) + len(self._waiting) + len(self._broken)

    @property
    def done(self) -> bool:
        """Whether all trials have ended."""
        return self.all_proposed and not self.pending

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the next trial's configuration; None if there may be one later, FINISHED if the budget is spent."""
        running, room = len(self._ot_trials), self._room()
        if running >= room:
            return None
        due = next((entry for entry in self._waiting if entry[0] <= self._clock()), None)
        if due is not None:
            self._waiting.remove(due)
            self._ot_trials[trial_id] = due[1]
        else:
            if self.pending >= room:
                return None
            if self.all_proposed:
                return None if self.pending else str(Searcher.FINISHED)
            number = self._next_number()
            self.study.sampler = self._sampler_for(number)
            self._ot_trials[trial_id] = self.study.ask(self._sampler_settings[0])
            assert self._ot_trials[trial_id].number == number
            self.proposed += 1
        trial = self._ot_trials[trial_id]
        return self._launch(trial.number, dict(trial.params))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended, with its curve.

        A trial whose process died stays open: it may be launched again (`settle`).
        """
        trial = self._ot_trials.pop(trial_id, None)
        if trial is None:
            return
        if error or not result:
            self._broken[trial.number] = trial
            return
        state, curve, value = self.outcome(result["curve"], result.get("state"))
        for epoch, figure in curve.items():
            trial.report(figure, epoch)
        # Optuna gives a PRUNED trial its last reported value.
        self.study.tell(trial, value if state == OptunaState.COMPLETE else None, state=state)

    def settle(self, number: int, fate: Fate, seconds: float = 0.0) -> None:
        """Decide about a trial whose process died.

        fate: propose it again, unchanged, after some seconds; tell Optuna that it failed; or leave it unfinished, so
        that the next start proposes it again.
        """
        trial = self._broken.pop(number)
        if fate == "again":
            self._waiting.append((self._clock() + seconds, trial))
        elif fate == "failed":
            self.study.tell(trial, state=OptunaState.FAIL)

    def outcome(
        self, curve: Sequence[Mapping[str, Any]], state: str | None
    ) -> tuple[OptunaState, dict[int, float], float | None]:
        """Return a trial's state, values by epoch and last value, as the function `outcome` does."""
        return outcome(self._stage, self._epochs, curve, state)

    def _frozen(self, trial: TrialRecord, **how: Any) -> optuna.trial.FrozenTrial:
        """Return a recorded trial for Optuna. DataError if its parameters do not fit the space."""
        try:
            return create_trial(params=trial.searched, distributions=self._sampler_settings[0], **how)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"stage{trial.stage}/trials/{trial.number:04d}.json: params do not fit the run's search space "
                f"({reason(error)}); bring the file back from a copy"
            ) from error

    def _next_number(self) -> int:
        """Return the number of the first waiting trial, else the next one."""
        asked = self.study.get_trials(deepcopy=False)
        return next((trial.number for trial in asked if trial.state == OptunaState.WAITING), len(asked))

    def _sampler_for(self, number: int) -> FeasibleTPE:
        space, feasible, n_startup_trials = self._sampler_settings
        seed = int(np.random.SeedSequence([self._run_seed, self._stage, number]).generate_state(1)[0])
        return FeasibleTPE(space, feasible, n_startup_trials=n_startup_trials, seed=seed)
