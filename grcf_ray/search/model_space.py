"""Fit a search space that was written for another model to the model that was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from grcf_ray.config import ModelConfig
from grcf_ray.model.card import card_of, search_entries
from grcf_ray.search.direct_baseline import ONE_DROPOUT, direct_space
from grcf_ray.search.space import Dimension, Space, dimension_of

_SHARED = ("model.modalities",)
"""Settings of the model that every model reads; the others are GRCF's."""


def model_space(space: Space, settings: Mapping[str, Any], *, two_stage: bool = False) -> Space:
    """Return the space with the given settings fixed, and for another model than the space's with its own options.

    A model that is not trained in two stages gets the space of the direct baseline, at the same cost. It searches the
    options that its card names. two_stage: train it in both stages of the space all the same; Stage 1 searches its
    options.
    """
    chosen = space.with_settings(settings)
    name = chosen.fixed.get("model.name", ModelConfig.name)
    if name == space.fixed.get("model.name", ModelConfig.name) or card_of(name).two_stage:
        return chosen
    fitted, own = (
        chosen.with_settings(ONE_DROPOUT) if two_stage else direct_space(chosen),
        own_dimensions(name, settings),
    )
    first, second = (
        {path: dim for path, dim in searched.items() if not path.startswith("model.") or path in _SHARED}
        for searched in (fitted.stage1, fitted.stage2)
    )
    if two_stage:
        return dataclasses.replace(fitted, stage1={**first, **own}, stage2=second)
    return dataclasses.replace(fitted, stage2={**second, **own})


def own_dimensions(name: str, fixed: Mapping[str, Any]) -> dict[str, Dimension]:
    """Return what a model's card searches, by path, except fixed settings."""
    return {path: dimension_of(path, entry) for path, entry in search_entries(name).items() if path not in fixed}
