"""Fixtures of the experiments' tests: copies of the recorded search, and contexts on them."""

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
    """Return a copy of the recorded run in which a module's tests train."""
    folder = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(recorded.folder, folder)
    return folder


@pytest.fixture
def fresh(recorded: Any, tmp_path: Path) -> Path:
    """Return a copy of the recorded run for one test."""
    folder: Path = tmp_path / "run"
    shutil.copytree(recorded.folder, folder)
    return folder


@pytest.fixture
def make_context(recorded: Any, copied: Path, ray_session: None) -> Callable[..., ExperimentContext]:
    """Return a maker of contexts on the module's copy or on another folder, with two seeds by default."""
    from grcf_ray.data.store import DatasetStore
    from grcf_ray.experiments.context import ExperimentContext
    from grcf_ray.search.record import RunRecord
    from grcf_ray.storage import storage_path

    def make(folder: Path | None = None, **more: Any) -> ExperimentContext:
        record = RunRecord(storage_path(folder or copied))
        return ExperimentContext(record, DatasetStore.open(recorded.data), **{"seeds": 2, "command": "again", **more})

    return make
