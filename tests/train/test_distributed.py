"""A group of workers does what one process does, keeps its processes warm, and leaves nothing behind.

There is room for one group at a time: the sound one is shared, and ends with its class.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from grcf_ray.config import flatten
from grcf_ray.data.features import Features
from grcf_ray.storage import storage_path
from grcf_ray.train import distributed
from grcf_ray.train.checkpoint import export_weights
from grcf_ray.train.distributed import WorkerGroup, WorkersDiedError, share
from grcf_ray.train.job import JobRunner, StageJob
from grcf_ray.train.location import Location

if TYPE_CHECKING:
    from tests.train.conftest import NewConfig

UNEQUAL = ("seconds", "utterances_per_s", "pairs_per_s", "utterance_passes")
"""Times, and what two workers encode twice."""
LONG = {"pairs__pairs_per_epoch": 1_000_000}
"""An epoch that does not end by itself within a test."""
PATIENCE = 60.0
NewJob = Callable[..., StageJob]


@pytest.fixture
def new_job(new_config: NewConfig, tmp_path: Path) -> NewJob:
    """Makes a job of the tiny model, named after its folder; `changes` are settings, two underscores for a dot."""

    def make(name: str, stage: Literal[1, 2] = 1, **changes: Any) -> StageJob:
        return StageJob(
            stage=stage,
            seed=5,
            settings=flatten(new_config(**changes)),
            protocol="mosi",
            folder=str(tmp_path / name),
            initial=None,
            initial_sha256=None,
            threads=1,
            gpu=False,
        )

    return make


@pytest.fixture(scope="module")
def shared(ray_session: None, tiny_features: Features) -> ray.ObjectRef[Features]:
    return share(tiny_features)


def new_group(shared: ray.ObjectRef[Features]) -> WorkerGroup:
    return WorkerGroup(shared, workers=2, resources={"CPU": 1.0})


@pytest.fixture(scope="class")
def group(shared: ray.ObjectRef[Features]) -> Iterator[WorkerGroup]:
    """For the tests of a class, which leave it sound."""
    with new_group(shared) as made:
        yield made
    wait_until_nothing_is_left()


def run(runner: JobRunner | WorkerGroup, job: StageJob) -> dict[str, Any]:
    """The last result of a job."""
    runner.start(job)
    while not (result := runner.step())["done"]:
        pass
    return result


def comparable(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: value for name, value in epoch.items() if name not in UNEQUAL} for epoch in result["curve"]]


def processes() -> dict[int, str]:
    """Those that belong to groups of this cluster, by id: `ray::` and their class."""
    mark = f"RAY_ADDRESS={ray.get_runtime_context().gcs_address}".encode()
    outcome = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title = (entry / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            if title.startswith("ray::") and mark in (entry / "environ").read_bytes():
                outcome[int(entry.name)] = title
        except OSError:
            continue
    # There is one to a cluster, and it stays.
    return {pid: title for pid, title in outcome.items() if "_AutoscalingCoordinatorActor" not in title}


def workers() -> list[int]:
    """The two of a group. A single look at /proc may miss one."""
    outcome: list[int] = []

    def both() -> bool:
        outcome[:] = sorted(pid for pid, title in processes().items() if title.startswith("ray::RayTrainWorker"))
        return len(outcome) == 2

    wait_until(both, processes)
    return outcome


def groups() -> list[dict[str, Any]]:
    """The placement groups that there are."""
    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


def wait_until(holds: Callable[[], bool], details: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, details()
        time.sleep(0.1)


def wait_until_nothing_is_left(but: str = "") -> None:
    """No process but those of a class, no placement group, no CPU that is taken."""

    def left() -> list[str]:
        return [title for title in processes().values() if not (but and but in title)]

    wait_until(lambda: not left() and not groups(), lambda: (processes(), groups()))
    total = ray.cluster_resources()["CPU"]
    wait_until(lambda: ray.available_resources().get("CPU") == total, ray.available_resources)


@pytest.mark.integration
class TestSoundGroup:
    def test_two_workers_do_what_one_does(
        self, group: WorkerGroup, new_job: NewJob, tiny_features: Features, tiny_backbone: Path, tmp_path: Path
    ) -> None:
        """In float64 to 1e-9, in both stages. Dropout, which each rank draws for itself, is out."""
        backbone = tmp_path / "backbone"
        shutil.copytree(tiny_backbone, backbone)
        config = (backbone / "config.json").read_text()
        (backbone / "config.json").write_text(config.replace('dropout_prob": 0.1', 'dropout_prob": 0.0'))
        same = {"train__precision": "float64", "model__backbone": str(backbone)}
        still = same | {"model__fusion_dropout": 0.0, "model__unified_dropout": 0.0}
        for stage in (1, 2):
            alone = comparable(run(JobRunner(tiny_features), new_job(f"alone-{stage}", stage, **still)))
            together = comparable(run(group, new_job(f"together-{stage}", stage, **still)))
            assert [epoch["epoch"] for epoch in together] == [1, 2, 3]
            for actual, reference in zip(together, alone, strict=True):
                assert actual == pytest.approx(reference, rel=1e-9, abs=1e-12)

    def test_job_goes_on_from_its_folder_bit_for_bit(self, group: WorkerGroup, new_job: NewJob, tmp_path: Path) -> None:
        # Not above: processes of Ray's import this file too, and do not find it.
        from same_training import assert_same_checkpoints

        whole, cut = new_job("whole"), new_job("cut")
        group.start(cut)
        assert group.step()["epoch"] == 1
        uninterrupted = run(group, whole)
        group.start(cut)
        assert group.step()["epoch"] == 2
        result = group.step()
        assert comparable(result) == comparable(uninterrupted)
        assert_same_checkpoints(tmp_path / "cut", tmp_path / "whole")
        # What is asked of a job that is done is told again.
        assert group.step() == result

    def test_all_processes_listen_on_the_loopback_interface_alone(self, group: WorkerGroup, new_job: NewJob) -> None:
        from listeners import listening, reachable

        run(group, new_job("listened"))
        outcome = listening()
        for part in ("gcs_server", "raylet", "Agent", "Mailbox", "RayTrainWorker"):
            assert any(part in title for title, _ in outcome), part
        assert reachable(outcome) == []

    def test_known_failures_are_results(self, group: WorkerGroup, new_job: NewJob, tmp_path: Path) -> None:
        from same_training import best_in

        before = workers()
        wild = run(group, new_job("wild", stage1__head_lr=1e30))
        assert (wild["state"], wild["error"], wild["epoch"]) == ("diverged", "DivergedError", 1)
        assert "no longer finite" in wild["failure"]

        run(group, new_job("sound"))
        weights = storage_path(tmp_path / "weights.safetensors")
        digest = export_weights(storage_path(best_in(tmp_path / "sound")), weights)
        second = dataclasses.replace(new_job("second", 2), initial=weights.uri, initial_sha256=digest)
        assert run(group, second)["epoch"] == 3
        content = bytearray((tmp_path / "weights.safetensors").read_bytes())
        content[-5] ^= 1
        (tmp_path / "weights.safetensors").write_bytes(content)
        damaged = run(group, dataclasses.replace(second, folder=str(tmp_path / "damaged")))
        assert (damaged["state"], damaged["error"]) == ("failed", "DamagedError")
        assert "weights.safetensors: damaged" in damaged["failure"]

        assert run(group, new_job("after"))["epoch"] == 3
        assert workers() == before

    def test_stopped_jobs_leave_the_processes_and_a_closed_group_leaves_nothing(
        self, group: WorkerGroup, new_job: NewJob
    ) -> None:
        """The group is closed within an epoch, as when somebody interrupts the command; and once more."""
        before = workers()
        for number in range(4):
            group.start(new_job(f"left-{number}"))
            # One is stopped before it begins.
            if number != 1:
                assert group.step()["epoch"] == 1
        assert workers() == before
        group.start(new_job("endless", **LONG))
        interrupt = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            group.step()
        group.close()
        group.close()
        wait_until_nothing_is_left()
        with pytest.raises(WorkersDiedError):
            group.step()


@pytest.mark.integration
def test_death_of_a_worker_ends_the_group(shared: ray.ObjectRef[Features], new_job: NewJob) -> None:
    """Within an epoch, where the other waits for it."""
    with new_group(shared) as group:
        run(group, new_job("before"))
        group.start(new_job("killed", **LONG))
        victim, here = workers()[1], ray.get_runtime_context().get_node_id()
        killer = threading.Timer(1.0, os.kill, (victim, signal.SIGKILL))
        killer.start()
        with pytest.raises(WorkersDiedError, match=rf"^worker [01]: ActorDiedError: .* \(on .+, node ID: {here}\)$"):
            group.step()
        group.start(new_job("next"))
        with pytest.raises(WorkersDiedError, match="ActorDiedError"):
            group.step()
    wait_until_nothing_is_left()


class Holder:
    """A process that holds a group, as a trial's does."""

    def __init__(self, features: list[ray.ObjectRef[Features]]) -> None:
        self._group = new_group(features[0])

    def run(self, job: StageJob) -> int:
        """The id of the process, once the job has begun."""
        self._group.start(job)
        self._group.step()
        return os.getpid()


