"""The command, and the parts that run searches."""

from __future__ import annotations

import functools
import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import Run, command

from grcf_ray.cli.bench import PARTS, app
from grcf_ray.errors import DataError

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tiny_space: Path, tiny_parquet: Path) -> Run:
    words = ("--dataset", "tiny", "--space", tiny_space, "--data", tiny_parquet, "--label-range", -3, 3)
    return functools.partial(command(app, capsys), *words)


def test_help_lists_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = command(app, capsys)("--help")
    listed = out.partition("Parts,")[2].partition("Examples:")[0]
    assert [line.split()[0] for line in listed.strip().splitlines() if line.startswith("  ")] == list(PARTS)
    for path in PARTS.values():
        module, _, function = path.partition(".")
        assert callable(getattr(import_module(f"grcf_ray.bench.{module}"), function))


def test_tables_as_json_and_markdown(run: Run, tmp_path: Path) -> None:
    """The parts run in their own order, whatever the order of the options."""
    words = ("--only", "frozen", "--only", "shares", "--repetitions", 2, "--json")
    code, out, err = run(*words, "--out", tmp_path / "new")
    assert code == 0 and err
    answer = json.loads((tmp_path / "new" / "parts.json").read_text())
    assert json.loads(out) == answer
    text = (tmp_path / "new" / "parts.md").read_text()
    assert f"- command: `{answer['command']}`" in text
    assert "| part | median s | of a step |\n| --- | ---: | ---: |\n" in text
    assert [table["name"] for table in answer["tables"]] == ["shares", "frozen"]
    assert answer["repetitions"] == 2
    assert all(len(row["seconds"]) == 2 for table in answer["tables"] for row in table["rows"])
    assert answer["versions"]["torch"]


def test_unknown_part(run: Run) -> None:
    code, _, err = run("--only", "frosen")
    assert code == 2
    assert all(word in err for word in ("'frosen'", "did you mean frozen", *PARTS))


def test_the_name_is_that_of_the_data(
    tiny_store: DatasetStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_setup(dataset: str, *others: object, **options: object) -> None:
        opened.append(dataset)
        raise DataError("opened")

    monkeypatch.setattr("grcf_ray.bench.setup.open_setup", open_setup)
    for words in ((), ("--dataset", "demo"), ("--data", tiny_store.folder)):
        assert command(app, capsys)(*words)[0] == 3
    assert opened == ["mosi", "demo", "tiny"]


@pytest.mark.integration
def test_the_slots_of_a_search_are_divided(run: Run) -> None:
    settings = ("stage1.epochs=1", "stage2.epochs=1", "search.concurrent=1")
    words = [word for setting in settings for word in ("--set", setting)]
    code, out, _ = run("--only", "search", *words, "--trials", 4, "--json")
    assert code == 0
    (search,) = json.loads(out)["tables"]
    rows = {row["name"]: row for row in search["rows"]}
    assert 0 < rows["training and validation"]["seconds"] < rows["all slots together"]["seconds"]
    assert 0 < rows["  writing the trials' records"]["share"] < 0.5
    assert 0 < rows["  processes started, one a slot"]["seconds"] < rows["everything else"]["seconds"]
    assert rows["idle at the end of a stage, without a trial"]["seconds"] >= 0
