"""Prepare training: features of a data set, and a model with initial weights."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from grcf_ray.config import NEEDS_TEXT, Modalities, ModelConfig, RunConfig
from grcf_ray.console import Progress
from grcf_ray.data.array_files import cached_array
from grcf_ray.data.batches import Batch, length_sorted, micro_batches
from grcf_ray.data.features import Features, Ragged, SplitFeatures, build_features
from grcf_ray.errors import ConfigError, DataError
from grcf_ray.model.base import MultimodalModel
from grcf_ray.model.build import build_model
from grcf_ray.model.card import card_of
from grcf_ray.model.pretrained import load_backbone, load_tokenizer
from grcf_ray.model.text_encoder import TextEncoder, position_limit
from grcf_ray.train.stage import seed_torch

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore

FROZEN_TOKEN_BUDGET = 4096
"""Largest number of padded tokens in a batch of the frozen encoder."""


@lru_cache(maxsize=1)
def pretrained_backbone(backbone: str) -> nn.Module:
    """Return the pretrained backbone on the CPU, loaded once per process. Copy it; never train it."""
    return load_backbone(backbone).requires_grad_(True).eval()


@lru_cache(maxsize=1)
def backbone_sha256(backbone: str) -> str:
    """Return a hash of the pretrained weights, which must be equal in every process."""
    return _weights_sha256(pretrained_backbone(backbone))


def prepare_features(store: DatasetStore, config: RunConfig, *, cache: Path | None = None) -> Features:
    """Return the features of the train and valid splits, with the output of frozen layers if the model has some."""
    tokenizer = None
    if config.model.sees_text:
        tokenizer = load_tokenizer(config.model.backbone)
        limits = (tokenizer.model_max_length, position_limit(pretrained_backbone(config.model.backbone)))
        limit = min(limit for limit in limits if limit is not None)
        if config.features.max_tokens > limit:
            raise ConfigError(
                f"features.max_tokens = {config.features.max_tokens}: the limit of the backbone is {limit}; "
                f"use --set features.max_tokens={limit}"
            )
    features = build_features(store, tokenizer, config.features, cache=cache)
    for name, split in (("train", features.train), ("valid", features.valid)):
        if len(np.unique(split.label_N)) < 2:
            raise DataError(f"all labels of the {name} split are equal, so there is no order to learn")
    if tokenizer is None:
        return features
    # Built and tried even if no layer is frozen: an unusable backbone must fail before the first trial.
    encoder = TextEncoder(
        copy.deepcopy(pretrained_backbone(config.model.backbone)), config.model.text_vector, config.model.frozen_layers
    ).eval()
    encoder.probe(_longest_text(features), features.pad_token_id)
    if encoder.n_frozen == 0:
        return features
    identity = _weights_sha256(encoder.backbone)
    states = card_of(config.model.name).reads_states
    return dataclasses.replace(
        features,
        train=_with_frozen(features, "train", encoder, identity, states=states),
        valid=_with_frozen(features, "valid", encoder, identity, states=states),
    )


def _longest_text(features: Features) -> Tensor:
    """Return the tokens [L] of the longest text in train and valid."""
    texts = []
    for split in (features.train, features.valid):
        assert split.tokens is not None
        longest = int(split.tokens.lengths.argmax())
        texts.append(split.tokens.values[slice(*split.tokens.offsets[longest : longest + 2])])
    return torch.from_numpy(max(texts, key=len).astype(np.int64))


def select_modalities(features: Features, modalities: Modalities) -> Features:
    """Return the features without the modalities that a model does not use.

    ConfigError if the model needs a modality that the features lack.
    """
    sees_text = ModelConfig(modalities=modalities).sees_text
    if sees_text and features.train.tokens is None:
        raise ConfigError(f"model.modalities = {modalities}: the features of this run have no text")
    if not sees_text and features.task == "classification":
        raise ConfigError(NEEDS_TEXT.format(modalities))
    if modalities == "all":
        return features
    for name, dim in (("audio", features.audio_dim), ("vision", features.vision_dim)):
        if name in modalities and dim is None:
            raise ConfigError(
                f"model.modalities = {modalities}: the data have no {name}; all uses every modality that they have"
            )
    return dataclasses.replace(features, train=features.train.only(modalities), valid=features.valid.only(modalities))


def initial_model(config: ModelConfig, features: Features, *, seed: int) -> MultimodalModel:
    """Return a model with the pretrained backbone, if it uses text, and other weights drawn from the seed.

    features: those of `select_modalities`. A modality that they lack has no branch.
    """
    backbone = copy.deepcopy(pretrained_backbone(config.backbone)) if config.sees_text else None
    # Seed after loading the backbone: the first load can draw random numbers.
    seed_torch(seed)
    return build_model(
        backbone,
        config,
        task=features.task,
        audio_dim=features.audio_dim,
        vision_dim=features.vision_dim,
        half_range=features.half_range,
        n_train=len(features.train),
    )


def text_vectors(
    features: Features, split: SplitFeatures, encoder: TextEncoder, *, token_budget: int = FROZEN_TOKEN_BUDGET
) -> NDArray[np.float32]:
    """Return the text vectors [N, D] of a split, in its order and in the encoder's own type."""
    parts = list(_encoded(features, split, encoder, token_budget))
    sorted_ND = torch.cat([vector_BD for _, vector_BD in parts]).numpy()
    vector_ND: NDArray[np.float32] = np.empty_like(sorted_ND)
    vector_ND[np.concatenate([index_B for index_B, _ in parts])] = sorted_ND
    return vector_ND


@torch.no_grad()
def _encoded(
    features: Features, split: SplitFeatures, encode: Callable[[Batch], Tensor], token_budget: int
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Yield the result for each batch of a split, with the places of its utterances."""
    order = length_sorted(split, np.arange(len(split)))
    done, progress = 0, Progress("encoding utterances", len(split))
    for batch in micro_batches(features, split, order, token_budget):
        result = encode(batch)
        yield order[done : done + len(result)], result
        done += len(result)
        progress.add(len(result))


def _with_frozen(features: Features, name: str, encoder: TextEncoder, identity: str, *, states: bool) -> SplitFeatures:
    """Return a split with the output of the frozen layers; of a wholly frozen encoder the vectors, unless the model
    reads states."""
    split: SplitFeatures = getattr(features, name)
    assert split.tokens is not None
    folder = Path(features.folder) / name
    if encoder.n_frozen == encoder.n_layers and not states:
        vectors = cached_array(
            folder, f"vector-{encoder.text_vector}-{identity}", lambda: text_vectors(features, split, encoder)
        )
        return dataclasses.replace(split, vector_ND=vectors)
    hidden = cached_array(
        folder, f"hidden-{encoder.n_frozen}-{identity}", lambda: _frozen_hidden(features, split, encoder)
    )
    return dataclasses.replace(split, hidden=Ragged(hidden, split.tokens.offsets))


def _frozen_hidden(features: Features, split: SplitFeatures, encoder: TextEncoder) -> NDArray[np.float32]:
    """Return the output [T, D] of the frozen layers for every token of the split."""
    assert split.tokens is not None
    hidden_TD = np.empty((len(split.tokens.values), encoder.width), np.float32)
    for index_B, hidden_BLD in _encoded(features, split, encoder.frozen_hidden, FROZEN_TOKEN_BUDGET):
        for utterance, hidden_LD in zip(index_B, hidden_BLD.numpy(), strict=True):
            start, stop = split.tokens.offsets[utterance : utterance + 2]
            hidden_TD[start:stop] = hidden_LD[: stop - start]
    return hidden_TD


def _weights_sha256(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]
