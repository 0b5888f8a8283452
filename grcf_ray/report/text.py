"""The report as text of 80 columns: result, stages, failures, cost and the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from textwrap import wrap
from typing import Literal

from grcf_ray.config import encoder_name
from grcf_ray.console import duration, table_lines
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.plugins import model_title
from grcf_ray.report.ascii_charts import bar, history
from grcf_ray.report.figures.cost import cost_data
from grcf_ray.report.figures.importance import importance_data, importance_warning
from grcf_ray.report.run_status import time_left
from grcf_ray.report.selection import sorted_by
from grcf_ray.report.summary import ONE_SEED, RunSummary
from grcf_ray.report.terminal import (
    COMMAND_ROOM,
    SILENT,
    again,
    baseline_lines,
    cost_line,
    failure_line,
    figure,
    metric_lines,
    one_line,
    params_lines,
    seeds_lines,
    states_line,
    typed,
)
from grcf_ray.report.trials import trial_rows, trials_table
from grcf_ray.report.view import DIED, RunView
from grcf_ray.search.record import TrialRecord
from grcf_ray.train.curve import DIRECTIONS

WIDTH = 80
_BEST_TRIALS, _PARAMETERS = 5, 6
"""Rows of a stage's tables."""


def text_report(view: RunView) -> str:
    """Return the report of a run in any state, in lines of 80 columns; longer paths and arguments are not broken."""
    summary = RunSummary.of(view)
    sections = [
        _answer(view, summary),
        *(_stage(view, stage, summary) for stage in view.budgets),
        _failures(view, summary),
        _cost(view, summary),
        _next(view, summary),
    ]
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section))) + "\n"


def command_lines(command: str) -> list[str]:
    """Return a command to copy, broken into lines, control codes escaped."""
    plain = one_line(command, COMMAND_ROOM)
    try:
        words = [shlex.quote(word) for word in shlex.split(plain)]
    except ValueError:
        # A command with unbalanced quotes cannot be divided into words.
        return [f"  {plain}"]
    lines, line = [], "  "
    for word in words:
        if line.strip() and len(line) + len(word) + 3 > WIDTH:
            lines.append(f"{line} \\")
            line = "    "
        line += word if not line.strip() else f" {word}"
    return [*lines, line]


def _answer(view: RunView, summary: RunSummary) -> Iterator[str]:
    (low, high), encoder, left = view.label_range, encoder_name(view.info.settings), time_left(view)
    model = model_title(view.info.settings["model.name"])
    yield one_line(f"{model} on {view.info.data.name}: {view.record.place.name}", WIDTH)
    yield one_line(f"{view.task}, labels {low:g} to {high:g}; text encoder {encoder}", WIDTH)
    yield one_line(
        f"State: {view.state}{'' if left is None else f', about {duration(left)} of the search left'}", WIDTH
    )
    yield ""
    winner = view.winner
    if winner is None:
        yield "No winner yet; the test split has not been read."
        for stage in view.budgets:
            if ranked := view.ranked(stage):
                yield f"Best of stage {stage} so far: {_scored(view, ranked[0])}"
        return
    yield f"Winner: {_scored(view, winner)}"
    if view.metrics is None:
        yield "The winner has not been measured on test yet."
        return
    yield ""
    yield from metric_lines(summary.metric_columns(), summary.test, width=WIDTH)
    yield ""
    for remark in summary.remarks():
        yield from wrap(one_line(remark, COMMAND_ROOM), WIDTH, subsequent_indent="  ")
    yield ""
    if summary.seeds:
        yield from seeds_lines(summary.seeds, summary.objective, width=WIDTH)
    else:
        yield ONE_SEED
    if summary.against_baseline:
        yield ""
        lines = baseline_lines(summary.against_baseline, METRIC_TITLES[summary.objective], width=WIDTH)
        yield from wrap(next(lines), WIDTH)
        yield from lines
    yield ""
    yield from params_lines(view.winner_params, width=WIDTH)


