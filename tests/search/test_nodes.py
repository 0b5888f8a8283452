"""Every node of a cluster is looked at before anything is trained there, and all that is wrong is said at once."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from grcf_ray.config import RunConfig, build_config
from grcf_ray.errors import ClusterError, ConfigError
from grcf_ray.search import nodes
from grcf_ray.search.nodes import (
    Memory,
    Node,
    NodeCheck,
    Seen,
    check_memory,
    check_nodes,
    cluster_nodes,
    have_bfloat16,
    look,
)
from grcf_ray.storage import LocalPath, storage_path
from grcf_ray.train import precision
from grcf_ray.train.assemble import backbone_sha256

ALPHA = Node("a" * 56, "alpha", "10.0.0.2", {"CPU": 2.0, "object_store_memory": 2e9})
BETA = Node("b" * 56, "beta", "10.0.0.3", {"CPU": 2.0, "object_store_memory": 1e8})


@pytest.fixture
def config(tiny_backbone: Path) -> RunConfig:
    return build_config({"model.backbone": str(tiny_backbone)})


@pytest.fixture
def wanted(tiny_backbone: Path, tmp_path: Path) -> NodeCheck:
    """What a sound node has."""
    (tmp_path / "runs" / ".look").mkdir(parents=True)
    (tmp_path / "runs" / ".look" / "driver").write_text("word")
    return NodeCheck(
        versions=nodes._versions(),
        backbone=str(tiny_backbone),
        backbone_sha256=backbone_sha256(str(tiny_backbone)),
        folder=str(tmp_path / "runs" / ".look"),
        word="word",
        remedy="a network disk, or another",
        interfaces=None,
    )


def answer_with(monkeypatch: pytest.MonkeyPatch, seen: dict[str, Seen]) -> list[NodeCheck]:
    """Have hosts be found so; what was looked for."""
    asked: list[NodeCheck] = []

    def look_at(there: Sequence[Node], wanted: NodeCheck) -> list[Seen]:
        asked.append(wanted)
        assert Path(wanted.folder, "driver").read_text() == wanted.word
        return [seen[node.host] for node in there]

    monkeypatch.setattr(nodes, "_look_at", look_at)
    return asked


@pytest.mark.parametrize("able", [True, False])
def test_the_driver_answers_for_the_cpu_of_its_node(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    monkeypatch.setattr(precision, "native_bfloat16", lambda **_: able)
    assert have_bfloat16(cluster_nodes(), gpu=False) is able


def test_a_process_of_the_node_answers_for_its_gpu(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = os.getpid()
    monkeypatch.setattr(precision, "native_bfloat16", lambda *, gpu: gpu and os.getpid() != driver)
    assert have_bfloat16(cluster_nodes(), gpu=True)


def test_a_node_that_does_not_answer_is_an_error(ray_session: None) -> None:
    with pytest.raises(ClusterError, match=r"--set train\.precision=float32"):
        have_bfloat16([ALPHA], gpu=False)


def test_one_node_is_not_looked_at(monkeypatch: pytest.MonkeyPatch, config: RunConfig, tmp_path: Path) -> None:
    """The driver sees what there is to see; nothing is written for it, and no process is started."""
    asked = answer_with(monkeypatch, {})
    assert check_nodes([ALPHA], config, storage_path(tmp_path / "runs" / "n")) == {}
    assert asked == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("workers", "interfaces"), [(1, None), (2, {"GLOO_SOCKET_IFNAME": "eth7"})])
def test_sound_nodes_have_their_memory_told(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig, tmp_path: Path, workers: int, interfaces: dict[str, str] | None
) -> None:
    """Interfaces matter to trials that may lie on several nodes."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    asked = answer_with(monkeypatch, {"alpha": Seen([], 64), "beta": Seen([], 10**10)})
    wide = dataclasses.replace(config, search=dataclasses.replace(config.search, workers=workers))
    memory = check_nodes([ALPHA, BETA], wide, storage_path(tmp_path / "runs" / "n"))
    assert memory == {
        "alpha (10.0.0.2)": Memory(2 * 10**9, 64),
        "beta (10.0.0.3)": Memory(10**8, 10**10),
    }
    # The driver's file is gone again.
    assert list((tmp_path / "runs").iterdir()) == []
    assert asked[0].interfaces == interfaces


