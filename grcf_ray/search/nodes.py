"""The nodes of a cluster, each looked at before anything is trained there: every fault of every node, at once.

A cluster of one node is not looked at: what the driver finds for itself holds there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import platform
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grcf_ray.cluster

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grcf_ray import console
from grcf_ray._version import __version__
from grcf_ray.config import RunConfig
from grcf_ray.errors import ClusterError, ConfigError, GrcfError, faults_message, reason
from grcf_ray.search.failures import last_line
from grcf_ray.storage import StoragePath, storage_path
from grcf_ray.train.interfaces import choose_interfaces, named_interfaces

PATIENCE_S = 900.0
"""For a node to answer: it may have to fetch the text encoder first."""
_SHARED_MEMORY = Path("/dev/shm")


@dataclasses.dataclass(frozen=True)
class Node:
    """A node as Ray knows it."""

    id: str
    host: str
    address: str
    resources: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.host} ({self.address})"


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a node has for the objects that its processes share, in bytes."""

    store: int
    """Ray's object store."""
    shared: int
    """What /dev/shm holds at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeCheck:
    """What is looked for on every node, as the driver has it."""

    versions: Mapping[str, str]
    backbone: str
    backbone_sha256: str | None
    """None where the trials have no text encoder."""
    folder: str
    """Beside the run: the driver's file is in it, and every node writes one."""
    word: str
    """What the driver's file says."""
    remedy: str
    """How the command is given another place."""
    interfaces: Mapping[str, str] | None
    """Those that are named for the workers of a trial to meet on; None where a trial has but one worker."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What was found on a node."""

    faults: Sequence[str]
    shared_memory: int = 0
    """What /dev/shm holds at most, in bytes."""


