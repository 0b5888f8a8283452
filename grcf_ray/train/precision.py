"""The precision of a new training whose `train.precision` is `auto`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import nn

from grcf_ray.config import TrainConfig

_GAIN = 1.5
"""How many times as fast products in bfloat16 must be. A training gains less: the rest of it stays in float32."""
_ROWS, _WIDTH = 256, 384
"""Size of the timed products: subwords of a batch, and width of a small text encoder."""


def cpu_length_multiple(positions: int | None) -> int:
    """Return the number that the length of batches in bfloat16 on CPUs is a multiple of.

    oneDNN prepares each product of matrices in bfloat16 when a number of subwords first occurs. That takes as long as
    computing it several times, and oneDNN keeps 1,024 of them. So there must be few such numbers.

    positions: of the text encoder, if they are limited. A batch must not be longer.
    """
    return math.gcd(8, positions or 0)


def native_bfloat16(*, gpu: bool) -> bool:
    """Return whether this machine's GPU, or else its CPU, computes products of matrices in bfloat16 natively.

    A CPU's instructions do not tell: with AVX512_BF16, products took a quarter of the time of float32 on one kind of
    CPU, and 1.8 times as long on another (docs/performance/precision.md). So a CPU is timed.
    """
    if gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return product_seconds(torch.float32) >= _GAIN * product_seconds(torch.bfloat16)


def product_seconds(dtype: torch.dtype) -> float:
    """Return the seconds of the products of a layer's forward and backward pass on the CPU."""
    rows, weights = (torch.ones(size, dtype=dtype, requires_grad=True) for size in ((_ROWS, _WIDTH), (_WIDTH, _WIDTH)))

    def step() -> None:
        nn.functional.linear(rows, weights).sum().backward()  # type: ignore[no-untyped-call]

    step()  # prepares the products
    return fastest(step, 9)


def fastest(step: Callable[[], object], times: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of the fastest of some calls, which depends least on other work."""
    seconds = []
    for _ in range(times):
        begun = clock()
        step()
        seconds.append(clock() - begun)
    return min(seconds)


def precision_here(train: TrainConfig, device: torch.device) -> str:
    """Return the precision of a training here: the setting's; for `auto` bfloat16 if this machine has it."""
    if train.precision != "auto":
        return train.precision
    return "bfloat16" if native_bfloat16(gpu=device.type == "cuda") else "float32"
