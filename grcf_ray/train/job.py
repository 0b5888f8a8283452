"""One stage of one training as plain values, and the warm process that takes them one after the other."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import distributed as dist

from grcf_ray.config import build_config
from grcf_ray.data.features import Features
from grcf_ray.errors import DivergedError, GrcfError
from grcf_ray.memory import gc_paused, tidy
from grcf_ray.metrics import MetricProtocol
from grcf_ray.storage import storage_path
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.checkpoint import load_weights
from grcf_ray.train.curve import objective_value
from grcf_ray.train.stage import StageLoop, choose_device, use_deterministic_torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageJob:
    """What decides a stage's numbers, but the features, and where its checkpoints lie."""

    stage: Literal[1, 2]
    seed: int
    settings: dict[str, Any]
    """The whole configuration by path."""
    protocol: MetricProtocol
    folder: str
    """Place of its checkpoints, a path or a URI; nobody else writes there."""
    initial: str | None
    """Checkpoint whose weights it starts from; None starts from the pretrained encoder."""
    initial_sha256: str | None
    """Of that checkpoint's content."""
    threads: int
    """Torch threads of each process."""
    gpu: bool
    """Whether each process has been given a GPU, or a share of one."""
    reported: int | None = None
    """Epochs that whoever asks has heard of; None for all that the checkpoint has."""


def open_loop(job: StageJob, features: Features) -> StageLoop:
    """The job's stage loop, brought to the job's last checkpoint if there is one."""
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
    """Runs jobs an epoch at a time. Nothing but the features and the pretrained template outlives a job."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._job: StageJob | None = None
        self._loop: StageLoop | None = None
        self._told = 0

    def start(self, job: StageJob) -> None:
        """Forget the last job. Nothing here can fail."""
        self._job, self._loop = job, None
        self._told = 0
        tidy()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def step(self) -> dict[str, Any]:
        """An epoch; the first builds everything. A known failure is a result: the process is sound for the next job.

        An epoch that the checkpoint has but nobody was told of, since a process died in between, is told first: early
        stopping decides on it as it would have.

        The result has `epoch`, `curve`, `done`, `notes` and `checkpoint_sha256`, further `objective` or, after
        a known failure, `failure` (its message), `state` (diverged or failed) and `error` (its type's name).
        """
        assert self._job is not None
        try:
            if self._loop is None:
                with gc_paused():
                    self._loop = self._agreed()
                reported = self._job.reported
                self._told = self._loop.epoch if reported is None else min(reported, self._loop.epoch)
            loop = self._loop
            if self._told == loop.epoch and not loop.done:
                loop.run_epoch()
            self._told = min(self._told + 1, loop.epoch)
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
        # Copies: the loop's own lists grow.
        curve = loop.curve[: self._told]
        return {
            "epoch": self._told,
            "curve": curve,
            "objective": objective_value(self._job.stage, curve[-1]),
            "notes": list(loop.notes),
            "checkpoint_sha256": loop.best_sha256,
            "done": self._told >= loop.epochs,
        }

    def close(self) -> None:
        """Nothing: a group of workers, which does the same, has some to end."""

    def _agreed(self) -> StageLoop:
        """The job's loop, or the same error on every rank: one that failed alone would leave the others waiting."""
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
                    f"the workers found checkpoints of different epochs {epochs} in {self._job.folder}: "
                    "do all machines see the same files there?"
                )
        if fault is not None:
            raise fault
        assert loop is not None
        return loop
