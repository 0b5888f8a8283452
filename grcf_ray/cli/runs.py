"""Command `runs`: list runs, show one, compare two, export trials, watch a running search."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from grcf_ray import console
from grcf_ray.cli import options

# `--help` must be quick, so the readers of run records, which import torch, are imported by each command.
if TYPE_CHECKING:
    from grcf_ray.report.selection import Row
    from grcf_ray.report.view import RunView

app = console.make_app("List, show, compare, export and watch runs")

_Filters = Annotated[
    list[str],
    typer.Option(
        "--filter", metavar="EXPR", help="Keep rows where COLUMN=VALUE, also with != < <= > >=; may be repeated"
    ),
]
_Reverse = Annotated[bool, typer.Option("--reverse", help="Reverse the order")]
_Stage = Annotated[int | None, typer.Option(min=1, max=2, help="Stage to include [default: both]")]
_AllJson = Annotated[bool, typer.Option("--json", help="Print all columns of all rows as JSON")]
_DATABASES = ("sqlite", "mysql", "postgresql", "redis")
"""Schemes of the URLs of Optuna's storages."""


@app.command("list")
def list_(
    storage: str | None = typer.Option(
        None, metavar="DIR|URI", help="Folder or URI of the runs [default: $GRCF_RUNS, then ./runs]"
    ),
    sort: str = typer.Option(
        "changed",
        metavar="COLUMN",
        help="Column to sort by; metrics best first, dates latest first, numbers smallest first",
    ),
    reverse: _Reverse = False,
    state: str | None = typer.Option(
        None,
        metavar="STATE",
        help="Keep runs in this state: running, finished, interrupted, time is up, unfinished, failed, died, broken",
    ),
    filter_: _Filters = [],  # noqa: B006
    json: _AllJson = False,
) -> None:
    """List runs with their state, metrics and cost.

    The state `died` marks a run whose search was killed; run its command again to resume it. A run whose record cannot
    be read is listed with the reason.

    \b
    Examples:
      python -m grcf_ray.runs list
      python -m grcf_ray.runs list --sort mae --filter dataset=mosi
      python -m grcf_ray.runs list --state finished --filter 'mae<0.8'
      python -m grcf_ray.runs list --storage s3://bucket/runs --json
    """
    from grcf_ray.report.run_list import catalogue_lines, list_runs, sorted_runs
    from grcf_ray.report.selection import select
    from grcf_ray.search.run_lookup import runs_place

    place = runs_place(storage)
    rows: list[Row] = list(list_runs(place))
    if not rows:
        console.progress(f"{place} holds no runs")
    rows = sorted_runs(select(rows, [*filter_, *([f"state={state}"] if state else [])]), sort, reverse=reverse)
    if json:
        console.print_json(rows)
    elif rows:
        console.say("\n".join(catalogue_lines(rows, width=console.width())))


@app.command()
def show(
    run: options.Run,
    stage: _Stage = None,
    trial: str | None = typer.Option(None, metavar="NAME", help="Trial to show in full, such as stage2/7"),
    sort: str = typer.Option(
        "objective", metavar="COLUMN", help="Column to sort by; objective puts the best trial first"
    ),
    reverse: _Reverse = False,
    filter_: _Filters = [],  # noqa: B006
    columns: str | None = typer.Option(
        None, metavar="A,B", help="Columns to show [default: the varying columns that fit; --json prints all]"
    ),
    json: _AllJson = False,
) -> None:
    """Show a run's trials, or one trial in full.

    The last part of a column's name is enough: head_lr for stage2.head_lr. Columns named best/... hold the metrics of
    a trial's best epoch.

    \b
    Examples:
      python -m grcf_ray.runs show runs/mosi-deberta-v3-base-seed42
      python -m grcf_ray.runs show runs/mosi-deberta-v3-base-seed42 --stage 2 --sort seconds --filter state=pruned
      python -m grcf_ray.runs show runs/mosi-deberta-v3-base-seed42 --columns trial,objective,head_lr,best/valid/corr
      python -m grcf_ray.runs show runs/mosi-deberta-v3-base-seed42 --trial stage2/7
    """
    from grcf_ray.errors import ConfigError
    from grcf_ray.report.trials import run_facts, run_lines, shown_trials, trial_facts, trial_lines

    view, width = _opened(run), console.width()
    if trial is not None:
        shown = view.named_trial(trial)
        if shown is None:
            raise ConfigError(
                f"--trial {trial}: the run has no such trial. Names are stage1/0, stage2/7 and so on; list them: "
                f"python -m grcf_ray.runs show {shlex.quote(run)}"
            )
        if json:
            console.print_json(trial_facts(view, shown))
        else:
            console.say("\n".join(trial_lines(view, shown, width=width)))
        return
    tables = shown_trials(view, _stages(stage), filters=filter_, sort=sort, reverse=reverse)
    if json:
        console.print_json({**run_facts(view), "trials": [row for rows in tables.values() for row in rows]})
    else:
        console.say("\n".join(run_lines(view, tables, columns=columns, width=width)))


