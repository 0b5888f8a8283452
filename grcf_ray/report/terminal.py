"""The terminal: a line an event while a search runs, a table when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grcf_ray.console import print_table, progress
from grcf_ray.search.events import (
    EpochFinished,
    Event,
    StageEnded,
    StageStarted,
    TrialEnded,
    TrialStarted,
    WinnerFixed,
)
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.train.stage import OBJECTIVES

__all__ = ["METRIC_TITLES", "ProgressLines", "duration", "print_result", "summarise", "typed"]

METRIC_TITLES = {
    "mae": "MAE",
    "corr": "Corr",
    "pairwise_acc": "PairwiseAcc",
    "acc7": "Acc7",
    "acc5": "Acc5",
    "acc3": "Acc3",
    "acc2_non0": "Acc2 (non-zero)",
    "acc2_has0": "Acc2 (has zero)",
    "acc2_mmsa": "Acc2 (MMSA)",
    "f1_positive": "F1 (positive)",
    "f1_weighted": "F1 (weighted)",
    "f1_weighted_mmsa": "F1 (weighted, MMSA)",
}
OBJECTIVE_TITLES = {1: "PairwiseAcc", 2: "MAE"}
STATE_TITLES = {
    "complete": "finished",
    "pruned": "stopped",
    "diverged": "diverged",
    "failed": "failed",
    "running": "running",
}


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class ProgressLines:
    """A line on standard error for each event of a trial, with what is left.

    budgets: each stage's trials and epochs.
    """

    def __init__(self, *, concurrent: int, budgets: Mapping[int, tuple[int, int]]) -> None:
        self._concurrent, self._budgets = concurrent, dict(budgets)
        self._trials: dict[int, dict[int, TrialRecord]] = {stage: {} for stage in budgets}
        self._stage_start = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Print the event."""
        if isinstance(event, StageStarted):
            self._stage_start = time.monotonic()
            self._trials[event.stage] = {trial.number: trial for trial in event.trials}
            name, direction = OBJECTIVE_TITLES[event.stage], OBJECTIVES[event.stage][1]
            left = event.budget - sum(trial.finished for trial in event.trials)
            done = f", {event.budget - left} recorded" if left < event.budget else ""
            progress(
                f"Stage {event.stage}: {event.budget} trials of up to {event.epochs} epochs, "
                f"{direction}imise validation {name}{done}"
            )
        elif isinstance(event, (TrialStarted, EpochFinished, TrialEnded)):
            self._trials[event.trial.stage][event.trial.number] = event.trial
            self._line(event)
        elif isinstance(event, StageEnded):
            best = self._best(event.stage)
            if best is not None:
                progress(
                    f"Stage {event.stage} done in {duration(time.monotonic() - self._stage_start)}: best trial "
                    f"{best.number}, {OBJECTIVE_TITLES[event.stage]} {best.objective:.4f}"
                )
        elif isinstance(event, WinnerFixed):
            progress(f"Winner: trial stage{event.trial.stage}/{event.trial.number}. Reading the test split")

    def _line(self, event: TrialStarted | EpochFinished | TrialEnded) -> None:
        trial = event.trial
        budget, epochs = self._budgets[trial.stage]
        finished = sum(t.finished for t in self._trials[trial.stage].values())
        if isinstance(event, TrialStarted):
            what = "started" if trial.attempt == 1 else f"goes on (attempt {trial.attempt})"
        elif isinstance(event, EpochFinished):
            what = f"epoch {trial.epoch}/{epochs}"
        elif trial.error:
            what = f"{STATE_TITLES[trial.state]}: {_one_line(trial.error)}"
        else:
            what = f"epoch {trial.epoch}/{epochs} {STATE_TITLES[trial.state]}"
        value = trial.curve[-1].get(f"valid/{OBJECTIVES[trial.stage][0]}") if trial.curve else None
        parts = [
            time.strftime("%H:%M:%S"),
            f"stage {trial.stage} {finished:>3}/{budget}",
            f"trial {trial.number}",
            f"{what:<18}",
        ]
        best, left = self._best(trial.stage), self._left(trial.stage)
        if value is not None and not isinstance(event, TrialStarted):
            parts.append(f"{OBJECTIVE_TITLES[trial.stage]} {value:.4f}")
        if best is not None:
            parts.append(f"best {best.objective:.4f}")
        if left is not None:
            parts.append(f"ETA {duration(left)}")
        # An error fills its line.
        progress("  ".join(parts[:4] if trial.error else parts).rstrip())

    def _best(self, stage: int) -> TrialRecord | None:
        sign = 1 if OBJECTIVES[stage][1] == "min" else -1
        usable = [t for t in self._trials[stage].values() if t.objective is not None]
        return min(usable, key=lambda t: (sign * t.objective, t.number), default=None)  # type: ignore[operator]

    def _left(self, stage: int) -> float | None:
        """Seconds that are left, from the epochs so far; None before the first."""
        seen = [trial for trials in self._trials.values() for trial in trials.values()]
        epochs_run = sum(trial.epoch for trial in seen)
        if not epochs_run:
            return None
        per_epoch = sum(trial.seconds for trial in seen) / epochs_run
        left = 0.0
        for later, (budget, epochs) in self._budgets.items():
            if later < stage:
                continue
            ended = [trial for trial in self._trials[later].values() if trial.finished]
            # Trials to come are as long as those that ended and one of full length: the first to end are the shortest.
            length = (sum(trial.epoch for trial in ended) + epochs) / (len(ended) + 1)
            running = [trial for trial in self._trials[later].values() if not trial.finished]
            left += (budget - len(ended) - len(running)) * length
            left += sum(max(1.0, length - trial.epoch) for trial in running)
        return left * per_epoch / self._concurrent