def test_all_faults_of_all_nodes_come_together(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig, tmp_path: Path
) -> None:
    answer_with(monkeypatch, {"alpha": Seen(["has no tail"]), "beta": Seen(["has no head", "has no heart"])})
    with pytest.raises(ClusterError) as caught:
        check_nodes([ALPHA, BETA], config, storage_path(tmp_path / "runs" / "n"))
    assert caught.value.exit_code == 5
    assert str(caught.value).splitlines() == [
        "not every node of the cluster can run trials:",
        "  alpha (10.0.0.2): has no tail",
        "  beta (10.0.0.3): has no head",
        "  beta (10.0.0.3): has no heart",
    ]
    assert list((tmp_path / "runs").iterdir()) == []


def test_storage_that_the_driver_cannot_write_is_no_nodes_fault(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written .*--storage s3:"):
        check_nodes([ALPHA, BETA], config, storage_path(tmp_path / "file" / "n"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"word": "another"}, "does not see files written to .*/runs; .*: a network"),
        ({"folder": "/nowhere/runs/.look"}, "does not see files written to /nowhere/runs; "),
        ({"backbone_sha256": "0"}, "weights of backbone .* differ"),
        ({"backbone": "/nowhere/bert"}, "backbone /nowhere/bert"),
        ({}, r"^cannot write to .*/runs, .* \(Read-only file system\)$"),
        (
            {"versions": {"torch": "1.0", "grcf_ray": "0.0.1-aaaaaaaa"}},
            r"^has grcf_ray \S+ \(driver: 0.0.1-aaaaaaaa\), torch \S+ \(driver: 1.0\); install .* there$",
        ),
        ({"interfaces": {"GLOO_SOCKET_IFNAME": "lo"}}, "GLOO_SOCKET_IFNAME=lo names the loopback interface"),
    ],
)
@pytest.mark.usefixtures("ray_session")
def test_what_is_wrong_with_a_node_is_said_with_what_to_do(
    wanted: NodeCheck, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    # CPU and GPU builds of a release may be mixed.
    monkeypatch.setattr(torch, "__version__", f"{wanted.versions['torch']}+cu130")
    seen = look(wanted)
    assert seen.faults == [] and seen.shared_memory > 0
    if "versions" in changes:
        changes = {"versions": {**wanted.versions, **changes["versions"]}}
    if not changes:
        monkeypatch.setattr(LocalPath, "write_text", _read_only)
    (fault,) = look(dataclasses.replace(wanted, **changes)).faults
    assert re.search(said, fault)


def _read_only(self: LocalPath, text: str) -> None:
    raise OSError(30, "Read-only file system")


def test_a_node_is_looked_at_where_it_is(ray_session: None, wanted: NodeCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's own by the driver, others by a task; one that is gone is named for it."""
    (local,) = cluster_nodes()
    assert nodes._look_at([local, BETA], wanted)[0].faults == []
    gone = nodes._look_at([BETA, local], wanted)[0]
    assert len(gone.faults) == 1
    assert gone.faults[0].startswith("cannot be reached (")
    # As another node than the driver's would.
    stranger = dataclasses.replace(wanted, versions={**wanted.versions, "ray": "0"})
    with monkeypatch.context() as patch:
        patch.setattr(nodes.ray, "get_runtime_context", lambda: type("Here", (), {"get_node_id": lambda _: "x"})())
        (seen,) = nodes._look_at([local], stranger)
    (fault,) = seen.faults
    assert fault.startswith("has ray ")


def test_features_without_room_are_refused_by_node() -> None:
    memory = {"alpha (10.0.0.2)": Memory(10**9, 64 * 10**6), "beta (10.0.0.3)": Memory(10**8, 10**10)}
    check_memory(10**6, memory)
    check_memory(10**12, {})
    with pytest.raises(ClusterError) as caught:
        check_memory(5 * 10**8, memory)
    assert caught.value.exit_code == 5
    assert str(caught.value).splitlines() == [
        "the features need 500.0 MB on every node; nodes with less:",
        "  alpha (10.0.0.2): /dev/shm has 64.0 MB; start it with more shared memory (a container's --shm-size)",
        "  beta (10.0.0.3): Ray's object store has 100.0 MB; start it with ray start --object-store-memory=BYTES",
    ]
