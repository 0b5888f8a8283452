"""Frozen bottom layers whose output is computed once a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from grcf_ray.bench.measure import Column, Table, Variant, interleave
from grcf_ray.bench.step import new_loop
from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.data.features import Features
from grcf_ray.data.store import Store
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.stage import StageLoop

__all__ = ["trunk_table"]

_STEPS = 4
_SMALL_STEP = {"pairs.pairs_per_group": 32, "pairs.groups_per_step": 1}


def trunk_table(
    store: Store, config: RunConfig, device: torch.device, repetitions: int, say: Callable[[str], None], cache: Path
) -> Table:
    """An epoch after the first with the bottom two thirds of the layers frozen, against one with none."""
    whole = _features(store, config, 0, cache)
    layers = new_loop(whole, config, device, {}).model.text_encoder.n_layers
    frozen_layers = 2 * layers // 3
    changes = {**_SMALL_STEP, "model.frozen_layers": frozen_layers}
    cached = _features(store, config, frozen_layers, cache)
    variants = [
        Variant("all layers trained", _part_of_epoch(new_loop(whole, config, device, _SMALL_STEP))),
        Variant(
            f"{frozen_layers} of {layers} frozen, run every time",
            _part_of_epoch(new_loop(_without_hidden(cached), config, device, changes)),
        ),
        Variant(
            f"{frozen_layers} of {layers} frozen, their output kept",
            _part_of_epoch(new_loop(cached, config, device, changes)),
        ),
    ]
    timings = interleave(variants, repetitions, device, say)
    return Table(
        "frozen",
        "An epoch with frozen layers, after the first",
        (
            Column("name", f"{_STEPS} steps of 32 pairs, with the optimizer"),
            Column("least", "min s", "{:.2f}"),
            Column("median", "median s", "{:.2f}"),
            Column("speed_up", "speed-up", "{:.2f}"),
            Column("bound", "bound by layers", "{:.2f}"),
        ),
        [
            {
                "name": variant.name,
                "least": timing.least,
                "median": timing.median,
                "speed_up": timings[0].median / timing.median,
                "bound": bound,
                "seconds": timing.seconds,
            }
            for variant, timing, bound in zip(
                variants,
                timings,
                # A backward pass costs two forward passes.
                (1.0, 3 * layers / (3 * layers - 2 * frozen_layers), layers / (layers - frozen_layers)),
                strict=True,
            )
        ],
    )


def _features(store: Store, config: RunConfig, frozen_layers: int, cache: Path) -> Features:
    return prepare_features(store, build_config({**flatten(config), "model.frozen_layers": frozen_layers}), cache=cache)


def _without_hidden(features: Features) -> Features:
    train, valid = (dataclasses.replace(split, hidden=None) for split in (features.train, features.valid))
    return dataclasses.replace(features, train=train, valid=valid)


def _part_of_epoch(loop: StageLoop) -> Callable[[], None]:
    """Some of an epoch's steps, the optimizer with them."""
    steps = list(loop._steps())[:_STEPS]

    def run() -> None:
        for step in steps:
            loop.optimizer.zero_grad(set_to_none=True)
            loop.backward(step)
            loop.optimizer.step()

    return run
