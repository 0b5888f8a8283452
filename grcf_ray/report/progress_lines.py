"""Progress on standard error: a line for each event of a search, with the estimated time left."""

from __future__ import annotations

import time
from collections.abc import Mapping

from grcf_ray.config import Task
from grcf_ray.console import duration, progress
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.run_status import seconds_after, seconds_left
from grcf_ray.report.terminal import one_line
from grcf_ray.search.events import (
    EpochFinished,
    Event,
    FinalistsHeld,
    FinalistSkipped,
    ModelMeasured,
    NodeExcluded,
    RetrainingsStarted,
    SearchStarted,
    StageEnded,
    StageStarted,
    StepStarted,
    TrialBroke,
    TrialEnded,
    TrialLeft,
    TrialsMissing,
    TrialStarted,
    WinnerFixed,
)
from grcf_ray.search.record import Ranking, TrialRecord, pace
from grcf_ray.train.curve import DIRECTIONS, objective_name, objective_value

_ERROR_WIDTH = 120
"""Columns of a line that ends in an error."""
_EPOCHS_S = 1.0
"""Seconds between two lines of finished epochs."""


class ProgressLines:
    """Print a line for each event of a trial and each step of a search, with the estimated time left.

    Of the epochs that several trials finish within a second, the first has a line.
    """

    def __init__(self) -> None:
        self._concurrent = 1
        self._budgets: dict[int, tuple[int, int]] = {}
        self._trials: dict[int, dict[int, TrialRecord]] = {}
        self._rankings: dict[int, Ranking] = {}
        self._last_epoch = -_EPOCHS_S
        self._measuring_start = self._start = time.monotonic()
        self._running: dict[int, float] = {}
        """Start of each running stage."""
        self._retraining = False
        self._models, self._seeds = 1, 0
        """Models left to measure and seeds left to retrain under after the stages."""
        self._seconds: Mapping[int, float] = {}
        self._pace: float | None = None
        self._task: Task = "regression"

    def __call__(self, event: Event) -> None:
        """Print the event."""
        if isinstance(event, SearchStarted):
            self._retraining, self._start = False, time.monotonic()
            self._models, self._seeds, self._seconds, self._pace = 1, event.seeds, event.seconds, None
            self._concurrent, self._budgets, self._task = event.concurrent, dict(event.budgets), event.task
            self._trials = {stage: {} for stage in event.budgets}
            self._rankings = {stage: Ranking() for stage in event.budgets}
        elif isinstance(event, RetrainingsStarted):
            self._retraining = True
            self._models, self._seeds, self._seconds = max(event.trials.values()), 0, {}
            self._budgets = {stage: (event.trials[stage], epochs) for stage, (_, epochs) in self._budgets.items()}
            self._trials = {stage: {} for stage in self._budgets}
            self._rankings = {stage: Ranking() for stage in self._budgets}
            progress("  ".join([event.what, *self._eta(min(self._budgets))]))
        elif isinstance(event, StageStarted):
            self._running[event.stage] = time.monotonic()
            self._budgets[event.stage] = event.budget, event.epochs
            self._trials[event.stage] = {trial.number: trial for trial in event.trials}
            self._rankings[event.stage] = Ranking(event.trials)
            goal = f" of up to {event.epochs} epochs, {DIRECTIONS[event.stage]}imise validation "
            goal = f" of {event.epochs} epochs" if self._retraining else goal + self._objective(event.stage)
            left = event.budget - sum(trial.finished for trial in event.trials)
            done = f", {event.budget - left} recorded" if left < event.budget else ""
            progress(f"Stage {event.stage}: {event.budget} trials{goal}{done}")
        elif isinstance(event, (TrialStarted, EpochFinished, TrialBroke, TrialLeft, TrialEnded)):
            self._trials[event.trial.stage][event.trial.number] = event.trial
            self._rankings[event.trial.stage].put(event.trial)
            if not isinstance(event, EpochFinished) or self._is_due():
                self._pace = pace(trial for trials in self._trials.values() for trial in trials.values()) or self._pace
                self._line(event)
        elif isinstance(event, StageEnded):
            self._ended(event)
        elif isinstance(event, FinalistsHeld):
            numbers = ", ".join(str(trial.number) for trial in event.trials)
            progress(f"Better than the finalists of Stage 2: trials {numbers} of Stage 1. To add them, give --reopen")
        elif isinstance(event, TrialsMissing):
            numbers = ", ".join(map(str, event.numbers))
            progress(f"Stage {event.stage}: trials {numbers} are missing from the record and are not run again")
        elif isinstance(event, NodeExcluded):
            progress(f"Node {event.host} gets no more trials: trials failed there, and other nodes can take them")
        elif isinstance(event, FinalistSkipped):
            progress(f"Trial {event.trial.name} is skipped: {event.why}")
        elif isinstance(event, ModelMeasured):
            self._measured(event)
        elif isinstance(event, WinnerFixed) and not self._retraining:
            progress(f"Winner: trial {event.trial.name}")
        elif isinstance(event, StepStarted):
            self._models = event.models
            progress("  ".join([time.strftime("%H:%M:%S"), event.what, *self._eta(None)]))

    def _is_due(self) -> bool:
        """Return whether to print a line for a finished epoch now."""
        now = time.monotonic()
        due = now - self._last_epoch >= _EPOCHS_S
        if due:
            self._last_epoch = now
        return due

    def _ended(self, event: StageEnded) -> None:
        best = self._best(event.stage)
        taken = duration(time.monotonic() - self._running.pop(event.stage, self._start))
        result = ""
        if best is not None and not self._retraining:
            result = f": best trial {best.number}, {self._objective(event.stage)} {best.objective:.4f}"
        if event.left:
            progress(f"Stage {event.stage}: {event.left} trial(s) left unfinished; the same command runs them again")
        if event.cut:
            budget = self._budgets[event.stage][0]
            cut = f"{event.cut} of {budget} trials unfinished"
            progress(f"Stage {event.stage} ended by the time budget after {taken}, {cut}{result}")
        elif best is not None:
            progress(f"Stage {event.stage} done in {taken}{result}")

    def _measured(self, event: ModelMeasured) -> None:
        self._models = event.total - event.done
        if not event.done:
            self._measuring_start = time.monotonic()
            progress(f"Measuring {event.total} models on valid and test")
            return
        left = (time.monotonic() - self._measuring_start) / event.done * self._models
        progress("  ".join([time.strftime("%H:%M:%S"), f"measured {event.done}/{event.total}", *_eta(left)]))

    def _line(self, event: TrialStarted | EpochFinished | TrialBroke | TrialLeft | TrialEnded) -> None:
        trial = event.trial
        budget, epochs = self._budgets[trial.stage]
        finished = sum(t.finished for t in self._trials[trial.stage].values())
        if isinstance(event, TrialStarted):
            action = "started" if trial.attempt == 1 else f"resumed (attempt {trial.attempt})"
        elif isinstance(event, EpochFinished):
            action = f"epoch {trial.epoch}/{epochs}"
        elif isinstance(event, (TrialBroke, TrialLeft)):
            last = trial.failures[-1]
            fate = "left unfinished"
            if isinstance(event, TrialBroke):
                fate = f"interrupted, will retry in {duration(event.seconds)}" if event.seconds else "interrupted"
            action = f"{fate}: {last['cause']}: {last['error']}"
        elif trial.error:
            action = f"{trial.state}, {trial.cause}: {trial.error}"
        else:
            action = f"epoch {trial.epoch}/{epochs} {trial.state}"
        value = objective_value(trial.stage, trial.curve[-1]) if trial.curve else None
        parts = [
            time.strftime("%H:%M:%S"),
            f"stage {trial.stage} {finished:>3}/{budget}",
            f"trial {trial.number}",
            f"{action:<18}",
        ]
        best = self._best(trial.stage)
        if value is not None and not isinstance(event, TrialStarted):
            parts.append(f"{self._objective(trial.stage)} {value:.4f}")
        if best is not None and not self._retraining:
            parts.append(f"best {best.objective:.4f}")
        # The last trials of Stage 1 may run beside those of Stage 2.
        parts += self._eta(min(self._running, default=trial.stage))
        if trial.error or isinstance(event, (TrialBroke, TrialLeft)):
            progress(one_line("  ".join(parts[:4]), _ERROR_WIDTH).rstrip())
        else:
            progress("  ".join(parts).rstrip())

    def _objective(self, stage: int) -> str:
        return METRIC_TITLES[objective_name(stage, self._task)]

    def _best(self, stage: int) -> TrialRecord | None:
        return next(iter(self._rankings[stage].best(1)), None)

    def _eta(self, stage: int | None) -> list[str]:
        """Return the time left from this stage on, or after the stages if it is None."""
        if self._pace is None:
            return []
        left = 0.0
        if stage is not None:
            elapsed = time.monotonic() - self._start
            left = seconds_left(
                {number: trials.values() for number, trials in self._trials.items()},
                self._budgets,
                stage,
                self._concurrent,
                epoch_seconds=self._pace,
                limits={number: max(0.0, seconds - elapsed) for number, seconds in self._seconds.items()},
            )
        # After a retraining, several models are measured at a time.
        models = self._models / self._concurrent if self._retraining else self._models
        left += seconds_after(
            self._budgets, self._concurrent, models=models, seeds=self._seeds, epoch_seconds=self._pace
        )
        return _eta(left)


def _eta(left: float) -> list[str]:
    """Return the time left as text: at least 1 s, or nothing if only work without an estimate is left."""
    return [f"ETA {duration(max(1.0, left))}"] if left else []
