"""A recorded trial that is trained again by its name comes out the same, or the command says where it does not."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grcf_ray import console
from grcf_ray.api import training
from grcf_ray.cli import train as command
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.storage import storage_path
from grcf_ray.train.job import JobRunner
from tests.conftest import Recorded

pytestmark = pytest.mark.integration
NOT_FINITE = "the loss or its gradient is no longer finite after epoch 1"


def replay(folder: Path, name: str, *words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        console.run(command.app, ["--from", str(folder), "--trial", name, *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def copied(recorded: Recorded, tmp_path: Path) -> Path:
    """The recorded run, to be changed."""
    folder = tmp_path / "copied"
    shutil.copytree(recorded.folder, folder)
    return folder


def change_trial(folder: Path, stage: int, number: int, **changes: Any) -> TrialRecord:
    record = RunRecord(storage_path(folder))
    trial = dataclasses.replace(record.trial(stage, number), **changes)
    record.write_trial(trial)
    return trial


def change_run(folder: Path, change: Any) -> None:
    path = folder / "run.json"
    run = json.loads(path.read_text())
    change(run)
    path.write_text(json.dumps(run))


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def scratch() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("grcf-replay-*"))


@pytest.mark.parametrize("which", ["winner", "complete", "pruned"])
def test_trial_is_reproduced(recorded: Recorded, capsys: pytest.CaptureFixture[str], which: str) -> None:
    record = RunRecord(storage_path(recorded.folder))
    if which == "winner":
        name = str(record.read_run()["winner"])
        stage, number = int(name[5]), int(name.partition("/")[2])
        trial = record.trial(stage, number)
    else:
        trial = next(trial for trial in record.trials(1) if trial.state == which)
        name = f"stage1/{trial.number}"
    before, folders = content(recorded.folder), scratch()
    assert replay(recorded.folder, name) == 0
    out, err = capsys.readouterr()
    epochs = f"{trial.epoch} epoch{'s' if trial.epoch > 1 else ''}"
    assert out == f"Reproduced: {name}, {trial.state}, {epochs}, every figure the same\n"
    assert [line.split("  ")[:2] for line in err.splitlines()] == [
        [f"stage {trial.stage}", f"epoch {epoch}/3"] for epoch in range(1, trial.epoch + 1)
    ]
    assert content(recorded.folder) == before
    assert scratch() == folders


def test_other_figures_are_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what else is not as it was."""
    curve = RunRecord(storage_path(copied)).trial(1, 0).curve
    true = curve[1]["valid/mae"]
    change_trial(copied, 1, 0, curve=[curve[0], curve[1] | {"valid/mae": true + 0.25, "seconds": 1e6}, *curve[2:]])
    assert replay(copied, "stage1/0") == 1
    out, err = capsys.readouterr()
    assert out == ""
    *_, head, difference, versions = err.splitlines()
    assert head.startswith("error: stage1/0 of ") and head.endswith("did not reproduce:")
    assert difference == f"  epoch 2, valid/mae: {true + 0.25} -> {true}"
    assert versions == "The versions are the same."

    change_run(copied, lambda run: run["versions"].update(torch="1.0", machine="riscv"))
    change_run(copied, lambda run: run["encoder"].update(weights_sha256="before"))
    assert replay(copied, "stage1/0") == 1
    err = capsys.readouterr().err
    assert "\n  machine: riscv there, " in err
    assert "\n  torch: 1.0 there, " in err
    assert "tiny-bert: before " in err


def test_divergence_is_reproduced(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = RunRecord(storage_path(copied)).trial(1, 0).params | {"stage1.head_lr": 1e30}
    wild: dict[str, Any] = {"params": params, "curve": [], "state": "diverged", "cause": "not finite"}
    change_trial(copied, 1, 0, error=NOT_FINITE, **wild)
    assert replay(copied, "stage1/0") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"Recorded: diverged in epoch 1, not finite: {NOT_FINITE}",
        f"Now: {NOT_FINITE}",
        "Reproduced: stage1/0, diverged, 0 epochs, every figure the same",
    ]
    change_trial(copied, 1, 0, error="scores ran away", **wild)
    assert replay(copied, "stage1/0") == 1
    assert f"it failed ({NOT_FINITE}) instead of: it failed (scores ran away)" in capsys.readouterr().err


