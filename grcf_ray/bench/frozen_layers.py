"""Measure frozen bottom layers whose output is computed once a run."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from grcf_ray.bench.measure import TIMES, Variant, interleave, timed_row
from grcf_ray.bench.setup import Setup
from grcf_ray.bench.step import SMALL_STEP, new_loop
from grcf_ray.config import build_config, flatten
from grcf_ray.data.features import Features
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.stage import StageLoop

_STEPS = 4


def frozen_layers_table(setup: Setup) -> Table:
    """Time an epoch after the first, with the bottom two thirds of the layers frozen and with none frozen."""
    config, device = setup.config, setup.device
    plain = _features(setup, 0)
    encoder = new_loop(plain, config, device, {"model.frozen_layers": 0}).model.text_encoder
    assert encoder is not None
    layers = encoder.n_layers
    frozen_layers = 2 * layers // 3
    changes = {**SMALL_STEP, "model.frozen_layers": frozen_layers}
    trained = {**SMALL_STEP, "model.frozen_layers": 0}
    cached = _features(setup, frozen_layers)
    variants = [
        Variant("all layers trained", _part_of_epoch(new_loop(plain, config, device, trained))),
        Variant(
            f"{frozen_layers} of {layers} frozen, run every time",
            _part_of_epoch(new_loop(_without_hidden(cached), config, device, changes)),
        ),
        Variant(
            f"{frozen_layers} of {layers} frozen, output cached",
            _part_of_epoch(new_loop(cached, config, device, changes)),
        ),
    ]
    timings = interleave(variants, setup.repetitions, device, setup.say)
    # A backward pass costs two forward passes.
    bounds = (1.0, 3 * layers / (3 * layers - 2 * frozen_layers), layers / (layers - frozen_layers))
    return Table(
        "frozen",
        "An epoch with frozen layers, after the first",
        (
            Column("name", f"{_STEPS} steps of 32 pairs, with the optimizer"),
            *TIMES,
            Column("bound", "bound by layers", "{:.2f}"),
        ),
        [
            timed_row(variant.name, timing, timings[0], bound=bound)
            for variant, timing, bound in zip(variants, timings, bounds, strict=True)
        ],
    )


def _features(setup: Setup, frozen_layers: int) -> Features:
    config = build_config({**flatten(setup.config), "model.frozen_layers": frozen_layers})
    return prepare_features(setup.store, config, cache=setup.folder)


def _without_hidden(features: Features) -> Features:
    train, valid = (dataclasses.replace(split, hidden=None) for split in (features.train, features.valid))
    return dataclasses.replace(features, train=train, valid=valid)


def _part_of_epoch(loop: StageLoop) -> Callable[[], None]:
    """Return a call that takes the first steps of an epoch, with the optimizer."""
    steps = list(itertools.islice(loop.steps(), _STEPS))

    def run() -> None:
        for step in steps:
            loop.take_step(step)

    return run