def _scored(view: RunView, trial: TrialRecord) -> str:
    return f"trial {trial.name}, valid {METRIC_TITLES[view.objective(trial.stage)]} {figure(trial.objective)}"


def _stage(view: RunView, stage: Literal[1, 2], summary: RunSummary) -> Iterator[str]:
    trials = view.trials[stage]
    if not trials:
        return
    budget, epochs = view.budgets[stage]
    metric = METRIC_TITLES[view.objective(stage)]
    states = states_line(summary.stages[f"stage{stage}"].states)
    yield f"Stage {stage}: {len(trials)} of {budget} trials ({states})"
    yield f"Each trial trains up to {epochs} epochs to {DIRECTIONS[stage]}imise validation {metric}"
    yield ""
    rows = [row for row in trial_rows(view, stage) if row["objective"] is not None]
    best = sorted_by(rows, "objective", reverse=DIRECTIONS[stage] == "max")[:_BEST_TRIALS]
    if not best:
        yield "No trial has a usable result."
        return
    searched = list(dict.fromkeys(path for trial in trials for path in trial.params))
    lines, _ = trials_table(best, searched, width=WIDTH)
    yield from lines
    chart = history([trial.objective for trial in trials], DIRECTIONS[stage], width=WIDTH)
    if chart:
        yield ""
        yield f"valid {metric} by trial, with the best so far"
        yield from chart
    yield from _importance(view, stage)


def _importance(view: RunView, stage: Literal[1, 2]) -> Iterator[str]:
    data = importance_data(view.trials[stage], stage, view.space)
    forest = data["methods"].get("forest")
    if forest is None:
        return
    yield ""
    yield "importance (random forest, complete trials)"
    rows = [
        (one_line(path, 40), f"{share:.0%}", bar(share, width=20))
        for path, share in list(zip(data["parameters"], forest["mean"], strict=True))[:_PARAMETERS]
    ]
    yield from table_lines(("parameter", "share", ""), rows, width=WIDTH)
    if warning := importance_warning(data):
        yield from wrap(warning, WIDTH)


def _failures(view: RunView, summary: RunSummary) -> Iterator[str]:
    failed = [(name, failure) for name, stage in summary.stages.items() for failure in stage.failures]
    if failed:
        yield "Failures"
    for name, failure in failed:
        yield from wrap(f"Stage {name[-1]}, {failure_line(failure)}", WIDTH, subsequent_indent="  ")
        yield from command_lines(again(view.record.place.uri, f"{name}/{failure.trials[-1]}"))


def _cost(view: RunView, summary: RunSummary) -> Iterator[str]:
    spent = summary.cost.epochs
    if not spent:
        return
    yield from wrap(f"{cost_line(summary)}.", WIDTH)
    stages = cost_data(view)["stages"]
    epochs, seconds = (sum(stage["saved"][unit] for stage in stages) for unit in ("epochs", "seconds"))
    if epochs:
        yield from wrap(
            f"Early stopping saved {epochs:g} epochs ({epochs / (epochs + spent):.0%} of the cost of full trials): "
            f"about {duration(seconds)}.",
            WIDTH,
        )


def _next(view: RunView, summary: RunSummary) -> Iterator[str]:
    place = shlex.quote(str(typed(view.record.place.uri)))
    if view.state == "running":
        yield "Watch the search:"
        yield from command_lines(f"python -m grcf_ray.runs watch {place}")
    elif view.state != "finished":
        yield f"{SILENT if view.state == DIED else 'Every finished epoch is kept'}. To resume:"
        yield from command_lines(summary.command)
    if view.metrics is not None:
        yield "Measure the model again:"
        yield from command_lines(f"python -m grcf_ray.evaluate {place}")
    yield "List all trials, or export them as a table:"
    yield from command_lines(f"python -m grcf_ray.runs show {place}")
    yield from command_lines(f"python -m grcf_ray.runs export {place} --to trials.csv")
