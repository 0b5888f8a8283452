"""Metrics: pairwise accuracy (eq. 28) and the metrics that the field reports, in numpy.

Shapes: N utterances. scikit-learn and scipy are imported at first use, so that importing this module stays cheap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Direction = Literal["max", "min"]
MetricProtocol = Literal["mosi", "sims", "own", "binary"]
Ties = Literal["drop", "literal"]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Figure = Callable[[], float]
"""A metric that is computed when called."""

_F1 = [f"f1_{average}{suffix}" for average in ("positive", "weighted", "macro") for suffix in ("", "_has0", "_mmsa")]
METRIC_DIRECTIONS: Mapping[str, Direction] = {
    **dict.fromkeys(("mae", "mae_nonzero", "bce"), "min"),
    **dict.fromkeys(("corr", "corr_nonzero", "pairwise_acc", "acc7", "acc5", "acc_whole", "acc3"), "max"),
    **dict.fromkeys(("acc2", "acc2_non0", "acc2_has0", "acc2_mmsa", "auroc", *_F1), "max"),
}
"""Direction in which each metric improves, for regression and classification."""

METRIC_TITLES: Mapping[str, str] = {
    "bce": "BCE",
    "mae": "MAE",
    "corr": "Corr",
    "pairwise_acc": "PairwiseAcc",
    "auroc": "AUROC",
    "acc2": "Acc2",
    "acc7": "Acc7",
    "acc5": "Acc5",
    "acc_whole": "Acc (whole labels)",
    "acc3": "Acc3",
    "acc2_non0": "Acc2 (non-zero)",
    "acc2_has0": "Acc2 (has zero)",
    "acc2_mmsa": "Acc2 (MMSA)",
    "f1_positive": "F1 (positive)",
    "f1_weighted": "F1 (weighted)",
    "f1_macro": "F1 (macro)",
    "f1_weighted_mmsa": "F1 (weighted, MMSA)",
}
"""Display names of the metrics that every table shows, in display order."""
_VARIANTS = {"nonzero": "non-zero", "has0": "has zero", "mmsa": "MMSA"}

_NATIVE_LIMITS = {"mosi": 3.0, "sims": 1.0}
"""Half of the label range for which a protocol defines its classes."""
_SIMS_ACC3_EDGES = (-0.1, 0.1)
_SIMS_ACC5_EDGES = (-0.7, -0.1, 0.1, 0.7)
_EXACT_DECIMALS = 6
"""Decimals of a label that count; the rest is rounding of a float32, or of a sum."""
_MOST_WHOLE_LABELS = 11
"""Largest number of labels that count as classes; no annotation scheme has more."""


def metric_title(name: str) -> str:
    """Return the display name of any metric: `f1_macro_has0` is F1 (macro, has zero)."""
    if name in METRIC_TITLES:
        return METRIC_TITLES[name]
    base, _, variant = name.rpartition("_")
    title, words = METRIC_TITLES[base], _VARIANTS[variant]
    return f"{title[:-1]}, {words})" if title.endswith(")") else f"{title} ({words})"


def pairwise_accuracy(score_N: ArrayLike, label_N: ArrayLike, ties: Ties = "drop") -> float:
    """Return the share of utterance pairs that the scores order as the labels do, eq. 28, in O(N log N).

    score_N, label_N: [N], finite. `ties` decides about equal values:

    - "drop": pairs of equal labels are left out, and equal scores on different labels are wrong. The result
      does not depend on the row order.
    - "literal": eq. 28 as printed, the mean of I[(y_i > y_j) <=> (p_i > p_j)] over i < j. A tie counts as
      "not greater", so ties make the result depend on the row order.

    ValueError if no pair can be compared, or if a value is not finite.
    """
    _check_choice("ties", ties, get_args(Ties))
    score, label = _checked(score_N, label_N)
    pairs = _pairs(len(label))
    if ties == "drop":
        pairs -= sum(_pairs(int(count)) for count in np.unique(label, return_counts=True)[1])
        # Sorted by score, equal labels are never inverted. Equal scores, in reverse order of their labels, always are.
        by_label, by_score = np.lexsort((score, label)), np.lexsort((-label, score))
    else:
        # A stable sort breaks ties by row, so for i < j "before" is exactly "not greater". A pair then disagrees in eq.
        # 28 exactly if the two orders invert it.
        by_label, by_score = np.argsort(label, kind="stable"), np.argsort(score, kind="stable")
    if pairs == 0:
        raise ValueError(f"pairwise accuracy: none of the {len(label)} utterances form a pair of different labels")
    rank_N = np.empty(len(label), dtype=np.int64)
    rank_N[by_score] = np.arange(len(label))
    return 1.0 - _inversions(rank_N[by_label]) / pairs


def finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the finite metrics: JSON has no NaN, such as the correlation of constant scores."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def split_metrics(
    score_N: ArrayLike,
    label_N: ArrayLike,
    *,
    protocol: MetricProtocol,
    limit: float | None = None,
    center: float = 0.0,
    origin: float = 0.0,
    ties: Ties = "drop",
    only: str | None = None,
) -> dict[str, float]:
    """Return the metrics of predicted sentiment, by the conventions of a data set family; shares, not percentages.

    score_N, label_N: [N], finite, in label units; labels in [center - limit, center + limit]. limit: by default 3 for
    "mosi" and 1 for "sims"; required for "own". On another range "mosi" and "sims" decide classes on (value - center) *
    own / limit; errors stay in label units. origin: the label that 0 stands for, if scores and labels are offsets.
    only: the one metric to compute; the result is empty if the data have no such metric.

    Regression: `mae`, `corr` (nan if scores or labels are constant) and `pairwise_acc`. Without the labels equal to
    `center`: `acc2_non0` with its `f1_positive`, `f1_weighted` and `f1_macro`, on value > center. A key without
    utterances or pairs is absent.

    "mosi" (MOSI and MOSEI) and "own" (other data) add `mae_nonzero` and `corr_nonzero` (labels other than `center`),
    and `acc2_has0` with its `f1_*_has0` (all utterances, value >= center). "mosi" adds `acc7` and `acc5`, rounded half
    to even after clipping to +-3 and +-2. "own" adds `acc_whole`, clipped to the range and rounded to whole labels,
    unless `classes_of` returns None.

    "sims" (CH-SIMS and v2) clips scores and labels to the range first, as MMSA does, except for `pairwise_acc`. It adds
    `acc3` and `acc5` (right-closed bins) and `acc2_mmsa` with its `f1_*_mmsa` (all utterances, value > center).

    "binary" is classification: scores are logits, and labels above `center` are positive. `bce` (eq. 26); `acc2` with
    `f1_positive`, `f1_weighted` and `f1_macro` on logit > 0; and, if both classes occur, `auroc` and `pairwise_acc`
    (eq. 28). With ties "drop" the last two differ by half the share of equal logits.
    """
    _check_choice("protocol", protocol, get_args(MetricProtocol))
    if protocol == "binary":
        figures = _classification_figures(score_N, np.asarray(label_N) > center, ties)
    else:
        figures = _regression_figures(score_N, label_N, protocol, limit, center, origin, ties)
    return {name: figure() for name, figure in figures.items() if only in (None, name)}


def _classification_figures(logit_N: ArrayLike, positive_N: Bools, ties: Ties) -> dict[str, Figure]:
    logit, label = _checked(logit_N, positive_N)
    figures: dict[str, Figure] = {"bce": lambda: float((np.logaddexp(0, logit) - label * logit).mean())}
    figures |= _binary(logit > 0, positive_N, acc="acc2")
    if np.ptp(label) > 0:
        figures["pairwise_acc"] = lambda: pairwise_accuracy(logit, label, ties)
        figures["auroc"] = lambda: _auroc(logit, positive_N)
    return figures


def _auroc(logit_N: Floats, positive_N: Bools) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive_N, logit_N))


def _regression_figures(
    score_N: ArrayLike,
    label_N: ArrayLike,
    protocol: MetricProtocol,
    limit: float | None,
    center: float,
    origin: float,
    ties: Ties,
) -> dict[str, Figure]:
    whole, truth = _checked(score_N, label_N)
    limit = _NATIVE_LIMITS.get(protocol) if limit is None else limit
    if limit is None:
        raise ValueError(f"protocol='{protocol}': limit is required: half of the label range")
    figures: dict[str, Figure] = {}
    if np.ptp(truth) > 0:
        figures["pairwise_acc"] = lambda: pairwise_accuracy(whole, truth, ties)
    score, label = whole, truth
    if protocol == "sims":
        score, label = (np.clip(value, center - limit, center + limit) for value in (whole, truth))
    figures |= {"mae": lambda: _mae(score, label), "corr": lambda: _corr(score, label)}

    p, y = (_scaled(value, protocol, limit, center) for value in (score, label))
    non0 = y != 0
    if non0.any():
        figures |= _binary(p[non0] > 0, y[non0] > 0, acc="acc2_non0")
    classes = classes_of(protocol, limit=limit, center=center, origin=origin)
    if classes is not None:
        figures[classes.metric] = lambda: _agreement(classes.index(score), classes.index(label))
    if protocol == "sims":
        figures["acc3"] = lambda: _agreement(*(_right_closed(v, _SIMS_ACC3_EDGES) for v in (p, y)))
        figures |= _binary(p > 0, y > 0, acc="acc2_mmsa", suffix="_mmsa")
        return figures
    if non0.any():
        figures["mae_nonzero"] = lambda: _mae(score[non0], label[non0])
        figures["corr_nonzero"] = lambda: _corr(score[non0], label[non0])
    if protocol == "mosi":
        figures["acc5"] = lambda: _agreement(*(np.round(np.clip(v, -2, 2)) for v in (p, y)))
    figures |= _binary(p >= 0, y >= 0, acc="acc2_has0", suffix="_has0")
    return figures


@dataclass(frozen=True)
class Classes:
    """The classes that an accuracy compares."""

    metric: str
    """Key of the accuracy."""
    names: tuple[str, ...]
    """In ascending order of the labels."""
    index: Callable[[ArrayLike], Ints]
    """Return the positions [N] in `names` of scores or labels, [N] in label units."""


def classes_of(protocol: MetricProtocol, *, limit: float, center: float = 0.0, origin: float = 0.0) -> Classes | None:
    """Return the finest classes that a regression protocol compares; None if it has none.

    "mosi" has the seven classes of Acc7, "sims" the five of Acc5, on any range. "own" has the whole labels of the
    range, if there are two to eleven of them.
    """
    if protocol == "mosi":

        def seven(value_N: ArrayLike) -> Ints:
            scaled_N = _scaled(value_N, protocol, limit, center)
            rounded_N: Ints = np.round(np.clip(scaled_N, -3, 3)).astype(np.int64) + 3
            return rounded_N

        return Classes("acc7", tuple(f"{value:+d}" if value else "0" for value in range(-3, 4)), seven)
    if protocol == "sims":
        names = ("negative", "weakly negative", "neutral", "weakly positive", "positive")
        return Classes("acc5", names, lambda v: _right_closed(_scaled(v, protocol, limit, center), _SIMS_ACC5_EDGES))
    middle = origin + center
    low, high = math.ceil(round(middle - limit, _EXACT_DECIMALS)), math.floor(round(middle + limit, _EXACT_DECIMALS))
    if protocol != "own" or not 1 <= high - low < _MOST_WHOLE_LABELS:
        return None

    def nearest(value_N: ArrayLike) -> Ints:
        label_N = np.round(np.asarray(value_N, dtype=np.float64) + origin, _EXACT_DECIMALS)
        rounded_N: Ints = np.round(np.clip(label_N, low, high)).astype(np.int64) - low
        return rounded_N

    signed = "+d" if low < 0 else "d"
    return Classes("acc_whole", tuple(f"{v:{signed}}" if v else "0" for v in range(low, high + 1)), nearest)


def acc_whole_note(label_range: tuple[float, float]) -> str:
    """Return a note that lists the classes of `acc_whole` on labels of this range."""
    low, high = label_range
    classes = classes_of("own", limit=(high - low) / 2, center=(low + high) / 2)
    names = classes.names if classes else ()
    return (
        f"{METRIC_TITLES['acc_whole']}: scores and labels rounded to the nearest of {len(names)} labels, "
        f"{', '.join(names)}."
    )


def _scaled(value_N: ArrayLike, protocol: MetricProtocol, limit: float, center: float) -> NDArray[np.float32]:
    """Return values less the center, scaled to the range for which the protocol defines its classes.

    The field's code computes them in float32, where a label stored as 0.1 is equal to the edge 0.1.
    """
    scale = np.float32(_NATIVE_LIMITS.get(protocol, limit) / limit)
    value = np.asarray(value_N, dtype=np.float64).astype(np.float32)
    scaled_N: NDArray[np.float32] = (value - np.float32(center)) * scale
    return scaled_N


def _inversions(order_N: Ints) -> int:
    """Return the number of pairs a < b with order_a > order_b, in O(N log N). order_N: a permutation of 0..N-1."""
    from scipy.stats import kendalltau

    # tau = 1 - inversions / (pairs / 2). Its rounding error is far below one inversion for N up to millions.
    tau = kendalltau(np.arange(len(order_N)), order_N).statistic
    return round(float(1 - tau) * _pairs(len(order_N)) / 2)


def _pairs(count: int) -> int:
    return count * (count - 1) // 2


def _mae(score_N: Floats, label_N: Floats) -> float:
    return float(np.abs(score_N - label_N).mean())


def _corr(score_N: Floats, label_N: Floats) -> float:
    """Return the Pearson correlation; nan if either side is constant."""
    if np.ptp(score_N) == 0 or np.ptp(label_N) == 0:
        return float("nan")
    return float(np.corrcoef(score_N, label_N)[0, 1])


def _agreement(class_p_N: NDArray[Any], class_y_N: NDArray[Any]) -> float:
    return float((class_p_N == class_y_N).mean())


def _right_closed(value_N: Floats, edges: tuple[float, ...]) -> Ints:
    """Return the index of the bin (edge, next edge] of each value."""
    return np.searchsorted(np.asarray(edges, dtype=value_N.dtype), value_N, side="left")


def _binary(positive_p_N: Bools, positive_y_N: Bools, *, acc: str, suffix: str = "") -> dict[str, Figure]:
    """Return the accuracy as `acc` and three F1 scores of two classes; the names of the latter end in `suffix`."""
    p, y = positive_p_N.astype(int), positive_y_N.astype(int)

    def f1(average: str) -> Figure:
        def figure() -> float:
            from sklearn.metrics import f1_score

            return float(f1_score(y, p, average=average, zero_division=0))

        return figure

    averages = {"f1_positive": "binary", "f1_weighted": "weighted", "f1_macro": "macro"}
    return {acc: lambda: _agreement(p, y), **{key + suffix: f1(how) for key, how in averages.items()}}


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{option}='{value}': choose from {', '.join(choices)}")


def _checked(score_N: ArrayLike, label_N: ArrayLike) -> tuple[Floats, Floats]:
    """Return both as float64 [N]. ValueError unless N > 0 and all values are finite."""
    score, label = np.asarray(score_N, dtype=np.float64), np.asarray(label_N, dtype=np.float64)
    if score.ndim != 1 or score.shape != label.shape or len(score) == 0:
        raise ValueError(f"scores and labels must both be [N], N > 0, got {score.shape} and {label.shape}")
    for name, value in (("scores", score), ("labels", label)):
        finite = np.isfinite(value)
        if not finite.all():
            row, bad = int(np.argmin(finite)), int(np.sum(~finite))
            raise ValueError(f"{name}: {bad} of {len(value)} are not finite, first {value[row]} in row {row}")
    return score, label
