"""python -m grcf_ray.runs: the runs of a place: list them, look into one, compare two, export, watch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import typer

from grcf_ray import console

# Help must be quick: the record's readers, which need torch, are imported by the command.
if TYPE_CHECKING:
    from grcf_ray.report.selection import Row
    from grcf_ray.report.view import RunView

app = console.make_app("List runs, look into one, compare two, export their trials, watch one that is running.")

_RUN = "A run, as the search printed it: a folder or a URI."
_FILTER = "Only rows for which this holds: COLUMN=VALUE, or with != < <= > >=; may be repeated."
_DATABASES = ("sqlite", "mysql", "postgresql", "redis")
"""How the URLs of Optuna's storages begin."""


@app.command("list")
def list_(
    storage: str | None = typer.Option(
        None, metavar="DIR|URI", help="Where the runs are; default $GRCF_RUNS, then ./runs."
    ),
    sort: str = typer.Option("changed", metavar="COLUMN", help="The best, the latest or the smallest comes first."),
    reverse: bool = typer.Option(False, "--reverse", help="The other way round."),
    state: str | None = typer.Option(
        None, metavar="STATE", help="Only runs in this state: running, finished, interrupted, failed, died, broken."
    ),
    filter_: list[str] = typer.Option([], "--filter", metavar="EXPR", help=_FILTER),
    json: bool = typer.Option(False, "--json", help="Print all columns of all rows as JSON."),
) -> None:
    """List runs, with what they came to.

    A run whose search was killed is `died`; the command that began it goes on with it. One whose record cannot be read
    is a line with the reason.

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
    run: str = typer.Argument(..., help=_RUN),
    stage: int | None = typer.Option(None, min=1, max=2, help="Only this stage."),
    trial: str | None = typer.Option(None, metavar="NAME", help="All of one trial, such as stage2/7."),
    sort: str = typer.Option(
        "objective", metavar="COLUMN", help="A column; objective: the best first. --json lists all columns."
    ),
    reverse: bool = typer.Option(False, "--reverse", help="The other way round."),
    filter_: list[str] = typer.Option([], "--filter", metavar="EXPR", help=_FILTER),
    columns: str | None = typer.Option(None, metavar="A,B", help="These columns instead of those that vary and fit."),
    json: bool = typer.Option(False, "--json", help="Print all columns of all rows as JSON."),
) -> None:
    """Show a run's trials, or all of one trial.

    A column may be named by its last part: head_lr for stage2.head_lr. Metrics of a trial's best epoch are best/...

    \b
    Examples:
      python -m grcf_ray.runs show runs/mosi-deberta-v3-base-seed42
      python -m grcf_ray.runs show runs/mosi-deberta-v3-base-seed42 --stage 2 --sort seconds --filter state=pruned
      python -m grcf_ray.runs show runs/mosi-deberta-v3-base-seed42 --columns trial,objective,head_lr,best/valid/corr
      python -m grcf_ray.runs show runs/mosi-deberta-v3-base-seed42 --trial stage2/7
    """
    from grcf_ray.errors import ConfigError
    from grcf_ray.report.trials import named_trial, run_facts, run_lines, shown_trials, trial_facts, trial_lines

    view, width = _opened(run), console.width()
    if trial is not None:
        found = named_trial(view, trial)
        if found is None:
            raise ConfigError(f"--trial {trial}: the run has no such one; they are named stage1/0, stage2/7 and so on")
        if json:
            console.print_json(trial_facts(view, found))
        else:
            console.say("\n".join(trial_lines(view, found, width=width)))
        return
    tables = shown_trials(view, _stages(stage), filters=filter_, sort=sort, reverse=reverse)
    if json:
        console.print_json({**run_facts(view), "trials": [row for rows in tables.values() for row in rows]})
    else:
        console.say("\n".join(run_lines(view, tables, columns=columns, width=width)))


@app.command()
def compare(
    one: str = typer.Argument(..., metavar="A", help=_RUN),
    other: str = typer.Argument(..., metavar="B", help=_RUN),
    json: bool = typer.Option(False, "--json", help="Print the comparison as JSON."),
) -> None:
    """Compare two runs and their winners.

    What differs of data, settings and space; parameters, figures and cost side by side. Where both have --seeds, the
    difference on test has a 95 % interval; with one seed each there is no claim.

    \b
    Examples:
      python -m grcf_ray.runs compare runs/mosi-all-MiniLM-L6-v2-seed42 runs/mosi-deberta-v3-base-seed42
      python -m grcf_ray.runs compare runs/a s3://bucket/runs/b --json
    """
    from grcf_ray.report.comparison import compare_runs, comparison_lines

    found = compare_runs(_opened(one), _opened(other))
    if json:
        console.print_json(found)
    else:
        console.say("\n".join(comparison_lines(found, width=console.width())))


@app.command()
def export(
    run: str = typer.Argument(..., help=_RUN),
    to: str = typer.Option(
        ..., metavar="FILE|URL", help="A file or URI that ends in .csv, .parquet or .json, or an Optuna storage."
    ),
    stage: int | None = typer.Option(None, min=1, max=2, help="Only this stage."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace studies of the same name in Optuna's storage."),
) -> None:
    """Write the trials to a table, or to Optuna.

    To a table a row a trial, to an Optuna storage a study a stage. A table has all parameters, those that Stage 2
    inherits too, and the metrics of each trial's best epoch; a file of that name is replaced. In CSV, texts that a
    spreadsheet would run as formulas have an apostrophe before them.

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
    # Before the run is read, which may take a while.
    check_format(place)
    view = _opened(run)
    rows = [row for number in _stages(stage) for row in trial_rows(view, number)]
    export_rows(rows, place, about=str(view.record))
    console.progress(f"written: {len(rows)} trials to {place}")


@app.command()
def watch(
    run: str = typer.Argument(..., help=_RUN),
    every: float = typer.Option(3.0, metavar="SECONDS", min=0.1, help="Time between two looks at the record."),
    once: bool = typer.Option(False, "--once", help="Look once; so it is where the output is no terminal."),
) -> None:
    """Watch a running search from a second terminal.

    Shown are progress, what is left, running trials and failures. It reads the record and writes nothing. It ends when
    the search ends; Ctrl-C ends it before, and not the search.

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
