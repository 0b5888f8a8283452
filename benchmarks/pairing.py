"""Compare all pairs of a group with the sampled pairs, for the same utterances encoded.

    python benchmarks/pairing.py --dataset mosi --data DIR --out docs/performance

Trains learning curves of Stage 1 under both pairings, each at its best learning rate, in about 25 minutes on two cores.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grcf_ray.cluster import connect

import ray
import torch
from study import PAIRED, paired_interval, run_study

from grcf_ray.bench.setup import Setup
from grcf_ray.bench.step import new_loop
from grcf_ray.config import build_config, flatten
from grcf_ray.data.features import Features
from grcf_ray.tables import Column, Table
from grcf_ray.train.curve import objective_value
from grcf_ray.train.stage import use_deterministic_torch

PAIRINGS = ("sampled", "all")
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors on the starting point's learning rates of encoder and head."""
TUNING_SEED, SEEDS = 0, (1, 2, 3)
PASSES, PER_PASS = 6, 2
"""Passes over the training utterances, and validations in each."""

Run = tuple[str, float, int]
"""Pairing, factor on the learning rates, seed."""
Curve = list[tuple[float, float]]
"""Passes and PairwiseAcc after each epoch."""


def pairing_tables(setup: Setup) -> list[Table]:
    """Tune the learning rate of each pairing under one seed, then train each under the other seeds."""
    connect()
    features = setup.features()
    shared, n = ray.put(features), len(features.train)
    tuned = _train_all(setup, shared, n, itertools.product(PAIRINGS, FACTORS, (TUNING_SEED,)))
    best = {run: _best(curve) for run, curve in tuned.items()}
    chosen = {p: max(FACTORS, key=lambda factor: best[p, factor, TUNING_SEED]) for p in PAIRINGS}
    curves = _train_all(setup, shared, n, ((p, chosen[p], seed) for p in PAIRINGS for seed in SEEDS))
    rows = curve_rows({p: [curves[p, chosen[p], seed] for seed in SEEDS] for p in PAIRINGS})
    pairs = setup.config.pairs
    return [
        Table(
            "pairing learning rates",
            f"PairwiseAcc on valid by learning rate, best of {PASSES} passes, seed {TUNING_SEED}",
            (Column("name", "learning rates"), *(Column(p, f"pairing: {p}", "{:.4f}") for p in PAIRINGS)),
            [{"name": f"{factor:g} x", **{p: best[p, factor, TUNING_SEED] for p in PAIRINGS}} for factor in FACTORS],
            (
                f"1 x: encoder {setup.config.stage1.encoder_lr:g}, head {setup.config.stage1.head_lr:g}",
                f"chosen: {', '.join(f'{chosen[p]:g} x for {p}' for p in PAIRINGS)}",
            ),
        ),
        Table(
            "pairing",
            f"PairwiseAcc on valid, mean of {len(SEEDS)} seeds, by utterances encoded",
            (
                Column("name", "passes over train"),
                *(Column(p, f"pairing: {p}", "{:.4f}") for p in PAIRINGS),
                *PAIRED,
            ),
            rows,
            (
                f"steps of {pairs.groups_per_step} group(s) of {pairs.pairs_per_group} sampled pairs; "
                "`all` compares all pairs of a group's utterances and encodes the same utterances",
                "the difference is paired over the seeds, with the 95 % interval of a t test",
                *verdict(rows),
            ),
        ),
    ]


def _train_all(setup: Setup, features: ray.ObjectRef[Features], n: int, runs: Iterable[Run]) -> dict[Run, Curve]:
    train = ray.remote(num_cpus=1, num_gpus=int(setup.device.type == "cuda"))(_train)
    running = {train.remote(features, _settings(setup, run, n)): run for run in runs}
    curves: dict[Run, Curve] = {}
    while running:
        (done, *_), _ = ray.wait(list(running))
        run = running.pop(done)
        curves[run] = ray.get(done)
        setup.say(f"{run[0]}, {run[1]:g} x, seed {run[2]}: {_best(curves[run]):.4f}")
    return curves


def _settings(setup: Setup, run: Run, n_utterances: int) -> dict[str, Any]:
    """Return the settings of a run. The pairs of a pass encode about as many utterances as there are."""
    pairing, factor, seed = run
    config = setup.config
    return {
        **flatten(config),
        "seed": seed,
        "pairs.pairing": pairing,
        "pairs.pairs_per_epoch": n_utterances // (2 * PER_PASS),
        "stage1.epochs": PASSES * PER_PASS,
        "stage1.encoder_lr": factor * config.stage1.encoder_lr,
        "stage1.head_lr": factor * config.stage1.head_lr,
    }


def _train(features: Features, settings: dict[str, Any]) -> Curve:
    use_deterministic_torch(1)
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    passes, curve = 0.0, []
    for metrics in new_loop(features, build_config(settings), device, {}):
        passes += metrics["utterance_passes"]
        value = objective_value(1, metrics)
        assert value is not None
        curve.append((passes, value))
    return curve


def _best(curve: Curve) -> float:
    return max(value for _, value in curve)


def curve_rows(curves: Mapping[str, Sequence[Curve]]) -> list[dict[str, Any]]:
    """Return a row for each epoch: the means over the seeds, and the paired difference of the pairings."""
    rows = []
    for epoch in range(len(curves["sampled"][0])):
        values = {p: [curve[epoch][1] for curve in curves[p]] for p in PAIRINGS}
        rows.append(
            {
                "name": f"{statistics.fmean(curve[epoch][0] for curve in curves['sampled']):.2f}",
                **{p: statistics.fmean(values[p]) for p in PAIRINGS},
                **paired_interval(values["all"], values["sampled"]),
                "seeds": values,
            }
        )
    return rows


def verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tell when the better pairing reaches the other's last value, and whether the last difference is seed noise."""
    last = rows[-1]
    better, worse = ("all", "sampled") if last["all"] >= last["sampled"] else ("sampled", "all")
    reached = next(row["name"] for row in rows if row[better] >= last[worse])
    significant = last["low"] > 0 or last["high"] < 0
    return [
        f"{better} reaches after {reached} passes the value of {worse} after {last['name']}",
        f"the difference at the end {'exceeds' if significant else 'does not exceed'} seed noise",
    ]


if __name__ == "__main__":
    run_study("pairing", __file__, pairing_tables)
