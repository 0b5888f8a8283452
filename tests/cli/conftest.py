"""The command `predict`, and the models that its tests use."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.models import model_of
from commands import Run, command

from grcf_ray.cli.predict import app
from grcf_ray.data.store import DatasetStore


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `predict` in this process; however long it takes, it is quick."""
    monkeypatch.setattr("grcf_ray.console._QUIET_S", float("inf"))
    return command(app, capsys)


@pytest.fixture(scope="module")
def full(tiny_backbone: Path, tiny_store: DatasetStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of text, audio and vision."""
    return model_of(tmp_path_factory.mktemp("full") / "best", tiny_backbone, tiny_store)


@pytest.fixture(scope="module")
def textual(tiny_backbone: Path, tiny_store: DatasetStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of text alone."""
    return model_of(tmp_path_factory.mktemp("textual") / "best", tiny_backbone, tiny_store, model__modalities="text")
