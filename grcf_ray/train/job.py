"""A stage of a training as plain values, and the runner that trains one after another in a warm process."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import distributed as dist

from grcf_ray.config import build_config
from grcf_ray.data.features import Features
from grcf_ray.errors import DivergedError, GrcfError, HubError
from grcf_ray.memory import gc_paused, tidy
from grcf_ray.metrics import MetricProtocol
from grcf_ray.storage import storage_path
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.checkpoint import load_weights
from grcf_ray.train.curve import hang_limit, objective_value
from grcf_ray.train.gradient_cache import share_weights
from grcf_ray.train.stage import StageLoop, choose_device, use_deterministic_torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageJob:
    """Everything that decides a stage's numbers, except the features, and the place of its checkpoints."""

    stage: Literal[1, 2]
    seed: int
    settings: dict[str, Any]
    """All settings, by path."""
    protocol: MetricProtocol
    folder: str
    """Place of the checkpoints, a path or URI; no other process writes there."""
    earlier: Sequence[str] = dataclasses.field(default_factory=list)
    """Places of the checkpoints of attempts at the same job that ended early, newest first."""
    keeps_last: bool = False
    """Whether the weights after the last epoch are saved, besides the best."""
    initial: str | None
    """Checkpoint with the initial weights; None starts from the pretrained encoder."""
    initial_sha256: str | None
    """Checksum of that checkpoint's content."""
    threads: int
    """Number of torch threads of each process."""
    gpu: float
    """GPUs of each process: 0, a fraction of one, or more."""
    reported: int | None = None
    """Number of epochs that the caller already has; None if it has all epochs of the checkpoint."""


def open_loop(job: StageJob, features: Features) -> StageLoop:
    """Return the job's stage loop, before its first epoch."""
    use_deterministic_torch(job.threads)
    config = build_config(job.settings)
    seen = select_modalities(features, config.model.modalities)
    model = initial_model(config.model_in(job.stage), seen, seed=job.seed)
    if job.initial is not None:
        load_weights(storage_path(job.initial), model, sha256=job.initial_sha256)
    return StageLoop(
        model,
        seen,
        config,
        job.stage,
        seed=job.seed,
        protocol=job.protocol,
        folder=storage_path(job.folder),
        earlier=[storage_path(folder) for folder in job.earlier],
        origin=job.initial_sha256,
        keeps_last=job.keeps_last,
        device=choose_device(config.train, granted=job.gpu),
    )


class JobRunner:
    """Run jobs one epoch at a time. Only the features and the pretrained backbone outlive a job."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._job: StageJob | None = None
        self._loop: StageLoop | None = None
        self._reported = self._resumed = 0

    def start(self, job: StageJob) -> None:
        """Forget the last job, which has ended, and store the next. This cannot fail."""
        self._job, self._loop = job, None
        self._reported = self._resumed = 0
        tidy()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def step(self) -> dict[str, Any]:
        """Run an epoch; the first call builds everything. Return a known failure as a result: the process stays usable.
        HubError if the hub does not answer.

        An epoch that is in the checkpoint but was never reported, since a process died in between, is reported first.
        Early stopping then decides as it would have without the failure. Epochs that were reported but are in no
        checkpoint are trained again, without being reported again.

        The result has `epoch`, `resumed` (epochs of the checkpoint), `curve`, `done`, `notes`, `checkpoint` (name of
        the best weights in the folder) and `checkpoint_sha256`; also `objective` or, after a known failure, `failure`
        (its message), `state` (diverged or failed) and `error` (its type). Until the job is done, the checkpoint may be
        that of an earlier best epoch, because it is written in the background.
        """
        assert self._job is not None
        try:
            if self._loop is None:
                with gc_paused():
                    self._loop = self._open_on_all_ranks()
                self._resumed = self._loop.epoch
                reported = self._job.reported
                self._reported = self._resumed if reported is None else reported
            loop = self._loop
            while self._reported >= loop.epoch and not loop.done:
                _limit_waits(loop)
                loop.run_epoch()
            self._reported = min(self._reported + 1, loop.epoch)
            if self._reported >= loop.epochs:
                loop.finish()
        except HubError:
            # Not a result of the job: a later try, perhaps on another node, may succeed.
            raise
        except GrcfError as error:
            curve = list(self._loop.curve) if self._loop else []
            if self._loop and self._loop.saver:
                self._loop.saver.finish()
            return {
                "epoch": len(curve) + 1,
                "resumed": self._resumed,
                "curve": curve,
                "failure": str(error),
                "error": type(error).__name__,
                "state": "diverged" if isinstance(error, DivergedError) else "failed",
                "notes": list(self._loop.notes) if self._loop else [],
                "checkpoint": None,
                "checkpoint_sha256": None,
                "done": True,
            }
        # A copy, because the loop's list grows.
        curve = loop.curve[: self._reported]
        return {
            "epoch": self._reported,
            "resumed": self._resumed,
            "curve": curve,
            "objective": objective_value(self._job.stage, curve[-1]),
            "notes": list(loop.notes),
            **_best_of(loop),
            "done": self._reported >= loop.epochs,
        }

    def finish(self, *, keep: bool) -> dict[str, Any]:
        """End the job before its last epoch; return `checkpoint` and `checkpoint_sha256` as `step` does.

        keep: whether its weights are still needed; otherwise its files are deleted.
        """
        if (loop := self._loop) is None:
            return {"checkpoint": None, "checkpoint_sha256": None}
        loop.finish(keep=keep)
        self._loop = None
        return _best_of(loop)

    def close(self) -> None:
        """Save a job that has not ended, so that it can be resumed anywhere."""
        if self._loop is not None:
            self._loop.interrupt()
            self._loop = None

    def _open_on_all_ranks(self) -> StageLoop:
        """Return the job's loop, or raise the same error on every rank: if one rank failed alone, the others would
        wait."""
        assert self._job is not None
        loop: StageLoop | None = None
        fault: GrcfError | None = None
        try:
            loop = open_loop(self._job, self._features)
        except GrcfError as error:
            fault = error
        if dist.is_initialized():
            faults: list[GrcfError | None] = [None] * dist.get_world_size()
            dist.all_gather_object(faults, fault)
            fault = next((fault for fault in faults if fault is not None), None)
        if fault is not None:
            raise fault
        assert loop is not None
        if dist.is_initialized():
            share_weights(loop.model)
        loop.resume()
        return loop


def _limit_waits(loop: StageLoop) -> None:
    """Have collective operations fail if a rank waits longer for the others than this training's hang limit."""
    if dist.is_initialized() and loop.curve:
        seconds = hang_limit([metrics["seconds"] for metrics in loop.curve])
        # Torch has no public function for this.
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds))


def _best_of(loop: StageLoop) -> dict[str, str | None]:
    """Return name and checksum of a loop's best weights; None on ranks that write no checkpoint."""
    name, sha256 = (loop.saver and loop.saver.best) or (None, None)
    return {"checkpoint": name, "checkpoint_sha256": sha256}
