"""Checkpoints: one safetensors file each, with the model, the state of the loop and perhaps the optimizer.

One file, so that a rename or an upload replaces all of it at once. Its header has a SHA-256 of the content, which every
read of the weights verifies. Frozen parameters are those of the backbone and are left out. Random states are not
stored: the seeds of an epoch are derived from the seed of the run (see `stage.StageLoop`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from grcf_ray.errors import DamagedError, DataError
from grcf_ray.storage import StoragePath

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified."""

    place: StoragePath
    state: dict[str, Any]
    """The state of the loop when the checkpoint was saved."""
    tensors: dict[str, Tensor]
    sha256: str
    """Checksum of the content."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors of the model, without the optimizer's."""
        return model_part(self.tensors)

    @property
    def is_whole(self) -> bool:
        """Whether it has the optimizer's state, so that training can resume from it."""
        return len(self.weights) < len(self.tensors)

    def load_into(self, model: nn.Module) -> None:
        """Load the weights. DataError if the checkpoint belongs to another model."""
        saved = {name.removeprefix("model."): t for name, t in self.tensors.items() if name.startswith("model.")}
        wanted = trained_tensors(model)
        if different := sorted(saved.keys() ^ wanted.keys()):
            raise DataError(
                f"{self.place}: made for another model; {len(different)} tensors differ, the first is {different[0]}"
            )
        for name, tensor in wanted.items():
            if saved[name].shape != tensor.shape:
                shapes = tuple(saved[name].shape), tuple(tensor.shape)
                raise DataError(f"{self.place}: {name} has the shape {shapes[0]}, but {shapes[1]} in the model")
        with torch.no_grad():
            for name, tensor in wanted.items():
                tensor.copy_(saved[name])

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Load the weights and the optimizer's state. DataError if the checkpoint belongs to another model."""
        self.load_into(model)
        for name, parameter in model.named_parameters():
            saved = {
                key: self.tensors[f"optimizer.{key}.{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"optimizer.{key}.{name}" in self.tensors
            }
            if saved:
                # Fused AdamW keeps its step counter on the parameter's device, like its moments. The tensors are copied
                # because they map the file.
                optimizer.state[parameter] = {key: t.to(parameter.device, copy=True) for key, t in saved.items()}


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state without frozen parameters, by name."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def checkpoint_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, not copied, by name: `model.NAME` and `optimizer.KEY.NAME`."""
    tensors = {f"model.{name}": tensor for name, tensor in trained_tensors(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    return tensors


def model_part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the model, of those of a checkpoint."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
    """Write a checkpoint to a file; return the SHA-256 of its content.

    tensors: on the CPU, each with a storage of its own. state: JSON values.
    """
    text = json.dumps({"format": FORMAT, **state})
    digest = _sha256(text, tensors)
    save_file(dict(tensors), path, {"state": text, "sha256": digest})
    return digest


def read_state(place: StoragePath) -> dict[str, Any]:
    """Return the state of a checkpoint without reading or verifying its weights."""
    with _opened(place) as file:
        text, _ = _header(place, file)
    return _state(place, text)


def read_checkpoint(place: StoragePath, *, sha256: str | None = None) -> Checkpoint:
    """Return a verified checkpoint.

    sha256: the expected checksum, if known. DamagedError if the file is damaged, or is another file.
    """
    with _opened(place) as file:
        text, digest = _header(place, file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # Verify before parsing: the checksum is the same in every format, and a damaged state must not be used.
    actual = _sha256(text, tensors)
    if actual != digest:
        raise DamagedError(f"{place}: damaged, its content has SHA-256 {actual[:12]} instead of {digest[:12]}")
    if sha256 is not None and sha256 != digest:
        raise DamagedError(f"{place}: not the recorded checkpoint, SHA-256 {digest[:12]} instead of {sha256[:12]}")
    return Checkpoint(place, _state(place, text), tensors, digest)


def load_weights(place: StoragePath, model: nn.Module, *, sha256: str | None = None) -> dict[str, Any]:
    """Load the verified weights of a checkpoint into the model; return the state of the checkpoint."""
    checkpoint = read_checkpoint(place, sha256=sha256)
    checkpoint.load_into(model)
    return checkpoint.state


def export_weights(source: StoragePath, target: StoragePath, *, sha256: str | None = None) -> str:
    """Copy a verified checkpoint without its optimizer; return the SHA-256 of the copy."""
    checkpoint = read_checkpoint(source, sha256=sha256)
    with target.writing() as path:
        return write_checkpoint(path, checkpoint.weights, checkpoint.state)


@contextlib.contextmanager
def _opened(place: StoragePath) -> Iterator[Any]:
    """Provide the open file. An OSError of the storage can be temporary, and is not reported as damage."""
    try:
        with place.reading() as path, safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise DamagedError(f"{place}: no such checkpoint") from error
    except SafetensorError as error:
        raise DamagedError(f"{place}: not a whole checkpoint ({error})") from error


def _header(place: StoragePath, file: Any) -> tuple[str, str]:
    """Return the state's text and the checksum in the file's header."""
    metadata = file.metadata() or {}
    if not {"state", "sha256"} <= metadata.keys():
        raise DamagedError(f"{place}: a safetensors file, but no checkpoint of grcf_ray")
    return metadata["state"], metadata["sha256"]


def _state(place: StoragePath, text: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(text)
        version = int(state["format"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{place}: a safetensors file, but no checkpoint of grcf_ray") from error
    if version > FORMAT:
        raise DataError(
            f"{place}: a newer grcf_ray wrote it (format {version}; this one reads up to {FORMAT}). Upgrade grcf_ray"
        )
    return state


def _sha256(state: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
