"""Checkpoints in the background: what the training waits for, what is uploaded when, and which files stay."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from same_training import checkpoint_in, files_of
from torch import nn
from waiting import wait_for

from grcf_ray.errors import ClusterError
from grcf_ray.storage import storage_path
from grcf_ray.train import resuming, saving
from grcf_ray.train.saving import CheckpointSaver, Kind

WAIT_S = 30.0


class Training:
    """A model of one weight, the number of its epoch, and a saver with a clock of its own."""

    def __init__(self, folder: Path, *objectives: float, minutes: float = 10) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=True)
        self.objectives, self.curve, self.now = objectives, list[dict[str, Any]](), 0.0
        self.folder, self.scratch = folder / "run", folder / "scratch"
        self.saver = CheckpointSaver(storage_path(self.folder), self.scratch, minutes=minutes, clock=lambda: self.now)

    def epoch(self, *, seconds: float = 0.0, settle: bool = True) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(1, 1)).sum().backward()
        self.optimizer.step()
        number = len(self.curve) + 1
        with torch.no_grad():
            self.model.weight.fill_(number)
        self.curve.append({"epoch": number, "valid/pairwise_acc": self.objectives[number - 1]})
        self.now += seconds
        best = max(self.objectives[:number]) not in self.objectives[: number - 1]
        kinds: list[Kind] = [*(["best"] if best else []), "whole"]
        state = {"stage": 1, "epoch": number, "seed": 0, "curve": self.curve}
        self.saver.save(self.model, self.optimizer, state, kinds)
        if settle:
            self.saver.settle()

    @property
    def files(self) -> list[str]:
        return [name.removesuffix(".safetensors") for name in files_of(self.folder)] if self.folder.exists() else []


def test_the_run_gets_the_best_weights_at_once_and_whole_checkpoints_after_some_minutes(tmp_path: Path) -> None:
    training = Training(tmp_path, 0.5, 0.6, 0.4, 0.3, 0.7)
    for files in (
        ["best-00001"],
        ["best-00002"],
        # Ten minutes after the start.
        ["best-00002", "whole-00003"],
        ["best-00002", "whole-00003"],
        # The whole checkpoint still needs the best weights of its time.
        ["best-00002", "best-00005", "whole-00003"],
    ):
        training.epoch(seconds=240)
        assert training.files == files
    names = files_of(training.scratch)
    assert [name for name in names if "whole" in name] == ["whole-00004.safetensors", "whole-00005.safetensors"]
    best = checkpoint_in(training.folder / "best-00005.safetensors")
    assert training.saver.best == ("best-00005.safetensors", best.sha256)
    assert best.tensors.keys() == {"model.weight"} and best.tensors["model.weight"].item() == 5
    training.saver.interrupt()
    assert training.files == ["best-00002", "best-00005", "whole-00003", "whole-00005"]
    whole = checkpoint_in(training.folder / "whole-00005.safetensors")
    assert whole.is_whole and not best.is_whole
    assert whole.tensors["optimizer.step.weight"].item() == 5
    assert not training.scratch.exists()


def test_files_that_a_finished_training_needs(tmp_path: Path) -> None:
    training = Training(tmp_path, 0.5, 0.6, 0.4, minutes=0)
    for _ in range(3):
        training.epoch()
    assert training.files == ["best-00002", "whole-00002", "whole-00003"]
    training.saver.finish()
    training.saver.drop_rest()
    assert training.files == ["best-00002"]
    # As when the process ends after its trial.
    training.saver.interrupt()
    assert training.files == ["best-00002"]


def test_a_slow_upload_delays_no_epoch_and_newer_files_take_the_place_of_waiting_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload of the first epoch ends after the fourth; what the training changes meanwhile does not show."""
    going, begun, real, uploaded = threading.Event(), threading.Event(), saving.link_or_copy, []

    def slow(source: Path, target: Path) -> None:
        begun.set()
        assert going.wait(WAIT_S)
        uploaded.append(source.name.removesuffix(".safetensors"))
        real(source, target)

    monkeypatch.setattr(saving, "link_or_copy", slow)
    training = Training(tmp_path, 0.5, 0.6, 0.7, 0.8)
    for _ in range(4):
        training.epoch(settle=False)
        assert begun.wait(WAIT_S)
    wait_for(lambda: (training.scratch / "whole-00004.safetensors").exists(), "the last write")
    assert training.files == [] and training.saver.best is None
    going.set()
    training.saver.settle()
    assert uploaded == ["best-00001", "best-00004"]
    assert training.files == ["best-00004"]
    assert checkpoint_in(training.folder / "best-00004.safetensors").tensors["model.weight"].item() == 4


def test_an_error_in_the_background_reaches_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the next epoch or the end, and with nothing lost that the node has."""
    training = Training(tmp_path, 0.5, 0.6, 0.7)
    training.epoch()

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "link_or_copy", full)
        with pytest.raises(OSError, match="No space left"):
            training.epoch()
        assert files_of(training.folder) == ["best-00001.safetensors"]
        with pytest.raises(OSError, match="No space left"):
            training.saver.interrupt()
    assert "whole-00002.safetensors" in files_of(training.scratch)
    again = Training(tmp_path, 0.5)
    again.epoch(settle=False)
    again.saver.settle()
    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_checkpoint", full)
        again.objectives = (0.5, 0.6, 0.7)
        again.epoch(settle=False)
        with pytest.raises(OSError, match="No space left"):
            again.epoch()


def test_a_discarded_training_may_have_lost_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver deletes the folder of a pruned trial without waiting for its process."""

    def deleted(source: Path, target: Path) -> None:
        shutil.rmtree(target.parent)

    monkeypatch.setattr(saving, "link_or_copy", deleted)
    training = Training(tmp_path, 0.5)
    training.epoch(settle=False)
    training.saver.discard()
    assert not training.folder.exists() and not training.scratch.exists()


def test_scratch_folders_are_private_and_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming.tempfile, "gettempdir", lambda: str(tmp_path))
    first, second = resuming.scratch_of("a"), resuming.scratch_of("b")
    assert first != second and resuming.scratch_of("a") == first
    assert first.parent.stat().st_mode & 0o777 == 0o700
    first.mkdir(), second.mkdir()
    week = time.time() - 8 * 24 * 3600
    os.utime(first, (week, week))
    resuming.scratch_of("c")
    assert (first.exists(), second.exists()) == (False, True)
    root = first.parent
    second.rmdir()
    root.rmdir()
    root.symlink_to(tmp_path)
    with pytest.raises(ClusterError, match="set TMPDIR"):
        resuming.scratch_of("a")
