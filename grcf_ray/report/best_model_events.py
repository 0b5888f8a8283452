"""The best model for TensorBoard: images of scores against labels and of the confusion matrix, and the projector.

The projector reads tab-separated text, which has no quoting: a space replaces characters that would end a cell or a
line.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary

from grcf_ray.metrics import METRIC_TITLES, MetricProtocol
from grcf_ray.report.figures.predictions import confusion_data
from grcf_ray.search.predictions import Predictions
from grcf_ray.storage import StoragePath

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES, _DPI = (4.4, 3.9), 160
_RGBA = 4
_DARK = 0.6
"""Share of a row above which a cell's number is white."""
_LONGEST = 300
"""Most characters of a text in the projector."""


def png_values(
    scored: Predictions, split: str, *, protocol: MetricProtocol, label_range: tuple[float, float]
) -> list[Summary.Value]:
    """Return the images of a split with the tags `predictions/<split>` and `confusion/<split>`.

    There is no confusion matrix if the protocol has no classes on this label range.
    """
    crossed = confusion_data(scored, protocol, label_range)
    draw = _draw_logits if protocol == "binary" else _draw_scores
    title = f"Best model, {split}: scores against labels"
    images = [_image(f"predictions/{split}", title, lambda axes: draw(axes, scored, label_range))]
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


def _draw_logits(axes: Axes, scored: Predictions, label_range: tuple[float, float]) -> None:
    bins = np.histogram_bin_edges(scored.score_N, bins=24)
    positive_N = scored.label_N > sum(label_range) / 2
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


def write_projector(place: StoragePath, embeddings: Mapping[str, tuple[str, Predictions]]) -> None:
    """Write the projector's files into `place`: z_final, label, score, text and id of each utterance.

    embeddings: title and predictions by name of the files. The projector reads only folders with an event file, so all
    embeddings are in one folder.
    """
    config = []
    for name, (title, scored) in embeddings.items():
        tensor, metadata = f"{name}-state.tsv", f"{name}-utterances.tsv"
        with (place / tensor).writing() as path:
            np.savetxt(path, scored.state_ND, fmt="%.5g", delimiter="\t")
        (place / metadata).write_text(metadata_tsv(scored))
        config.append(
            f'embeddings {{\n  tensor_name: "{title}"\n  tensor_path: "{tensor}"\n  metadata_path: "{metadata}"\n}}\n'
        )
    (place / "projector_config.pbtxt").write_text("".join(config))


def metadata_tsv(scored: Predictions) -> str:
    """Return a header line, then a line for each utterance."""
    rows = [("text", "label", "score", "id")]
    for text, label, score, name in zip(scored.text_N, scored.label_N, scored.score_N, scored.id_N, strict=True):
        rows.append((cell(text), f"{label:.4g}", f"{score:.4g}", cell(name)))
    return "".join("\t".join(row) + "\n" for row in rows)


def cell(text: str) -> str:
    """Return the text for one cell: blanks and control characters as single spaces, cut if too long."""
    plain = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    words = " ".join(plain.split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"
