"""A stage of a training as plain values, and the runner that trains one after another in a warm process."""

from __future__ import annotations

import dataclasses
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
from grcf_ray.train.curve import objective_value
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
    """Return the job's stage loop, resumed from its last checkpoint if there is one."""
    use_deterministic_torch(job.threads)
    config = build_config(job.settings)
    seen = select_modalities(features, config.model.modalities)
    model = initial_model(config.model_in(job.stage), seen, seed=job.seed)
    if job.initial is not None:
        load_weights(storage_path(job.initial), model, sha256=job.initial_sha256)
    loop = StageLoop(
        model,
        seen,
        config,
        job.stage,
        seed=job.seed,
        protocol=job.protocol,
        folder=storage_path(job.folder),
        device=choose_device(config.train, granted=job.gpu),
    )
    loop.resume()
    return loop


class JobRunner:
    """Run jobs one epoch at a time. Only the features and the pretrained backbone outlive a job."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._job: StageJob | None = None
        self._loop: StageLoop | None = None
        self._reported = 0

    def start(self, job: StageJob) -> None:
        """Forget the last job and store the next. This cannot fail."""
        self._job, self._loop = job, None
        self._reported = 0
        tidy()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def step(self) -> dict[str, Any]:
        """Run an epoch; the first call builds everything. Return a known failure as a result: the process stays usable.
        HubError if the hub does not answer.

        An epoch that is in the checkpoint but was never reported, since a process died in between, is reported first.
        Early stopping then decides as it would have without the failure.

        The result has `epoch`, `curve`, `done`, `notes` and `checkpoint_sha256`; also `objective` or, after a known
        failure, `failure` (its message), `state` (diverged or failed) and `error` (its type).
        """
        assert self._job is not None
        try:
            if self._loop is None:
                with gc_paused():
                    self._loop = self._open_on_all_ranks()
                reported = self._job.reported
                self._reported = self._loop.epoch if reported is None else min(reported, self._loop.epoch)
            loop = self._loop
            if self._reported == loop.epoch and not loop.done:
                loop.run_epoch()
            self._reported = min(self._reported + 1, loop.epoch)
        except HubError:
            # Not a result of the job: a later try, perhaps on another node, may succeed.
            raise
        except GrcfError as error:
            curve = list(self._loop.curve) if self._loop else []
            return {
                "epoch": len(curve) + 1,
                "curve": curve,
                "failure": str(error),
                "error": type(error).__name__,
                "state": "diverged" if isinstance(error, DivergedError) else "failed",
                "notes": list(self._loop.notes) if self._loop else [],
                "checkpoint_sha256": None,
                "done": True,
            }
        # A copy, because the loop's list grows.
        curve = loop.curve[: self._reported]
        return {
            "epoch": self._reported,
            "curve": curve,
            "objective": objective_value(self._job.stage, curve[-1]),
            "notes": list(loop.notes),
            "checkpoint_sha256": loop.best_sha256,
            "done": self._reported >= loop.epochs,
        }

    def close(self) -> None:
        """Do nothing; exists so that runners are interchangeable."""

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
            outcomes: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(outcomes, (fault, loop.epoch if loop else None))
            fault = next((error for error, _ in outcomes if error is not None), None)
            epochs = [epoch for _, epoch in outcomes]
            if fault is None and len(set(epochs)) > 1:
                fault = GrcfError(
                    f"the workers found checkpoints of different epochs {epochs} in {self._job.folder}; "
                    "use a folder that all machines share"
                )
        if fault is not None:
            raise fault
        assert loop is not None
        if dist.is_initialized():
            share_weights(loop.model)
        return loop
