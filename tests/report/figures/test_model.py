"""The figures of a model: hardest pairs, projection, scoreboard, and all as the page shows them."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from report.figures.synthetic import HOSTILE, MOSI, STORED, measured_view, scored_as, scored_of

from grcf_ray.losses.groups import OrdinalGroups
from grcf_ray.report.figures.model import draw_scoreboard, model_plots, scoreboard_data
from grcf_ray.report.figures.predictions import MOST_SHOWN, hardest_pairs_data, projection_data, spread_rows
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.search.predictions import Predictions
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path

TASKS: tuple[Literal["regression", "classification"], ...] = ("regression", "classification")
either_task = pytest.mark.parametrize("task", TASKS)


def pair_weights(scored: Predictions, task: str) -> dict[tuple[int, int], float]:
    """The weight of each pair by a double loop, the higher label first: eq. 9, or eq. 19 for two classes."""
    rows = range(len(scored.id_N))
    pairs = [(i, j) for i in rows for j in rows if scored.label_N[i] > scored.label_N[j]]
    rewards = {(i, j): 1 / (1 + math.exp(-(scored.score_N[i] - scored.score_N[j]))) for i, j in pairs}
    if task == "classification":
        return {pair: 1 - reward for pair, reward in rewards.items()}
    mean = sum(rewards.values()) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards.values()) / len(rewards))
    return {pair: max(0.0, -(reward - mean) / (deviation + 1e-8)) for pair, reward in rewards.items()}


@either_task
def test_hardest_pairs_against_a_double_loop(task: Literal["regression", "classification"]) -> None:
    scored = scored_of(60, task)
    weights = pair_weights(scored, task)
    gaps = {(i, j): scored.score_N[i] - scored.score_N[j] for i, j in weights}
    data = hardest_pairs_data(scored, task)
    assert (data["pairs"], data["wrong"]) == (len(gaps), sum(gap <= 0 for gap in gaps.values()))
    assert data["weighed"] == sum(weight > 0 for weight in weights.values())
    hardest: list[tuple[int, int]] = []
    for pair in sorted(weights, key=lambda pair: -weights[pair]):
        used = Counter(end for other in hardest for end in other)
        if max(used[end] for end in pair) < 2:
            hardest.append(pair)
    assert len(data["table"]["rows"]) == 20
    for row, (i, j) in zip(data["table"]["rows"], hardest, strict=False):
        assert len(row) == len(data["table"]["columns"])
        for cells, k in ((row[:4], i), (row[4:8], j)):
            assert cells == [scored.id_N[k], scored.text_N[k], scored.label_N[k], scored.score_N[k]]
        assert row[8] == pytest.approx(weights[i, j], rel=1e-12)
        assert row[9] == ("yes" if gaps[i, j] > 0 else "no")


def test_an_odd_label_does_not_fill_the_figure() -> None:
    scored = scored_of(60)
    odd, label_N = int(np.argmax(scored.score_N)), scored.label_N.copy()
    label_N[odd] = -3.0
    rows = hardest_pairs_data(dataclasses.replace(scored, label_N=label_N), "regression")["table"]["rows"]
    counts = Counter(identity for row in rows for identity in (row[0], row[4]))
    assert len(rows) == 20
    assert max(counts.values()) == counts[scored.id_N[odd]] == 2


def test_equal_labels_make_no_pair_and_equal_scores_are_ordered_wrong() -> None:
    data = hardest_pairs_data(scored_as([1.0, 1.0, 1.0], [0.1, 0.2, 0.3]), "regression")
    assert (data["pairs"], data["table"]["rows"]) == (0, [])
    (row,) = hardest_pairs_data(scored_as([0.0, 1.0], [0.3, 0.3]), "regression")["table"]["rows"]
    assert (row[0], row[8], row[9]) == ("video[1]", 0.0, "no")


def test_a_projection_repeats() -> None:
    first, again = (projection_data(scored_of(150), "regression", MOSI) for _ in range(2))
    assert first is not None and first == again
    assert first["perplexity"] == 30
    assert len({(point["x"], point["y"]) for point in first["points"]}) == 150


@pytest.mark.parametrize(("label_range", "edge"), [(MOSI, -2.0), ((-1.0, 1.0), -0.6667), ((1.0, 5.0), 1.6667)])
def test_case_study_samples_lie_below_the_edge(label_range: tuple[float, float], edge: float) -> None:
    label_N = np.array([edge, edge - 0.0001, label_range[0], label_range[1], edge + 0.1, label_range[1] - 0.1])
    data = projection_data(dataclasses.replace(scored_of(6), label_N=label_N), "regression", label_range)
    assert data is not None and data["below"] == edge
    assert [point["case"] for point in data["points"]] == [False, True, True, False, False, False]


def test_a_projection_of_a_few_and_of_classes() -> None:
    data = projection_data(scored_of(10, "classification"), "classification", (0.0, 1.0))
    assert data is not None and data["below"] is None and data["perplexity"] == 3
    assert not any(point["case"] for point in data["points"])


def test_nothing_to_tell_apart() -> None:
    assert projection_data(scored_of(4), "regression", MOSI) is None
    alike = dataclasses.replace(scored_of(10), state_ND=np.ones((10, 8), np.float32))
    assert projection_data(alike, "regression", MOSI) is None


def test_up_to_the_limit_all_are_shown_and_above_it_labels_keep_their_shares() -> None:
    assert spread_rows(np.zeros(MOST_SHOWN)).tolist() == list(range(MOST_SHOWN))
    label_N = np.random.default_rng(0).permutation(np.repeat([-1.0, 0.0, 2.0], [600, 2400, 6000]))
    rows = spread_rows(label_N)
    assert len(rows) == len(set(rows)) == MOST_SHOWN and (np.diff(rows) > 0).all()
    counts = [int((label_N[rows] == label).sum()) for label in (-1.0, 0.0, 2.0)]
    assert counts == pytest.approx([200, 800, 2000], abs=1)
    assert spread_rows(label_N).tolist() == rows.tolist()


def test_captions_say_which_utterances_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "grcf_ray.report.figures.predictions"
    monkeypatch.setattr(f"{name}.spread_rows", lambda label_N: spread_rows(label_N, 20))
    monkeypatch.setattr(f"{name}.MOST_SHOWN", 20)
    plots = by_name(measured_view(tmp_path, scored_of(50)))
    for name in ("truth-and-prediction", "representation", "hardest-pairs"):
        assert "20 of 50 utterances, evenly spaced by label, of the test split" in plots[name].caption
    assert len(plots["representation"].data["points"]) == plots["hardest-pairs"].data["utterances"] == 20
    assert "50 utterances of the test split" in plots["confusion"].caption


def test_scoreboard_has_what_is_on_record() -> None:
    metrics = {
        "valid": {"mae": 0.61, "corr": 0.81},
        "test": {"mae": 0.6123456789012345, "corr": 0.8},
        "paper": {"mae": 0.581, "acc7": 0.493},
        "ensemble": {"members": ["stage2/1", "stage2/0"], "valid": {"mae": 0.59}, "test": {"mae": 0.6}},
        "baselines": [{"name": "ridge", "test": {"mae": 0.9}}],
        "not_comparable": [],
    }
    arm = {"mae": {"mean": 0.6, "deviation": None, "half_width": None}}
    start = {"mae": {"mean": 0.7, "deviation": 0.01, "half_width": 0.02}}
    data = scoreboard_data(metrics, {"seeds": 3, "arms": {"winner": {"test": arm}, "start": {"test": start}}})
    assert [panel["metric"] for panel in data["panels"]] == ["mae", "corr"]
    entries = [(e["what"], e["value"], e["deviation"]) for e in data["panels"][0]["entries"]]
    assert entries == [
        ("valid", 0.61, None),
        ("test", 0.6123456789012345, None),
        ("ensemble of 2, test", 0.6, None),
        ("ridge, test", 0.9, None),
        ("paper, test", 0.581, None),
        ("winner retrained, test", 0.6, None),
        ("starting point retrained, test", 0.7, 0.01),
    ]
    assert data["columns"] == [name for name, *_ in entries]
    draw_scoreboard(data)


def by_name(view: RunView) -> dict[str, Plot]:
    return {plot.name: plot for plot in model_plots(view)}


def stored_view(folder: Path = STORED) -> RunView:
    return RunView.read(RunRecord(storage_path(folder)))


@pytest.mark.parametrize(("edges", "limit"), [("scaled", 1.0), ("native", 3.0)])
def test_groups_are_those_of_the_winner(edges: str, limit: float, tmp_path: Path) -> None:
    drawn = scored_of(60)
    scored = dataclasses.replace(drawn, label_N=drawn.label_N / 3)
    settings = {"ranking.groups": "overlap,3", "ranking.group_edges": edges}
    view = measured_view(tmp_path, scored, label_range=(-1.0, 1.0), settings=settings)
    data = by_name(view)["errors-by-group"].data
    intervals = OrdinalGroups.named("overlap,3", limit).intervals
    assert [(group["low"], group["high"]) for group in data["groups"]] == list(intervals)


@either_task
def test_the_figures_of_a_task(tmp_path: Path, task: Literal["regression", "classification"]) -> None:
    plots = by_name(measured_view(tmp_path, scored_of(60, task), task, test_seen=True))
    two = task == "classification"
    scores, errors = ("scores-by-class", "calibration") if two else ("truth-and-prediction", "errors-by-group")
    assert list(plots) == ["figures-by-metric", scores, "confusion", errors, "representation", "hardest-pairs"]
    assert f"eq. {19 if two else 9} of" in plots["hardest-pairs"].caption
    for plot in plots.values():
        assert plot.warning is not None and plot.warning.startswith("Test was seen before selection ended")


def test_of_a_recorded_run() -> None:
    view = stored_view()
    plots = by_name(view)
    assert view.metrics is not None
    test = view.metrics["test"]
    assert plots["truth-and-prediction"].data["recorded"] == {"mae": test["mae"], "corr": test["corr"]}
    assert plots["confusion"].data["right"] == test["acc_whole"]
    pairs = plots["hardest-pairs"].data
    assert 1 - pairs["wrong"] / pairs["pairs"] == pytest.approx(test["pairwise_acc"], abs=1e-12)
    for plot in plots.values():
        assert json.loads(json.dumps(plot.data, allow_nan=False)) == plot.data
        assert "test" in plot.caption.lower()


def test_until_test_has_been_read_valid_is_shown_and_without_predictions_nothing(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(STORED, tmp_path / "run"))
    (folder / "best" / "metrics.json").unlink()
    plots = by_name(stored_view(folder))
    assert plots and "figures-by-metric" not in plots
    assert all("of the validation split" in plot.caption for plot in plots.values())
    shutil.rmtree(folder / "best" / "predictions")
    assert model_plots(stored_view(folder)) == []


@pytest.mark.parametrize(("label_range", "scaled"), [(MOSI, False), ((-1.0, 1.0), True)])
def test_labels_of_another_range_are_said_to_be_scaled(
    tmp_path: Path, label_range: tuple[float, float], scaled: bool
) -> None:
    drawn = scored_of(60)
    view = measured_view(tmp_path, dataclasses.replace(drawn, label_N=drawn.label_N / 3), label_range=label_range)
    assert ("labels of [-1, 1] brought to [-3, 3] rounded" in by_name(view)["confusion"].caption) == scaled


@either_task
def test_hostile_text_stays_data_and_is_drawn_literally(
    tmp_path: Path, task: Literal["regression", "classification"]
) -> None:
    scored = scored_of(40, task)
    # The prediction of the hostile utterance is the worst, so that it is in the hardest pairs.
    label_N, score_N = scored.label_N.copy(), scored.score_N.copy()
    label_N[0], score_N[0] = label_N.max(), -9.0
    plots = by_name(measured_view(tmp_path, dataclasses.replace(scored, label_N=label_N, score_N=score_N), task))
    for name in ("representation", "hardest-pairs"):
        assert HOSTILE in strings(json.loads(json.dumps(plots[name].data)))
    for plot in plots.values():
        drawn = list(strings(json.loads(plot.draw(plot.data).to_json())))
        assert drawn
        for text in drawn:
            assert not any(part in text for part in ("<b>bold", "<a ", "<b>ridge", "\x1b", "long " * 40))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(part)
