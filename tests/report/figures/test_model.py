"""The figures of a model against plain loops over its predictions; what is drawn of them; and a run without any."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import confusion_matrix
from synthetic_run import run_info

from grcf_ray.losses.groups import OrdinalGroups
from grcf_ray.metrics import MetricProtocol, split_metrics
from grcf_ray.report.figures.agreement import agreement_data, class_scores_data
from grcf_ray.report.figures.confusion import confusion_data
from grcf_ray.report.figures.errors import calibration_data, group_errors_data
from grcf_ray.report.figures.model import model_plots
from grcf_ray.report.figures.pairs import hardest_pairs_data
from grcf_ray.report.figures.projection import projection_data
from grcf_ray.report.figures.scoreboard import draw_scoreboard, scoreboard_data
from grcf_ray.report.figures.utterances import MOST_SHOWN, spread_rows
from grcf_ray.report.view import Predictions, RunView
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from tests.conftest import Recorded

MOSI = (-3.0, 3.0)
HOSTILE = '<b>bold</b> <a href="https://example.org">here</a> &amp; \x1b[31m' + "long " * 50


def scored_of(count: int, task: Literal["regression", "classification"] = "regression", seed: int = 0) -> Predictions:
    """Utterances whose states and scores follow their labels loosely; the first has hostile id and text."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-3, 3, count)
    label_N = (truth > 0).astype(float) if task == "classification" else truth.round(1)
    ids = [f"video[{index}]" for index in range(count)]
    texts = [f"text of {index}" for index in range(count)]
    ids[0], texts[0] = HOSTILE, HOSTILE
    state_ND = truth[:, None] * np.linspace(-1, 1, 8) + rng.normal(size=(count, 8))
    return Predictions(ids, texts, label_N, truth + rng.normal(0, 0.9, count), state_ND.astype(np.float32))


def view_of(
    folder: Path, scored: Predictions, task: Literal["regression", "classification"] = "regression", **run: Any
) -> RunView:
    """A run that has nothing but a measured model."""
    label_range = MOSI if task == "regression" else (0.0, 1.0)
    if task == "regression":
        figures = split_metrics(scored.score_N, scored.label_N, protocol="mosi")
    else:
        figures = split_metrics(scored.score_N, scored.label_N > 0.5, protocol="binary")
    path = folder / "best" / "predictions" / "test.parquet"
    path.parent.mkdir(parents=True)
    columns = {
        "id": list(scored.id_N),
        "text": list(scored.text_N),
        "label": pa.array(scored.label_N, pa.float32()),
        "score": scored.score_N,
        "state": pa.array(list(scored.state_ND), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), path)
    return RunView(
        record=RunRecord(storage_path(folder)),
        info=run_info(data={"task": task, "label_range": list(label_range)}, **run),
        state="finished",
        alive=False,
        trials={1: [], 2: []},
        metrics={
            "trial": "stage2/0",
            "valid": figures,
            "test": figures,
            "paper": {"mae": 0.581},
            "not_comparable": ["backbone <b>x</b>"],
            "baselines": [{"name": "<b>ridge</b>", "test": figures}],
        },
        provenance={
            "trial": "stage2/0",
            "settings": {"ranking.groups": "overlap,5", "ranking.group_edges": "scaled"},
        },
    )


def crossed(scored: Predictions, protocol: MetricProtocol, label_range: tuple[float, float] = MOSI) -> dict[str, Any]:
    data = confusion_data(scored, protocol, label_range)
    assert data is not None
    return data


