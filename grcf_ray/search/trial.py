"""Run a trial under Tune, in a process that Tune reuses for the next trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grcf_ray.cluster  # noqa: F401  before Ray

import ray
from ray import tune

from grcf_ray.memory import gc_paused

# A process imports these in `setup`, with garbage collection paused, to start sooner.
if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from grcf_ray.train.distributed import WorkerGroup
    from grcf_ray.train.job import JobRunner


@dataclasses.dataclass(frozen=True)
class Shared:
    """Values that all trials of a run of Tune share."""

    features: ray.ObjectRef[Features]
    """Stored in Ray's object store, once per node."""
    workers: int
    """Processes that train one trial together."""
    resources: Mapping[str, float]
    """Resources of each worker, as Ray names them."""
    interfaces: Mapping[str, str]
    """Network interfaces named for the workers to communicate on."""


class TrialTrainable(tune.Trainable):
    """A trial whose `step` is one epoch. The first `step` builds everything, so that a failure counts as the trial's.

    A trial of one worker trains in this process; a trial of several workers in a worker group of this process.
    """

    _runner: JobRunner | WorkerGroup

    def setup(self, config: dict[str, Any], shared: Shared) -> None:  # type: ignore[override]
        """Store the shared values; runs once per process."""
        if shared.workers > 1:
            # Importing Ray Train takes seconds, which trials of one worker save.
            from grcf_ray.train.distributed import WorkerGroup

            self._runner = WorkerGroup(
                shared.features,
                workers=shared.workers,
                resources=shared.resources,
                interfaces=shared.interfaces,
                avoid=config["avoid"],
            )
        else:
            with gc_paused():
                from grcf_ray.train.job import JobRunner

                features = ray.get(shared.features)
            self._runner = JobRunner(features)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Replace the last trial by the next; runs once per trial and cannot fail."""
        from grcf_ray.train.job import StageJob

        self.config = new_config
        self._runner.start(StageJob(**new_config["job"]))
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch and return its result."""
        return self._runner.step()

    def finish(self, keep: bool) -> dict[str, Any]:
        """End a trial that early stopping ended; return its checkpoint. The search calls this, not Tune."""
        return self._runner.finish(keep=keep)

    def cleanup(self) -> None:
        """Save a trial that can be resumed, and end the workers by command: if they were killed, their placement group
        would stay."""
        self._runner.close()
