"""Data-parallel training of one job after another, by a long-lived worker group of Ray Train.

    holder (a trial's process, or a command)  --step-->  mailbox  --order-->  worker 0, worker 1, ...
                                              <-result-           <-answer--

Ray Train places the workers, joins them in a process group, and ends all of them when one dies. It does so once: the
workers stay warm, so the next job starts in milliseconds. The mailbox, an actor without CPUs, runs the trainer in a
thread. All waiting happens inside calls; nothing polls.

The mailbox and Ray Train's own actors are on the node of worker 0, unless the workers find no room at once. The mailbox
outlives its holder until the workers have ended in order. If it is killed, as with a lost node, the placement group
stays behind with its CPUs, until the next group starts and removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import textwrap
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from grcf_ray.cluster import CLOSED_API, TRAIN_SETTINGS

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grcf_ray.files import scratch_folder
from grcf_ray.train.location import Location, locate, selector

if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from grcf_ray.train.job import StageJob

_PROBE_S = 10.0
"""Seconds to wait for Ray to find room for the workers, before their mailbox is placed without regard to them."""
_GRACE_S = 300.0
"""Seconds that idle workers have to save a job that has not ended, and to exit."""
_CLEARING_S = 10.0
"""Seconds to wait for the end of killed workers."""

_ENVIRONMENT = {
    **TRAIN_SETTINGS,
    # Relative paths are relative to the user's folder.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # This watcher would restart the group from a process of its own, but the holder decides about that.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    **CLOSED_API,
}


class WorkersDiedError(RuntimeError):
    """Workers exited for a reason that is no result of the job, which can be run again by another group."""


@dataclasses.dataclass(frozen=True)
class _Order:
    """The next order for all workers."""

    kind: Literal["start", "step", "finish", "end"]
    job: StageJob | None = None
    """The job to start."""
    keep: bool = True
    """Whether the files of the job to finish are kept."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """Why the workers exited."""

    line: str
    text: str
    """The full message, with the workers' tracebacks."""


