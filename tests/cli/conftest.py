"""The command `predict`, and the models that its tests use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli.models import model_of

from grcf_ray import console
from grcf_ray.cli.predict import app
from grcf_ray.data.store import DatasetStore

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process; exit code, standard output and error. However long it takes, it is quick."""
    monkeypatch.setattr("grcf_ray.console._QUIET_S", float("inf"))

    def run_command(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            console.run(app, [str(word) for word in argv])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run_command


@pytest.fixture(scope="module")
def full(tiny_backbone: Path, tiny_store: DatasetStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of text, audio and vision."""
    return model_of(tmp_path_factory.mktemp("full") / "best", tiny_backbone, tiny_store)


@pytest.fixture(scope="module")
def textual(tiny_backbone: Path, tiny_store: DatasetStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of text alone."""
    return model_of(tmp_path_factory.mktemp("textual") / "best", tiny_backbone, tiny_store, model__modalities="text")
