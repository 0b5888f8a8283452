"""The figures of a recorded search and of its ablations, through the command, and the numbers beside Figure 5."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from grcf_ray.experiments.paper_figures import cluster_figures, tsne
from grcf_ray.report.view import Predictions
from tests.experiments.fake_context import FakeContext


@pytest.fixture(scope="module")
def copied(recorded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the recorded run that this module's tests write in."""
    folder = tmp_path_factory.mktemp("figures") / "run"
    shutil.copytree(recorded.folder, folder)
    return folder


def reproduce(name: str, run: Path, data: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    """The result that the command prints, and that it has written beside the run."""
    from grcf_ray import console
    from grcf_ray.cli.reproduce import app

    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        console.run(app, [name, "--from", str(run), "--data", str(data), "--json", *more])
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    folder = run / "reproduce" / name
    printed: dict[str, Any] = json.loads(captured.out)
    assert json.loads((folder / "result.json").read_text()) == printed
    for picture in printed["pictures"]:
        assert (folder / f"figure-{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"figure-{picture}.pdf").read_bytes().startswith(b"%PDF")
    return printed


def test_importance_is_the_reports(
    copied: Path, recorded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from grcf_ray.report.figures.importance import importance_data
    from grcf_ray.report.figures.parameters import space_of
    from grcf_ray.report.view import RunView
    from grcf_ray.search.record import RunRecord
    from grcf_ray.storage import storage_path

    folder = tmp_path / "run"
    shutil.copytree(copied, folder)
    # Of the tiny search too few trials run to the end.
    for path in [*folder.glob("stage?/trials/*.json"), *folder.glob("stage?/trials.jsonl")]:
        path.write_text(path.read_text().replace('"pruned"', '"complete"'))
    printed = reproduce("importance", folder, recorded.data, capsys)
    view = RunView.read(RunRecord(storage_path(folder)))
    expected = {f"stage{stage}": importance_data(view.trials[stage], stage, space_of(view)) for stage in (1, 2)}
    expected = {name: data for name, data in expected.items() if data["methods"]}
    assert [table["name"] for table in printed["tables"]] == list(expected)
    for table, data in zip(printed["tables"], expected.values(), strict=True):
        assert [row["title"] for row in table["rows"]] == data["parameters"]
        assert [row["forest"] for row in table["rows"]] == data["methods"]["forest"]["mean"]
    # What the paper says is of MOSI.
    assert all(row["paper"] is None for table in printed["tables"] for row in table["rows"])
    assert any("chance" in note for note in printed["notes"]), "a warning of too few trials"


def test_curves_are_the_winners_trials(copied: Path, recorded: Any, capsys: pytest.CaptureFixture[str]) -> None:
    printed = reproduce("curves", copied, recorded.data, capsys)
    winner = json.loads((copied / "run.json").read_text())["winner"]
    assert [f"stage{s['stage']}/{s['number']}" for s in printed["pictures"]["curves"]["stages"]][-1] == winner
    terms = {table["name"]: {row["title"]: row for row in table["rows"]} for table in printed["tables"]}
    assert set(terms["stage1"]) == {"group", "reg", "bound", "total"}
    assert set(terms["stage2"]) == {"group", "mae", "bound", "total"}
    mae = printed["pictures"]["curves"]["stages"][-1]["terms"]["mae"]
    row = terms["stage2"]["mae"]
    assert (row["first"], row["last"], row["low"], row["high"]) == (mae[0], mae[-1], min(mae), max(mae))


def test_scatter_shows_what_the_metrics_are_of(copied: Path, recorded: Any, capsys: pytest.CaptureFixture[str]) -> None:
    reads = (copied / "best" / "provenance.json").read_bytes()
    printed = reproduce("scatter", copied, recorded.data, capsys)
    shown = printed["pictures"]["scatter"]
    error = np.mean(np.abs(np.array(shown["label"]) - shown["score"]))
    value = {row["name"]: row["value"] for row in printed["tables"][0]["rows"]}
    assert value["mae"] == pytest.approx(error) == pytest.approx(shown["recorded"]["mae"])
    assert (copied / "best" / "provenance.json").read_bytes() == reads, "test is not read again"


@pytest.mark.parametrize(("name", "said"), [("scatter", "predictions"), ("importance", "finished trials")])
def test_what_the_record_lacks_is_refused(
    copied: Path, recorded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    from grcf_ray import console
    from grcf_ray.cli.reproduce import app

    folder = tmp_path / "run"
    shutil.copytree(copied, folder)
    shutil.rmtree(folder / "best" / "predictions")
    with pytest.raises(SystemExit) as ended:
        console.run(app, [name, "--from", str(folder), "--data", str(recorded.data)])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_tsne_has_a_panel_and_figures_for_each_ablation(
    copied: Path, recorded: Any, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = reproduce("tsne", copied, recorded.data, capsys, "--seeds", "2")
    panels = printed["pictures"]["tsne"]["panels"]
    assert [panel["title"][:3] for panel in panels] == ["(a)", "(b)", "(c)", "(d)", "(e)"]
    rows = printed["tables"][0]["rows"]
    assert [row["name"] for row in rows] == ["full", "no-advantage", "static-margin", "no-stage1", "no-stage2"]
    points = panels[0]["points"]
    assert [point["case"] for point in points] == [point["label"] < -2 for point in points]
    # The tiny test split has one such utterance or none, which is no cluster.
    assert sum(point["case"] for point in points) < 2
    assert all("silhouette" not in row and row["seeds"] == 2 for row in rows)
    assert any("cluster" in note for note in printed["notes"])
    reads = json.loads((copied / "best" / "provenance.json").read_text())["test_reads"]
    assert reads[-1]["command"] == "reproduce tsne"


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
        store=SimpleNamespace(info=SimpleNamespace(name="tiny", task=task, label_range=label_range)),
        center=sum(label_range) / 2,
        half_range=(label_range[1] - label_range[0]) / 2,
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
