"""A made table of trials: the errors of a trial depend on its learning rate, and its seconds on its stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

EPOCHS = {1: 3, 2: 4}
SPACE = {
    "dataset": "mosi",
    "fixed": {
        "stage1.epochs": EPOCHS[1],
        "stage2.epochs": EPOCHS[2],
        "search.stage1_trials": 6,
        "search.stage2_trials": 8,
        "search.finalists": 2,
        "search.pruning": False,
        "search.gpus_per_worker": 0.0,
        "train.precision": "float32",
    },
    "stage1": {"stage1.head_lr": {"low": 1e-4, "high": 1e-2, "log": True, "start": 1e-3}},
    "stage2": {
        "stage2.head_lr": {"low": 1e-4, "high": 1e-2, "log": True, "start": 1e-4},
        "stage2.fusion_dropout": {"low": 0.0, "high": 0.5, "log": False, "start": 0.1},
    },
}
CONFIGURATIONS, SEEDS = 40, 2
LABELS = np.random.default_rng(0).uniform(-3, 3, 90)
N_VALID = 40


def noise_of(stage: int, params: Mapping[str, Any], epoch: int) -> float:
    """The size of a model's errors: least at a rate of 1e-3, whatever the dropout, and less with each epoch."""
    rate = params[f"stage{stage}.head_lr"]
    return float(0.3 + 0.4 * np.log10(rate / 1e-3) ** 2 + 0.5 / epoch)


def recorded_trial(stage: int, configuration: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng([stage, configuration])
    params: dict[str, Any] = {f"stage{stage}.head_lr": float(10 ** rng.uniform(-4, -2))}
    if stage == 2:
        params["stage2.fusion_dropout"] = float(rng.uniform(0, 0.5))
    rng = np.random.default_rng([stage, configuration, seed, 1])
    epochs = EPOCHS[stage]
    sizes = [noise_of(stage, params, epoch) for epoch in (*range(1, epochs + 1), epochs)]
    return {
        "stage": stage,
        "configuration": configuration,
        "seed": seed,
        "finalist": configuration if stage == 2 else None,
        "params": params,
        "curve": [
            {"epoch": epoch, "seconds": 2.0 * stage, "utterance_passes": 1.0, "ignored": 7}
            for epoch in range(1, epochs + 1)
        ],
        "scores": np.clip([LABELS + size * rng.normal(size=len(LABELS)) for size in sizes], -6, 6),
    }


ABOUT = {
    "dataset": "mosi",
    "task": "regression",
    "protocol": "mosi",
    "half_range": 3.0,
    "space": SPACE,
    "valid": LABELS[:N_VALID].tolist(),
    "test": LABELS[N_VALID:].tolist(),
}
TRIALS = [
    recorded_trial(stage, configuration, seed)
    for stage in (1, 2)
    for configuration in range(CONFIGURATIONS)
    for seed in range(SEEDS)
]
