"""The sections of the page beside its figures, as data for the template: answer, failures, cost, trials, provenance."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.html import Table, capitalised, code, figure, interval, seconds, spread
from grcf_ray.report.run_status import time_left
from grcf_ray.report.summary import ONE_SEED, Comparison, Cost, RunSummary
from grcf_ray.report.terminal import again, listed_trials, typed
from grcf_ray.report.view import RunView
from grcf_ray.search.direct_baseline import INHERITED
from grcf_ray.search.record import TrialRecord


def answer(view: RunView, summary: RunSummary) -> dict[str, Any]:
    """Return the first section: the winner's metrics, what they are worth, and how far an unfinished search is."""
    context: dict[str, Any] = {
        "state": view.state,
        "measured": view.metrics is not None and view.metrics["trial"] == view.info.winner,
        "gains": _gains(view),
        "left": time_left(view),
        "progress": [_progress(view, stage, budget) for stage, (budget, _) in view.budgets.items()],
    }
    return context | _result(view, summary) if context["measured"] else context


def _result(view: RunView, summary: RunSummary) -> dict[str, Any]:
    name, columns = summary.objective, summary.metric_columns()
    title, values = METRIC_TITLES[name], {column: metrics.get(name) for column, metrics in columns.items()}
    place = typed(view.record.place) if view.record.place.local is not None else view.record.place.uri
    rows = [(METRIC_TITLES[metric], *map(figure, row)) for metric, row in summary.metric_rows()]
    return {
        "metric": title,
        "value": values["test"],
        "cards": {
            f"{title}, test": values.pop("test"),
            f"{title}, valid": values.pop("valid"),
            **{capitalised(column): value for column, value in values.items()},
        },
        "remarks": summary.remarks() if summary.seeds else [*summary.remarks(), ONE_SEED],
        "metrics": Table("Metrics of the winner", ("Metric", *map(capitalised, columns)), rows),
        "comparisons": list(_comparisons(summary)),
        "quoted_place": json.dumps(place, ensure_ascii=False),
        "shell_place": shlex.quote(place),
        "params": _settings("Searched settings of the winner", view.winner_params),
    }


def _comparisons(summary: RunSummary) -> Iterator[dict[str, Any]]:
    if seeds := summary.seeds:
        metric = METRIC_TITLES[summary.objective]
        best = Table(
            f"The best of each side's {seeds.seeds} models, chosen on valid, and the mean of their scores",
            ("Model", f"Valid {metric}", f"Test {metric}"),
            [
                (capitalised(name), figure(valid), figure(test))
                for name, valid, test in seeds.model_rows(summary.objective)
            ],
        )
        yield {
            "title": f"Under {seeds.seeds} fresh seeds",
            "tables": [
                _comparison(
                    f"Winner and starting point retrained under {seeds.seeds} seeds that the search did not use",
                    seeds.comparison(),
                ),
                *([best] if best.rows else []),
            ],
            "notes": [seeds.warning] if seeds.warning else [],
        }
    if against := summary.against_baseline:
        loss = METRIC_TITLES[summary.objective]
        yield {
            "title": f"Two stages against {loss} alone",
            "tables": [_comparison(f"Winners of both searches under {against.seeds} seeds", against.comparison(loss))],
            "notes": [INHERITED, *([against.warning] if against.warning else [])],
        }


def _comparison(models: str, comparison: Comparison) -> Table:
    return Table(
        f"{models}, on test: mean ± standard deviation, and the paired difference with its 95 % interval",
        ("Metric", *map(capitalised, comparison.titles), "Difference"),
        [(name, spread(first), spread(second), interval(gain)) for name, first, second, gain in comparison.rows()],
    )


def _gains(view: RunView) -> Table:
    """Return each stage's gain over its first trial, the space's starting point."""
    rows = []
    for stage in view.budgets:
        first = next((trial for trial in view.trials[stage] if trial.number == 0), None)
        best = next(iter(view.ranked(stage)), None)
        if best is None or best.objective is None:
            continue
        start = None if first is None else first.objective
        gain = None if start is None else best.objective - start
        rows.append(
            (
                stage,
                METRIC_TITLES[view.objective(stage)],
                figure(start),
                figure(best.objective),
                figure(gain, "+.4f"),
                f"optimistic: best of {len(view.trials[stage])} trials",
            )
        )
    columns = ("Stage", "Validation", "Starting point (trial 0)", "Best", "Difference", "Note")
    return Table("Validation gain of each stage", columns, rows)


