"""`runs export`: trials as a table of every format, and as Optuna studies."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import text_of
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from report.stored import EVIL, record_of
from waiting import free_port, wait_for

from grcf_ray.report.export import typed_table
from grcf_ray.search.record import TrialRecord

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

Command = Callable[..., tuple[int, str, str]]
SQLITE = "sqlite:///trials.db"
TO_OPTUNA = ("export", "runs/recorded", "--to", SQLITE)


def trials_of(runs: Path) -> list[TrialRecord]:
    record = record_of(runs / "recorded")
    return [*record.trials(1), *record.trials(2)]


def test_export_to_parquet_is_typed_and_exact(command: Command, runs: Path) -> None:
    code, out, err = command("export", "runs/recorded", "--to", "trials.parquet")
    assert (code, out) == (0, ""), err
    table = pq.read_table("trials.parquet")
    kinds = {name: table.schema.field(name).type for name in table.column_names}
    assert kinds["number"] == kinds["seed"] == kinds["finalist"] == pa.int64()
    assert kinds["objective"] == kinds["stage1.head_lr"] == kinds["best/valid/mae"] == pa.float64()
    assert kinds["state"] == kinds["model.modalities"] == kinds["error"] == pa.string()
    for row, trial in zip(table.to_pylist(), trials_of(runs), strict=True):
        assert (row["stage"], row["number"], row["state"]) == (trial.stage, trial.number, trial.state)
        assert row["objective"] == trial.objective
        assert row["seconds"] == trial.seconds
        searched = {path: value for path, value in trial.params.items() if path != "finalist"}
        assert {path: row[path] for path in searched} == searched
        assert trial.best is not None
        assert {name: row[f"best/{name}"] for name in trial.best} == trial.best
        if trial.stage == 2:
            assert row["finalist"] == int(trial.params["finalist"])
            first = record_of(runs / "recorded").trial(1, row["finalist"])
            assert {path: row[path] for path in first.params} == first.params


@pytest.mark.parametrize(
    ("values", "kind", "written"),
    [
        ([True, None, False], pa.bool_(), [True, None, False]),
        ([1, None, 2.5], pa.float64(), [1.0, None, 2.5]),
        ([1, None, "a"], pa.string(), ["1", None, "a"]),
        ([True, 1, 2.5], pa.string(), ["True", "1", "2.5"]),
        ([None, None], pa.string(), [None, None]),
    ],
)
def test_a_column_has_one_type(values: list[Any], kind: pa.DataType, written: list[Any]) -> None:
    column = typed_table([{"x": value} for value in values])["x"]
    assert (column.type, column.to_pylist()) == (kind, written)


def test_export_to_csv_and_json_has_every_digit(command: Command, runs: Path) -> None:
    assert command("export", "runs/recorded", "--to", "trials.csv")[0] == 0
    assert command("export", "runs/recorded", "--to", "trials.json")[0] == 0
    with Path("trials.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = json.loads(Path("trials.json").read_text())["trials"]
    for line, row, trial in zip(lines, rows, trials_of(runs), strict=True):
        assert float(line["objective"]) == row["objective"] == trial.objective
        assert float(line["stage1.encoder_lr"]) == row["stage1.encoder_lr"]
        assert int(line["seed"]) == row["seed"] == trial.seed
        assert line["finalist"] == ("" if row["finalist"] is None else str(row["finalist"]))
        assert trial.best is not None
        for name, value in trial.best.items():
            assert float(line[f"best/{name}"]) == row[f"best/{name}"] == value
    assert command("export", "runs/recorded", "--to", "second.json", "--stage", "2")[0] == 0
    assert json.loads(Path("second.json").read_text())["trials"] == [row for row in rows if row["stage"] == 2]


def test_csv_has_no_text_that_a_spreadsheet_runs(command: Command, runs: Path) -> None:
    record = record_of(runs / "recorded")
    starts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]
    for failed, start in zip(record.trials(1), starts, strict=True):
        failed.state, failed.cause, failed.error = "failed", "error", f'{start},"\n;'
        failed.params["model.modalities"] = start
        record.write_trial(failed)
    for name in ("trials.csv", "trials.json"):
        assert command("export", "runs/recorded", "--to", name)[0] == 0
    with Path("trials.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = json.loads(Path("trials.json").read_text())["trials"]
    for start, line, row in zip(starts, lines[:6], rows[:6], strict=True):
        assert (line["error"], line["model.modalities"]) == (f"'{row['error']}", f"'{start}")
        assert row["error"] == f'{start},"\n;'
    # Numbers below zero stay numbers.
    assert all(float(line["best/valid/corr"] or 0) <= 1 for line in lines)


def test_export_refuses_what_it_does_not_know(command: Command, runs: Path) -> None:
    code, _, err = command("export", "runs/recorded", "--to", "trials.xlsx")
    assert code == 2
    assert ".csv, .parquet, .json" in err
    assert command("export", "runs/none", "--to", "trials.csv")[0] == 3
    assert not Path("trials.csv").exists()


def test_an_export_that_fails_leaves_the_file_as_it_was(
    command: Command, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("trials.parquet").write_text("before")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pyarrow.parquet.write_table", fail)
    assert command("export", "runs/recorded", "--to", "trials.parquet")[0] == 1
    assert Path("trials.parquet").read_text() == "before"
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


def test_export_to_optuna_and_back(command: Command, runs: Path) -> None:
    record = record_of(runs / "recorded")
    diverged, failed = record.trial(1, 1), record.trial(1, 4)
    diverged.state, diverged.error, diverged.cause = "diverged", "no longer finite", "not finite"
    failed.state, failed.error, failed.cause = "failed", EVIL, "out of memory"
    unfinished = record.trial(1, 5)
    unfinished.state, unfinished.ended = "running", None
    for changed in (diverged, failed, unfinished):
        record.write_trial(changed)
    code, _, err = command(*TO_OPTUNA)
    assert code == 0, err
    assert "recorded-stage1 and recorded-stage2" in err
    states = {
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "diverged": TrialState.PRUNED,
        "failed": TrialState.FAIL,
        "running": TrialState.RUNNING,
    }
    seen, space = set(), {}
    for stage, metric in ((1, "valid/pairwise_acc"), (2, "valid/mae")):
        study = optuna.load_study(study_name=f"recorded-stage{stage}", storage=SQLITE)
        for exported, trial in zip(study.trials, record.trials(stage), strict=True):
            seen.add(trial.state)
            space |= exported.distributions
            assert (exported.number, exported.state, exported.params) == (
                trial.number,
                states[trial.state],
                trial.params,
            )
            usable = trial.state not in ("diverged", "failed", "running")
            assert exported.values == ([trial.objective] if usable else None)
            known = [] if trial.state in ("diverged", "failed") else trial.curve
            assert exported.intermediate_values == {m["epoch"]: m[metric] for m in known}
            facts = {"seed": trial.seed, "epochs": trial.epoch, "seconds": trial.seconds, "trial": trial.name}
            assert facts.items() <= exported.user_attrs.items()
            assert exported.user_attrs.get("error") == trial.error
            for time, recorded in ((exported.datetime_start, trial.started), (exported.datetime_complete, trial.ended)):
                assert (time and time.astimezone()) == (datetime.fromisoformat(recorded) if recorded else None)
        best = next(trial for trial in record.ranked(stage) if trial.state == "complete")
        assert (study.best_value, study.best_trial.number) == (best.objective, best.number)
    assert seen == set(states)
    assert space["stage1.head_lr"] == FloatDistribution(1e-4, 1e-2, log=True)
    assert space["model.fusion_dropout"] == FloatDistribution(0.0, 0.5)
    assert space["model.modalities"] == CategoricalDistribution(("all", "text", "text+audio"))
    assert space["finalist"] == CategoricalDistribution(tuple(record.read_run()["finalists"]))


def test_export_to_optuna_leaves_no_half_study_and_replaces_none_unless_told(
    command: Command, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = optuna.Study.add_trial

    def fail(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if study.study_name == "recorded-stage2" and trial.user_attrs["trial"] == "stage2/3":
            raise OSError("disk full")
        whole(study, trial)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trial", fail)
        assert command(*TO_OPTUNA)[0] == 1
    assert optuna.get_all_study_names(SQLITE) == []
    assert command(*TO_OPTUNA, "--stage", "1")[0] == 0
    optuna.load_study(study_name="recorded-stage1", storage=SQLITE).set_user_attr("mine", 1)
    code, _, err = command(*TO_OPTUNA)
    assert code == 2
    assert "recorded-stage1" in err and "--overwrite" in err
    assert optuna.load_study(study_name="recorded-stage1", storage=SQLITE).user_attrs["mine"] == 1
    assert command(*TO_OPTUNA, "--overwrite", "--stage", "1")[0] == 0
    study = optuna.load_study(study_name="recorded-stage1", storage=SQLITE)
    assert "mine" not in study.user_attrs
    assert len(study.trials) == 6
    code, _, err = command("export", "runs/recorded", "--to", "sqlite:///no/such/folder/trials.db")
    assert code == 2
    assert "cannot be opened" in err


@pytest.mark.page
def test_optuna_dashboard_shows_both_stages(command: Command, runs: Path, tmp_path: Path, browser: Chrome) -> None:
    from selenium.webdriver.common.by import By

    assert command(*TO_OPTUNA)[0] == 0
    port = free_port()
    program = Path(sys.executable).with_name("optuna-dashboard")
    server = subprocess.Popen(
        [program, SQLITE, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def asked(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answered:
                return json.load(answered)
        # It is not up yet.
        except OSError:
            return None

    try:
        studies = {
            s["study_name"]: s for s in wait_for(lambda: asked("/api/studies"), "the dashboard")["study_summaries"]
        }
        assert set(studies) == {"recorded-stage1", "recorded-stage2"}
        for stage in (1, 2):
            reply = asked(f"/api/studies/{studies[f'recorded-stage{stage}']['study_id']}?after=0")
            trials = record_of(runs / "recorded").trials(stage)
            # The dashboard gives values as they are.
            values = [(trial["number"], trial["values"]) for trial in reply["trials"]]
            assert values == [(trial.number, [trial.objective]) for trial in trials]
        for name, study in studies.items():
            browser.get(f"http://127.0.0.1:{port}/dashboard/studies/{study['study_id']}")
            wait_for(lambda name=name: name in text_of(browser), name)
            wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .scatterlayer"), "a history")
    finally:
        server.terminate()
        server.wait()
