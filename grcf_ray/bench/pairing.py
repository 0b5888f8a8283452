"""All pairs of a group's utterances against those that were drawn, for the same utterances encoded.

The test split is not read.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grcf_ray.cluster import connect

import ray

from grcf_ray.bench.measure import PAIRED, paired
from grcf_ray.bench.step import new_loop
from grcf_ray.config import build_config, flatten
from grcf_ray.data.features import Features
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.curve import objective_value
from grcf_ray.train.stage import use_deterministic_torch

if TYPE_CHECKING:
    from grcf_ray.bench.setup import Setup

PAIRINGS = ("sampled", "all")
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the starting point's learning rates, encoder's and head's alike."""
TUNING_SEED, SEEDS = 0, (1, 2, 3)
PASSES, PER_PASS = 6, 2
"""Passes over the training utterances, and validations in each."""

Run = tuple[str, float, int]
"""Pairing, factor of the learning rates, seed."""


def pairing_tables(setup: Setup) -> list[Table]:
    """Learning curves of Stage 1 under both pairings, each at the learning rate that suits it best."""
    connect()
    features = prepare_features(setup.store, setup.config, cache=setup.folder)
    shared = ray.put(features)
    n_utterances = len(features.train)
    every = _runs(dict.fromkeys(PAIRINGS, FACTORS), (TUNING_SEED,))
    tuned = _train_all(setup, shared, {run: _settings(setup, run, n_utterances) for run in every})
    chosen: dict[str, float] = {}
    for p in PAIRINGS:
        by_factor = {factor: _best(tuned[p, factor, TUNING_SEED]) for factor in FACTORS}
        chosen[p] = max(by_factor, key=by_factor.__getitem__)
    again = _runs({p: (chosen[p],) for p in PAIRINGS}, SEEDS)
    curves = _train_all(setup, shared, {run: _settings(setup, run, n_utterances) for run in again})
    by_pairing = {p: [curves[p, chosen[p], seed] for seed in SEEDS] for p in PAIRINGS}
    pairs = setup.config.pairs
    return [
        Table(
            "pairing learning rates",
            f"PairwiseAcc on valid by learning rate, best of {PASSES} passes, seed {TUNING_SEED}",
            (Column("name", "learning rates"), *(Column(p, f"pairing: {p}", "{:.4f}") for p in PAIRINGS)),
            [
                {"name": f"{factor:g} x", **{p: _best(tuned[p, factor, TUNING_SEED]) for p in PAIRINGS}}
                for factor in FACTORS
            ],
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
            _curve_rows(by_pairing),
            (
                f"steps of {pairs.groups_per_step} group(s) of {pairs.pairs_per_group} drawn pairs; "
                "`all` compares every two of a group's utterances, and encodes the same ones",
                "the difference is paired over the seeds, with the 95 % interval of a t test",
                *_verdict(by_pairing),
            ),
        ),
    ]


def _runs(factors: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> list[Run]:
    return [(pairing, factor, seed) for pairing in PAIRINGS for factor in factors[pairing] for seed in seeds]


def _settings(setup: Setup, run: Run, n_utterances: int) -> dict[str, Any]:
    """A pass is as many pairs as encode about as many utterances as there are."""
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


def _train_all(
    setup: Setup, features: ray.ObjectRef[Features], settings: Mapping[Run, Mapping[str, Any]]
) -> dict[Run, list[tuple[float, float]]]:
    train = ray.remote(num_cpus=1, num_gpus=int(setup.device.type == "cuda"))(_train)
    running = {train.remote(features, dict(chosen)): run for run, chosen in settings.items()}
    curves: dict[Run, list[tuple[float, float]]] = {}
    while running:
        (done, *_), _ = ray.wait(list(running))
        run = running.pop(done)
        curves[run] = ray.get(done)
        setup.say(f"{run[0]}, {run[1]:g} x, seed {run[2]}: {_best(curves[run]):.4f}")
    return curves


def _train(features: Features, settings: dict[str, Any]) -> list[tuple[float, float]]:
    """Passes and PairwiseAcc after each epoch."""
    use_deterministic_torch(1)
    config = build_config(settings)
    loop = new_loop(features, config, _device(), {})
    passes, curve = 0.0, []
    for metrics in loop:
        passes += metrics["utterance_passes"]
        value = objective_value(1, metrics)
        assert value is not None
        curve.append((passes, value))
    return curve


def _device() -> Any:
    import torch

    return torch.device("cuda" if ray.get_gpu_ids() else "cpu")


def _best(curve: Sequence[tuple[float, float]]) -> float:
    return max(value for _, value in curve)


def _curve_rows(curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]]) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(len(next(iter(curves.values()))[0])):
        at = {p: [curve[epoch] for curve in curves[p]] for p in PAIRINGS}
        values = {p: [value for _, value in at[p]] for p in PAIRINGS}
        rows.append(
            {
                "name": f"{statistics.fmean(passes for passes, _ in at['sampled']):.2f}",
                **{p: statistics.fmean(values[p]) for p in PAIRINGS},
                **paired(values["all"], values["sampled"]),
                "seeds": values,
            }
        )
    return rows


def _verdict(curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]]) -> list[str]:
    """Where each is after the last pass, and when the better one had what the other ends with."""
    rows = _curve_rows(curves)
    last = rows[-1]
    sampled, every = last["sampled"], last["all"]
    better, worse = ("all", "sampled") if every >= sampled else ("sampled", "all")
    reached = next(row["name"] for row in rows if row[better] >= last[worse])
    sure = last["low"] > 0 or last["high"] < 0
    return [
        f"{better} has after {reached} passes what {worse} ends with after {last['name']}",
        f"at the end the difference {'is' if sure else 'is not'} beyond what seeds make",
    ]
