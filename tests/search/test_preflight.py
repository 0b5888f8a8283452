from __future__ import annotations

import dataclasses
import shutil
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from grcf_ray.cluster import NodeType

import pytest

from grcf_ray.config import RunConfig, SearchConfig, TrainConfig, check_gpus
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import ClusterError, ConfigError
from grcf_ray.search import preflight, session
from grcf_ray.search.host_memory import meta_model, parameter_counts
from grcf_ray.search.nodes import Node
from grcf_ray.search.preflight import (
    Capacity,
    check_disk,
    check_parameters,
    find_capacity,
    needed_bytes,
    resolve_gpus,
    resolve_precision,
)
from grcf_ray.search.space import load_space
from grcf_ray.storage import storage_path
from tests.search.conftest import Run

if TYPE_CHECKING:
    from tests.conftest import Recorded

BIG = {"CPU": 16.0, "GPU": 2.0, "memory": 1e10, "node:10.0.0.1": 1.0}
SMALL = {"CPU": 4.0, "memory": 1e9}
A100 = {"CPU": 8.0, "GPU": 4.0, "accelerator_type:A100": 1.0}
T4 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:T4": 1.0}


def room(
    nodes: list[dict[str, float]],
    budgets: tuple[int, ...] = (1000, 1000),
    types: Sequence[NodeType] = (),
    worker_bytes: int = 0,
    **search: Any,
) -> Capacity:
    config = RunConfig(search=SearchConfig(**search))
    have = [Node("", "", "", node) for node in nodes]
    return find_capacity(have, config, budgets, types=types, worker_bytes=worker_bytes)


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


@pytest.mark.parametrize("gpus", [1.5, 2.0])
def test_a_worker_with_several_gpus_is_a_configuration_error(gpus: float) -> None:
    with pytest.raises(ConfigError, match=rf"--gpus-per-worker {gpus:g}: .*--workers 2"):
        check_gpus(gpus)


@pytest.mark.parametrize(
    ("gpus", "device", "nodes", "types", "resolved"),
    [
        ("auto", "auto", [SMALL], [], 0.0),
        ("auto", "auto", [SMALL, BIG], [], 1.0),
        ("auto", "auto", [SMALL], [NodeType({"CPU": 8, "GPU": 1}, 4)], 1.0),
        ("auto", "auto", [SMALL], [NodeType({"CPU": 8}, 4)], 0.0),
        ("auto", "cpu", [BIG], [], 0.0),
        ("auto", "cuda", [SMALL], [], 1.0),
        (0.0, "auto", [BIG], [], 0.0),
        (0.5, "auto", [SMALL], [], 0.5),
    ],
)
def test_auto_is_a_gpu_where_there_is_or_can_be_one(
    gpus: float, device: Any, nodes: list[dict[str, float]], types: list[NodeType], resolved: float
) -> None:
    config = RunConfig(search=SearchConfig(gpus_per_worker=gpus), train=TrainConfig(device=device))
    assert resolve_gpus(config, [Node("", "", "", node) for node in nodes], types) == resolved