class TestConfusion:
    def test_seven_classes_are_those_of_acc7(self) -> None:
        scored = scored_of(300)
        data = crossed(scored, "mosi")
        truth, prediction = (
            np.round(np.clip(value.astype(np.float32), -3, 3)) for value in (scored.label_N, scored.score_N)
        )
        expected = confusion_matrix(truth, prediction, labels=list(range(-3, 4)))
        assert data["counts"] == expected.tolist()
        assert data["right"] == split_metrics(scored.score_N, scored.label_N, protocol="mosi")["acc7"]
        for row, counts in zip(data["shares"], expected, strict=True):
            assert row == [count / counts.sum() for count in counts]

    def test_rounds_half_to_even_and_clips(self) -> None:
        scored = dataclasses.replace(
            scored_of(4), label_N=np.array([0.5, 1.5, -2.5, 3.0]), score_N=np.array([-0.5, 9.0, -9.0, 2.5])
        )
        counts = np.array(crossed(scored, "mosi")["counts"])
        assert [tuple(cell) for cell in np.argwhere(counts)] == [(1, 0), (3, 3), (5, 6), (6, 5)]

    def test_own_data_have_a_class_for_each_whole_label(self) -> None:
        """One and two stars that change places are two errors, each in a cell of its own."""
        stars = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
        scored = dataclasses.replace(scored_of(5), label_N=stars, score_N=np.array([2.0, 1.0, 3.2, 4.4, 9.0]))
        data = crossed(scored, "own", (1.0, 5.0))
        assert data["classes"] == ["1", "2", "3", "4", "5"]
        cells = [tuple(cell) for cell in np.argwhere(np.array(data["counts"]))]
        assert cells == [(0, 1), (1, 0), (2, 2), (3, 3), (4, 4)]
        figures = split_metrics(scored.score_N, stars, protocol="own", limit=2.0, center=3.0)
        assert (data["metric"], data["right"]) == ("acc_whole", figures["acc_whole"])

    def test_a_run_of_the_first_releases_keeps_the_classes_that_its_figures_are_of(self) -> None:
        """On [1, 5] the centre is 3, and 4 is half the way up: class 1.5, which rounds to 2."""
        scored = dataclasses.replace(scored_of(2), label_N=np.array([3.0, 4.0]), score_N=np.array([3.2, 5.0]))
        counts = np.array(crossed(scored, "mosi", (1.0, 5.0))["counts"])
        assert [tuple(cell) for cell in np.argwhere(counts)] == [(3, 3), (5, 6)]

    def test_five_classes_are_those_of_sims(self) -> None:
        scored = dataclasses.replace(
            scored_of(5), label_N=np.array([-0.8, -0.7, 0.0, 0.2, 1.0]), score_N=np.array([-0.6, -0.7, 0.1, 0.8, 2.0])
        )
        data = crossed(scored, "sims", (-1.0, 1.0))
        cells = [tuple(cell) for cell in np.argwhere(np.array(data["counts"]))]
        assert cells == [(0, 0), (0, 1), (2, 2), (3, 4), (4, 4)]
        figures = split_metrics(scored.score_N, scored.label_N, protocol="sims")
        assert (data["metric"], data["right"]) == ("acc5", figures["acc5"])

    def test_a_range_of_many_whole_labels_has_no_classes(self) -> None:
        assert confusion_data(scored_of(5), "own", (0.0, 100.0)) is None

    def test_two_classes(self) -> None:
        scored = scored_of(50, "classification")
        data = crossed(scored, "binary", (0.0, 1.0))
        assert data["counts"] == confusion_matrix(scored.label_N > 0.5, scored.score_N > 0).tolist()
        assert data["right"] == split_metrics(scored.score_N, scored.label_N > 0.5, protocol="binary")["acc2"]

    def test_an_empty_row_has_no_shares(self) -> None:
        scored = dataclasses.replace(scored_of(1), label_N=np.array([0.0]), score_N=np.array([1.0]))
        shares = crossed(scored, "mosi")["shares"]
        assert shares[3] == [0, 0, 0, 0, 1, 0, 0] and shares[0] == [None] * 7


