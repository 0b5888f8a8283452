"""The figures of predictions against plain loops over them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from report.figures.synthetic import MOSI, scored_as, scored_of
from sklearn.metrics import confusion_matrix

from grcf_ray.losses.groups import OrdinalGroups
from grcf_ray.metrics import MetricProtocol, split_metrics
from grcf_ray.report.figures.predictions import (
    MOST_SHOWN,
    agreement_data,
    calibration_data,
    class_scores_data,
    confusion_data,
    group_errors_data,
)
from grcf_ray.search.predictions import Predictions


def crossed(scored: Predictions, protocol: MetricProtocol, label_range: tuple[float, float] = MOSI) -> dict[str, Any]:
    data = confusion_data(scored, protocol, label_range)
    assert data is not None
    return data


def test_seven_classes_are_those_of_acc7() -> None:
    scored = scored_of(300)
    data = crossed(scored, "mosi")
    truth, prediction = (np.round(np.clip(v.astype(np.float32), -3, 3)) for v in (scored.label_N, scored.score_N))
    expected = confusion_matrix(truth, prediction, labels=list(range(-3, 4)))
    assert data["counts"] == expected.tolist()
    assert data["right"] == split_metrics(scored.score_N, scored.label_N, protocol="mosi")["acc7"]
    for row, counts in zip(data["shares"], expected, strict=True):
        assert row == [count / counts.sum() for count in counts]


@pytest.mark.parametrize(
    ("protocol", "label_range", "labels", "scores", "cells", "metric"),
    [
        # Half rounds to even, and scores are clipped.
        ("mosi", MOSI, [0.5, 1.5, -2.5, 3.0], [-0.5, 9.0, -9.0, 2.5], [(1, 0), (3, 3), (5, 6), (6, 5)], "acc7"),
        # The first releases: on [1, 5] the centre is 3, and 4 is half the way up: class 1.5, which rounds to 2.
        ("mosi", (1.0, 5.0), [3.0, 4.0], [3.2, 5.0], [(3, 3), (5, 6)], "acc7"),
        # A class for each whole label: one and two stars that change places are two errors, each in its cell.
        (
            *("own", (1.0, 5.0), [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 3.2, 4.4, 9.0]),
            *([(0, 1), (1, 0), (2, 2), (3, 3), (4, 4)], "acc_whole"),
        ),
        (
            *("sims", (-1.0, 1.0), [-0.8, -0.7, 0.0, 0.2, 1.0], [-0.6, -0.7, 0.1, 0.8, 2.0]),
            *([(0, 0), (0, 1), (2, 2), (3, 4), (4, 4)], "acc5"),
        ),
    ],
)
def test_the_classes_are_those_of_the_accuracy(
    protocol: Any, label_range: tuple[float, float], labels: Any, scores: Any, cells: Any, metric: str
) -> None:
    low, high = label_range
    scored = scored_as(labels, scores)
    data = crossed(scored, protocol, label_range)
    assert [tuple(cell) for cell in np.argwhere(np.array(data["counts"]))] == cells
    ends = {"limit": (high - low) / 2, "center": (high + low) / 2}
    figures = split_metrics(scored.score_N, scored.label_N, protocol=protocol, **ends)
    assert (data["metric"], data["right"]) == (metric, figures[metric])


def test_a_range_of_many_whole_labels_has_no_classes() -> None:
    assert confusion_data(scored_of(5), "own", (0.0, 100.0)) is None


def test_two_classes() -> None:
    scored = scored_of(50, "classification")
    data = crossed(scored, "binary", (0.0, 1.0))
    assert data["counts"] == confusion_matrix(scored.label_N > 0.5, scored.score_N > 0).tolist()
    assert data["right"] == split_metrics(scored.score_N, scored.label_N > 0.5, protocol="binary")["acc2"]


def test_an_empty_row_has_no_shares() -> None:
    shares = crossed(scored_as([0.0], [1.0]), "mosi")["shares"]
    assert shares[3] == [0, 0, 0, 0, 1, 0, 0] and shares[0] == [None] * 7


@pytest.mark.parametrize("name", ["overlap,5", "strict,5"])
@pytest.mark.parametrize("label_range", [MOSI, (1.0, 5.0)])
def test_groups_against_a_loop(name: str, label_range: tuple[float, float]) -> None:
    low, high = label_range
    center, limit = (low + high) / 2, (high - low) / 2
    drawn = scored_of(200)
    scored = scored_as((center + drawn.label_N * limit / 3).round(4), center + drawn.score_N * limit / 3)
    groups = OrdinalGroups.named(name, limit)
    data = group_errors_data(scored, label_range, groups)
    last = len(groups.intervals) - 1
    for index, (entry, (left, right)) in enumerate(zip(data["groups"], groups.intervals, strict=True)):
        errors = []
        for label, score in zip(scored.label_N, scored.score_N, strict=True):
            offset, left_edge, right_edge = (round(value, 4) for value in (label - center, left, right))
            closed = not groups.half_open or index == last
            if left_edge <= offset < right_edge or (closed and offset == right_edge):
                errors.append(score - label)
        assert entry["utterances"] == len(errors) > 0
        assert entry["mae"] == pytest.approx(sum(map(abs, errors)) / len(errors))
        assert entry["bias"] == pytest.approx(sum(errors) / len(errors))
        assert (entry["low"], entry["high"]) == (left + center, right + center)


def test_an_empty_group() -> None:
    groups = group_errors_data(scored_as([0.0, 0.1], [0.5, 0.1]), MOSI, OrdinalGroups.named("strict,5"))["groups"]
    assert groups[0] == {"low": -3.0, "high": -1.8, "utterances": 0, "mae": None, "bias": None}
    assert groups[2]["mae"] == groups[2]["bias"] == 0.25


def test_calibration_against_a_loop() -> None:
    scored = scored_of(200, "classification")
    data = calibration_data(scored, (0.0, 1.0))
    for entry in data["bins"]:
        inside = []
        for label, score in zip(scored.label_N, scored.score_N, strict=True):
            confidence = 1 / (1 + math.exp(-abs(score)))
            if entry["low"] <= confidence < entry["high"]:
                inside.append((confidence, (score > 0) != (label > 0.5)))
        assert entry["utterances"] == len(inside)
        assert entry["confidence"] == pytest.approx(sum(confidence for confidence, _ in inside) / len(inside))
        assert entry["errors"] == pytest.approx(sum(wrong for _, wrong in inside) / len(inside))
    assert sum(entry["utterances"] for entry in data["bins"]) == 200
    acc2 = split_metrics(scored.score_N, scored.label_N > 0.5, protocol="binary")["acc2"]
    assert data["wrong"] == round(200 * (1 - acc2))


def test_certainty_is_in_the_last_step() -> None:
    """In float64 the sigmoid of 800 is 1."""
    bins = calibration_data(scored_as([0.0, 1.0], [-800.0, 0.0]), (0.0, 1.0))["bins"]
    assert [(e["low"], e["utterances"], e["errors"]) for e in bins] == [(0.5, 1, 1.0), (0.95, 1, 0.0)]


def test_figures_on_record_are_of_all_and_the_points_of_some() -> None:
    data = agreement_data(scored_of(MOST_SHOWN + 500), MOSI, {"mae": 0.5, "corr": 0.25, "acc7": 0.1})
    assert (len(data["points"]), data["total"]) == (MOST_SHOWN, MOST_SHOWN + 500)
    assert data["recorded"] == {"mae": 0.5, "corr": 0.25}


def test_scores_of_each_class_are_all_counted() -> None:
    scored = scored_of(80, "classification")
    data = class_scores_data(scored, (0.0, 1.0), {"auroc": 0.9, "acc2": 0.8, "bce": 0.3})
    assert (sum(data["negative"]), sum(data["positive"])) == tuple(np.bincount(scored.label_N.astype(int)))
    assert (data["edges"][0], data["edges"][-1]) == (scored.score_N.min(), scored.score_N.max())
    assert data["recorded"] == {"auroc": 0.9, "acc2": 0.8}
