"""Command line and statistics that the studies share. A study is a script; it measures once for a page in docs/."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from scipy import stats

from grcf_ray import console
from grcf_ray.bench import options
from grcf_ray.bench.output import deliver
from grcf_ray.bench.setup import Setup, open_setup
from grcf_ray.tables import Column, Table

PAIRED = (
    Column("difference", "difference", "{:+.4f}"),
    Column("low", "from", "{:+.4f}"),
    Column("high", "to", "{:+.4f}"),
)
"""The columns of `paired`."""


def paired(values: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    """Return the difference of the means, and the 95 % interval of a t test paired over the seeds."""
    interval = stats.ttest_rel(values, baseline).confidence_interval(0.95)
    difference = statistics.fmean(values) - statistics.fmean(baseline)
    return {"difference": difference, "low": float(interval.low), "high": float(interval.high)}


def run_study(name: str, script: str, tables_of: Callable[[Setup], Sequence[Table]]) -> NoReturn:
    """Run a study from the command line.

    name: stem of the files that `--out` writes. script: path of the script, for the recorded command.
    """
    app = console.make_app(f"Measure {name} for docs/performance")

    @app.command()
    def study(
        dataset: str = options.DATASET,
        data: Path | None = options.DATA,
        label_range: tuple[float, float] | None = options.LABEL_RANGE,
        space: Path | None = options.SPACE,
        set_: list[str] = options.SET,
        repetitions: int = options.REPETITIONS,
        threads: int = options.THREADS,
        trials: int = options.TRIALS,
        out: Path | None = options.OUT,
        json: bool = options.JSON,
    ) -> None:
        """Measure, and print the tables. The test split is not read."""
        with open_setup(
            dataset, data, label_range, space, set_, repetitions=repetitions, threads=threads, trials=trials
        ) as setup:
            tables = tables_of(setup)
        about = setup.about(["python", f"benchmarks/{Path(script).name}", *options.without_path(sys.argv[1:], data)])
        deliver(name, about, tables, out, as_json=json)

    console.run(app)
