"""Several processes that train one job after another: a long-lived worker group of Ray Train, given orders by mail.

    holder (a trial's process, or a command)  --step-->  mailbox  --order-->  worker 0, worker 1, ...
                                              <-result-           <-answer--

Ray Train places the workers, joins them in a process group and ends all of them when one dies. It does so once: the
workers stay warm, so that the next job starts in milliseconds. The mailbox, an actor without a CPU of its own, runs the
trainer in a thread. Whoever waits, waits in a call that another answers, and nobody polls.

The mailbox outlives its holder, by as long as it takes to end the workers in good order: actors that are killed, by Ray
or by hand, leave their placement group behind, and its CPUs with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import textwrap
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import grcf_ray.cluster  # noqa: F401  before Ray

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grcf_ray.files import scratch_folder

if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from grcf_ray.train.job import StageJob

_GRACE_S = 30.0
"""Seconds that idle workers have to end by themselves."""
_CLEARING_S = 10.0
"""Seconds that the end of killed workers is waited for."""

_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    # A relative path of the user's is relative to where he is.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A cluster that grows takes minutes to have a node ready.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Those whose peer died hang in its process group.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    # A process of its own that would start the group again, which is the holder's to decide.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Where nobody listens. Train's cleaner would ask there whether the group is still in use. A cluster without a
    # dashboard names the usual port as its own, and another cluster that listens on it denies to know the group.
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}


class WorkersDiedError(RuntimeError):
    """The workers of a group are gone, for a reason that is no result of the job: it may be run again in another."""


@dataclasses.dataclass(frozen=True)
class _Order:
    """What every worker is to do next."""

    kind: Literal["start", "step", "end"]
    job: StageJob | None = None
    """To start."""


@dataclasses.dataclass(frozen=True)
class _Fault:
    """Why the workers are gone."""

    line: str
    text: str
    """All that is known of it, with the workers' tracebacks."""


class WorkerGroup:
    """Runs jobs an epoch at a time as `JobRunner` does, with several workers to a job.

    Starts at once and is ready later: the first `step` waits until the workers are placed. Close it, or end the
    process that holds it. The workers lie on one node where they fit.

    resources: of each worker, as Ray names them. interfaces: those of `network.VARIABLES` that are set where the
    command runs, for workers that lie on several nodes.
    """

    def __init__(
        self,
        features: ray.ObjectRef[Features],
        *,
        workers: int,
        resources: Mapping[str, float],
        interfaces: Mapping[str, str] | None = None,
    ) -> None:
        here = ray.get_runtime_context()
        # Ray's tools would ask any cluster that is about.
        environment = {**_ENVIRONMENT, "RAY_ADDRESS": here.gcs_address}
        mailbox: Any = ray.remote(_Mailbox)
        # On this node, but outside the placement group that this process may be in.
        self._mailbox: Any = mailbox.options(
            num_cpus=0,
            lifetime="detached",
            scheduling_strategy=NodeAffinitySchedulingStrategy(here.get_node_id(), soft=False),
            runtime_env={"env_vars": environment},
        ).remote(workers)
        self._presence = self._mailbox.stay.remote()
        # In a list, for itself: the object of a reference that is an argument would be waited for.
        self._mailbox.watch.remote([self._presence])
        self._training = self._mailbox.train.remote(
            {"features": features, "mailbox": self._mailbox},
            dict(resources),
            dict(interfaces or {}),
        )
        # Handed to the next call, which so comes after: calls of an asynchronous actor may overtake each other.
        self._started: ray.ObjectRef[None] | None = None
        self._closed = self._busy = False

    def start(self, job: StageJob) -> None:
        """Have the workers forget the last job. Nothing here can fail, nor does it wait."""
        self._started = self._mailbox.start.remote(job, self._started)

    def step(self) -> dict[str, Any]:
        """An epoch, as `JobRunner.step` has it, by all workers. WorkersDiedError where they are gone."""
        self._busy = True
        try:
            result: dict[str, Any] | _Fault = ray.get(self._mailbox.step.remote(self._started))
        except RayActorError as error:
            raise WorkersDiedError(_line(error)) from error
        self._busy = False
        if isinstance(result, _Fault):
            raise WorkersDiedError(result.line) from RuntimeError(result.text)
        return result

    def close(self) -> None:
        """End the workers and wait until they are gone, less than a minute; once is enough.

        Workers that have not been placed yet are not waited for: they end when they are, or are never started.
        """
        if self._closed:
            return
        self._closed = True
        # In the middle of an epoch that nobody waits for any more, they would hear of it at its end.
        if not self._busy:
            self._mailbox.end.remote()
            ray.wait([self._training], timeout=_GRACE_S)
        with contextlib.suppress(RayError):
            ray.cancel(self._presence)
        ray.wait([self._training], timeout=_CLEARING_S)

    def __enter__(self) -> WorkerGroup:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def share(features: Features) -> ray.ObjectRef[Features]:
    """Put the features into Ray's object store, for the workers of a group."""
    return ray.put(features)


