from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, log_loss, mean_absolute_error, roc_auc_score

from grcf_ray.metrics import (
    METRIC_DIRECTIONS,
    Ties,
    acc_whole_note,
    classes_of,
    metric_title,
    pairwise_accuracy,
    split_metrics,
)

Floats = NDArray[np.floating[Any]]

MOSI_KEYS = {
    *("mae", "corr", "mae_nonzero", "corr_nonzero", "pairwise_acc", "acc7", "acc5"),
    *("acc2_non0", "f1_positive", "f1_weighted", "f1_macro"),
    *("acc2_has0", "f1_positive_has0", "f1_weighted_has0", "f1_macro_has0"),
}
SIMS_KEYS = {
    *("mae", "corr", "pairwise_acc", "acc5", "acc3"),
    *("acc2_non0", "f1_positive", "f1_weighted", "f1_macro"),
    *("acc2_mmsa", "f1_positive_mmsa", "f1_weighted_mmsa", "f1_macro_mmsa"),
}
OWN_KEYS = MOSI_KEYS - {"acc7", "acc5"} | {"acc_whole"}
AVERAGES = (("binary", "positive"), ("weighted", "weighted"), ("macro", "macro"))
CLASS_KEYS = {"bce", "acc2", "f1_positive", "f1_weighted", "f1_macro", "auroc", "pairwise_acc"}


def brute_force(score: Floats, label: Floats, ties: Ties) -> float:
    """Eq. 28 pair by pair; with `drop` over the pairs of different labels, a tied score being wrong."""
    right = pairs = 0
    for i in range(len(label)):
        for j in range(i + 1, len(label)):
            if ties == "literal":
                right += (label[i] > label[j]) == (score[i] > score[j])
                pairs += 1
            elif label[i] != label[j]:
                right += np.sign(label[i] - label[j]) == np.sign(score[i] - score[j])
                pairs += 1
    return float(right / pairs)


def predictions(seed: int, count: int = 200, limit: float = 3.0) -> tuple[Floats, Floats]:
    """Labels on steps of limit / 15, zeros among them, and scores that follow them."""
    rng = np.random.default_rng(seed)
    label = rng.integers(-15, 16, count) / 15 * limit
    return (label + rng.normal(0, limit / 3, count)).astype(np.float32), label.astype(np.float32)


@pytest.mark.parametrize("ties", ["drop", "literal"])
@pytest.mark.parametrize("levels", [2, 3, 7, 1000])
@pytest.mark.parametrize("count", [2, 3, 9, 65])
def test_pairwise_accuracy_matches_brute_force(count: int, levels: int, ties: Ties) -> None:
    """The fewer the levels, the more ties in labels, in scores and in both."""
    rng = np.random.default_rng(count * levels)
    for _ in range(4):
        label, score = rng.integers(0, levels, count) / 5, rng.integers(0, levels, count) - 1.5
        label[0], label[1] = 0.0, 1.0
        assert pairwise_accuracy(score, label, ties) == pytest.approx(brute_force(score, label, ties), abs=1e-12)