def test_divergence_that_does_not_come_again_is_told(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After the epoch in which it was."""
    curve = RunRecord(storage_path(copied)).trial(1, 0).curve
    change_trial(copied, 1, 0, curve=curve[:1], state="diverged", cause="not finite", error=NOT_FINITE)
    assert replay(copied, "stage1/0") == 1
    err = capsys.readouterr().err
    assert err.count("stage 1  epoch") == 2
    assert "  2 epochs instead of 1\n" in err
    assert f"  it did not fail instead of: it failed ({NOT_FINITE})\n" in err


def test_death_of_a_process_is_not_repeated(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = RunRecord(storage_path(copied)).trial(1, 0).curve
    change_trial(copied, 1, 0, curve=curve[:2], state="failed", cause="process died", error="ActorDiedError: gone")
    assert replay(copied, "stage1/0") == 0
    assert capsys.readouterr().out.splitlines() == [
        "Recorded: failed in epoch 3, process died: ActorDiedError: gone",
        "Now: it continued",
        "Reproduced: stage1/0, failed, 2 epochs, every figure the same",
    ]


def test_checkpoints_stay_where_they_are_wanted(
    recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And are not taken for the repetition of another day."""
    out = tmp_path / "out"
    assert replay(recorded.folder, "stage1/0", "--out", str(out)) == 0
    assert len(list(out.glob("best-*"))) == 1
    capsys.readouterr()
    assert replay(recorded.folder, "stage1/0", "--out", str(out)) == 2
    assert f"{out} is not empty" in capsys.readouterr().err


def test_data_may_have_moved(copied: Path, recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    change_run(copied, lambda run: run["data"].update(folder="/nosuch/place"))
    assert replay(copied, "stage1/0") == 3
    assert "data folder /nosuch/place no longer exists" in capsys.readouterr().err
    assert replay(copied, "stage1/0", "--data", str(recorded.data)) == 0
    change_run(copied, lambda run: run["data"].update(fingerprint="other"))
    assert replay(copied, "stage1/0", "--data", str(recorded.data)) == 3
    assert "is not the data of this run" in capsys.readouterr().err


def test_trial_of_several_workers_is_trained_by_as_many(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_run(copied, lambda run: run["space"]["fixed"].update({"search.workers": 2, "search.cpus_per_worker": 1}))
    asked = []

    @contextlib.contextmanager
    def runner(features: Any, sharing: Any) -> Iterator[JobRunner]:
        asked.append(sharing.workers)
        yield JobRunner(features)

    monkeypatch.setattr(training, "join_cluster", lambda config, sharing, out: asked.append(sharing.workers))
    monkeypatch.setattr(training, "job_runner", runner)
    assert replay(copied, "stage1/0") == 0
    assert asked == [2, 2]


@pytest.mark.parametrize(
    ("name", "words", "code", "said"),
    [
        ("stage3/0", [], 2, "should be named like stage1/7, stage2/0 or seeds/stage2/3"),
        ("stage1/999", [], 3, "has no trial stage1/999"),
        ("stage1/0", ["--set", "seed=1", "--workers", "2"], 2, "leave out --set, --workers"),
        ("stage1/0", ["--dataset", "tiny"], 2, "leave out --dataset"),
    ],
)
def test_what_cannot_be_repeated(
    recorded: Recorded, capsys: pytest.CaptureFixture[str], name: str, words: list[str], code: int, said: str
) -> None:
    assert replay(recorded.folder, name, *words) == code
    out, err = capsys.readouterr()
    assert said in err and out == ""


def test_trial_without_an_epoch_has_nothing_to_repeat(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_trial(copied, 1, 0, curve=[], state="running")
    assert replay(copied, "stage1/0") == 3
    assert "nothing to repeat" in capsys.readouterr().err


def test_run_and_trial_belong_together(
    recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["--from", str(recorded.folder)], ["--trial", "stage1/0"], ["--backbone", "some"]):
        with pytest.raises(SystemExit) as ended:
            console.run(command.app, words)
        assert ended.value.code == 2
        assert "or --from RUN --trial NAME to repeat a trial" in capsys.readouterr().err
    assert replay(tmp_path, "stage1/0") == 3
    assert "not a run" in capsys.readouterr().err