class _Mailbox:
    """Carries orders to the workers and their answers back, and runs the trainer that they belong to."""

    def __init__(self, workers: int) -> None:
        self._orders: list[asyncio.Queue[_Order]] = [asyncio.Queue() for _ in range(workers)]
        self._answers: asyncio.Queue[tuple[int, dict[str, Any]] | None] = asyncio.Queue()
        self._members: dict[int, Any] = {}
        self._ended = asyncio.Event()
        self._fault = _Fault("the workers have ended", "")

    async def train(self, config: dict[str, Any], resources: dict[str, float], interfaces: dict[str, str]) -> None:
        """Run the trainer until the workers have ended, by order or by a fault."""
        try:
            await asyncio.to_thread(_fit, config, len(self._orders), resources, interfaces)
        except Exception as error:
            self._fault = _fault(error)
        self._ended.set()
        self._answers.put_nowait(None)

    async def stay(self) -> None:
        """Does not return: whoever waits for it is told when its caller cancels it, or dies."""
        await asyncio.Event().wait()

    async def watch(self, presence: list[ray.ObjectRef[None]]) -> None:
        """See to it that all comes to an end when the holder has gone."""
        with contextlib.suppress(RayError):
            await presence[0]
        self._post(_Order("end"))
        for member in self._members.values():
            ray.kill(member)
        await self._ended.wait()
        # Calls that nobody will answer any more keep it from an orderly exit.
        ray.kill(ray.get_runtime_context().current_actor)

    async def start(self, job: StageJob, _after: None) -> None:
        """Have all workers start a job."""
        self._post(_Order("start", job))

    async def step(self, _after: None) -> dict[str, Any] | _Fault:
        """Have all workers run an epoch; rank 0's result, or why there are none any more."""
        self._post(_Order("step"))
        results: dict[int, dict[str, Any]] = {}
        while len(results) < len(self._orders) and not self._ended.is_set():
            if (answer := await self._answers.get()) is not None:
                rank, results[rank] = answer
        return self._fault if self._ended.is_set() else results[0]

    async def end(self) -> None:
        """Have all workers end."""
        self._post(_Order("end"))

    def _post(self, order: _Order) -> None:
        for orders in self._orders:
            orders.put_nowait(order)

    async def join(self, rank: int, member: Any) -> None:
        """A worker is there. RuntimeError where it takes the place of one that died: it missed what went before."""
        if rank in self._members:
            raise RuntimeError(f"the node of worker {rank} is being taken away")
        self._members[rank] = member

    async def next_order(self, rank: int) -> _Order:
        """What a worker is to do next, once somebody says so."""
        return await self._orders[rank].get()

    async def answer(self, rank: int, result: dict[str, Any]) -> None:
        """A worker has run its part of an epoch."""
        self._answers.put_nowait((rank, result))


def _fit(config: dict[str, Any], workers: int, resources: dict[str, float], interfaces: dict[str, str]) -> None:
    """Train's part: place the workers, join them, and have each of them take orders. Returns when all have ended."""
    # Seconds to import, which the holder is spared.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from grcf_ray.train.backend import MeetingConfig

    gpus = resources.get("GPU", 0.0)
    # NCCL admits one process to a GPU.
    cuda = "nccl" if gpus >= 1 else "gloo"
    with scratch_folder("grcf-train-") as scratch:
        TorchTrainer(
            _work,
            train_loop_config=config,
            torch_config=MeetingConfig(
                backend=f"cpu:gloo,cuda:{cuda}" if gpus else "gloo", interfaces=interfaces, folder=str(scratch)
            ),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=gpus > 0,
                resources_per_worker=resources,
                placement_strategy="PACK",
            ),
            run_config=RunConfig(
                name=f"grcf-{uuid.uuid4().hex}",
                storage_path=str(scratch),
                # The holder says what is to be done; Train alone would try to start a group for ever.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
            ),
        ).fit()


def _work(config: dict[str, Any]) -> None:
    """What each worker does: an order after the other, until the one to end."""
    from ray import train

    # Torch and the model, which the mailbox has no use for.
    from grcf_ray.train.job import JobRunner

    rank, mailbox = train.get_context().get_world_rank(), config["mailbox"]
    runner = JobRunner(ray.get(config["features"]))
    ray.get(mailbox.join.remote(rank, ray.get_runtime_context().current_actor))
    while (order := ray.get(mailbox.next_order.remote(rank))).kind != "end":
        if order.job is not None:
            runner.start(order.job)
        else:
            ray.get(mailbox.answer.remote(rank, runner.step()))


def _fault(error: Exception) -> _Fault:
    """Why a group ended: the first fault among its workers."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return _Fault(_line(error), str(error))
    # Train wraps what Ray says of a process that died. When one dies, the others fail too for want of it.
    faults = {rank: getattr(failure, "health_check_failure", failure) for rank, failure in failures.items()}
    rank = min(faults, key=lambda rank: (not isinstance(faults[rank], RayError), rank))
    return _Fault(f"worker {rank}: {_line(faults[rank])}", f"{error}\n{faults[rank]}")


def _line(error: Exception) -> str:
    """The type and the last line of an error; Ray's own go on for a paragraph."""
    last = str(error).strip().rpartition("\n")[2]
    return textwrap.shorten(f"{type(error).__name__}: {last}", 200, placeholder=" ...")
