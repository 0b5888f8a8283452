from __future__ import annotations

import dataclasses
import shutil
from collections import namedtuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grcf_ray.config import RunConfig, SearchConfig
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import ClusterError, ConfigError
from grcf_ray.search.nodes import Node
from grcf_ray.search.preflight import Capacity, check_disk, find_capacity, needed_bytes
from grcf_ray.search.space import load_space
from grcf_ray.storage import storage_path
from tests.search.conftest import Run

if TYPE_CHECKING:
    from tests.conftest import Recorded

BIG = {"CPU": 16.0, "GPU": 2.0, "memory": 1e10, "node:10.0.0.1": 1.0}
SMALL = {"CPU": 4.0, "memory": 1e9}
A100 = {"CPU": 8.0, "GPU": 4.0, "accelerator_type:A100": 1.0}
T4 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:T4": 1.0}


def room(nodes: list[dict[str, float]], budgets: tuple[int, ...] = (1000, 1000), **search: Any) -> Capacity:
    return find_capacity([Node("", "", "", node) for node in nodes], RunConfig(search=SearchConfig(**search)), budgets)


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
        # Of several kinds of GPU, nodes with the one that is asked for.
        ([A100, BIG, SMALL], {"gpus_per_worker": 1.0, "accelerator_type": "A100"}, 4),
        ([A100, BIG], {"gpus_per_worker": 1.0}, 6),
        ([A100, SMALL], {"accelerator_type": "A100"}, 8),
    ],
)
def test_room_is_counted_node_by_node(nodes: list[dict[str, float]], search: dict[str, Any], trials: int) -> None:
    capacity = room(nodes, **search)
    assert capacity.concurrent == trials
    assert [note for note in capacity.notes if "stay idle" not in note] == []
    assert capacity.nodes == len(nodes)
    assert capacity.cpus == sum(node["CPU"] for node in nodes)
    assert capacity.gpus == sum(node.get("GPU", 0) for node in nodes)


