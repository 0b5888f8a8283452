"""The page's answer: what the search has found and what that is worth, or how far it has come."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from grcf_ray.console import duration, sentence
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.markup import Markup, element, figure, joined, section, table
from grcf_ray.report.run_status import DIED, budgets, time_left
from grcf_ray.report.terminal import remarks, summarise_view, typed
from grcf_ray.report.view import RunView
from grcf_ray.search.comparisons import baseline_kind, few_retrainings, few_seeds
from grcf_ray.search.direct_baseline import INHERITED
from grcf_ray.train.curve import objective_name

STATES = {
    "running": "is going on",
    "finished": "has finished",
    "time is up": "has ended by its time budget",
    "interrupted": "was interrupted",
    "failed": "broke off",
    DIED: "died without a word",
}
"""What a search of a state does, or has done."""


def answer(view: RunView, state: str) -> Markup:
    """The section that stands first. state: as `standing_of` has it."""
    found = _result(view) if measured(view) else []
    going_on = [] if state == "finished" else _progress(view, state)
    return section("answer", "Answer", *found, *going_on)


def measured(view: RunView) -> bool:
    """Whether best/ holds the run's winner and its figures on test."""
    return view.metrics is not None and view.metrics["trial"] == view.run.get("winner")


def _result(view: RunView) -> Iterator[Markup]:
    summary = summarise_view(view)
    name = objective_name(2, view.task)
    title, trials = METRIC_TITLES[name], sum(map(len, view.trials.values()))
    paper, baseline = summary["paper"], next(iter(summary["baselines"]), None)
    yield element(
        "p",
        "Trial ",
        element("strong", summary["winner"]["trial"]),
        f", the best of {trials} by validation, has a test {title} of ",
        element("strong", figure(summary["test"].get(name))),
        ".",
        class_="lead",
    )
    cards = [(f"{title}, test", summary["test"].get(name)), (f"{title}, valid", summary["valid"].get(name))]
    cards += [(f"{baseline_kind(baseline).capitalize()}, test", baseline["test"].get(name))] if baseline else []
    cards += [("Paper, test", paper.get(name))] if paper else []
    yield element(
        "dl",
        *(element("div", element("dt", label), element("dd", figure(value))) for label, value in cards),
        class_="cards",
    )
    yield element("ul", *(element("li", remark) for remark in _remarks(summary)), class_="remarks")
    yield _figures_table(summary)
    yield from _gains(view)
    if summary["seeds"]:
        arms = summary["seeds"]["arms"]
        yield element("h3", f"Under {summary['seeds']['seeds']} fresh seeds")
        yield _arms_table(
            f"Winner and starting point trained anew under {summary['seeds']['seeds']} seeds that the search did not "
            "use, on test: mean ± deviation, and the paired difference with its 95 % interval",
            {"Winner": arms["winner"]["test"], "Starting point": arms["start"]["test"]},
            summary["seeds"]["gain"],
        )
        yield from _few(few_retrainings(summary["seeds"]))
    if summary["against_baseline"]:
        against, alone = summary["against_baseline"], METRIC_TITLES[name]
        yield element("h3", f"Two stages against {alone} alone")
        yield _arms_table(
            f"Both searches' winners under {against['seeds']} seeds, on test: mean ± deviation, and the paired "
            "difference with its 95 % interval",
            {"Two stages": against["two-stage"], f"{alone} alone": against["direct"]},
            against["gain"],
        )
        yield element("p", INHERITED)
        yield from _few(few_seeds(against["seeds"]))
    yield _usage(view)
    yield element(
        "details",
        element("summary", "The winner's settings that were searched"),
        table(
            ("Setting", "Value"),
            summary["winner"]["params"].items(),
            caption="Settings that were searched, as the winner has them",
            hidden_caption=True,
        ),
    )


def _remarks(summary: Mapping[str, Any]) -> Iterator[str]:
    yield from remarks(summary)
    if not summary["seeds"]:
        yield "One seed: the gain over the starting point is not known (--seeds N)."


def _few(warning: str | None) -> Iterator[Markup]:
    if warning:
        yield element("p", sentence(warning))


