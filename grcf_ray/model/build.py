"""Build the network of a task, and count its parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from grcf_ray.config import NEEDS_TEXT, ModelConfig, RunConfig, Task
from grcf_ray.data.datasets import DatasetFacts
from grcf_ray.data.schema import TableInfo
from grcf_ray.errors import ConfigError
from grcf_ray.model.base import GrcfModel
from grcf_ray.model.classification import GrcfClassifier
from grcf_ray.model.pretrained import backbone_config, backbone_from_config
from grcf_ray.model.regression import GrcfRegressor
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
) -> GrcfModel:
    """Return the network of a configuration for a task. ConfigError if it cannot be built, as in classification
    without text.

    backbone: used, not copied; None for a model without text. half_range: S, which scales the reach of regression's
    tanh (3.5 for S = 3).
    """
    encoder = None if backbone is None else TextEncoder(backbone, config.text_vector, config.frozen_layers)
    if task == "regression":
        return GrcfRegressor(encoder, config, audio_dim=audio_dim, vision_dim=vision_dim, half_range=half_range)
    if encoder is None:
        raise ConfigError(NEEDS_TEXT.format(config.modalities))
    return GrcfClassifier(encoder, config, audio_dim=audio_dim, vision_dim=vision_dim)


def described_model(config: RunConfig, data: TableInfo | DatasetFacts) -> GrcfModel:
    """Return the network of a configuration for a data set, with random weights, on torch's default device."""
    audio_dim = data.audio_dim if config.model.sees("audio") else None
    vision_dim = data.vision_dim if config.model.sees("vision") else None
    backbone = backbone_from_config(backbone_config(config.model.backbone)) if config.model.sees_text else None
    return build_model(
        backbone, config.model, task=data.task, audio_dim=audio_dim, vision_dim=vision_dim, half_range=3.0
    )


def parameter_table(model: GrcfModel) -> list[tuple[str, int]]:
    """Return the number of parameters of each component, in the order of Table 12."""
    parts = dict(model.named_children())
    head = "Regression Head" if isinstance(model, GrcfRegressor) else "Classification Head"
    titles = {**_TITLES, "head": head}
    return [
        (title, sum(p.numel() for p in parts[name].parameters())) for name, title in titles.items() if name in parts
    ]