def cluster_nodes() -> list[Node]:
    """The nodes that are alive."""
    return [
        Node(node["NodeID"], node["NodeManagerHostname"], node["NodeManagerAddress"], dict(node["Resources"]))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def check_nodes(
    nodes: Sequence[Node],
    config: RunConfig,
    place: StoragePath,
    *,
    remedy: str = "a network disk, or --storage s3://bucket/runs",
) -> dict[str, Memory]:
    """What each of several nodes has for shared objects. ClusterError with all that keeps trials from running there.

    place: of the run. remedy: how the command is given another one.
    """
    if len(nodes) < 2:
        return {}
    # Torch, which whoever asks for the nodes alone has no use for.
    from grcf_ray.train.assemble import backbone_sha256

    console.progress(f"Looking at {len(nodes)} nodes")
    with _sign(place, remedy) as (folder, word):
        wanted = NodeCheck(
            versions=_versions(),
            backbone=config.model.backbone,
            backbone_sha256=backbone_sha256(config.model.backbone) if config.model.sees_text else None,
            folder=folder,
            word=word,
            remedy=remedy,
            interfaces=named_interfaces() if config.search.workers > 1 else None,
        )
        seen = _look_at(nodes, wanted)
    if faults := [f"{node}: {fault}" for node, found in zip(nodes, seen, strict=True) for fault in found.faults]:
        raise ClusterError(faults_message("not every node of the cluster can run trials:", faults))
    return {
        str(node): Memory(int(node.resources.get("object_store_memory", 0)), found.shared_memory)
        for node, found in zip(nodes, seen, strict=True)
    }


def check_memory(size: int, memory: Mapping[str, Memory]) -> None:
    """ClusterError where the features, so many bytes, have no room among the shared objects of some nodes."""
    lacks = {
        node: [(has.store, "Ray's object store", "ray start --object-store-memory=BYTES")] * (has.store < size)
        + [(has.shared, str(_SHARED_MEMORY), "a larger one (a container's --shm-size)")] * (has.shared < size)
        for node, has in memory.items()
    }
    faults = [
        f"{node}: {name} has {console.size(room)}; start it with {remedy}"
        for node, lacking in lacks.items()
        for room, name, remedy in lacking
    ]
    if faults:
        raise ClusterError(
            faults_message(f"the features take {console.size(size)} on every node, and there is not the room:", faults)
        )


def look(wanted: NodeCheck) -> Seen:
    """Look at the node that this process is on."""
    faults: list[str] = []
    for check in (_check_versions, _check_backbone, _check_storage, _check_interfaces):
        try:
            faults += check(wanted)
        except GrcfError as error:
            faults.append(str(error))
    room = shutil.disk_usage(_SHARED_MEMORY).total if _SHARED_MEMORY.exists() else 0
    return Seen(faults, room)


@contextlib.contextmanager
def _sign(place: StoragePath, remedy: str) -> Iterator[tuple[str, str]]:
    """A folder beside the run, with a file of the driver's in it; the folder's place, and what the file says."""
    folder, word = place.beside(f".grcf-look-{uuid.uuid4().hex}"), uuid.uuid4().hex
    try:
        try:
            (folder / "driver").write_text(word)
        except OSError as error:
            raise ConfigError(
                f"{place} cannot be written ({error.strerror or error}); give another place: {remedy}"
            ) from error
        yield folder.uri, word
    finally:
        with contextlib.suppress(OSError):
            folder.delete()


def _look_at(nodes: Sequence[Node], wanted: NodeCheck) -> list[Seen]:
    """What was found on each: the driver's own it looks at itself."""
    here = ray.get_runtime_context().get_node_id()
    task: Any = ray.remote(look)
    calls = {
        node.id: task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote(wanted)
        for node in nodes
        if node.id != here
    }
    own = look(wanted)
    if calls:
        ray.wait(list(calls.values()), num_returns=len(calls), timeout=PATIENCE_S)
    return [own if node.id == here else _answer(calls[node.id]) for node in nodes]


def _answer(call: ray.ObjectRef[Seen]) -> Seen:
    try:
        return ray.get(call, timeout=0)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(call, force=True)
        return Seen([f"has not answered in {PATIENCE_S:g} s; see ray status, or take it out of the cluster"])
    except ray.exceptions.RayTaskError as error:
        return Seen(
            [f"cannot run grcf_ray ({last_line(str(error))}); install it there, or submit with --working-dir ."]
        )
    except ray.exceptions.RayError as error:
        return Seen([f"cannot be reached ({last_line(str(error))})"])


def _check_versions(wanted: NodeCheck) -> list[str]:
    own, theirs = _versions(), wanted.versions
    differing = [f"{name} {own[name]} (the driver: {theirs[name]})" for name in theirs if own[name] != theirs[name]]
    return [f"has {', '.join(differing)}; install the same there"] if differing else []


def _check_backbone(wanted: NodeCheck) -> list[str]:
    from grcf_ray.train.assemble import backbone_sha256

    if wanted.backbone_sha256 is None or backbone_sha256(wanted.backbone) == wanted.backbone_sha256:
        return []
    return [f"backbone {wanted.backbone} has other weights there; copy the folder that the search reads"]


def _check_storage(wanted: NodeCheck) -> list[str]:
    folder = storage_path(wanted.folder)
    runs = wanted.folder.partition("?")[0].rpartition("/")[0]
    try:
        seen = (folder / "driver").read_bytes().decode() == wanted.word
    except FileNotFoundError:
        seen = False
    except OSError as error:
        return [f"cannot read {runs} ({error.strerror or reason(error)}), where runs go"]
    if not seen:
        return [f"does not see what is written to {runs}; give a place that all nodes share: {wanted.remedy}"]
    try:
        (folder / uuid.uuid4().hex).write_text(wanted.word)
    except OSError as error:
        return [f"cannot write to {runs} ({error.strerror or reason(error)}), where runs go"]
    return []


def _check_interfaces(wanted: NodeCheck) -> list[str]:
    if wanted.interfaces is not None:
        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        choose_interfaces(address, {**wanted.interfaces, **named_interfaces()})
    return []


def _versions() -> dict[str, str]:
    """What has to be the same on every node; builds of torch for a CPU and for GPUs may go together."""
    import numpy
    import torch
    import transformers

    return {
        "grcf_ray": f"{__version__}-{_source_sha256()[:8]}",
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "ray": ray.__version__,
    }


def _source_sha256() -> str:
    """Of the package's own files: checkouts of one version differ."""
    folder = Path(grcf_ray.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