@pytest.mark.parametrize(
    ("search", "train", "nodes", "asked", "resolved"),
    [
        ({}, {}, [SMALL, BIG], [4.0, 16.0], "bfloat16"),
        ({"cpus_per_worker": 8}, {}, [SMALL, BIG], [16.0], "bfloat16"),
        ({}, {"precision": "float32"}, [SMALL], [], "float32"),
        ({}, {"precision": "float64"}, [SMALL], [], "float64"),
        ({}, {}, [{"CPU": 0.0}], [], "float32"),
        ({"gpus_per_worker": 1.0}, {}, [SMALL, BIG], [16.0, "gpu"], "bfloat16"),
        ({"gpus_per_worker": 1.0, "accelerator_type": "T4"}, {}, [SMALL, BIG, T4], [8.0, "gpu"], "bfloat16"),
        ({"gpus_per_worker": 1.0}, {}, [SMALL], [], "bfloat16"),
        ({"gpus_per_worker": 1.0}, {"device": "cpu"}, [BIG], [16.0], "bfloat16"),
    ],
)
def test_auto_is_bfloat16_if_every_node_for_trials_has_it(
    monkeypatch: pytest.MonkeyPatch,
    search: dict[str, Any],
    train: dict[str, Any],
    nodes: list[dict[str, float]],
    asked: list[float | str],
    resolved: str,
) -> None:
    seen: list[float | str] = []

    def answer(there: Sequence[Node], *, gpu: bool) -> bool:
        seen.extend([*(node.resources["CPU"] for node in there), *(["gpu"] if gpu else [])])
        return able

    monkeypatch.setattr(preflight, "have_bfloat16", answer)
    config = RunConfig(search=SearchConfig(**{"gpus_per_worker": 0.0, **search}), train=TrainConfig(**train))
    for able in (True, False):
        seen.clear()
        expected = "float32" if asked and not able else resolved
        assert resolve_precision(config, [Node("", "", "", node) for node in nodes]) == expected
        assert seen == asked


GPU_TYPE = NodeType({"CPU": 8.0, "GPU": 1.0}, 4)


def test_a_cluster_that_can_grow_takes_one_trial_more_than_fits() -> None:
    """The trial that waits makes the autoscaler add a node."""
    search: dict[str, Any] = {"gpus_per_worker": 1.0}
    empty = room([{"CPU": 0.0}], types=[GPU_TYPE], **search)
    assert (empty.concurrent, empty.most) == (1, 4)
    assert empty.notes == ("the autoscaler can add nodes, for up to 4 trials at a time",)
    worker = {"CPU": 8.0, "GPU": 1.0}
    assert [empty.fitting([worker] * count) for count in (0, 1, 3, 4, 5)] == [1, 2, 4, 4, 5]
    # A given number is asked for at once.
    assert room([worker], types=[GPU_TYPE], concurrent=3, **search).concurrent == 3
    assert room([worker], types=[GPU_TYPE], concurrent=9, **search).concurrent == 4
    pair = room([worker], types=[GPU_TYPE], workers=2, **search)
    assert (pair.concurrent, pair.most) == (1, 2)
    with pytest.raises(ClusterError, match="no node has a GPU"):
        room([SMALL], types=[NodeType({"CPU": 8.0}, 4)], **search)


def test_the_number_of_trials_follows_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, now = [Node("", "", "", SMALL)], [0.0]
    monkeypatch.setattr(preflight, "cluster_nodes", lambda: nodes)
    monkeypatch.setattr(preflight, "time", SimpleNamespace(monotonic=lambda: now[0]))
    number = room([SMALL]).fitting.follow()
    assert number() == 4
    nodes.append(Node("", "", "", BIG))
    assert number() == 4, "counted too often"
    now[0] += 5.0
    assert number() == 20
    nodes.clear()
    now[0] += 5.0
    assert number() == 1, "the trial that waits for a node"


ROOMY = {"CPU": 8.0, "memory": 8e9}


def test_fewer_trials_run_where_memory_is_short() -> None:
    capacity = room([ROOMY], worker_bytes=3 * 10**9)
    assert capacity.concurrent == 2
    assert capacity.fitting.resources == {"CPU": 1.0, "memory": 3e9}, "Ray keeps the trials of a node within its memory"
    (note,) = capacity.notes
    assert note.startswith("memory for 2 trials at a time, CPUs and GPUs for 8") and "3.0 GB" in note
    assert room([ROOMY, ROOMY, {"CPU": 8.0, "memory": 2e9}], worker_bytes=3 * 10**9).concurrent == 4
    plenty = room([ROOMY], worker_bytes=10**9)
    assert (plenty.concurrent, plenty.fitting.resources, plenty.notes) == (8, {"CPU": 1.0}, ())
    given = room([ROOMY], worker_bytes=3 * 10**9, concurrent=5)
    assert (given.concurrent, given.fitting.resources, given.notes) == (5, {"CPU": 1.0}, ())


