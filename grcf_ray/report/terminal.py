"""The terminal: a line an event while a search runs, a table when it is done."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from grcf_ray.config import Task
from grcf_ray.console import duration, printable, progress, say, sentence, table_lines
from grcf_ray.data.datasets import TWO_READINGS
from grcf_ray.metrics import METRIC_TITLES, acc_whole_note
from grcf_ray.report.run_status import RunStatus, pace, seconds_after, seconds_left, shown_state, standing_of
from grcf_ray.report.view import RunView
from grcf_ray.search.comparisons import (
    against_baseline,
    baseline_kind,
    baseline_remarks,
    few_retrainings,
    few_seeds,
    retrainings,
)
from grcf_ray.search.direct_baseline import INHERITED
from grcf_ray.search.events import (
    EpochFinished,
    Event,
    FinalistsHeld,
    FinalistSkipped,
    ModelMeasured,
    RetrainingsStarted,
    SearchStarted,
    StageEnded,
    StageStarted,
    StepStarted,
    TrialBroke,
    TrialEnded,
    TrialsMissing,
    TrialStarted,
    WinnerFixed,
)
from grcf_ray.search.failures import failures_by_cause
from grcf_ray.search.record import RunRecord, TrialRecord, rank
from grcf_ray.storage import StoragePath
from grcf_ray.train.curve import DIRECTIONS, objective_name, objective_value

REPORT = "report.html"
"""The page of a run, in it."""


class ProgressLines:
    """A line on standard error for each event of a trial and each step after them, with what is left of all."""

    def __init__(self) -> None:
        self._concurrent = 1
        self._budgets: dict[int, tuple[int, int]] = {}
        self._trials: dict[int, dict[int, TrialRecord]] = {}
        self._stage_start = self._measuring_start = self._start = time.monotonic()
        self._retraining = False
        self._models, self._seeds = 1, 0
        """Models to be measured, and seeds to train anew under, once the stages have ended."""
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
        elif isinstance(event, RetrainingsStarted):
            self._retraining = True
            self._models, self._seeds, self._seconds = max(event.trials.values()), 0, {}
            self._budgets = {stage: (event.trials[stage], epochs) for stage, (_, epochs) in self._budgets.items()}
            self._trials = {stage: {} for stage in self._budgets}
            progress("  ".join([event.what, *self._eta(min(self._budgets))]))
        elif isinstance(event, StageStarted):
            self._stage_start = time.monotonic()
            self._budgets[event.stage] = event.budget, event.epochs
            self._trials[event.stage] = {trial.number: trial for trial in event.trials}
            goal = f" of up to {event.epochs} epochs, {DIRECTIONS[event.stage]}imise validation "
            goal = f" of {event.epochs} epochs" if self._retraining else goal + self._objective(event.stage)
            left = event.budget - sum(trial.finished for trial in event.trials)
            done = f", {event.budget - left} recorded" if left < event.budget else ""
            progress(f"Stage {event.stage}: {event.budget} trials{goal}{done}")
        elif isinstance(event, (TrialStarted, EpochFinished, TrialBroke, TrialEnded)):
            self._trials[event.trial.stage][event.trial.number] = event.trial
            self._pace = pace(trial for of in self._trials.values() for trial in of.values()) or self._pace
            self._line(event)
        elif isinstance(event, StageEnded):
            self._ended(event)
        elif isinstance(event, FinalistsHeld):
            numbers = ", ".join(str(trial.number) for trial in event.trials)
            progress(f"Stage 1 has better trials than those that Stage 2 started from: {numbers}. --reopen searches on")
        elif isinstance(event, TrialsMissing):
            numbers = ", ".join(map(str, event.numbers))
            progress(f"Stage {event.stage}: the record lacks trials {numbers}; their numbers stay spent")
        elif isinstance(event, FinalistSkipped):
            progress(f"Trial stage1/{event.trial.number} is left out: {event.why}")
        elif isinstance(event, ModelMeasured):
            self._measured(event)
        elif isinstance(event, WinnerFixed) and not self._retraining:
            progress(f"Winner: trial stage{event.trial.stage}/{event.trial.number}")
        elif isinstance(event, StepStarted):
            self._models = event.models
            progress("  ".join([time.strftime("%H:%M:%S"), event.what, *self._eta(None)]))

    def _ended(self, event: StageEnded) -> None:
        best, taken = self._best(event.stage), duration(time.monotonic() - self._stage_start)
        found = ""
        if best is not None and not self._retraining:
            found = f": best trial {best.number}, {self._objective(event.stage)} {best.objective:.4f}"
        if event.cut:
            of = self._budgets[event.stage][0]
            how = f"ended by the time budget after {taken}, {event.cut} of {of} trials unfinished"
            progress(f"Stage {event.stage} {how}{found}")
        elif best is not None:
            progress(f"Stage {event.stage} done in {taken}{found}")

    def _measured(self, event: ModelMeasured) -> None:
        self._models = event.total - event.done
        if not event.done:
            self._measuring_start = time.monotonic()
            progress(f"Measuring {event.total} models on valid and test")
            return
        left = (time.monotonic() - self._measuring_start) / event.done * self._models
        progress("  ".join([time.strftime("%H:%M:%S"), f"measured {event.done}/{event.total}", *_eta(left)]))

    def _line(self, event: TrialStarted | EpochFinished | TrialBroke | TrialEnded) -> None:
        trial = event.trial
        budget, epochs = self._budgets[trial.stage]
        finished = sum(t.finished for t in self._trials[trial.stage].values())
        if isinstance(event, TrialStarted):
            what = "started" if trial.attempt == 1 else f"goes on (attempt {trial.attempt})"
        elif isinstance(event, EpochFinished):
            what = f"epoch {trial.epoch}/{epochs}"
        elif isinstance(event, TrialBroke):
            last = trial.failures[-1]
            what = f"broke off, starts again: {last['cause']}: {last['error']}"
        elif trial.error:
            what = f"{trial.state}, {trial.cause}: {trial.error}"
        else:
            what = f"epoch {trial.epoch}/{epochs} {trial.state}"
        value = objective_value(trial.stage, trial.curve[-1]) if trial.curve else None
        parts = [
            time.strftime("%H:%M:%S"),
            f"stage {trial.stage} {finished:>3}/{budget}",
            f"trial {trial.number}",
            f"{what:<18}",
        ]
        best = self._best(trial.stage)
        if value is not None and not isinstance(event, TrialStarted):
            parts.append(f"{self._objective(trial.stage)} {value:.4f}")
        if best is not None and not self._retraining:
            parts.append(f"best {best.objective:.4f}")
        parts += self._eta(trial.stage)
        if trial.error or isinstance(event, TrialBroke):
            # An error fills its line.
            progress(one_line("  ".join(parts[:4]), 120).rstrip())
        else:
            progress("  ".join(parts).rstrip())

    def _objective(self, stage: int) -> str:
        return METRIC_TITLES[objective_name(stage, self._task)]

    def _best(self, stage: int) -> TrialRecord | None:
        return next(iter(rank(self._trials[stage].values())), None)

    def _eta(self, stage: int | None) -> list[str]:
        """What is left from this stage on, or from the stages' end on."""
        if self._pace is None:
            return []
        left = 0.0
        if stage is not None:
            gone = time.monotonic() - self._start
            left = seconds_left(
                {number: trials.values() for number, trials in self._trials.items()},
                self._budgets,
                stage,
                self._concurrent,
                epoch_seconds=self._pace,
                limits={number: max(0.0, seconds - gone) for number, seconds in self._seconds.items()},
            )
        # Several are measured side by side.
        models = self._models / self._concurrent if self._retraining else self._models
        left += seconds_after(
            self._budgets, self._concurrent, models=models, seeds=self._seeds, epoch_seconds=self._pace
        )
        return _eta(left)


