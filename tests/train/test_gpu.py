"""Training on a GPU: steps that never wait for it, checkpoints, and recovery when memory runs out.

Run by name: -m gpu.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from same_training import (
    assert_same_state,
    assert_same_tensors,
    checkpoint_in,
    gradient,
    relative,
    timeless,
)
from torch import Tensor

from grcf_ray.storage import storage_path
from grcf_ray.train.assemble import initial_model
from grcf_ray.train.checkpoint import checkpoint_tensors
from grcf_ray.train.stage import StageLoop, use_deterministic_torch

if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from tests.train.conftest import NewConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]
GPU = torch.device("cuda")


def loop_on_gpu(new_config: NewConfig, features: Features, *, folder: Path | None = None, **changes: Any) -> StageLoop:
    use_deterministic_torch(1)
    config = new_config(**changes)
    model = initial_model(config.model, features, seed=1)
    place = storage_path(folder) if folder else None
    loop = StageLoop(model, features, config, 1, seed=1, protocol="mosi", folder=place, device=GPU)
    loop.model.train()
    return loop


def make_backbone(tiny_backbone: Path, folder: Path, kind: str, **settings: Any) -> Path:
    """Save an encoder of another kind or size for the tokens of the tiny one."""
    from transformers import AutoConfig, AutoModel

    words = AutoConfig.from_pretrained(tiny_backbone).vocab_size
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=words, **settings)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("resident_gb", [0.0, 2.0])
@pytest.mark.parametrize("most", [None, 10**6, 1])
def test_a_step_does_not_wait(
    new_config: NewConfig, tiny_features: Features, most: int | None, resident_gb: float
) -> None:
    """The first step measures memory and fills caches. most: tokens whose activations are kept."""
    changes = {"pairs__activation_tokens": most, "train__device_features_gb": resident_gb}
    loop = loop_on_gpu(new_config, tiny_features, **changes)
    first, second, _ = loop.steps()
    loop.take_step(first)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.take_step(second)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_of_deberta_does_not_wait(
    new_config: NewConfig, tiny_features: Features, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Its relative positions are shifted on the GPU, by offsets that the CPU knows."""
    settings = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    positions = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16}
    more = {"share_att_key": True, "norm_rel_ebd": "layer_norm", "max_relative_positions": -1}
    backbone = make_backbone(tiny_backbone, tmp_path, "deberta-v2", **settings, **positions, **more)
    loop = loop_on_gpu(new_config, tiny_features, model__backbone=str(backbone))
    steps = list(loop.steps())
    for step in steps:
        loop.take_step(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        # Lengths of text are known from the first time.
        for step in steps:
            loop.take_step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    encoder: Any = loop.model.text_encoder
    kinds = {type(layer.attention.self).__name__ for layer in encoder.backbone.encoder.layer}
    assert kinds == {"CutDisentangledSelfAttention"}


PRECISIONS = pytest.mark.parametrize("precision", ["auto", "float32"])


@PRECISIONS
def test_a_checkpoint_has_the_state_of_its_epoch_although_the_training_goes_on(
    new_config: NewConfig, tiny_features: Features, tmp_path: Path, precision: str
) -> None:
    """The second epoch copies to memory that already has the first one's state. Nothing here waits for the GPU."""
    loop = loop_on_gpu(new_config, tiny_features, folder=tmp_path, train__precision=precision)
    assert loop.saver is not None
    for epoch in (1, 2):
        loop.run_epoch()
        expected = {name: t.detach().clone() for name, t in checkpoint_tensors(loop.model, loop.optimizer).items()}
        loop.take_step(next(loop.steps()))
        loop.saver.settle()
        actual = checkpoint_in(tmp_path / f"whole-{epoch:05d}.safetensors").tensors
        assert_same_tensors(dict(actual), {name: t.cpu() for name, t in expected.items()})
    assert all(copy.is_pinned() for copy in loop.saver._copies._copies.values())
    loop.finish()


@PRECISIONS
def test_a_training_resumes_bit_for_bit(
    new_config: NewConfig, tiny_features: Features, tmp_path: Path, precision: str
) -> None:
    """The weights, the optimizer and the curve are those of a training without an interruption."""
    whole = loop_on_gpu(new_config, tiny_features, train__precision=precision)
    assert len(list(whole)) == 3
    first, second = (
        loop_on_gpu(new_config, tiny_features, folder=tmp_path, train__precision=precision) for _ in range(2)
    )
    first.run_epoch()
    first.interrupt()
    assert second.resume() and second.epoch == 1
    assert len(list(second)) == 2
    second.finish()
    assert timeless(second.curve) == timeless(whole.curve)
    assert_same_state(second, whole)


_SEGMENTS = """
import torch
torch.zeros(1, device="cuda")
from grcf_ray.train.stage import use_deterministic_torch
use_deterministic_torch(1)
kept = torch.zeros(2**24, device="cuda")
print(any(segment["is_expandable"] for segment in torch.cuda.memory_snapshot()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="segments of a GPU's memory grow on Linux only")
def test_memory_grows_in_segments_on_a_gpu_that_is_in_use() -> None:
    """As in the workers of Ray Train, which selects their GPU before our code runs."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("ALLOC_CONF")}
    done = subprocess.run([sys.executable, "-c", _SEGMENTS], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr


def test_features_on_the_gpu_change_nothing(new_config: NewConfig, tiny_features: Features) -> None:
    gradients = []
    for gb in (0.0, 2.0):
        loop = loop_on_gpu(new_config, tiny_features, train__device_features_gb=gb)
        torch.manual_seed(7)
        loop.backward(next(loop.steps()))
        gradients.append(gradient(loop))
    assert torch.equal(*gradients)


def test_a_step_in_bfloat16_is_the_same_when_computed_twice(new_config: NewConfig, tiny_features: Features) -> None:
    gradients = []
    for most in (10**6, 1):
        loop = loop_on_gpu(new_config, tiny_features, train__precision="bfloat16", pairs__activation_tokens=most)
        torch.manual_seed(7)
        loop.backward(next(loop.steps()))
        gradients.append(gradient(loop))
    assert gradients[0].isfinite().all()
    assert relative(gradients[1], gradients[0]) < 0.02


@pytest.fixture
def whole_gpu() -> Iterator[None]:
    """Gives this process the whole GPU again."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def peak_of_step(loop: StageLoop) -> tuple[int, Tensor]:
    """The memory that a step needs, and its gradient."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(7)
    loop.backward(next(loop.steps()))
    return torch.cuda.max_memory_allocated(), gradient(loop).cpu()


@pytest.mark.usefixtures("whole_gpu")
def test_a_step_recovers_from_a_lack_of_memory(
    new_config: NewConfig, tiny_features: Features, tiny_backbone: Path, tmp_path: Path
) -> None:
    """A share of the GPU that lies between the needs of both ways to compute a step. The encoder's width is real."""
    settings = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 4}
    backbone = make_backbone(tiny_backbone, tmp_path, "bert", **settings)
    changes = {"model__backbone": str(backbone), "train__precision": "float32"}
    peaks = []
    for most in (1, 10**6):
        loop = loop_on_gpu(new_config, tiny_features, **changes, pairs__activation_tokens=most)
        peaks.append(peak_of_step(loop))
        del loop
    (low, reference), (high, _) = peaks
    loop = loop_on_gpu(new_config, tiny_features, **changes, pairs__activation_tokens=10**6)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction((low + high) / 2 / total)
    _, actual = peak_of_step(loop)
    assert len(loop.notes) == 1
    assert torch.equal(actual, reference)
