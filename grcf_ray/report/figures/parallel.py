"""Parallel axes of all parameters of a stage: a line for each trial, coloured by its objective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.figures.layout import log_ticks, new_figure, tick_text
from grcf_ray.report.figures.palette import SCALE
from grcf_ray.report.figures.parameters import objective, searched, space_of
from grcf_ray.report.figures.text import shown
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.train.curve import DIRECTIONS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def parallel_data(view: RunView, stage: Literal[1, 2]) -> dict[str, Any]:
    """Return the axes, and the objective and values of each trial that has a result and all parameters.

    Values are under the parameters' paths. The worst trials come first, so that the best are drawn on top.
    """
    parameters = searched(view.trials[stage], stage, space_of(view))
    rows: list[dict[str, Any]] = [
        {
            "number": trial.number,
            "state": trial.state,
            "objective": objective(trial),
            **{parameter.path: parameter.value(trial.params) for parameter in parameters},
        }
        for trial in reversed(view.ranked(stage))
        if objective(trial) is not None
    ]
    return {
        "stage": stage,
        "metric": view.objective(stage),
        "direction": DIRECTIONS[stage],
        "parameters": [
            {
                "path": parameter.path,
                "label": parameter.label,
                "log": parameter.log,
                "choices": None if parameter.choices is None else list(parameter.choices),
                "low": None if parameter.choices else parameter.low,
                "high": None if parameter.choices else parameter.high,
            }
            for parameter in parameters
        ],
        "trials": [row for row in rows if None not in row.values()],
    }


def draw_parallel(data: Mapping[str, Any]) -> Figure:
    """Draw the axes, the objective last; better objectives are bluer."""
    from plotly.graph_objects import Parcoords

    results = [trial["objective"] for trial in data["trials"]]
    # Scaled to stopped trials too, all complete trials would have nearly the same colour.
    finished = [trial["objective"] for trial in data["trials"] if trial["state"] == "complete"]
    ends = [*finished, results[-1]] if len(set(finished)) > 1 else results
    title = METRIC_TITLES[data["metric"]]
    axes = [
        _axis(parameter, [trial[parameter["path"]] for trial in data["trials"]]) for parameter in data["parameters"]
    ]
    figure = new_figure(440, margin={"l": 60, "r": 60, "t": 110, "b": 70})
    figure.add_trace(
        Parcoords(
            dimensions=[*axes, {"label": title, "values": results}],
            labelangle=25,
            labelside="bottom",
            # Plotly would write the ends of each axis over its ticks.
            rangefont={"color": "rgba(0,0,0,0)"},
            tickfont={"size": 10},
            line={
                "color": results,
                "cmin": min(ends),
                "cmax": max(ends),
                "colorscale": SCALE,
                "reversescale": data["direction"] == "min",
                "showscale": True,
                "colorbar": {
                    "title": {"text": title, "side": "top"},
                    "orientation": "h",
                    "y": 1.08,
                    "yanchor": "bottom",
                    "thickness": 14,
                },
            },
        )
    )
    return figure


def parallel_plot(view: RunView, stage: Literal[1, 2]) -> Plot | None:
    """Return the figure, or None with fewer than two trials or without searched parameters."""
    data = parallel_data(view, stage)
    if len(data["trials"]) < 2 or not data["parameters"]:
        return None
    metric = METRIC_TITLES[data["metric"]]
    best = data["trials"][-1]
    values = ", ".join(
        f"{parameter['label']} {value if isinstance(value := best[parameter['path']], str) else format(value, '.3g')}"
        for parameter in data["parameters"]
    )
    return Plot(
        name=f"parallel-stage{stage}",
        title=f"Stage {stage}: all parameters at once",
        caption=f"A line for each of {len(data['trials'])} trials with a result, coloured by validation {metric}: "
        "blue is "
        "better, and the colours cover the range of complete trials. Axes are on the searched scale. A stopped trial "
        "has the value of its best epoch. Drag along an axis to select trials.",
        summary=f"{len(data['trials'])} trials. Best: trial {best['number']}, {metric} {best['objective']:.4f}, with "
        f"{values}.",
        data=data,
        draw=draw_parallel,
    )


def _axis(parameter: Mapping[str, Any], values: list[Any]) -> dict[str, Any]:
    label = shown(parameter["label"], 24)
    if parameter["choices"] is not None:
        names = parameter["choices"]
        return {
            "label": label,
            "values": [names.index(value) for value in values],
            # An axis of a single choice would have no length.
            "range": (0, max(1, len(names) - 1)),
            "tickvals": list(range(len(names))),
            # Plotly shows these literally, entities too, which is safe.
            "ticktext": [shown(name, 16) for name in names],
        }
    if not parameter["log"]:
        low, high = parameter["low"], parameter["high"]
        return {"label": label, "values": values, "range": (low, high) if low < high else (low - 0.5, high + 0.5)}
    low, high = math.log10(parameter["low"]), math.log10(parameter["high"])
    ticks = log_ticks(parameter["low"], parameter["high"])
    return {
        "label": label,
        "values": [math.log10(value) for value in values],
        "range": (low, high) if low < high else (low - 0.5, high + 0.5),
        "tickvals": [math.log10(tick) for tick in ticks],
        "ticktext": [tick_text(tick) for tick in ticks],
    }
