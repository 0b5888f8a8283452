"""Proposals: Optuna's TPE behind Tune's searcher interface, built from the run record at every start.

A trial's number is its Optuna number. Each proposal has a sampler of its own, seeded from (run, stage, number), so
that it depends on the record alone, not on what this process did before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial
from ray.tune.search import Searcher

from grcf_ray.config import config_faults
from grcf_ray.errors import ConfigError
from grcf_ray.search.record import TrialRecord
from grcf_ray.search.space import Choice, Dimension, Range
from grcf_ray.train.stage import OBJECTIVES

__all__ = ["Proposals", "distributions", "startup_trials"]

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


class Proposals(Searcher):
    """Proposes trials of one stage and tells Optuna truthfully how they ended.

    space: what is searched. start: the parameters of the first trial. trials: the record so far: finished trials are
    told, unfinished ones are proposed again, first and under their numbers. launch: called with number and
    parameters of each proposal; returns the configuration that the trial gets.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        *,
        start: Mapping[str, Any],
        trials: Sequence[TrialRecord],
        stage: Literal[1, 2],
        epochs: int,
        seed: int,
        n_startup_trials: int,
        feasible: Callable[[Mapping[str, Any]], bool],
        launch: Callable[[int, dict[str, Any]], dict[str, Any]],
    ) -> None:
        super().__init__(metric="objective", mode=OBJECTIVES[stage][1])
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._launch, self._epochs, self._stage, self._run_seed = launch, epochs, stage, seed
        self._sampler_settings = (dict(space), feasible, n_startup_trials)
        self._running: dict[str, optuna.Trial] = {}
        self._curves: dict[str, dict[int, float]] = {}
        direction: Literal["minimize", "maximize"] = "minimize" if OBJECTIVES[stage][1] == "min" else "maximize"
        self.study = optuna.create_study(direction=direction, sampler=self._sampler_for(0))
        """What has been proposed and told."""
        for trial in trials:
            if trial.finished:
                self.study.add_trial(_told(trial, space, epochs))
            else:
                self.study.enqueue_trial(trial.params)
        if not trials:
            self.study.enqueue_trial(dict(start))

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The configuration of the next trial."""
        waiting = self.study.get_trials(deepcopy=False, states=(OptunaState.WAITING,))
        number = waiting[0].number if waiting else len(self.study.get_trials(deepcopy=False))
        self.study.sampler = self._sampler_for(number)
        trial = self.study.ask(self._sampler_settings[0])
        assert trial.number == number
        self._running[trial_id], self._curves[trial_id] = trial, {}
        return self._launch(number, dict(trial.params))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Remember an epoch. It is told at the end: a diverged trial must leave no value behind."""
        if result.get("objective") is not None:
            self._curves[trial_id][result["epoch"]] = result["objective"]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended: COMPLETE, PRUNED at its epoch, PRUNED without a value, or FAIL."""
        trial = self._running.pop(trial_id, None)
        if trial is None:
            return
        if error or not result or result.get("state") == "failed":
            self.study.tell(trial, state=OptunaState.FAIL)
            return
        # The result that stops a trial reaches the searcher here only.
        self.on_trial_result(trial_id, result)
        curve = {} if result.get("failure") else self._curves[trial_id]
        for epoch, value in curve.items():
            trial.report(value, epoch)
        if curve and max(curve) >= self._epochs:
            self.study.tell(trial, curve[max(curve)])
        else:
            self.study.tell(trial, state=OptunaState.PRUNED)

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


def _told(trial: TrialRecord, space: Mapping[str, BaseDistribution], epochs: int) -> optuna.trial.FrozenTrial:
    name = f"valid/{OBJECTIVES[trial.stage][0]}"
    curve = {m["epoch"]: m[name] for m in trial.curve if m.get(name) is not None}
    state, value = OptunaState.PRUNED, None
    if trial.state == "failed":
        state, curve = OptunaState.FAIL, {}
    elif trial.state == "diverged":
        curve = {}
    elif curve and max(curve) >= epochs:
        state = OptunaState.COMPLETE
    if curve:
        value = curve[max(curve)]
    return create_trial(
        state=state, value=value, params=trial.params, distributions=dict(space), intermediate_values=curve
    )