class TestErrors:
    @pytest.mark.parametrize("name", ["overlap,5", "strict,5"])
    @pytest.mark.parametrize("label_range", [MOSI, (1.0, 5.0)])
    def test_groups_against_a_loop(self, name: str, label_range: tuple[float, float]) -> None:
        low, high = label_range
        center, limit = (low + high) / 2, (high - low) / 2
        scored = scored_of(200)
        scored = dataclasses.replace(
            scored,
            label_N=(center + scored.label_N * limit / 3).round(4),
            score_N=center + scored.score_N * limit / 3,
        )
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

    def test_an_empty_group(self) -> None:
        scored = dataclasses.replace(scored_of(2), label_N=np.array([0.0, 0.1]), score_N=np.array([0.5, 0.1]))
        groups = group_errors_data(scored, MOSI, OrdinalGroups.named("strict,5"))["groups"]
        assert groups[0] == {"low": -3.0, "high": -1.8, "utterances": 0, "mae": None, "bias": None}
        assert groups[2]["mae"] == groups[2]["bias"] == 0.25

    @pytest.mark.parametrize(("edges", "limit"), [("scaled", 1.0), ("native", 3.0)])
    def test_groups_are_those_of_the_winner(self, edges: str, limit: float, tmp_path: Path) -> None:
        scored, settings = scored_of(60), {"ranking.groups": "overlap,3", "ranking.group_edges": edges}
        scored = dataclasses.replace(scored, label_N=scored.label_N / 3)
        view = view_of(tmp_path, scored)
        view = dataclasses.replace(
            view,
            info=run_info(data={"label_range": [-1.0, 1.0]}),
            provenance={"trial": "stage2/0", "settings": settings},
        )
        data = next(plot for plot in model_plots(view) if plot.name == "errors-by-group").data
        intervals = OrdinalGroups.named("overlap,3", limit).intervals
        assert [(group["low"], group["high"]) for group in data["groups"]] == list(intervals)

    def test_calibration_against_a_loop(self) -> None:
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

    def test_certainty_is_in_the_last_step(self) -> None:
        """In float64 the sigmoid of 800 is 1."""
        scored = dataclasses.replace(scored_of(2), label_N=np.array([0.0, 1.0]), score_N=np.array([-800.0, 0.0]))
        bins = calibration_data(scored, (0.0, 1.0))["bins"]
        assert [(entry["low"], entry["utterances"], entry["errors"]) for entry in bins] == [
            (0.5, 1, 1.0),
            (0.95, 1, 0.0),
        ]


def at_most_two(ranked: Sequence[Any], ends: Callable[[Any], tuple[Any, Any]]) -> list[Any]:
    """The first 20 of pairs of which no end is in more than two."""
    chosen: list[Any] = []
    for pair in ranked:
        used = [end for other in chosen for end in ends(other)]
        if max(used.count(end) for end in ends(pair)) < 2:
            chosen.append(pair)
    return chosen[:20]


