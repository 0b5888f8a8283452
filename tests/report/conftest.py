"""What the tests of reports share: a finished run on record, and the command line that reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import pytest
from report.stored import record_of, restore

from grcf_ray.storage import storage_path


@pytest.fixture(scope="session")
def stored_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Read it only; `runs` has a copy to change."""
    return restore(tmp_path_factory.mktemp("stored") / "recorded")


@pytest.fixture(scope="session")
def written(stored_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the finished run, with its data beside it."""
    from grcf_ray.report.page import write_report

    page = tmp_path_factory.mktemp("page") / "report.html"
    write_report(record_of(stored_run), page=storage_path(page))
    return page


@pytest.fixture
def runs(stored_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with a copy of the finished run, and the working directory above it."""
    shutil.copytree(stored_run, tmp_path / "runs" / "recorded")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command `runs`; its exit code, what it answers, what it says beside."""
    from grcf_ray.cli.runs import app

    return commands.command(app, capsys)


@pytest.fixture
def answer(command: Callable[..., tuple[int, str, str]]) -> Callable[..., Any]:
    """Runs the command `runs`, which succeeds; its answer in JSON."""

    def run(*argv: str) -> Any:
        code, out, err = command(*argv, "--json")
        assert code == 0, err
        return json.loads(out)

    return run
