"""Time a few training steps of concurrent trials, to choose how many trials to run on a node. Saves nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grcf_ray.cluster  # noqa: F401  before Ray

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.data.features import Features
from grcf_ray.errors import ClusterError, ConfigError
from grcf_ray.search.failures import last_line
from grcf_ray.search.nodes import cluster_nodes
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.stage import StageLoop, choose_device, use_deterministic_torch

SECONDS = 2.0
"""Approximate length of a timed run, which takes at least one step."""
RUNS = 3
START_S = 300.0
"""Time limit for processes to start, load and take a first step."""
ENOUGH = 0.95
"""Acceptable share of the best throughput: with fewer trials at a time, each proposal knows more results."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """A number of concurrent trials on one node, or on one of its GPUs, and their throughput."""

    trials: int
    cpus: int
    """CPUs and torch threads of each trial."""
    gpus: float
    """Fraction of the GPU for each trial; 0 on CPUs."""
    rate: float | None = None
    """Utterances encoded per second by all trials together; None if the trials failed."""
    fault: str | None = None
    """Why the trials failed."""


class WorkerSet:
    """Processes on one node, each with the model of a trial, placed as in a search.

    Methods raise ClusterError if a process dies or cannot train.
    """

    def __init__(
        self, features: ray.ObjectRef[Features], config: RunConfig, way: Placement, *, node_id: str | None = None
    ) -> None:
        options: dict[str, Any] = {"num_cpus": way.cpus, "num_gpus": way.gpus, "max_restarts": 0}
        if node_id is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
        actor: Any = ray.remote(_Member)
        self._members: list[Any] = [
            actor.options(**options).remote(features, flatten(config), way.cpus, way.gpus) for _ in range(way.trials)
        ]

    def run(self, steps: int) -> tuple[float, int]:
        """Take steps in every process; return wall-clock seconds and utterances encoded by all."""
        start = time.perf_counter()
        encoded = sum(_results([member.run.remote(steps) for member in self._members]))
        return time.perf_counter() - start, encoded

    def __enter__(self) -> WorkerSet:
        """Wait until every process has taken a first step, which loads the model and allocates memory.

        Raises ClusterError if some processes do not start, for example because other work occupies the node.
        """
        try:
            first = [member.run.remote(1) for member in self._members]
            ready, waiting = ray.wait(first, num_returns=len(first), timeout=START_S)
            if waiting:
                raise ClusterError(
                    f"only {len(ready)} of {len(self._members)} processes started within {START_S:g} s. Check the "
                    "node's other work: ray status"
                )
            _results(ready)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        for member in self._members:
            ray.kill(member)


class _Member:
    """A process that trains Stage 1 at the starting point."""

    def __init__(self, features: Features, settings: dict[str, Any], threads: int, gpu: float) -> None:
        use_deterministic_torch(threads)
        config = build_config(settings)
        seen = select_modalities(features, config.model.modalities)
        self._loop = StageLoop(
            initial_model(config.model, seen, seed=config.seed),
            seen,
            config,
            1,
            seed=config.seed,
            protocol="mosi",
            device=choose_device(config.train, granted=gpu),
        )
        self._loop.model.train()
        self._steps = itertools.chain.from_iterable(self._loop.steps() for _ in itertools.count())

    def run(self, steps: int) -> int:
        """Take training steps with the optimizer; return the number of utterances encoded."""
        encoded = 0
        for step in itertools.islice(self._steps, steps):
            self._loop.take_step(step)
            encoded += len(step.utterance_U)
        if self._loop.device.type == "cuda":
            torch.cuda.synchronize(self._loop.device)
        return encoded


def calibrate(features: Features, config: RunConfig, say: Callable[[str], None]) -> list[Placement]:
    """Return the throughput of a single trial and of growing numbers of concurrent trials.

    On the node with most CPUs, times one GPU if workers use GPUs, else all CPUs. Raises ConfigError for trials of
    several workers, ClusterError without a node that can hold a trial.
    """
    if config.search.workers > 1:
        raise ConfigError("--calibrate times trials of one worker each; remove --workers")
    fitting = [node for node in cluster_nodes() if node.resources.keys() >= config.search.worker_resources.keys()]
    if not fitting:
        raise ClusterError("--calibrate times trials on a node, but no node can hold one yet. Wait for the nodes")
    node = max(fitting, key=lambda node: node.resources.get("CPU", 0.0))
    shared = ray.put(features)
    placements: list[Placement] = []
    for way in ways_on(node.resources, config):
        say(f"{way.trials} at a time, {way.cpus} CPU{'s' * (way.cpus > 1)} each")
        try:
            with WorkerSet(shared, config, way, node_id=node.id) as workers:
                steps = max(1, math.ceil(SECONDS / workers.run(1)[0]))
                rates = [encoded / seconds for seconds, encoded in (workers.run(steps) for _ in range(RUNS))]
            placements.append(dataclasses.replace(way, rate=statistics.median(rates)))
        except ClusterError as error:
            placements.append(dataclasses.replace(way, fault=str(error)))
            if way.gpus:
                # The GPU ran out of memory, and more trials would need more.
                break
    return placements


def ways_on(node: Mapping[str, float], config: RunConfig) -> list[Placement]:
    """Return the placements to time on a node with these resources, one trial first; on one GPU if workers use GPUs."""
    cpus = math.floor(node.get("CPU", 0.0))
    if gpus := (math.floor(node.get("GPU", 0.0)) if config.search.gpus else 0):
        each = config.search.cpus_per_worker
        # The trials on the other GPUs need CPUs too.
        return [Placement(count, each, share(count)) for count in (1, 2, 3, 4, 6, 8) if count * each <= cpus // gpus]
    threads = [2**power for power in range(max(1, cpus).bit_length()) if 2**power <= cpus]
    together = [Placement(cpus // each, each, 0.0) for each in threads]
    return [Placement(1, 1, 0.0), *(way for way in together if (way.trials, way.cpus) != (1, 1))]


def share(count: int) -> float:
    """Return the GPU fraction of each of `count` trials, rounded down to three digits."""
    return math.floor(1000 / count) / 1000


def suggestion(ways: Sequence[Placement]) -> Placement | None:
    """Return the placement with fewest trials that nearly reaches the best throughput; None if none ran."""
    rates = [way.rate for way in ways if way.rate is not None]
    enough = [way for way in ways if way.rate is not None and way.rate >= ENOUGH * max(rates)]
    return min(enough, key=lambda way: (way.trials, way.cpus), default=None)


def _results(calls: Sequence[Any]) -> list[int]:
    try:
        return list(ray.get(list(calls)))
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a training process died: {last_line(str(error))}") from error