class TestHardestPairs:
    def test_against_a_double_loop(self) -> None:
        scored = scored_of(60)
        pairs = [
            (float(scored.score_N[i] - scored.score_N[j]), i, j)
            for i in range(60)
            for j in range(60)
            if scored.label_N[i] > scored.label_N[j]
        ]
        rewards = [1 / (1 + math.exp(-gap)) for gap, *_ in pairs]
        mean = sum(rewards) / len(rewards)
        deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
        weights = [max(0.0, -(reward - mean) / (deviation + 1e-8)) for reward in rewards]
        data = hardest_pairs_data(scored, "regression")
        assert (data["pairs"], data["wrong"]) == (len(pairs), sum(gap <= 0 for gap, *_ in pairs))
        assert data["weighed"] == sum(weight > 0 for weight in weights)
        ranked = sorted(zip(weights, pairs, strict=True), key=lambda entry: -entry[0])
        hardest = at_most_two(ranked, lambda entry: entry[1][1:])
        assert len(data["table"]["rows"]) == 20
        for row, (weight, (gap, i, j)) in zip(data["table"]["rows"], hardest, strict=True):
            assert len(row) == len(data["table"]["columns"])
            assert row[:4] == [scored.id_N[i], scored.text_N[i], scored.label_N[i], scored.score_N[i]]
            assert row[4:8] == [scored.id_N[j], scored.text_N[j], scored.label_N[j], scored.score_N[j]]
            assert row[8] == pytest.approx(weight, rel=1e-12)
            assert row[9] == ("yes" if gap > 0 else "no")

    def test_of_two_classes_against_a_double_loop(self) -> None:
        scored = scored_of(40, "classification")
        weights = {
            (scored.id_N[i], scored.id_N[j]): 1 - 1 / (1 + math.exp(-(scored.score_N[i] - scored.score_N[j])))
            for i in range(40)
            for j in range(40)
            if scored.label_N[i] > scored.label_N[j]
        }
        data = hardest_pairs_data(scored, "classification")
        assert data["pairs"] == len(weights)
        shown_weights = [row[8] for row in data["table"]["rows"]]
        ranked = at_most_two(sorted(weights, key=lambda pair: -weights[pair]), lambda pair: pair)
        assert shown_weights == pytest.approx([weights[pair] for pair in ranked])
        assert shown_weights == pytest.approx([weights[row[0], row[4]] for row in data["table"]["rows"]])

    def test_an_odd_label_does_not_fill_the_figure(self) -> None:
        scored = scored_of(60)
        label_N = scored.label_N.copy()
        label_N[int(np.argmax(scored.score_N))] = -3.0
        rows = hardest_pairs_data(dataclasses.replace(scored, label_N=label_N), "regression")["table"]["rows"]
        counts = Counter(identity for row in rows for identity in (row[0], row[4]))
        assert len(rows) == 20
        assert max(counts.values()) == counts[scored.id_N[int(np.argmax(scored.score_N))]] == 2

    def test_equal_labels_make_no_pair(self) -> None:
        scored = dataclasses.replace(scored_of(3), label_N=np.array([1.0, 1.0, 1.0]))
        data = hardest_pairs_data(scored, "regression")
        assert (data["pairs"], data["table"]["rows"]) == (0, [])

    def test_equal_scores_are_ordered_wrong(self) -> None:
        scored = dataclasses.replace(scored_of(2), label_N=np.array([0.0, 1.0]), score_N=np.array([0.3, 0.3]))
        (row,) = hardest_pairs_data(scored, "regression")["table"]["rows"]
        assert (row[0], row[8], row[9]) == ("video[1]", 0.0, "no")


class TestProjection:
    def test_it_repeats(self) -> None:
        scored = scored_of(150)
        first = projection_data(scored, "regression", MOSI)
        assert first is not None and first == projection_data(scored, "regression", MOSI)
        assert first["perplexity"] == 30
        assert len({(point["x"], point["y"]) for point in first["points"]}) == 150

    @pytest.mark.parametrize(("label_range", "edge"), [(MOSI, -2.0), ((-1.0, 1.0), -0.6667), ((1.0, 5.0), 1.6667)])
    def test_case_study_samples_lie_below_the_edge(self, label_range: tuple[float, float], edge: float) -> None:
        label_N = np.array([edge, edge - 0.0001, label_range[0], label_range[1], edge + 0.1, label_range[1] - 0.1])
        data = projection_data(dataclasses.replace(scored_of(6), label_N=label_N), "regression", label_range)
        assert data is not None and data["below"] == edge
        assert [point["case"] for point in data["points"]] == [False, True, True, False, False, False]

    def test_perplexity_of_a_few(self) -> None:
        data = projection_data(scored_of(10), "regression", MOSI)
        assert data is not None and data["perplexity"] == 3

    def test_classes_have_no_case_study_samples(self) -> None:
        data = projection_data(scored_of(10, "classification"), "classification", (0.0, 1.0))
        assert data is not None and data["below"] is None
        assert not any(point["case"] for point in data["points"])

    def test_nothing_to_tell_apart(self) -> None:
        assert projection_data(scored_of(4), "regression", MOSI) is None
        alike = dataclasses.replace(scored_of(10), state_ND=np.ones((10, 8), np.float32))
        assert projection_data(alike, "regression", MOSI) is None


