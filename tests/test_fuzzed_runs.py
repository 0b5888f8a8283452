"""Whatever happened to a run's files, a command does its work or says what is wrong, and touches nothing outside."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fuzz_runs import mutate

from grcf_ray import console

if TYPE_CHECKING:
    from tests.conftest import Recorded

MUTATIONS = int(os.environ.get("GRCF_TEST_FUZZ", "12"))
FIRST = int(os.environ.get("GRCF_TEST_FUZZ_FIRST", "0"))
"""How many seeds are tried, and from which on."""
COMMANDS = ("search", "report", "predict", "evaluate", "show")
Ask = Callable[[str, Path], tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, computed once for all searches."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def ask(
    recorded: Recorded,
    tiny_parquet: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Ask:
    """Runs a command on a run in this process: its exit code, what it answers, what it says beside."""
    monkeypatch.setenv("GRCF_CACHE", str(cache))

    def run(command: str, folder: Path) -> tuple[int, str, str]:
        search = list(recorded.argv)
        search[search.index("--storage") + 1] = str(folder.parent)
        argv = {
            "search": search,
            "report": [str(folder)],
            "predict": [str(folder), "--input", str(tiny_parquet), "--output", str(tmp_path / "scores.csv")],
            "evaluate": [str(folder), "--split", "valid", "--json"],
            "show": ["show", str(folder), "--json"],
        }[command]
        module = {"show": "runs"}.get(command, command)
        monkeypatch.setattr(sys, "argv", [command, *argv])
        with pytest.raises(SystemExit) as ended:
            console.run(import_module(f"grcf_ray.cli.{module}").app, argv)
        out, err = capsys.readouterr()
        if command == "predict" and ended.value.code == 0:
            out = (tmp_path / "scores.csv").read_text()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run


def begun_anew(recorded: Recorded, folder: Path) -> Path:
    """A copy of the finished run whose search goes through the whole record once more."""
    shutil.copytree(recorded.folder, folder / "recorded")
    path = folder / "recorded" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "interrupted"}))
    return folder / "recorded"


def digest(path: Path) -> str:
    """Of names and content of all that lies there."""
    found = hashlib.sha256()
    for file in sorted([path, *path.rglob("*")]):
        found.update(str(file.relative_to(path.parent)).encode())
        found.update(file.read_bytes() if file.is_file() else b"")
    return found.hexdigest()


@pytest.mark.integration
@pytest.mark.timeout(600 + 30 * MUTATIONS)
def test_damaged_runs(ask: Ask, recorded: Recorded, tmp_path: Path) -> None:
    whole = begun_anew(recorded, tmp_path / "whole")
    answers = {command: ask(command, whole) for command in COMMANDS}
    assert {code for code, *_ in answers.values()} == {0}
    wrong = []
    for seed in range(FIRST, FIRST + MUTATIONS):
        command = random.Random(-1 - seed).choice(COMMANDS)
        folder = begun_anew(recorded, tmp_path / str(seed))
        mutation = mutate(folder, seed)
        before = mutation.outside and digest(mutation.outside)
        code, out, err = ask(command, folder)
        done = f"{seed}: {command}, {mutation.path} {mutation.kind}: {code}"
        said = str(folder) in err or Path(mutation.path).name in err
        same = command not in ("predict", "evaluate") or out == answers[command][1]
        if not (same if code == 0 else code in (2, 3, 4) and said):
            wrong.append(f"{done}\n{err[-600:]}")
        if mutation.outside and digest(mutation.outside) != before:
            wrong.append(f"{done}\n{mutation.outside} has changed")
        shutil.rmtree(tmp_path / str(seed))
    assert not wrong, "\n".join(wrong)
