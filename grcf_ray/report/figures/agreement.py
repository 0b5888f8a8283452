"""Truth against prediction (the paper's Figure 10), or for two classes the logits of each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from grcf_ray.report.figures.layout import count_axis, new_figure
from grcf_ray.report.figures.palette import BLUE, GREY, ORANGE
from grcf_ray.report.figures.text import shown
from grcf_ray.report.figures.utterances import spread_rows
from grcf_ray.report.view import Predictions

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_BINS = 30


def agreement_data(
    scored: Predictions, label_range: tuple[float, float], recorded: Mapping[str, float] | None
) -> dict[str, Any]:
    """Return label and score of each utterance, and the recorded metrics of the whole split."""
    rows = spread_rows(scored.label_N)
    return {
        "total": len(scored.label_N),
        "range": list(label_range),
        "recorded": {name: recorded[name] for name in ("mae", "corr") if recorded and name in recorded},
        "points": [
            {
                "id": scored.id_N[row],
                "text": scored.text_N[row],
                "label": float(scored.label_N[row]),
                "score": float(scored.score_N[row]),
            }
            for row in rows
        ],
    }


def draw_agreement(data: Mapping[str, Any]) -> Figure:
    """Draw a point for each utterance, with the diagonal of a perfect model."""
    from plotly.graph_objects import Scatter

    points, (low, high) = data["points"], data["range"]
    figure = new_figure(520, xaxis={"title": {"text": "label"}}, yaxis={"title": {"text": "prediction"}})
    figure.add_trace(
        Scatter(
            x=[point["label"] for point in points],
            y=[point["score"] for point in points],
            customdata=[[shown(point["id"]), shown(point["text"], 80)] for point in points],
            mode="markers",
            name="utterance",
            marker={"color": BLUE, "size": 6, "opacity": 0.5},
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>label %{x:.4g}, prediction %{y:.4f}<extra></extra>",
        )
    )
    figure.add_trace(
        Scatter(
            x=[low, high],
            y=[low, high],
            mode="lines",
            name="prediction = label",
            line={"color": GREY, "dash": "dash"},
            hoverinfo="skip",
        )
    )
    return figure


def class_scores_data(
    scored: Predictions, label_range: tuple[float, float], recorded: Mapping[str, float] | None
) -> dict[str, Any]:
    """Return histograms of the logits of each class."""
    positive_N = scored.label_N > sum(label_range) / 2
    edges = np.histogram_bin_edges(scored.score_N, bins=_BINS)
    return {
        "total": len(positive_N),
        "recorded": {name: recorded[name] for name in ("auroc", "acc2") if recorded and name in recorded},
        "edges": edges.tolist(),
        "negative": np.histogram(scored.score_N[~positive_N], edges)[0].tolist(),
        "positive": np.histogram(scored.score_N[positive_N], edges)[0].tolist(),
    }


def draw_class_scores(data: Mapping[str, Any]) -> Figure:
    """Draw two outlines of histograms, with the threshold at 0."""
    from plotly.graph_objects import Scatter

    most = max(*data["negative"], *data["positive"])
    figure = new_figure(380, xaxis={"title": {"text": "logit of the positive class"}})
    figure.update_layout(yaxis={"title": {"text": "utterances"}, "rangemode": "tozero", **count_axis(most)})
    for name, colour, dash in (("negative", ORANGE, "dot"), ("positive", BLUE, "solid")):
        figure.add_trace(
            Scatter(
                x=data["edges"],
                y=[*data[name], 0],
                mode="lines",
                name=f"{name} ({sum(data[name])})",
                line={"color": colour, "shape": "hv", "dash": dash},
                fill="tozeroy",
            )
        )
    figure.add_vline(x=0, line={"color": GREY, "dash": "dash"})
    return figure
