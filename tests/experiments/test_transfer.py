"""Models of one data set on another: what starts from where, and what a repeated call does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from grcf_ray.data.features import build_features
from grcf_ray.errors import ConfigError
from grcf_ray.experiments.transfer import transfer
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.search.transfer import score_on
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.export import load_model
from grcf_ray.train.stage import predict

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore
    from grcf_ray.experiments.context import ExperimentContext

MakeContext = Callable[..., "ExperimentContext"]


def test_weights_of_there_score_here_as_zero_shot_does(
    make_model: Callable[..., Path], other: DatasetStore, tiny_backbone: Path
) -> None:
    """A model of here with the weights of there scales its scores to the labels of here; text alone needs no fit."""
    saved = load_model(make_model(modalities="text"))
    features = build_features(other, load_tokenizer(str(tiny_backbone)), saved.config.features)
    features = select_modalities(features, "text")
    model = initial_model(saved.config.model, features, seed=1)
    model.load_state_dict(saved.model.state_dict())
    device = torch.device("cpu")
    score_N = predict(model.eval(), features, features.valid, device=device, token_budget=1024)
    expected_N, _ = score_on(saved, other.read("valid"), other.info, fit=True)
    assert np.ptp(expected_N) > 1e-3
    assert score_N == pytest.approx(expected_N, abs=1e-5)


def test_what_cannot_be_transferred_is_refused(
    make_context: MakeContext, tiny_store: DatasetStore, fresh: Path, reproduce: Any
) -> None:
    with pytest.raises(ConfigError, match="--onto NAME"):
        transfer(make_context())
    code, _, err = reproduce("transfer", "--from", fresh, "--onto", "tiny", "--onto-data", tiny_store.folder)
    assert code == 2 and "these very data" in err
