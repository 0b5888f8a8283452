"""ASHA on the trials' own epochs, told at every start what the record knows."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import grcf_ray.cluster  # noqa: F401  before Ray

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from grcf_ray.config import SearchConfig
from grcf_ray.search.record import TrialRecord
from grcf_ray.train.curve import DIRECTIONS, objective_value


def build_scheduler(
    search: SearchConfig, *, stage: Literal[1, 2], epochs: int, trials: Sequence[TrialRecord]
) -> TrialScheduler:
    """ASHA over `epoch` with the recorded curves on its rungs; no early stopping where there is none to do."""
    if not search.pruning or epochs <= search.grace_epochs:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    scheduler = EpochHalving(
        time_attr="epoch",
        metric="objective",
        mode=DIRECTIONS[stage],
        max_t=epochs,
        grace_period=search.grace_epochs,
        reduction_factor=search.reduction_factor,
    )
    for trial in trials:
        # The controller, which there is none of yet, is asked for nothing.
        stub: Any = SimpleNamespace(config={"number": trial.number})
        controller: Any = None
        scored = [{"epoch": m["epoch"], "objective": objective_value(stage, m)} for m in trial.curve]
        results = [result for result in scored if result["objective"] is not None]
        scheduler.on_trial_add(controller, stub)
        for result in results:
            # What it would decide now is of no matter: the trial has run.
            scheduler.on_trial_result(controller, stub, result)
        if results and trial.finished:
            scheduler.on_trial_complete(controller, stub, results[-1])
    return scheduler


class EpochHalving(ASHAScheduler):
    """ASHA that knows trials by their numbers, so that one that goes on keeps its places on the rungs."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """As in ASHA."""
        super().on_trial_add(tune_controller, _numbered(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """As in ASHA."""
        return super().on_trial_result(tune_controller, _numbered(trial), result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """As in ASHA."""
        super().on_trial_complete(tune_controller, _numbered(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """As in ASHA."""
        super().on_trial_remove(tune_controller, _numbered(trial))


def _numbered(trial: Any) -> Any:
    """All that ASHA asks of a trial: its id."""
    return SimpleNamespace(trial_id=str(trial.config["number"]))
