"""Text for a terminal: the result of a search, and the formats that every report in a terminal shares."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from rich.cells import cell_len

from grcf_ray.console import duration, printable, say, table_lines
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.summary import AgainstBaseline, Comparison, FailureGroup, Retrainings, RunSummary
from grcf_ray.search.direct_baseline import INHERITED
from grcf_ray.storage import StoragePath

COMMAND_ROOM = 10_000
"""Characters of a line with a recorded path or command: more than anybody types."""
SILENT = "The search stopped without reporting an error"
_GAP = 2
"""Spaces between columns."""
_FEW_TRIALS = 10
"""Trials of a cause that are listed."""


def print_result(summary: RunSummary) -> None:
    """Print the result of a search that has a winner."""
    for line in _result_lines(summary):
        say(line)


def _result_lines(summary: RunSummary) -> Iterator[str]:
    for name, stage in summary.stages.items():
        yield f"\nStage {name[-1]}: {stage.trials} trials ({states_line(stage.states)})"
        if stage.best:
            rows = [(str(best.trial), figure(best.objective)) for best in stage.best]
            yield from table_lines(("trial", f"valid {METRIC_TITLES[stage.best[0].metric]}"), rows)
        for failure in stage.failures:
            yield failure_line(failure)
            yield f"  again: {again(summary.uri, f'{name}/{failure.trials[-1]}')}"
    assert summary.winner is not None
    yield f"\nWinner: trial {summary.winner.trial}"
    yield from params_lines(summary.winner.params)
    yield ""
    yield from metric_lines(summary.metric_columns(), summary.test)
    if summary.seeds:
        yield ""
        yield from seeds_lines(summary.seeds, summary.objective)
    if summary.against_baseline:
        yield ""
        yield from baseline_lines(summary.against_baseline, METRIC_TITLES[summary.objective])
    yield ""
    yield from summary.remarks()
    yield cost_line(summary)
    if summary.state == "time is up":
        yield f"The time was up before every trial had ended. To resume: {summary.command}"
    elif summary.left:
        yield f"To run the unfinished trials: {summary.command}"
    place = typed(summary.run)
    records = ", ".join(f"{place}/{stage}/trials.jsonl" for stage in summary.stages)
    yield f"\nModel:  {place}/best\nRecord: {records}"
    if summary.report:
        yield f"Report: {typed(summary.report)}"
    yield f"Next:   python -m grcf_ray.evaluate {shlex.quote(typed(summary.uri))}"
    yield f"        tensorboard --logdir {shlex.quote(f'{place}/tensorboard')}"


def states_line(states: Mapping[str, int]) -> str:
    """Return the number of trials by state as text: 3 complete, 11 pruned."""
    return ", ".join(f"{count} {state}" for state, count in states.items())


def params_lines(params: Mapping[str, Any], *, width: int | None = None) -> list[str]:
    """Return a table of parameters. width, here and below: as in `console.table_lines`."""
    return table_lines(("parameter", "value"), [(path, setting(value)) for path, value in params.items()], width=width)


def fitted_table(
    columns: Mapping[str, Sequence[str]], *, width: int, kept: Collection[str], important: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """Return the lines of a table of the columns that fit into `width`, and the names of the other columns.

    columns: title and cells of each column, by name. kept: columns that are never omitted. important: columns that are
    preferred to those before them.
    """
    chosen, used = set(), -_GAP
    for name in dict.fromkeys([*(name for name in important if name in columns), *columns]):
        needed = _GAP + max(map(cell_len, columns[name]))
        if name in kept or used + needed <= width:
            chosen.add(name)
            used += needed
    header, *rows = zip(*(cells for name, cells in columns.items() if name in chosen), strict=True)
    return table_lines(header, rows, width=width), [name for name in columns if name not in chosen]


def again(run: str, trial: str) -> str:
    """Return the command that repeats a recorded trial."""
    return f"python -m grcf_ray.train --from {shlex.quote(str(typed(run)))} --trial {trial}"


def failure_line(failure: FailureGroup) -> str:
    """Return a cause with its trials and their last error."""
    return f"{failure.cause}: trial {listed_trials(failure.trials)}: {one_line(failure.error)}"


def listed_trials(numbers: list[int]) -> str:
    """Return trial numbers as text, the first ten by number."""
    more = f" and {len(numbers) - _FEW_TRIALS} more" if len(numbers) > _FEW_TRIALS else ""
    return ", ".join(map(str, numbers[:_FEW_TRIALS])) + more


def seeds_lines(seeds: Retrainings, objective: str, *, width: int | None = None) -> Iterator[str]:
    """Yield mean and deviation of the retrained winner and starting point on test, their gain, and what to deliver.

    objective: the metric that chooses the best model.
    """
    yield f"Retrained under {seeds.seeds} fresh seeds, on test (mean ± standard deviation):"
    yield from comparison_lines(seeds.comparison(), width=width)
    if rows := seeds.model_rows(objective):
        title = METRIC_TITLES[objective]
        header = (f"from {seeds.seeds} seeds", f"valid {title}", f"test {title}")
        yield ""
        yield from table_lines(header, [(name, figure(valid), figure(test)) for name, valid, test in rows], width=width)
    if seeds.warning:
        yield seeds.warning


def baseline_lines(against: AgainstBaseline, loss: str, *, width: int | None = None) -> Iterator[str]:
    """Yield the winners of the two-stage and the one-stage search under the same seeds. loss: the baseline's."""
    yield f"Two stages against {loss} alone, winners of both searches under {against.seeds} seeds, on test:"
    yield from comparison_lines(against.comparison(loss), width=width)
    yield from wrap(INHERITED, width) if width else (INHERITED,)
    if against.warning:
        yield against.warning


def comparison_lines(comparison: Comparison, *, width: int | None = None) -> list[str]:
    """Return a table of two models under the same seeds, and the interval of their difference."""
    header = ("metric", *comparison.titles, "difference, 95 % interval")
    return table_lines(header, comparison.text_rows(), width=width)


def metric_lines(
    columns: Mapping[str, Mapping[str, float]], shown: Collection[str], *, width: int | None = None
) -> list[str]:
    """Return a table of metrics. columns: metrics by title. shown: names of the metrics that have a row."""
    rows = [
        (title, *(figure(metrics.get(name)) for metrics in columns.values()))
        for name, title in METRIC_TITLES.items()
        if name in shown
    ]
    return table_lines(["metric", *columns], rows, width=width)


def cost_line(summary: RunSummary) -> str:
    """Return the cost of all trials as text."""
    cost = summary.cost
    passes = f"{cost.utterance_passes:.1f} passes over the training split"
    return f"Cost: {cost.epochs} epochs, {passes}, {duration(cost.trial_seconds)} in trials"


def one_line(text: object, room: int = 70) -> str:
    """Return a text from data on one line of at most `room` characters, control codes escaped."""
    plain = printable(str(text)).replace("\n", " ")
    return plain if len(plain) <= room else f"{plain[: room - 3]}..."


def figure(value: float | None, spec: str = ".4f") -> str:
    """Return a metric as tables show it."""
    return "-" if value is None else format(value, spec)


def setting(value: Any) -> str:
    """Return a parameter's value as tables show it."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else one_line(value)


def typed(place: StoragePath | Path | str) -> str:
    """Return a path as people type it: relative if it is below the working directory."""
    try:
        return str(Path(str(place)).relative_to(Path.cwd()))
    except ValueError:
        return str(place)
