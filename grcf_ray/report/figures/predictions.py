"""Figures of predictions against labels: by utterance, by class, by group, by pair, and of their representations.

By utterance they are the paper's Figure 10, the representations its Figure 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from grcf_ray.config import Task
from grcf_ray.data.schema import LABEL_DECIMALS
from grcf_ray.losses.classification import separation_weight
from grcf_ray.losses.groups import OrdinalGroups
from grcf_ray.losses.regression import advantage_weight
from grcf_ray.metrics import MetricProtocol, classes_of
from grcf_ray.report.figures.layout import count_axis, name_axis, new_figure, points, shown
from grcf_ray.report.figures.palette import BLUE, GREY, ORANGE, SCALE
from grcf_ray.search.predictions import Predictions

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_SHOWN = 3000
"""Most utterances of a figure."""
_LOGIT_BINS, _CONFIDENCE_BINS = 30, 10
_PALE, _DEEP, _INK = "#eaf1f7", "#4a90cc", "#111111"
"""Cells without and with all of a row, and the text on them: its contrast is at least 4.5, in both themes."""
_PAIR_COLUMNS = (
    *("higher id", "higher text", "higher label", "higher score"),
    *("lower id", "lower text", "lower label", "lower score"),
    *("weight", "ordered right"),
)
_MOST_PAIRS = 20
_PAIRS_EACH = 2
"""Most pairs of an utterance: one odd label would fill the figure."""
_PAIR_PX = 26
_PERPLEXITY = 30.0
_SEED = 0
_LEAST_PROJECTED = 5


def spread_rows(label_N: NDArray[np.float64], most: int = MOST_SHOWN) -> NDArray[np.int64]:
    """Return [min(N, most)] row numbers in ascending order, evenly spaced in the order of the labels.

    Every label keeps its share, up to rounding.
    """
    count = len(label_N)
    if count <= most:
        return np.arange(count)
    places = np.linspace(0, count - 1, most).round().astype(np.int64)
    return np.sort(np.argsort(label_N, kind="stable")[places])


def utterance(scored: Predictions, row: int) -> dict[str, Any]:
    """Return id, text, label and score of an utterance as JSON values."""
    label, score = float(scored.label_N[row]), float(scored.score_N[row])
    return {"id": scored.id_N[row], "text": scored.text_N[row], "label": label, "score": score}


def of_split(split: Literal["valid", "test"], rows: int, total: int) -> str:
    """Return the sentence of a caption that tells which utterances are shown."""
    which = f"{total} utterances" if rows == total else f"{rows} of {total} utterances, evenly spaced by label,"
    if split == "test":
        return f"{which} of the test split, which was read after the model was chosen."
    return f"{which} of the validation split, which chose the model: optimistic."


def agreement_data(
    scored: Predictions, label_range: tuple[float, float], recorded: Mapping[str, float] | None
) -> dict[str, Any]:
    """Return label and score of each utterance, and the recorded metrics of the whole split."""
    rows = spread_rows(scored.label_N)
    return {
        "total": len(scored.label_N),
        "range": list(label_range),
        "recorded": {name: recorded[name] for name in ("mae", "corr") if recorded and name in recorded},
        "points": [utterance(scored, row) for row in rows],
    }


def draw_agreement(data: Mapping[str, Any]) -> Figure:
    """Draw a point for each utterance, with the diagonal of a perfect model."""
    figure = new_figure(520, xaxis={"title": "label"}, yaxis={"title": "prediction"})
    figure.add_scatter(
        **points(data["points"], "label", "score"),
        customdata=[[shown(point["id"]), shown(point["text"], 80)] for point in data["points"]],
        mode="markers",
        name="utterance",
        marker={"color": BLUE, "size": 6, "opacity": 0.8},
        hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>label %{x:.4g}, prediction %{y:.4f}<extra></extra>",
    )
    return _add_reference(figure, data["range"], data["range"], "prediction = label")


def _add_reference(figure: Figure, x: Sequence[float], y: Sequence[float], name: str) -> Figure:
    line = {"color": GREY, "dash": "dash"}
    return figure.add_scatter(x=x, y=y, mode="lines", name=name, line=line, hoverinfo="skip")


def class_scores_data(
    scored: Predictions, label_range: tuple[float, float], recorded: Mapping[str, float] | None
) -> dict[str, Any]:
    """Return histograms of the logits of each class."""
    positive_N = scored.label_N > sum(label_range) / 2
    edges = np.histogram_bin_edges(scored.score_N, bins=_LOGIT_BINS)
    return {
        "total": len(positive_N),
        "recorded": {name: recorded[name] for name in ("auroc", "acc2") if recorded and name in recorded},
        "edges": edges.tolist(),
        "negative": np.histogram(scored.score_N[~positive_N], edges)[0].tolist(),
        "positive": np.histogram(scored.score_N[positive_N], edges)[0].tolist(),
    }


def draw_class_scores(data: Mapping[str, Any]) -> Figure:
    """Draw two outlines of histograms, with the threshold at 0."""
    counts = count_axis(max(*data["negative"], *data["positive"]))
    figure = new_figure(380, yaxis={"title": "utterances", "rangemode": "tozero"} | counts)
    figure.update_xaxes(title="logit of the positive class")
    for name, colour, dash in (("negative", ORANGE, "dot"), ("positive", BLUE, "solid")):
        figure.add_scatter(
            x=data["edges"],
            y=[*data[name], 0],
            mode="lines",
            name=f"{name} ({sum(data[name])})",
            line={"color": colour, "shape": "hv", "dash": dash},
            fill="tozeroy",
        )
    return figure.add_vline(x=0, line={"color": GREY, "dash": "dash"})


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
    names = data["classes"]
    words = [
        ["" if not count else f"{count}<br>{share:.0%}" for count, share in zip(counts, shares, strict=True)]
        for counts, shares in zip(data["counts"], data["shares"], strict=True)
    ]
    axis = {"type": "category", "showgrid": False}
    figure = new_figure(
        120 + 60 * max(len(names), 4),
        xaxis={"title": "predicted"} | axis,
        yaxis={"title": "true", "autorange": "reversed"} | axis,
    )
    return figure.add_heatmap(
        x=names,
        y=names,
        z=data["shares"],
        text=words,
        texttemplate="%{text}",
        textfont={"color": _INK, "size": 12},
        colorscale=[[0, _PALE], [1, _DEEP]],
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "share of row"}, "tickformat": ".0%"},
        hovertemplate="true %{y}, predicted %{x}<br>%{text}<extra></extra>",
    )


def group_errors_data(scored: Predictions, label_range: tuple[float, float], groups: OrdinalGroups) -> dict[str, Any]:
    """Return for each group: utterances, mean absolute error, and mean of prediction - label; None if it is empty.

    Groups may overlap: an utterance counts in each group that contains its label.
    """
    center = sum(label_range) / 2
    member_NK = groups.membership(torch.from_numpy(scored.label_N - center)).numpy()
    error_N = scored.score_N - scored.label_N
    entries = [
        {
            "low": low + center,
            "high": high + center,
            "utterances": int(member_N.sum()),
            "mae": float(np.abs(error_N[member_N]).mean()) if member_N.any() else None,
            "bias": float(error_N[member_N].mean()) if member_N.any() else None,
        }
        for (low, high), member_N in zip(groups.intervals, member_NK.T, strict=True)
    ]
    return {"total": len(error_N), "name": groups.name, "groups": entries}


def draw_group_errors(data: Mapping[str, Any]) -> Figure:
    """Draw a bar for the size of the error and a diamond for its direction."""
    groups = data["groups"]
    names = [f"{group['low']:.3g} to {group['high']:.3g}<br>n = {group['utterances']}" for group in groups]
    figure = new_figure(400, yaxis={"title": "error, in label units", "zeroline": True})
    figure.update_xaxes(title=f"labels of the group ({data['name']})", type="category")
    bars = {"color": BLUE, "opacity": 0.7}
    figure.add_bar(x=names, y=[group["mae"] for group in groups], name="mean absolute error", marker=bars)
    return figure.add_scatter(
        x=names,
        y=[group["bias"] for group in groups],
        mode="markers",
        name="mean of prediction - label",
        marker={"color": ORANGE, "symbol": "diamond", "size": 12},
    )


def calibration_data(scored: Predictions, label_range: tuple[float, float]) -> dict[str, Any]:
    """Return utterances, mean confidence and share of errors by equal steps of the predicted class's probability."""
    positive_N = scored.label_N > sum(label_range) / 2
    wrong_N = (scored.score_N > 0) != positive_N
    confidence_N = expit(np.abs(scored.score_N))
    edges = np.linspace(0.5, 1.0, _CONFIDENCE_BINS + 1)
    bin_N = np.clip(np.searchsorted(edges, confidence_N, side="right") - 1, 0, _CONFIDENCE_BINS - 1)
    entries = [
        {
            "low": float(edges[index]),
            "high": float(edges[index + 1]),
            "utterances": int((bin_N == index).sum()),
            "confidence": float(confidence_N[bin_N == index].mean()),
            "errors": float(wrong_N[bin_N == index].mean()),
        }
        for index in np.unique(bin_N)
    ]
    return {"total": len(wrong_N), "wrong": int(wrong_N.sum()), "bins": entries}


