"""The progress of a run: state, budgets and time left."""

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
"""State of a run that its record calls running and that no search holds."""


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """The state of a run."""

    state: str
    """The state in run.json, or `DIED`."""
    alive: bool | None
    """Whether a search holds the run; None in object storage, where one reading cannot tell."""
    run: Mapping[str, Any]
    """The run.json that was read."""


def standing_of(record: RunRecord, run: Mapping[str, Any]) -> RunStatus:
    """Return the state of a run. run: its run.json, read before."""
    if run["state"] != "running":
        return RunStatus(run["state"], False, run)
    held = is_held(record.place)
    if held is False:
        # A search writes its final state before it releases the run, possibly after `run` was read.
        run = record.read_search()
        return RunStatus(DIED if run["state"] == "running" else run["state"], False, run)
    return RunStatus("running", held, run)


def shown_state(trial: TrialRecord, standing: RunStatus) -> str:
    """Return the state of a trial to show: the recorded one, or `unfinished` if no search runs the trial.

    A trial that is recorded as running resumes with its search.
    """
    running = standing.state == "running" and trial.stage not in standing.run.get("cut", [])
    return "unfinished" if trial.state == "running" and not running else trial.state


def budgets(run: Mapping[str, Any]) -> dict[Literal[1, 2], tuple[int, int]]:
    """Return the number of trials and of epochs of each stage that has epochs. run: run.json."""
    settings = run["settings"]
    trials: dict[Literal[1, 2], int] = {
        1: settings["search.stage1_trials"],
        # A reopened Stage 2 has its budget again.
        2: max(settings["search.stage2_trials"], run.get("stage2_trials", 0)),
    }
    epochs = {stage: settings[f"stage{stage}.epochs"] for stage in trials}
    return {stage: (trials[stage], epochs[stage]) for stage in trials if epochs[stage]}


def concurrent_trials(trials: Iterable[TrialRecord]) -> int:
    """Return the most trials that ran at the same time, by their starts and ends; at least 1."""
    steps = []
    for trial in trials:
        steps += [(trial.started, 1)]
        # A trial that starts in the second in which another ends did not run beside it.
        steps += [(trial.ended, -1)] if trial.ended else []
    running = most = 0
    for _, change in sorted(steps):
        running += change
        most = max(most, running)
    return max(1, most)


def pace(trials: Iterable[TrialRecord]) -> float | None:
    """Return the mean seconds of an epoch, or None before the first."""
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
    """Return the seconds left of a stage and those after it.

    trials: by stage. budgets: number of trials and epochs of each stage. concurrent: trials at a time. limits: seconds
    until the time budget ends each stage.
    """
    listed = {each: list(trials[each]) for each in budgets}
    left = 0.0
    for later, (budget, epochs) in budgets.items():
        if later < stage:
            continue
        ended = [trial for trial in listed[later] if trial.finished]
        # The first trials to end are the shortest: a trial of full length corrects the mean.
        length = (sum(trial.epoch for trial in ended) + epochs) / (len(ended) + 1)
        running = [trial for trial in listed[later] if not trial.finished]
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
    """Return the seconds after the stages: measuring models, and retraining and measuring under fresh seeds.

    Measuring a model is taken to cost an epoch.
    """
    retrainings = 2 * seeds * (1 + sum(epochs for _, epochs in budgets.values()))
    return (models + retrainings / concurrent) * epoch_seconds


def time_left(view: RunView, retrainings: Mapping[int, Iterable[TrialRecord]] | None = None) -> float | None:
    """Return the estimated seconds left of a search, or None before its first epoch.

    They include the steps after the stages. retrainings: the trials of `--seeds`, by stage.
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
    """Return the recorded time of the last start or end of the run or of a trial."""
    times = [start["time"] for start in view.run["starts"]] + [view.run.get("ended")]
    times += [time for trials in view.trials.values() for trial in trials for time in (trial.started, trial.ended)]
    latest = ""
    for time in times:
        # People edit records: invalid times are skipped.
        with contextlib.suppress(TypeError, ValueError):
            if datetime.fromisoformat(time):
                latest = max(latest, time)
    return latest
