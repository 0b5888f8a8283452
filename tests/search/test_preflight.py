from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from grcf_ray.config import RunConfig, SearchConfig
from grcf_ray.errors import ClusterError, ConfigError
from grcf_ray.search.preflight import Room, find_room

BIG = {"CPU": 16.0, "GPU": 2.0, "memory": 1e10, "node:10.0.0.1": 1.0}
SMALL = {"CPU": 4.0, "memory": 1e9}


def room(nodes: list[dict[str, float]], budgets: tuple[int, ...] = (1000, 1000), **search: Any) -> Room:
    return find_room(nodes, RunConfig(search=SearchConfig(**search)), budgets)


@pytest.mark.parametrize(
    ("nodes", "search", "trials"),
    [
        ([SMALL], {}, 4),
        ([SMALL], {"cpus_per_worker": 3}, 1),
        ([SMALL, SMALL], {"cpus_per_worker": 3}, 2),
        ([{"CPU": 7.0}, {"CPU": 7.0}], {"cpus_per_worker": 2}, 6),
        ([{"CPU": 2.5}], {}, 2),
        ([BIG], {"gpus_per_worker": 1.0}, 2),
        ([BIG], {"gpus_per_worker": 2.0}, 1),
        ([BIG, BIG], {"gpus_per_worker": 0.5}, 8),
        ([BIG, SMALL], {"gpus_per_worker": 0.5}, 4),
        # A share of a GPU lies on one GPU: 0.4 fits each of them twice, although 2 / 0.4 is 5.
        ([BIG], {"gpus_per_worker": 0.4}, 4),
        ([BIG], {"gpus_per_worker": 0.7}, 2),
        ([BIG], {"gpus_per_worker": 0.1}, 16),
        ([BIG], {"gpus_per_worker": 1 / 3}, 6),
        ([{"CPU": 3.0, "GPU": 8.0}], {"gpus_per_worker": 0.5}, 3),
        ([BIG], {"gpus_per_worker": 0.5, "cpus_per_worker": 6}, 2),
    ],
)
def test_room_is_counted_node_by_node(nodes: list[dict[str, float]], search: dict[str, Any], trials: int) -> None:
    found = room(nodes, **search)
    assert (found.concurrent, found.notes) == (trials, ())
    assert found.nodes == len(nodes)
    assert found.cpus == sum(node["CPU"] for node in nodes)
    assert found.gpus == sum(node.get("GPU", 0) for node in nodes)


@pytest.mark.parametrize(
    ("nodes", "search", "lack"),
    [
        ([SMALL], {"gpus_per_worker": 1.0}, "1 CPU and 1 GPU on one node, and no node has a GPU (1 node(s))"),
        ([SMALL, SMALL], {"cpus_per_worker": 5}, "5 CPUs on one node, and no node has more than 4 CPUs (2 node(s))"),
        ([BIG, BIG], {"gpus_per_worker": 3.0}, "3 GPUs on one node, and no node has more than 2 GPUs"),
        (
            [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 16.0}],
            {"cpus_per_worker": 8, "gpus_per_worker": 1.0},
            "no node has both",
        ),
        (
            [SMALL],
            {"cpus_per_worker": 5, "gpus_per_worker": 0.5},
            "no node has more than 4 CPUs; no node has a GPU",
        ),
        ([{"memory": 1e9}], {}, "no node has a CPU"),
        ([], {}, "no node has a CPU (0 node(s))"),
    ],
)
def test_a_plan_that_can_never_run_is_refused_by_what_lacks(
    nodes: list[dict[str, float]], search: dict[str, Any], lack: str
) -> None:
    with pytest.raises(ClusterError) as caught:
        room(nodes, **search)
    assert caught.value.exit_code == 5
    assert lack in str(caught.value)
    assert "--cpus-per-worker" in str(caught.value)


def test_one_and_a_half_gpus_are_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"--gpus-per-worker 1\.5: a trial takes whole GPUs, or a share of one"):
        room([BIG], gpus_per_worker=1.5)


def test_more_at_a_time_than_fit() -> None:
    found = room([SMALL], concurrent=9)
    assert found.concurrent == 4
    (note,) = found.notes
    assert note.startswith("--concurrent 9: there is room for 4 trials at a time, so 4 will run")
    assert room([SMALL], concurrent=3).concurrent == 3


@pytest.mark.parametrize(
    ("concurrent", "budgets", "close"),
    [(4, (12, 12), False), (4, (11, 30), True), (4, (30, 11), True), (1, (1, 1), False), (2, (4,), True)],
)
def test_more_at_a_time_than_a_third_of_the_budget_is_noted(
    concurrent: int, budgets: tuple[int, ...], close: bool
) -> None:
    notes = room([SMALL], budgets, concurrent=concurrent).notes
    assert [f"{concurrent} trials at a time with a budget of {min(budgets)}" in note for note in notes] == [
        True
    ] * close


def test_a_cluster_that_does_not_answer_is_named() -> None:
    code = (
        "from grcf_ray.search.preflight import connect\nfrom grcf_ray.errors import ClusterError\n"
        "try:\n    connect()\nexcept ClusterError as error:\n    print(error.exit_code, error)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.startswith("5 no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1: ")
