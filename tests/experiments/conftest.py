"""What tests of experiments share: a copy of the recorded search, and a context on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from grcf_ray.experiments.context import ExperimentContext


@pytest.fixture(scope="module")
def copied(recorded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the recorded run that a module's tests train in."""
    folder = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(recorded.folder, folder)
    return folder


@pytest.fixture
def make_context(recorded: Any, copied: Path, ray_session: None) -> Callable[..., ExperimentContext]:
    """Contexts on the copy, or on another folder, under two seeds unless told otherwise."""
    from grcf_ray.data.store import DatasetStore
    from grcf_ray.experiments.context import ExperimentContext
    from grcf_ray.search.record import RunRecord
    from grcf_ray.storage import storage_path

    def make(folder: Path | None = None, **more: Any) -> ExperimentContext:
        record = RunRecord(storage_path(folder or copied))
        return ExperimentContext(record, DatasetStore.open(recorded.data), **{"seeds": 2, "command": "again", **more})

    return make