def summarise(record: RunRecord, metrics: Mapping[str, Any], winner: TrialRecord) -> dict[str, Any]:
    """What a finished search answers, as plain data: winner, figures, cost, places."""
    stages = {stage: record.trials(stage) for stage in (1, 2)}
    finalist = winner.params.get("finalist")
    inherited = next((t.params for t in stages[1] if finalist is not None and t.number == int(finalist)), {})
    return {
        "run": str(record.folder),
        "winner": {"trial": f"stage{winner.stage}/{winner.number}", "params": {**inherited, **winner.params}},
        "stages": {
            f"stage{stage}": {
                "trials": len(trials),
                "states": {state: sum(t.state == state for t in trials) for state in sorted({t.state for t in trials})},
                "best": [
                    {
                        "trial": t.number,
                        "objective": t.objective,
                        "metric": OBJECTIVES[stage][0],
                        "params": t.params,
                    }
                    for t in record.ranked(stage)[:3]
                ],
            }
            for stage, trials in stages.items()
            if trials
        },
        "valid": metrics["valid"],
        "test": metrics["test"],
        "paper": metrics["paper"],
        "not_comparable": metrics["not_comparable"],
        "baselines": metrics["baselines"],
        "cost": {
            "trial_seconds": sum(t.seconds for trials in stages.values() for t in trials),
            "epochs": sum(t.epoch for trials in stages.values() for t in trials),
            "utterance_passes": sum(t.utterance_passes for trials in stages.values() for t in trials),
        },
    }


def print_result(summary: Mapping[str, Any]) -> None:
    """The final tables, on standard output."""
    for name, stage in summary["stages"].items():
        number = int(name[-1])
        states = ", ".join(f"{count} {STATE_TITLES[state]}" for state, count in stage["states"].items())
        print(f"\nStage {number}: {stage['trials']} trials ({states})")
        if stage["best"]:
            rows = [(str(best["trial"]), _figure(best["objective"])) for best in stage["best"]]
            print_table(("trial", f"valid {OBJECTIVE_TITLES[number]}"), rows)
    print(f"\nWinner: trial {summary['winner']['trial']}")
    print_table(
        ("parameter", "value"),
        [
            (path, f"{value:.4g}" if isinstance(value, float) else str(value))
            for path, value in summary["winner"]["params"].items()
        ],
    )
    print()
    _print_metrics(summary)
    print()
    _print_remarks(summary)
    cost, place = summary["cost"], typed(Path(summary["run"]))
    print(
        f"Cost: {cost['epochs']} epochs, {cost['utterance_passes']:.1f} passes over the training split, "
        f"{duration(cost['trial_seconds'])} in trials"
    )
    records = ", ".join(f"{place}/{stage}/trials.jsonl" for stage in summary["stages"])
    print(f"\nModel:  {place}/best\nRecord: {records}")
    print(f"Next:   python -m grcf_ray.evaluate {place}\n        tensorboard --logdir {place}/tensorboard")
    sys.stdout.flush()


def _print_remarks(summary: Mapping[str, Any]) -> None:
    trials = sum(stage["trials"] for stage in summary["stages"].values())
    print(f"Validation figures are optimistic: the best of {trials} trials.")
    for baseline in summary["baselines"]:
        print(f"Ridge: {baseline['name']} of the same encoder, alpha {baseline['alpha']:g} by validation.")
    if summary["paper"] and summary["not_comparable"]:
        print(f"Paper: not comparable: {'; '.join(summary['not_comparable'])}.")
    elif summary["paper"]:
        print("Paper: one seed.")


def _print_metrics(summary: Mapping[str, Any]) -> None:
    baselines = summary["baselines"]
    header = ["metric", "valid", "test"]
    header += ["ridge, test"] if baselines else []
    header += ["paper, test"] if summary["paper"] else []
    rows = []
    for name, title in METRIC_TITLES.items():
        if name not in summary["test"]:
            continue
        row = [title, _figure(summary["valid"].get(name)), _figure(summary["test"][name])]
        row += [_figure(baselines[0]["test"].get(name))] if baselines else []
        row += [_figure(summary["paper"].get(name))] if summary["paper"] else []
        rows.append(row)
    print_table(header, rows)


def _one_line(error: str) -> str:
    """An error as a line has room for it, without control codes; the record has the whole."""
    plain = "".join(letter if letter.isprintable() else " " for letter in error)
    return plain if len(plain) <= 70 else f"{plain[:67]}..."


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def typed(path: Path) -> Path:
    """The path from here where it lies below, as people would type it."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
