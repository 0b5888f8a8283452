"""Export a run's stages as Optuna studies, for optuna-dashboard and Optuna itself."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from grcf_ray.errors import ConfigError, reason
from grcf_ray.report.view import RunView
from grcf_ray.search.record import TrialRecord
from grcf_ray.search.searcher import distributions, outcome
from grcf_ray.train.curve import DIRECTIONS

_DIRECTIONS: Mapping[str, Literal["minimize", "maximize"]] = {"min": "minimize", "max": "maximize"}


def export_studies(view: RunView, url: str, *, stages: tuple[Literal[1, 2], ...], overwrite: bool = False) -> list[str]:
    """Write a study for each stage that has trials; return the studies' names.

    A trial's value is the objective of its best epoch; its intermediate values are its curve. The study has
    the states that the search reported to Optuna: a stopped or diverged trial is PRUNED, a diverged one without a
    value. ConfigError if the storage cannot be opened, or has such a study and `overwrite` is false.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    wanted = {f"{view.record.place.name}-stage{stage}": stage for stage in stages if view.trials[stage]}
    if not wanted:
        raise ConfigError(f"{view.record} has no trials to export yet")
    try:
        storage = optuna.storages.get_storage(url)
        existing = set(optuna.get_all_study_names(storage))
    # The storage's library, such as SQLAlchemy or a missing driver, raises exceptions of its own.
    except Exception as error:
        raise ConfigError(f"the Optuna storage cannot be opened ({reason(error)})") from error
    if taken := [name for name in wanted if name in existing]:
        if not overwrite:
            raise ConfigError(
                f"the storage already has {' and '.join(taken)}; replace with --overwrite, or give another storage"
            )
        for name in taken:
            optuna.delete_study(study_name=name, storage=storage)
    written: list[str] = []
    try:
        for name, stage in wanted.items():
            written.append(name)
            _write(view, stage, name, storage)
    except BaseException:
        # An incomplete study would look like a shorter search.
        for name in written:
            with contextlib.suppress(KeyError):
                optuna.delete_study(study_name=name, storage=storage)
        raise
    return written


def _write(view: RunView, stage: Literal[1, 2], name: str, storage: optuna.storages.BaseStorage) -> None:
    study = optuna.create_study(study_name=name, storage=storage, direction=_DIRECTIONS[DIRECTIONS[stage]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([f"validation {view.objective(stage)}"])
    info = view.info
    for key, value in {
        "run": view.record.place.name,
        "stage": stage,
        "data": info.data.name,
        "data_fingerprint": info.data.fingerprint,
        "command": info.starts[-1].command,
    }.items():
        study.set_user_attr(key, value)
    if view.winner is not None and view.winner.stage == stage:
        study.set_user_attr("winner", view.winner.number)
    space, epochs = _distributions(view, stage), view.budgets[stage][1]
    for trial in view.trials[stage]:
        study.add_trial(_frozen(trial, space, epochs))


def _distributions(view: RunView, stage: Literal[1, 2]) -> dict[str, BaseDistribution]:
    """Return the distributions that the stage's trials were proposed from."""
    space = distributions(view.space.dimensions(stage))
    finalists = [trial.params["finalist"] for trial in view.trials[stage] if "finalist" in trial.params]
    if finalists:
        space["finalist"] = CategoricalDistribution(tuple(dict.fromkeys([*view.info.finalists, *finalists])))
    return space


def _frozen(trial: TrialRecord, space: Mapping[str, BaseDistribution], epochs: int) -> FrozenTrial:
    state, values, _ = outcome(trial.stage, epochs, trial.curve, trial.state)
    if not trial.finished:
        state = OptunaState.RUNNING
    facts = {
        "trial": trial.name,
        "state": trial.state,
        "seed": trial.seed,
        "epochs": trial.epoch,
        "best_epoch": None if trial.best is None else trial.best["epoch"],
        "attempts": trial.attempt,
        "seconds": trial.seconds,
        "utterance_passes": trial.utterance_passes,
        "cause": trial.cause,
        "error": trial.error,
    }
    frozen = create_trial(
        state=state,
        value=trial.objective if state in (OptunaState.COMPLETE, OptunaState.PRUNED) else None,
        params=trial.params,
        distributions={path: space[path] for path in trial.params},
        intermediate_values=values,
        user_attrs={key: value for key, value in facts.items() if value is not None},
    )
    frozen.datetime_start = _local(trial.started)
    frozen.datetime_complete = _local(trial.ended) if trial.finished else None
    return frozen


def _local(time: Any) -> datetime | None:
    """Return a time of the record as Optuna stores times: local, without a zone."""
    return datetime.fromisoformat(time).astimezone().replace(tzinfo=None) if time else None