def _progress(view: RunView, stage: Literal[1, 2], budget: int) -> dict[str, Any]:
    trials = view.trials[stage]
    ended = sum(trial.finished for trial in trials)
    return {
        "number": stage,
        "budget": budget,
        "ended": ended,
        "running": len(trials) - ended,
        "metric": METRIC_TITLES[view.objective(stage)],
        "best": next(iter(view.ranked(stage)), None),
    }


def failures(summary: RunSummary) -> Table:
    """Return the trials that failed or diverged, by cause, each cause with a command that repeats a trial of it."""
    rows = [
        (
            failure.cause,
            f"Stage {stage.removeprefix('stage')}",
            listed_trials(failure.trials),
            failure.error,
            code(again(summary.uri, f"{stage}/{failure.trials[-1]}")),
        )
        for stage, stage_summary in summary.stages.items()
        for failure in stage_summary.failures
    ]
    columns = ("Cause", "Stage", "Trials", "Last error", "Command to repeat it")
    return Table("Failed and diverged trials by cause", columns, rows, hidden_caption=True)


def cost(view: RunView) -> Table:
    """Return the cost of each stage and of the whole search."""

    def row(name: str, trials: Sequence[TrialRecord]) -> tuple[object, ...]:
        cost = Cost.of(trials)
        return name, len(trials), cost.epochs, figure(cost.utterance_passes, ".1f"), seconds(cost.trial_seconds)

    rows = [row(f"Stage {stage}", view.trials[stage]) for stage in view.budgets]
    rows.append(row("Total", [trial for stage in view.budgets for trial in view.trials[stage]]))
    columns = ("Stage", "Trials", "Epochs", "Passes over the training split", "Time in trials")
    return Table("Cost of the search", columns, rows, hidden_caption=True)


def trials_data(view: RunView, stage: Literal[1, 2]) -> dict[str, Any]:
    """Return a stage's trials as JSON for the page's script: `columns`, each with `title` and `kind`, and `rows`.

    kind: `count`, `figure` (shown with four decimals) or `setting`.
    """
    trials = view.trials[stage]
    paths = list(dict.fromkeys(path for trial in trials for path in trial.params))
    columns = {
        "Trial": "count",
        "State": "setting",
        METRIC_TITLES[view.objective(stage)]: "figure",
        "Epochs": "count",
        "Seconds": "figure",
        **dict.fromkeys(paths, "setting"),
        "Failure": "setting",
    }
    rows = [
        [
            trial.number,
            view.state_of(trial),
            trial.objective,
            trial.epoch,
            trial.seconds,
            *(trial.params.get(path) for path in paths),
            trial.cause,
        ]
        for trial in trials
    ]
    return {"columns": [{"title": title, "kind": kind} for title, kind in columns.items()], "rows": rows}


def provenance(view: RunView) -> dict[str, Any]:
    """Return what the metrics depend on: commands, data, seeds, versions, settings, and each read of the test split."""
    info, data = view.info, view.info.data
    seeds = {"Seed of the search": info.settings["seed"]}
    if view.winner is not None:
        seeds["Seed of the winner"] = view.winner.seed
    if info.seeds:
        seeds["Fresh seeds afterwards"] = info.seeds
    sources = [
        ("Data", data.name),
        ("Folder of the data", data.folder),
        ("Fingerprint of the data", code(data.fingerprint)),
        *seeds.items(),
        *((f"Version: {name}", version) for name, version in info.versions.items()),
    ]
    reads = [
        (read["time"], read["command"], ", ".join(read["models"]), shlex.join(read.get("argv", ())))
        for read in (view.provenance or {}).get("test_reads", ())
    ]
    starts = [(start.time, code(start.command)) for start in info.starts]
    return {
        "starts": Table("Starts of this search", ("Time", "Command"), starts),
        "sources": Table("Data, seeds and versions", ("Item", "Value"), sources),
        "reads": Table("Reads of the test split", ("Time", "Command", "Models", "Arguments"), reads),
        "settings": _settings("All settings of the starting point", info.settings),
        "space": json.dumps(info.space.model_dump(), indent=2, ensure_ascii=False),
    }


def _settings(caption: str, settings: Mapping[str, Any]) -> Table:
    return Table(caption, ("Setting", "Value"), list(settings.items()), hidden_caption=True)
