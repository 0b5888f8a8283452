"""Save the checkpoints of a training in the background.

    training  --copy-->  host memory  --writer-->  scratch folder of the node  --uploader-->  the run's folder

The training waits for the copy, and for the last write if that has not ended. Each file has the number of its epoch:

    whole-00007.safetensors   weights and optimizer, from which a training resumes: in the scratch folder after every
                              epoch; in the run's folder every `checkpoint.minutes`, and after an interruption
    best-00005.safetensors    the weights of the best epoch so far, in both folders
    last.safetensors          the weights after the last epoch, if they are needed

A file gets its name when it is complete, and does not change afterwards. Older files are deleted once newer ones are in
place: two whole checkpoints stay, each with its best weights. The first release wrote `last`, `previous` and `best`,
each with the optimizer, after every epoch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grcf_ray.files import link_or_copy
from grcf_ray.storage import StoragePath
from grcf_ray.train.checkpoint import Checkpoint, checkpoint_tensors, model_part, write_checkpoint
from grcf_ray.train.curve import best_epoch

Kind = Literal["whole", "best", "last"]
LAST = "last.safetensors"
_NUMBERED = re.compile(r"(whole|best)-(\d{5,})\.safetensors")
_KEPT = 2
"""Number of whole checkpoints that stay, in case the newest is damaged."""


@dataclasses.dataclass(frozen=True)
class _File:
    """A checkpoint in the scratch folder."""

    kind: Kind
    state: Mapping[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        return file_name(self.kind, self.state["epoch"])


class CheckpointSaver:
    """Save one training's checkpoints; one write and one upload are in progress at a time.

    scratch: folder on this node. minutes: time between two uploads of whole checkpoints. An error of a write or an
    upload is raised by the next call.
    """

    def __init__(
        self, folder: StoragePath, scratch: Path, *, minutes: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._scratch, self._seconds, self._clock = folder, scratch, 60 * minutes, clock
        self._uploaded_at = clock()
        self._copies = _HostCopies()
        self._writer, self._uploader = ThreadPoolExecutor(1, "checkpoint"), ThreadPoolExecutor(1, "upload")
        self._written: Future[None] | None = None
        self._uploads: list[Future[None]] = []
        self._lock = threading.Lock()
        self._waiting: dict[Kind, _File] = {}
        """The newest file of each kind that waits for its upload."""
        self._uploading: _File | None = None
        self._whole: _File | None = None
        """The newest whole checkpoint, until it is in the run's folder."""
        self._best: _File | None = None

    @property
    def best(self) -> tuple[str, str] | None:
        """Name and SHA-256 of the newest best weights in the run's folder."""
        return (self._best.name, self._best.sha256) if self._best else None

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], kinds: Sequence[Kind]
    ) -> None:
        """Copy a training's tensors, and have them written as checkpoints of these kinds.

        state: of the loop, as JSON values, with `stage`, `epoch` and `curve`.
        """
        self._wait_for_write()
        tensors = checkpoint_tensors(model, optimizer)
        copies = self._copies.of(tensors if "whole" in kinds else model_part(tensors))
        # A copy of the curve, because the loop's list grows.
        self._write_later(copies, {**state, "curve": list(state["curve"])}, kinds)

    def adopt(self, best: Checkpoint) -> None:
        """Have the best weights of a resumed training in the run's folder, wherever they were found."""
        state = {key: value for key, value in best.state.items() if key != "format"}
        file = _File("best", state, best.sha256)
        if str(best.place) == str(self._folder / file.name):
            self._best = file
        else:
            self._write_later(best.weights, state, ["best"])

    def settle(self) -> None:
        """Wait until the files that are due are in the run's folder."""
        self._wait_for_write()
        while self._uploads:
            self._uploads.pop(0).result()

    def finish(self) -> None:
        """Settle for good, and delete the scratch folder. Further calls do nothing."""
        try:
            self.settle()
        finally:
            self._whole = None
            self._writer.shutdown()
            self._uploader.shutdown()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def interrupt(self) -> None:
        """Finish, with the newest whole checkpoint in the run's folder, so that any node can resume from it."""
        self._wait_for_write()
        if self._whole is not None:
            self._upload_later(self._whole)
        self.finish()

    def discard(self) -> None:
        """Finish without the files that still wait. Errors no longer matter: the run's folder may be gone already."""
        with self._lock:
            self._waiting.clear()
        with contextlib.suppress(OSError):
            self.finish()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def drop_rest(self) -> None:
        """Delete what only a resumed training needs, all but the best weights and those of the last epoch."""
        for name in self._folder.names():
            if numbered(name) and (self._best is None or name != self._best.name):
                (self._folder / name).delete()

    def _wait_for_write(self) -> None:
        if self._written is not None:
            written, self._written = self._written, None
            written.result()
        while self._uploads and self._uploads[0].done():
            self._uploads.pop(0).result()

    def _write_later(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], kinds: Sequence[Kind]) -> None:
        self._written = self._writer.submit(self._write, tensors, state, kinds)

    def _write(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], kinds: Sequence[Kind]) -> None:
        """Write files to the scratch folder; the files that are due are uploaded next. Runs in the writer."""
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        for kind in kinds:
            name = file_name(kind, state["epoch"])
            unfinished = self._scratch / f".{name}"
            digest = write_checkpoint(unfinished, tensors if kind == "whole" else model_part(tensors), state)
            unfinished.replace(self._scratch / name)
            file = _File(kind, state, digest)
            if kind == "whole":
                self._whole = file
                if self._clock() - self._uploaded_at < self._seconds:
                    continue
                self._uploaded_at = self._clock()
            self._upload_later(file)
        with self._lock:
            needed = {file.name for file in (*self._waiting.values(), self._uploading) if file}
            names = [path.name for path in self._scratch.iterdir() if path.name not in needed]
            for name in _outdated(names, state):
                (self._scratch / name).unlink()

    def _upload_later(self, file: _File) -> None:
        with self._lock:
            self._waiting[file.kind] = file
        self._uploads.append(self._uploader.submit(self._upload, file.kind))

    def _upload(self, kind: Kind) -> None:
        """Copy the newest waiting file of a kind to the run's folder. Runs in the uploader."""
        with self._lock:
            file = self._uploading = self._waiting.pop(kind, None)
        if file is None:
            # A newer file took its place and is uploaded.
            return
        with (self._folder / file.name).writing() as path:
            link_or_copy(self._scratch / file.name, path)
        if kind == "best":
            self._best = file
        elif file is self._whole:
            self._whole = None
        for name in _outdated(self._folder.names(), file.state):
            (self._folder / name).delete()
        with self._lock:
            self._uploading = None


