"""Checkpoints of a stage: what is written, and how a training resumes from it."""

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
    assert_same_state,
    assert_same_tensors,
    best_in,
    checkpoint_in,
    files_of,
    save_checkpoint,
    state_of,
    timeless,
)

from grcf_ray.errors import DataError, DivergedError
from grcf_ray.storage import storage_path
from grcf_ray.train import saving
from grcf_ray.train.curve import objective_name
from grcf_ray.train.stage import StageLoop

if TYPE_CHECKING:
    from tests.train.conftest import NewLoop

Stage = Literal[1, 2]
Whole = Callable[..., tuple[StageLoop, Path]]


def damage(path: Path) -> None:
    """Flip a bit of the last weight, in the file itself."""
    with path.open("r+b") as file:
        file.seek(-1, 2)
        (byte,) = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([byte ^ 1]))


def judged(patch: pytest.MonkeyPatch, values: Sequence[float]) -> None:
    """Give validation's result of each epoch, however often it is run; the training is real."""
    patch.setattr(StageLoop, "_validate", lambda self: {"valid/pairwise_acc": values[self.epoch]})


def run(loop: StageLoop, epochs: int | None = None) -> StageLoop:
    """Train some epochs, or to the end, and wait for the files of each: a file that waits gives way to a newer one."""
    assert loop.saver is not None
    for _ in range(loop.epochs - loop.epoch if epochs is None else epochs):
        loop.run_epoch()
        loop.saver.settle()
    if epochs is None:
        loop.finish()
    return loop


