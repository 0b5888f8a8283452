"""The direct-MAE baseline as a search of its own: MAE alone, from the pretrained encoder, for both stages' cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from grcf_ray.config import ABLATIONS, DROPOUTS
from grcf_ray.search.space import Space
from grcf_ray.storage import StoragePath

DIRECT = "-direct"
"""What the name of the baseline's run ends with; the rest is that of the two-stage run."""

INHERITED = (
    "Modalities, where they are searched: Stage 2 inherits those that Stage 1's ranking chose, and the baseline "
    "searches its own."
)
"""What has to be said beside the comparison of the two searches."""

ONE_DROPOUT: Mapping[str, Any] = {f"stage2.{name}": None for name in DROPOUTS}
"""Leaves a search of one stage with one dropout of each kind, the model's."""

_SEARCHED = ("stage2.head_lr", "stage2.encoder_top_lr", "stage2.encoder_base_lr", "stage2.weight_decay")


def direct_space(space: Space) -> Space:
    """The baseline's space: Stage 2's learning rates and weight decay, and what Stage 1 searches of model and batch.

    Its one stage has one dropout of each kind, which is searched in Stage 1's range, as its modalities are. The
    two-stage search's Stage 2 may search its own dropouts (`stage2.fusion_dropout`), but it inherits the modalities.

    A trial has as many epochs as both stages together, and the search as many as theirs, so that it encodes as many
    utterances; everything else is the two-stage search's own.
    """
    config = space.config()
    first, second = config.stage1.epochs, config.stage2.epochs
    epochs = first * config.search.stage1_trials + second * config.search.stage2_trials
    model = {path: dim for path, dim in space.stage1.items() if path.startswith(("model.", "pairs."))}
    searched = {path: dim for path, dim in space.stage2.items() if path in _SEARCHED}
    # What the MAE alone does not read stays at the starting point.
    both = {**space.stage1, **space.stage2}
    start = {path: dim.start for path, dim in both.items() if path not in model and path not in searched}
    return dataclasses.replace(
        space,
        fixed={
            **space.fixed,
            **start,
            **ABLATIONS["direct-mae"],
            **ONE_DROPOUT,
            "stage2.epochs": first + second,
            "search.stage2_trials": max(1, round(epochs / max(1, first + second))),
        },
        stage1={},
        stage2={**model, **searched},
    )


def both_sides(place: StoragePath) -> dict[str, StoragePath]:
    """Where the two-stage search and the baseline beside it lie. place: either's."""
    name = place.name.removesuffix(DIRECT)
    return {"two-stage": place.beside(name), "direct": place.beside(name + DIRECT)}
