"""How many trials a node carries side by side: a few steps of them, timed before a search. Nothing is saved."""

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
"""A timed run takes about so long, or one step."""
RUNS = 3
START_S = 300.0
"""For processes to start, load and take a first step."""
ENOUGH = 0.95
"""Share of the best throughput that will do: the fewer trials at a time, the more each proposal knows."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Trials side by side on one node, or on one GPU of it."""

    trials: int
    cpus: int
    """CPUs, and torch threads, of each."""
    gpus: float
    """Share of the GPU of each; 0 on CPUs."""
    rate: float | None = None
    """Utterances encoded per second, by all together; None where they did not run."""
    fault: str | None = None
    """Why they did not."""


class WorkerSet:
    """Processes with a trial's model each, on one node, as a search would place them.

    ClusterError where one of them dies, or cannot train.
    """

    def __init__(
        self, features: ray.ObjectRef[Features], config: RunConfig, way: Placement, *, node_id: str | None = None
    ) -> None:
        options: dict[str, Any] = {"num_cpus": way.cpus, "num_gpus": way.gpus, "max_restarts": 0}
        if node_id is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
        actor: Any = ray.remote(_Member)
        self._members: list[Any] = [
            actor.options(**options).remote(features, flatten(config), way.cpus, way.gpus > 0)
            for _ in range(way.trials)
        ]

    def run(self, steps: int, *, members: int | None = None) -> tuple[float, int]:
        """Wall-clock seconds in which each of the first `members` takes so many steps; the utterances of them all."""
        chosen = self._members[:members]
        start = time.perf_counter()
        encoded = sum(_results([member.run.remote(steps) for member in chosen]))
        return time.perf_counter() - start, encoded

    def __enter__(self) -> WorkerSet:
        """Once all of them have taken a step, which loads and allocates.

        ClusterError where they do not all start: others may hold what the node has.
        """
        try:
            first = [member.run.remote(1) for member in self._members]
            ready, waiting = ray.wait(first, num_returns=len(first), timeout=START_S)
            if waiting:
                raise ClusterError(
                    f"only {len(ready)} of {len(self._members)} processes started within {START_S:g} s; is the node "
                    "busy with other work?"
                )
            _results(ready)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Their processes end."""
        for member in self._members:
            ray.kill(member)


class _Member:
    """A Stage 1 at the starting point."""

    def __init__(self, features: Features, settings: dict[str, Any], threads: int, gpu: bool) -> None:
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
        self._loop.network.train()
        self._steps = itertools.chain.from_iterable(self._loop.steps() for _ in itertools.count())

    def run(self, steps: int) -> int:
        """So many steps, the optimizer's part with them; the utterances that were encoded."""
        encoded = 0
        for step in itertools.islice(self._steps, steps):
            self._loop.take_step(step)
            encoded += len(step.utterance_U)
        if self._loop.device.type == "cuda":
            torch.cuda.synchronize(self._loop.device)
        return encoded


def calibrate(features: Features, config: RunConfig, say: Callable[[str], None]) -> list[Placement]:
    """Throughput of one trial after the other, and of ever more of them at a time.

    On a node with GPUs of one GPU, else of all CPUs of the node that has the most. Several workers a trial are not
    timed: ConfigError.
    """
    if config.search.workers > 1:
        raise ConfigError("--calibrate times trials of one worker each; leave --workers out")
    fitting = [node for node in cluster_nodes() if node.resources.keys() >= config.search.worker_resources.keys()]
    node = max(fitting, key=lambda node: (node.resources.get("GPU", 0.0) > 0, node.resources.get("CPU", 0.0)))
    shared = ray.put(features)
    found: list[Placement] = []
    for way in ways_on(node.resources, config):
        say(f"{way.trials} at a time, {way.cpus} CPU{'s' * (way.cpus > 1)} each")
        try:
            with WorkerSet(shared, config, way, node_id=node.id) as crew:
                found.append(dataclasses.replace(way, rate=_rate(crew)))
        except ClusterError as error:
            found.append(dataclasses.replace(way, fault=str(error)))
            if way.gpus:
                # The memory of the GPU is spent: more of them need more.
                break
    return found


def ways_on(node: Mapping[str, float], config: RunConfig) -> list[Placement]:
    """What can be tried on a node with these resources, one trial first. With GPUs, on one of them."""
    cpus = math.floor(node.get("CPU", 0.0))
    if gpus := (0 if config.train.device == "cpu" else math.floor(node.get("GPU", 0.0))):
        each = config.search.cpus_per_worker
        # The other GPUs' trials need CPUs as well.
        return [Placement(count, each, share(count)) for count in (1, 2, 3, 4, 6, 8) if count * each <= cpus // gpus]
    threads = [2**power for power in range(max(1, cpus).bit_length()) if 2**power <= cpus]
    together = [Placement(cpus // each, each, 0.0) for each in threads]
    return [Placement(1, 1, 0.0), *(way for way in together if (way.trials, way.cpus) != (1, 1))]


def share(count: int) -> float:
    """Of a GPU for each of so many trials, short enough to be typed and small enough for all of them."""
    return math.floor(1000 / count) / 1000


def suggestion(ways: Sequence[Placement]) -> Placement | None:
    """The fewest trials at a time that reach nearly the best throughput; None where none ran."""
    rates = [way.rate for way in ways if way.rate is not None]
    enough = [way for way in ways if way.rate is not None and way.rate >= ENOUGH * max(rates)]
    return min(enough, key=lambda way: (way.trials, way.cpus), default=None)


def _rate(crew: WorkerSet) -> float:
    once, _ = crew.run(1)
    steps = max(1, math.ceil(SECONDS / once))
    runs = [crew.run(steps) for _ in range(RUNS)]
    return statistics.median(encoded / seconds for seconds, encoded in runs)


def _results(calls: Sequence[Any]) -> list[int]:
    try:
        return list(ray.get(list(calls)))
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a process that trained died: {last_line(str(error))}") from error
