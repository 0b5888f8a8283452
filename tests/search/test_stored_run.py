"""Runs that earlier releases have written are read, measured, replayed and extended by this one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from commands import Run, command

from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path
from grcf_ray.train.checkpoint import read_checkpoint
from grcf_ray.train.manifest import MANIFEST, write_manifest

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore

STORED = Path(__file__).parents[1] / "stored"
FINISHED, UNFINISHED = ["run-1", "run-2"], ["run-2-unfinished"]
Open = Callable[[str], Path]


@pytest.fixture
def open_stored(tiny_backbone: Path, tiny_store: DatasetStore, tmp_path: Path) -> Open:
    """Copy a stored run and fill in this machine's paths."""

    def open_copy(name: str) -> Path:
        folder = tmp_path / "runs" / "stored"
        shutil.copytree(STORED / name, folder)
        for path in folder.rglob("*.json"):
            text = path.read_text(encoding="utf-8")
            text = text.replace("{backbone}", str(tiny_backbone)).replace("{data}", str(tiny_store.folder))
            path.write_text(text, encoding="utf-8")
        if (folder / "best" / MANIFEST).exists():
            write_manifest(folder / "best")
        return folder

    return open_copy


@pytest.fixture(params=FINISHED)
def stored(request: pytest.FixtureRequest, open_stored: Open) -> Path:
    """A copy of a finished run."""
    return open_stored(request.param)


@pytest.fixture
def arguments(tiny_store: DatasetStore, tiny_space: Path, tmp_path: Path) -> list[str]:
    """The arguments of the search that goes on with the copy."""
    argv = ["--dataset", "tiny", "--data", str(tiny_store.folder), "--space", str(tiny_space), "--concurrent", "1"]
    return [*argv, "--storage", str(tmp_path / "runs"), "--name", "stored"]


@pytest.fixture
def grcf(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command of the package, which is named first, in this process."""
    return lambda name, *argv: command(import_module(f"grcf_ray.cli.{name}").app, capsys)(*argv)


def test_every_stored_run_is_tested() -> None:
    assert sorted(folder.name for folder in STORED.glob("run-*")) == sorted([*FINISHED, *UNFINISHED])


def test_the_record_and_its_checkpoints_are_read(stored: Path) -> None:
    record = RunRecord(storage_path(stored))
    run = record.read_run()
    assert run["state"] == "finished"
    assert [len(record.trials(stage)) for stage in (1, 2)] == [6, 5]
    assert run["winner"] == f"stage2/{record.ranked(2)[0].number}"
    weights = sorted(path for path in stored.rglob("*.safetensors") if path.parent.name != "best")
    assert len(weights) == 3
    for path in weights:
        assert read_checkpoint(storage_path(path)).tensors


def test_the_run_is_measured_replayed_reported_and_predicts(
    stored: Path, tiny_parquet: Path, tmp_path: Path, grcf: Run
) -> None:
    """A replay is exact on the machine type of the record; elsewhere the differences are in the last digits."""
    code, out, _ = grcf("evaluate", stored, "--json")
    assert code == 0
    recorded = json.loads((stored / "best" / "metrics.json").read_text())["test"]
    assert json.loads(out)["metrics"] == pytest.approx(recorded, rel=1e-4)

    code, out, err = grcf("train", "--from", stored, "--trial", "stage2/0")
    assert code in (0, 1)
    assert ("Reproduced" in out) == (code == 0)
    assert "epochs instead of" not in err

    assert grcf("report", stored)[0] == 0
    assert (stored / "report.html").stat().st_size > 1e6
    scores = tmp_path / "scores.csv"
    assert grcf("predict", stored, "--input", tiny_parquet, "--output", scores)[0] == 0
    assert len(scores.read_text().splitlines()) == 1 + 80
    code, out, _ = grcf("runs", "show", stored, "--json")
    assert (code, json.loads(out)["state"]) == (0, "finished")


def trial_files(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(folder.glob("stage*/trials/*.json"))
    return {f"{path.parts[-3]}/{path.stem}": json.loads(path.read_text()) for path in paths}


def test_the_run_of_an_earlier_version_is_extended(
    ray_session: None, open_stored: Open, arguments: list[str], run: Run
) -> None:
    folder = open_stored("run-1")
    before, finalists = trial_files(folder), json.loads((folder / "run.json").read_text())["finalists"]
    times = {path: path.stat().st_mtime_ns for path in folder.glob("stage1/trials/*.json")}
    code, _, err = run(*arguments, "--stage2-trials", "6")
    assert code == 0, err
    after = trial_files(folder)
    assert after.keys() - before.keys() == {"stage2/0005"}
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert json.loads((folder / "run.json").read_text())["finalists"] == finalists
    assert {name: after[name]["curve"] for name in before} == {name: trial["curve"] for name, trial in before.items()}
    assert json.loads((folder / "run.json").read_text())["test_seen"] is True


@pytest.mark.parametrize("name", UNFINISHED)
def test_the_run_is_resumed(ray_session: None, open_stored: Open, arguments: list[str], name: str, run: Run) -> None:
    """With the stored settings: no finished trial is repeated, and the unfinished one goes on from its checkpoint."""
    folder = open_stored(name)
    before, settings = trial_files(folder), json.loads((folder / "run.json").read_text())["settings"]
    unfinished = {trial for trial, content in before.items() if content["state"] == "running"}
    assert len(unfinished) == 1
    assert run(*arguments)[0] == 0
    resumed, after = json.loads((folder / "run.json").read_text()), trial_files(folder)
    assert resumed["state"] == "finished"
    assert (settings["train.precision"], settings["search.hang_minutes"]) == ("auto", 120.0)
    # Decided now, as the earlier release did in each process.
    assert (settings | {"train.precision": "float32"}).items() <= resumed["settings"].items()
    assert len(after) == 11
    assert {trial for trial, content in after.items() if content["attempt"] == 2} == unfinished
    for trial, content in before.items():
        epochs = content["curve"]
        assert after[trial]["curve"][: len(epochs)] == epochs
        assert len(after[trial]["curve"]) == len(epochs) or trial in unfinished