def draw_calibration(data: Mapping[str, Any]) -> Figure:
    """Draw the share of errors against confidence, with the line of a calibrated model."""
    bins = data["bins"]
    most = max(entry["utterances"] for entry in bins)
    sizes = [6 + 14 * (entry["utterances"] / most) ** 0.5 for entry in bins]
    figure = new_figure(400, xaxis={"title": "confidence", "tickformat": ".0%"})
    figure.update_yaxes(title="share of errors", tickformat=".0%")
    figure.add_scatter(
        **points(bins, "confidence", "errors", "utterances"),
        mode="lines+markers",
        name="measured; larger for more utterances",
        marker={"color": BLUE, "size": sizes},
        hovertemplate="confidence %{x:.1%}<br>errors %{y:.1%} of %{customdata[0]}<extra></extra>",
    )
    return _add_reference(figure, [0.5, 1.0], [0.5, 0.0], "calibrated")


def hardest_pairs_data(scored: Predictions, task: Task) -> dict[str, Any]:
    """Return the pairs of different labels whose scores are most in the wrong order, or least in the right order.

    An utterance is in at most two of them. A large split is represented by the utterances of `spread_rows`. `higher` is
    the utterance with the higher label. The weight is that of the ranking loss over all pairs: eq. 9, or eq. 19 for two
    classes.
    """
    rows = spread_rows(scored.label_N)
    label_B, score_B = scored.label_N[rows], scored.score_N[rows]
    i_P, j_P = np.triu_indices(len(rows), k=1)
    differ = label_B[i_P] != label_B[j_P]
    i_P, j_P = i_P[differ], j_P[differ]
    swapped = label_B[i_P] < label_B[j_P]
    high_P, low_P = np.where(swapped, j_P, i_P), np.where(swapped, i_P, j_P)
    gap_P = score_B[high_P] - score_B[low_P]
    weight_P = pair_weights(gap_P, task)
    hardest = _hardest(gap_P, high_P, low_P)

    def cells(place: int) -> list[Any]:
        return list(utterance(scored, rows[place]).values())

    return {
        "total": len(scored.label_N),
        "score": "logit of the positive class" if task == "classification" else "prediction",
        "utterances": len(rows),
        "pairs": len(gap_P),
        "wrong": int((gap_P <= 0).sum()),
        "weighed": int((weight_P > 0).sum()),
        "table": {
            "columns": list(_PAIR_COLUMNS),
            "rows": [
                [*cells(high_P[p]), *cells(low_P[p]), float(weight_P[p]), "yes" if gap_P[p] > 0 else "no"]
                for p in hardest
            ],
        },
    }


