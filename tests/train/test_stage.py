from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from same_training import TIMES, assert_same_state, gradient, relative, timeless
from torch import nn

from grcf_ray.config import TrainConfig
from grcf_ray.data.batches import collate
from grcf_ray.data.features import Features
from grcf_ray.errors import ClusterError, DivergedError
from grcf_ray.metrics import Ties, pairwise_accuracy
from grcf_ray.train import stage as stage_module
from grcf_ray.train.curve import finite, objective_value
from grcf_ray.train.stage import StageLoop, choose_device, predict, stage_seed, use_deterministic_torch

if TYPE_CHECKING:
    from tests.train.conftest import NewLoop

Stage = Literal[1, 2]


@pytest.mark.parametrize("stage", [1, 2])
def test_seed_decides_everything(new_loop: NewLoop, stage: Stage) -> None:
    first, second, other = (new_loop(stage, seed=seed) for seed in (1, 1, 2))
    torch.manual_seed(5)
    first.run_epoch()
    torch.manual_seed(6)
    second.run_epoch()
    other.run_epoch()
    assert_same_state(first, second)
    assert timeless(first.curve) == timeless(second.curve)
    assert timeless(first.curve) != timeless(other.curve)


def test_stages_and_epochs_draw_pairs_of_their_own(new_loop: NewLoop) -> None:
    def drawn(loop: StageLoop) -> list[list[int]]:
        return [step.utterance_U[group.slot_S].tolist() for step in loop.steps() for group in step.groups]

    loop, fixed, second = new_loop(), new_loop(pairs__redraw=False), new_loop(2)
    before = drawn(loop), drawn(fixed), drawn(second)
    assert before[0] == before[1] != before[2]
    loop.run_epoch(), fixed.run_epoch()
    assert drawn(loop) != before[0]
    assert drawn(fixed) == before[1]


def test_each_epoch_drops_out_anew(new_loop: NewLoop) -> None:
    """The same pairs and, but for rounding, the same weights: what differs is dropout."""
    still = {"pairs__redraw": False, "stage1__head_lr": 1e-30, "stage1__encoder_lr": 1e-30}
    losses = [[metrics["loss/total"] for metrics in new_loop(dropout=dropout, **still)] for dropout in (True, False)]
    assert len(set(losses[0])) == 3
    assert len(set(losses[1])) == 1


def test_stage_1_learns_the_order(new_loop: NewLoop) -> None:
    loop = new_loop(stage1__epochs=8)
    curve = list(loop)
    assert curve[-1]["loss/total"] < 0.7 * curve[0]["loss/total"]
    assert curve[-1]["valid/pairwise_acc"] > 0.8


def test_stage_2_learns_the_labels(new_loop: NewLoop, tiny_features: Features) -> None:
    loop = new_loop(2, stage2__epochs=8)
    curve = list(loop)
    assert curve[-1]["loss/mae"] < 0.7 * curve[0]["loss/mae"]
    label_N = tiny_features.valid.label_N
    constant = float(np.abs(label_N - np.median(tiny_features.train.label_N)).mean())
    assert curve[-1]["valid/mae"] < 0.75 * constant


@pytest.mark.parametrize("stage", [1, 2])
def test_epoch_tells_what_it_did(new_loop: NewLoop, stage: Stage) -> None:
    loop = new_loop(stage)
    steps = list(loop.steps())
    metrics = loop.run_epoch()
    assert metrics is loop.curve[-1]
    third = {1: "loss/reg", 2: "loss/mae"}[stage]
    rates = {1: ("lr/encoder", "lr/head"), 2: ("lr/encoder_top", "lr/encoder_base", "lr/head")}[stage]
    figures = ("loss/total", "loss/group", "loss/bound", third, "grad_norm", "active_pairs", "pair_weight")
    expected = {*figures, *rates, *TIMES, "epoch", "utterance_passes"}
    assert {name for name in metrics if not name.startswith("valid/")} == expected
    assert objective_value(loop.stage, metrics) is not None
    assert metrics["epoch"] == loop.epoch == 1
    assert metrics["utterance_passes"] == sum(len(step.utterance_U) for step in steps) / 48
    weights = loop.config.stage1 if stage == 1 else loop.config.stage2
    other = weights.reg_weight if stage == 1 else weights.mae_weight  # type: ignore[union-attr]
    total = weights.group_weight * metrics["loss/group"] + weights.boundary_weight * metrics["loss/bound"]
    assert metrics["loss/total"] == pytest.approx(total + other * metrics[third], rel=1e-5)
    json.dumps(metrics, allow_nan=False)