@pytest.mark.parametrize(
    ("nodes", "search", "lack"),
    [
        ([SMALL], {"gpus_per_worker": 1.0}, "1 CPU and 1 GPU on one node, but no node has a GPU (1 node(s))"),
        ([SMALL, SMALL], {"cpus_per_worker": 5}, "5 CPUs on one node, but no node has more than 4 CPUs (2 node(s))"),
        ([BIG, BIG], {"gpus_per_worker": 3.0}, "3 GPUs on one node, but no node has more than 2 GPUs"),
        (
            [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 16.0}],
            {"cpus_per_worker": 8, "gpus_per_worker": 1.0},
            "no node has them together",
        ),
        (
            [SMALL],
            {"cpus_per_worker": 5, "gpus_per_worker": 0.5},
            "no node has more than 4 CPUs; no node has a GPU",
        ),
        (
            [A100, T4, SMALL],
            {"gpus_per_worker": 1.0, "accelerator_type": "H100"},
            "1 CPU and 1 GPU and a GPU of kind H100 on one node, but no node has a GPU of kind H100 (3 node(s); "
            "kinds of GPU: A100, T4)",
        ),
        (
            [T4, {"CPU": 8.0, "GPU": 8.0}],
            {"gpus_per_worker": 4.0, "accelerator_type": "T4"},
            "no node has them together (2 node(s); kinds of GPU: T4)",
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


@pytest.mark.parametrize(
    ("concurrent", "budgets", "runs", "notes"),
    [
        (4, (12, 12), 4, []),
        (4, (11, 30), 4, ["4 trials at a time with a budget of 11"]),
        (4, (30, 11), 4, ["4 trials at a time with a budget of 11"]),
        (1, (1, 1), 1, []),
        (2, (4,), 2, ["2 trials at a time with a budget of 4"]),
        (9, (1000,), 4, ["--concurrent 9: only 4 trials fit"]),
        (3, (1000,), 3, []),
    ],
)
def test_more_at_a_time_than_fit_or_than_a_third_of_the_budget_is_noted(
    concurrent: int, budgets: tuple[int, ...], runs: int, notes: list[str]
) -> None:
    capacity = room([SMALL], budgets, concurrent=concurrent)
    assert capacity.concurrent == runs
    assert len(capacity.notes) == len(notes)
    assert all(note.startswith(start) for note, start in zip(capacity.notes, notes, strict=True))


def test_one_and_a_half_gpus_are_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"--gpus-per-worker 1\.5: .*whole number"):
        room([BIG], gpus_per_worker=1.5)


Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A disk with 1 MB left; the folders whose disk was asked for."""
    folders: list[Path] = []

    def usage(folder: Path) -> Usage:
        folders.append(Path(folder))
        return Usage(10**12, 10**12 - 10**6, 10**6)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return folders


def needs(config: RunConfig, store: DatasetStore, *, concurrent: int = 1, seeds: int = 0) -> int:
    return needed_bytes(config, store.info, concurrent=concurrent, seeds=seeds)


def test_the_room_that_is_asked_for_is_what_a_search_takes(recorded: Recorded, tiny_space: Path) -> None:
    """At most, and not far from it."""
    needed = needs(load_space(tiny_space).config(), DatasetStore.open(recorded.data))
    print(f"needed {needed}, peak {recorded.peak_bytes}")
    assert recorded.peak_bytes <= needed <= 2 * recorded.peak_bytes


def test_more_of_anything_takes_more_room(tiny_space: Path, tiny_store: DatasetStore) -> None:
    config = load_space(tiny_space).config()
    search, train, model = config.search, config.train, config.model
    least = needs(config, tiny_store)
    assert needs(config, tiny_store, concurrent=2) > least
    assert needs(config, tiny_store, seeds=1) > least
    assert needs(config, tiny_store, seeds=5) > needs(config, tiny_store, seeds=4)
    more = dataclasses.replace(config, search=dataclasses.replace(search, finalists=3))
    assert needs(more, tiny_store) > least
    double = dataclasses.replace(config, train=dataclasses.replace(train, precision="float64"))
    assert needs(double, tiny_store) == 2 * least
    # Frozen layers are in the winner alone, not in checkpoints.
    frozen = dataclasses.replace(config, model=dataclasses.replace(model, frozen_layers="all"))
    assert needs(frozen, tiny_store) < 0.5 * least


def test_a_disk_without_room_is_refused_with_what_lacks(
    asked: list[Path], tiny_space: Path, tiny_store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the nearest folder that exists; what the run already holds is not asked for again."""
    config = load_space(tiny_space).config()
    run = tmp_path / "runs" / "n"
    with pytest.raises(ClusterError) as caught:
        check_disk(storage_path(run), config, tiny_store.info, concurrent=1, seeds=0)
    assert caught.value.exit_code == 5
    assert str(caught.value).startswith(f"{run}: the search needs about 26.2 MB more ")
    assert "--storage DIR" in str(caught.value)
    assert asked == [tmp_path]
    held = run / "stage1" / "trials" / "0000" / "attempt-1" / "best.safetensors"
    held.parent.mkdir(parents=True)
    held.write_bytes(bytes(needs(config, tiny_store)))
    with pytest.raises(ClusterError, match=r"needs about 24\.0 MB more .* has 1\.0 MB left"):
        check_disk(storage_path(run), config, tiny_store.info, concurrent=1, seeds=0)
    assert asked[-1] == run
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 24 * 10**6))
    check_disk(storage_path(run), config, tiny_store.info, concurrent=1, seeds=0)
    with pytest.raises(ClusterError):
        check_disk(storage_path(run), config, tiny_store.info, concurrent=2, seeds=0)
    # Object storage has no end.
    check_disk(storage_path("mock://bucket/runs"), config, tiny_store.info, concurrent=100, seeds=0)


def test_the_command_refuses_a_full_disk_before_it_writes(
    asked: list[Path], ray_session: None, run: Run, tiny_argv: list[Any], tmp_path: Path
) -> None:
    code, out, err = run(*tiny_argv)
    assert (code, out) == (5, "")
    assert err.startswith(f"error: {tmp_path / 'runs'}")
    assert "the search needs about" in err
    assert not (tmp_path / "runs").exists()
