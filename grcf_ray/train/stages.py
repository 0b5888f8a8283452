"""Train the stages of one configuration in turn: in one process, or the same on each of several ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from grcf_ray.errors import DamagedError
from grcf_ray.storage import storage_path
from grcf_ray.train.job import JobRunner, StageJob
from grcf_ray.train.resuming import find_best
from grcf_ray.train.saving import LAST


def train_stages(
    runner: JobRunner, jobs: Sequence[StageJob], *, start: Literal["best", "last"], first: int = 1
) -> Iterator[dict[str, Any]]:
    """Train jobs in turn, each from the weights of the one before; yield the metrics of each epoch.

    The metrics also have `stage` and what `JobRunner.step` returns beside the curve. A known failure is the last item.

    start: the weights with which the next stage starts, of the best or the last epoch. first: the stage to begin with;
    the earlier ones have ended.
    """
    for earlier, job in zip([None, *jobs], jobs, strict=False):
        if job.stage < first:
            continue
        runner.start(_start_from(earlier, job, start) if earlier else job)
        result: dict[str, Any] = {"done": False}
        while not result["done"]:
            result = runner.step()
            curve = result.pop("curve")
            yield {"stage": job.stage, **(curve[-1] if curve else {}), **result}
        if "failure" in result:
            return


def _start_from(earlier: StageJob, job: StageJob, start: Literal["best", "last"]) -> StageJob:
    """Return the job with the weights of an earlier one. DamagedError if they are missing."""
    folder = storage_path(earlier.folder)
    if start == "last":
        return dataclasses.replace(job, initial=(folder / LAST).uri)
    if (best := find_best([folder])) is None:
        raise DamagedError(f"{folder}: the weights of the best epoch are missing")
    return dataclasses.replace(job, initial=best.place.uri, initial_sha256=best.sha256)
