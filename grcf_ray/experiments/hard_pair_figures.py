"""The figures of the hard pairs: weight by label distance, Figure 6 (conflicts) and Figure 7 (quadrants)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from grcf_ray.experiments.hard_pair_tables import LETTERS, mean_or_none, over_seeds
from grcf_ray.experiments.pair_statistics import SEED, TOP, WeightedPairs, gaps, set_title
from grcf_ray.experiments.plotting import COLOURS, draw_lines, panels, spread_line
from grcf_ray.experiments.result import Picture
from grcf_ray.statistics import spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 2000
"""The most pairs that a scatter plot shows."""


def pictures(seeds: Sequence[WeightedPairs]) -> list[Picture]:
    """Return the figures of a task; conflicts and quadrants need a model that sees more than the text."""
    regression = seeds[0].task == "regression"
    near = [_near_picture(seeds)] if regression else []
    if not seeds[0].alone:
        return near
    return [*near, _conflict_picture(seeds) if regression else _quadrant_picture(seeds[0])]


def _near_picture(seeds: Sequence[WeightedPairs]) -> Picture:
    """Return the mean weight by the distance of the labels, in tenths of the pairs."""
    first = seeds[0]
    distance_P = gaps(first.label_N, first.pairs_P2)
    edges = np.unique(np.quantile(distance_P, np.linspace(0, 1, 11)))
    bin_P = np.clip(np.searchsorted(edges, distance_P, side="right") - 1, 0, max(0, len(edges) - 2))
    bins = [bin_P == k for k in range(max(1, len(edges) - 1)) if (bin_P == k).any()]
    means = [spread([float(pairs.weight_P[within_P].mean()) for pairs in seeds]) for within_P in bins]
    distances = [float(distance_P[within_P].mean()) for within_P in bins]
    panel = {
        "title": "Weight by distance of the labels",
        "x_title": "|s_i - s_j|",
        "y_title": "mean weight",
        "lines": [spread_line("mean weight", distances, means)],
    }
    return Picture(
        name="proximity",
        caption="Mean weight over seeds of all pairs, in tenths by the distance of their labels. Error bars are one "
        "deviation.",
        data={"panels": [panel]},
        draw=draw_lines,
    )


def _conflict_picture(seeds: Sequence[WeightedPairs]) -> Picture:
    """Return Figure 6: of the top pairs, weights by conflict count, their means, and the modalities in conflict."""
    boxes, trend = [], []
    for count in range(len(seeds[0].alone) + 1):
        weights = [pairs.weights(TOP, count) for pairs in seeds]
        if len(weights[0]):
            low, q1, median, q3, high = np.quantile(weights[0], [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
            box = {"whislo": low, "q1": q1, "med": median, "q3": q3, "whishi": high, "label": f"{count}"}
            boxes.append({**box, "place": count, "pairs": len(weights[0])})
        over = over_seeds(map(mean_or_none, weights))
        if over["mean"] is not None:
            trend.append({"x": count, "y": over["mean"], "error": over["deviation"] or 0.0})
    shares = []
    for names in seeds[0].conflict_sets:
        over = over_seeds(pairs.conflict_share(TOP, names) for pairs in seeds)
        shares.append({"name": set_title(names), "share": over["mean"], "error": over["deviation"] or 0.0})
    return Picture(
        name="conflicts",
        caption="The top 5 % by weight: (a) weights by the number of modalities in conflict, one seed, whiskers at "
        "5 and 95 %; (b) their mean over seeds; (c) shares of the modalities in conflict, over seeds. Error bars are "
        "one deviation.",
        data={"boxes": boxes, "trend": trend, "shares": shares},
        draw=draw_conflicts,
    )


def draw_conflicts(data: Mapping[str, Any]) -> Figure:
    """Draw the boxes, trend and bars of Figure 6."""
    figure, (box, trend, bars) = panels(3, columns=3, width=4.2, height=3.6)
    box.bxp(
        [entry | {"label": f"{entry['label']}\n{entry['pairs']} pairs"} for entry in data["boxes"]],
        positions=[entry["place"] for entry in data["boxes"]],
        showfliers=False,
        widths=0.6,
    )
    box.set(title="(a) Weight", xlabel="modalities in conflict", ylabel="weight")
    points = data["trend"]
    trend.errorbar(
        [p["x"] for p in points],
        [p["y"] for p in points],
        yerr=[p["error"] for p in points],
        color=COLOURS[0],
        marker="o",
        ms=4,
        capsize=3,
    )
    trend.set(title="(b) Mean weight", xlabel="modalities in conflict", ylabel="mean weight")
    trend.set_xticks([p["x"] for p in points])
    places = range(len(data["shares"]))
    bars.barh(
        places,
        [entry["share"] for entry in data["shares"]],
        xerr=[entry["error"] for entry in data["shares"]],
        color=COLOURS[1],
        capsize=2,
    )
    bars.set_yticks(places, [entry["name"] for entry in data["shares"]], fontsize="small")
    bars.invert_yaxis()
    bars.set(title="(c) In conflict", xlabel="share of the pairs", xlim=(0, None))
    for axis in (box, trend, bars):
        axis.grid(alpha=0.3)
    return figure


def _quadrant_picture(first: WeightedPairs) -> Picture:
    """Return Figure 7: how text and another modality order each pair, by weight, under the first seed."""
    drawn_P = np.arange(len(first.pairs_P2))
    if len(drawn_P) > _POINTS:
        drawn_P = np.sort(np.random.default_rng(SEED).choice(len(drawn_P), _POINTS, replace=False))
    pairs_P2 = first.pairs_P2[drawn_P]
    shown = [
        {
            "title": f"T-{LETTERS[name]}",
            "other": name,
            "x": gaps(first.alone["text"], pairs_P2).tolist(),
            "y": gaps(first.alone[name], pairs_P2).tolist(),
            "weight": first.weight_P[drawn_P].tolist(),
        }
        for name in ("vision", "audio")
        if name in first.alone
    ]
    return Picture(
        name="quadrants",
        caption=f"{len(drawn_P)} of {len(first.pairs_P2)} pairs, one seed: the score of the positive utterance less "
        "that of the negative one, by text alone and by another modality alone. In quadrants II and IV the two "
        "disagree. Colour and size show the weight.",
        data={"panels": shown},
        draw=draw_quadrants,
    )


def draw_quadrants(data: Mapping[str, Any]) -> Figure:
    """Draw a point for each pair; heavier pairs are darker, larger and in front."""
    figure, axes = panels(len(data["panels"]), width=4.6, height=4.0)
    for axis, panel in zip(axes, data["panels"], strict=True):
        order = np.argsort(panel["weight"])
        weight_P = np.array(panel["weight"])[order]
        points = axis.scatter(
            np.array(panel["x"])[order],
            np.array(panel["y"])[order],
            c=weight_P,
            s=6 + 60 * weight_P / max(weight_P.max(), 1e-12),
            cmap="cividis_r",
            alpha=0.7,
        )
        axis.axhline(0, color="#808080", lw=1)
        axis.axvline(0, color="#808080", lw=1)
        axis.set(title=panel["title"], xlabel="text: difference of the logits", ylabel=panel["other"])
        figure.colorbar(points, ax=axis, label="weight")
    return figure
