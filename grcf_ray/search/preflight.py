"""Check before a search how many trials fit the cluster and the disk, and refuse a search that can never run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from grcf_ray.cluster import NodeType

from grcf_ray import console
from grcf_ray.config import NEEDS_TEXT, ModelConfig, RunConfig
from grcf_ray.data.schema import MODALITIES, TableInfo
from grcf_ray.errors import ClusterError, ConfigError
from grcf_ray.search.host_memory import meta_model, parameter_counts
from grcf_ray.search.nodes import Memory, Node, cluster_nodes, have_bfloat16
from grcf_ray.search.space import Choice, Space
from grcf_ray.storage import StoragePath
from grcf_ray.train.curve import STAGES
from grcf_ray.train.optimizer import parameter_groups

_KIND = "accelerator_type:"
"""Prefix of the resource that names a node's kind of GPU."""
CPU_PARAMETERS = 60 * 10**6
"""Largest number of trainable parameters for CPUs, unless the user asks for CPUs."""
_COUNT_S = 5.0
"""Seconds between two counts of a cluster's nodes."""
_REPORT_BYTES = 24 * 10**6
"""Room for the report page, twice while it is replaced (6 MB each), and for TensorBoard files."""


@dataclasses.dataclass(frozen=True)
class Capacity:
    """The cluster's resources, and how many trials fit."""

    nodes: int
    cpus: float
    gpus: float
    concurrent: int
    """Trials at a time, now."""
    most: int
    """Trials at a time once the autoscaler has added all nodes that it can."""
    notes: tuple[str, ...]
    """Notes for the user before the search starts."""
    fitting: Room
    """Counts the trials that fit when the cluster changes."""
    memory: Mapping[str, Memory] = dataclasses.field(default_factory=dict)
    """Shared memory by node; empty on a single node."""


def resolve_gpus(config: RunConfig, nodes: Sequence[Node], types: Sequence[NodeType]) -> float:
    """Return the GPUs per worker: the setting's; for `auto` 1 if there is a GPU or the autoscaler can add one."""
    gpus, device = config.search.gpus_per_worker, config.train.device
    if gpus != "auto":
        return gpus
    resources = [*(node.resources for node in nodes), *(kind.resources for kind in types)]
    anywhere = any(node.get("GPU", 0.0) >= 1 for node in resources)
    return float(device == "cuda" or (device == "auto" and anywhere))


def resolve_precision(config: RunConfig, nodes: Sequence[Node]) -> str:
    """Return the precision: the setting's; for `auto` bfloat16 if every node for trials has it, else float32.

    A node of its kind that the autoscaler adds later cannot be asked. Without any node yet, GPUs count as able.
    """
    if config.train.precision != "auto":
        return config.train.precision
    gpu = config.search.gpus > 0 and config.train.device != "cpu"
    usable = [node for node in nodes if fitting(node.resources, config.search.worker_resources)]
    able = have_bfloat16(usable, gpu=gpu) if usable else gpu
    return "bfloat16" if able else "float32"


def check_parameters(config: RunConfig, info: TableInfo, commands: Mapping[str, str]) -> None:
    """Raise ClusterError if training takes too long on CPUs: more than 60 million trainable parameters.

    commands: that train on GPUs, and on CPUs nevertheless, by `gpus` and `cpus`.
    """
    trained, _ = parameter_counts(meta_model(config, info))
    if trained > CPU_PARAMETERS:
        raise ClusterError(
            f"the cluster has no GPU, and the model has {trained / 1e6:.0f} million trainable parameters; on CPUs a "
            f"search trains at most {CPU_PARAMETERS / 1e6:.0f} million unless you ask for it. On a cluster with GPUs "
            f"run {commands['gpus']}; to go on with CPUs run {commands['cpus']}; or freeze layers of the text encoder "
            "(model.frozen_layers), or choose a smaller one (--backbone)"
        )


