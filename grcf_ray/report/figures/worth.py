"""The winner's figure beside what its parameters and the starting point give without the luck of the choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.figures.layout import name_axis, new_figure, points
from grcf_ray.report.figures.palette import BLUE, GREY
from grcf_ray.report.plot import Plot
from grcf_ray.report.worth import Worth

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def worth_data(worth: Worth) -> dict[str, Any]:
    """Return the estimates, and `rows` with their names and intervals in the order of the figure."""
    rows = [{"what": "winner, as chosen", "value": worth.figure, "low": None, "high": None}]
    estimates = {
        "winner's parameters, another seed": worth.corrected,
        "starting point, one seed": worth.start,
        f"starting point, best of {worth.affordable} seeds": worth.best_start,
    }
    rows += [
        {"what": name, "value": estimate.mean, "low": estimate.low, "high": estimate.high}
        for name, estimate in estimates.items()
        if estimate is not None
    ]
    return {"title": METRIC_TITLES[worth.metric], "estimates": worth.model_dump(mode="json"), "rows": rows}


def draw_worth(data: Mapping[str, Any]) -> Figure:
    """Draw a line for each figure: a dot, and a whisker for its interval."""
    rows = [{**row, "line": line} for line, row in enumerate(data["rows"])]
    names = [row["what"] for row in rows]
    figure = new_figure(
        100 + 34 * len(rows),
        xaxis={"title": f"valid {data['title']}"},
        yaxis={"range": [len(rows) - 0.5, -0.5], "showgrid": True, **name_axis(names)},
        showlegend=False,
        margin={"l": 10, "r": 10, "t": 30, "b": 60},
    )
    known = [row for row in rows if row["low"] is not None]
    figure.add_scatter(
        **points(known, "value", "line", "low", "high"),
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [row["high"] - row["value"] for row in known],
            "arrayminus": [row["value"] - row["low"] for row in known],
            "color": GREY,
        },
        mode="markers",
        marker={"size": 9, "color": BLUE},
        hovertemplate="%{x:.4f} [%{customdata[0]:.4f}, %{customdata[1]:.4f}]<extra></extra>",
    )
    figure.add_scatter(
        **points([row for row in rows if row["low"] is None], "value", "line"),
        mode="markers",
        marker={"size": 10, "color": BLUE, "symbol": "diamond-open", "line": {"width": 2}},
        hovertemplate="%{x:.4f}<extra></extra>",
    )
    return figure


def worth_plot(worth: Worth) -> Plot | None:
    """Return the figure, or None if nothing can be estimated."""
    data = worth_data(worth)
    if len(data["rows"]) < 2:
        return None
    return Plot(
        name="worth",
        title="What the gain is worth",
        caption=f"Validation {data['title']}; whiskers are 95 % intervals. The winner was chosen for its figure, which "
        "therefore contains luck. So does the best of several seeds of the starting point, which cost as much as the "
        "search.",
        summary=" ".join(worth.sentences()),
        data=data,
        draw=draw_worth,
    )