def _eta(left: float) -> list[str]:
    """The words for what is left, never 0 s; none where only work follows that no estimate has."""
    return [f"ETA {duration(max(1.0, left))}"] if left else []


def summarise(record: RunRecord) -> dict[str, Any]:
    """What a finished search answers, as plain data: winner, figures, failures, cost, places."""
    return summarise_view(RunView.read(record))


def summarise_view(view: RunView) -> dict[str, Any]:
    """As `summarise`; of a search that has no winner yet, what it has."""
    # Ray comes with it, which the other readers of a record do without.

    record, run, stages, standing = view.record, view.run, view.trials, standing_of(view.record, view.run)
    metrics = view.metrics or {}
    winner = run.get("winner")
    return {
        "run": str(record),
        "uri": record.place.uri,
        "report": str(record.place / REPORT) if (record.place / REPORT).exists() else None,
        "state": run["state"],
        "command": run["starts"][-1]["command"],
        "task": view.task,
        "label_range": list(view.label_range),
        "winner": {"trial": winner, "params": view.winner_params} if winner else None,
        "stages": {
            f"stage{stage}": {
                "trials": len(trials),
                "states": count_states(trials, standing),
                "best": [
                    {
                        "trial": t.number,
                        "objective": t.objective,
                        "metric": objective_name(stage, view.task),
                        "params": t.params,
                    }
                    for t in rank(trials)[:3]
                ],
                "failures": [
                    {"cause": cause, "trials": [t.number for t in failed], "error": failed[-1].error}
                    for cause, failed in failures_by_cause(trials).items()
                ],
            }
            for stage, trials in stages.items()
            if trials
        },
        "valid": metrics.get("valid", {}),
        "test": metrics.get("test", {}),
        "test_seen_before_selection_ended": bool(run.get("test_seen")),
        "seeds": retrainings(record, winner) if winner else None,
        "against_baseline": against_baseline(record),
        "paper": metrics.get("paper", {}),
        "not_comparable": metrics.get("not_comparable", []),
        "baselines": metrics.get("baselines", []),
        "cost": {
            "trial_seconds": sum(t.seconds for trials in stages.values() for t in trials),
            "epochs": sum(t.epoch for trials in stages.values() for t in trials),
            "utterance_passes": sum(t.utterance_passes for trials in stages.values() for t in trials),
        },
    }


