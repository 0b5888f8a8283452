"""Proposals: Optuna's TPE behind Tune's searcher interface, built from the run record at every start.

A trial's number is its Optuna number. Each proposal has a sampler of its own, seeded from (run, stage, number), so
that it depends on the record alone, not on what this process did before.
"""

from __future__ import annotations

import math
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

from grcf_ray.config import config_faults
from grcf_ray.errors import ConfigError, DataError, reason
from grcf_ray.search.record import TrialRecord
from grcf_ray.search.space import Choice, Dimension, Range
from grcf_ray.train.curve import DIRECTIONS, objective_value

FEASIBLE_TRIES = 1000


def startup_trials(budget: int) -> int:
    """Random trials before TPE's model takes over."""
    return min(10, max(4, budget // 4))


def distributions(dimensions: Mapping[str, Dimension]) -> dict[str, BaseDistribution]:
    """The space as Optuna has it; a range of a whole-number setting yields whole numbers."""

    def one(path: str, dimension: Dimension) -> BaseDistribution:
        if isinstance(dimension, Choice):
            return CategoricalDistribution(dimension.choices)
        assert isinstance(dimension, Range)
        # A whole-number setting is one that admits no half.
        if config_faults({path: math.floor(dimension.low) + 0.5}):
            return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)

    return {path: one(path, dimension) for path, dimension in dimensions.items()}


def outcome(
    stage: int, epochs: int, curve: Sequence[Mapping[str, Any]], state: str | None
) -> tuple[OptunaState, dict[int, float], float | None]:
    """What a trial is to Optuna: its state, its values by epoch, its last value.

    epochs: of a whole trial. state: diverged, failed, or anything else of a trial that ended well or was stopped.
    """
    if state == "failed":
        return OptunaState.FAIL, {}, None
    scored = [] if state == "diverged" else [(m["epoch"], objective_value(stage, m)) for m in curve]
    values = {epoch: value for epoch, value in scored if value is not None}
    last = values[max(values)] if values else None
    return OptunaState.COMPLETE if max(values, default=0) >= epochs else OptunaState.PRUNED, values, last


class FeasibleTPE(optuna.samplers.TPESampler):
    """Multivariate TPE over a known space, drawing again where a proposal contradicts itself.

    The whole space is sampled jointly from the first trial on, so that random trials can be judged as a whole too.
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
        """The whole space."""
        return {name: distribution for name, distribution in self._space.items() if not distribution.single()}

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A proposal for the whole space; ConfigError where none can be found."""
        for _ in range(FEASIBLE_TRIES):
            params = super().sample_relative(study, trial, search_space) or {
                name: self.sample_independent(study, trial, name, distribution)
                for name, distribution in search_space.items()
            }
            if self._feasible(params):
                return params
        raise ConfigError(
            f"the search space admits next to no setting: {FEASIBLE_TRIES} draws in a row broke a margin rule "
            "(base margin at least the intra margin; the widest margin within the scores' reach)"
        )


class OptunaSearcher(Searcher):
    """Proposes trials of one stage and tells Optuna truthfully how they ended.

    space: what is searched. starts: the parameters of the first trials. budget: how many trials there are in all.
    trials: the record so far: finished trials are told, unfinished ones are proposed again, first and under their
    numbers; a number below theirs that the record lacks is spent, and no trial gets it again. launch: called with
    number and parameters of each proposal; returns the configuration that the trial gets.
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
    ) -> None:
        super().__init__(metric="objective", mode=DIRECTIONS[stage])
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._launch, self._epochs, self._stage, self._run_seed = launch, epochs, stage, seed
        self._budget, self._space = budget, dict(space)
        self._sampler_settings = (dict(space), feasible, n_startup_trials)
        self._running: dict[str, optuna.Trial] = {}
        self._broken: dict[int, optuna.Trial] = {}
        self._again: list[optuna.Trial] = []
        direction: Literal["minimize", "maximize"] = "minimize" if DIRECTIONS[stage] == "min" else "maximize"
        self.study = optuna.create_study(direction=direction, sampler=self._sampler_for(0))
        """What has been proposed and told."""
        recorded = {trial.number: trial for trial in trials}
        for number in range(max(recorded, default=-1) + 1):
            trial = recorded.get(number)
            if trial is None:
                self.study.add_trial(create_trial(state=OptunaState.FAIL))
            elif trial.finished:
                self.study.add_trial(self._told(trial))
            else:
                self.study.enqueue_trial(self._frozen(trial, state=OptunaState.WAITING).params)
        for start in starts[len(self.study.get_trials(deepcopy=False)) : budget]:
            self.study.enqueue_trial(dict(start))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The configuration of the next trial; None while there may be one again, FINISHED when there will not."""
        trial = self._again.pop(0) if self._again else self._next()
        if trial is None:
            return None if self._running or self._broken else str(Searcher.FINISHED)
        self._running[trial_id] = trial
        return self._launch(trial.number, dict(trial.params))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended: COMPLETE, PRUNED at its epoch, PRUNED without a value, or FAIL.

        It is told at the end, curve and all: a diverged trial must leave no value behind. One whose process died is
        told nothing yet: it may be launched again (`settle`).
        """
        trial = self._running.pop(trial_id, None)
        if trial is None:
            return
        if error or not result:
            self._broken[trial.number] = trial
            return
        state, curve, value = self.outcome(result["curve"], result.get("state"))
        for epoch, figure in curve.items():
            trial.report(figure, epoch)
        # PRUNED takes the last reported value itself.
        self.study.tell(trial, value if state == OptunaState.COMPLETE else None, state=state)

    def settle(self, number: int, again: bool) -> None:
        """What becomes of a trial whose process died: it is proposed again as it was, or has failed."""
        trial = self._broken.pop(number)
        if again:
            self._again.append(trial)
        else:
            self.study.tell(trial, state=OptunaState.FAIL)

    def outcome(
        self, curve: Sequence[Mapping[str, Any]], state: str | None
    ) -> tuple[OptunaState, dict[int, float], float | None]:
        """How Optuna is told of a trial, as `outcome` has it."""
        return outcome(self._stage, self._epochs, curve, state)

    def _told(self, trial: TrialRecord) -> optuna.trial.FrozenTrial:
        state, curve, value = self.outcome(trial.curve, trial.state)
        return self._frozen(trial, state=state, value=value, intermediate_values=curve)

    def _frozen(self, trial: TrialRecord, **how: Any) -> optuna.trial.FrozenTrial:
        """A recorded trial as Optuna has it. DataError where its parameters are not of the space."""
        try:
            return create_trial(params=trial.params, distributions=self._space, **how)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"stage{trial.stage}/trials/{trial.number:04d}.json: params do not fit the run's search space "
                f"({reason(error)}); bring the file back from a copy"
            ) from error

    def _next(self) -> optuna.Trial | None:
        """The next of those that wait, else a new one while the budget lasts."""
        asked = self.study.get_trials(deepcopy=False)
        waiting = next((trial.number for trial in asked if trial.state == OptunaState.WAITING), None)
        if waiting is None and len(asked) >= self._budget:
            return None
        number = len(asked) if waiting is None else waiting
        self.study.sampler = self._sampler_for(number)
        trial = self.study.ask(self._space)
        assert trial.number == number
        return trial

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore that is not used, and the features hang on this one."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the run record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the run record is the state."""

    def _sampler_for(self, number: int) -> FeasibleTPE:
        space, feasible, n_startup_trials = self._sampler_settings
        seed = int(np.random.SeedSequence([self._run_seed, self._stage, number]).generate_state(1)[0])
        return FeasibleTPE(space, feasible, n_startup_trials=n_startup_trials, seed=seed)
