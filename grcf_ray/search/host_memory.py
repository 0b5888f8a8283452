"""Estimate the host memory of a trial from its configuration, without loading weights."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
import torch

from grcf_ray.config import RunConfig
from grcf_ray.data.schema import TableInfo
from grcf_ray.data.store import DatasetStore
from grcf_ray.model.base import MultimodalModel
from grcf_ray.model.build import described_model
from grcf_ray.model.pretrained import load_tokenizer

LIBRARIES_BYTES = 600 * 10**6
"""Python with torch, transformers and Ray."""
_SAMPLE = 256
"""Number of texts whose length is measured."""


def meta_model(config: RunConfig, info: TableInfo) -> MultimodalModel:
    """Return the network of a configuration without storage for its weights."""
    with torch.device("meta"):
        return described_model(config, info)


def parameter_counts(model: MultimodalModel) -> tuple[int, int]:
    """Return the number of trainable parameters, and of all parameters."""
    numbers = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(number for number, trained in numbers if trained), sum(number for number, _ in numbers)


def mean_tokens(config: RunConfig, store: DatasetStore) -> float:
    """Return the mean number of subwords of the training texts, from a sample; with context, the largest number."""
    settings, columns = config.features, pq.read_schema(store.folder / store.files["train"].name).names
    if settings.context and "context" in columns:
        return float(settings.max_tokens)
    texts = store.texts("train")
    sample = texts[:: max(1, len(texts) // _SAMPLE)]
    encoded = load_tokenizer(config.model.backbone)(sample, truncation=True, max_length=settings.max_tokens)
    return sum(map(len, encoded["input_ids"])) / len(sample)


def worker_bytes(config: RunConfig, info: TableInfo, tokens: float, *, gpu: bool) -> int:
    """Return the estimated peak of a worker's private host memory, in bytes.

    tokens: mean number of subwords of a text. gpu: whether the worker trains on a GPU. With P parameters, of which T
    are trained, of w bytes each, the parts are

        libraries     `LIBRARIES_BYTES`
        weights       2 w P: the pretrained template, and the trial's copy
        training      3 w T: gradients and AdamW's two moments; on a GPU, 0
        checkpoints   3 w T: copies of the weights and the moments, or the checkpoint from which a training resumes
        activations   w times `_activations`; on a GPU, 0

    The features are not among them: Ray's object store holds them once per node, outside of its memory for workers.
    """
    model = meta_model(config, info)
    width = 8 if config.train.precision == "float64" else 4
    trained, whole = parameter_counts(model)
    activations = 0.0 if gpu else width * _activations(model, config, info, tokens)
    return int(LIBRARIES_BYTES + width * (2 * whole + (3 if gpu else 6) * trained) + activations)


def _activations(model: MultimodalModel, config: RunConfig, info: TableInfo, tokens: float) -> float:
    """Return the number of values that a step keeps for its backward pass.

    A transformer layer of width D with H heads keeps about 16 D values and 3 H L attention weights per token of a text
    of L tokens (Korthikanti et al., 2022. Reducing Activation Recomputation in Large Transformer Models,
    arXiv:2205.05198, section 4.1); with disentangled attention, 7 H L. A step keeps its tokens up to
    `pairs.activation_tokens`, and beyond that one micro-batch.
    """
    if not config.model.sees_text:
        return 0.0
    encoder: Any = model.text_encoder
    pairs, backbone = config.pairs, encoder.backbone.config
    groups = -(-pairs.groups_per_step // config.search.workers)
    step = min(2 * pairs.pairs_per_group * groups, info.splits["train"]) * tokens
    most = pairs.activation_tokens or 4 * pairs.pairs_per_group * config.features.max_tokens
    kept = step if step <= most else pairs.micro_batch_tokens
    maps = 7 if getattr(backbone, "relative_attention", False) else 3
    per_token = 16 * encoder.width + maps * backbone.num_attention_heads * tokens
    return float(kept * (encoder.n_layers - encoder.n_frozen) * per_token)
