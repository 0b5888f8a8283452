"""The confusion matrix of the classes of the data set's accuracy, such as the seven of Acc7."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from grcf_ray.metrics import MetricProtocol, classes_of
from grcf_ray.report.figures.layout import new_figure
from grcf_ray.report.figures.palette import BLUE
from grcf_ray.report.view import Predictions

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_PALE = "#eaf1f7"
"""Opaque, so that plotly chooses a readable text colour in both themes."""


def confusion_data(
    scored: Predictions, protocol: MetricProtocol, label_range: tuple[float, float]
) -> dict[str, Any] | None:
    """Return the confusion matrix, or None if the protocol has no classes on this range (see `metrics.classes_of`).

    `counts`: a row for each true class, a column for each predicted one. `shares`: of the row; None if it is empty.
    `metric`: the accuracy of these classes. `right`: its value, the share on the diagonal.
    """
    low, high = label_range
    center, limit = (low + high) / 2, (high - low) / 2
    if protocol == "binary":
        metric, names = "acc2", ["negative", "positive"]
        truth_N, prediction_N = (scored.label_N > center).astype(int), (scored.score_N > 0).astype(int)
    else:
        classes = classes_of(protocol, limit=limit, center=center)
        if classes is None:
            return None
        metric, names = classes.metric, list(classes.names)
        truth_N, prediction_N = classes.index(scored.label_N), classes.index(scored.score_N)
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (truth_N, prediction_N), 1)
    return {
        "metric": metric,
        "classes": names,
        "counts": counts.tolist(),
        "shares": [(row / row.sum()).tolist() if row.sum() else [None] * len(row) for row in counts],
        "total": int(counts.sum()),
        "right": float((truth_N == prediction_N).mean()),
    }


def draw_confusion(data: Mapping[str, Any]) -> Figure:
    """Draw cells shaded by their share of the row, with count and share."""
    from plotly.graph_objects import Heatmap

    names = data["classes"]
    words = [
        ["" if not count else f"{count}<br>{share:.0%}" for count, share in zip(counts, shares, strict=True)]
        for counts, shares in zip(data["counts"], data["shares"], strict=True)
    ]
    figure = new_figure(120 + 60 * max(len(names), 4))
    figure.add_trace(
        Heatmap(
            x=names,
            y=names,
            z=data["shares"],
            text=words,
            texttemplate="%{text}",
            colorscale=[[0, _PALE], [1, BLUE]],
            zmin=0,
            zmax=1,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "share of row"}, "tickformat": ".0%"},
            hovertemplate="true %{y}, predicted %{x}<br>%{text}<extra></extra>",
        )
    )
    figure.update_layout(
        xaxis={"title": {"text": "predicted"}, "type": "category", "showgrid": False},
        yaxis={"title": {"text": "true"}, "type": "category", "showgrid": False, "autorange": "reversed"},
    )
    return figure