@pytest.mark.parametrize(
    ("search", "needed", "says"),
    [
        ({}, 9, r"1 worker\(s\) need about 9.0 GB of memory each, but a node has at most 8.0 GB .* and 0 fit"),
        ({"workers": 4, "concurrent": 1}, 5, r"4 worker\(s\) need about 5.0 GB .* and 2 fit"),
    ],
)
def test_a_trial_that_no_memory_holds_is_refused(search: dict[str, Any], needed: int, says: str) -> None:
    with pytest.raises(ClusterError, match=says):
        room([ROOMY, ROOMY], worker_bytes=needed * 10**9, **search)


def test_a_big_model_needs_a_gpu_or_a_word(
    tiny_space: Path, tiny_store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen layers do not count, nor do the embeddings below them."""
    config, commands = load_space(tiny_space).config(), {"gpus": "COMMAND 1", "cpus": "COMMAND 0"}
    trained, whole = parameter_counts(meta_model(config, tiny_store.info))
    assert trained == whole < 60_000_000
    check_parameters(config, tiny_store.info, commands)
    monkeypatch.setattr(preflight, "CPU_PARAMETERS", trained - 1)
    with pytest.raises(ClusterError, match=r"million trainable parameters; .* COMMAND 1; .* COMMAND 0;") as caught:
        check_parameters(config, tiny_store.info, commands)
    assert caught.value.exit_code == 5
    frozen = dataclasses.replace(config, model=dataclasses.replace(config.model, frozen_layers=1))
    check_parameters(frozen, tiny_store.info, commands)


def test_the_command_refuses_a_big_model_unless_cpus_are_asked_for(
    run: Run, ray_session: None, tiny_argv: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "CPU_PARAMETERS", 1000)
    monkeypatch.setattr(session, "resolve_gpus", lambda config, *_: config.search.gpus)
    code, out, err = run(*tiny_argv, "--dry-run")
    assert (code, out) == (5, "")
    line = err.splitlines()[-1]
    assert line.startswith("error: the cluster has no GPU, and the model has 0 million trainable parameters")
    for gpus in (1, 0):
        assert f"--dry-run --gpus-per-worker {gpus}" in line
    assert run(*tiny_argv, "--dry-run", "--gpus-per-worker", 0)[0] == 0
    assert run(*tiny_argv, "--dry-run", "--set", "search.gpus_per_worker=0")[0] == 0
    assert run(*tiny_argv, "--dry-run", "--set", "train.device=cpu")[0] == 0
    assert run(*tiny_argv, "--dry-run", "--set", "search.gpus_per_worker=auto")[0] == 5


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
    """At most, and not far from it.

    The peak was seen at events. Each may find one checkpoint of the running trial or three, which take three times its
    weights each.
    """
    needed = needs(load_space(tiny_space).config(), DatasetStore.open(recorded.data))
    print(f"needed {needed}, peak {recorded.peak_bytes}")
    assert recorded.peak_bytes <= needed <= 5 * recorded.peak_bytes


def test_more_of_anything_takes_more_room(tiny_space: Path, tiny_store: DatasetStore) -> None:
    config = load_space(tiny_space).config()
    search, train, model = config.search, config.train, config.model
    least = needs(config, tiny_store)
    assert needs(config, tiny_store, concurrent=2) > least
    assert needs(config, tiny_store, seeds=1) > least
    assert needs(config, tiny_store, seeds=5) > needs(config, tiny_store, seeds=4)
    for changed in ({"finalists": 3}, {"ensemble": 4}):
        more = dataclasses.replace(config, search=dataclasses.replace(search, **changed))
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
    assert str(caught.value).startswith(f"{run}: the search needs about 27.0 MB more ")
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