class WorkerGroup:
    """Run jobs one epoch at a time, as `JobRunner` does, with several workers per job.

    The group starts in the background: the first `step` waits until the workers are placed, on one node if they fit.
    Close it, or end the process that holds it.

    resources: of each worker, under Ray's names. interfaces: values of `interfaces.VARIABLES` in the caller's
    environment, for workers on several nodes. avoid: Ray's ids of nodes that get no worker.
    """

    def __init__(
        self,
        features: ray.ObjectRef[Features],
        *,
        workers: int,
        resources: Mapping[str, float],
        interfaces: Mapping[str, str] | None = None,
        avoid: Sequence[str] = (),
    ) -> None:
        here = ray.get_runtime_context()
        # Otherwise Ray's tools would contact any cluster that they find.
        environment = {**_ENVIRONMENT, "RAY_ADDRESS": here.gcs_address}
        mailbox: Any = ray.remote(_Mailbox)
        _remove_abandoned()
        node = _node_of_first(workers, resources, avoid) or here.get_node_id()
        # Outside the placement group of this process. Ray Train's other actors follow the mailbox. It asks for a little
        # memory, because Ray places actors that need no resource on any node, whatever node they prefer.
        self._mailbox: Any = mailbox.options(
            num_cpus=0,
            memory=1e6,
            lifetime="detached",
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),
            runtime_env={"env_vars": environment},
        ).remote(workers)
        self._presence = self._mailbox.stay.remote()
        # In a list, because Ray would wait for the object of a reference that is an argument itself.
        self._mailbox.watch.remote([self._presence])
        self._training = self._mailbox.train.remote(
            {"features": features, "mailbox": self._mailbox},
            dict(resources),
            dict(interfaces or {}),
            avoid,
        )
        # Passed to the next call, so that it runs later: calls of an asynchronous actor can overtake each other.
        self._started: ray.ObjectRef[None] | None = None
        self._closed = self._busy = False

    def start(self, job: StageJob) -> None:
        """Have the workers forget the last job. This cannot fail, and does not wait."""
        self._started = self._mailbox.post.remote(_Order("start", job), self._started)

    def step(self) -> dict[str, Any]:
        """Run an epoch on all workers, as `JobRunner.step` does. WorkersDiedError if they have exited.

        The result also has `nodes`, Ray's ids of the workers' nodes; the error names the first worker's that failed.
        """
        return self._ask(_Order("step"))

    def finish(self, *, keep: bool) -> dict[str, Any]:
        """End the job before its last epoch, as `JobRunner.finish` does. WorkersDiedError if they have exited."""
        return self._ask(_Order("finish", keep=keep))

    def _ask(self, order: _Order) -> dict[str, Any]:
        self._busy = True
        try:
            result: dict[str, Any] | Fault = ray.get(self._mailbox.ask.remote(order, self._started))
        except RayActorError as error:
            raise WorkersDiedError(_line(error)) from error
        self._busy = False
        if isinstance(result, Fault):
            raise WorkersDiedError(result.line) from RuntimeError(result.text)
        return result

    def close(self) -> None:
        """Have the workers save a job that has not ended, and wait until they are gone. Further calls do nothing.

        Workers that are not placed yet are not waited for: they end as soon as they are placed, or never start.
        """
        if self._closed:
            return
        self._closed = True
        # During an epoch, workers would see the order only at its end.
        if not self._busy:
            self._mailbox.post.remote(_Order("end"), None)
            ray.wait([self._training], timeout=_GRACE_S)
        with contextlib.suppress(RayError):
            ray.cancel(self._presence)
        ray.wait([self._training], timeout=_CLEARING_S)

    def __enter__(self) -> WorkerGroup:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _remove_abandoned() -> None:
    """Remove the placement groups of this job whose creator, an actor, is dead.

    Ray keeps them until the job ends, and places their bundles anew on nodes that join. Ray Train's own cleaner asks
    the dashboard, which not every cluster has.
    """
    job = ray.get_runtime_context().get_job_id()
    for told in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(told)
        over = group.is_detached or group.state == PlacementGroupTableData.REMOVED or group.creator_job_id.hex() != job
        # Without an actor as its creator, it is as if that actor were dead.
        if group.creator_actor_dead and not ray.ActorID(group.creator_actor_id).is_nil() and not over:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def _node_of_first(workers: int, resources: Mapping[str, float], avoid: Sequence[str]) -> str | None:
    """Return the node on which Ray would place the first of these workers now; None if there is no room for them."""
    # As Ray Train requests it later.
    probe = placement_group(
        [dict(resources)] * workers, strategy="PACK", bundle_label_selector=[selector(avoid)] * workers
    )
    try:
        if not probe.wait(_PROBE_S):
            return None
        node: str = placement_group_table(probe)["bundles_to_node_id"][0]
        return node
    finally:
        remove_placement_group(probe)


def share(features: Features) -> ray.ObjectRef[Features]:
    """Put the features into Ray's object store for the workers of a group, and return the reference."""
    return ray.put(features)


