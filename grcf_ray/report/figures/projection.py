"""The representation before the head in two dimensions, by t-SNE (the paper's Figure 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grcf_ray.config import Task
from grcf_ray.data.features import LABEL_DECIMALS
from grcf_ray.report.figures.layout import new_figure
from grcf_ray.report.figures.palette import BLUE, ORANGE, SCALE
from grcf_ray.report.figures.text import shown
from grcf_ray.report.figures.utterances import spread_rows
from grcf_ray.report.view import Predictions

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_PERPLEXITY = 30.0
_SEED = 0
_LEAST = 5


def projection_data(scored: Predictions, task: Task, label_range: tuple[float, float]) -> dict[str, Any] | None:
    """Return the t-SNE position of each utterance. None with fewer than five, or if all representations are equal.

    `case`: whether the utterance belongs to the paper's case study: label below -2 on [-3, 3].
    """
    rows = spread_rows(scored.label_N)
    state_ND = scored.state_ND[rows]
    if len(rows) < _LEAST or not np.ptp(state_ND, axis=0).any():
        return None
    low, high = label_range
    perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
    below = round((low + high) / 2 - (high - low) / 3, LABEL_DECIMALS)
    return {
        "task": task,
        "total": len(scored.label_N),
        "range": [low, high],
        "perplexity": perplexity,
        "seed": _SEED,
        "below": None if task == "classification" else below,
        "points": [
            {
                "id": scored.id_N[row],
                "label": float(scored.label_N[row]),
                "x": float(x),
                "y": float(y),
                "case": task == "regression" and bool(scored.label_N[row] < below),
            }
            for row, (x, y) in zip(rows, _project(state_ND, perplexity), strict=True)
        ],
    }


def draw_projection(data: Mapping[str, Any]) -> Figure:
    """Draw points coloured by label, case-study samples as crosses; for two classes, a symbol for each class."""
    from plotly.graph_objects import Scatter

    low, high = data["range"]
    axis: dict[str, Any] = {"showticklabels": False, "zeroline": False, "title": {"text": ""}}
    figure = new_figure(520, xaxis=axis, yaxis={**axis, "scaleanchor": "x"})
    parts: list[tuple[str, dict[str, Any], Callable[[Mapping[str, Any]], bool]]]
    if data["task"] == "classification":
        parts = [
            ("negative", {"color": ORANGE, "symbol": "diamond-open"}, lambda p: p["label"] <= (low + high) / 2),
            ("positive", {"color": BLUE, "symbol": "circle"}, lambda p: p["label"] > (low + high) / 2),
        ]
    else:
        bar = {"title": {"text": "label"}, "thickness": 12}
        colours = {"cmin": low, "cmax": high, "colorscale": SCALE}
        parts = [
            ("utterance", {**colours, "symbol": "circle", "colorbar": bar}, lambda p: not p["case"]),
            (f"label below {data['below']:.3g}", {"symbol": "x", "color": "#d00000"}, lambda p: p["case"]),
        ]
    for name, marker, belongs in parts:
        points = [point for point in data["points"] if belongs(point)]
        labels = [point["label"] for point in points]
        figure.add_trace(
            Scatter(
                x=[point["x"] for point in points],
                y=[point["y"] for point in points],
                customdata=[[shown(point["id"]), point["label"]] for point in points],
                mode="markers",
                name=name,
                marker={"size": 7, "opacity": 0.8, "color": labels, **marker},
                hovertemplate="%{customdata[0]}<br>label %{customdata[1]:.4g}<extra></extra>",
            )
        )
    return figure


def _project(state_ND: NDArray[np.float32], perplexity: float) -> NDArray[np.float32]:
    """Return reproducible positions [N, 2]: one thread, since t-SNE amplifies differences of rounding."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):
        place_N2: NDArray[np.float32] = TSNE(perplexity=perplexity, init="pca", random_state=_SEED).fit_transform(
            state_ND
        )
    return place_N2
