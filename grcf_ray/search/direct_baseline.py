"""Build the search space of the direct-MAE baseline: MAE alone, from the pretrained encoder, at both stages' cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from grcf_ray.config import ABLATIONS, DROPOUTS
from grcf_ray.search.space import Space, stage_budgets
from grcf_ray.storage import StoragePath

DIRECT = "-direct"
"""Suffix that the baseline's run adds to the name of the two-stage run."""

INHERITED = (
    "If modalities are searched: Stage 2 inherits the modalities that Stage 1's ranking chose, while the baseline "
    "searches them itself."
)
"""Caveat to print beside the comparison of the two searches."""

ONE_DROPOUT: Mapping[str, Any] = {f"stage2.{name}": None for name in DROPOUTS}
"""Settings that leave a one-stage search with one dropout of each kind, the model's."""

_SEARCHED = ("stage2.head_lr", "stage2.encoder_top_lr", "stage2.encoder_base_lr", "stage2.weight_decay")


def direct_space(space: Space) -> Space:
    """Return the baseline's space: Stage 2's learning rates and weight decay, Stage 1's model and pair settings.

    The baseline's one stage has one dropout of each kind, searched in Stage 1's range, as its modalities are. In the
    two-stage search, Stage 2 may search its own dropouts (`stage2.fusion_dropout`), but inherits the modalities.

    A trial has as many epochs as both stages together, and the search as many epochs as both stages' trials, so that
    it encodes as many utterances. All other settings equal those of the two-stage search.
    """
    config = space.config()
    first, second = config.stage1.epochs, config.stage2.epochs
    epochs = sum(trials * epochs for trials, epochs in stage_budgets(config).values())
    model = {path: dim for path, dim in space.stage1.items() if path.startswith(("model.", "pairs."))}
    searched = {path: dim for path, dim in space.stage2.items() if path in _SEARCHED}
    # Settings that MAE does not use stay at the starting point.
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
    """Return the folders of the two-stage search and of its baseline. place: either of the two."""
    name = place.name.removesuffix(DIRECT)
    return {"two-stage": place.beside(name), "direct": place.beside(name + DIRECT)}
