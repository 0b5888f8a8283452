"""`runs list`: a row for each run, broken ones included."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report.stored import change, narrow, record_of
from synthetic_run import Run

from grcf_ray.search.lease import Lease
from grcf_ray.storage import storage_path

Command = Callable[..., tuple[int, str, str]]
Answer = Callable[..., Any]


def test_list_has_each_run_with_the_figures_of_its_record(command: Command, answer: Answer, runs: Path) -> None:
    (row,) = answer("list")
    record, metrics = record_of(runs / "recorded"), json.loads((runs / "recorded/best/metrics.json").read_text())
    trials = [*record.trials(1), *record.trials(2)]
    assert (row["run"], row["state"], row["alive"]) == ("recorded", "finished", False)
    assert (row["dataset"], row["backbone"]) == ("tiny", "tiny-bert")
    assert [row[f"stage{stage}_{part}"] for stage in (1, 2) for part in ("done", "budget")] == [6, 6, 5, 5]
    assert row["best"] == metrics["trial"] == f"stage2/{record.ranked(2)[0].number}"
    assert row["objective"] == record.ranked(2)[0].objective
    assert {name: row[f"test/{name}"] for name in metrics["test"]} == metrics["test"]
    assert row["epochs"] == sum(trial.epoch for trial in trials)
    assert row["seconds"] == sum(trial.seconds for trial in trials)
    assert row["changed"] == record.read_run()["ended"]
    code, out, _ = command("list")
    assert code == 0
    (line,) = [line for line in narrow(out) if line.startswith("recorded")]
    assert line.split()[1:4] == ["finished", "6/6", "5/5"]
    assert f"{metrics['test']['mae']:.4f}" in line


def test_list_tells_a_broken_run_by_one_line_and_goes_on(command: Command, answer: Answer, runs: Path) -> None:
    for name, content in (("cut", '{"state": "fin'), ("empty", "{}"), ("list", "[]")):
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(content)
    shutil.copytree(runs / "recorded", runs / "newer")
    change(runs / "newer/run.json", schema_version=99)
    shutil.copytree(runs / "recorded", runs / "damaged")
    (runs / "damaged/stage1/trials/0003.json").write_text('{"number": 3}')
    # Neither is a run.
    (runs / "notes.txt").write_text("mine")
    (runs / "folder").mkdir()
    rows = {row["run"]: row for row in answer("list")}
    assert set(rows) == {"cut", "empty", "list", "newer", "damaged", "recorded"}
    assert {name for name, row in rows.items() if row["state"] == "broken"} == set(rows) - {"recorded"}
    assert "not JSON" in rows["cut"]["why"]
    assert "upgrade" in rows["newer"]["why"]
    code, out, _ = command("list")
    assert code == 0
    assert len([line for line in narrow(out) if line.startswith(("cut: ", "empty: ", "list: ", "newer: "))]) == 4
    (row,) = answer("list", "--state", "finished")
    assert row["run"] == "recorded"
    # Broken runs alone are listed too, and a place without runs is no error.
    shutil.rmtree(runs / "recorded")
    assert len(narrow(command("list")[1])) == 5
    code, out, err = command("list", "--storage", str(runs / "none"))
    assert (code, out) == (0, "")
    assert "holds no runs" in err


def test_list_tells_a_search_that_died_from_one_at_work(command: Command, answer: Answer, runs: Path) -> None:
    change(runs / "recorded/run.json", state="running")
    assert answer("list")[0]["state"] == "died"
    with Lease(storage_path(runs / "recorded"), "a search"):
        (row,) = answer("list", "--state", "running")
        assert row["alive"] is True
    # Without locks there is a lease that beats: one look does not tell.
    (runs / "recorded/lease.json").write_text("{}")
    (row,) = answer("list")
    assert (row["state"], row["alive"]) == ("running", None)
    assert "running?" in command("list")[1]


def test_list_sorts_the_best_first_and_filters(command: Command, answer: Answer, runs: Path) -> None:
    for name, mae, corr in (("worse", 0.9, 0.1), ("better", 0.1, 0.9)):
        shutil.copytree(runs / "recorded", runs / name)
        path = runs / name / "best/metrics.json"
        change(path, test=json.loads(path.read_text())["test"] | {"mae": mae, "corr": corr})
    change(runs / "worse/run.json", ended="2030-01-01T00:00:00+00:00")
    shutil.copytree(runs / "recorded", runs / "untested")
    (runs / "untested/best/metrics.json").unlink()

    def names(*argv: str) -> list[str]:
        return [row["run"] for row in answer("list", *argv)]

    assert names("--sort", "mae") == ["better", "recorded", "worse", "untested"]
    assert names("--sort", "corr")[0] == "better"
    assert names("--sort", "corr", "--reverse")[0] == "worse"
    assert names()[0] == "worse"
    assert names("--filter", "mae<0.6", "--sort", "run") == ["better", "recorded"]
    assert names("--filter", "dataset=mosi") == []
    code, _, err = command("list", "--sort", "mea")
    assert code == 2
    assert "mea: no such column" in err


def test_list_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    Run(tmp_path / "run").start().trials(1, "cc").trials(2, "c").finish()
    script = (
        "import sys; from grcf_ray import console; from grcf_ray.cli import runs\n"
        "try: console.run(runs.app, ['list', '--storage', sys.argv[1]])\n"
        "finally: print(sorted({'torch', 'ray', 'optuna', 'plotly', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    (head, row, modules) = done.stdout.splitlines()
    assert ("cost" in head.split(), row.split()[1], modules) == (True, "finished", "[]")


@pytest.mark.s3
def test_runs_in_object_storage(command: Command, answer: Answer, runs: Path, s3: str) -> None:
    bucket, _, query = s3.partition("?")
    uri = f"{bucket}/listed?{query}"
    with (storage_path(uri) / "recorded").writing_folder() as folder:
        shutil.copytree(runs / "recorded", folder, dirs_exist_ok=True)
    (row,) = answer("list", "--storage", uri)
    assert (row["run"], row["state"], row["stage1_done"]) == ("recorded", "finished", 6)
    run = f"{bucket}/listed/recorded?{query}"
    assert len(answer("show", run)["trials"]) == 11
    assert command("watch", run)[1].startswith("recorded: finished")
    assert command("export", run, "--to", f"{bucket}/tables/trials.json?{query}")[0] == 0
    assert len((storage_path(f"{bucket}/tables?{query}") / "trials.json").read_json()["trials"]) == 11
    assert answer("compare", run, "runs/recorded")["differences"] == {}
