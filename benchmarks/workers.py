"""Measure what several workers a trial cost: a group's start, repeated utterances, and the exchange of gradients.

    python benchmarks/workers.py --dataset mosi --data DIR --out docs/performance

Takes about 10 minutes on two cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from grcf_ray.cluster import connect

import numpy as np
from cpu_clock import CpuClock
from study import run_study

from grcf_ray.bench.setup import Setup
from grcf_ray.config import PairConfig, flatten
from grcf_ray.data.pairs import draw_pairs, epoch_steps
from grcf_ray.tables import Column, Table
from grcf_ray.train.distributed import WorkerGroup, share
from grcf_ray.train.job import StageJob

TRIALS = 4
"""Trials in each kind of group; the first is a warm-up."""
RANKS = (1, 2, 4, 8)
DATA = {"MOSI, 1,284 utterances": 1284, "MOSEI, 16,326 utterances": 16326}
PAIRS = 50_000
"""Pairs of the paper's epoch."""
MODELS = {"all-MiniLM-L6-v2": 22_713_216, "DeBERTa-v3-base with GRCF's layers": 186_585_724}
"""Trainable parameters."""
NETWORKS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9, "NVLink, 450 GB/s": 450e9}
"""Bytes a second of each rank."""


def worker_tables(setup: Setup) -> list[Table]:
    """Measure the three costs."""
    return [start_table(setup), utterance_table(), exchange_table()]


def start_table(setup: Setup) -> Table:
    """Time trials of one short epoch, in a new group each and in a warm one."""
    connect()
    config = setup.changed({"pairs.pairs_per_epoch": 32, "stage1.epochs": 1, "search.workers": 2})
    features = share(setup.features(config))

    def new_group() -> WorkerGroup:
        return WorkerGroup(features, workers=2, resources={"CPU": 1.0})

    def train(group: WorkerGroup, name: str) -> None:
        job = StageJob(
            stage=1,
            seed=1,
            settings=flatten(config),
            protocol=setup.protocol,
            folder=str(setup.folder / name),
            initial=None,
            initial_sha256=None,
            threads=1,
            gpu=0.0,
        )
        group.start(job)
        group.step()

    def in_new_group(number: int) -> None:
        with new_group() as group:
            train(group, f"new-{number}")

    rows = [{"name": "a new group of two workers", **_median(in_new_group)}]
    with new_group() as group:
        rows.append({"name": "the next trial in a warm group", **_median(lambda n: train(group, f"warm-{n}"))})
    return Table(
        "workers start",
        "A trial of one short epoch",
        (Column("name", "group"), Column("wall", "wall-clock s", "{:.1f}"), Column("cpu", "CPU s", "{:.1f}")),
        rows,
        (f"Median of {TRIALS - 1} trials, each with its epoch. CPU time of all processes",),
    )


def _median(trial: Callable[[int], None]) -> dict[str, float]:
    """Return the median costs of trials, without the first."""
    costs = []
    for number in range(TRIALS):
        start = time.perf_counter()
        with CpuClock() as clock:
            trial(number)
        costs.append((time.perf_counter() - start, clock.seconds))
    wall, cpu = (statistics.median(values) for values in zip(*costs[1:], strict=True))
    return {"wall": wall, "cpu": cpu}


def utterance_table() -> Table:
    """Count the utterances that all ranks encode in an epoch, with the paper's pairs and steps."""
    rows = []
    for name, n in DATA.items():
        pairs_M2 = draw_pairs(n, PAIRS, np.random.default_rng(0))
        alone = sum(_encoded(pairs_M2, 1))
        for ranks in RANKS:
            encoded = _encoded(pairs_M2, ranks)
            rows.append({"name": name, "ranks": ranks, "all": sum(encoded) / alone, "faster": alone / max(encoded)})
    return Table(
        "workers utterances",
        "Utterances encoded in an epoch of 50,000 pairs, in steps of 8 groups of 96 pairs",
        (
            Column("name", "training split"),
            Column("ranks", "ranks"),
            Column("all", "by all ranks, against one rank", "{:.2f} x"),
            Column("faster", "most that an epoch can be faster", "{:.2f} x"),
        ),
        rows,
        ("Each rank encodes a distinct utterance of its own groups once a step, and the ranks have many in common",),
    )


def _encoded(pairs_M2: np.ndarray, ranks: int) -> Sequence[int]:
    """Return the utterances that each rank encodes in an epoch."""
    config = PairConfig()
    steps = [epoch_steps(pairs_M2, config, rank=rank, world=ranks) for rank in range(ranks)]
    return [sum(len(step.utterance_U) for step in mine) for mine in steps]


def exchange_table() -> Table:
    """Compute how long eight ranks take to exchange their gradients in each step."""
    ranks = RANKS[-1]
    rows = []
    for name, parameters in MODELS.items():
        sent = 2 * (ranks - 1) / ranks * 4 * parameters
        rows.append({"name": name, "mb": sent / 1e6, **{net: 1000 * sent / speed for net, speed in NETWORKS.items()}})
    return Table(
        "workers exchange",
        "Exchange of float32 gradients among eight ranks, in each step",
        (
            Column("name", "trained parameters"),
            Column("mb", "MB sent by a rank", "{:,.0f}"),
            *(Column(network, f"{network}, ms", "{:.1f}") for network in NETWORKS),
        ),
        rows,
        (
            "Computed, for a ring: a rank sends 2 (ranks - 1) / ranks of its gradients. That is the most that an "
            "exchange within the backward pass, as DDP's, could save",
        ),
    )


if __name__ == "__main__":
    run_study("workers", __file__, worker_tables)