class _Mailbox:
    """Carry orders to the workers and answers back, and run their trainer."""

    def __init__(self, workers: int) -> None:
        self._orders: list[asyncio.Queue[_Order]] = [asyncio.Queue() for _ in range(workers)]
        self._answers: asyncio.Queue[tuple[int, dict[str, Any]] | None] = asyncio.Queue()
        self._members: dict[int, Any] = {}
        self._places: dict[int, Location] = {}
        self._ended = asyncio.Event()
        self._fault = Fault("the workers have exited", "")

    async def train(
        self,
        config: dict[str, Any],
        resources: dict[str, float],
        interfaces: dict[str, str],
        avoid: Sequence[str],
    ) -> None:
        """Run the trainer until the workers have ended, by order or by a fault."""
        try:
            await asyncio.to_thread(_fit, config, len(self._orders), resources, interfaces, avoid)
        except Exception as error:
            self._fault = fault_of(error, self._places)
        self._ended.set()
        self._answers.put_nowait(None)

    async def stay(self) -> None:
        """Wait for ever. Callers that wait on this learn when the holder cancels it or dies."""
        await asyncio.Event().wait()

    async def watch(self, presence: list[ray.ObjectRef[None]]) -> None:
        """End everything when the holder is gone."""
        with contextlib.suppress(RayError):
            await presence[0]
        self._post(_Order("end"))
        for member in self._members.values():
            ray.kill(member)
        await self._ended.wait()
        # Unanswered calls would prevent an orderly exit.
        ray.kill(ray.get_runtime_context().current_actor)

    async def post(self, order: _Order, _after: None) -> None:
        """Give all workers an order."""
        self._post(order)

    async def ask(self, order: _Order, _after: None) -> dict[str, Any] | Fault:
        """Have all workers carry out an order; return rank 0's result, or the fault if they have exited."""
        self._post(order)
        results: dict[int, dict[str, Any]] = {}
        while len(results) < len(self._orders) and not self._ended.is_set():
            if (answer := await self._answers.get()) is not None:
                rank, results[rank] = answer
        if self._ended.is_set():
            return self._fault
        return results[0] | {"nodes": sorted({place.node for place in self._places.values()})}

    def _post(self, order: _Order) -> None:
        for orders in self._orders:
            orders.put_nowait(order)

    async def join(self, rank: int, member: Any, place: Location) -> None:
        """Register a worker. RuntimeError if it replaces a worker that died, since it missed the earlier orders."""
        if rank in self._members:
            raise RuntimeError(f"worker {rank} was replaced: its node is being removed")
        self._members[rank], self._places[rank] = member, place

    async def next_order(self, rank: int) -> _Order:
        """Return the next order for a worker, as soon as there is one."""
        return await self._orders[rank].get()

    async def answer(self, rank: int, result: dict[str, Any]) -> None:
        """Accept a worker's result of an order."""
        self._answers.put_nowait((rank, result))


def _fit(
    config: dict[str, Any],
    workers: int,
    resources: dict[str, float],
    interfaces: dict[str, str],
    avoid: Sequence[str],
) -> None:
    """Run Ray Train: place the workers, join them, and let them take orders. Return when all have ended."""
    # Imported here, because it takes seconds that the holder need not spend.
    from ray.train import FailureConfig, RunConfig

    from grcf_ray.train.backend import torch_trainer

    with scratch_folder("grcf-train-") as scratch:
        # The holder decides about restarts. Ray Train alone would try to start a group for ever.
        failures = FailureConfig(max_failures=0, controller_failure_limit=0)  # type: ignore[call-arg]
        run = RunConfig(name=f"grcf-{uuid.uuid4().hex}", storage_path=str(scratch), failure_config=failures)
        torch_trainer(
            _work,
            config,
            run,
            workers=workers,
            resources=resources,
            interfaces=interfaces,
            meeting=scratch,
            avoid=avoid,
        ).fit()


def _work(config: dict[str, Any]) -> None:
    """Take orders until the one to end. Runs in each worker."""
    from ray import train

    # Imported here, because the mailbox does not need torch and the model.
    from grcf_ray.train.job import JobRunner

    rank, mailbox = train.get_context().get_world_rank(), config["mailbox"]
    runner = JobRunner(ray.get(config["features"]))
    ray.get(mailbox.join.remote(rank, ray.get_runtime_context().current_actor, locate()))
    while (order := ray.get(mailbox.next_order.remote(rank))).kind != "end":
        if order.job is not None:
            runner.start(order.job)
        else:
            result = runner.step() if order.kind == "step" else runner.finish(keep=order.keep)
            ray.get(mailbox.answer.remote(rank, result))
    runner.close()


def fault_of(error: Exception, places: Mapping[int, Location] | None = None) -> Fault:
    """Return why a group ended: the first fault among its workers. places: where they run, by rank, if known."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return Fault(_line(error), str(error))
    # Ray Train wraps Ray's report of a dead process. When one worker dies, the others fail too.
    faults = {rank: getattr(failure, "health_check_failure", failure) for rank, failure in failures.items()}
    rank = min(faults, key=lambda rank: (not isinstance(faults[rank], RayError), rank))
    place = (places or {}).get(rank)
    return Fault(f"worker {rank}: {_line(faults[rank])}" + (f" ({place})" if place else ""), f"{error}\n{faults[rank]}")


def _line(error: Exception) -> str:
    """Return the type and the last line of an error; Ray's errors have whole paragraphs."""
    last = str(error).strip().rpartition("\n")[2]
    return textwrap.shorten(f"{type(error).__name__}: {last}", 200, placeholder=" ...")
