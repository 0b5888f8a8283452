"""What the search tests share: a search on the tiny data set, in a folder of its own."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from commands import Run, command

if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from grcf_ray.data.store import DatasetStore
    from grcf_ray.search.events import Event, Listener
    from grcf_ray.search.space import Space
    from grcf_ray.search.stages import Search
    from grcf_ray.search.trial_table import TrialTable
    from tests.conftest import Recorded


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of a search that needs Ray as an integration test."""
    for item in items:
        if Path(__file__).parent in item.path.parents and "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker("integration")


def listen(monkeypatch: pytest.MonkeyPatch, act: Callable[[Event], None]) -> None:
    """Have the command's first listener do something at its events."""
    from grcf_ray.api import searching
    from grcf_ray.report import progress_lines

    class Witness(progress_lines.ProgressLines):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            act(event)

    monkeypatch.setattr(searching, "ProgressLines", Witness)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process; exit code, standard output and error."""
    from grcf_ray.cli.search import app

    run = command(app, capsys)

    def run_command(*argv: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["search", *map(str, argv)])
        return run(*argv)

    return run_command


@pytest.fixture
def tiny_argv(tiny_store: DatasetStore, tiny_space: Path, tmp_path: Path) -> list[Any]:
    """The arguments of a search of the tiny data set, with its runs in `tmp_path/runs`."""
    return ["--dataset", "tiny", "--data", tiny_store.folder, "--space", tiny_space, "--storage", tmp_path / "runs"]


def copy_recorded(recorded: Recorded, folder: Path) -> list[str]:
    """Copy the recorded run into a folder; return the arguments of its search there."""
    shutil.copytree(recorded.folder, folder / recorded.folder.name)
    argv = list(recorded.argv)
    argv[argv.index("--storage") + 1] = str(folder)
    return argv


@pytest.fixture
def make_search(
    ray_session: None, tiny_features: Features, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Search]:
    """Makes a search of the tiny space, with settings of its own, that goes on with what `tmp_path/run` holds.

    Further arguments are the search's: concurrent, stop, reopen, retrainings. Broken trials start again at once.
    """
    from grcf_ray.search import callback
    from grcf_ray.search.record import RunRecord
    from grcf_ray.search.space import load_space
    from grcf_ray.search.stages import Search
    from grcf_ray.storage import storage_path

    monkeypatch.setattr(callback, "FIRST_PAUSE_S", 0.0)

    def make(
        settings: dict[str, Any] | None = None, *listeners: Listener, space: Space | None = None, **more: Any
    ) -> Search:
        record = RunRecord(storage_path(tmp_path / "run"))
        if not record.exists:
            # A command's session begins run.json; what Stage 2 starts from is kept in it.
            record.write_run({"state": "running"})
        return Search(
            record=record,
            space=(space or load_space(tiny_space)).with_settings(settings or {}),
            features=tiny_features,
            protocol="own",
            listeners=listeners,
            **{"concurrent": 1, **more},
        )

    return make


@pytest.fixture(scope="session")
def table_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a made table of trials, with scores."""
    from record_trials import write_table

    from tests.search.made_trials import ABOUT, TRIALS

    path = tmp_path_factory.mktemp("table") / "trials.parquet"
    write_table(path, ABOUT, TRIALS)
    return path


@pytest.fixture(scope="session")
def table(table_path: Path) -> TrialTable:
    """A made table of trials, with the errors of utterances."""
    from grcf_ray.search.table_file import read_table

    return read_table(table_path, with_errors=True)
