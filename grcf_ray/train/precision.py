"""The precision of a new training whose `train.precision` is `auto`."""

from __future__ import annotations

import torch

from grcf_ray.config import TrainConfig


def gpu_has_bfloat16() -> bool:
    """Return whether this machine's GPU computes in bfloat16 without emulating it."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def precision_here(train: TrainConfig, device: torch.device) -> str:
    """Return the precision of a training in this process: the setting's; for `auto` bfloat16 if the GPU has it."""
    if train.precision != "auto":
        return train.precision
    return "bfloat16" if device.type == "cuda" and gpu_has_bfloat16() else "float32"
