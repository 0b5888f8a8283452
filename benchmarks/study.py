"""Command line and statistics that the studies share. A study is a script; it measures once for a page in docs/."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NoReturn

import typer

from grcf_ray import console
from grcf_ray.bench.setup import Setup, deliver, open_setup
from grcf_ray.tables import Column, Table

PAIRED = (
    Column("difference", "difference", "{:+.4f}"),
    Column("low", "from", "{:+.4f}"),
    Column("high", "to", "{:+.4f}"),
)
"""The columns of `paired_interval`."""


def paired_interval(values: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Return the `difference` of the means, and `low` and `high` of its 95 % t interval, paired by seed."""
    from scipy import stats

    interval = stats.ttest_rel(values, reference).confidence_interval(0.95)
    return {"difference": fmean(values) - fmean(reference), "low": float(interval.low), "high": float(interval.high)}


def deliver_study(name: str, script: str, given: argparse.Namespace, tables: Sequence[Table]) -> None:
    """Print the tables, and write the page in the folder `--out`. given: the options. script: as in `run_study`."""
    with open_setup(given.dataset, given.data, None, given.space, given.set) as setup:
        about = setup.about(f"python benchmarks/{Path(script).name}", given.data)
    deliver(name, about, tables, given.out, as_json=False)


def run_study(name: str, script: str, tables_of: Callable[[Setup], Sequence[Table]]) -> NoReturn:
    """Run a study from the command line.

    name: stem of the files that `--out` writes. script: path of the script, for the recorded command.
    """
    app = console.make_app(f"Measure {name} for docs/performance")

    @app.command()
    def study(
        dataset: str = typer.Option("mosi", metavar="NAME", help="A known data set, or a name for your own"),
        data: Path | None = typer.Option(None, metavar="FILE|DIR", help="Path to the data"),
        space: Path | None = typer.Option(None, metavar="FILE", help="Search space [default: the one for CPUs]"),
        set_: list[str] = typer.Option([], "--set", metavar="PATH=VALUE", help="Change a setting; may be repeated"),
        trials: int = typer.Option(8, metavar="N", min=4, help="Trials of each search in pruning.py"),
        storage: str | None = typer.Option(
            None, metavar="PATH|URI", help="Place of the runs of scale.py [default: a temporary folder]"
        ),
        out: Path | None = typer.Option(None, metavar="DIR", help="Folder for the tables, as Markdown and JSON"),
    ) -> None:
        """Measure, and print the tables. The test split is not read."""
        with open_setup(dataset, data, None, space, set_, trials=trials, storage=storage) as setup:
            tables = tables_of(setup)
        deliver(name, setup.about(f"python benchmarks/{Path(script).name}", data), tables, out, as_json=False)

    console.run(app)
