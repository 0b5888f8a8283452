"""List the runs of a folder or a URI, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from grcf_ray.config import ModelConfig, encoder_name
from grcf_ray.console import duration
from grcf_ray.errors import GrcfError
from grcf_ray.metrics import METRIC_DIRECTIONS, METRIC_TITLES
from grcf_ray.report.run_status import last_change
from grcf_ray.report.selection import Row, column_named, columns_of, sorted_by
from grcf_ray.report.summary import Cost
from grcf_ray.report.terminal import figure, fitted_table, one_line
from grcf_ray.report.view import RunView
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import StoragePath

BROKEN = "broken"
"""State of a run whose record cannot be read."""
_READERS = 8
"""Runs that are read at the same time."""
_HEADLINES = ("mae", "bce", "corr", "acc2_non0", "acc2")
"""Test metrics of the list, most important first."""
_NAME_ROOM = 40


def list_runs(runs: StoragePath) -> list[dict[str, Any]]:
    """Return a row for each run, by name.

    `state` is `died` if the record says running and no search holds the run, and `broken` if the record cannot be read;
    then `why` has the reason, and most columns are missing. `objective` is the validation `metric` of the winner, or of
    the best trial so far. Columns `test/...` exist once test has been read.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        rows = pool.map(lambda name: _row(RunRecord(runs / name)), runs.names())
        return [row for row in rows if row is not None]


def sorted_runs(rows: Sequence[Row], column: str, *, reverse: bool = False) -> list[Row]:
    """Return the rows sorted by a column: best metric, latest time, else smallest value first."""
    # Broken runs lack most columns: they come last, and a list of broken runs alone accepts any column.
    if not any(row["state"] != BROKEN for row in rows):
        return list(rows)
    name = column_named(column, columns_of(rows))
    metric = name.rpartition("/")[2] if name.startswith("test/") else None
    if name == "objective":
        metrics = {row.get("metric") for row in rows} - {None}
        metric = metrics.pop() if len(metrics) == 1 else None
    falling = METRIC_DIRECTIONS.get(metric or "") == "max" or name in ("changed", "started")
    return sorted_by(rows, name, reverse=falling != reverse)


def catalogue_lines(rows: Sequence[Row], *, width: int) -> list[str]:
    """Return a table of at most `width` columns without the least important columns that do not fit.

    Each broken run follows on a line with the reason.
    """
    whole = [row for row in rows if row["state"] != BROKEN]
    broken = [f"{one_line(row['run'], _NAME_ROOM)}: {row['why']}" for row in rows if row["state"] == BROKEN]
    lines: list[str] = []
    if whole:
        columns: dict[str, list[str]] = {
            "run": [one_line(row["run"], _NAME_ROOM) for row in whole],
            "state": [f"{row['state']}?" if row["alive"] is None else one_line(row["state"], 12) for row in whole],
            "stage 1, 2": [f"{_progress(row, 1)} {_progress(row, 2)}" for row in whole],
            "best valid": [_best(row) for row in whole],
        }
        for name in _HEADLINES:
            if any(row.get(f"test/{name}") is not None for row in whole):
                columns[f"test {METRIC_TITLES[name]}"] = [figure(row.get(f"test/{name}")) for row in whole]
        columns["cost"] = [duration(row["seconds"]) for row in whole]
        columns["changed"] = [_time(row["changed"]) for row in whole]
        columns["data"] = [one_line(row["dataset"], 16) for row in whole]
        if any(row["model"] != ModelConfig.name for row in whole):
            columns["model"] = [row["model"] for row in whole]
        columns["backbone"] = [one_line(row["backbone"], 24) for row in whole]
        important = ("run", "state", "model", "best valid", "test MAE", "test BCE", "cost", "stage 1, 2", "changed")
        titled = {name: [name, *cells] for name, cells in columns.items()}
        lines, _ = fitted_table(titled, width=width, kept=("run", "state"), important=important)
        if any(row["alive"] is None for row in whole):
            lines.append(
                "running?: one reading of object storage cannot tell a running search from a dead one; runs watch can"
            )
    return [*lines, *(one_line(line, width) for line in broken)]


def _row(record: RunRecord) -> dict[str, Any] | None:
    """Return None if there is no run."""
    try:
        if not record.exists:
            return None
        return _sound_row(RunView.read(record))
    # People copy, move and edit runs: a fault in one must not hide the others.
    except (GrcfError, OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        why = str(error) if isinstance(error, (GrcfError, OSError)) else f"{type(error).__name__}: {error}"
        return {"run": record.place.name, "state": BROKEN, "alive": False, "why": one_line(why, 1000)}


def _sound_row(view: RunView) -> dict[str, Any]:
    info, cost = view.info, Cost.of(view.all_trials)
    best = view.winner or next(iter([*view.ranked(2), *view.ranked(1)]), None)
    row: dict[str, Any] = {
        "run": view.record.place.name,
        "state": view.state,
        "alive": view.alive,
        "dataset": info.data.name,
        "task": view.task,
        "model": info.settings["model.name"],
        "backbone": encoder_name(info.settings),
        "seed": info.settings["seed"],
    }
    for stage in (1, 2):
        ran = stage in view.budgets
        row[f"stage{stage}_done"] = sum(trial.finished for trial in view.trials[stage]) if ran else None
        row[f"stage{stage}_budget"] = view.budgets[stage][0] if ran else None
    return row | {
        "best": best and best.name,
        "metric": best and view.objective(best.stage),
        "objective": best and best.objective,
        **{f"test/{name}": value for name, value in (view.metrics or {}).get("test", {}).items()},
        "seconds": cost.trial_seconds,
        "epochs": cost.epochs,
        "utterance_passes": cost.utterance_passes,
        "started": info.starts[0].time,
        "changed": last_change(view),
        "why": None,
    }


def _progress(row: Row, stage: int) -> str:
    done, budget = row[f"stage{stage}_done"], row[f"stage{stage}_budget"]
    return "-" if budget is None else f"{done}/{budget}"


def _best(row: Row) -> str:
    return "-" if row["objective"] is None else f"{figure(row['objective'])} {METRIC_TITLES[row['metric']]}"


def _time(text: str) -> str:
    """Return a time of the record in local time."""
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M}" if text else "-"
