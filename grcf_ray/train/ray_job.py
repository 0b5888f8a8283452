"""A training with several workers: a job of Ray Train, which restarts the workers when one dies.

The checkpoint that a worker reports is the folder of its stage. The stage loop saves into it in the background, so Ray
Train copies nothing, and one process resumes from it as well (see `saving`).
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import grcf_ray.cluster  # noqa: F401  before Ray

import ray
from pyarrow.fs import LocalFileSystem
from ray import train
from ray.exceptions import RayError
from ray.train import Checkpoint, FailureConfig, RunConfig, TrainingFailedError, UserCallback, WorkerGroupError
from ray.util.queue import Queue

from grcf_ray.data.features import Features
from grcf_ray.files import scratch_folder
from grcf_ray.train.backend import torch_trainer
from grcf_ray.train.distributed import WorkersDiedError, fault_of
from grcf_ray.train.job import JobRunner, StageJob
from grcf_ray.train.stages import train_stages

RESTARTS = 2
"""Restarts of the workers by Ray Train, besides those after a node was preempted."""
_SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of reported checkpoints."""


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Train the stages in turn, and report each epoch. Runs in each worker.

    Ray Train's checkpoint tells the stage to resume. The stage loop resumes from the newest file in its folder.
    """
    jobs: list[StageJob] = config["jobs"]
    folders = {job.stage: job.folder for job in jobs}
    checkpoint = train.get_checkpoint()
    first = next((stage for stage, folder in folders.items() if checkpoint and folder == checkpoint.path), 1)
    with contextlib.closing(JobRunner(ray.get(config["features"]))) as runner:
        for metrics in train_stages(runner, jobs, start=config["start"], first=first):
            # Rank 0 alone saves, in the background: the newest file may still be on its node.
            saves = train.get_context().get_world_rank() == 0
            folder = Checkpoint(folders[metrics["stage"]], LocalFileSystem()) if saves else None
            train.report(metrics, checkpoint=folder, checkpoint_upload_mode=train.CheckpointUploadMode.NO_UPLOAD)


def run_ray_job(
    features: ray.ObjectRef[Features],
    jobs: Sequence[StageJob],
    *,
    start: Literal["best", "last"],
    workers: int,
    resources: Mapping[str, float],
    interfaces: Mapping[str, str],
    show: Callable[[dict[str, Any]], None],
    warn: Callable[[str], None],
) -> None:
    """Train the stages with several workers, in folders side by side.

    show: receives the metrics of each epoch, in another thread. warn: receives the reason of each restart, likewise.
    Raises WorkersDiedError after too many restarts, KeyboardInterrupt after Ctrl-C.
    """
    out = Path(jobs[0].folder).parent
    _drop_unusable_snapshot(out)
    config = {"features": features, "jobs": list(jobs), "start": start}
    with scratch_folder("grcf-train-") as scratch, _reports(show, warn) as callback, _interruptible():
        # Without a limit, Ray Train would try to start workers for ever.
        failures = FailureConfig(max_failures=RESTARTS, controller_failure_limit=0)  # type: ignore[call-arg]
        # Ray Train keeps all checkpoints: they are the same folders, and it would delete them.
        run = RunConfig(
            name=out.name,
            storage_path=str(out.parent),
            storage_filesystem=LocalFileSystem(),
            failure_config=failures,
            callbacks=[callback],  # type: ignore[list-item]
        )
        trainer = torch_trainer(
            train_loop_per_worker,
            config,
            run,
            workers=workers,
            resources=resources,
            interfaces=interfaces,
            meeting=scratch,
        )
        try:
            trainer.fit()
        except (TrainingFailedError, RayError) as error:
            fault = fault_of(error)
            raise WorkersDiedError(fault.line) from RuntimeError(fault.text)


class _Reports(UserCallback):
    """Send what the workers report, and why they died, from Ray Train's process to the caller's."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Send rank 0's metrics."""
        self._queue.put(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Send the first fault."""
        self._queue.put(fault_of(WorkerGroupError("", worker_exceptions)).line)


@contextlib.contextmanager
def _reports(show: Callable[[dict[str, Any]], None], warn: Callable[[str], None]) -> Iterator[_Reports]:
    """Provide the callback whose messages go to the two functions until the context ends."""
    here = ray.get_runtime_context().get_node_id()
    queue = Queue(actor_options={"num_cpus": 0, "label_selector": {"ray.io/node-id": here}})

    def receive() -> None:
        while (message := queue.get()) is not None:
            if isinstance(message, str):
                warn(message)
            else:
                show(message)

    receiver = threading.Thread(target=receive, name="reports", daemon=True)
    receiver.start()
    try:
        yield _Reports(queue)
    finally:
        queue.put(None)
        receiver.join()
        queue.shutdown()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ctrl-C into KeyboardInterrupt: Ray Train's handler ends the workers, then exits; and it stays installed."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _drop_unusable_snapshot(out: Path) -> None:
    """Delete Ray Train's list of checkpoints if it would refuse it; the stages' folders then tell where to resume.

    It overwrites the list in place, so a kill can leave half of it. Other releases of Ray may not read it.
    """
    place = out / _SNAPSHOT
    try:
        snapshot = json.loads(place.read_text(encoding="utf-8"))
        names = {result["checkpoint_dir_name"] for result in snapshot["checkpoint_results"]}
        usable = snapshot["ray_version"] == ray.__version__ and all((out / name).is_dir() for name in names)
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        usable = False
    if not usable:
        place.unlink()
