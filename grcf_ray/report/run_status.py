"""How far a run is: its budgets, whether a search is at work on it, and what is left to do."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, Literal

from grcf_ray.report.view import RunView
from grcf_ray.search.lease import is_held
from grcf_ray.search.record import RunRecord, TrialRecord, spent

DIED = "died"
"""The state of a run that its record calls running, and that no search holds."""


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """What a run is doing."""

    state: str
    """As run.json has it, or `DIED` where that says running and no search holds the run."""
    alive: bool | None
    """Whether a search is at work on it; None in object storage, where one look does not tell."""
    run: Mapping[str, Any]
    """run.json, as it was then."""


def standing_of(record: RunRecord, run: Mapping[str, Any]) -> RunStatus:
    """What a run is doing. run: run.json as it was read before."""
    if run["state"] != "running":
        return RunStatus(run["state"], False, run)
    held = is_held(record.place)
    if held is False:
        # A search writes how it ended before it gives the run up: what was read may be older than that.
        run = record.read_search()
        return RunStatus(DIED if run["state"] == "running" else run["state"], False, run)
    return RunStatus("running", held, run)


def shown_state(trial: TrialRecord, standing: RunStatus) -> str:
    """The state of a trial as people read it: the record's, or `unfinished` of a trial that no search is running.

    A trial that is on record as running goes on when its search does.
    """
    running = standing.state == "running" and trial.stage not in standing.run.get("cut", [])
    return "unfinished" if trial.state == "running" and not running else trial.state


def budgets(run: Mapping[str, Any]) -> dict[Literal[1, 2], tuple[int, int]]:
    """Trials and epochs of each stage that has epochs, by run.json."""
    settings = run["settings"]
    trials: dict[Literal[1, 2], int] = {
        1: settings["search.stage1_trials"],
        # A Stage 2 that was opened again has its budget once more.
        2: max(settings["search.stage2_trials"], run.get("stage2_trials", 0)),
    }
    epochs = {stage: settings[f"stage{stage}.epochs"] for stage in trials}
    return {stage: (trials[stage], epochs[stage]) for stage in trials if epochs[stage]}


def concurrent_trials(trials: Iterable[TrialRecord]) -> int:
    """The most trials that ran at a time, by their starts and ends; 1 where there are none."""
    steps = []
    for trial in trials:
        steps += [(trial.started, 1)]
        # One that follows another in the same second did not run beside it.
        steps += [(trial.ended, -1)] if trial.ended else []
    running = most = 0
    for _, change in sorted(steps):
        running += change
        most = max(most, running)
    return max(1, most)


def pace(trials: Iterable[TrialRecord]) -> float | None:
    """Seconds of an epoch, the mean of those so far; None before the first."""
    seen = list(trials)
    epochs = sum(trial.epoch for trial in seen)
    return sum(trial.seconds for trial in seen) / epochs if epochs else None


def seconds_left(
    trials: Mapping[int, Iterable[TrialRecord]],
    budgets: Mapping[Literal[1, 2], tuple[int, int]] | Mapping[int, tuple[int, int]],
    stage: int,
    concurrent: int,
    *,
    epoch_seconds: float,
    limits: Mapping[int, float] | None = None,
) -> float:
    """Seconds that are left of this stage and those after it.

    trials: of each stage in `budgets`, the trials and epochs that each may have. concurrent: trials at a time. limits:
    seconds until each stage hands on what it has, by a time budget.
    """
    of = {each: list(trials[each]) for each in budgets}
    left = 0.0
    for later, (budget, epochs) in budgets.items():
        if later < stage:
            continue
        ended = [trial for trial in of[later] if trial.finished]
        # Trials to come are as long as those that ended and one of full length: the first to end are the shortest.
        length = (sum(trial.epoch for trial in ended) + epochs) / (len(ended) + 1)
        running = [trial for trial in of[later] if not trial.finished]
        epochs_left = max(0, budget - len(ended) - len(running)) * length
        epochs_left += sum(max(1.0, length - trial.epoch) for trial in running)
        left += epochs_left * epoch_seconds / concurrent
        if limits is not None and later in limits:
            left = min(left, limits[later])
    return left


def seconds_after(
    budgets: Mapping[Literal[1, 2], tuple[int, int]] | Mapping[int, tuple[int, int]],
    concurrent: int,
    *,
    models: float,
    seeds: int,
    epoch_seconds: float,
) -> float:
    """Seconds that follow the stages: models to be measured, and retrainings under fresh seeds with their measuring.

    A model is taken to be measured in the time of an epoch.
    """
    retrainings = 2 * seeds * (1 + sum(epochs for _, epochs in budgets.values()))
    return (models + retrainings / concurrent) * epoch_seconds


def time_left(view: RunView, retrainings: Mapping[int, Iterable[TrialRecord]] | None = None) -> float | None:
    """Seconds that the search still takes, by its record; None before its first epoch.

    With what follows the stages, where the search was asked for it. retrainings: the trials of `--seeds`, by stage.
    """
    run, stages = view.run, budgets(view.run)
    everything = [trial for trials in view.trials.values() for trial in trials]
    epoch_seconds, concurrent = pace(everything), concurrent_trials(everything)
    if epoch_seconds is None or not stages:
        return None
    seeds: int = run["starts"][-1].get("seeds", 0)
    if retrainings is not None and any(retrainings.values()):
        again = {stage: (2 * seeds, epochs) for stage, (_, epochs) in stages.items()}
        left = seconds_left(retrainings, again, min(again), concurrent, epoch_seconds=epoch_seconds)
        return left + 2 * seeds * epoch_seconds / concurrent
    open_ = [
        stage
        for stage, (budget, _) in stages.items()
        if stage not in run.get("cut", []) and spent(view.trials[stage]) < budget
    ]
    left = 0.0
    if open_:
        limits = {int(stage): _seconds_until(time) for stage, time in run["starts"][-1].get("stage_ends", {}).items()}
        left = seconds_left(view.trials, stages, open_[0], concurrent, epoch_seconds=epoch_seconds, limits=limits)
    return left + seconds_after(stages, concurrent, models=1, seeds=seeds, epoch_seconds=epoch_seconds)


def _seconds_until(time: str) -> float:
    return max(0.0, (datetime.fromisoformat(time) - datetime.now(timezone.utc)).total_seconds())


def last_change(view: RunView) -> str:
    """The time of the last start or end on record, of the run or of a trial, as the record has times."""
    times = [start["time"] for start in view.run["starts"]] + [view.run.get("ended")]
    times += [time for trials in view.trials.values() for trial in trials for time in (trial.started, trial.ended)]
    latest = ""
    for time in times:
        # Times of day from a record that people have changed are left out rather than believed.
        with contextlib.suppress(TypeError, ValueError):
            if datetime.fromisoformat(time):
                latest = max(latest, time)
    return latest
