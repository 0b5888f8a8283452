"""The figures of a recorded search and of its ablations, through the command, and the numbers beside Figure 5."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from grcf_ray.experiments.paper_figures import cluster_figures, curves, importance, tsne
from grcf_ray.report.figures.importance import importance_data
from grcf_ray.report.view import RunView
from grcf_ray.search.predictions import Predictions
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path
from tests.experiments.conftest import FakeContext

ResultOf = Callable[..., dict[str, Any]]


def test_importance_is_the_reports(fresh: Path, result_of: ResultOf) -> None:
    # Of the tiny search too few trials run to the end.
    for path in [*fresh.glob("stage?/trials/*.json"), *fresh.glob("stage?/trials.jsonl")]:
        path.write_text(path.read_text().replace('"pruned"', '"complete"'))
    printed = result_of("importance", fresh)
    view = RunView.read(RunRecord(storage_path(fresh)))
    expected = {f"stage{stage}": importance_data(view.trials[stage], stage, view.space) for stage in (1, 2)}
    expected = {name: data for name, data in expected.items() if data["methods"]}
    assert [table["name"] for table in printed["tables"]] == list(expected)
    for table, data in zip(printed["tables"], expected.values(), strict=True):
        assert [row["title"] for row in table["rows"]] == data["parameters"]
        assert [row["forest"] for row in table["rows"]] == data["methods"]["forest"]["mean"]
    # What the paper says is of MOSI.
    assert all(row["paper"] is None for table in printed["tables"] for row in table["rows"])
    assert any("chance" in note for note in printed["notes"]), "a warning of too few trials"


def test_curves_are_the_winners_trials(fresh: Path, result_of: ResultOf) -> None:
    printed = result_of("curves", fresh)
    winner = json.loads((fresh / "run.json").read_text())["winner"]
    stages = printed["pictures"]["curves"]["stages"]
    assert f"stage{stages[-1]['stage']}/{stages[-1]['number']}" == winner
    terms = {table["name"]: {row["title"]: row for row in table["rows"]} for table in printed["tables"]}
    assert set(terms["stage1"]) == {"group", "reg", "bound", "total"}
    assert set(terms["stage2"]) == {"group", "mae", "bound", "total"}
    mae, row = stages[-1]["terms"]["mae"], terms["stage2"]["mae"]
    assert (row["first"], row["last"], row["low"], row["high"]) == (mae[0], mae[-1], min(mae), max(mae))


def test_scatter_shows_what_the_metrics_are_of(fresh: Path, result_of: ResultOf) -> None:
    reads = (fresh / "best" / "provenance.json").read_bytes()
    printed = result_of("scatter", fresh)
    shown = printed["pictures"]["scatter"]
    error = np.mean(np.abs(np.array(shown["label"]) - shown["score"]))
    value = {row["name"]: row["value"] for row in printed["tables"][0]["rows"]}
    assert value["mae"] == pytest.approx(error) == pytest.approx(shown["recorded"]["mae"])
    assert (fresh / "best" / "provenance.json").read_bytes() == reads, "test is not read again"


def test_remarks_of_the_paper_stand_beside_their_rows(make_context: Any) -> None:
    context = make_context()
    remarks = {
        "curves": {"stage1": {"reg": "active early"}},
        "importance": {"stage1": {"stage1.head_lr": "most critical"}},
    }
    context.printed = remarks.__getitem__
    trials = {
        stage: [dataclasses.replace(trial, state="complete") for trial in trials]
        for stage, trials in context.view.trials.items()
    }
    context.view = dataclasses.replace(context.view, trials=trials)
    for experiment, said in ((curves, {"reg": "active early"}), (importance, {"stage1.head_lr": "most critical"})):
        table = experiment(context).tables[0]
        assert {row["title"]: row["paper"] for row in table.rows if row["paper"]} == said
        assert any(column.key == "paper" for column in table.columns)


@pytest.mark.parametrize(("name", "said"), [("scatter", "predictions"), ("importance", "finished trials")])
def test_what_the_record_lacks_is_refused(fresh: Path, reproduce: Any, name: str, said: str) -> None:
    shutil.rmtree(fresh / "best" / "predictions")
    code, _, err = reproduce(name, "--from", fresh)
    assert code == 2 and said in err


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_tsne_of_representations_that_cluster_or_do_not(task: Any) -> None:
    """The full model's case-study samples lie apart, those of the others anywhere."""
    label_N = np.repeat([-3.0, 0.0, 1.0, 3.0], 6) if task == "regression" else np.repeat([0.0, 1.0], 12)
    case_N = label_N < -2 if task == "regression" else label_N > 0.5

    def models(arms: Any, experiment: str) -> dict[str, list[Any]]:
        return {arm.name: [model(arm.name, seed) for seed in (2, 3)] for arm in arms}

    def model(name: str, seed: int) -> Any:
        state_ND = np.random.default_rng(seed).normal(size=(24, 4)).astype(np.float32)
        if name == "full":
            state_ND[case_N] = 9 + 0.1 * state_ND[case_N]
        names = [f"u{row}" for row in range(24)]
        scored = Predictions(id_N=names, text_N=names, label_N=label_N, score_N=label_N, state_ND=state_ND)
        return SimpleNamespace(index=seed, scored=lambda split: {"test": scored}[split])

    label_range = (-3.0, 3.0) if task == "regression" else (0.0, 1.0)
    context: Any = FakeContext(
        facts=None,
        models=models,
        config=SimpleNamespace(stage1=SimpleNamespace(epochs=1), stage2=SimpleNamespace(epochs=1)),
        store=SimpleNamespace(
            info=SimpleNamespace(
                name="tiny",
                task=task,
                label_range=label_range,
                center=sum(label_range) / 2,
                half_range=(label_range[1] - label_range[0]) / 2,
            )
        ),
    )
    result = tsne(context)
    rows = {row["name"]: row for row in result.tables[0].rows}
    # Two classes have no dynamic margin.
    assert len(rows) == (5 if task == "regression" else 4)
    assert rows["full"]["silhouette"] > 0.9 and rows["full"]["ratio"] < 0.1
    assert abs(rows["no-stage1"]["silhouette"]) < 0.3 and 0.7 < rows["no-stage1"]["ratio"] < 1.3
    assert rows["full"]["silhouette"] == pytest.approx(np.mean(rows["full"]["silhouette values"]))
    gains = np.subtract(rows["no-stage1"]["silhouette values"], rows["full"]["silhouette values"])
    assert rows["no-stage1"]["difference"] == pytest.approx(gains.mean())
    assert rows["no-stage1"]["p"] == pytest.approx(stats.ttest_1samp(gains, 0).pvalue)
    assert "difference" not in rows["full"]
    (picture,) = result.pictures
    assert [panel["index"] for panel in picture.data["panels"]] == [2] * len(rows)
    figure = picture.draw(json.loads(json.dumps(picture.data)))
    assert [len(axis.collections) for axis in figure.axes[: len(rows)]] == [2] * len(rows)


