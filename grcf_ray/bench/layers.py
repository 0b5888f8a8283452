"""Measure the layers of the encoder: frozen ones with a cached output, and DeBERTa-v3's relative positions."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
_LAYERS, _TOKENS, _VOCABULARY = 3, 1024, 1000
LENGTHS = (16, 50)
"""Subwords of a text: MOSI's mean, and the length to which the paper pads."""


def positions_table(setup: Setup) -> Table:
    """Time a few layers with random weights, forward and backward, at MOSI's mean length and the paper's padded one."""
    stock = stock_deberta(_LAYERS, setup.device)
    cut: Any = cut_positions(copy.deepcopy(stock))
    rows = []
    for length in LENGTHS:
        token_BL = random_texts(length, setup.device)
        passes = [encoder_pass(backbone, token_BL) for backbone in (stock, cut)]
        names = (f"length {length}, transformers' own", f"length {length}, cut and shifted")
        rows += timed_rows(
            setup,
            [Variant(name, run) for name, run in zip(names, passes, strict=True)],
            kernels=[count_kernels(run) for run in passes],
            difference=(None, gradient_difference(cut, stock, token_BL)),
        )
    columns = (
        Column("name", f"{_LAYERS} layers, {_TOKENS} subwords"),
        *TIMES,
        Column("kernels", "kernels", "{:,}"),
        Column("difference", "gradient, rel. L2", "{:.1e}"),
    )
    notes = (
        f"{_NAME}'s settings with {_LAYERS} layers and {_VOCABULARY} words, random weights, forward and backward",
        "kernels: ATen operations forward and backward, without views and allocations; a GPU can need more for one",
    )
    return Table("positions", "DeBERTa-v3's relative positions", columns, rows, notes)


def stock_deberta(layers: int, device: torch.device) -> Any:
    """Return the library's DeBERTa-v3-base with random weights, for training; fewer words do not change ratios."""
    from transformers import AutoConfig, AutoModel

    settings = {k: v for k, v in backbone_config(_NAME).items() if k != "model_type"}
    config = AutoConfig.for_model("deberta-v2", **settings)
    config.update({"num_hidden_layers": layers, "vocab_size": _VOCABULARY})
    torch.manual_seed(0)
    return AutoModel.from_config(config, trust_remote_code=False).to(device).train()  # type: ignore[no-untyped-call]


def random_texts(length: int, device: torch.device) -> Tensor:
    """Return a micro-batch of texts of one length, without padding."""
    return torch.randint(5, _VOCABULARY, (_TOKENS // length, length), device=device)


def encoder_pass(backbone: Any, token_BL: Tensor) -> Callable[[], None]:
    """Return a forward and backward pass. The loss weights the states: the plain sum of a LayerNorm has no gradient."""
    weight_D = torch.linspace(-1, 1, backbone.config.hidden_size, device=token_BL.device)

    def run() -> None:
        backbone.zero_grad(set_to_none=True)
        states_BLD = backbone(input_ids=token_BL, attention_mask=torch.ones_like(token_BL)).last_hidden_state
        (states_BLD @ weight_D).square().mean().backward()

    return run


def gradient_difference(backbone: Any, stock: Any, token_BL: Tensor) -> float:
    """Return the relative difference of a backbone's gradients to the library's, without dropout."""
    gradients = []
    for model in (backbone, stock):
        model.eval()
        encoder_pass(model, token_BL)()
        model.train()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]))
    actual, expected = gradients
    return float((actual - expected).norm() / expected.norm())


def count_kernels(run: Callable[[], object]) -> int:
    """Return the number of ATen operations of a second call, without views and allocations; the first fills caches."""
    run()
    kernels = _Kernels()
    with kernels:
        run()
    return kernels.count


class _Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the operations that compute, forward and backward."""

    _FREE = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        schema = func._schema
        # A view shares the memory of an input that it does not write to.
        view = any(value.alias_info is not None and not value.alias_info.is_write for value in schema.returns)
        self.count += not view and schema.name.removeprefix("aten::") not in self._FREE
        return func(*args, **(kwargs or {}))
