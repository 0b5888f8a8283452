"""Figures of merit of a set of scores: eq. 28 and the metrics that the field reports, in numpy.

Shapes: N utterances. scikit-learn is imported where it is used, so that importing this module stays cheap.
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
"""A metric that is still to be computed."""

_MINIMISED = ("mae", "mae_nonzero", "bce")
_MAXIMISED = (
    "corr",
    "corr_nonzero",
    "pairwise_acc",
    "acc7",
    "acc5",
    "acc_whole",
    "acc3",
    "acc2",
    "acc2_non0",
    "acc2_has0",
    "acc2_mmsa",
    "auroc",
    "f1_positive",
    "f1_positive_has0",
    "f1_positive_mmsa",
    "f1_weighted",
    "f1_weighted_has0",
    "f1_weighted_mmsa",
    "f1_macro",
    "f1_macro_has0",
    "f1_macro_mmsa",
)

METRIC_DIRECTIONS: Mapping[str, Direction] = {
    **dict.fromkeys(_MINIMISED, "min"),
    **dict.fromkeys(_MAXIMISED, "max"),
}
"""Which way each metric improves, for regression and classification."""

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
"""What people call those that are shown to them, in the order in which they are."""

_NATIVE_LIMITS = {"mosi": 3.0, "sims": 1.0}
"""Half of the label range that a protocol was made for, which its classes are decided on."""
_SIMS_ACC3_EDGES = (-0.1, 0.1)
_SIMS_ACC5_EDGES = (-0.7, -0.1, 0.1, 0.7)
_EXACT_DECIMALS = 6
"""Of a label on the scale of whole labels: beyond are the remains of a float32, or of a sum."""
_MOST_WHOLE_LABELS = 11
"""Of more, an accuracy would be of classes that nobody annotates with."""


def pairwise_accuracy(score_N: ArrayLike, label_N: ArrayLike, ties: Ties = "drop") -> float:
    """Share of the utterance pairs that the scores put in the labels' order, eq. 28, in O(N log N).

    score_N, label_N: [N], finite. `ties` says what equal values do:

    - "drop": pairs of equal labels are left out, and equal scores on different labels are wrong. The result
      does not depend on the order of the rows.
    - "literal": eq. 28 as printed, the mean of I[(y_i > y_j) <=> (p_i > p_j)] over i < j. A tie counts as
      "not greater", so where values tie the result depends on the order of the rows.

    ValueError where no pair can be compared, or where a value is not finite.
    """
    _check_choice("ties", ties, get_args(Ties))
    score, label = _checked(score_N, label_N)
    pairs = _pairs(len(label))
    if ties == "drop":
        pairs -= sum(_pairs(int(count)) for count in np.unique(label, return_counts=True)[1])
        # Equal labels in the order of their scores are never inverted; equal scores in the reverse order of
        # their labels always are.
        by_label, by_score = np.lexsort((score, label)), np.lexsort((-label, score))
    else:
        # A stable order breaks ties by row, so that for i < j "before" is exactly "not greater". A pair then
        # disagrees in eq. 28 exactly where the two orders put it in opposite order.
        by_label, by_score = np.argsort(label, kind="stable"), np.argsort(score, kind="stable")
    if pairs == 0:
        raise ValueError(f"pairwise accuracy: the {len(label)} utterances have no pair of different labels")
    rank_N = np.empty(len(label), dtype=np.int64)
    rank_N[by_score] = np.arange(len(label))
    return 1.0 - _inversions(rank_N[by_label]) / pairs


def split_metrics(
    score_N: ArrayLike,
    label_N: ArrayLike,
    *,
    protocol: MetricProtocol,
    limit: float,
    center: float = 0.0,
    origin: float = 0.0,
    ties: Ties = "drop",
) -> dict[str, float]:
    """The metrics of a data set's protocol: those of the logits under "binary", of predicted sentiment otherwise.

    score_N: [N], logits under "binary", else in label units. label_N, limit, center, origin: as in
    `regression_metrics`; ties: as in `pairwise_accuracy`.
    """
    if protocol == "binary":
        return classification_metrics(score_N, np.asarray(label_N) > center, ties=ties)
    return regression_metrics(score_N, label_N, protocol=protocol, limit=limit, center=center, origin=origin, ties=ties)


def split_metric(
    name: str,
    score_N: ArrayLike,
    label_N: ArrayLike,
    *,
    protocol: MetricProtocol,
    limit: float,
    center: float = 0.0,
    origin: float = 0.0,
    ties: Ties = "drop",
) -> float:
    """One of `split_metrics`, without the time for the others; nan where it is absent there."""
    if protocol == "binary":
        found = _of_classes(score_N, np.asarray(label_N) > center, ties)
    else:
        found = _of_regression(
            score_N, label_N, protocol=protocol, limit=limit, center=center, origin=origin, ties=ties
        )
    return found[name]() if name in found else float("nan")


def classification_metrics(logit_N: ArrayLike, positive_N: ArrayLike, *, ties: Ties = "drop") -> dict[str, float]:
    """Metrics of two classes; shares, not percentages.

    logit_N: [N], finite; positive_N: [N], whether each is of the positive class. `bce` (eq. 26), `acc2` with
    `f1_positive`, `f1_weighted` and `f1_macro` on logit > 0, and where both classes are there `auroc` and
    `pairwise_acc` (eq. 28, see `pairwise_accuracy`). With ties "drop" that is over the pairs of both classes, and the
    two differ by half the share of equal logits.
    """
    return {name: figure() for name, figure in _of_classes(logit_N, positive_N, ties).items()}


def regression_metrics(
    score_N: ArrayLike,
    label_N: ArrayLike,
    *,
    protocol: MetricProtocol,
    limit: float | None = None,
    center: float = 0.0,
    origin: float = 0.0,
    ties: Ties = "drop",
) -> dict[str, float]:
    """Metrics of predicted sentiment, by the conventions of a family of data sets; shares, not percentages.

    score_N, label_N: [N], finite, in label units, the labels in [center - limit, center + limit]. `limit`
    is by default the protocol's own, 3 for "mosi" and 1 for "sims"; "own" has none. On another range the classes of
    "mosi" and "sims" are decided on (value - center) * own / limit; errors stay in label units. `origin` is the
    label that 0 stands for, where scores and labels are given less a constant.

    All protocols: `mae`, `corr` (nan where scores or labels are constant), `pairwise_acc` (see
    `pairwise_accuracy`) and, with the labels equal to `center` left out, `acc2_non0` with its `f1_positive`,
    `f1_weighted` and `f1_macro`, on value > center. A key whose utterances or pairs do not exist is absent.

    "mosi" (MOSI and MOSEI) and "own" (any other data) add `mae_nonzero` and `corr_nonzero` (labels other than
    `center`) and `acc2_has0` with its `f1_*_has0` (all utterances, value >= center). Their accuracies of more classes
    differ: "mosi" has `acc7` and `acc5` (rounded half to even, after clipping to +-3 and +-2), "own" has `acc_whole`
    (clipped to the range and rounded to its whole labels), which is absent where `classes_of` gives None.

    "sims" (CH-SIMS and v2) clips scores and labels to the range first, as MMSA does, for all but
    `pairwise_acc`, and adds `acc3` and `acc5` (right-closed bins) and `acc2_mmsa` with its `f1_*_mmsa` (all
    utterances, value > center).
    """
    found = _of_regression(score_N, label_N, protocol=protocol, limit=limit, center=center, origin=origin, ties=ties)
    return {name: figure() for name, figure in found.items()}


def _of_classes(logit_N: ArrayLike, positive_N: ArrayLike, ties: Ties) -> dict[str, Figure]:
    """What `classification_metrics` gives, each still to be computed."""
    positive = np.asarray(positive_N, dtype=bool)
    logit, label = _checked(logit_N, positive)
    figures: dict[str, Figure] = {"bce": lambda: float((np.logaddexp(0, logit) - label * logit).mean())}
    figures |= _binary(logit > 0, positive, acc="acc2")
    if np.ptp(label) > 0:
        figures["pairwise_acc"] = lambda: pairwise_accuracy(logit, label, ties)
        figures["auroc"] = lambda: _auroc(logit, positive)
    return figures


def _auroc(logit_N: Floats, positive_N: Bools) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive_N, logit_N))


def _of_regression(
    score_N: ArrayLike,
    label_N: ArrayLike,
    *,
    protocol: MetricProtocol,
    limit: float | None,
    center: float,
    origin: float,
    ties: Ties,
) -> dict[str, Figure]:
    """What `regression_metrics` gives, each still to be computed."""
    _check_choice("protocol", protocol, (*_NATIVE_LIMITS, "own"))
    whole, truth = _checked(score_N, label_N)
    limit = _NATIVE_LIMITS.get(protocol) if limit is None else limit
    if limit is None:
        raise ValueError(f"protocol='{protocol}': give limit, half of the label range")
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
    """[N] positions in `names` of the scores, or of the labels, [N] in label units."""


def classes_of(protocol: MetricProtocol, *, limit: float, center: float = 0.0, origin: float = 0.0) -> Classes | None:
    """The finest classes that a regression protocol compares; None where there are none.

    "mosi" compares the seven of Acc7 and "sims" the five of Acc5, on any range as `regression_metrics` has it. "own"
    compares the whole labels of the range: none where there are fewer than two of them, or more than eleven.
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
    """Which classes `acc_whole` has on labels of this range."""
    low, high = label_range
    classes = classes_of("own", limit=(high - low) / 2, center=(low + high) / 2)
    names = classes.names if classes else ()
    return (
        f"{METRIC_TITLES['acc_whole']}: scores and labels rounded to the nearest of {len(names)} labels, "
        f"{', '.join(names)}."
    )


