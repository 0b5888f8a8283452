"""Steps on a GPU: they never wait for it, and recover when its memory runs out. Run by name: -m gpu."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from same_training import gradient, relative
from torch import Tensor

from grcf_ray.train.assemble import initial_model
from grcf_ray.train.stage import StageLoop, use_deterministic_torch

if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from tests.train.conftest import NewConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]
GPU = torch.device("cuda")


def loop_on_gpu(new_config: NewConfig, features: Features, **changes: Any) -> StageLoop:
    use_deterministic_torch(1)
    config = new_config(**changes)
    model = initial_model(config.model, features, seed=1)
    loop = StageLoop(model, features, config, 1, seed=1, protocol="mosi", device=GPU)
    loop.model.train()
    return loop


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
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(tiny_backbone)
    config.update({"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 4})
    AutoModel.from_config(config).save_pretrained(tmp_path)
    changes = {"model__backbone": str(tmp_path), "train__precision": "float32"}
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
