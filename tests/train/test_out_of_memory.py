"""Steps that run out of a GPU's memory start again in smaller parts, with the same gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from same_training import gradient, relative, timeless
from torch import Tensor, nn

from grcf_ray.config import TrainConfig, flatten
from grcf_ray.data.batches import Batch
from grcf_ray.data.features import Features
from grcf_ray.train import limits as limits_module
from grcf_ray.train.job import JobRunner, StageJob
from grcf_ray.train.limits import StepLimits, affordable_tokens, free_bytes
from grcf_ray.train.stage import StageLoop, choose_device

if TYPE_CHECKING:
    from tests.train.conftest import NewConfig, NewLoop

EXACT = {"train__precision": "float64"}
CPU, GPU = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


def fail_in_forward(loop: StageLoop, nth: int) -> None:
    """Run out of memory once, at the nth micro-batch."""
    encode, calls = loop.model.encode, itertools.count(1)

    def failing(batch: Batch) -> Tensor:
        if next(calls) == nth:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(batch)

    loop.model.encode = failing  # type: ignore[method-assign]


def fail_in_backward(loop: StageLoop, nth: int) -> None:
    """Run out of memory once, after the head has its gradient."""
    calls = itertools.count(1)

    def failing(*_: Any) -> None:
        if next(calls) == nth:
            raise torch.OutOfMemoryError("CUDA out of memory")

    loop.model.fusion.register_full_backward_pre_hook(failing)  # type: ignore[operator]


def limit_tokens(loop: StageLoop, most: int) -> None:
    """Run out of memory at every micro-batch of more than one utterance whose tokens exceed a limit."""
    encode = loop.model.encode

    def failing(batch: Batch) -> Tensor:
        if batch.tokens > most and (len(batch) > 1 or most == 0):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(batch)

    loop.model.encode = failing  # type: ignore[method-assign]


def stepped(loop: StageLoop) -> tuple[Tensor, list[float], Tensor]:
    """The gradient of a step, its loss terms, and random numbers drawn after it."""
    loop.model.train()
    torch.manual_seed(7)
    terms = loop.backward(next(loop.steps()))
    return gradient(loop), [value.item() for value in terms.values()], torch.rand(3)


@pytest.mark.parametrize("fail", [fail_in_forward, fail_in_backward])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_step_is_that_of_the_other_path(
    new_loop: NewLoop, fail: Callable[[StageLoop, int], None], precision: str
) -> None:
    """Bit for bit that of activations computed twice, dropout included; to rounding that of kept ones."""
    loop, twice, kept = (
        new_loop(pairs__activation_tokens=most, train__precision=precision) for most in (10**6, 1, 10**6)
    )
    fail(loop, 1 if fail is fail_in_backward else 3)
    actual, reference, usual = stepped(loop), stepped(twice), stepped(kept)
    assert torch.equal(actual[0], reference[0])
    assert actual[1] == reference[1] == usual[1]
    assert torch.equal(actual[2], usual[2])
    assert relative(actual[0], usual[0]) < (1e-12 if precision == "float64" else 1e-5)
    (note,) = loop.notes
    assert note.startswith("out of memory in epoch 1: ")
    # The next step of this size goes the same way at once.
    loop.optimizer.zero_grad()
    assert torch.equal(stepped(loop)[0], reference[0])
    assert loop.notes == [note]


@pytest.mark.parametrize("most", [1, 20, 40])
def test_micro_batches_shrink_until_they_fit(new_loop: NewLoop, most: int) -> None:
    loop, usual = (new_loop(pairs__micro_batch_tokens=200, **EXACT, dropout=False) for _ in range(2))
    limit_tokens(loop, most)
    assert relative(stepped(loop)[0], stepped(usual)[0]) < 1e-12
    assert loop.limits.micro_batch_tokens <= max(most, 10)
    assert len(loop.notes) == len(set(loop.notes)) >= 2


def test_a_model_without_text_shrinks_too(new_loop: NewLoop) -> None:
    """Its micro-batches have no tokens, so a limit of tokens would never be lower."""
    changes = {**EXACT, "model__modalities": "audio+vision", "model__textless_width": 8, "dropout": False}
    loop, usual = (new_loop(**changes) for _ in range(2))
    encode = loop.model.encode

    def failing(batch: Batch) -> Tensor:
        if len(batch) > 2 or loop.limits.keeps([batch]):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(batch)

    loop.model.encode = failing  # type: ignore[method-assign]
    assert relative(stepped(loop)[0], stepped(usual)[0]) < 1e-12


def test_an_utterance_that_does_not_fit_alone_is_an_error(new_loop: NewLoop) -> None:
    loop = new_loop()
    limit_tokens(loop, 0)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"one utterance at a time.*--gpus-per-worker 1.*CUDA out of memory"
    ):
        loop.run_epoch()
    assert loop.limits.micro_batch_tokens <= 20


def test_a_trial_goes_on_and_notes_it(
    new_config: NewConfig, tiny_features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the figures of a trial that had the lower limits from the start."""

    def results(name: str, fail: bool, **changes: Any) -> list[dict[str, Any]]:
        settings = flatten(new_config(stage1__epochs=2, **changes))
        runner = JobRunner(tiny_features)
        runner.start(
            StageJob(
                stage=1,
                seed=5,
                settings=settings,
                protocol="mosi",
                folder=str(tmp_path / name),
                initial=None,
                initial_sha256=None,
                threads=1,
                gpu=0,
            )
        )
        forward = nn.Module.__call__
        if fail:
            calls = itertools.count(1)

            def failing(self: nn.Module, *given: Any, **named: Any) -> Any:
                if isinstance(self, nn.LayerNorm) and torch.is_grad_enabled() and next(calls) == 9:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return forward(self, *given, **named)

            monkeypatch.setattr(nn.Module, "__call__", failing)
        return [runner.step() for _ in range(2)]

    reference = results("twice", fail=False, pairs__activation_tokens=1)
    actual = results("failed", fail=True)
    assert timeless(actual[-1]["curve"]) == timeless(reference[-1]["curve"])
    assert reference[-1]["notes"] == []
    assert [len(result["notes"]) for result in actual] == [1, 1]
    assert actual[-1]["done"]


