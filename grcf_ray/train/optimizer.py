"""AdamW in the paper's parameter groups, with a cosine schedule (section 4.1, Table 13)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from grcf_ray.config import RunConfig
from grcf_ray.model.base import MultimodalModel
from grcf_ray.model.text_encoder import layers_of


def parameter_groups(
    model: MultimodalModel, config: RunConfig, stage: Literal[1, 2]
) -> dict[str, tuple[float, list[nn.Parameter]]]:
    """Return the trainable parameters and their learning rate, by group name.

    Stage 1: encoder, head. Stage 2: encoder_top (the upper layers), encoder_base (embeddings, relative embeddings,
    lower layers), head. The head is all parameters outside the text encoder.
    """
    backbone = nn.Module() if model.text_encoder is None else model.text_encoder.backbone
    encoder = [p for p in backbone.parameters() if p.requires_grad]
    inside = set(map(id, backbone.parameters()))
    head = [p for p in model.parameters() if id(p) not in inside]
    if stage == 1:
        groups = {"encoder": (config.stage1.encoder_lr, encoder), "head": (config.stage1.head_lr, head)}
    else:
        layers = nn.ModuleList() if model.text_encoder is None else layers_of(backbone)[1]
        n_top = (len(layers) + 1) // 2 if config.stage2.top_layers is None else config.stage2.top_layers
        top = {id(p) for layer in layers[max(0, len(layers) - n_top) :] for p in layer.parameters()}
        if not len(layers):
            # Shared layers (ALBERT) are upper and lower at once, so only the embeddings count as base.
            top = {id(p) for name, p in backbone.named_parameters() if not name.startswith("embeddings.")}
        groups = {
            "encoder_top": (config.stage2.encoder_top_lr, [p for p in encoder if id(p) in top]),
            "encoder_base": (config.stage2.encoder_base_lr, [p for p in encoder if id(p) not in top]),
            "head": (config.stage2.head_lr, head),
        }
    return {name: group for name, group in groups.items() if group[1]}


def build_optimizer(model: MultimodalModel, config: RunConfig, stage: Literal[1, 2]) -> torch.optim.AdamW:
    """Return AdamW over the stage's groups; biases and norms, the one-dimensional parameters, have no weight decay.

    Each group has its `name`, and its peak learning rate as `initial_lr`.
    """
    decay = (config.stage1 if stage == 1 else config.stage2).weight_decay

    def groups() -> Iterator[dict[str, object]]:
        for name, (rate, parameters) in parameter_groups(model, config, stage).items():
            for weight_decay, chosen in (
                (decay, [p for p in parameters if p.ndim > 1]),
                (0.0, [p for p in parameters if p.ndim <= 1]),
            ):
                if chosen:
                    yield {
                        "name": name,
                        "params": chosen,
                        "lr": rate,
                        "initial_lr": rate,
                        "weight_decay": weight_decay,
                    }

    return torch.optim.AdamW(list(groups()), fused=True)


def learning_rate_factor(step: int, total: int, warmup_fraction: float) -> float:
    """Return the learning rate of a step as a share of the peak: a linear rise, then a cosine to 0 at `total`."""
    warmup = int(total * warmup_fraction)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