def _scaled(value_N: ArrayLike, protocol: MetricProtocol, limit: float, center: float) -> NDArray[np.float32]:
    """Values less the center, on the range that the protocol decides classes on.

    The field's code decides them in float32, where a label that was stored as 0.1 is the edge 0.1.
    """
    scale = np.float32(_NATIVE_LIMITS.get(protocol, limit) / limit)
    value = np.asarray(value_N, dtype=np.float64).astype(np.float32)
    scaled_N: NDArray[np.float32] = (value - np.float32(center)) * scale
    return scaled_N


def _inversions(order_N: Ints) -> int:
    """Pairs a < b with order_a > order_b, of a permutation of 0..N-1, in O(N log N).

    A merge sort read from the top: one pass per bit of the values, the highest first. Before a pass the
    values that agree in all higher bits form a block, which lies where the sorted permutation has it, its
    values in their original order. The inversions between the halves of a block are the ones that stand
    before each zero of the bit; a stable partition by the bit then makes the blocks of the next pass.
    """
    index_N = np.arange(len(order_N))
    total = 0
    for bit in reversed(range(len(order_N).bit_length())):
        one_N = (order_N >> bit) & 1
        start_N = (order_N >> (bit + 1)) << (bit + 1)
        ones_before = np.concatenate(([0], np.cumsum(one_N)))
        ones_before_N = ones_before[:-1] - ones_before[start_N]
        total += int(ones_before_N[one_N == 0].sum())
        zeros_before_N = index_N - start_N - ones_before_N
        position_N = start_N + np.where(one_N, (1 << bit) + ones_before_N, zeros_before_N)
        partitioned_N = np.empty_like(order_N)
        partitioned_N[position_N] = order_N
        order_N = partitioned_N
    return total


