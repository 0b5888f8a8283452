"""A run as a report of 80 columns: the answer first, then how it came about, what it cost, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any, Literal

from grcf_ray.config import encoder_name
from grcf_ray.console import duration, table_lines
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.ascii_charts import bar, history
from grcf_ray.report.figures.cost import cost_data
from grcf_ray.report.figures.importance import importance_data, importance_warning
from grcf_ray.report.figures.parameters import space_of
from grcf_ray.report.run_status import DIED, RunStatus, budgets, standing_of, time_left
from grcf_ray.report.selection import sorted_by
from grcf_ray.report.terminal import (
    again,
    baseline_lines,
    count_states,
    failure_line,
    figure,
    metric_lines,
    one_line,
    params_lines,
    remarks,
    seeds_lines,
    states_line,
    summarise_view,
    typed,
)
from grcf_ray.report.trials import trial_rows, trials_table
from grcf_ray.report.view import RunView
from grcf_ray.train.curve import DIRECTIONS

WIDTH = 80
_BEST_TRIALS, _PARAMETERS = 5, 6
"""Trials and parameters that a stage's tables show."""
_COMMAND_ROOM = 10_000
"""Letters of a command on record: more than anybody types."""


def text_report(view: RunView) -> str:
    """The report, lines of 80 columns at most; a path or an argument that is longer than a line is left whole.

    A run may be going on, or may have failed: the report says so and has what there is.
    """
    standing, summary = standing_of(view.record, view.run), summarise_view(view)
    sections = [
        _answer(view, standing, summary),
        *(_stage(view, stage) for stage in budgets(view.run)),
        _failures(view, summary),
        _cost(view, summary),
        _next(view, standing, summary),
    ]
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section))) + "\n"


def command_lines(command: str, *, indent: str = "  ") -> list[str]:
    """A command to be copied, over as many lines as it takes; control codes in it are made harmless."""
    plain = one_line(command, _COMMAND_ROOM)
    try:
        words = [shlex.quote(word) for word in shlex.split(plain)]
    except ValueError:
        # With its quotes out of balance it is none that can be divided.
        return [indent + plain]
    lines, line = [], indent
    for word in words:
        if line.strip() and len(line) + len(word) + 3 > WIDTH:
            lines.append(f"{line} \\")
            line = indent * 2
        line += word if not line.strip() else f" {word}"
    return [*lines, line]


def _answer(view: RunView, standing: RunStatus, summary: Mapping[str, Any]) -> Iterator[str]:
    data, encoder = view.run["data"], encoder_name(view.run["settings"])
    low, high = view.label_range
    yield one_line(f"GRCF on {data['name']}: {view.record.place.name}", WIDTH)
    yield one_line(f"{view.task}, labels {low:g} to {high:g}; text encoder {encoder}", WIDTH)
    left = time_left(view) if standing.state == "running" else None
    yield one_line(
        f"State: {standing.state}{'' if left is None else f', about {duration(left)} of the search left'}", WIDTH
    )
    yield ""
    winner = view.winner
    if winner is None:
        yield "There is no winner yet, and no figure on test."
        for stage in budgets(view.run):
            if ranked := view.ranked(stage):
                name = f"stage{stage}/{ranked[0].number}"
                metric = METRIC_TITLES[view.objective(stage)]
                yield f"Best of stage {stage} so far: trial {name}, valid {metric} {figure(ranked[0].objective)}"
        return
    metric = METRIC_TITLES[view.objective(winner.stage)]
    yield f"Winner: trial stage{winner.stage}/{winner.number}, valid {metric} {figure(winner.objective)}"
    if view.metrics is None:
        yield "It has not been measured on test yet."
        return
    yield ""
    yield from metric_lines(summary, width=WIDTH)
    yield ""
    for remark in remarks(summary):
        yield from wrap(one_line(remark, _COMMAND_ROOM), WIDTH, subsequent_indent="  ")
    yield ""
    if summary["seeds"]:
        yield from seeds_lines(summary["seeds"], width=WIDTH)
    else:
        yield "One seed: the gain over the starting point is not known (--seeds N)."
    if summary["against_baseline"]:
        yield ""
        lines = baseline_lines(summary["against_baseline"], METRIC_TITLES[view.objective(2)], width=WIDTH)
        yield from wrap(next(lines), WIDTH)
        yield from lines
    yield ""
    yield from params_lines(view.winner_params, width=WIDTH)


