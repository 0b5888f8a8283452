"""Check before a search how many trials fit the cluster and the disk, and refuse a search that can never run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from grcf_ray import console
from grcf_ray.config import RunConfig
from grcf_ray.data.schema import TableInfo
from grcf_ray.errors import ClusterError, ConfigError
from grcf_ray.model.build import build_model
from grcf_ray.model.pretrained import backbone_config, backbone_from_config
from grcf_ray.search.nodes import Memory, Node
from grcf_ray.storage import StoragePath

_KIND = "accelerator_type:"
"""Prefix of the resource that names a node's kind of GPU."""
_REPORT_BYTES = 24 * 10**6
"""Room for the report page, twice while it is replaced (6 MB each), and for TensorBoard files."""


@dataclasses.dataclass(frozen=True)
class Capacity:
    """The cluster's resources, and how many trials fit."""

    nodes: int
    cpus: float
    gpus: float
    concurrent: int
    """Trials at a time."""
    notes: tuple[str, ...]
    """Notes for the user before the search starts."""
    memory: Mapping[str, Memory] = dataclasses.field(default_factory=dict)
    """Shared memory by node; empty on a single node."""


def find_capacity(nodes: Sequence[Node], config: RunConfig, budgets: Sequence[int]) -> Capacity:
    """Return how many trials run at a time. Raises ClusterError with the missing resource if no trial fits any node.

    budgets: the trials of each stage. A trial's workers share a node if they fit, else they use several nodes.
    """
    search = config.search
    if search.workers > config.pairs.groups_per_step:
        raise ConfigError(
            f"--workers {search.workers}: a step has pairs.groups_per_step = {config.pairs.groups_per_step} groups; "
            "use at most as many workers"
        )
    wanted, have = search.worker_resources, [node.resources for node in nodes]
    if search.gpus_per_worker > 1 and search.gpus_per_worker % 1:
        raise ConfigError(
            f"--gpus-per-worker {search.gpus_per_worker:g}: give a whole number of GPUs, or a fraction below 1"
        )
    processes = sum(fitting(node, wanted) for node in have)
    room = processes // search.workers
    cpus, gpus = (sum(node.get(name, 0.0) for node in have) for name in ("CPU", "GPU"))
    if room == 0:
        raise ClusterError(_lack(have, wanted, search.workers, processes))
    notes = []
    if gpus and not search.gpus_per_worker:
        notes.append(f"{gpus:g} GPU(s) stay idle; to use them, give --gpus-per-worker 1, or 0.5 for half a GPU")
    concurrent = search.concurrent or room
    if concurrent > room:
        notes.append(f"--concurrent {concurrent}: only {room} trials fit at a time, so {room} will run")
        concurrent = room
    if 3 * concurrent > min(budgets) and concurrent > 1:
        notes.append(
            f"{concurrent} trials at a time with a budget of {min(budgets)}: the search is close to random; "
            "raise the number of trials or lower --concurrent"
        )
    return Capacity(len(nodes), cpus, gpus, concurrent, tuple(notes))


def fitting(node: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """Return how many workers with the wanted resources fit a node with its resources."""
    fits = []
    for name, amount in wanted.items():
        have = node.get(name, 0.0)
        # A fraction of a GPU lies on one GPU: two GPUs hold four trials of 0.4, not five.
        units, unit = (math.floor(have), 1.0) if name == "GPU" and amount < 1 else (1, have)
        fits.append(units * math.floor(unit / amount + 1e-9))
    return min(fits)


def _lack(nodes: Sequence[Mapping[str, float]], wanted: Mapping[str, float], workers: int, processes: int) -> str:
    if processes:
        return f"a trial asks for {workers} workers, but only {processes} fit. Lower --workers, or add a node"
    asked = " and ".join(_named(name, amount) for name, amount in wanted.items())
    most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in wanted}
    lacks = [
        f"no node has more than {_named(name, most[name])}" if most[name] else f"no node has {_named(name)}"
        for name, amount in wanted.items()
        if most[name] < amount
    ]
    missing = "; ".join(lacks) or "no node has them together"
    kinds = sorted({name.removeprefix(_KIND) for node in nodes for name in node if name.startswith(_KIND)})
    gpus = f"; kinds of GPU: {', '.join(kinds) or 'none'}" if any(name.startswith(_KIND) for name in wanted) else ""
    return (
        f"a trial asks for {asked} on one node, but {missing} ({len(nodes)} node(s){gpus}). Lower --cpus-per-worker or "
        "--gpus-per-worker, or add a node that has them"
    )


def _named(name: str, amount: float | None = None) -> str:
    if name.startswith(_KIND):
        return f"a GPU of kind {name.removeprefix(_KIND)}"
    return f"a {name}" if amount is None else f"{amount:g} {name}{'s' if amount != 1 else ''}"


def check_disk(place: StoragePath, config: RunConfig, info: TableInfo, *, concurrent: int, seeds: int) -> None:
    """Raise ClusterError if the run's disk lacks room; object storage is not checked."""
    if place.local is None:
        return
    folder = next(path for path in (place.local, *place.local.parents) if path.exists())
    needed = needed_bytes(config, info, concurrent=concurrent, seeds=seeds) + _REPORT_BYTES - _held_bytes(place.local)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ClusterError(
            f"{place}: the search needs about {console.size(needed)} more for checkpoints and report, but its disk "
            f"has {console.size(free)} left. Free some space, give another place (--storage DIR), or lower "
            "--concurrent or --finalists"
        )


def _held_bytes(run: Path) -> int:
    """Return the bytes of all files of a run, counting hard links once."""
    sizes = {}
    for folder, _, names in os.walk(run):
        for name in names:
            # Another search may be replacing files of the run.
            with contextlib.suppress(FileNotFoundError):
                stat = Path(folder, name).stat()
                sizes[stat.st_ino] = stat.st_size
    return sum(sizes.values())


def needed_bytes(config: RunConfig, info: TableInfo, *, concurrent: int, seeds: int) -> int:
    """Return the most bytes that the checkpoints and models of a search take at any time.

    A running trial has three checkpoints with both Adam moments (two, and one being written) and four of weights alone.
    A finished trial that may still be chosen has two of weights alone: those of the best epoch and of the last.
    Finalists are weights alone; so are the winner and both arms' models under each seed, which include the frozen
    layers.
    """
    with torch.device("meta"):
        model = build_model(
            backbone_from_config(backbone_config(config.model.backbone)) if config.model.sees_text else None,
            config.model,
            task=info.task,
            audio_dim=info.audio_dim,
            vision_dim=info.vision_dim,
            half_range=1.0,
        )
    width = 8 if config.train.precision == "float64" else 4
    trained = width * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    whole = width * sum(parameter.numel() for parameter in model.parameters())
    chosen = max(config.search.finalists, 2 * seeds)
    return (
        trained * ((3 * 3 + 4) * concurrent + 2 * chosen)
        + trained * (config.search.finalists + 2 * seeds)
        + whole * (1 + 2 * seeds)
    )