def test_pairwise_accuracy_of_many_tied_utterances() -> None:
    """Counts over label levels: for each score level, how many labels below it have a lower score."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, 31, 20_000)
    score = np.clip(label + rng.integers(-4, 5, 20_000), 0, 31)
    table = np.zeros((31, 32), dtype=np.int64)
    np.add.at(table, (label, score), 1)
    right = sum(int(table[y, p] * table[:y, :p].sum()) for y in range(31) for p in range(32))
    sizes = table.sum(axis=1)
    pairs = (20_000**2 - int((sizes**2).sum())) // 2
    assert pairwise_accuracy(score, label) == pytest.approx(right / pairs, abs=1e-12)


def test_pairwise_accuracy_counts_what_the_docstring_says_of_ties() -> None:
    label = np.array([0.0, 0.0, 1.0, 2.0])
    assert pairwise_accuracy(label, label) == 1.0
    assert pairwise_accuracy(-label, label) == 0.0
    assert pairwise_accuracy(np.zeros(4), label) == 0.0
    # No pair i < j of ascending labels has y_i > y_j, and no equal scores have p_i > p_j.
    assert pairwise_accuracy(np.zeros(4), label, "literal") == 1.0
    assert pairwise_accuracy(np.zeros(4), label[::-1], "literal") == pytest.approx(1 / 6)


def test_only_the_literal_reading_depends_on_the_order_of_rows() -> None:
    label = np.repeat(np.arange(10.0), 10)
    score = label + np.random.default_rng(2).normal(0, 0.01, 100)
    ascending, descending = np.argsort(score), np.argsort(-score)
    literal = [pairwise_accuracy(score[rows], label[rows], "literal") for rows in (ascending, descending)]
    assert literal[0] == 1.0
    assert literal[1] == pytest.approx(1 - 10 * 45 / 4950)
    for rows in (ascending, descending):
        assert pairwise_accuracy(score[rows], label[rows]) == 1.0


def test_pairwise_accuracy_is_undefined_without_a_comparable_pair() -> None:
    with pytest.raises(ValueError, match="different labels"):
        pairwise_accuracy([0.1, 0.2, 0.3], [1.0, 1.0, 1.0])
    for ties in ("drop", "literal"):
        with pytest.raises(ValueError, match="the 1 utterances"):
            pairwise_accuracy([0.1], [1.0], ties)


def test_acc7_and_acc5_round_half_to_even_after_clipping() -> None:
    label = np.array([0.0, 2.0, 2.0, -3.0, 1.0])
    score = np.array([0.5, 1.5, 2.5, -7.0, 0.5])
    actual = split_metrics(score, label, protocol="mosi")
    assert actual["acc7"] == 0.8
    assert actual["acc5"] == 0.8
    assert split_metrics([3.4, 0.0], [2.0, 0.0], protocol="mosi")["acc5"] == 1.0
    assert split_metrics([3.4, 0.0], [2.0, 0.0], protocol="mosi")["acc7"] == 0.5


def test_swapped_whole_labels_are_errors() -> None:
    """Stars of 1 and 2 that always change places: both are in one class of Acc5, and both are wrong here."""
    stars = np.array([1.0, 2.0, 1.0, 2.0, 5.0])
    swapped = np.array([2.0, 1.0, 2.0, 1.0, 5.0])
    actual = split_metrics(swapped, stars, protocol="own", limit=2.0, center=3.0)
    assert actual["acc_whole"] == 0.2
    assert not actual.keys() & {"acc7", "acc5"}
    # What the classes of [-3, 3] would make of it.
    assert split_metrics(swapped, stars, protocol="mosi", limit=2.0, center=3.0)["acc5"] == 1.0


@pytest.mark.parametrize(
    ("protocol", "low", "high"),
    [("mosi", -3, 3), *(("own", low, high) for low, high in ((1, 5), (0, 10), (-4, 4), (0, 1), (2, 5)))],
)
def test_metrics_match_scikit_learn_and_scipy(protocol: Any, low: int, high: int) -> None:
    for seed in range(3):
        limit, center = (high - low) / 2, (high + low) / 2
        score, label = predictions(seed, limit=limit)
        label = np.round(label.astype(float) + center, 4)
        score = score.astype(float) + center
        actual = split_metrics(score, label, protocol=protocol, limit=limit, center=center)
        non0 = label != center
        assert 0 < non0.sum() < len(label)
        expected = {
            "mae": mean_absolute_error(label, score),
            "corr": pearsonr(score, label).statistic,
            "mae_nonzero": mean_absolute_error(label[non0], score[non0]),
            "corr_nonzero": pearsonr(score[non0], label[non0]).statistic,
            "pairwise_acc": brute_force(score, label, "drop"),
            "acc2_non0": accuracy_score(label[non0] > center, score[non0] > center),
            "acc2_has0": accuracy_score(label >= center, score >= center),
        }
        for average, key in AVERAGES:
            expected[f"f1_{key}"] = f1_score(label[non0] > center, score[non0] > center, average=average)
            expected[f"f1_{key}_has0"] = f1_score(label >= center, score >= center, average=average)
        classes = {"acc_whole": (low, high)} if protocol == "own" else {"acc7": (-3, 3), "acc5": (-2, 2)}
        for key, edges in classes.items():
            expected[key] = accuracy_score(*(np.round(np.clip(value, *edges)).astype(int) for value in (label, score)))
        assert actual == pytest.approx(expected, rel=1e-6)
        assert set(actual) == (OWN_KEYS if protocol == "own" else MOSI_KEYS)
        # As training has them: less the center, in float32.
        less = split_metrics(
            score - center, (label - center).astype(np.float32), protocol=protocol, limit=limit, origin=center
        )
        assert less == pytest.approx(actual, rel=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "names"),
    [
        (1.0, 5.0, ["1", "2", "3", "4", "5"]),
        (-1.5, 2.0, ["-1", "0", "+1", "+2"]),
        (0.0, 10.0, [str(value) for value in range(11)]),
        # Sums of the middle and the half range that come out beside the whole label.
        (1.0, 5.3, ["1", "2", "3", "4", "5"]),
        (0.1, 3.0, ["1", "2", "3"]),
        (0.0, 11.0, None),
        (0.0, 100.0, None),
        (0.2, 1.8, None),
        (0.2, 0.8, None),
    ],
)
def test_whole_labels_are_those_of_the_range(low: float, high: float, names: list[str] | None) -> None:
    limit, center = (high - low) / 2, (low + high) / 2
    classes = classes_of("own", limit=limit, center=center)
    assert (None if classes is None else list(classes.names)) == names
    actual = split_metrics([low, high], [low, high], protocol="own", limit=limit, center=center)
    assert ("acc_whole" in actual) == (names is not None)
    if classes is not None:
        assert classes.index([low - 9, high + 9]).tolist() == [0, len(classes.names) - 1]
        assert f"{len(classes.names)} labels, {', '.join(classes.names)}." in acc_whole_note((low, high))


def mmsa_class(value: float, edges: list[float]) -> int:
    """MMSA's rule: clip to [-1, 1], then the bin (edges[i], edges[i + 1]] that holds the value."""
    value = min(max(value, -1.0), 1.0)
    (result,) = [i for i in range(len(edges) - 1) if edges[i] < value <= edges[i + 1]]
    return result


