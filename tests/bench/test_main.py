"""The command, and the parts that run searches."""

from __future__ import annotations

import functools
import json
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import Run, command

from grcf_ray.bench.scale import proposals_table, scale_table
from grcf_ray.bench.searching import Meter, scheduler_table
from grcf_ray.cli.bench import PARTS, app
from grcf_ray.errors import DataError
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from grcf_ray.bench.setup import Setup
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
def test_search_and_packing(run: Run) -> None:
    settings = ("stage1.epochs=1", "stage2.epochs=1", "search.concurrent=1")
    words = [word for setting in settings for word in ("--set", setting)]
    code, out, _ = run("--only", "search", "--only", "packing", *words, "--trials", 4, "--repetitions", 1, "--json")
    assert code == 0
    search, packing = json.loads(out)["tables"]
    rows = {row["name"]: row for row in search["rows"]}
    assert 0 < rows["training and validation"]["seconds"] < rows["all slots together"]["seconds"]
    assert 0 < rows["  writing the trials' records"]["share"] < 0.5
    assert 0 < rows["  processes started, one a slot"]["seconds"] < rows["everything else"]["seconds"]
    assert rows["idle at the end of a stage, without a trial"]["seconds"] >= 0
    assert packing["rows"][0]["name"] == "1 process"


def test_costs_of_each_part_exclude_the_first_trial() -> None:
    meter = Meter()
    # The first trial takes 100 s, each further trial a second more than the trial before.
    meter.marks = [(0.0, 0.0, 0.0), (100.0, 10.0, 1e6)]
    for number in range(1, 9):
        wall, cpu, memory = meter.marks[-1]
        meter.marks.append((wall + number, cpu + 0.5, memory + 2000))
    rows = meter.costs(2)
    assert [row["name"] for row in rows] == ["2 to 5", "6 to 9"]
    assert [(row["wall"], row["cpu"], row["memory"]) for row in rows] == [(2.5, 0.5, 2.0), (6.5, 0.5, 2.0)]


@pytest.mark.integration
@pytest.mark.usefixtures("ray_session")
def test_trials_without_work_are_run_and_recorded(setup_of: Callable[..., Setup]) -> None:
    setup = setup_of()
    table = scheduler_table(setup, trials=13, concurrent=2)
    assert sum(row["trials"] for row in table.rows) == 11
    assert all(row["wall"] > 0 and row["cpu"] > 0 for row in table.rows)
    recorded = RunRecord(storage_path(setup.folder / "scheduler")).trials(1)
    assert [(trial.number, trial.state, trial.epoch) for trial in recorded] == [(n, "complete", 1) for n in range(13)]


def test_the_driver_at_scale_keeps_a_whole_record(setup_of: Callable[..., Setup], tmp_path: Path) -> None:
    """With results instead of processes, the search is a real one."""
    table = scale_table(setup_of(storage=str(tmp_path / "runs")), at_a_time=(5,), epoch_s=0.2)
    (row,) = table.rows
    assert row["name"] == "5"
    assert all(row[key] > 0 for key in ("epoch", "epoch_cpu", "launch", "end", "process", "behind"))
    run = max((tmp_path / "runs").iterdir())
    trials = RunRecord(storage_path(run)).trials(1)
    assert [trial.number for trial in trials] == list(range(6))
    assert {trial.state for trial in trials} == {"complete", "pruned"}
    # The epochs after which a trial went on.
    assert row["epochs"] == sum(trial.epoch - 1 for trial in trials)
    assert (run / "tensorboard" / "stage1" / "0005").is_dir()
    (memory,) = re.findall(r"needs (\d+) kB", " ".join(table.notes))
    assert int(memory) > 0


def test_proposals_after_few_and_many_trials(setup_of: Callable[..., Setup]) -> None:
    table = proposals_table(setup_of(), recorded=(3, 20))
    assert [row["name"] for row in table.rows] == ["3", "20"]
    assert all(len(row["seconds"]) == 5 and row["median"] > 0 for row in table.rows)