def _figures_table(summary: Mapping[str, Any]) -> Markup:
    columns = {"Valid": summary["valid"], "Test": summary["test"]}
    columns |= {f"{baseline_kind(of).capitalize()}, test": of["test"] for of in summary["baselines"][:1]}
    columns |= {"Paper, test": summary["paper"]} if summary["paper"] else {}
    rows = [
        (title, *(figure(of.get(name)) for of in columns.values()))
        for name, title in METRIC_TITLES.items()
        if name in summary["test"]
    ]
    return table(("Metric", *columns), rows, caption="The winner's figures")


def _gains(view: RunView) -> Iterator[Markup]:
    """What each stage gained on validation over its first trial, which is the space's starting point."""
    rows = []
    for stage in budgets(view.run):
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
    if rows:
        yield table(
            ("Stage", "Validation", "Starting point (trial 0)", "Best", "Difference", "Read it as"),
            rows,
            caption="What each stage gained on validation",
        )


def _arms_table(caption: str, arms: Mapping[str, Mapping[str, Any]], gain: Mapping[str, Any]) -> Markup:
    first = next(iter(arms.values()))
    rows = [
        (title, *(_spread(of.get(name)) for of in arms.values()), _interval(gain.get(name)))
        for name, title in METRIC_TITLES.items()
        if name in first
    ]
    return table(("Metric", *arms, "Difference"), rows, caption=caption)


def _spread(of: Mapping[str, float | None] | None) -> Markup:
    if of is None or of["deviation"] is None:
        return figure(None if of is None else of["mean"])
    return joined([figure(of["mean"]), " ± ", figure(of["deviation"])])


def _interval(of: Mapping[str, float | None] | None) -> Markup:
    if of is None or of["mean"] is None or of["half_width"] is None:
        return figure(None)
    low, high = of["mean"] - of["half_width"], of["mean"] + of["half_width"]
    return joined([figure(of["mean"], "+.4f"), " [", figure(low, "+.4f"), ", ", figure(high, "+.4f"), "]"])


def _usage(view: RunView) -> Markup:
    """How the model is loaded, and how it is measured again."""
    place = view.record.place
    where = typed(place) if place.local is not None else place.uri
    code = (
        "from grcf_ray import load_model\n"
        f"model = load_model({json.dumps(where, ensure_ascii=False)})\n"
        "scores = model.score(table)"
    )
    run = shlex.quote(where)
    return joined(
        [
            element("h3", "Use it"),
            element(
                "p",
                "Scores for a pyarrow table with a column text, and audio or vision where the model has them, or for a "
                "list of texts where it reads nothing else:",
            ),
            element("pre", element("code", code)),
            element("p", "Scores for a file, streamed:"),
            element(
                "pre", element("code", f"python -m grcf_ray.predict {run} --input new.parquet --output scores.parquet")
            ),
            element("p", "Measured again, in a new process:"),
            element("pre", element("code", f"python -m grcf_ray.evaluate {run}")),
        ]
    )


def _progress(view: RunView, state: str) -> Iterator[Markup]:
    """How far the search is, what it has so far, and what is left."""
    left = time_left(view) if state == "running" else None
    yield element("h3", "So far")
    yield element(
        "p",
        f"This search {STATES.get(state, state)}.",
        None if left is None else f" About {duration(left)} of it are left.",
    )
    for stage, (most, _) in budgets(view.run).items():
        trials, best = view.trials[stage], next(iter(view.ranked(stage)), None)
        ended = sum(trial.finished for trial in trials)
        running = len(trials) - ended
        yield element(
            "p",
            element("strong", f"Stage {stage}: "),
            f"{ended} of {most} trials have ended",
            f", {running} more have begun. " if running else ". ",
            None if best is None else f"The best so far is trial {best.number}, with a validation ",
            None if best is None else f"{METRIC_TITLES[view.objective(stage)]} of ",
            None if best is None else joined([figure(best.objective), "."]),
            id=f"progress-stage{stage}",
        )
        yield element("progress", max=max(1, most), value=ended, aria_labelledby=f"progress-stage{stage}")
    if not measured(view):
        yield element("p", "The test split has not been read for this winner yet: validation chooses first.")
        yield from _gains(view)
    if state != "running":
        yield element("p", "To go on:")
        yield element("pre", element("code", view.run["starts"][-1]["command"]))
