"""Errors of a model by ordinal group of the label, or for two classes by confidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import expit

from grcf_ray.losses.groups import OrdinalGroups
from grcf_ray.report.figures.layout import new_figure
from grcf_ray.report.figures.palette import BLUE, GREY, ORANGE
from grcf_ray.report.view import Predictions

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_BINS = 10


def group_errors_data(scored: Predictions, label_range: tuple[float, float], groups: OrdinalGroups) -> dict[str, Any]:
    """Return for each group: utterances, mean absolute error, and mean of prediction - label; None if it is empty.

    Groups may overlap: an utterance counts in each group that contains its label.
    """
    center = sum(label_range) / 2
    member_NK = groups.membership(torch.from_numpy(scored.label_N - center)).numpy()
    error_N = scored.score_N - scored.label_N
    entries = []
    for (low, high), member_N in zip(groups.intervals, member_NK.T, strict=True):
        inside = error_N[member_N]
        entries.append(
            {
                "low": low + center,
                "high": high + center,
                "utterances": len(inside),
                "mae": float(np.abs(inside).mean()) if len(inside) else None,
                "bias": float(inside.mean()) if len(inside) else None,
            }
        )
    return {"total": len(error_N), "name": groups.name, "groups": entries}


def draw_group_errors(data: Mapping[str, Any]) -> Figure:
    """Draw a bar for the size of the error and a diamond for its direction."""
    from plotly.graph_objects import Bar, Scatter

    groups = data["groups"]
    names = [f"{group['low']:.3g} to {group['high']:.3g}<br>n = {group['utterances']}" for group in groups]
    figure = new_figure(400, yaxis={"title": {"text": "error, in label units"}, "zeroline": True})
    figure.update_layout(xaxis={"title": {"text": f"labels of the group ({data['name']})"}, "type": "category"})
    figure.add_trace(
        Bar(x=names, y=[g["mae"] for g in groups], name="mean absolute error", marker={"color": BLUE, "opacity": 0.7})
    )
    figure.add_trace(
        Scatter(
            x=names,
            y=[group["bias"] for group in groups],
            mode="markers",
            name="mean of prediction - label",
            marker={"color": ORANGE, "symbol": "diamond", "size": 11},
        )
    )
    return figure


def calibration_data(scored: Predictions, label_range: tuple[float, float]) -> dict[str, Any]:
    """Return utterances, mean confidence and share of errors by equal steps of the predicted class's probability."""
    positive_N = scored.label_N > sum(label_range) / 2
    wrong_N = (scored.score_N > 0) != positive_N
    confidence_N = expit(np.abs(scored.score_N))
    edges = np.linspace(0.5, 1.0, _BINS + 1)
    bin_N = np.clip(np.searchsorted(edges, confidence_N, side="right") - 1, 0, _BINS - 1)
    entries = []
    for index in range(_BINS):
        inside = bin_N == index
        if inside.any():
            entries.append(
                {
                    "low": float(edges[index]),
                    "high": float(edges[index + 1]),
                    "utterances": int(inside.sum()),
                    "confidence": float(confidence_N[inside].mean()),
                    "errors": float(wrong_N[inside].mean()),
                }
            )
    return {"total": len(wrong_N), "wrong": int(wrong_N.sum()), "bins": entries}


def draw_calibration(data: Mapping[str, Any]) -> Figure:
    """Draw the share of errors against confidence, with the line of a calibrated model."""
    from plotly.graph_objects import Scatter

    bins = data["bins"]
    most = max(entry["utterances"] for entry in bins)
    figure = new_figure(400, xaxis={"title": {"text": "confidence"}, "tickformat": ".0%"})
    figure.update_layout(yaxis={"title": {"text": "share of errors"}, "tickformat": ".0%"})
    figure.add_trace(
        Scatter(
            x=[entry["confidence"] for entry in bins],
            y=[entry["errors"] for entry in bins],
            customdata=[entry["utterances"] for entry in bins],
            mode="lines+markers",
            name="measured; larger for more utterances",
            marker={"color": BLUE, "size": [6 + 14 * (entry["utterances"] / most) ** 0.5 for entry in bins]},
            hovertemplate="confidence %{x:.1%}<br>errors %{y:.1%} of %{customdata}<extra></extra>",
        )
    )
    figure.add_trace(
        Scatter(
            x=[0.5, 1.0],
            y=[0.5, 0.0],
            mode="lines",
            name="calibrated",
            line={"color": GREY, "dash": "dash"},
            hoverinfo="skip",
        )
    )
    return figure