@pytest.mark.parametrize("seed", range(3))
def test_sims_metrics_match_mmsas_rule(seed: int) -> None:
    score, label = predictions(seed, limit=1.0)
    actual = split_metrics(score, label, protocol="sims")
    assert set(actual) == SIMS_KEYS

    classes = {
        name: [[mmsa_class(float(value), edges) for value in values] for values in (label, score)]
        for name, edges in {
            "acc2_mmsa": [-1.01, 0.0, 1.01],
            "acc3": [-1.01, -0.1, 0.1, 1.01],
            "acc5": [-1.01, -0.7, -0.1, 0.1, 0.7, 1.01],
        }.items()
    }
    expected = {name: accuracy_score(*pair) for name, pair in classes.items()}
    for average, key in AVERAGES:
        expected[f"f1_{key}_mmsa"] = f1_score(*classes["acc2_mmsa"], average=average)
        expected[f"f1_{key}"] = f1_score(label[label != 0] > 0, score[label != 0] > 0, average=average)
    expected["acc2_non0"] = accuracy_score(label[label != 0] > 0, score[label != 0] > 0)
    clipped = np.clip(score, -1, 1).astype(float)
    expected["mae"] = mean_absolute_error(label.astype(float), clipped)
    expected["corr"] = pearsonr(clipped, label).statistic
    expected["pairwise_acc"] = brute_force(score, label, "drop")
    assert actual == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sims_bins_are_right_closed_in_either_precision(dtype: type[np.floating[Any]]) -> None:
    label = np.array([-0.8, -0.4, 0.0, 0.4, 0.8], dtype=dtype)
    on_edge = np.array([-0.7, -0.1, 0.1, 0.7, 1.0], dtype=dtype)
    actual = split_metrics(on_edge, label, protocol="sims")
    assert actual["acc5"] == actual["acc3"] == 1.0
    assert split_metrics(np.zeros(5, dtype), label, protocol="sims")["acc2_mmsa"] == 0.6