class _HostCopies:
    """Copies of tensors in memory that is allocated once: new memory would cost as much time as the copies."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies on the CPU, valid until the next call."""
        on_gpu = False
        for name, tensor in tensors.items():
            on_gpu |= tensor.is_cuda
            if name not in self._copies:
                self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._copies[name].copy_(tensor.detach(), non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()
        return {name: self._copies[name] for name in tensors}


def file_name(kind: Kind, epoch: int) -> str:
    """Return the name of a checkpoint."""
    return LAST if kind == "last" else f"{kind}-{epoch:05d}.safetensors"


def numbered(name: str) -> tuple[str, int] | None:
    """Return kind and epoch of a checkpoint's name; None for other names."""
    match = _NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def _outdated(names: Iterable[str], state: Mapping[str, Any]) -> list[str]:
    """Return the names of files that a training at this state no longer needs; later epochs are not touched."""
    files = {name: file for name in names if (file := numbered(name)) and file[1] <= state["epoch"]}
    wholes = sorted(epoch for kind, epoch in files.values() if kind == "whole")[-_KEPT:]
    bests = [best_epoch(state["stage"], state["curve"][:epoch]) for epoch in (*wholes, state["epoch"])]
    needed = {("whole", epoch) for epoch in wholes} | {("best", best["epoch"]) for best in bests if best}
    return [name for name, file in files.items() if file not in needed]
