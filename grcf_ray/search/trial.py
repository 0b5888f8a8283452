"""A trial as Tune runs it: one class for all trials of a stage, its process reused from trial to trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grcf_ray.cluster  # noqa: F401  before Ray

import ray
from ray import tune

from grcf_ray.memory import gc_paused

# A process is up to train when it has imported what trains, which it does without searching for garbage.
if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from grcf_ray.train.distributed import WorkerGroup
    from grcf_ray.train.job import JobRunner


@dataclasses.dataclass(frozen=True)
class Shared:
    """What all trials of a stage share."""

    features: ray.ObjectRef[Features]
    """They lie in Ray's object store, once per node."""
    workers: int
    """Processes that train one trial together."""
    resources: Mapping[str, float]
    """Of each of several workers, as Ray names them."""
    interfaces: Mapping[str, str]
    """Network interfaces that are named for them to meet on."""


class TrialTrainable(tune.Trainable):
    """`step` is one epoch. Everything is built in the first `step`, where a failure is the trial's own.

    A trial of one worker trains in this process; one of several in a group of workers that this process holds.
    """

    _runner: JobRunner | WorkerGroup

    def setup(self, config: dict[str, Any], shared: Shared) -> None:  # type: ignore[override]
        """Once a process: keep what the trials share."""
        if shared.workers > 1:
            # Ray Train takes seconds to import, which a process that trains alone is spared.
            from grcf_ray.train.distributed import WorkerGroup

            self._runner = WorkerGroup(
                shared.features, workers=shared.workers, resources=shared.resources, interfaces=shared.interfaces
            )
        else:
            with gc_paused():
                from grcf_ray.train.job import JobRunner

                features = ray.get(shared.features)
            self._runner = JobRunner(features)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Once a trial: forget the last one. Nothing here can fail."""
        from grcf_ray.train.job import StageJob

        self.config = new_config
        self._runner.start(StageJob(**new_config["job"]))
        return True

    def step(self) -> dict[str, Any]:
        """An epoch, as `JobRunner.step` has it."""
        return self._runner.step()

    def cleanup(self) -> None:
        """Workers end by command: killed, they would leave their placement group behind."""
        self._runner.close()
