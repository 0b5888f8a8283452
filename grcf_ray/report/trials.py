"""A run's trials as rows of tables and exports, and the details of one trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any, Literal

from grcf_ray.config import encoder_name
from grcf_ray.console import duration, table_lines
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.selection import Row, column_named, columns_of, select, sorted_by
from grcf_ray.report.terminal import COMMAND_ROOM, again, figure, fitted_table, one_line, setting
from grcf_ray.report.view import RunView
from grcf_ray.search.record import TrialRecord
from grcf_ray.train.curve import DIRECTIONS

_LEADING = ("number", "state", "objective", "epochs", "seconds")
_ROOM = 24
"""Columns of the widest cell of a table."""


def trial_rows(view: RunView, stage: Literal[1, 2]) -> list[dict[str, Any]]:
    """Return a row for each trial of a stage, by number: state, objective, cost, parameters and best metrics.

    Parameters, inherited ones included, are under their paths; metrics of the best epoch are under `best/NAME`.
    """
    rows = []
    for trial in view.trials[stage]:
        params = view.params(trial)
        finalist = params.pop("finalist", None)
        rows.append(
            {
                "trial": trial.name,
                "stage": stage,
                "number": trial.number,
                "state": view.state_of(trial),
                "metric": view.objective(stage),
                "objective": trial.objective,
                "epochs": trial.epoch,
                "seconds": trial.seconds,
                "utterance_passes": trial.utterance_passes,
                "attempt": trial.attempt,
                "seed": trial.seed,
                "started": trial.started or None,
                "ended": trial.ended,
                "cause": trial.cause,
                "error": trial.error,
                "breaks": len(trial.failures),
                "checkpoint": trial.checkpoint,
                "finalist": None if finalist is None else int(finalist),
                **params,
                **{f"best/{name}": value for name, value in (trial.best or {}).items()},
            }
        )
    return rows


def trials_table(
    rows: Sequence[Row], params: Sequence[str], *, width: int, columns: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """Return the lines of a table of at most `width` columns, and the parameters that do not fit.

    params: columns of parameters; those that vary are shown, as many as fit. columns: show exactly these instead.
    """
    if columns is None:
        varying = [name for name in params if len({str(row.get(name)) for row in rows}) > 1]
        leading = [*_LEADING, *(["cause"] if any(row.get("cause") for row in rows) else [])]
        names = leading + varying
    else:
        names, leading = list(columns), list(columns)
    shown = _short_names(names)
    cells = {name: [shown[name], *(_cell(name, row.get(name)) for row in rows)] for name in names}
    # Columns that the user named are folded, never omitted.
    return fitted_table(cells, width=width, kept=leading)


def shown_trials(
    view: RunView, stages: Sequence[Literal[1, 2]], *, filters: Sequence[str], sort: str, reverse: bool
) -> dict[Literal[1, 2], list[Row]]:
    """Return the rows of each stage that match every filter, sorted by a column; sorted by objective, best first.

    ConfigError for a column that no stage has.
    """
    rows: list[Row] = [row for stage in stages for row in trial_rows(view, stage)]
    column = column_named(sort, columns_of(rows)) if rows else sort
    chosen, shown = select(rows, filters), {}
    for stage in stages:
        falling = column == "objective" and DIRECTIONS[stage] == "max"
        in_stage = [row for row in chosen if row["stage"] == stage]
        shown[stage] = sorted_by(in_stage, column, reverse=falling != reverse)
    return shown


def run_facts(view: RunView) -> dict[str, Any]:
    """Return the facts of a run as JSON values."""
    info = view.info
    return {
        "run": str(view.record),
        "state": view.state,
        "dataset": info.data.name,
        "backbone": info.settings["model.backbone"] if encoder_name(info.settings) != "none" else None,
        "winner": info.winner,
        "command": info.starts[-1].command,
    }


def run_lines(
    view: RunView, tables: Mapping[Literal[1, 2], Sequence[Row]], *, columns: str | None, width: int
) -> Iterator[str]:
    """Yield a run and the trials of its stages as lines of a terminal. tables: the rows of each stage to show."""
    facts = run_facts(view)
    yield one_line(f"{view.record.place.name}: {facts['state']}", width)
    yield one_line(f"data {facts['dataset']}, backbone {encoder_name(view.info.settings)}", width)
    if facts["winner"]:
        yield one_line(f"winner {facts['winner']}", width)
    every = columns_of(row for rows in tables.values() for row in rows)
    chosen = None if columns is None else [column_named(name.strip(), every) for name in columns.split(",")]
    left_out: dict[str, None] = {}
    for stage, rows in tables.items():
        total = len(view.trials[stage])
        if not total:
            continue
        yield ""
        yield f"Stage {stage}, valid {METRIC_TITLES[view.objective(stage)]}: {len(rows)} of {total} trials"
        if rows:
            searched = list(dict.fromkeys(path for trial in view.trials[stage] for path in trial.params))
            lines, unseen = trials_table(rows, searched, width=width, columns=chosen)
            yield from lines
            left_out |= dict.fromkeys(unseen)
    if left_out:
        yield ""
        yield from wrap(f"No room for {', '.join(left_out)}. Show them with --columns A,B.", width)


def trial_facts(view: RunView, trial: TrialRecord) -> dict[str, Any]:
    """Return the details of a trial as JSON values, with inherited parameters and the command that repeats it."""
    return {
        "trial": trial.name,
        **{key: value for key, value in vars(trial).items() if key not in ("stage", "schema_version")},
        "state": view.state_of(trial),
        "metric": view.objective(trial.stage),
        "objective": trial.objective,
        "best": trial.best,
        "inherited": {path: value for path, value in view.params(trial).items() if path not in trial.params},
        "command": again(view.record.place.uri, trial.name),
    }


def trial_lines(view: RunView, trial: TrialRecord, *, width: int) -> list[str]:
    """Return the details of a trial as lines of a terminal."""
    facts = trial_facts(view, trial)
    metric = METRIC_TITLES[facts["metric"]]
    best = "" if trial.best is None else f" at epoch {trial.best['epoch']}"
    lines = [
        f"Trial {facts['trial']}: {facts['state']}, valid {metric} {figure(trial.objective)}{best}",
        f"Started {trial.started or '-'}, ended {trial.ended or '-'}",
        f"Attempt {trial.attempt}, seed {trial.seed}; {trial.epoch} epochs, {duration(trial.seconds)}, "
        f"{trial.utterance_passes:.1f} passes over train",
        "",
        *table_lines(
            ("parameter", "value", "from"),
            [
                *((path, setting(value), f"stage {trial.stage}") for path, value in trial.params.items()),
                *((path, setting(value), "its finalist") for path, value in facts["inherited"].items()),
            ],
            width=width,
        ),
    ]
    if trial.curve:
        lines += ["", *_curve(trial, facts["metric"], width)]
    if failures := [*trial.failures] or ([{"cause": trial.cause, "error": trial.error}] if trial.error else []):
        lines.append("")
        for failure in failures:
            when = f"attempt {failure['attempt']}, {failure['time']}: " if "attempt" in failure else ""
            lines.append(one_line(f"{when}{failure['cause']}: {failure['error']}", width))
    lines += ["", *(f"Note: {one_line(note, width - 6)}" for note in trial.notes)] if trial.notes else []
    lines += ["", f"Checkpoint: {trial.checkpoint or 'none kept'}", f"Again: {facts['command']}"]
    return [one_line(line, COMMAND_ROOM) for line in lines]


def _curve(trial: TrialRecord, metric: str, width: int) -> list[str]:
    """Return a table of epochs: the objective, the loss, then as many validation metrics as fit."""
    wanted = ["loss/total", "seconds", *(f"valid/{name}" for name in METRIC_TITLES if name != metric)]
    best, known = trial.best, {name for metrics in trial.curve for name in metrics}
    columns = {"epoch": ["epoch", *(f"{m['epoch']}{'*' if m is best else ''}" for m in trial.curve)]}
    for name in [f"valid/{metric}", *(name for name in wanted if name in known)]:
        columns[name] = [name, *(figure(metrics.get(name)) for metrics in trial.curve)]
    return fitted_table(columns, width=width, kept=("epoch", f"valid/{metric}"))[0]


def _cell(name: str, value: Any) -> str:
    if name == "seconds" and value is not None:
        return duration(value)
    if name == "objective" or name.startswith("best/valid/"):
        return figure(value)
    return one_line(setting(value), _ROOM)


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the last part of each path, or the whole path if several end alike."""
    last = [name.rpartition(".")[2] for name in names]
    return {name: part if last.count(part) == 1 else name for name, part in zip(names, last, strict=True)}
