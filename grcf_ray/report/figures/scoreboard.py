"""The winner's metrics beside the paper, the baselines and the retrainings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grcf_ray.metrics import METRIC_DIRECTIONS, METRIC_TITLES
from grcf_ray.report.figures.layout import new_figure
from grcf_ray.report.figures.palette import BLUE, GREEN, GREY, ORANGE
from grcf_ray.report.figures.text import shown
from grcf_ray.search.comparisons import baseline_kind

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_ARMS = {"winner": "winner retrained", "start": "starting point retrained"}
_COLUMNS = 2
_PANEL_PX = 175


def scoreboard_data(metrics: Mapping[str, Any], seeds: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the recorded values of each metric.

    metrics: best/metrics.json. seeds: seeds/metrics.json if the winner was retrained; its entries have a deviation.
    """
    panels: list[dict[str, Any]] = []
    for name, title in METRIC_TITLES.items():
        if name not in metrics["test"]:
            continue
        found = [("valid", metrics["valid"].get(name), None), ("test", metrics["test"][name], None)]
        found += [
            (f"{baseline_kind(baseline)}, test", baseline["test"].get(name), None) for baseline in metrics["baselines"]
        ]
        found += [("paper, test", metrics["paper"].get(name), None)]
        for arm, words in _ARMS.items() if seeds else ():
            figure = seeds["arms"][arm]["test"].get(name) if seeds else None
            found += [(f"{words}, test", figure["mean"], figure["deviation"])] if figure else []
        entries = [
            {"what": what, "value": value, "deviation": deviation}
            for what, value, deviation in found
            if value is not None
        ]
        panels.append({"metric": name, "title": title, "better": METRIC_DIRECTIONS[name], "entries": entries})
    columns = list(dict.fromkeys(entry["what"] for panel in panels for entry in panel["entries"]))
    return {
        "panels": panels,
        "seeds": seeds["seeds"] if seeds else None,
        "not_comparable": list(metrics["not_comparable"]),
        "columns": columns,
    }


def draw_scoreboard(data: Mapping[str, Any]) -> Figure:
    """Draw a panel for each metric on its own scale; whiskers are deviations over the seeds."""
    from plotly.graph_objects import Scatter

    panels, columns = data["panels"], data["columns"]
    lines = -(-len(panels) // _COLUMNS)
    height = 88 + (_PANEL_PX + 12 * max(0, len(columns) - 4)) * lines
    # Space for plotly's buttons, which would cover the first titles on a narrow page.
    figure = new_figure(height, showlegend=False, margin={"l": 10, "r": 20, "t": 58, "b": 30})
    gap = min(0.35 / lines, 0.2)
    tall = (1 - gap * (lines - 1)) / lines
    names = [shown(column, 32) for column in columns]
    for index, panel in enumerate(panels):
        row, column = divmod(index, _COLUMNS)
        suffix = "" if index == 0 else str(index + 1)
        top = 1 - row * (tall + gap)
        arrow = "↑" if panel["better"] == "max" else "↓"
        domain = (0.0, 0.47) if column == 0 else (0.53, 1.0)
        bottom = max(0.0, top - tall)
        y_axis: dict[str, Any] = {"domain": (bottom, top), "anchor": f"x{suffix}", "tickvals": list(range(len(names)))}
        y_axis |= {"ticktext": names, "range": [len(names) - 0.5, -0.5], "automargin": True, "title": {"text": ""}}
        y_axis |= {"showticklabels": column == 0, "showgrid": True}
        x_axis: dict[str, Any] = {
            "domain": domain,
            "anchor": f"y{suffix}",
            "nticks": 4,
            "tickangle": 0,
            "title": {"text": ""},
        }
        figure.update_layout({f"xaxis{suffix}": x_axis, f"yaxis{suffix}": y_axis})
        figure.add_annotation(
            text=f"<b>{shown(panel['title'])}</b> {arrow}",
            x=domain[0],
            y=top,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
        )
        entries = panel["entries"]
        figure.add_trace(
            Scatter(
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
                x=[entry["value"] for entry in entries],
                y=[columns.index(entry["what"]) for entry in entries],
                error_x={"type": "data", "array": [entry["deviation"] for entry in entries], "color": GREY},
                mode="markers",
                marker={
                    "size": 9,
                    "color": [_colour(entry["what"]) for entry in entries],
                    "symbol": ["circle" if entry["what"] == "test" else "diamond-open" for entry in entries],
                    "line": {"width": 2},
                },
                customdata=[shown(entry["what"]) for entry in entries],
                hovertemplate="%{customdata}: %{x:.4f}<extra></extra>",
            )
        )
    return figure


def _colour(what: str) -> str:
    if what in ("valid", "test"):
        return BLUE
    if what == "paper, test":
        return ORANGE
    return GREEN if what.endswith("retrained, test") else GREY