def print_result(summary: Mapping[str, Any]) -> None:
    """The final tables, on standard output."""
    for line in _result_lines(summary):
        say(line)


def _result_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    for name, stage in summary["stages"].items():
        number = int(name[-1])
        yield f"\nStage {number}: {stage['trials']} trials ({states_line(stage['states'])})"
        if stage["best"]:
            rows = [(str(best["trial"]), figure(best["objective"])) for best in stage["best"]]
            yield from table_lines(("trial", f"valid {METRIC_TITLES[stage['best'][0]['metric']]}"), rows)
        yield from failure_lines(number, stage["failures"], summary["uri"])
    yield f"\nWinner: trial {summary['winner']['trial']}"
    yield from params_lines(summary["winner"]["params"])
    yield ""
    yield from metric_lines(summary)
    if summary["seeds"]:
        yield ""
        yield from seeds_lines(summary["seeds"])
    if summary["against_baseline"]:
        yield ""
        alone = METRIC_TITLES[objective_name(2, summary["task"])]
        yield from baseline_lines(summary["against_baseline"], alone)
    yield ""
    yield from remarks(summary)
    cost, place = summary["cost"], typed(summary["run"])
    yield (
        f"Cost: {cost['epochs']} epochs, {cost['utterance_passes']:.1f} passes over the training split, "
        f"{duration(cost['trial_seconds'])} in trials"
    )
    if summary["state"] == "time is up":
        yield f"The time was up before every trial had ended. To go on: {summary['command']}"
    records = ", ".join(f"{place}/{stage}/trials.jsonl" for stage in summary["stages"])
    yield f"\nModel:  {place}/best\nRecord: {records}"
    if summary["report"]:
        yield f"Report: {typed(summary['report'])}"
    yield f"Next:   python -m grcf_ray.evaluate {shlex.quote(typed(summary['uri']))}"
    yield f"        tensorboard --logdir {shlex.quote(f'{place}/tensorboard')}"


def count_states(trials: Sequence[TrialRecord], standing: RunStatus) -> dict[str, int]:
    """How many trials are in which state, the states in the order of their names."""
    return dict(sorted(Counter(shown_state(trial, standing) for trial in trials).items()))


def states_line(states: Mapping[str, int]) -> str:
    """How many trials are in which state: 3 complete, 11 pruned."""
    return ", ".join(f"{count} {state}" for state, count in states.items())


def params_lines(params: Mapping[str, Any], *, width: int | None = None) -> list[str]:
    """A table of parameters. width, here and below: as `console.table_lines` has it."""
    return table_lines(("parameter", "value"), [(path, setting(value)) for path, value in params.items()], width=width)


def again(run: str, trial: str) -> str:
    """The command that runs a recorded trial again."""
    return f"python -m grcf_ray.train --from {shlex.quote(str(typed(run)))} --trial {trial}"


def failure_line(failure: Mapping[str, Any]) -> str:
    """A cause with its trials and their last error."""
    numbers = ", ".join(str(number) for number in failure["trials"][:10])
    more = f" and {len(failure['trials']) - 10} more" if len(failure["trials"]) > 10 else ""
    return f"{failure['cause']}: trial {numbers}{more}: {one_line(failure['error'])}"


def failure_lines(stage: int, failures: Sequence[Mapping[str, Any]], run: str) -> Iterator[str]:
    """Each cause with its trials, their last error, and the command that runs one of them again."""
    for failure in failures:
        yield failure_line(failure)
        trial = f"stage{stage}/{failure['trials'][-1]}"
        yield f"  again: {again(run, trial)}"


