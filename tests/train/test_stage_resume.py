"""Checkpoints of a stage: what is written, and how a training goes on from it."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from same_training import (
    CHECKPOINTS,
    assert_same_checkpoints,
    assert_same_state,
    assert_same_tensors,
    checkpoint_in,
    epoch_of,
    files_of,
    state_of,
    timeless,
)

from grcf_ray.errors import DataError, DivergedError
from grcf_ray.storage import LocalPath
from grcf_ray.train.curve import objective_name
from grcf_ray.train.stage import StageLoop

if TYPE_CHECKING:
    from tests.train.conftest import NewLoop

Stage = Literal[1, 2]
Whole = Callable[..., tuple[StageLoop, Path]]


def damage(path: Path) -> None:
    """A bit of the last weight, in the file itself: under all its names."""
    with path.open("r+b") as file:
        file.seek(-1, 2)
        (byte,) = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([byte ^ 1]))


def judged(patch: pytest.MonkeyPatch, values: Sequence[float]) -> None:
    """What validation says of each epoch, however often it is run; the training is real."""
    patch.setattr(StageLoop, "_validate", lambda self: {"valid/pairwise_acc": values[self.epoch]})


@pytest.fixture(scope="module")
def whole(new_loop: NewLoop, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """An uninterrupted training and its folder, to be read only; run once for each stage and judgement."""

    @functools.cache
    def train(stage: Stage, values: tuple[float, ...] = (), **changes: Any) -> tuple[StageLoop, Path]:
        folder = tmp_path_factory.mktemp("whole")
        loop = new_loop(stage, folder=folder, **changes)
        with pytest.MonkeyPatch.context() as patch:
            if values:
                judged(patch, values)
            list(loop)
        return loop, folder

    return train


def assert_as(loop: StageLoop, folder: Path, whole: tuple[StageLoop, Path]) -> None:
    """The training ends bit for bit as the uninterrupted one."""
    assert_same_state(loop, whole[0])
    assert timeless(loop.curve) == timeless(whole[0].curve)
    assert_same_checkpoints(folder, whole[1])
    assert loop.best_sha256 == checkpoint_in(folder / "best.safetensors").sha256


@pytest.mark.parametrize(("stage", "stopped"), [(1, 1), (1, 3), (2, 2)])
def test_resumed_run_is_the_uninterrupted_one(
    new_loop: NewLoop, whole: Whole, tmp_path: Path, stage: Stage, stopped: int
) -> None:
    """With dropout: weights, optimizer, curve and all checkpoints."""
    first = new_loop(stage, folder=tmp_path, model__modality_dropout=0.2)
    assert not first.resume()
    for _ in range(stopped):
        first.run_epoch()
    torch.rand(7)
    second = new_loop(stage, folder=tmp_path, model__modality_dropout=0.2)
    assert second.resume()
    assert (second.epoch, second.done) == (stopped, stopped == 3)
    list(second)
    assert_as(second, tmp_path, whole(stage, model__modality_dropout=0.2))
    assert second.notes == []


def test_undefined_metric_is_the_same_before_and_after_a_resume(new_loop: NewLoop, tmp_path: Path) -> None:
    """Constant scores have no correlation; JSON has no NaN."""
    loop = new_loop(folder=tmp_path, stage1__head_lr=1e-30, stage1__encoder_lr=1e-30)
    with torch.no_grad():
        loop.model.head[2].weight.zero_()  # type: ignore[operator]
    assert loop.run_epoch()["valid/corr"] is None
    again = new_loop(folder=tmp_path)
    again.resume()
    assert again.curve == loop.curve


@pytest.mark.parametrize(
    ("stage", "metric", "values", "best"),
    [
        (1, "valid/pairwise_acc", [0.5, 0.7, 0.7, 0.6], 2),
        (2, "valid/mae", [0.9, 0.4, 0.4, 0.5], 2),
        (2, "valid/mae", [0.9, 0.4, 0.3, 0.2], 4),
    ],
)
def test_best_is_the_epoch_of_the_best_objective(
    new_loop: NewLoop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: Stage,
    metric: str,
    values: list[float],
    best: int,
) -> None:
    """The earliest of equals."""
    monkeypatch.setattr(StageLoop, "_validate", lambda self: {metric: values[self.epoch]})
    loop = new_loop(stage, folder=tmp_path, stage1__epochs=4, stage2__epochs=4)
    weights = [loop.model.head[2].weight.detach().clone() for _ in loop]  # type: ignore[union-attr,operator]
    assert f"valid/{objective_name(stage, 'regression')}" == metric
    assert loop.best_epoch == best
    for name, epoch in (("best", best), ("previous", 3), ("last", 4)):
        assert epoch_of(tmp_path / f"{name}.safetensors") == epoch
        saved = load_file(tmp_path / f"{name}.safetensors")["model.head.2.weight"]
        assert torch.equal(saved, weights[epoch - 1])
    assert files_of(tmp_path) == CHECKPOINTS
    assert loop.best_sha256 == checkpoint_in(tmp_path / "best.safetensors").sha256


@pytest.mark.parametrize("copies", [1, 2])
def test_end_between_two_files_loses_nothing(
    new_loop: NewLoop, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    """In the second epoch, the best: before `last` is copied to `previous`, or before it is copied to `best`."""
    objectives = (0.5, 0.7, 0.6)
    uninterrupted = whole(1, objectives)
    judged(monkeypatch, objectives)
    loop = new_loop(folder=tmp_path)
    loop.run_epoch()
    real, count = LocalPath.copy_to, 0

    def killed(*given: Any) -> None:
        nonlocal count
        count += 1
        if count == copies:
            raise KeyboardInterrupt
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(LocalPath, "copy_to", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.run_epoch()
    best = tmp_path / "best.safetensors"
    assert epoch_of(best) == 1
    again = new_loop(folder=tmp_path)
    assert again.resume()
    assert (again.epoch, epoch_of(best), again.notes) == (copies, copies, [])
    assert again.best_sha256 == checkpoint_in(best).sha256
    list(again)
    assert_as(again, tmp_path, uninterrupted)


@pytest.mark.parametrize(
    ("objectives", "lost", "resumed", "how"),
    [
        # `best` is another name of `last`, and `previous` was the best before.
        ((0.5, 0.6, 0.7, 0.8), ["last"], 2, "damaged"),
        ((0.5, 0.7, 0.6, 0.4), ["last"], 2, "empty"),
        ((0.7, 0.5, 0.6, 0.8), ["last"], 2, "damaged"),
        # `best` is another name of `last`, and what was the best before is gone.
        ((0.6, 0.5, 0.7, 0.4), ["last"], 0, "damaged"),
        ((0.5, 0.6, 0.7, 0.8), ["last", "previous"], 0, "empty"),
        # `best` is another name of `previous`.
        ((0.5, 0.7, 0.6, 0.4), ["best"], 0, "damaged"),
        ((0.7, 0.5, 0.6, 0.8), ["last", "best"], 0, "damaged"),
        ((0.5, 0.6, 0.7, 0.8), ["previous"], 3, "damaged"),
    ],
)
def test_damage_costs_epochs_but_changes_nothing(
    new_loop: NewLoop,
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objectives: tuple[float, ...],
    lost: list[str],
    resumed: int,
    how: str,
) -> None:
    """After three of four epochs: whatever is lost, what comes out is bit for bit the undamaged run."""
    undamaged = whole(1, objectives, stage1__epochs=4)
    judged(monkeypatch, objectives)
    first = new_loop(folder=tmp_path, stage1__epochs=4)
    for _ in range(3):
        first.run_epoch()
    for name in lost:
        path = tmp_path / f"{name}.safetensors"
        damage(path) if how == "damaged" else os.truncate(path, 0)
    loop = new_loop(folder=tmp_path, stage1__epochs=4)
    assert loop.resume() == (resumed > 0)
    assert loop.epoch == resumed
    if resumed:
        # The folder is whole now, should the process end here.
        assert epoch_of(tmp_path / "last.safetensors") == resumed
        assert epoch_of(tmp_path / "best.safetensors") == loop.best_epoch
        assert loop.best_sha256 == checkpoint_in(tmp_path / "best.safetensors").sha256
        again = new_loop(folder=tmp_path, stage1__epochs=4)
        assert again.resume() and again.epoch == resumed and again.notes == []
    list(loop)
    assert_as(loop, tmp_path, undamaged)


def test_notes_say_what_was_damaged_and_what_it_cost(new_loop: NewLoop, tmp_path: Path) -> None:
    loop = new_loop(folder=tmp_path)
    loop.run_epoch(), loop.run_epoch()
    last, previous = (tmp_path / f"{name}.safetensors" for name in ("last", "previous"))
    damage(last)
    again = new_loop(folder=tmp_path)
    assert again.resume()
    (note,) = again.notes
    assert note.startswith(f"{last}: damaged, its content has SHA-256 ")
    assert note.endswith("; trained again from epoch 2")
    # `last` is a second name of `previous` by now.
    damage(previous)
    again = new_loop(folder=tmp_path)
    assert not again.resume()
    assert [note.partition(": damaged, ")[0] for note in again.notes] == [str(last), str(previous)]
    assert all(note.endswith("; trained again from epoch 1") for note in again.notes)


@pytest.mark.parametrize("fault", ["missing", "stale"])
def test_best_that_is_not_that_of_the_curve(
    new_loop: NewLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    judged(monkeypatch, [0.5, 0.7, 0.6])
    loop = new_loop(folder=tmp_path)
    loop.run_epoch()
    first = (tmp_path / "best.safetensors").read_bytes()
    list(loop)
    (tmp_path / "best.safetensors").unlink()
    if fault == "stale":
        (tmp_path / "best.safetensors").write_bytes(first)
    again = new_loop(folder=tmp_path)
    before = state_of(again.model, again.optimizer)
    assert not again.resume()
    said = {"missing": "missing", "stale": "holds epoch 1"}[fault] + ", but the best epoch is 2"
    assert again.notes == [f"{tmp_path / 'best.safetensors'}: {said}; trained again from epoch 1"]
    assert_same_tensors(state_of(again.model, again.optimizer), before)
    list(again)
    assert_same_state(again, loop)
    assert epoch_of(tmp_path / "best.safetensors") == 2


def test_checkpoint_of_a_newer_version_is_not_overwritten(new_loop: NewLoop, tmp_path: Path) -> None:
    """Nor one of another model: that is no damage, and a training would destroy it."""
    state = json.dumps({"format": 99})
    path = tmp_path / "last.safetensors"
    save_file({}, path, {"state": state, "sha256": hashlib.sha256(state.encode()).hexdigest()})
    with pytest.raises(DataError, match="a newer grcf_ray"):
        new_loop(folder=tmp_path).resume()
    path.unlink()
    new_loop(folder=tmp_path).run_epoch()
    with pytest.raises(DataError, match="made for another model"):
        new_loop(folder=tmp_path, model__modalities="text").resume()


def test_divergence_keeps_the_last_good_epoch(new_loop: NewLoop, tmp_path: Path) -> None:
    loop = new_loop(folder=tmp_path)
    loop.run_epoch()
    good = copy.deepcopy(loop.curve)
    with torch.no_grad():
        loop.model.unified.weight[0, 0] = math.nan
    with pytest.raises(DivergedError, match="no longer finite after epoch 2"):
        loop.run_epoch()
    assert loop.curve == good
    for name in ("last", "best"):
        assert epoch_of(tmp_path / f"{name}.safetensors") == 1
    again = new_loop(folder=tmp_path)
    assert again.resume()
    assert again.run_epoch()["epoch"] == 2
