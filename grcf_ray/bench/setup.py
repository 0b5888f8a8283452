"""What a benchmark measures with: data, configuration, machine, and the Ray that it may start."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import grcf_ray.cluster  # noqa: F401  before Ray

import ray
import torch

from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.data.features import Features
from grcf_ray.data.store import DatasetStore
from grcf_ray.search.space import Space
from grcf_ray.tables import Table
from grcf_ray.train.assemble import prepare_features

_PAPER_LENGTH = 50
"""Subwords that the paper's loop pads every text to."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What there is to measure with."""

    store: DatasetStore
    config: RunConfig
    space: Space
    device: torch.device
    repetitions: int
    trials: int
    """Of the search that is measured."""
    processes: int
    """Of the trials side by side."""
    folder: Path
    """Where what is written goes, and is deleted."""
    say: Callable[[str], None]
    tables: dict[str, Table] = dataclasses.field(default_factory=dict)
    """Of the parts so far, by name."""

    def whole(self) -> tuple[Features, RunConfig]:
        """Features and configuration with every layer of the text encoder trained, and texts of the paper's length."""
        config = build_config({**flatten(self.config), "model.frozen_layers": 0, "features.max_tokens": _PAPER_LENGTH})
        return prepare_features(self.store, config, cache=self.folder), config


@contextlib.contextmanager
def ray_ended() -> Iterator[None]:
    """End a Ray that was started meanwhile."""
    before = ray.is_initialized()
    try:
        yield
    finally:
        if not before:
            ray.shutdown()