def seeds_lines(seeds: Mapping[str, Any], *, width: int | None = None) -> Iterator[str]:
    """The retrainings: mean and deviation of both arms on test, and the gain between them."""
    winner, start = (seeds["arms"][arm]["test"] for arm in ("winner", "start"))
    yield f"Trained anew under {seeds['seeds']} seeds, on test (mean and deviation):"
    yield from arms_lines(("winner", "starting point"), winner, start, seeds["gain"], width=width)
    if few := few_retrainings(seeds):
        yield sentence(few)


def baseline_lines(against: Mapping[str, Any], alone: str, *, width: int | None = None) -> Iterator[str]:
    """Both searches' winners under the same seeds. alone: the baseline's loss."""
    yield f"Two stages against {alone} alone, both searches' winners under {against['seeds']} seeds, on test:"
    titles = ("two stages", f"{alone} alone")
    yield from arms_lines(titles, against["two-stage"], against["direct"], against["gain"], width=width)
    yield from wrap(INHERITED, width) if width else (INHERITED,)
    if few := few_seeds(against["seeds"]):
        yield sentence(few)


def arms_lines(
    titles: tuple[str, str],
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    gain: Mapping[str, Any],
    *,
    width: int | None = None,
) -> list[str]:
    """Two models under several seeds, side by side, and the interval of their difference."""
    rows = [
        (title, _spread(ours.get(name)), _spread(theirs.get(name)), _interval(gain.get(name)))
        for name, title in METRIC_TITLES.items()
        if name in ours
    ]
    return table_lines(("metric", *titles, "difference, 95 % interval"), rows, width=width)


def _spread(found: Mapping[str, float | None] | None) -> str:
    if found is None:
        return "-"
    deviation = found["deviation"]
    return figure(found["mean"]) + ("" if deviation is None else f" ± {deviation:.4f}")


def _interval(found: Mapping[str, float | None] | None) -> str:
    if found is None or found["mean"] is None or found["half_width"] is None:
        return "-"
    low, high = found["mean"] - found["half_width"], found["mean"] + found["half_width"]
    return f"{found['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"


def remarks(summary: Mapping[str, Any]) -> Iterator[str]:
    """What the figures do not say of themselves, a sentence a line."""
    trials = sum(stage["trials"] for stage in summary["stages"].values())
    yield f"Validation figures are optimistic: the best of {trials} trials."
    if summary["test_seen_before_selection_ended"]:
        yield "Test was seen before selection ended: the search went on after its figures had been read."
    if "acc_whole" in summary["test"]:
        yield acc_whole_note(summary["label_range"])
    yield from baseline_remarks(summary["baselines"], summary["test"], summary["task"])
    if summary["paper"] and summary["not_comparable"]:
        yield f"Paper: not comparable: {'; '.join(summary['not_comparable'])}."
    elif summary["paper"]:
        yield "Paper: one seed."
    if {"acc2_non0", "acc2_mmsa"} <= summary["paper"].keys():
        yield TWO_READINGS


def metric_lines(summary: Mapping[str, Any], *, width: int | None = None) -> list[str]:
    """The winner's figures on valid and test, beside the baseline's and the paper's."""
    baselines = summary["baselines"]
    header = ["metric", "valid", "test"]
    header += [f"{baseline_kind(baselines[0])}, test"] if baselines else []
    header += ["paper, test"] if summary["paper"] else []
    rows = []
    for name, title in METRIC_TITLES.items():
        if name not in summary["test"]:
            continue
        row = [title, figure(summary["valid"].get(name)), figure(summary["test"][name])]
        row += [figure(baselines[0]["test"].get(name))] if baselines else []
        row += [figure(summary["paper"].get(name))] if summary["paper"] else []
        rows.append(row)
    return table_lines(header, rows, width=width)


def one_line(text: object, room: int = 70) -> str:
    """A text from data as a line has room for it, with escapes for control codes; the record has the whole."""
    plain = printable(str(text)).replace("\n", " ")
    return plain if len(plain) <= room else f"{plain[: room - 3]}..."


def figure(value: float | None) -> str:
    """A metric as tables have it."""
    return "-" if value is None else f"{value:.4f}"


def setting(value: Any) -> str:
    """A parameter as tables have it."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else one_line(value)


def typed(place: StoragePath | Path | str) -> str:
    """A path from here where it lies below, as people would type it."""
    try:
        return str(Path(str(place)).relative_to(Path.cwd()))
    except ValueError:
        return str(place)