def test_room_in_tokens() -> None:
    assert affordable_tokens(10 * GIB, 2**20) == int(0.8 * 10 * 1024)
    assert affordable_tokens(-GIB, 2**20) == 0
    assert affordable_tokens(1000.0, 0.0) == 800


def test_free_memory_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 GiB of 80 are free; the process holds 6, of which 4 are in use, and may hold half of all."""
    for name, value in (
        ("mem_get_info", (40 * GIB, 80 * GIB)),
        ("memory_reserved", 6 * GIB),
        ("memory_allocated", 4 * GIB),
        ("get_per_process_memory_fraction", 0.5),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert free_bytes(GPU) == 34 * GIB + 2 * GIB
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)
    assert free_bytes(GPU) == 40 * GIB + 2 * GIB


def test_the_limit_of_a_gpu_is_measured(new_loop: NewLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A micro-batch of 1 MB per token, and 100 MB free for activations, gradients and moments."""
    loop = new_loop()
    assert loop.limits.activation_tokens is not None
    limits = StepLimits(loop.config, GPU)
    assert limits.activation_tokens is None
    (batch, *_), _ = loop.feed.send(next(loop.steps()).utterance_U[:1], 64, {})
    for name, value in (
        ("memory_allocated", 5 * 10**6),
        ("max_memory_allocated", 5 * 10**6 + batch.tokens * 10**6),
        ("reset_peak_memory_stats", None),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    monkeypatch.setattr(limits_module, "free_bytes", lambda _: 100 * 10**6)
    before = torch.get_rng_state()
    limits.measure(loop.model, batch, loop.optimizer, loop.autocast)
    assert torch.equal(torch.get_rng_state(), before)
    weights = 4 * sum(p.numel() for p in loop.model.parameters())
    assert limits.activation_tokens == int(0.8 * (100 * 10**6 - 3 * weights) / 10**6)
    assert limits.keeps([batch])


@pytest.mark.parametrize(("granted", "fraction"), [(0.5, 0.5 - 0.06), (1, None), (0.05, 0.0)])
def test_a_share_of_a_gpu_is_a_share_of_its_memory(
    monkeypatch: pytest.MonkeyPatch, granted: float, fraction: float | None
) -> None:
    """Less the 0.6 GB that the context of a process takes on this GPU of 10 GB."""

    class Properties:
        total_memory = 10 * 10**9

    given: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: given.append(share))
    assert choose_device(TrainConfig(), granted=granted).type == "cuda"
    assert given == ([] if fraction is None else [pytest.approx(fraction)])