def test_utterances_encoded_twice_for_want_of_memory_count_once(new_loop: NewLoop) -> None:
    """The cost in passes is the same with little memory, where the encoder runs twice."""
    passes, encoded = [], []
    for most in (100_000, 1):
        loop = new_loop(pairs__activation_tokens=most)
        seen: list[int] = []

        def count(model: nn.Module, given: tuple[Any, ...], seen: list[int] = seen) -> None:
            seen.append(len(given[0].token_BL) if model.training else 0)

        loop.model.text_encoder.register_forward_pre_hook(count)
        passes.append(loop.run_epoch()["utterance_passes"])
        encoded.append(sum(seen))
    assert encoded[1] == 2 * encoded[0]
    assert passes[0] == passes[1] == encoded[0] / 48


def test_learning_rates_follow_one_cosine_over_all_epochs(new_loop: NewLoop) -> None:
    """Three epochs of three steps: what an epoch reports is its last step's, the 3rd, 6th and 9th of nine."""
    curve = list(new_loop())
    for place, metrics in zip((2, 5, 8), curve, strict=True):
        factor = (1 + math.cos(math.pi * place / 9)) / 2
        assert metrics["lr/head"] == pytest.approx(3e-3 * factor)
        assert metrics["lr/encoder"] == pytest.approx(1e-3 * factor)


def test_gradient_is_clipped(new_loop: NewLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = new_loop(train__clip_norm=0.01)
    norms = []
    real = loop.optimizer.step
    monkeypatch.setattr(loop.optimizer, "step", lambda: (norms.append(gradient(loop).norm().item()), real()))
    metrics = loop.run_epoch()
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)
    assert metrics["grad_norm"] > 0.1


def test_loop_without_a_folder_writes_nothing(
    new_loop: NewLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loop = new_loop()
    assert not loop.resume()
    loop.run_epoch()
    assert list(tmp_path.iterdir()) == []


def test_scores_that_are_not_finite_diverge(new_loop: NewLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step's update may be the first that goes wrong: no loss has seen it."""
    loop = new_loop()
    monkeypatch.setattr(stage_module, "predict", lambda *_, **__: np.array([0.0, math.inf]))
    with pytest.raises(DivergedError, match="scores are no longer finite after epoch 1"):
        loop.run_epoch()
    assert loop.curve == []


def test_predict_scores_each_utterance_in_the_splits_order(new_loop: NewLoop, tiny_features: Features) -> None:
    loop = new_loop(train__precision="float64")
    loop.model.train()
    split = tiny_features.train
    score_N = predict(loop.model, tiny_features, split, device=loop.device, token_budget=30)
    assert loop.model.training and all(module.training for module in loop.model.modules())
    loop.model.eval()
    for index, score in enumerate(score_N):
        batch = collate(tiny_features, split, np.array([index])).to(loop.device, torch.float64)
        alone = loop.model([batch], torch.zeros(1, dtype=torch.int64))
        assert score == pytest.approx(alone.item(), rel=1e-12)
    assert score_N.dtype == np.float64 and np.ptp(score_N) > 0.01


def test_validation_takes_the_runs_reading_of_ties(new_loop: NewLoop, tiny_features: Features) -> None:
    valid = dataclasses.replace(tiny_features.valid, label_N=np.sign(tiny_features.valid.label_N))
    features = dataclasses.replace(tiny_features, valid=valid)
    readings: tuple[Ties, ...] = ("drop", "literal")
    result = []
    for ties in readings:
        loop = new_loop(features=features, metrics__ties=ties)
        score_N = predict(loop.model, features, valid, device=torch.device("cpu"), token_budget=64)
        result.append(loop._validate()["valid/pairwise_acc"])
        assert result[-1] == pairwise_accuracy(score_N, valid.label_N, ties)
    assert result[0] != result[1]


def test_validation_knows_the_whole_labels_of_the_range(new_loop: NewLoop, tiny_features: Features) -> None:
    """On labels from 1 to 6, which training has less 3.5."""
    valid = dataclasses.replace(tiny_features.valid, label_N=np.round(tiny_features.valid.label_N) / 3 * 2.5)
    loop = new_loop(features=dataclasses.replace(tiny_features, valid=valid, center=3.5, half_range=2.5))
    loop.protocol = "own"
    score_N = predict(loop.model, loop.features, valid, device=torch.device("cpu"), token_budget=64)
    whole = [np.round(np.clip(value + 3.5, 1, 6)) for value in (score_N, valid.label_N)]
    assert loop._validate()["valid/acc_whole"] == np.mean(whole[0] == whole[1])


def test_predict_of_an_empty_split(new_loop: NewLoop, tiny_features: Features) -> None:
    split = tiny_features.train
    tokens = dataclasses.replace(split.tokens, values=split.tokens.values[:0], offsets=split.tokens.offsets[:1])
    empty = dataclasses.replace(split, label_N=split.label_N[:0], tokens=tokens)
    loop = new_loop()
    assert predict(loop.model, tiny_features, empty, device=loop.device, token_budget=30).shape == (0,)


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "auto"])
def test_precisions_run_on_a_cpu(new_loop: NewLoop, precision: str) -> None:
    loop, exact = (new_loop(train__precision=name, dropout=False) for name in (precision, "float64"))
    step = next(loop.steps())
    loop.backward(step), exact.backward(step)
    assert {p.dtype for p in loop.model.parameters()} == {torch.float64 if precision == "float64" else torch.float32}
    error = relative(gradient(loop).double(), gradient(exact))
    low, high = {"float64": (0, 0), "bfloat16": (1e-4, 0.3)}.get(precision, (1e-9, 1e-3))
    assert low <= error <= high
    assert math.isfinite(objective_value(loop.stage, loop.run_epoch()))