def check_modalities(space: Space, info: TableInfo) -> None:
    """Raise ConfigError if the modalities that a space names do not suit the data or the features of one run."""
    # The direct baseline searches the modalities in Stage 2.
    dimension = {**space.stage1, **space.stage2}.get("model.modalities")
    config = space.config()
    named = dimension.choices if isinstance(dimension, Choice) else (config.model.modalities,)
    for name in MODALITIES:
        if name not in info.dims and any(name in str(choice) for choice in named):
            raise ConfigError(
                f"{space.source}: model.modalities names {name}, which the data lack; "
                "use all modalities of the data: --set model.modalities=all"
            )
    without = [choice for choice in named if not ModelConfig(modalities=choice).sees_text]  # type: ignore[arg-type]
    if without and info.task == "classification":
        raise ConfigError(f"{space.source}: {NEEDS_TEXT.format(without[0])}")
    if 0 < len(without) < len(named):
        raise ConfigError(
            f"{space.source}: model.modalities mixes choices with text and one without, {without[0]}. "
            "The features of a run are built with text or without it; use one run for each"
        )
    if without and config.search.ridge_baseline:
        raise ConfigError(
            f"search.ridge_baseline needs text vectors, but model.modalities = {without[0]} has no text; "
            "turn the baseline off: --set search.ridge_baseline=false"
        )


def idle_rates(space: Space, info: TableInfo) -> list[str]:
    """Return the searched learning rates that no trained parameter has, such as those of frozen layers."""
    config = space.config()
    model = meta_model(config, info)
    used = {f"stage{stage}.{group}_lr" for stage in STAGES for group in parameter_groups(model, config, stage)}
    rates = [path for path in {**space.stage1, **space.stage2} if path.startswith("stage") and path.endswith("_lr")]
    return [path for path in rates if path not in used]


def find_capacity(
    nodes: Sequence[Node],
    config: RunConfig,
    budgets: Sequence[int],
    *,
    types: Sequence[NodeType] = (),
    worker_bytes: int = 0,
) -> Capacity:
    """Return how many trials run at a time. Raises ClusterError with the missing resource if no trial fits any node.

    budgets: the trials of each stage. types: of the nodes that the autoscaler can add. worker_bytes: host memory of a
    worker; 0 for no check. A trial's workers share a node if they fit, else they use several nodes.
    """
    search = config.search
    if search.workers > config.pairs.groups_per_step:
        raise ConfigError(
            f"--workers {search.workers}: a step has pairs.groups_per_step = {config.pairs.groups_per_step} groups; "
            "use at most as many workers"
        )
    wanted, have = search.worker_resources, [node.resources for node in nodes]
    free = Room(wanted, search.workers, types)
    if free.most(have) == 0:
        raise ClusterError(_lack(have, wanted, search.workers, free.processes(have)))
    room = Room({**wanted, "memory": float(worker_bytes)}, search.workers, types) if worker_bytes else free
    if room.most(have) == 0:
        raise ClusterError(_memory_lack(have, room, worker_bytes))
    notes = []
    cpus, gpus = (sum(node.get(name, 0.0) for node in have) for name in ("CPU", "GPU"))
    if gpus and not search.gpus:
        notes.append(f"{gpus:g} GPU(s) stay idle; to use them, give --gpus-per-worker 1, or 0.5 for half a GPU")
    # A given number of trials is the user's to judge.
    scarce = not search.concurrent and (room(have), room.most(have)) != (free(have), free.most(have))
    chosen = room if scarce else free
    if scarce:
        notes.append(
            f"memory for {room.most(have)} trials at a time, CPUs and GPUs for {free.most(have)}: a trial needs about "
            f"{console.size(worker_bytes * search.workers)}; --concurrent overrides this"
        )
    most = chosen.most(have)
    concurrent = min(search.concurrent, most) if search.concurrent else chosen(have)
    if search.concurrent and search.concurrent > most:
        notes.append(f"--concurrent {search.concurrent}: only {most} trials fit at a time, so {most} will run")
    if most > chosen(have):
        notes.append(f"the autoscaler can add nodes, for up to {most} trials at a time")
    most = concurrent if search.concurrent else most
    if 3 * most > min(budgets) and most > 1:
        notes.append(
            f"{most} trials at a time with a budget of {min(budgets)}: the search is close to random; "
            "raise the number of trials or lower --concurrent"
        )
    return Capacity(len(nodes), cpus, gpus, concurrent, most, tuple(notes), chosen)


