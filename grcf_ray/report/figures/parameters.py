"""The searched parameters of a stage: their scales, all at once on parallel axes, and each against the objective.

The paper's Figure 8 shows two parameters against the objective.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.figures.layout import (
    add_trials,
    log_axis,
    log_ticks,
    name_axis,
    new_figure,
    points,
    share_legend,
    shown,
    tick_text,
    two_columns,
)
from grcf_ray.report.figures.palette import GREY, SCALE
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.search.record import TrialRecord
from grcf_ray.search.space import Choice, Dimension, Range, Space
from grcf_ray.train.curve import DIRECTIONS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_TREND_GROUPS = 6
_LEAST_IN_GROUP = 5
_ROW_PX = 190


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One searched setting."""

    path: str
    label: str
    """The path without its section, if that is unique in the stage."""
    scale: Range | tuple[str, ...]
    """The searched range, wider if a trial is outside, or the names of the choices."""

    @property
    def axis(self) -> dict[str, Any]:
        """Return path, label and scale as JSON values."""
        log, choices = (self.scale.log, None) if isinstance(self.scale, Range) else (False, list(self.scale))
        return {"path": self.path, "label": self.label, "log": log, "choices": choices}

    def value(self, params: Mapping[str, Any]) -> float | str | None:
        """Return a trial's value: a number or the name of a choice, or None."""
        if self.path not in params:
            return None
        if not isinstance(self.scale, Range):
            return _name(params[self.path])
        value = number(params[self.path])
        return None if value is None or (self.scale.log and value <= 0) else value

    def place(self, value: float | str) -> float:
        """Return a value's place in the searched range, from 0 to 1, or the choice's index."""
        return self.scale.place_of(float(value)) if isinstance(self.scale, Range) else self.scale.index(str(value))