@app.command()
def compare(
    first: str = typer.Argument(..., metavar="A", help="Path or URI of a run"),
    second: str = typer.Argument(..., metavar="B", help="Path or URI of another run"),
    json: options.Json = False,
) -> None:
    """Compare two runs and their winners.

    The comparison shows which data, settings and spaces differ, and puts parameters, metrics and cost side by side. If
    both runs have --seeds, the difference on test has a 95 % interval. One seed each supports no claim.

    \b
    Examples:
      python -m grcf_ray.runs compare runs/mosi-all-MiniLM-L6-v2-seed42 runs/mosi-deberta-v3-base-seed42
      python -m grcf_ray.runs compare runs/a s3://bucket/runs/b --json
    """
    from grcf_ray.report.comparison import compare_runs, comparison_lines

    comparison = compare_runs(_opened(first), _opened(second))
    if json:
        console.print_json(comparison)
    else:
        console.say("\n".join(comparison_lines(comparison, width=console.width())))


@app.command()
def export(
    run: options.Run,
    to: str = typer.Option(
        ..., metavar="FILE|URL", help="File or URI that ends in .csv, .parquet or .json, or an Optuna storage URL"
    ),
    stage: _Stage = None,
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace studies of the same name in the Optuna storage"),
) -> None:
    """Export a run's trials to a table or to an Optuna storage.

    A table has one row per trial: all parameters, including those that Stage 2 inherits, and the metrics of the trial's
    best epoch. An existing file is replaced. In CSV, an apostrophe is put before texts that a spreadsheet would run as
    formulas. An Optuna storage gets one study per stage.

    \b
    Examples:
      python -m grcf_ray.runs export runs/mosi-deberta-v3-base-seed42 --to trials.csv
      python -m grcf_ray.runs export runs/mosi-deberta-v3-base-seed42 --to stage2.parquet --stage 2
      python -m grcf_ray.runs export runs/mosi-deberta-v3-base-seed42 --to sqlite:///trials.db
      optuna-dashboard sqlite:///trials.db
    """
    from grcf_ray.report.export import check_format, export_rows
    from grcf_ray.report.trials import trial_rows
    from grcf_ray.storage import storage_path

    scheme, colon, _ = to.partition("://")
    if colon and scheme.partition("+")[0] in _DATABASES:
        from grcf_ray.report.optuna_export import export_studies

        names = export_studies(_opened(run), to, stages=_stages(stage), overwrite=overwrite)
        console.progress(f"written: the studies {' and '.join(names)}")
        return
    place = storage_path(to, check=True)
    # Reading the run may take a while, so the format is checked first.
    check_format(place)
    view = _opened(run)
    rows = [row for number in _stages(stage) for row in trial_rows(view, number)]
    export_rows(rows, place, about=str(view.record))
    console.progress(f"written: {len(rows)} trials to {place}")


@app.command()
def watch(
    run: options.Run,
    every: float = typer.Option(3.0, metavar="SECONDS", min=0.1, help="Seconds between two readings of the record"),
    once: bool = typer.Option(
        False, "--once", help="Print one snapshot and exit (default when output is not a terminal)"
    ),
) -> None:
    """Watch a running search from a second terminal.

    The display shows progress, time left, running trials and failures. It only reads the record. It ends with the
    search; Ctrl-C ends the display, not the search.

    \b
    Examples:
      python -m grcf_ray.runs watch runs/mosi-deberta-v3-base-seed42
      python -m grcf_ray.runs watch s3://bucket/runs/mosi-deberta-v3-base-seed42 --every 10
      python -m grcf_ray.runs watch runs/mosi-deberta-v3-base-seed42 --once
    """
    from grcf_ray.report.watching import watch as watch_run
    from grcf_ray.search.record import RunRecord
    from grcf_ray.storage import storage_path

    watch_run(RunRecord(storage_path(run, check=True)), every=every, once=once)


def _opened(run: str) -> RunView:
    from grcf_ray.report.view import RunView
    from grcf_ray.search.record import RunRecord
    from grcf_ray.storage import storage_path

    return RunView.read(RunRecord(storage_path(run, check=True)))


def _stages(stage: int | None) -> tuple[Literal[1, 2], ...]:
    return (1,) if stage == 1 else (2,) if stage == 2 else (1, 2)
