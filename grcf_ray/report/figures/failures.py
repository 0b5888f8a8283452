"""Failures by cause: lost trials, and attempts that were interrupted and retried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grcf_ray.report.figures.layout import new_figure
from grcf_ray.report.figures.palette import BLUE, ORANGE
from grcf_ray.report.figures.text import shown
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.search.failures import failures_by_cause
from grcf_ray.search.record import TrialRecord

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def failures_data(view: RunView) -> dict[str, Any]:
    """Return by stage and cause: the lost trials, the retried ones, and the last error.

    A trial is listed once for each retried attempt.
    """
    causes = []
    for stage, trials in view.trials.items():
        lost = failures_by_cause(trials)
        retried: dict[str, list[tuple[int, str]]] = {}
        for trial in trials:
            for failure in _retried(trial):
                retried.setdefault(failure["cause"], []).append((trial.number, failure["error"]))
        for cause in dict.fromkeys([*lost, *retried]):
            ended, again = lost.get(cause, []), retried.get(cause, [])
            causes.append(
                {
                    "stage": stage,
                    "cause": cause,
                    "lost": [trial.number for trial in ended],
                    "retried": [number for number, _ in again],
                    "error": ended[-1].error if ended else again[-1][1],
                }
            )
    return {"trials": sum(len(trials) for trials in view.trials.values()), "causes": causes}


def draw_failures(data: Mapping[str, Any]) -> Figure:
    """Draw a bar for each cause; the last error appears on hovering."""
    from plotly.graph_objects import Bar

    causes = data["causes"]
    places = list(range(len(causes)))
    most = max((len(entry["lost"]) + len(entry["retried"]) for entry in causes), default=0)
    figure = new_figure(160 + 45 * len(causes), barmode="stack")
    figure.update_layout(
        xaxis={"title": "trials and attempts", "rangemode": "tozero", "dtick": max(1, most // 5), "automargin": True},
        yaxis={
            "tickvals": places,
            "ticktext": [f"{shown(entry['cause'], 20)} (Stage {entry['stage']})" for entry in causes],
            "autorange": "reversed",
            "automargin": True,
        },
    )
    for key, name, colour in (("lost", "trials lost", ORANGE), ("retried", "attempts retried", BLUE)):
        figure.add_trace(
            Bar(
                x=[len(entry[key]) for entry in causes],
                y=places,
                orientation="h",
                name=name,
                marker={"color": colour},
                hovertext=[shown(entry["error"], 90) for entry in causes],
                hovertemplate="%{x}: %{hovertext}",
            )
        )
    return figure


def failures_plot(view: RunView) -> Plot | None:
    """Return the figure, or None without failures."""
    data = failures_data(view)
    if not data["causes"]:
        return None
    lost = sum(len(entry["lost"]) for entry in data["causes"])
    again = sum(len(entry["retried"]) for entry in data["causes"])
    parts = "; ".join(
        f"{entry['cause']} in Stage {entry['stage']}: {len(entry['lost'])} lost, {len(entry['retried'])} retried"
        for entry in data["causes"]
    )
    return Plot(
        name="failures",
        title="Failures by cause",
        caption=f"{lost} of {data['trials']} trials diverged or failed; {again} attempts were interrupted and retried. "
        "A lost trial counts against the search's budget.",
        summary=f"{parts}.",
        data=data,
        draw=draw_failures,
    )


def _retried(trial: TrialRecord) -> list[dict[str, Any]]:
    """Return the interrupted attempts that were followed by another attempt."""
    last = trial.failures[-1] if trial.failures else None
    ended_by = trial.state == "failed" and last is not None and last["error"] == trial.error
    return trial.failures[:-1] if ended_by else trial.failures