@pytest.mark.parametrize("block", [4, 512])
def test_cluster_figures_are_sklearns_silhouette_and_a_plain_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.metrics import silhouette_samples

    monkeypatch.setattr("grcf_ray.experiments.paper_figures._BLOCK", block)
    rng = np.random.default_rng(0)
    state_ND, case_N = rng.normal(size=(40, 6)).astype(np.float32), np.arange(40) < 9
    state_ND[case_N] += 1
    figures = cluster_figures(state_ND, case_N)
    assert figures is not None
    within, between = [], []
    for i in range(9):
        for j in range(40):
            if i != j:
                distance = float(np.linalg.norm(state_ND[i].astype(float) - state_ND[j]))
                (within if j < 9 else between).append(distance)
    assert figures["silhouette"] == pytest.approx(silhouette_samples(state_ND, case_N)[case_N].mean(), rel=1e-5)
    assert figures["ratio"] == pytest.approx(np.mean(within) / np.mean(between))


def test_cluster_figures_at_their_ends() -> None:
    apart_ND = np.array([[0.0], [0.0], [5.0], [7.0]], np.float32)
    case_N = np.array([True, True, False, False])
    assert cluster_figures(apart_ND, case_N) == {"silhouette": 1.0, "ratio": 0.0}
    assert cluster_figures(np.zeros((4, 1), np.float32), case_N) == {"silhouette": 0.0, "ratio": 1.0}
    assert cluster_figures(apart_ND, np.array([True, False, False, False])) is None
    assert cluster_figures(apart_ND, np.ones(4, bool)) is None