def number(value: object) -> float | None:
    """Return a finite number unchanged, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if math.isfinite(value) else None


def outcome(trial: TrialRecord) -> dict[str, Any]:
    """Return number, state and objective of a trial."""
    return {"number": trial.number, "state": trial.state, "objective": trial.objective}


def searched(trials: Sequence[TrialRecord], stage: Literal[1, 2], space: Space) -> list[Parameter]:
    """Return the stage's parameters in the space's order, then those of the trials alone, such as `finalist`.

    The values of the latter define their scale.
    """
    dimensions = space.dimensions(stage)
    paths = list(dict.fromkeys([*dimensions, *(path for trial in trials for path in trial.params)]))
    ends = Counter(_end(path) for path in paths)
    return [
        _parameter(
            path,
            _end(path) if ends[_end(path)] == 1 else path,
            dimensions.get(path),
            [trial.params[path] for trial in trials if path in trial.params],
        )
        for path in paths
    ]


def _parameter(path: str, label: str, dimension: Dimension | None, values: Sequence[object]) -> Parameter:
    numbers = [value for value in map(number, values) if value is not None]
    if isinstance(dimension, Choice) or (dimension is None and (len(numbers) < len(values) or not values)):
        known = dimension.choices if isinstance(dimension, Choice) else ()
        names = dict.fromkeys([*map(_name, known), *map(_name, values)])
        # Finalists are trial numbers: sort by number, not as strings.
        ordered = sorted(names, key=int) if not known and all(name.isdecimal() for name in names) else names
        return Parameter(path, label, tuple(ordered))
    log, ends = (dimension.log, [dimension.low, dimension.high]) if isinstance(dimension, Range) else (False, [])
    ends += [value for value in numbers if value > 0 or not log]
    return Parameter(path, label, Range(min(ends), max(ends), log, start=ends[0]))


def _name(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _end(path: str) -> str:
    return path.rpartition(".")[2]


def parallel_data(view: RunView, stage: Literal[1, 2]) -> dict[str, Any]:
    """Return the axes, and the objective and values of each trial that has a result and all parameters.

    Values are under the parameters' paths. The worst trials come first, so that the best are drawn on top.
    """
    parameters = searched(view.trials[stage], stage, view.space)
    rows: list[dict[str, Any]] = [
        outcome(trial) | {parameter.path: parameter.value(trial.params) for parameter in parameters}
        for trial in reversed(view.ranked(stage))
        if trial.objective is not None
    ]
    return {
        "stage": stage,
        "metric": view.objective(stage),
        "direction": DIRECTIONS[stage],
        "parameters": [p.axis | {end: getattr(p.scale, end, None) for end in ("low", "high")} for p in parameters],
        "trials": [row for row in rows if None not in row.values()],
    }


def draw_parallel(data: Mapping[str, Any]) -> Figure:
    """Draw the axes, the objective last; better objectives are bluer."""
    results = [trial["objective"] for trial in data["trials"]]
    # Scaled to stopped trials too, all complete trials would have nearly the same colour.
    finished = [trial["objective"] for trial in data["trials"] if trial["state"] == "complete"]
    ends = [*finished, results[-1]] if len(set(finished)) > 1 else results
    title = METRIC_TITLES[data["metric"]]
    axes = [
        _axis(parameter, [trial[parameter["path"]] for trial in data["trials"]]) for parameter in data["parameters"]
    ]
    figure = new_figure(440, margin={"l": 60, "r": 60, "t": 110, "b": 70})
    bar = {"title": {"text": title, "side": "top"}, "orientation": "h", "y": 1.08, "yanchor": "bottom", "thickness": 14}
    return figure.add_parcoords(
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
            "colorbar": bar,
        },
    )


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
        "blue is better, and the colours cover the range of complete trials. Axes use the scale of the search space. A "
        "stopped trial has the value of its best epoch. Drag along an axis to select trials.",
        summary=f"{len(data['trials'])} trials. Best: trial {best['number']}, {metric} {best['objective']:.4f}, with "
        f"{values}.",
        data=data,
        draw=draw_parallel,
    )


def _axis(parameter: Mapping[str, Any], values: list[Any]) -> dict[str, Any]:
    label = shown(parameter["label"], 24)
    if parameter["choices"] is not None:
        names = parameter["choices"]
        # Plotly shows names literally, entities too, which is safe. An axis of a single choice would have no length.
        ticks = name_axis([shown(name, 16) for name in names]) | {"range": (0, max(1, len(names) - 1))}
        return {"label": label, "values": [names.index(value) for value in values], **ticks}
    low, high, ticks = parameter["low"], parameter["high"], {}
    if parameter["log"]:
        places = log_ticks(low, high)
        ticks = {"tickvals": [math.log10(tick) for tick in places], "ticktext": [tick_text(tick) for tick in places]}
        low, high, *values = map(math.log10, (low, high, *values))
    ends = (low, high) if low < high else (low - 0.5, high + 0.5)
    return {"label": label, "values": values, "range": ends, **ticks}


def slices_data(view: RunView, stage: Literal[1, 2]) -> dict[str, Any]:
    """Return for each parameter the trials with a result, and the trend of complete trials.

    `trend`: medians of value and objective in groups of complete trials: equal groups by value, or one group for each
    choice. `range`: the highest minus the lowest median objective.
    """
    trials = [trial for trial in view.trials[stage] if trial.objective is not None]
    panels = []
    for parameter in searched(view.trials[stage], stage, view.space):
        entries = [
            {"number": trial.number, "state": trial.state, "value": value, "objective": trial.objective}
            for trial in trials
            if (value := parameter.value(trial.params)) is not None
        ]
        trend = _trend(parameter, [entry for entry in entries if entry["state"] == "complete"])
        medians = [group["objective"] for group in trend]
        spread = max(medians) - min(medians) if len(medians) > 1 else None
        panels.append({**parameter.axis, "points": entries, "trend": trend, "range": spread})
    return {"stage": stage, "metric": view.objective(stage), "direction": DIRECTIONS[stage], "panels": panels}


def draw_slices(data: Mapping[str, Any]) -> Figure:
    """Draw panels in two columns with one scale of the objective: trials by state, and the trend."""
    panels = data["panels"]
    count = -(-len(panels) // 2)
    # The space for labels does not depend on the number of panels.
    gap = min(0.45 / count, 0.3)
    grid, places = two_columns(len(panels), shared_yaxes="all", horizontal_spacing=0.08, vertical_spacing=gap)
    figure = new_figure(120 + _ROW_PX * count, grid)
    for panel, place in zip(panels, places, strict=True):
        choices = panel["choices"]
        axis: dict[str, Any] = {"title": {"text": shown(panel["label"], 24), "standoff": 4}, "nticks": 5}
        if choices is not None:
            names = [shown(choice, 12) for choice in choices]
            axis |= name_axis(names) | {"range": (-0.5, len(choices) - 0.5)}
        elif panel["log"]:
            values = [point["value"] for point in panel["points"]]
            axis |= log_axis(min(values), max(values)) if values else {"type": "log"}
        figure.update_xaxes(axis, **place)
        trials, trend = ([_placed(entry, choices) for entry in panel[key]] for key in ("points", "trend"))
        add_trials(
            figure,
            trials,
            ("x", "objective", "number", "said"),
            marker={"size": 6, "opacity": 0.8},
            hovertemplate="trial %{customdata[0]}<br>%{customdata[1]}: %{y:.4f}",
            **place,
        )
        if trend:
            figure.add_scatter(
                **points(trend, "x", "objective", "trials"),
                mode="lines+markers" if choices is None else "markers",
                name="median of complete",
                line={"color": GREY, "width": 2},
                marker={"color": GREY, "symbol": "line-ew-open", "size": 16, "line": {"width": 3}},
                hovertemplate="median %{y:.4f} of %{customdata[0]} trials",
                **place,
            )
    return share_legend(figure)


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
        "with few trials may be unexplored, not bad.",
        summary=f"Range of the medians of {metric}: {ranges}." if moved else "Too few trials are complete for a trend.",
        data=data,
        draw=draw_slices,
    )


def _trend(parameter: Parameter, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups: list[tuple[str | None, list[Mapping[str, Any]]]]
    if not isinstance(parameter.scale, Range):
        groups = [(name, [point for point in points if point["value"] == name]) for name in parameter.scale]
    else:
        ordered = sorted(points, key=lambda point: (point["value"], point["number"]))
        count = min(_TREND_GROUPS, len(ordered) // _LEAST_IN_GROUP)
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


def _placed(entry: Mapping[str, Any], choices: Sequence[str] | None) -> dict[str, Any]:
    """Return a point or a group with its place on the axis, and its value in words."""
    value = entry["value"]
    x = value if choices is None else choices.index(value)
    return {**entry, "x": x, "said": shown(value) if isinstance(value, str) else f"{value:.4g}"}
