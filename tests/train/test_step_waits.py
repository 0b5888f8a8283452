"""A step never waits for a GPU: no call in it reads a value back, and its input goes there in a few transfers."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from rivals import two_classes
from torch.utils._python_dispatch import TorchDispatchMode

from grcf_ray.data.features import Features
from grcf_ray.model.base import MultimodalModel
from grcf_ray.plugins import model_names
from grcf_ray.train.stage import StageLoop

if TYPE_CHECKING:
    from tests.train.conftest import NewLoop

META = torch.device("meta")
"""Holds no values, so whatever reads one raises an error."""
READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2")
"""Operations of ATen that need a value, or that make a tensor whose size depends on values."""
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")


class Watch(TorchDispatchMode):
    """Count the operations that read values, and the copies from the CPU to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.copies = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in INDEXED and any(at is not None and at.dtype == torch.bool for at in args[1])
        if name in READS or by_mask:
            self.reads[name] += 1
        result = func(*args, **(kwargs or {}))
        source = args[1] if name == "copy_" else args[0] if name == "_to_copy" else None
        if source is not None and source.device.type == "cpu" != result.device.type:
            self.copies += 1
        return result


Case = tuple[str, Literal[1, 2], int]
CASES = [
    pytest.param((task, stage, most), id=f"{task}, stage {stage}, {'kept' if most > 1 else 'twice'}")
    for task in ("regression", "classification")
    for stage in (1, 2)
    for most in (10**6, 1)
]


def loop_of(new_loop: NewLoop, features: Features, case: Case, **changes: Any) -> StageLoop:
    task, stage, most = case
    loop = new_loop(
        stage,
        features=two_classes(features) if task == "classification" else features,
        pairs__activation_tokens=most,
        **changes,
    )
    loop.model.train()
    return loop


@pytest.mark.parametrize("case", CASES)
def test_a_step_reads_no_value(new_loop: NewLoop, tiny_features: Features, case: Case) -> None:
    """With the optimizer and the clipping of gradients, for the second step: the first fills caches."""
    loop = loop_of(new_loop, tiny_features, case)
    first, second, _ = loop.steps()
    loop.take_step(first)
    with Watch() as watch:
        loop.take_step(second)
    assert watch.reads == {}


@pytest.mark.parametrize("name", model_names())
def test_a_step_of_any_model_reads_no_value(new_loop: NewLoop, name: str) -> None:
    """With the model's own loss terms, and its work after the step."""
    loop = new_loop(2, model__name=name)
    loop.model.train()
    first, second, _ = loop.steps()
    loop.take_step(first)
    with Watch() as watch:
        terms, norm = loop.take_step(second)
    assert watch.reads == {}
    assert all(value.isfinite() for value in (*terms.values(), norm))


def test_what_reads_a_value_is_seen() -> None:
    values = torch.tensor([1.0, 2.0])
    with Watch() as watch:
        values[values > 1], bool(values.sum() > 0), values.nonzero(), values.to(META)
    assert watch.reads.keys() == {"index", "_local_scalar_dense", "nonzero"}
    assert watch.copies == 1


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_input_goes_to_the_device_in_a_transfer_for_each_type(
    new_loop: NewLoop, tiny_features: Features, case: Case, resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many groups and micro-batches there are. A device without values proves that the step reads none."""
    # Autocast, which the layers after the encoder switch off, does not know this device; nor does AdamW's kernel.
    monkeypatch.setattr(MultimodalModel, "_full_precision", lambda _: contextlib.nullcontext())
    copies = set()
    for groups, tokens in ((2, 1000), (8, 40)):
        loop = loop_of(new_loop, tiny_features, case, pairs__groups_per_step=groups, pairs__micro_batch_tokens=tokens)
        steps = list(loop.steps())
        loop.model.to(META)
        loop.device = META
        loop.feed = type(loop.feed)(loop.features, META, loop.dtype, resident=resident)
        loop.optimizer = torch.optim.SGD(loop.model.parameters(), foreach=False)
        with Watch() as watch:
            loop.take_step(steps[0])
        copies.add(watch.copies)
    # int64 and float64; without features on the device also their float32 and masks.
    assert copies == {2 if resident else 4}


def test_metrics_are_read_once_an_epoch(new_loop: NewLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = new_loop(pairs__pairs_per_epoch=36 * 5)
    loop.run_epoch()
    monkeypatch.setattr(loop, "_validate", dict)
    with Watch() as watch:
        loop.run_epoch()
    assert sum(watch.reads.values()) <= len(loop.curve[-1])
