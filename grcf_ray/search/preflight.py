"""Preflight: what the cluster has, how many trials fit, and what can never run."""

from __future__ import annotations

import dataclasses
import math
import os
import socket
from collections.abc import Sequence
from typing import Any

from grcf_ray.config import RunConfig
from grcf_ray.errors import ClusterError, ConfigError

__all__ = ["Room", "connect", "find_room"]


@dataclasses.dataclass(frozen=True)
class Room:
    """How trials fit the cluster."""

    nodes: int
    cpus: float
    gpus: float
    concurrent: int
    """Trials at a time."""
    notes: tuple[str, ...]
    """What the user should know before the search starts."""


def connect() -> None:
    """Join the cluster that this process was started for, else start one on this machine."""
    # Read by Ray when it is imported. Trials' relative paths are the user's; Tune's own printing is replaced by ours.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    import ray

    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        quiet |= {"address": "local", "include_dashboard": False}
    try:
        if address:
            _knock(address)
        ray.init(**quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(f"no Ray cluster answers at RAY_ADDRESS={address or '(unset)'}: {error}") from error


def _knock(address: str) -> None:
    """OSError at once where nobody listens: Ray itself waits for minutes, or ends the process."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def find_room(nodes: Sequence[dict[str, float]], config: RunConfig, budgets: Sequence[int]) -> Room:
    """How many trials run at a time. ClusterError names what a trial lacks on every node.

    nodes: each node's resources as Ray names them. budgets: the trials of each stage.
    """
    search = config.search
    wanted = {"CPU": float(search.cpus_per_worker), "GPU": search.gpus_per_worker}
    if search.gpus_per_worker > 1 and search.gpus_per_worker % 1:
        raise ConfigError(f"--gpus-per-worker {search.gpus_per_worker:g}: a trial takes whole GPUs, or a share of one")
    room = sum(_fitting(node, wanted) for node in nodes)
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    if room == 0:
        raise ClusterError(_lack(nodes, wanted))
    notes = []
    if gpus and not search.gpus_per_worker:
        notes.append(f"{gpus:g} GPU(s) stay idle: --gpus-per-worker 1 gives one to each trial, 0.5 half of one")
    concurrent = search.concurrent or room
    if concurrent > room:
        notes.append(f"--concurrent {concurrent}: there is room for {room} trials at a time, so {room} will run")
        concurrent = room
    if 3 * concurrent > min(budgets) and concurrent > 1:
        notes.append(
            f"{concurrent} trials at a time with a budget of {min(budgets)}: the search is close to random; "
            "raise the trials or lower --concurrent"
        )
    return Room(len(nodes), cpus, gpus, concurrent, tuple(notes))


def _fitting(node: dict[str, float], wanted: dict[str, float]) -> int:
    """Trials that fit a node."""
    fits = []
    for name, amount in wanted.items():
        have = node.get(name, 0.0)
        # A share of a GPU lies on one GPU: two of them hold four trials of 0.4, not five.
        units, unit = (math.floor(have), 1.0) if name == "GPU" and amount < 1 else (1, have)
        fits += [units * math.floor(unit / amount + 1e-9)] if amount else []
    return min(fits)


def _lack(nodes: Sequence[dict[str, float]], wanted: dict[str, float]) -> str:
    asked = " and ".join(f"{amount:g} {name}{'s' if amount != 1 else ''}" for name, amount in wanted.items() if amount)
    most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in wanted}
    lacks = [
        f"no node has more than {most[name]:g} {name}{'s' if most[name] != 1 else ''}"
        if most[name]
        else f"no node has a {name}"
        for name, amount in wanted.items()
        if most[name] < amount
    ]
    found = "; ".join(lacks) or "no node has both"
    return (
        f"a trial asks for {asked} on one node, and {found} ({len(nodes)} node(s)). Lower --cpus-per-worker or "
        "--gpus-per-worker, or add a node that has them"
    )