@pytest.mark.integration
def test_nothing_outlives_the_holder(shared: ray.ObjectRef[Features], new_job: NewJob) -> None:
    """In a placement group such as a trial's, which the workers are not to lie in."""
    trial = placement_group([{"node:__internal_head__": 0.001}])
    in_trial = PlacementGroupSchedulingStrategy(trial, placement_group_capture_child_tasks=True)
    holder: Any = ray.remote(Holder).options(num_cpus=0, scheduling_strategy=in_trial)  # type: ignore[attr-defined]
    pid = ray.get(holder.remote([shared]).run.remote(new_job("held")))
    assert len(workers()) == 2
    assert sorted(len(group["bundles"]) for group in groups()) == [1, 2]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes(), processes)
    remove_placement_group(trial)
    wait_until_nothing_is_left()


@pytest.mark.integration
def test_group_starts_after_one_that_lost_its_node(shared: ray.ObjectRef[Features], new_job: NewJob) -> None:
    """Ray Train's controller is lost with the mailbox. Their placement group holds all CPUs, and nobody removes it."""
    lost = new_group(shared)
    run(lost, new_job("before"))
    for pid, title in processes().items():
        if "_Mailbox" in title or "TrainController" in title:
            os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkersDiedError):
        lost.step()
    wait_until(lambda: not any("RayTrainWorker" in title for title in processes().values()), processes)
    assert [len(group["bundles"]) for group in groups()] == [2]
    with new_group(shared) as group:
        assert run(group, new_job("next"))["done"]
    # Ray Train's own cleaner waits for a dashboard that this Ray does not have.
    wait_until_nothing_is_left(but="PlacementGroupCleaner")


def test_reason_of_the_end_is_the_first_fault() -> None:
    died, wrong, torn = (
        ActorDiedError(),
        OSError(28, "No space left on device"),
        RuntimeError("gloo\nConnection closed"),
    )
    fault = distributed.fault_of(WorkerGroupError("both", {0: torn, 1: died}))
    assert fault.line.startswith("worker 1: ActorDiedError: ")
    assert distributed.fault_of(WorkerGroupError("one", {1: wrong})).line == f"worker 1: OSError: {wrong}"
    places = {0: Location("aa", "a (10.0.0.1)", None), 1: Location("bb", "b (10.0.0.2)", "3")}
    line = distributed.fault_of(WorkerGroupError("one", {1: wrong}), places).line
    assert line == f"worker 1: OSError: {wrong} (on b (10.0.0.2), node ID: bb, GPU: 3)"
    fault = distributed.fault_of(WorkerGroupError("all of it", {0: torn}))
    assert fault.line == "worker 0: RuntimeError: Connection closed"
    assert "all of it" in fault.text
    assert distributed.fault_of(ValueError("no workers")).line == "ValueError: no workers"
    assert len(distributed.fault_of(ValueError("word " * 1000)).line) <= 200
