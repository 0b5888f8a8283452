"""Check every node of a cluster before training, and report all faults of all nodes together.

A cluster of one node needs no check: the driver has checked its own node.
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
from grcf_ray.errors import ClusterError, GrcfError, faults_message, reason
from grcf_ray.search.failures import last_line
from grcf_ray.search.lease import unwritable
from grcf_ray.storage import StoragePath, storage_path
from grcf_ray.train.interfaces import choose_interfaces, named_interfaces

PATIENCE_S = 900.0
"""Time for a node to answer: it may have to download the text encoder first."""
_SHARED_MEMORY = Path("/dev/shm")


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of the Ray cluster."""

    id: str
    host: str
    address: str
    resources: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.host} ({self.address})"


@dataclasses.dataclass(frozen=True)
class Memory:
    """A node's memory for objects that its processes share, in bytes."""

    store: int
    """Size of Ray's object store."""
    shared: int
    """Size of /dev/shm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeCheck:
    """The driver's values, which every node must match."""

    versions: Mapping[str, str]
    backbone: str
    backbone_sha256: str | None
    """None for trials without a text encoder."""
    folder: str
    """A folder beside the run that holds a file of the driver; every node writes another file there."""
    word: str
    """The content of the driver's file."""
    remedy: str
    """How to give the command another place, for messages."""
    interfaces: Mapping[str, str] | None
    """Network interfaces named for a trial's workers; None for trials of one worker."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """The result of checking a node."""

    faults: Sequence[str]
    shared_memory: int = 0
    """Size of /dev/shm in bytes."""


def cluster_nodes() -> list[Node]:
    """Return the nodes that are alive."""
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
    """Check every node; return the shared memory of each, empty for a single node.

    Raises ClusterError with all faults. place: of the run. remedy: how to give the command another place.
    """
    if len(nodes) < 2:
        return {}
    # Listing the nodes needs no torch.
    from grcf_ray.train.assemble import backbone_sha256

    console.progress(f"Checking {len(nodes)} nodes")
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
    if faults := [f"{node}: {fault}" for node, result in zip(nodes, seen, strict=True) for fault in result.faults]:
        raise ClusterError(faults_message("not every node of the cluster can run trials:", faults))
    return {
        str(node): Memory(int(node.resources.get("object_store_memory", 0)), result.shared_memory)
        for node, result in zip(nodes, seen, strict=True)
    }


def check_memory(size: int, memory: Mapping[str, Memory]) -> None:
    """Raise ClusterError if the features, `size` bytes, do not fit the shared memory of every node."""
    faults = [
        f"{node}: {name} has {console.size(room)}; start it with {remedy}"
        for node, has in memory.items()
        for room, name, remedy in (
            (has.store, "Ray's object store", "ray start --object-store-memory=BYTES"),
            (has.shared, _SHARED_MEMORY, "more shared memory (a container's --shm-size)"),
        )
        if room < size
    ]
    if faults:
        raise ClusterError(
            faults_message(f"the features need {console.size(size)} on every node; nodes with less:", faults)
        )


def look(wanted: NodeCheck) -> Seen:
    """Check the node of this process."""
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
    """Create a folder beside the run with a file of the driver in it; yield the folder's URI and the file's content."""
    folder, word = place.beside(f".grcf-look-{uuid.uuid4().hex}"), uuid.uuid4().hex
    try:
        try:
            (folder / "driver").write_text(word)
        except OSError as error:
            raise unwritable(place, error, remedy=remedy) from error
        yield folder.uri, word
    finally:
        with contextlib.suppress(OSError):
            folder.delete()


def _look_at(nodes: Sequence[Node], wanted: NodeCheck) -> list[Seen]:
    here = ray.get_runtime_context().get_node_id()
    task: Any = ray.remote(look)
    calls = {node.id: task.options(**_on(node)).remote(wanted) for node in nodes if node.id != here}
    local = look(wanted)
    if calls:
        ray.wait(list(calls.values()), num_returns=len(calls), timeout=PATIENCE_S)
    return [local if node.id == here else _answer(calls[node.id]) for node in nodes]


def have_bfloat16(nodes: Sequence[Node], *, gpu: bool) -> bool:
    """Return whether the GPU, or else the CPU, of every node computes in bfloat16 natively."""
    from grcf_ray.train.precision import native_bfloat16

    here = ray.get_runtime_context().get_node_id()
    # A process that has used CUDA occupies memory of the GPU until it ends.
    remote: Any = ray.remote(max_calls=1)
    task = remote(native_bfloat16)
    calls = [task.options(**_on(node)).remote(gpu=gpu) for node in nodes if gpu or node.id != here]
    try:
        return all(ray.get(calls, timeout=PATIENCE_S)) and (gpu or native_bfloat16(gpu=False))
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"cannot ask every node whether it computes in bfloat16 ({last_line(str(error))}); repeat the command, or "
            "set the precision: --set train.precision=float32"
        ) from error


def _on(node: Node) -> dict[str, Any]:
    """Return the options of a task that runs on a node beside its trials."""
    return {
        "num_cpus": 0,
        "max_retries": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False),
    }


def _answer(call: ray.ObjectRef[Seen]) -> Seen:
    try:
        return ray.get(call, timeout=0)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(call, force=True)
        return Seen([f"no answer within {PATIENCE_S:g} s; check it with `ray status`, or remove it from the cluster"])
    except ray.exceptions.RayTaskError as error:
        return Seen(
            [f"cannot run grcf_ray ({last_line(str(error))}); install it on that node, or submit with --working-dir ."]
        )
    except ray.exceptions.RayError as error:
        return Seen([f"cannot be reached ({last_line(str(error))})"])


def _check_versions(wanted: NodeCheck) -> list[str]:
    local = _versions()
    differing = [
        f"{name} {local[name]} (driver: {version})"
        for name, version in wanted.versions.items()
        if local[name] != version
    ]
    return [f"has {', '.join(differing)}; install the driver's versions there"] if differing else []


def _check_backbone(wanted: NodeCheck) -> list[str]:
    from grcf_ray.train.assemble import backbone_sha256

    if wanted.backbone_sha256 is None or backbone_sha256(wanted.backbone) == wanted.backbone_sha256:
        return []
    return [f"its weights of backbone {wanted.backbone} differ from the driver's; copy the driver's folder to it"]


def _check_storage(wanted: NodeCheck) -> list[str]:
    folder = storage_path(wanted.folder)
    runs = wanted.folder.partition("?")[0].rpartition("/")[0]
    try:
        seen = (folder / "driver").read_bytes().decode() == wanted.word
    except FileNotFoundError:
        seen = False
    except OSError as error:
        return [f"cannot read {runs}, the folder of runs ({error.strerror or reason(error)})"]
    if not seen:
        return [f"does not see files written to {runs}; use a folder that all nodes share: {wanted.remedy}"]
    try:
        (folder / uuid.uuid4().hex).write_text(wanted.word)
    except OSError as error:
        return [f"cannot write to {runs}, the folder of runs ({error.strerror or reason(error)})"]
    return []


def _check_interfaces(wanted: NodeCheck) -> list[str]:
    if wanted.interfaces is not None:
        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        choose_interfaces(address, {**wanted.interfaces, **named_interfaces()})
    return []


def _versions() -> dict[str, str]:
    """Return the versions that every node must share; CPU and GPU builds of one torch release may be mixed."""
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
    """Return a hash of the package's source files, because checkouts of the same version can differ."""
    folder = Path(grcf_ray.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