class TestSampling:
    def test_up_to_the_limit_all_are_shown(self) -> None:
        assert spread_rows(np.zeros(MOST_SHOWN)).tolist() == list(range(MOST_SHOWN))

    def test_above_it_labels_keep_their_shares(self) -> None:
        label_N = np.random.default_rng(0).permutation(np.repeat([-1.0, 0.0, 2.0], [600, 2400, 6000]))
        rows = spread_rows(label_N)
        assert len(rows) == len(set(rows)) == MOST_SHOWN and (np.diff(rows) > 0).all()
        counts = [int((label_N[rows] == label).sum()) for label in (-1.0, 0.0, 2.0)]
        assert counts == pytest.approx([200, 800, 2000], abs=1)
        assert spread_rows(label_N).tolist() == rows.tolist()

    def test_figures_on_record_are_of_all_and_the_points_of_some(self) -> None:
        scored = scored_of(MOST_SHOWN + 500)
        data = agreement_data(scored, MOSI, {"mae": 0.5, "corr": 0.25, "acc7": 0.1})
        assert (len(data["points"]), data["total"]) == (MOST_SHOWN, MOST_SHOWN + 500)
        assert data["recorded"] == {"mae": 0.5, "corr": 0.25}

    def test_captions_say_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("agreement", "projection", "pairs"):
            monkeypatch.setattr(f"grcf_ray.report.figures.{name}.spread_rows", lambda label_N: spread_rows(label_N, 20))
        monkeypatch.setattr("grcf_ray.report.figures.model.MOST_SHOWN", 20)
        plots = {plot.name: plot for plot in model_plots(view_of(tmp_path, scored_of(50)))}
        for name in ("truth-and-prediction", "representation", "hardest-pairs"):
            assert "20 of 50 utterances, evenly spaced by label, of the test split" in plots[name].caption
        assert len(plots["representation"].data["points"]) == plots["hardest-pairs"].data["utterances"] == 20
        assert "50 utterances of the test split" in plots["confusion"].caption


def test_scores_of_each_class_are_all_counted() -> None:
    scored = scored_of(80, "classification")
    data = class_scores_data(scored, (0.0, 1.0), {"auroc": 0.9, "acc2": 0.8, "bce": 0.3})
    assert (
        sum(data["positive"]) == (scored.label_N > 0.5).sum() and sum(data["negative"]) == (scored.label_N < 0.5).sum()
    )
    assert (data["edges"][0], data["edges"][-1]) == (scored.score_N.min(), scored.score_N.max())
    assert data["recorded"] == {"auroc": 0.9, "acc2": 0.8}


def test_scoreboard_has_what_is_on_record() -> None:
    metrics = {
        "valid": {"mae": 0.61, "corr": 0.81},
        "test": {"mae": 0.6123456789012345, "corr": 0.8},
        "paper": {"mae": 0.581, "acc7": 0.493},
        "baselines": [{"name": "ridge", "test": {"mae": 0.9}}],
        "not_comparable": [],
    }
    arm = {"mae": {"mean": 0.6, "deviation": None, "half_width": None}}
    start = {"mae": {"mean": 0.7, "deviation": 0.01, "half_width": 0.02}}
    data = scoreboard_data(metrics, {"seeds": 3, "arms": {"winner": {"test": arm}, "start": {"test": start}}})
    assert [panel["metric"] for panel in data["panels"]] == ["mae", "corr"]
    assert [(e["what"], e["value"], e["deviation"]) for e in data["panels"][0]["entries"]] == [
        ("valid", 0.61, None),
        ("test", 0.6123456789012345, None),
        ("ridge, test", 0.9, None),
        ("paper, test", 0.581, None),
        ("winner retrained, test", 0.6, None),
        ("starting point retrained, test", 0.7, 0.01),
    ]
    assert data["columns"][-1] == "starting point retrained, test"
    assert "ridge, test" in data["columns"]
    draw_scoreboard(data)


