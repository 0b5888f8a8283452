"""Tables of arms: the pairs that are compared, and undefined metrics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from grcf_ray.config import MetricsConfig, RunConfig
from grcf_ray.experiments.arms import Rescored, arm_tables, difference_pictures, figures, head_metrics, metric_of
from grcf_ray.experiments.model_pool import Arm
from grcf_ray.metrics import split_metrics
from grcf_ray.search.predictions import Predictions
from grcf_ray.tables import Table

pytestmark = pytest.mark.usefixtures("few_draws")
LABELS = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
STORE = SimpleNamespace(info=SimpleNamespace(half_range=3.0, center=0.0))
CONTEXT: Any = SimpleNamespace(protocol="mosi", store=STORE, config=RunConfig(seed=0))


def model(index: int, score_N: np.ndarray[Any, Any]) -> Rescored:
    states = np.zeros((len(LABELS), 0), np.float32)
    test = Predictions(tuple("abcdef"), tuple("abcdef"), LABELS, score_N, states)
    return Rescored(CONTEXT, index, test, score_N)


def tables_of(arms: list[Arm], models: Any, printed: Any = None, changes: Any = None) -> dict[str, Table]:
    return {table.name: table for table in arm_tables(CONTEXT, arms, models, printed, changes)}


def test_an_undefined_metric_leaves_an_arm_uncompared_and_no_other() -> None:
    """One seed of `flat` has constant scores: it has no correlation, and every other metric."""
    rng = np.random.default_rng(0)
    arms = [Arm("full", "Full"), Arm("flat", "Flat"), Arm("near", "Near"), Arm("none", "None")]
    noisy = [LABELS + rng.normal(size=len(LABELS)) for _ in range(3)]
    models = {
        "full": [model(index, LABELS + noise / 4) for index, noise in enumerate(noisy)],
        "flat": [model(0, noisy[0]), model(1, np.zeros_like(LABELS)), model(2, noisy[2])],
        "near": [model(index, noise) for index, noise in enumerate(noisy)],
        "none": [],
    }
    tables = tables_of(arms, models, {"none": {"corr": 0.9}})
    mae, corr = tables["mae"], tables["corr"]
    assert ["difference" in row for row in mae.rows] == [False, True, True, False]
    assert [row.get("seeds") for row in mae.rows] == [3, 3, 3, None]
    assert ["difference" in row for row in corr.rows] == [False, False, True, False]
    assert [row.get("seeds") for row in corr.rows] == [3, 2, 3, None]
    assert corr.rows[3] == {"name": "none", "title": "None", "paper": 0.9}
    assert any("undefined" in note and "Flat" in note for note in corr.notes)
    assert not any("undefined" in note for note in mae.notes)
    expected = [split_metrics(noise, LABELS, protocol="mosi", limit=3.0)["corr"] for noise in noisy]
    assert corr.rows[2]["mean"] == pytest.approx(np.mean(expected))
    full = [model.metrics["test"]["corr"] for model in models["full"]]
    assert corr.rows[2]["difference"] == pytest.approx(np.mean(expected) - np.mean(full))

    (picture,) = difference_pictures([mae, corr])
    assert [(panel["title"], panel["better"]) for panel in picture.data["panels"]] == [
        ("MAE", "lower"),
        ("Corr", "higher"),
    ]
    assert [[row["title"] for row in panel["rows"]] for panel in picture.data["panels"]] == [["Flat", "Near"], ["Near"]]
    figure = picture.draw(picture.data)
    for axis, panel in zip(figure.axes, picture.data["panels"], strict=False):
        ((line, _, (bars,)),) = axis.containers
        assert line.get_xdata().tolist() == [row["difference"] for row in panel["rows"]]
        ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
        assert np.allclose(ends, [[row["low"], row["high"]] for row in panel["rows"]])
    assert difference_pictures([]) == []


def test_an_arm_that_lost_seeds_is_compared_over_those_it_has_and_no_other_is() -> None:
    rng = np.random.default_rng(1)
    arms = [Arm("full", "Full"), Arm("lost", "Lost"), Arm("whole", "Whole"), Arm("gone", "Gone")]
    scores = {arm.name: LABELS + rng.normal(size=(5, len(LABELS))) for arm in arms}
    kept = {"full": range(5), "lost": (1, 4), "whole": range(5), "gone": ()}
    models = {name: [model(index, scores[name][index]) for index in indices] for name, indices in kept.items()}
    mae = tables_of(arms, models)["mae"]
    rows = {row["name"]: row for row in mae.rows}
    error = {name: np.abs(score_SN - LABELS).mean(axis=1) for name, score_SN in scores.items()}
    assert rows["lost"]["difference"] == pytest.approx(np.mean([error["lost"][i] - error["full"][i] for i in (1, 4)]))
    assert rows["whole"]["difference"] == pytest.approx((error["whole"] - error["full"]).mean())
    # Holm corrects over both rows together.
    p = sorted([rows["lost"]["p"], rows["whole"]["p"]])
    assert sorted([rows["lost"]["p_holm"], rows["whole"]["p_holm"]]) == pytest.approx(
        [min(1, 2 * p[0]), max(min(1, 2 * p[0]), p[1])]
    )
    assert any("Lost: 3 of 5" in note for note in mae.notes) and "mean" not in rows["gone"]
    assert any("few seeds" in note for note in mae.notes)


def test_changes_in_per_cent_stand_beside_the_papers() -> None:
    """Errors of 0.5 and 1 everywhere, which are 0.25 more and twice the reference's: 50 and 100 per cent."""
    arms = [Arm("full", "Full"), Arm("half", "Half"), Arm("twice", "Twice")]
    models = {
        name: [model(index, LABELS + error) for index in range(2)]
        for name, error in (("full", 0.5), ("half", 0.75), ("twice", 1.0))
    }
    mae = tables_of(arms, models, changes={"half": {"mae": 12.5}})["mae"]
    assert [row.get("change") for row in mae.rows] == [None, pytest.approx(50), pytest.approx(100)]
    assert [row["paper change"] for row in mae.rows] == [None, 12.5, None]
    titles = [column.title for column in mae.columns]
    assert titles.index("paper, change %") < titles.index("change %")
    plain = tables_of(arms, models)["mae"]
    assert not [column for column in plain.columns if "change" in column.key]


def test_the_runs_reading_of_ties_is_what_arms_are_measured_by() -> None:
    literal: Any = SimpleNamespace(
        **{**vars(CONTEXT), "config": RunConfig(seed=0, metrics=MetricsConfig(ties="literal"))}
    )
    label_N, score_N = np.array([2.0, 1.0, 1.0]), np.zeros(3)
    assert figures(CONTEXT, score_N, label_N)["pairwise_acc"] == 0.0
    assert figures(literal, score_N, label_N)["pairwise_acc"] == pytest.approx(1 / 3)
    assert metric_of(literal, "pairwise_acc")(score_N, label_N) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("half_range", "shown"), [(2.0, True), (5.0, True), (50.0, False)])
def test_tables_of_own_data_show_the_accuracy_that_their_range_has(half_range: float, shown: bool) -> None:
    info = SimpleNamespace(half_range=half_range, center=3.0)
    context: Any = SimpleNamespace(protocol="own", store=SimpleNamespace(info=info))
    assert ("acc_whole" in head_metrics(context)) == shown
