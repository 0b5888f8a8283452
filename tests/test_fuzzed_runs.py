"""Whatever happened to a run's files, a command does its work or says what is wrong, and touches nothing outside."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grcf_ray import console

if TYPE_CHECKING:
    from tests.conftest import Recorded

MUTATIONS = int(os.environ.get("GRCF_TEST_FUZZ", "12"))
FIRST = int(os.environ.get("GRCF_TEST_FUZZ_FIRST", "0"))
"""How many seeds are tried, and from which on."""
COMMANDS = ("search", "report", "predict", "evaluate", "show")
Ask = Callable[[str, Path], tuple[int, str, str]]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """What was done to a run, as disks, copies, editors and people damage files."""

    kind: str
    path: str
    """Within the run."""
    outside: Path | None = None
    """Where a link leads to."""


def mutate(run: Path, seed: int) -> Mutation:
    """Damage one file or folder of a run; the seed makes the same damage again."""
    rng = random.Random(seed)
    # Of the many files of a kind none is more likely than the only one of another.
    kinds: dict[str, list[Path]] = {}
    for path in sorted(run.rglob("*")):
        sort = "events" if "tfevents" in path.name else path.suffix or path.name
        kinds.setdefault(f"{path.relative_to(run).parts[0]} {sort if path.is_file() else 'folder'}", []).append(path)
    path = rng.choice(kinds[rng.choice(sorted(kinds))])
    name, hows = str(path.relative_to(run)), ["deleted", "replaced", "a link", "a dangling link"]
    if path.is_file():
        hows += ["flipped", "cut off", "emptied", "foreign JSON"] + 8 * ["edited JSON"] * (path.suffix == ".json")
    how = rng.choice(hows)
    if "link" in how:
        outside = run.with_name(f"outside-{path.name}")
        path.rename(outside)
        path.symlink_to(outside if how == "a link" else run.with_name("nowhere"))
        return Mutation(how, name, outside)
    if how in ("deleted", "replaced"):
        folder = path.is_dir()
        shutil.rmtree(path) if folder else path.unlink()
        if how == "replaced":
            path.write_text("a file") if folder else path.mkdir()
        return Mutation(how, name)
    content = bytearray(path.read_bytes())
    if how == "flipped" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how in ("cut off", "emptied"):
        del content[rng.randrange(len(content) + 1) if how == "cut off" else 0 :]
    elif how == "foreign JSON":
        content = bytearray(rng.choice((b"{}", b"[]", b"null", b"7", b'"text"', b'{"state": "finished"}')))
    elif how == "edited JSON":
        content = bytearray(json.dumps(edited(json.loads(content), rng)).encode())
    path.write_bytes(content)
    return Mutation(how, name)


def edited(content: Any, rng: random.Random) -> Any:
    """A key less, more or misspelt, or a value of another kind, anywhere in the content."""
    inner = containers(content)
    at = rng.choice(inner) if inner else content
    if isinstance(at, dict):
        key = rng.choice(sorted(at)) if at else "key"
        value = at.pop(key, None)
        choice = rng.randrange(4)
        if choice == 1:
            at |= {key: value, "another": rng.choice((1, "text", None))}
        elif choice == 2:
            at[key[1:] + "x"] = value
        elif choice == 3:
            at[key] = rng.choice((None, True, -1, 1e300, "text", [], {}, [1], {"a": 1}))
    else:
        at[:] = rng.choice(([], at * 2, [*at, None], [*at, {}], at[1:]))
    return content


def containers(value: Any) -> list[Any]:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value] * isinstance(value, (dict, list)) + [deeper for part in inner for deeper in containers(part)]


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
    hashed = hashlib.sha256()
    for file in sorted([path, *path.rglob("*")]):
        hashed.update(str(file.relative_to(path.parent)).encode())
        hashed.update(file.read_bytes() if file.is_file() else b"")
    return hashed.hexdigest()


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