@pytest.mark.parametrize("protocol", ["mosi", "sims"])
@pytest.mark.parametrize(("center", "limit"), [(4.0, 1.0), (0.0, 6.0), (-2.5, 0.75)])
def test_another_range_moves_the_classes_and_scales_the_errors(protocol: Any, center: float, limit: float) -> None:
    custom = 3.0 if protocol == "mosi" else 1.0
    score, label = predictions(0, limit=custom)
    native = split_metrics(score, label, protocol=protocol)
    moved = split_metrics(
        score.astype(float) * limit / custom + center,
        label.astype(float) * limit / custom + center,
        protocol=protocol,
        limit=limit,
        center=center,
    )
    for key, value in native.items():
        assert moved[key] == pytest.approx(value * (limit / custom if "mae" in key else 1), rel=1e-6), key


def test_the_center_is_zero_for_labels_stored_in_float32() -> None:
    label = np.array([1.6, 1.0, 2.2], dtype=np.float32)
    actual = split_metrics(label, label, protocol="mosi", limit=0.6, center=1.6)
    assert actual["mae_nonzero"] == 0
    assert all(value == pytest.approx(1.0) for key, value in actual.items() if METRIC_DIRECTIONS[key] == "max")
    worse = split_metrics(np.array([9.0, 1.0, 2.2]), label, protocol="mosi", limit=0.6, center=1.6)
    assert worse["acc2_non0"] == 1.0


def test_undefined_figures() -> None:
    constant = split_metrics([0.5, 0.5, 0.5], [-1.0, 0.0, 2.0], protocol="mosi")
    assert math.isnan(constant["corr"])
    assert math.isnan(constant["corr_nonzero"])
    assert constant["pairwise_acc"] == 0.0
    neutral = split_metrics([0.5, -0.5], [0.0, 0.0], protocol="mosi")
    assert set(neutral) == {key for key in MOSI_KEYS if key.startswith(("mae", "acc", "corr")) or "has0" in key} - {
        "mae_nonzero",
        "corr_nonzero",
        "acc2_non0",
    }
    assert "acc2_non0" not in split_metrics([0.5, -0.5], [0.0, 0.0], protocol="sims")


def test_one_class_alone_has_an_f1_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    actual = split_metrics([-0.5, -1.5], [-1.0, -2.0], protocol="mosi")
    assert actual["acc2_non0"] == actual["f1_weighted"] == 1.0
    assert actual["f1_positive"] == 0.0
    assert not recwarn.list


