"""Measure the layers of the encoder: frozen ones with a cached output, and DeBERTa-v3's relative positions."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch

from grcf_ray.bench.measure import TIMES, Variant, timed_rows
from grcf_ray.bench.setup import Setup
from grcf_ray.bench.step import SMALL_STEP, new_loop
from grcf_ray.data.features import Features
from grcf_ray.model.deberta import cut_positions
from grcf_ray.model.pretrained import backbone_config
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


_NAME = "microsoft/deberta-v3-base"
_LAYERS, _TOKENS, _LENGTHS, _VOCABULARY = 3, 1024, (16, 50), 1000


def positions_table(setup: Setup) -> Table:
    """Time a few layers with random weights, forward and backward, at MOSI's mean length and the paper's padded one."""
    device = setup.device
    from transformers import AutoConfig, AutoModel

    settings = {k: v for k, v in backbone_config(_NAME).items() if k != "model_type"}
    # Fewer layers and words change the time but not the ratio.
    config = AutoConfig.for_model("deberta-v2", **settings)
    config.update({"num_hidden_layers": _LAYERS, "vocab_size": _VOCABULARY})
    torch.manual_seed(0)
    stock: Any = AutoModel.from_config(config, trust_remote_code=False).to(device).train()  # type: ignore[no-untyped-call]
    cut: Any = cut_positions(copy.deepcopy(stock))
    rows = []
    for length in _LENGTHS:
        token_BL = torch.randint(5, _VOCABULARY, (_TOKENS // length, length), device=device)
        variants = [
            Variant(f"length {length}, transformers' own", _pass(stock, token_BL)),
            Variant(f"length {length}, cut", _pass(cut, token_BL)),
        ]
        rows += timed_rows(setup, variants, difference=(None, _difference(stock, cut, token_BL)))
    columns = (
        Column("name", f"{_LAYERS} layers, {_TOKENS} subwords"),
        *TIMES,
        Column("difference", "gradient, rel. L2", "{:.1e}"),
    )
    note = f"{_NAME}'s settings with {_LAYERS} layers and {_VOCABULARY} words, random weights, forward and backward"
    return Table("positions", "DeBERTa-v3's relative positions", columns, rows, (note,))


def _pass(backbone: Any, token_BL: torch.Tensor) -> Callable[[], None]:
    """Return a forward and backward pass. The loss weights the states: the plain sum of a LayerNorm has no gradient."""
    weight_D = torch.linspace(-1, 1, backbone.config.hidden_size, device=token_BL.device)

    def run() -> None:
        backbone.zero_grad(set_to_none=True)
        states_BLD = backbone(input_ids=token_BL, attention_mask=torch.ones_like(token_BL)).last_hidden_state
        (states_BLD @ weight_D).square().mean().backward()

    return run


def _difference(stock: Any, cut: Any, token_BL: torch.Tensor) -> float:
    """Return the relative difference of the gradients, without dropout."""
    gradients = []
    for backbone in (stock, cut):
        backbone.eval()
        _pass(backbone, token_BL)()
        backbone.train()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in backbone.parameters() if p.grad is not None]))
    stock_gradient, cut_gradient = gradients
    return float((cut_gradient - stock_gradient).norm() / stock_gradient.norm())
