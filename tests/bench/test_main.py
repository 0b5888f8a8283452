from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from grcf_ray import console
from grcf_ray.bench.parts import MEASURES
from grcf_ray.cli.bench import PARTS, app

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tiny_space: Path, tiny_parquet: Path) -> Run:
    words = ("--dataset", "tiny", "--space", tiny_space, "--data", tiny_parquet, "--label-range", -3, 3)

    def call(*more: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            console.run(app, [str(word) for word in (*words, *more)])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return call


def test_help_lists_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(MEASURES) == PARTS
    with pytest.raises(SystemExit):
        console.run(app, ["--help"])
    listed = capsys.readouterr().out.partition("Parts,")[2].partition("Examples:")[0]
    assert tuple(line.split()[0] for line in listed.strip().splitlines() if line.startswith("  ")) == PARTS


def test_tables_as_text_json_and_markdown(run: Run, tmp_path: Path) -> None:
    words = ("--only", "frozen", "--only", "shares", "--repetitions", 2)
    code, out, err = run(*words, "--out", tmp_path / "new")
    assert code == 0
    assert out.index("Shares") < out.index("frozen layers")
    assert err
    written = json.loads((tmp_path / "new" / "parts.json").read_text())
    text = (tmp_path / "new" / "parts.md").read_text()
    assert f"- command: `{written['command']}`" in text
    assert "| part | median s | of a step |\n| --- | ---: | ---: |\n" in text
    code, out, _ = run(*words, "--json")
    for answer in (written, json.loads(out)):
        assert [table["name"] for table in answer["tables"]] == ["shares", "frozen"]
        assert answer["repetitions"] == 2
        assert all(len(row["seconds"]) == 2 for table in answer["tables"] for row in table["rows"])
        assert answer["versions"]["torch"]


def test_unknown_part(run: Run) -> None:
    code, _, err = run("--only", "frosen")
    assert code == 2
    assert all(word in err for word in ("'frosen'", "did you mean frozen", *PARTS))


@pytest.mark.slow
def test_search_and_packing(run: Run) -> None:
    code, out, _ = run("--only", "search", "--only", "packing", "--repetitions", 1, "--trials", 8, "--json")
    assert code == 0
    search, packing = json.loads(out)["tables"]
    rows = {row["name"]: row for row in search["rows"]}
    assert 0 < rows["training and validation"]["seconds"] < rows["all slots together"]["seconds"]
    assert 0 < rows["  writing the trials' records"]["share"] < 0.5
    assert 0 < rows["  processes started, one a slot and stage"]["seconds"] < rows["everything else"]["seconds"]
    assert rows["idle at the end of a stage, without a trial"]["seconds"] >= 0
    assert rows["from trial to trial, median"]["seconds"] > 0
    assert packing["rows"][0]["name"] == "1 process"
