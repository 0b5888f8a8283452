"""The precision of a new training whose `train.precision` is `auto`."""

from __future__ import annotations

import torch

from grcf_ray.config import TrainConfig


def native_bfloat16(*, gpu: bool) -> bool:
    """Return whether this machine's GPU, or else its CPU, computes in bfloat16 without emulating it."""
    if gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # In the oldest supported release of torch, no public function tells this.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def precision_here(train: TrainConfig, device: torch.device) -> str:
    """Return the precision of a training in this process: the setting's; for `auto` bfloat16 if it is native."""
    if train.precision != "auto":
        return train.precision
    return "bfloat16" if native_bfloat16(gpu=device.type == "cuda") else "float32"