def test_precision_of_frozen_text_is_the_models(new_loop: NewLoop, tiny_features: Features) -> None:
    """Frozen vectors are stored in single precision, whatever the model's."""
    rng = np.random.default_rng(0)
    frozen = {
        name: dataclasses.replace(split, vector_ND=rng.normal(size=(len(split), 32)).astype(np.float32))
        for name, split in (("train", tiny_features.train), ("valid", tiny_features.valid))
    }
    features = dataclasses.replace(tiny_features, **frozen)
    loop = new_loop(features=features, model__frozen_layers="all", train__precision="float64")
    assert math.isfinite(loop.run_epoch()["loss/total"])


def test_derived_seeds_differ() -> None:
    seeds = {stage_seed(*parts) for parts in [(1,), (2,), (1, 2), (2, 1), (1, 2, 3), (3, 3), (0, 1, 2), (12,)]}
    assert len(seeds) == 8
    assert stage_seed(42, 1) == stage_seed(42, 1)


def test_undefined_numbers_become_none() -> None:
    curve = [{"a": math.nan, "b": math.inf, "c": 0.5, "d": 3, "e": None, "f": "x"}]
    assert finite(curve) == [{"a": None, "b": None, "c": 0.5, "d": 3, "e": None, "f": "x"}]
    assert math.isnan(curve[0]["a"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "granted", "there", "device"),
    [
        ("auto", True, True, "cuda"),
        ("auto", False, True, "cpu"),
        ("auto", True, False, "cpu"),
        ("cpu", True, True, "cpu"),
        ("cuda", True, True, "cuda"),
        ("cuda", False, True, None),
        ("cuda", True, False, None),
    ],
)
def test_device_is_the_one_granted(
    monkeypatch: pytest.MonkeyPatch, asked: Any, granted: bool, there: bool, device: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    if device is not None:
        assert choose_device(TrainConfig(device=asked), granted=granted).type == device
        return
    with pytest.raises(ClusterError, match=r"train.device = cuda"):
        choose_device(TrainConfig(device=asked), granted=granted)


def test_deterministic_torch() -> None:
    use_deterministic_torch(1)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


def test_memory_of_a_gpu_grows_in_segments_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for given in ({}, {names[0]: "a"}, {names[1]: "b"}):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        use_deterministic_torch(1)
        expected = given or {names[1]: "expandable_segments:True"}
        assert {name: os.environ[name] for name in names if name in os.environ} == expected


@pytest.mark.parametrize("newer", [True, False])
def test_a_gpu_that_is_in_use_learns_how_its_memory_grows(monkeypatch: pytest.MonkeyPatch, newer: bool) -> None:
    """Torch reads the variable only once. newer: releases since 2.9 have another function for it."""
    settings: list[str] = []
    if newer:
        monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", settings.append, raising=False)
    else:
        monkeypatch.delattr(torch._C, "_accelerator_setAllocatorSettings", raising=False)
        monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", settings.append)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    for used, expected in ((False, []), (True, ["expandable_segments:True"])):
        monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=used: used)
        use_deterministic_torch(1)
        assert settings == expected
        # A second call, for the next trial of a process, changes nothing.
        use_deterministic_torch(1)
        assert settings == expected


@pytest.mark.skipif(not hasattr(torch._C, "_accelerator_getAllocatorSettings"), reason="torch is older than 2.9")
def test_the_allocator_of_this_torch_takes_the_setting() -> None:
    before = torch._C._accelerator_getAllocatorSettings()
    stage_module._change_allocator("expandable_segments:True")
    assert torch._C._accelerator_getAllocatorSettings() == "expandable_segments:True"
    torch._C._accelerator_setAllocatorSettings(before)
