"""Images of the best model for TensorBoard: scores against labels, and the confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary

from grcf_ray.metrics import METRIC_TITLES, MetricProtocol
from grcf_ray.report.figures.confusion import confusion_data
from grcf_ray.report.view import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES, _DPI = (4.4, 3.9), 160
_RGBA = 4
_DARK = 0.6
"""Share of a row above which a cell's number is white."""


def png_values(
    scored: Predictions, split: str, *, protocol: MetricProtocol, label_range: tuple[float, float]
) -> list[Summary.Value]:
    """Return the images of a split with the tags `predictions/<split>` and `confusion/<split>`.

    There is no confusion matrix if the protocol has no classes on this label range.
    """
    crossed = confusion_data(scored, protocol, label_range)

    def predictions(axes: Axes) -> None:
        if protocol == "binary":
            _draw_logits(axes, scored, sum(label_range) / 2)
        else:
            _draw_scores(axes, scored, label_range)

    images = [_image(f"predictions/{split}", f"Best model, {split}: scores against labels", predictions)]
    if crossed is not None:
        title = f"Best model, {split}: {METRIC_TITLES[crossed['metric']]} {crossed['right']:.4f}"
        images.append(_image(f"confusion/{split}", title, lambda axes: _draw_confusion(axes, crossed)))
    return images


def _draw_scores(axes: Axes, scored: Predictions, label_range: tuple[float, float]) -> None:
    ends = np.array([*label_range, scored.score_N.min(), scored.score_N.max()])
    reach = (ends.min() - 0.2, ends.max() + 0.2)
    axes.plot(label_range, label_range, color="0.6", linewidth=1, label="score = label")
    axes.scatter(scored.label_N, scored.score_N, s=16, alpha=0.5, linewidths=0)
    axes.set(xlabel="label", ylabel="score", xlim=reach, ylim=reach, aspect="equal")
    axes.legend(loc="upper left", frameon=False)


def _draw_logits(axes: Axes, scored: Predictions, center: float) -> None:
    bins = np.histogram_bin_edges(scored.score_N, bins=24)
    positive_N = scored.label_N > center
    for name, chosen_N in (("negative", ~positive_N), ("positive", positive_N)):
        axes.hist(scored.score_N[chosen_N], bins=bins.tolist(), alpha=0.6, label=f"label {name}")
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set(xlabel="logit of the positive class", ylabel="utterances")
    axes.legend(frameon=False)


def _draw_confusion(axes: Axes, crossed: Mapping[str, Any]) -> None:
    names = crossed["classes"]
    # A row without utterances has no shares.
    share_KK = np.nan_to_num(np.array(crossed["shares"], dtype=float))
    axes.imshow(share_KK, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(np.array(crossed["counts"])):
        ink = "white" if share_KK[row, column] > _DARK else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=ink)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="class of the score", ylabel="class of the label (shade: share of row)")


def _image(tag: str, title: str, draw: Callable[[Axes], None]) -> Summary.Value:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(title)
    content = io.BytesIO()
    # A figure without a window is drawn by Agg.
    figure.savefig(content, format="png")
    width, height = (round(_DPI * inches) for inches in _INCHES)
    image = Summary.Image(width=width, height=height, colorspace=_RGBA, encoded_image_string=content.getvalue())
    return Summary.Value(tag=tag, image=image)
