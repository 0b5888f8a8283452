"""The ensemble of a search: its members, their models, and its metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import command

from grcf_ray.cli.predict import app
from grcf_ray.data.store import DatasetStore
from grcf_ray.metrics import split_metrics
from grcf_ray.search.ensemble import best_trials, open_ensemble
from grcf_ray.search.predictions import Predictions
from grcf_ray.search.record import RunRecord
from grcf_ray.search.space import load_space
from grcf_ray.search.stages import Search
from grcf_ray.search.winner import export_members
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from tests.conftest import Recorded

STORED = Path(__file__).parents[1] / "stored" / "run-1"


def read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "best" / name).read_text())
    return content


@pytest.fixture
def job(recorded: Recorded, tiny_space: Path, tiny_features: Features, tmp_path: Path) -> Search:
    """The recorded search, on a copy of its run."""
    folder = Path(shutil.copytree(recorded.folder, tmp_path / "run"))
    record = RunRecord(storage_path(folder))
    return Search(record=record, space=load_space(tiny_space), features=tiny_features, protocol="own", concurrent=1)


def test_the_best_trials_are_measured_in_one_reading_of_test(recorded: Recorded) -> None:
    """And kept: predictions and metrics of each member, as the winner's, and those of the mean score."""
    metrics, ranked = read(recorded.folder, "metrics.json"), RunRecord(storage_path(recorded.folder)).ranked(2)
    names = [trial.name for trial in ranked[:3]]
    assert metrics["ensemble"]["members"] == names
    (test_read,) = read(recorded.folder, "provenance.json")["test_reads"]
    assert test_read["models"] == names
    assert [trial.checkpoint is not None for trial in ranked] == [True] * 3 + [False] * 2
    folders = [recorded.folder / "best"]
    folders += [recorded.folder / "ensemble" / name.replace("/", "-") for name in names[1:]]
    assert sorted(path.name for path in (recorded.folder / "ensemble").iterdir()) == sorted(
        folder.name for folder in folders[1:]
    )
    for split in ("valid", "test"):
        members = [Predictions.read(storage_path(folder / "predictions" / f"{split}.parquet")) for folder in folders]
        scores, label_N = [member.score_N for member in members], members[0].label_N
        for folder, score_N in zip(folders, scores, strict=True):
            own = json.loads((folder / "metrics.json").read_text())[split]
            assert own == split_metrics(score_N, label_N, protocol="own", limit=3.0)
        mean_N = np.array([sum(row) / 3 for row in zip(*scores, strict=True)])
        expected = split_metrics(mean_N, label_N, protocol="own", limit=3.0)
        assert metrics["ensemble"][split] == pytest.approx(expected, rel=1e-12)
    for folder, trial in zip(folders, ranked, strict=False):
        assert json.loads((folder / "metrics.json").read_text())["valid"]["mae"] == pytest.approx(
            trial.objective, rel=1e-5
        )


def test_a_moved_run_without_its_trials_has_its_ensemble(
    recorded: Recorded, job: Search, tiny_parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From Python, and by the command, whose scores are the mean of those of its members."""
    folder = Path(shutil.move(tmp_path / "run", tmp_path / "moved"))
    for part in ("stage1", "stage2", "finalists"):
        shutil.rmtree(folder / part)
    ensemble = open_ensemble(storage_path(folder))
    assert ensemble is not None
    table = DatasetStore.open(recorded.data).read("test")
    scores = [member.score(table) for member in ensemble.members]
    np.testing.assert_array_equal(ensemble.score(table), np.mean(scores, axis=0))
    assert ensemble.inputs[0] == "text" and set(ensemble.inputs) == {n for m in ensemble.members for n in m.inputs}

    predict, files = command(app, capsys), []
    places = {"mean": [folder, "--ensemble"], "best": [folder]}
    places |= {place.name: [place] for place in (folder / "ensemble").iterdir()}
    for name, words in places.items():
        files.append(tmp_path / f"{name}.parquet")
        code, _, err = predict(*words, "--input", tiny_parquet, "--output", files[-1])
        assert code == 0, err
    mean_N, *each = (pq.read_table(file)["score"].to_numpy() for file in files)
    np.testing.assert_allclose(mean_N, np.mean(each, axis=0), rtol=1e-12)

    shutil.rmtree(next((folder / "ensemble").iterdir()))
    assert open_ensemble(storage_path(folder)) is None
    assert open_ensemble(storage_path(folder / "best")) is None


def test_a_run_of_an_earlier_release_has_no_ensemble() -> None:
    assert open_ensemble(storage_path(STORED)) is None


def test_members_are_the_best_trials_that_have_weights(job: Search, recorded: Recorded, tmp_path: Path) -> None:
    """Former members go; one whose weights are damaged is left out, from then on."""
    first, second, third = job.record.ranked(2)[:3]
    assert best_trials(job) == [first, second, third]
    path = job.record.at(str(second.checkpoint)).local
    assert path is not None
    path.write_bytes(path.read_bytes()[:-5])
    members = export_members(job, [first, second, third], DatasetStore.open(recorded.data))
    assert [trial.name for trial in members] == [first.name, third.name]
    assert [trial.name for trial in best_trials(job)] == [first.name, third.name]
    assert [path.name for path in (tmp_path / "run" / "ensemble").iterdir()] == [third.name.replace("/", "-")]
