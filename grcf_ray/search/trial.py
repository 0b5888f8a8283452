"""A trial as Tune runs it: one class for all trials of a stage, its process reused from trial to trial."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any, Literal

import torch
from ray import tune

from grcf_ray.config import build_config
from grcf_ray.data.features import Features
from grcf_ray.errors import DivergedError, GrcfError
from grcf_ray.metrics import Protocol
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.checkpoint import load_weights
from grcf_ray.train.stage import StageLoop, choose_device, use_deterministic_torch

__all__ = ["Shared", "TrialTrainable", "trial_config"]


@dataclasses.dataclass(frozen=True)
class Shared:
    """What all trials of a stage read; it lies in Ray's object store once per node."""

    features: Features
    stage: Literal[1, 2]
    protocol: Protocol
    cpus: int
    gpu: bool
    """Whether a trial has been given a GPU, or a share of one."""


def trial_config(
    *, number: int, seed: int, settings: dict[str, Any], folder: Path, initial: Path | None
) -> dict[str, Any]:
    """What Tune hands to a trial: plain values only.

    settings: the whole configuration by path. folder: the attempt's own. initial: weights to start from, in Stage 2.
    """
    return {
        "number": number,
        "seed": seed,
        "settings": settings,
        "folder": str(folder),
        "initial": None if initial is None else str(initial),
    }


class TrialTrainable(tune.Trainable):
    """`step` is one epoch. Everything is built in the first `step`, where Tune retries what fails."""

    _loop: StageLoop | None
    _shared: Shared

    def setup(self, config: dict[str, Any], shared: Shared) -> None:  # type: ignore[override]
        """Once a process: keep what the trials share."""
        self._shared = shared
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Once a trial: forget the last one. Nothing here can fail."""
        self.config = new_config
        self._loop = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True

    def step(self) -> dict[str, Any]:
        """An epoch. A known failure is a result: the process is sound and takes the next trial."""
        try:
            loop = self._loop = self._loop or self._build()
            if not loop.done:
                loop.run_epoch()
        except GrcfError as error:
            state = "diverged" if isinstance(error, DivergedError) else "failed"
            curve = self._loop.curve if self._loop else []
            return {"epoch": len(curve) + 1, "curve": curve, "failure": str(error), "state": state, "done": True}
        result = {"epoch": loop.epoch, "curve": loop.curve, "done": loop.done}
        objective = loop.curve[-1][loop.objective]
        # ASHA and Optuna pass over an epoch without an objective.
        return result if objective is None else {**result, "objective": objective}

    def _build(self) -> StageLoop:
        shared = self._shared
        use_deterministic_torch(shared.cpus)
        config = build_config(self.config["settings"])
        features = select_modalities(shared.features, config.model.modalities)
        model = initial_model(config.model, features, seed=self.config["seed"])
        if self.config["initial"]:
            load_weights(Path(self.config["initial"]), model)
        loop = StageLoop(
            model,
            features,
            config,
            shared.stage,
            seed=self.config["seed"],
            protocol=shared.protocol,
            folder=Path(self.config["folder"]),
            device=choose_device(config.train, granted=shared.gpu),
        )
        loop.resume()
        return loop
