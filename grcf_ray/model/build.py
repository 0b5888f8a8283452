"""Build the network of a task, and count its parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from grcf_ray.config import ModelConfig, RunConfig, Task
from grcf_ray.data.datasets import DatasetFacts
from grcf_ray.data.schema import TableInfo
from grcf_ray.errors import ConfigError
from grcf_ray.model.base import ModelSetup, MultimodalModel
from grcf_ray.model.card import card_of
from grcf_ray.model.pretrained import backbone_config, backbone_from_config
from grcf_ray.model.text_encoder import TextEncoder

_TITLES: Mapping[str, str] = {
    "text_encoder": "Text Encoder",
    "vision_pooler": "Vision Pooler",
    "audio_pooler": "Audio Pooler",
    "vision_norm": "Vision Norm",
    "audio_norm": "Audio Norm",
    "vision_projection": "Vision Projection",
    "audio_projection": "Audio Projection",
    "type_embedding": "Type Embedding",
    "attention": "Cross-Attention",
    "gate": "Gate",
    "fusion": "Fusion Layer",
    "unified": "Unified Encoder",
}


def build_model(
    backbone: nn.Module | None,
    config: ModelConfig,
    *,
    task: Task,
    audio_dim: int | None,
    vision_dim: int | None,
    half_range: float,
    n_train: int = 0,
) -> MultimodalModel:
    """Return the network of a configuration for a task. ConfigError if it cannot be built, as in classification
    without text.

    backbone: used, not copied; None for a model without text. The rest is explained in `ModelSetup`.
    """
    card = card_of(config.name)
    if task not in card.networks:
        raise ConfigError(f"model.name = {config.name}: {card.title} does not learn {task}; use another model")
    if backbone is None and card.needs_text:
        raise ConfigError(f"model.name = {config.name}: {card.title} needs the text; use another model or modalities")
    encoder = None if backbone is None else TextEncoder(backbone, config.text_vector, config.frozen_layers)
    setup = ModelSetup(
        text_encoder=encoder,
        config=config,
        task=task,
        audio_dim=audio_dim,
        vision_dim=vision_dim,
        half_range=half_range,
        n_train=n_train,
    )
    return card.networks[task](setup)


def described_model(config: RunConfig, data: TableInfo | DatasetFacts) -> MultimodalModel:
    """Return the network of a configuration for a data set, with random weights, on torch's default device."""
    audio_dim = data.audio_dim if config.model.sees("audio") else None
    vision_dim = data.vision_dim if config.model.sees("vision") else None
    backbone = backbone_from_config(backbone_config(config.model.backbone)) if config.model.sees_text else None
    return build_model(
        backbone, config.model, task=data.task, audio_dim=audio_dim, vision_dim=vision_dim, half_range=3.0
    )


def parameter_table(model: MultimodalModel) -> list[tuple[str, int]]:
    """Return the number of parameters of each component: those of GRCF in the order of Table 12, then others."""
    parts = dict(model.named_children())
    titles = {**_TITLES, **{name: name.replace("_", " ").title() for name in parts if name not in _TITLES}}
    titles["head"] = f"{model.task.title()} Head"
    counts = [(title, parts[name]) for name, title in titles.items() if name in parts]
    return [(title, count) for title, part in counts if (count := sum(p.numel() for p in part.parameters()))]
