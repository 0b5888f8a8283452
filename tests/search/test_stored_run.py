"""Runs that earlier releases have written are read, measured, replayed and extended by this one."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grcf_ray import console
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import place_at
from grcf_ray.train.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from grcf_ray.data.store import Store

STORED = sorted((Path(__file__).parents[1] / "stored").glob("run-*"))


@pytest.fixture(params=STORED, ids=lambda folder: folder.name)
def stored(request: pytest.FixtureRequest, tiny_backbone: Path, tiny_store: Store, tmp_path: Path) -> Path:
    """A copy of a stored run, with the paths of here."""
    folder = tmp_path / "runs" / "stored"
    shutil.copytree(request.param, folder)
    for path in folder.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        text = text.replace("{backbone}", str(tiny_backbone)).replace("{data}", str(tiny_store.folder))
        path.write_text(text, encoding="utf-8")
    return folder


def command(monkeypatch: pytest.MonkeyPatch, module: str, *argv: str) -> int:
    """Run a command of the package in this process; its exit code."""
    app = import_module(f"{module}.__main__" if module != "grcf_ray.evaluate" else module).app
    monkeypatch.setattr(sys, "argv", [module, *argv])
    with pytest.raises(SystemExit) as ended:
        console.run(app, list(argv))
    return int(ended.value.code or 0)


def test_there_are_stored_runs() -> None:
    assert [folder.name for folder in STORED] == ["run-1"]


def test_the_record_and_its_checkpoints_are_read(stored: Path) -> None:
    record = RunRecord(place_at(stored))
    run = record.read_run()
    assert run["state"] == "finished"
    assert [len(record.trials(stage)) for stage in (1, 2)] == [6, 5]
    assert run["winner"] == f"stage2/{record.ranked(2)[0].number}"
    weights = sorted(path for path in stored.rglob("*.safetensors") if path.parent.name != "best")
    assert len(weights) == 3
    for path in weights:
        assert read_checkpoint(place_at(path)).tensors


def test_best_is_measured_again(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "grcf_ray.evaluate", str(stored), "--json") == 0
    again = json.loads(capsys.readouterr().out)["metrics"]
    recorded = json.loads((stored / "best" / "metrics.json").read_text())["test"]
    # Another machine may round otherwise.
    assert again == pytest.approx(recorded, rel=1e-4)


def test_a_trial_is_replayed(stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """To the bit on the machine type that it was recorded on; elsewhere the differences are in the last digits."""
    code = command(monkeypatch, "grcf_ray.train", "--from", str(stored), "--trial", "stage2/0")
    assert code in (0, 1)
    said = capsys.readouterr()
    assert ("Reproduced" in said.out) == (code == 0)
    assert "epochs instead of" not in said.err


def test_the_run_is_extended(
    ray_session: None, stored: Path, tiny_store: Store, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [path.read_text() for path in sorted((stored / "stage2" / "trials").glob("*.json"))]
    argv = ["--dataset", "tiny", "--data", str(tiny_store.folder), "--space", str(tiny_space), "--concurrent", "1"]
    argv += ["--storage", str(stored.parent), "--name", stored.name, "--stage2-trials", "6"]
    assert command(monkeypatch, "grcf_ray.search", *argv) == 0
    trials = sorted((stored / "stage2" / "trials").glob("*.json"))
    assert len(trials) == 6
    assert [json.loads(path.read_text())["curve"] for path in trials[:5]] == [
        json.loads(text)["curve"] for text in before
    ]
    assert json.loads((stored / "run.json").read_text())["test_seen"] is True
