"""Find the checkpoint from which a training resumes, on this node or in the run's folders."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from grcf_ray.errors import ClusterError, DamagedError
from grcf_ray.storage import StoragePath
from grcf_ray.train.checkpoint import Checkpoint, read_checkpoint, read_state
from grcf_ray.train.curve import best_epoch
from grcf_ray.train.saving import LAST, file_name, numbered

_FIRST_RELEASE = {"whole": (LAST, "previous.safetensors"), "best": ("best.safetensors",)}
"""Names of checkpoints in the first release, which have no epoch."""
_LEFT_OVER_S = 7 * 24 * 3600.0
"""Age at which a scratch folder counts as left over."""


def scratch_of(training: str) -> Path:
    """Return the scratch folder of a training on this node, whether it exists or not.

    training: a text that differs for trainings of different numbers or in different folders. ClusterError if the
    folder of all scratch folders belongs to another user.
    """
    root = Path(tempfile.gettempdir()) / f"grcf-checkpoints-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ClusterError(f"{root} is not a folder of this user; remove it, or set TMPDIR to another folder")
    for path in root.iterdir():
        # The training that uses a folder may end and delete it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFT_OVER_S:
                shutil.rmtree(path, ignore_errors=True)
    return root / hashlib.sha256(training.encode()).hexdigest()[:32]


def find_checkpoint(
    folders: Sequence[StoragePath], *, stage: int, epochs: int, faults: list[DamagedError]
) -> tuple[Checkpoint, Checkpoint] | None:
    """Return the newest intact checkpoint to resume from, and that of its best epoch; None if there is none.

    folders: in order of preference for the same epoch. epochs: of the whole stage; weights without an optimizer serve
    only after the last. faults: receives those of newer checkpoints.
    """
    for place in _saved("whole", folders, faults):
        try:
            whole = read_checkpoint(place)
            if not whole.is_whole and whole.state["epoch"] < epochs:
                continue
            return whole, _best_until(whole, stage, folders, faults)
        except DamagedError as error:
            faults.append(error)
    return None


def find_best(folders: Sequence[StoragePath]) -> Checkpoint | None:
    """Return the newest intact best weights in the folders; None if there are none."""
    faults: list[DamagedError] = []
    for place in _saved("best", folders, faults):
        try:
            return read_checkpoint(place)
        except DamagedError as error:
            faults.append(error)
    return None


def find_last(folders: Sequence[StoragePath]) -> StoragePath:
    """Return the checkpoint of the latest epoch in the folders. DamagedError if there is none."""
    if places := _saved("whole", folders, []):
        return places[0]
    raise DamagedError(f"{folders[0]}: has no checkpoint of the last epoch")


def _saved(kind: str, folders: Sequence[StoragePath], faults: list[DamagedError]) -> list[StoragePath]:
    """Return the checkpoints of a kind, latest epoch first."""
    places: list[tuple[int, StoragePath]] = []
    for folder in folders:
        for name in folder.names():
            file = numbered(name)
            if file and file[0] == kind:
                places.append((file[1], folder / name))
            elif name in _FIRST_RELEASE[kind]:
                try:
                    places.append((read_state(folder / name)["epoch"], folder / name))
                except DamagedError as error:
                    faults.append(error)
    return [place for _, place in sorted(places, key=lambda entry: -entry[0])]


def _best_until(
    whole: Checkpoint, stage: int, folders: Sequence[StoragePath], faults: list[DamagedError]
) -> Checkpoint:
    """Return the checkpoint of the best epoch up to this one: perhaps itself. DamagedError if there is none."""
    curve = whole.state["curve"]
    best = best_epoch(stage, curve)
    assert best is not None
    epoch = best["epoch"]
    if epoch == whole.state["epoch"]:
        return whole
    for place in _saved("best", folders, faults):
        if place.name in (file_name("best", epoch), *_FIRST_RELEASE["best"]):
            try:
                checkpoint = read_checkpoint(place)
            except DamagedError as error:
                faults.append(error)
                continue
            if checkpoint.state["curve"] == curve[:epoch]:
                return checkpoint
    raise DamagedError(f"{whole.place}: the weights of its best epoch, {epoch}, are missing")


def share_checkpoint(checkpoint: Checkpoint | None, fault: Exception | None) -> Checkpoint | None:
    """Return rank 0's checkpoint on every rank, or raise its fault on every rank."""
    if not dist.is_initialized():
        if fault is not None:
            raise fault
        return checkpoint
    kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in checkpoint.tensors.items()} if checkpoint else {}
    head: list[Any] = [(fault, checkpoint and (checkpoint.place, checkpoint.state, checkpoint.sha256), kinds)]
    dist.broadcast_object_list(head, src=0)
    fault, about, kinds = head[0]
    if fault is not None:
        raise fault
    if about is None:
        return None
    place, state, sha256 = about
    tensors = {}
    for name, (shape, dtype) in kinds.items():
        tensors[name] = checkpoint.tensors[name] if checkpoint else torch.empty(shape, dtype=dtype)
        dist.broadcast(tensors[name], src=0)
    return Checkpoint(place, state, tensors, sha256)
