"""Comparisons of trainings: gradients, curves without times, and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grcf_ray.storage import StoragePath, storage_path
from grcf_ray.train.checkpoint import Checkpoint, checkpoint_tensors, read_checkpoint, write_checkpoint

if TYPE_CHECKING:
    from grcf_ray.train.stage import StageLoop

TIMES = ("seconds", "utterances_per_s", "pairs_per_s")


def gradient(loop: StageLoop) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in loop.model.parameters() if p.grad is not None])


def relative(actual: Tensor, reference: Tensor) -> float:
    return ((actual - reference).norm() / reference.norm()).item()


def timeless(curve: Iterable[dict[str, Any]], leave_out: Sequence[str] = TIMES) -> list[dict[str, Any]]:
    return [{name: value for name, value in metrics.items() if name not in leave_out} for metrics in curve]


def save_checkpoint(
    place: StoragePath, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> str:
    """Write a whole checkpoint at once."""
    tensors = {name: tensor.detach().clone() for name, tensor in checkpoint_tensors(model, optimizer).items()}
    with place.writing() as path:
        return write_checkpoint(path, tensors, state)


def checkpoint_in(path: Path) -> Checkpoint:
    return read_checkpoint(storage_path(path))


def best_in(folder: Path) -> Path:
    """The newest best weights."""
    return sorted(folder.glob("best-*"))[-1]


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same_tensors(actual: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert actual.keys() == reference.keys()
    for name, tensor in actual.items():
        assert tensor.dtype == reference[name].dtype and torch.equal(tensor, reference[name]), name


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The weights, and the optimizer's moments, by name."""
    moments = {
        f"{name}.{key}": torch.as_tensor(value)
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
    }
    return {name: tensor.clone() for name, tensor in (dict(model.state_dict()) | moments).items()}


def assert_same_state(actual: StageLoop, reference: StageLoop) -> None:
    assert_same_tensors(state_of(actual.model, actual.optimizer), state_of(reference.model, reference.optimizer))


def assert_same_checkpoints(actual: Path, reference: Path) -> None:
    """The same checkpoints with the same content, but for the times in their curves."""
    assert files_of(actual) == files_of(reference)
    for name in files_of(actual):
        first, second = checkpoint_in(actual / name), checkpoint_in(reference / name)
        assert timeless(first.state.pop("curve")) == timeless(second.state.pop("curve"))
        assert first.state == second.state
        assert_same_tensors(first.tensors, second.tensors)