def pair_weights(gap_P: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    """Return the weights of pairs in the ranking loss by the gaps of their scores: eq. 9, or eq. 19 for two classes."""
    weigh = separation_weight if task == "classification" else advantage_weight
    weight_P: NDArray[np.float64] = weigh(torch.from_numpy(gap_P)).numpy()
    return weight_P


def _hardest(gap_P: NDArray[np.float64], high_P: NDArray[np.int64], low_P: NDArray[np.int64]) -> list[int]:
    """Return the pairs with the smallest gaps, at most `_PAIRS_EACH` of an utterance."""
    order = np.argsort(gap_P, kind="stable")
    high_P, low_P = high_P[order], low_P[order]
    open_P, seen = np.ones(len(order), bool), Counter[int]()
    chosen: list[int] = []
    while len(chosen) < _MOST_PAIRS and open_P.any():
        place = int(np.argmax(open_P))
        open_P[place] = False
        chosen.append(int(order[place]))
        for row in (int(high_P[place]), int(low_P[place])):
            seen[row] += 1
            if seen[row] == _PAIRS_EACH:
                open_P &= (high_P != row) & (low_P != row)
    return chosen


def draw_hardest_pairs(data: Mapping[str, Any]) -> Figure:
    """Draw a line between the two predictions of each pair, the hardest at the top."""
    pairs = [dict(zip(data["table"]["columns"], row, strict=True)) for row in data["table"]["rows"]]
    ranks = list(range(len(pairs)))
    names = [f"{shown(pair['higher id'], 18)} > {shown(pair['lower id'], 18)}" for pair in pairs]
    figure = new_figure(
        140 + _PAIR_PX * len(pairs),
        xaxis={"title": data["score"]},
        yaxis=name_axis(names) | {"range": [len(pairs) - 0.3, -0.7], "zeroline": False, "title": ""},
    )
    figure.add_scatter(
        x=[x for pair in pairs for x in (pair["higher score"], pair["lower score"], None)],
        y=[y for rank in ranks for y in (rank, rank, None)],
        mode="lines",
        line={"color": GREY, "width": 2},
        hoverinfo="skip",
        showlegend=False,
    )
    for which, colour, symbol in (("higher", BLUE, "circle"), ("lower", ORANGE, "diamond-open")):
        figure.add_scatter(
            x=[pair[f"{which} score"] for pair in pairs],
            y=ranks,
            customdata=[[shown(pair[f"{which} text"], 80), pair[f"{which} label"], pair["weight"]] for pair in pairs],
            mode="markers",
            name=f"utterance with the {which} label",
            marker={"color": colour, "symbol": symbol, "size": 10, "line": {"width": 2}},
            hovertemplate="%{customdata[0]}<br>label %{customdata[1]:.4g}, prediction %{x:.4f}"
            "<br>weight of the pair %{customdata[2]:.3f}<extra></extra>",
        )
    return figure


def projection_data(scored: Predictions, task: Task, label_range: tuple[float, float]) -> dict[str, Any] | None:
    """Return the t-SNE position of each utterance. None with fewer than five, or if all representations are equal.

    `case`: whether the utterance belongs to the paper's case study: label below -2 on [-3, 3].
    """
    rows = spread_rows(scored.label_N)
    state_ND = scored.state_ND[rows]
    if len(rows) < _LEAST_PROJECTED or not np.ptp(state_ND, axis=0).any():
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
    low, high = data["range"]
    axis: dict[str, Any] = {"showticklabels": False, "zeroline": False, "title": ""}
    figure = new_figure(520, xaxis=axis, yaxis={**axis, "scaleanchor": "x"})
    # Name, marks and whether the utterance is a case, or positive.
    if data["task"] == "classification":
        key = [point["label"] > (low + high) / 2 for point in data["points"]]
        parts = [
            ("negative", {"color": ORANGE, "symbol": "diamond-open"}),
            ("positive", {"color": BLUE, "symbol": "circle"}),
        ]
    else:
        key = [point["case"] for point in data["points"]]
        bar = {"title": {"text": "label"}, "thickness": 12}
        labels = [point["label"] for point in data["points"] if not point["case"]]
        colours = {"color": labels, "cmin": low, "cmax": high, "colorscale": SCALE, "colorbar": bar}
        parts = [
            ("utterance", {**colours, "symbol": "circle"}),
            (f"label below {data['below']:.3g}", {"symbol": "x", "color": "#d00000"}),
        ]
    for second, (name, marker) in enumerate(parts):
        chosen = [point for point, is_second in zip(data["points"], key, strict=True) if is_second == bool(second)]
        figure.add_scatter(
            **points(chosen, "x", "y"),
            customdata=[[shown(point["id"]), point["label"]] for point in chosen],
            mode="markers",
            name=name,
            marker={"size": 7, "opacity": 0.8, **marker},
            hovertemplate="%{customdata[0]}<br>label %{customdata[1]:.4g}<extra></extra>",
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
