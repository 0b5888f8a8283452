"""The pairs that a model orders worst, with their weight in the ranking loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from grcf_ray.config import Task
from grcf_ray.losses.classification import separation_weight
from grcf_ray.losses.regression import advantage_weight
from grcf_ray.report.figures.layout import new_figure
from grcf_ray.report.figures.palette import BLUE, GREY, ORANGE
from grcf_ray.report.figures.text import shown
from grcf_ray.report.figures.utterances import spread_rows
from grcf_ray.report.view import Predictions

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLUMNS = (
    *("higher id", "higher text", "higher label", "higher score"),
    *("lower id", "lower text", "lower label", "lower score"),
    *("weight", "ordered right"),
)
_TOP = 20
_EACH = 2
"""Most pairs of an utterance: one odd label would fill the figure."""
_ROW_PX = 26


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
    weigh = separation_weight if task == "classification" else advantage_weight
    weight_P = weigh(torch.from_numpy(gap_P)).numpy()
    hardest = _hardest(gap_P, high_P, low_P)

    def told(place: int) -> list[Any]:
        row = rows[place]
        return [scored.id_N[row], scored.text_N[row], float(scored.label_N[row]), float(scored.score_N[row])]

    return {
        "total": len(scored.label_N),
        "score": "logit of the positive class" if task == "classification" else "prediction",
        "utterances": len(rows),
        "pairs": len(gap_P),
        "wrong": int((gap_P <= 0).sum()),
        "weighed": int((weight_P > 0).sum()),
        "table": {
            "columns": list(COLUMNS),
            "rows": [
                [*told(high_P[p]), *told(low_P[p]), float(weight_P[p]), "yes" if gap_P[p] > 0 else "no"]
                for p in hardest
            ],
        },
    }


def _hardest(gap_P: NDArray[np.float64], high_P: NDArray[np.int64], low_P: NDArray[np.int64]) -> list[int]:
    """Return the pairs with the smallest gaps, at most `_EACH` of an utterance."""
    order = np.argsort(gap_P, kind="stable")
    high_P, low_P = high_P[order], low_P[order]
    open_P, seen = np.ones(len(order), bool), Counter[int]()
    chosen: list[int] = []
    while len(chosen) < _TOP and open_P.any():
        place = int(np.argmax(open_P))
        open_P[place] = False
        chosen.append(int(order[place]))
        for utterance in (int(high_P[place]), int(low_P[place])):
            seen[utterance] += 1
            if seen[utterance] == _EACH:
                open_P &= (high_P != utterance) & (low_P != utterance)
    return chosen


def draw_hardest_pairs(data: Mapping[str, Any]) -> Figure:
    """Draw a line between the two predictions of each pair, the hardest at the top."""
    from plotly.graph_objects import Scatter

    pairs = [dict(zip(data["table"]["columns"], row, strict=True)) for row in data["table"]["rows"]]
    ranks = list(range(1, len(pairs) + 1))
    names = [f"{shown(pair['higher id'], 18)} > {shown(pair['lower id'], 18)}" for pair in pairs]
    figure = new_figure(140 + _ROW_PX * len(pairs), xaxis={"title": {"text": data["score"]}})
    figure.update_layout(
        yaxis={
            "tickvals": ranks,
            "ticktext": names,
            "range": [len(pairs) + 0.7, 0.3],
            "automargin": True,
            "title": {"text": ""},
        }
    )
    figure.add_trace(
        Scatter(
            x=[x for pair in pairs for x in (pair["higher score"], pair["lower score"], None)],
            y=[y for rank in ranks for y in (rank, rank, None)],
            mode="lines",
            line={"color": GREY, "width": 2},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    for which, colour, symbol in (("higher", BLUE, "circle"), ("lower", ORANGE, "diamond-open")):
        figure.add_trace(
            Scatter(
                x=[pair[f"{which} score"] for pair in pairs],
                y=ranks,
                customdata=[
                    [shown(pair[f"{which} text"], 80), pair[f"{which} label"], pair["weight"]] for pair in pairs
                ],
                mode="markers",
                name=f"the one of the {which} label",
                marker={"color": colour, "symbol": symbol, "size": 10, "line": {"width": 2}},
                hovertemplate="%{customdata[0]}<br>label %{customdata[1]:.4g}, prediction %{x:.4f}"
                "<br>weight of the pair %{customdata[2]:.3f}<extra></extra>",
            )
        )
    return figure
