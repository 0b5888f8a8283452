"""The objective against each parameter, a panel for each (the paper's Figure 8 has two)."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.figures.layout import log_axis, new_figure, rows
from grcf_ray.report.figures.palette import GREY, MARKS
from grcf_ray.report.figures.parameters import Parameter, objective, searched, space_of
from grcf_ray.report.figures.text import shown
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.train.curve import DIRECTIONS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_GROUPS = 6
_LEAST_IN_GROUP = 5
_COLUMNS = 2
_ROW_PX = 190


def slices_data(view: RunView, stage: Literal[1, 2]) -> dict[str, Any]:
    """Return for each parameter the trials with a result, and the trend of complete trials.

    `trend`: medians of value and objective in groups of complete trials: equal groups by value, or one group for each
    choice. `range`: the highest minus the lowest median objective.
    """
    trials = [trial for trial in view.trials[stage] if objective(trial) is not None]
    panels = []
    for parameter in searched(view.trials[stage], stage, space_of(view)):
        points = [
            {"number": trial.number, "state": trial.state, "value": value, "objective": objective(trial)}
            for trial in trials
            if (value := parameter.value(trial.params)) is not None
        ]
        trend = _trend(parameter, [point for point in points if point["state"] == "complete"])
        medians = [group["objective"] for group in trend]
        panels.append(
            {
                "path": parameter.path,
                "label": parameter.label,
                "log": parameter.log,
                "choices": None if parameter.choices is None else list(parameter.choices),
                "points": points,
                "trend": trend,
                "range": max(medians) - min(medians) if len(medians) > 1 else None,
            }
        )
    return {"stage": stage, "metric": view.objective(stage), "direction": DIRECTIONS[stage], "panels": panels}


def draw_slices(data: Mapping[str, Any]) -> Figure:
    """Draw panels in two columns with one scale of the objective: trials by state, and the trend."""
    from plotly.graph_objects import Scatter

    count = -(-len(data["panels"]) // _COLUMNS)
    # The space for labels does not depend on the number of panels.
    domains = rows([1.0] * count, gap=min(0.45 / count, 0.3))
    figure = new_figure(120 + _ROW_PX * count)
    seen: set[str] = set()
    for index, panel in enumerate(data["panels"]):
        row, column = divmod(index, _COLUMNS)
        suffix = "" if index == 0 else str(index + 1)
        choices = panel["choices"]
        x_axis: dict[str, Any] = {
            "title": {"text": shown(panel["label"], 24), "standoff": 4},
            "anchor": f"y{suffix}",
            "domain": (0.0, 0.46) if column == 0 else (0.54, 1.0),
            "nticks": 5,
        }
        if choices is not None:
            names = [shown(choice, 12) for choice in choices]
            x_axis |= {"tickvals": list(range(len(choices))), "ticktext": names, "range": (-0.5, len(choices) - 0.5)}
        elif panel["log"]:
            values = [point["value"] for point in panel["points"]]
            x_axis |= log_axis(min(values), max(values)) if values else {"type": "log"}
        y_axis: dict[str, Any] = {"anchor": f"x{suffix}", "domain": domains[row], "showticklabels": column == 0}
        y_axis |= {"matches": "y"} if index else {}
        y_axis |= {"automargin": True} if column == 0 else {}
        figure.update_layout({f"xaxis{suffix}": x_axis, f"yaxis{suffix}": y_axis})
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        for state, mark in MARKS.items():
            points = [point for point in panel["points"] if point["state"] == state]
            if points:
                figure.add_trace(
                    Scatter(
                        **axes,
                        x=_places(choices, points),
                        y=[point["objective"] for point in points],
                        customdata=[[point["number"], _worded(point["value"])] for point in points],
                        mode="markers",
                        name=mark.title,
                        legendgroup=state,
                        showlegend=state not in seen,
                        marker={"color": mark.colour, "symbol": mark.symbol, "size": 6, "opacity": 0.8},
                        hovertemplate="trial %{customdata[0]}<br>%{customdata[1]}: %{y:.4f}",
                    )
                )
                seen.add(state)
        if panel["trend"]:
            figure.add_trace(
                Scatter(
                    **axes,
                    x=_places(choices, panel["trend"]),
                    y=[group["objective"] for group in panel["trend"]],
                    customdata=[group["trials"] for group in panel["trend"]],
                    mode="lines+markers" if choices is None else "markers",
                    name="median of complete",
                    legendgroup="trend",
                    showlegend="trend" not in seen,
                    line={"color": GREY, "width": 2},
                    marker={"color": GREY, "symbol": "line-ew-open", "size": 16, "line": {"width": 3}},
                    hovertemplate="median %{y:.4f} of %{customdata} trials",
                )
            )
            seen.add("trend")
    return figure


def slices_plot(view: RunView, stage: Literal[1, 2]) -> Plot | None:
    """Return the figure, or None with fewer than two trials or without searched parameters."""
    data = slices_data(view, stage)
    if max((len(panel["points"]) for panel in data["panels"]), default=0) < 2:
        return None
    metric = METRIC_TITLES[data["metric"]]
    moved = sorted((p for p in data["panels"] if p["range"] is not None), key=lambda p: -p["range"])
    ranges = ", ".join(f"{panel['label']} {panel['range']:.4f}" for panel in moved[:3])
    return Plot(
        name=f"slices-stage{stage}",
        title=f"Stage {stage}: {metric} against each parameter",
        caption=f"Validation {metric} of each trial's best epoch against one parameter; the other parameters vary too. "
        "The line joins medians of groups of complete trials. The search samples good regions more often: a region "
        "with "
        "few trials may be unexplored, not bad.",
        summary=f"Range of the medians of {metric}: {ranges}." if moved else "Too few trials are complete for a trend.",
        data=data,
        draw=draw_slices,
    )


def _trend(parameter: Parameter, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups: list[tuple[str | None, list[Mapping[str, Any]]]]
    if parameter.choices is not None:
        groups = [(name, [point for point in points if point["value"] == name]) for name in parameter.choices]
    else:
        ordered = sorted(points, key=lambda point: (point["value"], point["number"]))
        count = min(_GROUPS, len(ordered) // _LEAST_IN_GROUP)
        if count < 2:
            return []
        edges = [round(k * len(ordered) / count) for k in range(count + 1)]
        groups = [(None, ordered[low:high]) for low, high in itertools.pairwise(edges)]
    return [
        {
            "value": statistics.median(point["value"] for point in group) if name is None else name,
            "objective": statistics.median(point["objective"] for point in group),
            "trials": len(group),
        }
        for name, group in groups
        if group
    ]


def _worded(value: float | str) -> str:
    return shown(value) if isinstance(value, str) else f"{value:.4g}"


def _places(choices: Sequence[str] | None, entries: Sequence[Mapping[str, Any]]) -> list[Any]:
    values = [entry["value"] for entry in entries]
    return values if choices is None else [choices.index(value) for value in values]