class TestPlots:
    @pytest.mark.parametrize(("task", "equation"), [("regression", 9), ("classification", 19)])
    def test_the_weight_of_pairs_is_the_papers_by_its_number(
        self, tmp_path: Path, task: Literal["regression", "classification"], equation: int
    ) -> None:
        plots = model_plots(view_of(tmp_path, scored_of(60, task), task))
        caption = next(plot.caption for plot in plots if plot.name == "hardest-pairs")
        assert f"eq. {equation} over" in caption

    def test_of_the_recorded_run(self, recorded: Recorded) -> None:
        view = RunView.read(RunRecord(storage_path(recorded.folder)))
        plots = {plot.name: plot for plot in model_plots(view)}
        assert list(plots) == [
            "figures-by-metric",
            "truth-and-prediction",
            "confusion",
            "errors-by-group",
            "representation",
            "hardest-pairs",
        ]
        assert view.metrics is not None
        test = view.metrics["test"]
        assert plots["truth-and-prediction"].data["recorded"] == {"mae": test["mae"], "corr": test["corr"]}
        assert plots["confusion"].data["right"] == test["acc_whole"]
        pairs = plots["hardest-pairs"].data
        assert 1 - pairs["wrong"] / pairs["pairs"] == pytest.approx(test["pairwise_acc"], abs=1e-12)
        for plot in plots.values():
            assert json.loads(json.dumps(plot.data, allow_nan=False)) == plot.data
            assert "test" in plot.caption.lower()
            plot.draw(plot.data)

    def test_until_test_has_been_read_valid_is_shown(self, recorded: Recorded, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(recorded.folder, tmp_path / "run"))
        (folder / "best" / "metrics.json").unlink()
        plots = model_plots(RunView.read(RunRecord(storage_path(folder))))
        assert "figures-by-metric" not in {plot.name for plot in plots}
        for plot in plots:
            assert "of the validation split" in plot.caption

    def test_a_run_without_predictions_has_none(self, recorded: Recorded, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(recorded.folder, tmp_path / "run"))
        shutil.rmtree(folder / "best" / "predictions")
        assert model_plots(RunView.read(RunRecord(storage_path(folder)))) == []

    def test_of_two_classes(self, tmp_path: Path) -> None:
        plots = model_plots(view_of(tmp_path, scored_of(60, "classification"), "classification"))
        assert [plot.name for plot in plots] == [
            "figures-by-metric",
            "scores-by-class",
            "confusion",
            "calibration",
            "representation",
            "hardest-pairs",
        ]
        for plot in plots:
            json.dumps(plot.data, allow_nan=False)
            plot.draw(plot.data)

    def test_labels_of_another_range_are_said_to_be_scaled(self, tmp_path: Path) -> None:
        scored = scored_of(60)
        view = view_of(tmp_path, dataclasses.replace(scored, label_N=scored.label_N / 3))
        other = dataclasses.replace(view, info=run_info(data={"label_range": [-1.0, 1.0]}))
        for shown, scaled in ((view, False), (other, True)):
            caption = next(plot.caption for plot in model_plots(shown) if plot.name == "confusion")
            assert ("labels of [-1, 1] brought to [-3, 3] rounded" in caption) == scaled

    def test_a_look_at_test_before_the_end_is_told(self, tmp_path: Path) -> None:
        for plot in model_plots(view_of(tmp_path, scored_of(60), test_seen=True)):
            assert plot.warning is not None and plot.warning.startswith("Test was seen before selection ended")

    @pytest.mark.parametrize("task", ["regression", "classification"])
    def test_hostile_text_stays_data_and_is_drawn_literally(
        self, tmp_path: Path, task: Literal["regression", "classification"]
    ) -> None:
        scored = scored_of(40, task)
        # Of the hostile one the prediction is the worst, so that it is in the hardest pairs.
        label_N, score_N = scored.label_N.copy(), scored.score_N.copy()
        label_N[0], score_N[0] = label_N.max(), -9.0
        plots = model_plots(view_of(tmp_path, dataclasses.replace(scored, label_N=label_N, score_N=score_N), task))
        held = [plot for plot in plots if HOSTILE in json.loads(json.dumps(list(_strings(plot.data))))]
        assert {"representation", "hardest-pairs"} <= {plot.name for plot in held}
        for plot in plots:
            drawn = list(_strings(json.loads(plot.draw(plot.data).to_json())))
            assert drawn
            for text in drawn:
                assert "<b>bold" not in text and "<a " not in text and "<b>ridge" not in text and "\x1b" not in text
                assert "long " * 40 not in text


def _strings(value: Any) -> Any:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