def _stage(view: RunView, stage: Literal[1, 2]) -> Iterator[str]:
    trials = view.trials[stage]
    if not trials:
        return
    budget, epochs = budgets(view.run)[stage]
    metric = METRIC_TITLES[view.objective(stage)]
    states = count_states(trials, standing_of(view.record, view.run))
    yield f"Stage {stage}: {len(trials)} of {budget} trials ({states_line(states)})"
    yield f"of up to {epochs} epochs, {DIRECTIONS[stage]}imise validation {metric}"
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
        yield f"valid {metric} by trial, and the best so far"
        yield from chart
    yield from _importance(view, stage)


def _importance(view: RunView, stage: Literal[1, 2]) -> Iterator[str]:
    data = importance_data(view.trials[stage], stage, space_of(view))
    forest = data["methods"].get("forest")
    if forest is None:
        return
    yield ""
    yield "importance (random forest, trials that ran to the end)"
    rows = [
        (one_line(path, 40), f"{share:.0%}", bar(share, width=20))
        for path, share in list(zip(data["parameters"], forest["mean"], strict=True))[:_PARAMETERS]
    ]
    yield from table_lines(("parameter", "share", ""), rows, width=WIDTH)
    if warning := importance_warning(data):
        yield from wrap(warning, WIDTH)


def _failures(view: RunView, summary: Mapping[str, Any]) -> Iterator[str]:
    failed = [(name, failure) for name, stage in summary["stages"].items() for failure in stage["failures"]]
    if failed:
        yield "Failures"
    for name, failure in failed:
        yield from wrap(f"Stage {name[-1]}, {failure_line(failure)}", WIDTH, subsequent_indent="  ")
        yield from command_lines(again(view.record.place.uri, f"{name}/{failure['trials'][-1]}"))


def _cost(view: RunView, summary: Mapping[str, Any]) -> Iterator[str]:
    cost = summary["cost"]
    if not cost["epochs"]:
        return
    yield from wrap(
        f"Cost: {cost['epochs']} epochs, {cost['utterance_passes']:.1f} passes over the training split, "
        f"{duration(cost['trial_seconds'])} in trials.",
        WIDTH,
    )
    saved = [stage["saved"] for stage in cost_data(view)["stages"] if stage["saved"] is not None]
    epochs, seconds = (sum(stage[unit] for stage in saved) for unit in ("epochs", "seconds"))
    if epochs:
        share = epochs / (epochs + cost["epochs"])
        yield from wrap(
            f"Stopping trials early saved {epochs:g} epochs, {share:.0%} of what all of them in full would have had: "
            f"about {duration(seconds)}.",
            WIDTH,
        )


def _next(view: RunView, standing: RunStatus, summary: Mapping[str, Any]) -> Iterator[str]:
    place = shlex.quote(str(typed(view.record.place.uri)))
    if standing.state == "running":
        yield "Watch it:"
        yield from command_lines(f"python -m grcf_ray.runs watch {place}")
    elif standing.state != "finished":
        gone = "Its search is gone" if standing.state == DIED else "Every finished epoch is kept"
        yield f"{gone}. To go on:"
        yield from command_lines(summary["command"])
    if view.metrics is not None:
        yield "Measure it again:"
        yield from command_lines(f"python -m grcf_ray.evaluate {place}")
    yield "All trials, and as a table:"
    yield from command_lines(f"python -m grcf_ray.runs show {place}")
    yield from command_lines(f"python -m grcf_ray.runs export {place} --to trials.csv")
