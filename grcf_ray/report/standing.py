"""How far a run is: its budgets, whether a search is at work on it, and what is left to do."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from grcf_ray.report.view import RunView
from grcf_ray.search.lease import is_held
from grcf_ray.search.record import RunRecord, TrialRecord

__all__ = [
    "DIED",
    "Standing",
    "budgets",
    "concurrent_trials",
    "last_change",
    "seconds_left",
    "standing_of",
    "time_left",
]

DIED = "died"
"""The state of a run that its record calls running, and that no search holds."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a run is doing."""

    state: str
    """As run.json has it, or `DIED` where that says running and no search holds the run."""
    alive: bool | None
    """Whether a search is at work on it; None in object storage, where one look does not tell."""
    run: Mapping[str, Any]
    """run.json, as it was then."""


def standing_of(record: RunRecord, run: Mapping[str, Any]) -> Standing:
    """What a run is doing. run: run.json as it was read before."""
    if run["state"] != "running":
        return Standing(run["state"], False, run)
    held = is_held(record.place)
    if held is False:
        # A search writes how it ended before it gives the run up: what was read may be older than that.
        run = record.read_run()
        return Standing(DIED if run["state"] == "running" else run["state"], False, run)
    return Standing("running", held, run)


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


def seconds_left(
    trials: Mapping[int, Iterable[TrialRecord]],
    budgets: Mapping[Literal[1, 2], tuple[int, int]] | Mapping[int, tuple[int, int]],
    stage: int,
    concurrent: int,
) -> float | None:
    """Seconds that are left of this stage and those after it, from the epochs so far; None before the first.

    trials: of each stage in `budgets`, the trials and epochs that each may have. concurrent: trials at a time.
    """
    of = {each: list(trials[each]) for each in budgets}
    epochs_run = sum(trial.epoch for seen in of.values() for trial in seen)
    if not epochs_run:
        return None
    per_epoch = sum(trial.seconds for seen in of.values() for trial in seen) / epochs_run
    left = 0.0
    for later, (budget, epochs) in budgets.items():
        if later < stage:
            continue
        ended = [trial for trial in of[later] if trial.finished]
        # Trials to come are as long as those that ended and one of full length: the first to end are the shortest.
        length = (sum(trial.epoch for trial in ended) + epochs) / (len(ended) + 1)
        running = [trial for trial in of[later] if not trial.finished]
        left += max(0, budget - len(ended) - len(running)) * length
        left += sum(max(1.0, length - trial.epoch) for trial in running)
    return left * per_epoch / concurrent


def time_left(view: RunView) -> float | None:
    """Seconds that the search still takes, by its record; None where nothing can be said or nothing is left."""
    stages = budgets(view.run)
    unfinished = [
        stage for stage, (budget, _) in stages.items() if sum(t.finished for t in view.trials[stage]) < budget
    ]
    if not unfinished:
        return None
    everything = [trial for trials in view.trials.values() for trial in trials]
    return seconds_left(view.trials, stages, unfinished[0], concurrent_trials(everything))


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
