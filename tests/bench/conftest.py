from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from grcf_ray.bench.setup import Setup
from grcf_ray.search.space import load_space

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from grcf_ray.data.store import DatasetStore


@pytest.fixture
def setup_of(tiny_store: DatasetStore, tiny_space: Path, tmp_path: Path) -> Callable[..., Setup]:
    """Make a setup with the tiny data and space; settings change the space, the rest the setup."""

    def make(settings: dict[str, Any] | None = None, **changes: Any) -> Setup:
        space = load_space(tiny_space).with_settings(settings or {})
        values = {"say": lambda _: None, "repetitions": 1, "trials": 6, **changes}
        return Setup(tiny_store, space, torch.device("cpu"), tmp_path, **values)

    return make
