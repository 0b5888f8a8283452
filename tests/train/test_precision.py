"""What `auto` means for a new training, and bfloat16 on a CPU: repeatable, and close to float32."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from same_training import assert_same_state, gradient, relative, timeless
from torch import nn

from grcf_ray.api.training import train_model, with_precision
from grcf_ray.config import RunConfig, SearchConfig, TrainConfig
from grcf_ray.data.store import DatasetStore
from grcf_ray.train import precision
from grcf_ray.train.precision import cpu_length_multiple, fastest, native_bfloat16

if TYPE_CHECKING:
    from tests.train.conftest import NewLoop


@pytest.mark.parametrize(("half", "able"), [(1.9, True), (2.1, False), (100.0, False)])
def test_a_cpu_has_bfloat16_if_it_is_fast_in_it(monkeypatch: pytest.MonkeyPatch, half: float, able: bool) -> None:
    monkeypatch.setattr(precision, "product_seconds", {torch.float32: 3.0, torch.bfloat16: half}.__getitem__)
    assert native_bfloat16(gpu=False) is able


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_backward_products_are_timed(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    linear, seen = nn.functional.linear, set()

    def note(*given: torch.Tensor) -> torch.Tensor:
        seen.update((one.dtype, one.requires_grad) for one in given)
        return linear(*given)

    monkeypatch.setattr(nn.functional, "linear", note)
    assert precision.product_seconds(dtype) > 0
    assert seen == {(dtype, True)}


def test_the_fastest_call_counts() -> None:
    readings = iter([0.0, 9.0, 12.0, 14.0, 18.0, 21.0])
    assert fastest(lambda: None, 3, lambda: next(readings)) == 2.0


def test_a_gpu_that_only_emulates_bfloat16_does_not_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert native_bfloat16(gpu=True) is False


@pytest.mark.parametrize("able", [True, False])
def test_a_training_resumes_with_its_precision(
    tiny_space: Path, tiny_store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    """The second start is on a machine of the other kind, and finds the checkpoints of the first to be its own."""
    settings = {"stage1.epochs": 1, "stage2.epochs": 1, "train.precision": "auto"}
    curves = []
    for here in (able, not able):
        monkeypatch.setattr(precision, "native_bfloat16", lambda here=here, **_: here)
        out = tmp_path / "out"
        best = train_model("tiny", data=tiny_store.folder, space=tiny_space, settings=settings, out=out, threads=1).best
        curves.append({stage: dict(metrics) for stage, metrics in best.items()})
        assert json.loads((out / "train.json").read_text())["train.precision"] == ("bfloat16" if able else "float32")
    assert curves[0] == curves[1]


@pytest.mark.parametrize(("asked", "recorded", "used"), [("auto", "auto", "auto"), ("float32", "bfloat16", "float32")])
def test_a_setting_and_an_earlier_release_decide_before_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Any, recorded: str, used: str
) -> None:
    monkeypatch.setattr(precision, "native_bfloat16", lambda **_: pytest.fail("the machine was asked"))
    (tmp_path / "train.json").write_text(json.dumps({"train.precision": recorded}))
    config = RunConfig(train=TrainConfig(precision=asked))
    assert with_precision(config, SearchConfig(), tmp_path).train.precision == used


def test_bfloat16_repeats_bit_for_bit(new_loop: NewLoop) -> None:
    first, second, single = (new_loop(train__precision=name) for name in ("bfloat16", "bfloat16", "float32"))
    for loop in (first, second, single):
        loop.run_epoch()
    assert_same_state(first, second)
    assert timeless(first.curve) == timeless(second.curve) != timeless(single.curve)


def test_bfloat16_gradients_do_not_depend_on_what_is_kept(new_loop: NewLoop) -> None:
    """The two passes round alike, but sum their gradients in another order."""
    kept, twice, single = (
        new_loop(train__precision=name, pairs__activation_tokens=most, dropout=False)
        for name, most in (("bfloat16", 10**6), ("bfloat16", 1), ("float32", 10**6))
    )
    step = next(kept.steps())
    for loop in (kept, twice, single):
        loop.backward(step)
    rounding = relative(gradient(kept), gradient(single))
    assert relative(gradient(twice), gradient(kept)) < rounding < 0.1


def test_batches_in_bfloat16_have_few_lengths(new_loop: NewLoop) -> None:
    """Those of a step and of validation; the products of other lengths would be prepared anew."""
    lengths: dict[str, set[int]] = {}
    for name in ("bfloat16", "float32"):
        loop = new_loop(train__precision=name)
        seen = lengths.setdefault(name, set())
        loop.model.text_encoder.register_forward_pre_hook(
            lambda _, given, seen=seen: seen.add(given[0].mask_BL.shape[1])
        )
        loop.run_epoch()
    assert {length % 8 for length in lengths["bfloat16"]} == {0} != {length % 8 for length in lengths["float32"]}


@pytest.mark.parametrize(("positions", "multiple"), [(None, 8), (512, 8), (500, 4), (77, 1)])
def test_no_batch_is_longer_than_the_positions(positions: int | None, multiple: int) -> None:
    assert cpu_length_multiple(positions) == multiple


def test_layer_norms_stay_in_single_precision(new_loop: NewLoop) -> None:
    """Their sums of a layer's input and output would lose small changes in bfloat16."""
    loop = new_loop(train__precision="bfloat16")
    dtypes: dict[type[nn.Module], set[torch.dtype]] = {}

    def note(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        dtypes.setdefault(type(module), set()).add(output.dtype)

    for module in loop.model.text_encoder.modules():
        if isinstance(module, (nn.LayerNorm, nn.Linear)):
            module.register_forward_hook(note)
    loss = loop.backward(next(loop.steps()))["loss/total"]
    assert math.isfinite(loss)
    assert dtypes == {nn.LayerNorm: {torch.float32}, nn.Linear: {torch.bfloat16}}
