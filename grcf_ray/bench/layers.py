"""Measure frozen layers of the encoder, whose output is computed once."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from grcf_ray.bench.measure import TIMES, Variant, timed_rows
from grcf_ray.bench.setup import Setup
from grcf_ray.bench.step import SMALL_STEP, new_loop
from grcf_ray.data.features import Features
from grcf_ray.tables import Column, Table
from grcf_ray.train.stage import StageLoop

_STEPS = 4


def frozen_layers_table(setup: Setup) -> Table:
    """Time an epoch after the first, with the bottom two thirds of the layers frozen and with none frozen."""
    plain = setup.features(setup.changed({"model.frozen_layers": 0}))
    encoder = _loop(setup, plain, 0).model.text_encoder
    assert encoder is not None
    layers = encoder.n_layers
    frozen = 2 * layers // 3
    cached = setup.features(setup.changed({"model.frozen_layers": frozen}))
    loops = {
        "all layers trained": _loop(setup, plain, 0),
        f"{frozen} of {layers} frozen, run every time": _loop(setup, _without_hidden(cached), frozen),
        f"{frozen} of {layers} frozen, output cached": _loop(setup, cached, frozen),
    }
    variants = [Variant(name, _part_of_epoch(loop)) for name, loop in loops.items()]
    # A backward pass costs two forward passes.
    bounds = (1.0, 3 * layers / (3 * layers - 2 * frozen), layers / (layers - frozen))
    columns = (
        Column("name", f"{_STEPS} steps of 32 pairs, with the optimizer"),
        *TIMES,
        Column("bound", "bound by layers", "{:.2f}"),
    )
    title = "An epoch with frozen layers, after the first"
    return Table("frozen", title, columns, timed_rows(setup, variants, bound=bounds))


def _loop(setup: Setup, features: Features, frozen: int) -> StageLoop:
    return new_loop(features, setup.config, setup.device, {**SMALL_STEP, "model.frozen_layers": frozen})


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