def _pairs(count: int) -> int:
    return count * (count - 1) // 2


def _mae(score_N: Floats, label_N: Floats) -> float:
    return float(np.abs(score_N - label_N).mean())


def _corr(score_N: Floats, label_N: Floats) -> float:
    """Pearson correlation; nan where either side is constant."""
    if np.ptp(score_N) == 0 or np.ptp(label_N) == 0:
        return float("nan")
    return float(np.corrcoef(score_N, label_N)[0, 1])


def _agreement(class_p_N: NDArray[Any], class_y_N: NDArray[Any]) -> float:
    return float((class_p_N == class_y_N).mean())


def _right_closed(value_N: Floats, edges: tuple[float, ...]) -> Ints:
    """Index of the bin (edge, next edge] of each value."""
    return np.searchsorted(np.asarray(edges, dtype=value_N.dtype), value_N, side="left")


def _binary(positive_p_N: Bools, positive_y_N: Bools, *, acc: str, suffix: str = "") -> dict[str, Figure]:
    """Accuracy under the name `acc` and the three F1 of two classes, their names ending in `suffix`."""
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
    """Both as float64 [N], N > 0, finite."""
    score, label = np.asarray(score_N, dtype=np.float64), np.asarray(label_N, dtype=np.float64)
    if score.ndim != 1 or score.shape != label.shape or len(score) == 0:
        raise ValueError(f"scores and labels must both be [N], N > 0, got {score.shape} and {label.shape}")
    for name, value in (("scores", score), ("labels", label)):
        finite = np.isfinite(value)
        if not finite.all():
            row, bad = int(np.argmin(finite)), int(np.sum(~finite))
            raise ValueError(f"{name}: {bad} of {len(value)} are not finite, first {value[row]} in row {row}")
    return score, label