@pytest.fixture(scope="module")
def whole(new_loop: NewLoop, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """An uninterrupted training and its folder, to be read only; run once for each stage and judgement."""

    @functools.cache
    def train(stage: Stage, values: tuple[float, ...] = (), **changes: Any) -> tuple[StageLoop, Path]:
        folder = tmp_path_factory.mktemp("whole")
        with pytest.MonkeyPatch.context() as patch:
            if values:
                judged(patch, values)
            return run(new_loop(stage, folder=folder, **changes)), folder

    return train


def assert_as(loop: StageLoop, folder: Path, whole: tuple[StageLoop, Path]) -> None:
    """The training ends bit for bit as the uninterrupted one."""
    assert_same_state(loop, whole[0])
    assert timeless(loop.curve) == timeless(whole[0].curve)
    assert_same_tensors(checkpoint_in(best_in(folder)).tensors, checkpoint_in(best_in(whole[1])).tensors)
    assert loop.saver is not None
    assert loop.saver.best == (best_in(folder).name, checkpoint_in(best_in(folder)).sha256)


@pytest.mark.parametrize(("stage", "stopped"), [(1, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("end", ["interrupted", "killed", "node lost"])
def test_a_resumed_training_is_the_uninterrupted_one(
    new_loop: NewLoop, whole: Whole, tmp_path: Path, stage: Stage, stopped: int, end: str
) -> None:
    """With dropout: weights, optimizer, curve and checkpoints. The new attempt has a folder of its own."""
    settings: dict[str, Any] = {"model__modality_dropout": 0.2, "checkpoint__minutes": 10}
    first = new_loop(stage, folder=tmp_path / "1", **settings)
    assert not first.resume()
    run(first, stopped)
    assert not list((tmp_path / "1").glob("whole-*"))
    if end == "interrupted":
        first.interrupt()
        assert (tmp_path / "1" / f"whole-0000{stopped}.safetensors").exists()
    if end != "killed":
        assert first.saver is not None
        first.saver.finish()
    torch.rand(7)
    second = new_loop(stage, folder=tmp_path / "2", earlier=[tmp_path / "1"], **settings)
    assert second.resume() == (end != "node lost")
    assert second.epoch == (0 if end == "node lost" else stopped)
    run(second)
    assert_as(second, tmp_path / "2", whole(stage, model__modality_dropout=0.2))
    assert second.notes == []


def test_a_training_resumes_from_the_files_of_the_first_release(
    new_loop: NewLoop, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`last`, `previous` and `best`, each with the optimizer: here the best is the epoch before the last."""
    objectives = (0.5, 0.7, 0.6, 0.4)
    judged(monkeypatch, objectives)
    loop = new_loop(stage1__epochs=4)
    for _ in range(3):
        loop.run_epoch()
        state = {"stage": 1, "epoch": loop.epoch, "seed": 1, "curve": loop.curve}
        for name in [("last",), ("previous", "best"), ("last",)][loop.epoch - 1]:
            save_checkpoint(storage_path(tmp_path / "1" / f"{name}.safetensors"), loop.model, loop.optimizer, state)
    again = new_loop(folder=tmp_path / "2", earlier=[tmp_path / "1"], stage1__epochs=4)
    assert again.resume() and again.epoch == 3
    damage(tmp_path / "1" / "last.safetensors")
    again = new_loop(folder=tmp_path / "3", earlier=[tmp_path / "1"], stage1__epochs=4)
    assert again.resume() and again.epoch == 2
    run(again)
    assert_as(again, tmp_path / "3", whole(1, objectives, stage1__epochs=4))


def test_a_finished_stage_is_not_trained_again(new_loop: NewLoop, tmp_path: Path) -> None:
    loop = run(new_loop(folder=tmp_path, keeps_last=True))
    assert files_of(tmp_path) == [best_in(tmp_path).name, "last.safetensors"]
    again = new_loop(folder=tmp_path, keeps_last=True)
    assert again.resume() and again.done
    assert_same_tensors(dict(again.model.state_dict()), dict(loop.model.state_dict()))
    assert again.saver is not None and again.saver.best == (
        best_in(tmp_path).name,
        checkpoint_in(best_in(tmp_path)).sha256,
    )


def test_an_undefined_metric_is_the_same_before_and_after_a_resume(new_loop: NewLoop, tmp_path: Path) -> None:
    """Constant scores have no correlation; JSON has no NaN."""
    loop = new_loop(folder=tmp_path, stage1__head_lr=1e-30, stage1__encoder_lr=1e-30)
    with torch.no_grad():
        loop.model.head[2].weight.zero_()  # type: ignore[operator]
    run(loop, 1)
    assert loop.curve[0]["valid/corr"] is None
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
def test_the_best_weights_are_those_of_the_best_objective(
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
    loop = new_loop(stage, folder=tmp_path, keeps_last=True, stage1__epochs=4, stage2__epochs=4)
    weights = [loop.model.head[2].weight.detach().clone() for _ in loop]  # type: ignore[union-attr,operator]
    loop.finish()
    assert f"valid/{objective_name(stage, 'regression')}" == metric
    assert loop.best_epoch == best
    assert best_in(tmp_path).name == f"best-{best:05d}.safetensors"
    for path, epoch in ((best_in(tmp_path), best), (tmp_path / "last.safetensors", 4)):
        assert checkpoint_in(path).state["epoch"] == epoch
        saved = load_file(path)
        assert torch.equal(saved["model.head.2.weight"], weights[epoch - 1])
        assert all(name.startswith("model.") for name in saved)


@pytest.mark.parametrize("upload", [1, 2, 3, 4])
def test_an_end_between_two_files_loses_nothing(
    new_loop: NewLoop, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upload: int
) -> None:
    """The n-th file does not reach the run's folder, and no later one: what the node has serves."""
    objectives = (0.5, 0.7, 0.6)
    judged(monkeypatch, objectives)
    real, count = saving.link_or_copy, 0

    def killed(*given: Any) -> None:
        nonlocal count
        count += 1
        if count >= upload:
            raise OSError("cut off")
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "link_or_copy", killed)
        loop = new_loop(folder=tmp_path)
        with pytest.raises(OSError, match="cut off"):
            run(loop, 2)
    again = new_loop(folder=tmp_path)
    assert again.resume()
    assert again.notes == []
    run(again)
    assert_as(again, tmp_path, whole(1, objectives))


@pytest.mark.parametrize(
    ("objectives", "lost", "resumed", "how"),
    [
        ((0.5, 0.6, 0.7, 0.8), ["whole-00003"], 2, "damaged"),
        ((0.5, 0.7, 0.6, 0.4), ["whole-00003"], 2, "empty"),
        # Both whole checkpoints need the weights of the first epoch.
        ((0.7, 0.5, 0.6, 0.8), ["best-00001"], 0, "damaged"),
        ((0.7, 0.5, 0.6, 0.8), ["whole-00003"], 2, "damaged"),
        ((0.5, 0.6, 0.7, 0.8), ["whole-00003", "whole-00002"], 0, "empty"),
        # The weights of the best epoch are in the whole checkpoint too.
        ((0.5, 0.6, 0.7, 0.4), ["best-00003"], 3, "damaged"),
        ((0.5, 0.7, 0.6, 0.4), ["best-00002"], 2, "damaged"),
        ((0.5, 0.6, 0.7, 0.8), ["whole-00002"], 3, "damaged"),
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
    """After three of four epochs, on another node: the result is bit for bit that of the undamaged run."""
    undamaged = whole(1, objectives, stage1__epochs=4)
    judged(monkeypatch, objectives)
    first = run(new_loop(folder=tmp_path, stage1__epochs=4), 3)
    first.interrupt()
    for name in lost:
        path = tmp_path / f"{name}.safetensors"
        damage(path) if how == "damaged" else os.truncate(path, 0)
    loop = new_loop(folder=tmp_path, stage1__epochs=4)
    assert loop.resume() == (resumed > 0)
    assert loop.epoch == resumed
    run(loop)
    assert_as(loop, tmp_path, undamaged)


def test_notes_say_what_was_damaged_and_what_it_cost(new_loop: NewLoop, tmp_path: Path) -> None:
    loop = run(new_loop(folder=tmp_path), 2)
    loop.interrupt()
    newest, before = (tmp_path / f"whole-0000{epoch}.safetensors" for epoch in (2, 1))
    damage(newest)
    again = new_loop(folder=tmp_path)
    assert again.resume()
    (note,) = again.notes
    assert note.startswith(f"{newest}: damaged, its content has SHA-256 ")
    assert note.endswith("; trained again from epoch 2")
    damage(before)
    again = new_loop(folder=tmp_path)
    assert not again.resume()
    assert [note.partition(": damaged, ")[0] for note in again.notes] == [str(newest), str(before)]
    assert all(note.endswith("; trained again from epoch 1") for note in again.notes)


@pytest.mark.parametrize("fault", ["missing", "of another training"])
def test_best_weights_that_do_not_belong_to_the_curve(
    new_loop: NewLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    judged(monkeypatch, [0.5, 0.7, 0.6, 0.4])
    loop = run(new_loop(folder=tmp_path, stage1__epochs=4), 3)
    loop.interrupt()
    best, newest = tmp_path / "best-00002.safetensors", tmp_path / "whole-00003.safetensors"
    best.unlink()
    (tmp_path / "whole-00002.safetensors").unlink()
    if fault != "missing":
        state = {"stage": 1, "epoch": 2, "seed": 1, "curve": [{**metrics, "lr/x": 1.0} for metrics in loop.curve[:2]]}
        save_checkpoint(storage_path(best), loop.model, loop.optimizer, state)
    again = new_loop(folder=tmp_path, stage1__epochs=4)
    before = state_of(again.model, again.optimizer)
    assert not again.resume()
    assert again.notes == [f"{newest}: the weights of its best epoch, 2, are missing; trained again from epoch 1"]
    assert_same_tensors(state_of(again.model, again.optimizer), before)


def test_a_checkpoint_of_a_newer_version_is_not_overwritten(new_loop: NewLoop, tmp_path: Path) -> None:
    """Nor one of another model: that is no damage, and a training would destroy it."""
    state = json.dumps({"format": 99})
    path = tmp_path / "whole-00009.safetensors"
    save_file({}, path, {"state": state, "sha256": hashlib.sha256(state.encode()).hexdigest()})
    with pytest.raises(DataError, match="a newer grcf_ray"):
        new_loop(folder=tmp_path).resume()
    path.unlink()
    run(new_loop(folder=tmp_path), 1)
    with pytest.raises(DataError, match="made for another model"):
        new_loop(folder=tmp_path, model__modalities="text").resume()


def test_divergence_keeps_the_last_good_epoch(new_loop: NewLoop, tmp_path: Path) -> None:
    loop = run(new_loop(folder=tmp_path), 1)
    good = copy.deepcopy(loop.curve)
    with torch.no_grad():
        loop.model.unified.weight[0, 0] = math.nan
    with pytest.raises(DivergedError, match="no longer finite after epoch 2"):
        loop.run_epoch()
    assert loop.curve == good
    assert files_of(tmp_path) == ["best-00001.safetensors", "whole-00001.safetensors"]
    again = new_loop(folder=tmp_path)
    assert again.resume()
    assert again.run_epoch()["epoch"] == 2