def test_ties_reach_the_pairwise_accuracy() -> None:
    label, score = np.array([2.0, 1.0, 1.0]), np.zeros(3)
    assert split_metrics(score, label, protocol="mosi")["pairwise_acc"] == 0.0
    assert split_metrics(score, label, protocol="mosi", ties="literal")["pairwise_acc"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("score", "label", "message"),
    [
        ([0.0, float("nan"), 1.0], [0.0, 1.0, 2.0], "scores: 1 of 3 are not finite, first nan in row 1"),
        ([0.0, 1.0], [float("-inf"), 1.0], "labels: 1 of 2 are not finite, first -inf in row 0"),
        ([[0.0], [1.0]], [0.0, 1.0], r"\(2, 1\) and \(2,\)"),
        ([0.0], [0.0, 1.0], r"\(1,\) and \(2,\)"),
        ([], [], "N > 0"),
    ],
)
def test_what_cannot_be_measured_is_named(score: Any, label: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairwise_accuracy(score, label)
    with pytest.raises(ValueError, match=message):
        split_metrics(score, label, protocol="mosi")


def test_unknown_choices_are_listed() -> None:
    with pytest.raises(ValueError, match="ties='keep': choose from drop, literal"):
        pairwise_accuracy([0.0, 1.0], [0.0, 1.0], "keep")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit is required"):
        split_metrics([0.0, 1.0], [0.0, 1.0], protocol="own")
    with pytest.raises(ValueError, match="protocol='mosei': choose from mosi, sims"):
        split_metrics([0.0, 1.0], [0.0, 1.0], protocol="mosei")  # type: ignore[arg-type]


def test_every_metric_has_a_direction_and_is_held_against_another_code() -> None:
    """The tests above and below hold all keys of each protocol against scikit-learn, scipy or a rule by hand."""
    assert set(METRIC_DIRECTIONS) == MOSI_KEYS | SIMS_KEYS | OWN_KEYS | CLASS_KEYS
    assert {key for key, direction in METRIC_DIRECTIONS.items() if direction == "min"} == {
        "mae",
        "mae_nonzero",
        "bce",
    }


@pytest.mark.parametrize("seed", range(3))
def test_classification_metrics_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logit_N, positive_N = np.round(rng.normal(size=80) * 3, 1), rng.random(80) < 0.4
    metrics = split_metrics(logit_N, positive_N, protocol="binary")
    predicted_N = logit_N > 0
    # Equal logits count half for AUROC, and not at all for the pairwise accuracy.
    pairs = [(p, n) for p in logit_N[positive_N] for n in logit_N[~positive_N]]
    expected = {
        "bce": log_loss(positive_N, 1 / (1 + np.exp(-logit_N))),
        "acc2": accuracy_score(positive_N, predicted_N),
        "auroc": roc_auc_score(positive_N, logit_N),
        "pairwise_acc": sum(p > n for p, n in pairs) / len(pairs),
        **{f"f1_{key}": f1_score(positive_N, predicted_N, average=average) for average, key in AVERAGES},
    }
    assert metrics == pytest.approx(expected, rel=1e-12)
    assert set(metrics) == CLASS_KEYS
    assert metrics["auroc"] - metrics["pairwise_acc"] == pytest.approx(sum(p == n for p, n in pairs) / len(pairs) / 2)
    literal = split_metrics(logit_N, positive_N, protocol="binary", ties="literal")
    assert literal.pop("pairwise_acc") == pytest.approx(brute_force(logit_N, positive_N.astype(float), "literal"))
    assert literal == {name: value for name, value in metrics.items() if name != "pairwise_acc"}


def test_classification_metrics_of_one_class_and_of_large_logits() -> None:
    result = split_metrics([1000.0, -1000.0], [True, True], protocol="binary")
    assert result["bce"] == pytest.approx(500)
    assert "auroc" not in result and "pairwise_acc" not in result
    with pytest.raises(ValueError, match="not finite"):
        split_metrics([np.nan], [True], protocol="binary")


@pytest.mark.parametrize("protocol", ["mosi", "sims", "own", "binary"])
def test_one_metric_is_that_of_all_of_them(protocol: Any) -> None:
    score_N, label_N = predictions(0, count=40, limit=1.0)
    for ties in ("drop", "literal"):
        metrics = split_metrics(score_N, label_N, protocol=protocol, limit=1.0, ties=ties)
        for name, value in metrics.items():
            single = split_metrics(score_N, label_N, protocol=protocol, limit=1.0, ties=ties, only=name)
            assert single == {name: value}
    assert split_metrics(score_N, label_N, protocol=protocol, limit=1.0, only="nosuch") == {}


def test_every_metric_has_a_title_of_its_own() -> None:
    titles = [metric_title(name) for name in METRIC_DIRECTIONS]
    assert len(set(titles)) == len(titles)
    assert {"Corr (non-zero)", "F1 (macro, has zero)", "F1 (weighted, MMSA)"} <= set(titles)
