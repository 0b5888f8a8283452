"""The precision of a new training whose `train.precision` is `auto`."""

from __future__ import annotations

import math

import torch

from grcf_ray.config import TrainConfig


def cpu_length_multiple(positions: int | None) -> int:
    """Return the number that the length of batches in bfloat16 on CPUs is a multiple of.

    oneDNN prepares each product of matrices in bfloat16 when a number of subwords first occurs. That takes as long as
    computing it several times, and oneDNN keeps 1,024 of them. So there must be few such numbers.

    positions: of the text encoder, if they are limited. A batch must not be longer.
    """
    return math.gcd(8, positions or 0)


def native_bfloat16(*, gpu: bool) -> bool:
    """Return whether this machine's GPU, or else its CPU, has units for products of matrices in bfloat16."""
    if gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # AVX512_BF16 without AMX is not enough: with it, products took 1.8 times as long as in float32
    # (docs/performance/precision.md). The oldest supported release of torch has no public function for this.
    return bool(torch.cpu._is_amx_tile_supported())


def precision_here(train: TrainConfig, device: torch.device) -> str:
    """Return the precision of a training here: the setting's; for `auto` bfloat16 if this machine has units for it."""
    if train.precision != "auto":
        return train.precision
    return "bfloat16" if native_bfloat16(gpu=device.type == "cuda") else "float32"
