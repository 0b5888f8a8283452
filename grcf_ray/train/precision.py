"""The precision of a new training whose `train.precision` is `auto`."""

from __future__ import annotations

import torch

from grcf_ray.config import TrainConfig

CPU_LENGTH_MULTIPLE = 8
"""On CPUs, batches of a training in bfloat16 are padded to multiples of this length.

oneDNN prepares each product of matrices in bfloat16 when a number of subwords first occurs, which takes as long as
computing it several times, and keeps 1,024 of them. So there must be few such numbers.
"""


def gpu_has_bfloat16() -> bool:
    """Return whether this machine's GPU computes in bfloat16 without emulating it."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def precision_here(train: TrainConfig, device: torch.device) -> str:
    """Return the precision of a training in this process: the setting's; for `auto` bfloat16 if the GPU has it."""
    if train.precision != "auto":
        return train.precision
    return "bfloat16" if device.type == "cuda" and gpu_has_bfloat16() else "float32"
