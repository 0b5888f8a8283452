"""Build ASHA over epochs, and replay the recorded curves into it at every start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import grcf_ray.cluster  # noqa: F401  before Ray

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from grcf_ray.config import SearchConfig
from grcf_ray.search.record import TrialRecord
from grcf_ray.train.curve import DIRECTIONS, objective_value


def build_scheduler(
    search: SearchConfig,
    *,
    stage: Literal[1, 2],
    epochs: int,
    trials: Sequence[TrialRecord],
    waiting: Callable[[], bool] = lambda: True,
) -> TrialScheduler:
    """Return ASHA over `epoch` with the recorded curves on its rungs; without early stopping a FIFO scheduler.

    waiting: returns whether another trial waits for the slot of one that is stopped.
    """
    if not search.pruning or epochs <= search.grace_epochs:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    scheduler = EpochHalving(
        waiting,
        time_attr="epoch",
        metric="objective",
        mode=DIRECTIONS[stage],
        max_t=epochs,
        grace_period=search.grace_epochs,
        reduction_factor=search.reduction_factor,
    )
    for trial in trials:
        # ASHA does not use the controller here; none exists yet.
        stub: Any = SimpleNamespace(config={"number": trial.number})
        controller: Any = None
        scored = [{"epoch": m["epoch"], "objective": objective_value(stage, m)} for m in trial.curve]
        results = [result for result in scored if result["objective"] is not None]
        scheduler.on_trial_add(controller, stub)
        for result in results:
            # ASHA's decision is ignored: the trial has already run.
            scheduler.on_trial_result(controller, stub, result)
        if results and trial.finished:
            scheduler.on_trial_complete(controller, stub, results[-1])
    return scheduler


class EpochHalving(ASHAScheduler):
    """ASHA that stops a trial only while another one waits for its slot, which would otherwise stay idle.

    It identifies trials by number, so that a resumed trial keeps its place on the rungs.
    """

    def __init__(self, waiting: Callable[[], bool], **settings: Any) -> None:
        super().__init__(**settings)
        self._waiting = waiting

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial under its number."""
        super().on_trial_add(tune_controller, _numbered(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide on a trial by its number."""
        decision = super().on_trial_result(tune_controller, _numbered(trial), result)
        if decision == self.STOP and result["epoch"] < self._max_t and not self._waiting():
            return self.CONTINUE
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Complete a trial under its number."""
        super().on_trial_complete(tune_controller, _numbered(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Remove a trial under its number."""
        super().on_trial_remove(tune_controller, _numbered(trial))


def _numbered(trial: Any) -> Any:
    """Return an object with the trial's number as its id, the only attribute that ASHA reads."""
    return SimpleNamespace(trial_id=str(trial.config["number"]))
