"""What the search tests share: a search on the tiny data set, in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from grcf_ray.search.events import Listener
    from grcf_ray.search.space import Space
    from grcf_ray.search.stages import Search


@pytest.fixture
def make_search(ray_session: None, tiny_features: Features, tiny_space: Path, tmp_path: Path) -> Callable[..., Search]:
    """Makes a search of the tiny space, with settings of its own, that goes on with what `tmp_path/run` holds."""
    from grcf_ray.search.record import RunRecord
    from grcf_ray.search.space import load_space
    from grcf_ray.search.stages import Search

    def make(
        settings: dict[str, Any] | None = None, *listeners: Listener, space: Space | None = None, concurrent: int = 1
    ) -> Search:
        return Search(
            record=RunRecord(tmp_path / "run"),
            space=(space or load_space(tiny_space)).with_settings(settings or {}),
            features=tiny_features,
            protocol="mosi",
            concurrent=concurrent,
            listeners=listeners,
        )

    return make
