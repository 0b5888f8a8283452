"""The progress of a run: trials at a time, time left, and time of the last change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from itertools import accumulate
from typing import Any

from grcf_ray.report.view import RunView
from grcf_ray.search.record import TrialRecord, pace, spent


def concurrent_trials(trials: Sequence[TrialRecord]) -> int:
    """Return the most trials that ran at the same time, by their starts and ends; at least 1."""
    # A trial that starts in the second in which another ends did not run beside it.
    steps = [(trial.started, 1) for trial in trials] + [(trial.ended, -1) for trial in trials if trial.ended]
    return max([1, *accumulate(change for _, change in sorted(steps))])


def seconds_left(
    trials: Mapping[int, Iterable[TrialRecord]],
    budgets: Mapping[Any, tuple[int, int]],
    stage: int,
    concurrent: int,
    *,
    epoch_seconds: float,
    limits: Mapping[int, float] | None = None,
) -> float:
    """Return the seconds left of a stage and those after it.

    trials: by stage. budgets: number of trials and epochs of each stage. concurrent: trials at a time. limits: seconds
    until the time budget ends each stage.
    """
    left = 0.0
    for later, (budget, epochs) in budgets.items():
        if later < stage:
            continue
        listed = list(trials[later])
        ended = [trial for trial in listed if trial.finished]
        # The first trials to end are the shortest: a trial of full length corrects the mean.
        length = (sum(trial.epoch for trial in ended) + epochs) / (len(ended) + 1)
        epochs_left = max(0, budget - len(listed)) * length
        epochs_left += sum(max(1.0, length - trial.epoch) for trial in listed if not trial.finished)
        left += epochs_left * epoch_seconds / concurrent
        if limits is not None and later in limits:
            left = min(left, limits[later])
    return left


def seconds_after(
    budgets: Mapping[Any, tuple[int, int]], concurrent: int, *, models: float, seeds: int, epoch_seconds: float
) -> float:
    """Return the seconds after the stages: measuring models, and retraining and measuring under fresh seeds.

    Measuring a model is taken to cost an epoch.
    """
    retrainings = 2 * seeds * (1 + sum(epochs for _, epochs in budgets.values()))
    return (models + retrainings / concurrent) * epoch_seconds


def time_left(view: RunView, retrainings: Mapping[int, Iterable[TrialRecord]] | None = None) -> float | None:
    """Return the estimated seconds left of a running search, or None before its first epoch or without a search.

    They include the steps after the stages. retrainings: the trials of `--seeds`, by stage.
    """
    stages = view.budgets
    epoch_seconds, concurrent = pace(view.all_trials), concurrent_trials(view.all_trials)
    if view.state != "running" or epoch_seconds is None or not stages:
        return None
    start = view.info.starts[-1]
    if retrainings is not None and any(retrainings.values()):
        again = {stage: (2 * start.seeds, epochs) for stage, (_, epochs) in stages.items()}
        left = seconds_left(retrainings, again, min(again), concurrent, epoch_seconds=epoch_seconds)
        return left + 2 * start.seeds * epoch_seconds / concurrent
    after = seconds_after(stages, concurrent, models=1, seeds=start.seeds, epoch_seconds=epoch_seconds)
    for stage, (budget, _) in stages.items():
        left = sum(trial.name in view.info.left for trial in view.trials[stage])
        if stage not in view.info.cut and spent(view.trials[stage]) + left < budget:
            limits = {int(stage): _seconds_until(time) for stage, time in start.stage_ends.items()}
            left = seconds_left(view.trials, stages, stage, concurrent, epoch_seconds=epoch_seconds, limits=limits)
            return left + after
    return after


def _seconds_until(time: str) -> float:
    return max(0.0, (datetime.fromisoformat(time) - datetime.now(timezone.utc)).total_seconds())


def last_change(view: RunView) -> str:
    """Return the recorded time of the last start or end of the run or of a trial."""
    times = [*(start.time for start in view.info.starts), view.info.ended]
    times += [time for trial in view.all_trials for time in (trial.started, trial.ended)]
    # Times are checked when a file is read.
    return max(filter(None, times), default="")
