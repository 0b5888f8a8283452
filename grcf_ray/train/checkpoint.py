"""Checkpoints: one safetensors file each, with the model, the optimizer and the state of the loop.

One file, so that a rename replaces all of it at once. Frozen parameters are the backbone's own and are left out. No
random state is stored: the seeds of an epoch are derived from the run's (see `stage.StageLoop`).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from grcf_ray.errors import DataError
from grcf_ray.files import file_sha256, replacing

__all__ = [
    "export_weights",
    "link_or_copy",
    "load_checkpoint",
    "load_weights",
    "read_state",
    "save_checkpoint",
    "trained_tensors",
]

FORMAT = 1


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state but for frozen parameters, by name."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write model, optimizer and the loop's state (JSON values) atomically."""
    tensors = {f"model.{name}": tensor for name, tensor in trained_tensors(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    # Copies, since safetensors refuses tensors that share storage, as tied parameters do.
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    with replacing(path) as beside:
        save_file(tensors, beside, {"state": json.dumps({"format": FORMAT, **state})})


def read_state(path: Path) -> dict[str, Any]:
    """The state that a checkpoint was saved with. DataError where the file is no checkpoint."""
    with _opened(path) as file:
        return _state(path, file)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint into model and optimizer; returns the loop's state."""
    with _opened(path) as file:
        state = _state(path, file)
        _load_model(path, file, model)
        names = set(file.keys())
        for name, parameter in model.named_parameters():
            saved = {
                key: file.get_tensor(f"optimizer.{key}.{name}")
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"optimizer.{key}.{name}" in names
            }
            if saved:
                # The step counter of fused AdamW lives with the parameter, as its moments do.
                optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in saved.items()}
    return state


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Put a checkpoint's weights alone into the model; returns the state it was saved with."""
    with _opened(path) as file:
        state = _state(path, file)
        _load_model(path, file, model)
    return state


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` atomically: a second name where the disk allows, else a copy."""
    with replacing(target) as beside:
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such checkpoint") from error
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a whole checkpoint ({error})") from error


def _state(path: Path, file: Any) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(file.metadata()["state"])
        version = int(state["format"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: a safetensors file, but no checkpoint of grcf_ray") from error
    if version > FORMAT:
        raise DataError(f"{path}: written by a newer grcf_ray (format {version}); upgrade to read it")
    return state


def _load_model(path: Path, file: Any, model: nn.Module) -> None:
    saved = {name.removeprefix("model.") for name in file.keys() if name.startswith("model.")}  # noqa: SIM118
    wanted = trained_tensors(model)
    if saved != set(wanted):
        odd = sorted(saved ^ set(wanted))
        raise DataError(f"{path}: made for another model; {len(odd)} tensors differ, the first is {odd[0]}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            value = file.get_tensor(f"model.{name}")
            if value.shape != tensor.shape:
                raise DataError(f"{path}: {name} is {tuple(value.shape)}, but the model's is {tuple(tensor.shape)}")
            tensor.copy_(value)


def export_weights(source: Path, target: Path) -> str:
    """Copy a checkpoint without its optimizer; the SHA-256 of the copy."""
    with _opened(source) as file:
        state = _state(source, file)
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith("model.")}  # noqa: SIM118
    with replacing(target) as beside:
        save_file(tensors, beside, {"state": json.dumps(state)})
    return file_sha256(target)
