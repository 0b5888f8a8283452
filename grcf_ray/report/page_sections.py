"""The page's facts: failures and their causes, cost, every trial, and where the numbers come from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from grcf_ray.console import duration
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.markup import Markup, element, figure, script_json, section, table
from grcf_ray.report.run_status import budgets, shown_state, standing_of
from grcf_ray.report.terminal import again
from grcf_ray.report.view import RunView
from grcf_ray.search.failures import failures_by_cause
from grcf_ray.search.record import TrialRecord

_NAMED = 10
"""Trials of a cause that are named one by one."""


def failures(view: RunView) -> Markup:
    """Trials that failed or diverged, by cause, each with the command that runs one of them again."""
    rows = []
    for stage in budgets(view.run):
        for cause, failed in failures_by_cause(view.trials[stage]).items():
            numbers = ", ".join(str(trial.number) for trial in failed[:_NAMED])
            more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
            command = again(view.record.place.uri, f"stage{stage}/{failed[-1].number}")
            rows.append((cause, f"Stage {stage}", numbers + more, failed[-1].error, element("code", command)))
    if not rows:
        return section("failures", "Failures", element("p", "No trial has failed or diverged."))
    columns = ("Cause", "Stage", "Trials", "Last error", "Again")
    content = table(columns, rows, caption="Failed and diverged trials by cause", hidden_caption=True)
    return section("failures", "Failures", content)


def cost(view: RunView) -> Markup:
    """What each stage took."""

    def row(name: str, of: Sequence[TrialRecord]) -> tuple[object, ...]:
        seconds = sum(trial.seconds for trial in of)
        return (
            name,
            len(of),
            sum(trial.epoch for trial in of),
            figure(sum(trial.utterance_passes for trial in of), ".1f"),
            element("data", duration(seconds), value=repr(seconds), title=f"{seconds!r} s"),
        )

    each = [row(f"Stage {stage}", view.trials[stage]) for stage in budgets(view.run)]
    rows = [*each, row("Together", [trial for stage in budgets(view.run) for trial in view.trials[stage]])]
    columns = ("Stage", "Trials", "Epochs", "Passes over the training split", "Time in trials")
    return section("cost", "Cost", table(columns, rows, caption="Cost of the search", hidden_caption=True))


def trials_data(view: RunView, stage: Literal[1, 2]) -> dict[str, Any]:
    """The stage's record as a table: `columns`, each with `title` and `kind`, and `rows` of plain values.

    kind: `count`, `figure` (four decimals are shown) or `setting`.
    """
    of, standing = view.trials[stage], standing_of(view.record, view.run)
    paths = list(dict.fromkeys(path for trial in of for path in trial.params))
    columns = [
        ("Trial", "count"),
        ("State", "setting"),
        (METRIC_TITLES[view.objective(stage)], "figure"),
        ("Epochs", "count"),
        ("Seconds", "figure"),
        *((path, "setting") for path in paths),
        ("Failure", "setting"),
    ]
    return {
        "columns": [{"title": title, "kind": kind} for title, kind in columns],
        "rows": [
            [
                trial.number,
                shown_state(trial, standing),
                trial.objective,
                trial.epoch,
                trial.seconds,
                *(trial.params.get(path) for path in paths),
                trial.cause,
            ]
            for trial in of
        ],
    }


def trials(view: RunView) -> Markup:
    """Every trial of every stage, in tables that can be sorted and filtered."""
    content = [
        element("p", "Press a column's name to sort by it; point at a figure for all its digits."),
        element("noscript", element("p", "The tables need JavaScript; stage1/trials.jsonl and so on hold the same.")),
    ]
    for stage in budgets(view.run):
        content += _trials_table(f"stage{stage}", f"Stage {stage}", trials_data(view, stage))
    return section("trials", "Every trial", *content)


def _trials_table(name: str, title: str, data: Mapping[str, Any]) -> Iterator[Markup]:
    heads = (
        element("th", element("button", column["title"], type="button"), scope="col", aria_sort="none")
        for column in data["columns"]
    )
    rows = element(
        "table",
        element("caption", f"Trials of {title}", class_="unseen"),
        element("thead", element("tr", *heads)),
        element("tbody"),
    )
    yield element("h3", title)
    yield element(
        "div",
        element("label", "Show rows with ", element("input", type="search", autocomplete="off", spellcheck="false")),
        element("output", role="status"),
        element("div", rows, class_="scroll", tabindex="0", role="region", aria_label=f"Trials of {title}"),
        element("button", "Show all", type="button", class_="all", hidden=True),
        script_json(data),
        class_="trials",
        id=f"trials-{name}",
    )


def provenance(view: RunView) -> Markup:
    """What the numbers depend on: commands, versions, data, seeds, and each time that test was read."""
    run, best = view.run, view.provenance or {}
    seeds = {"Seed of the search": run["settings"]["seed"]}
    if view.winner is not None:
        seeds["Seed of the winner"] = view.winner.seed
    if run.get("seeds"):
        seeds["Fresh seeds afterwards"] = run["seeds"]
    data = run["data"]
    reads = [
        (read["time"], read["command"], ", ".join(read["models"]), shlex.join(read.get("argv", ())))
        for read in best.get("test_reads", ())
    ]
    return section(
        "provenance",
        "Where it comes from",
        table(
            ("Time", "Command"),
            [(start["time"], element("code", start["command"])) for start in run["starts"]],
            caption="Starts of this search",
        ),
        table(
            ("What", "Value"),
            [
                ("Data", data["name"]),
                ("Folder of the data", data["folder"]),
                ("Fingerprint of the data", element("code", data["fingerprint"])),
                *seeds.items(),
                *((f"Version: {name}", version) for name, version in run["versions"].items()),
            ],
            caption="Data, seeds and versions",
        ),
        table(("Time", "Command", "Models", "Arguments"), reads, caption="Times that the test split was read")
        if reads
        else element("p", "The test split has not been read."),
        element(
            "details",
            element("summary", "Every setting at the starting point"),
            table(
                ("Setting", "Value"),
                run["settings"].items(),
                caption="Every setting at the starting point",
                hidden_caption=True,
            ),
        ),
        element(
            "details",
            element("summary", "The search space"),
            element("pre", element("code", json.dumps(run["space"], indent=2, ensure_ascii=False))),
        ),
    )