@dataclasses.dataclass(frozen=True)
class Room:
    """Count the trials that fit a cluster."""

    resources: Mapping[str, float]
    """Resources of a worker, under Ray's names."""
    workers: int = 1
    """Workers of a trial."""
    types: Sequence[NodeType] = ()
    """Kinds of nodes that the autoscaler can add."""

    def processes(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Return how many workers fit the nodes, given by their resources."""
        return sum(fitting(node, self.resources) for node in nodes)

    def most(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Return how many trials fit once the autoscaler has added all nodes that it can."""
        added = sum(kind.most * fitting(kind.resources, self.resources) for kind in self.types)
        return max(self.processes(nodes), added) // self.workers

    def __call__(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Return how many trials to run on the nodes: as many as fit, but at least one.

        If the autoscaler can add nodes, it is one more: a trial that waits makes it add a node. More waiting trials
        would have their settings proposed too early.
        """
        present = self.processes(nodes) // self.workers
        return max(1, min(present + 1, self.most(nodes)), present)

    def follow(self) -> Callable[[], int]:
        """Return a function that counts the trials for the joined cluster's present nodes, every few seconds."""
        due, count = 0.0, 1

        def number() -> int:
            nonlocal due, count
            if time.monotonic() >= due:
                count = self([node.resources for node in cluster_nodes()])
                due = time.monotonic() + _COUNT_S
            return count

        return number


def fitting(node: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """Return how many workers with the wanted resources fit a node with its resources."""
    fits = []
    for name, amount in wanted.items():
        if name == "memory" and name not in node:
            # The memory of a node that the autoscaler can add is not always known.
            continue
        have = node.get(name, 0.0)
        # A fraction of a GPU lies on one GPU: two GPUs hold four trials of 0.4, not five.
        units, unit = (math.floor(have), 1.0) if name == "GPU" and amount < 1 else (1, have)
        fits.append(units * math.floor(unit / amount + 1e-9))
    return min(fits)


def _memory_lack(nodes: Sequence[Mapping[str, float]], room: Room, needed: int) -> str:
    resources = [*nodes, *(kind.resources for kind in room.types)]
    most = max(node["memory"] for node in resources if "memory" in node)
    return (
        f"a trial's {room.workers} worker(s) need about {console.size(needed)} of memory each, but a node has at most "
        f"{console.size(int(most))} for workers, and {room.processes(nodes)} fit. Freeze layers of the text encoder "
        "(model.frozen_layers), choose a smaller one (--backbone), lower pairs.activation_tokens, or add a node with "
        "more memory"
    )


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
            "--concurrent, --finalists or search.ensemble"
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
    Finalists are weights alone; so are the models of the ensemble, the winner among them, and both arms' models under
    each seed, which include the frozen layers.
    """
    width = 8 if config.train.precision == "float64" else 4
    trained, whole = (width * number for number in parameter_counts(meta_model(config, info)))
    finalists, ensemble = config.search.finalists, config.search.ensemble
    # With overlapping stages, both have trials that may still be chosen; retrainings come after the search.
    chosen = max(finalists, 2 * seeds) + ensemble
    return (
        trained * ((3 * 3 + 4) * concurrent + 2 * chosen)
        + trained * (finalists + 2 * seeds)
        + whole * (ensemble + 2 * seeds)
    )
