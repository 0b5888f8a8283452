from __future__ import annotations

import csv
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import text_of
from synthetic_run import Run
from waiting import free_port, wait_for

from grcf_ray import console
from grcf_ray.cli.runs import app
from grcf_ray.report.watching import Watch, snapshot_lines
from grcf_ray.search.lease import Lease
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from tests.conftest import Recorded

ASCII = {**os.environ, "PYTHONIOENCODING": "ascii"}
EVIL = "\x1b[31m=cmd|' /C calc'!A0<script>\u202e"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line; its exit code, what it answers, what it says beside."""

    def run(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            console.run(app, list(argv))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def runs(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with a copy of the finished run, and the working directory above it."""
    shutil.copytree(recorded.folder, tmp_path / "runs" / "recorded")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def change(folder: Path, **changes: Any) -> None:
    """Change a run's run.json."""
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def record_of(folder: Path) -> RunRecord:
    return RunRecord(storage_path(folder))


def answer(command: Command, *argv: str) -> Any:
    code, out, err = command(*argv)
    assert code == 0, err
    return json.loads(out)


def narrow(out: str, width: int = 80) -> list[str]:
    """The lines, all of them narrow and plain."""
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    assert all(line.isprintable() for line in lines)
    return lines


def test_list_has_each_run_with_the_figures_of_its_record(command: Command, runs: Path) -> None:
    (row,) = answer(command, "list", "--json")
    record, metrics = record_of(runs / "recorded"), json.loads((runs / "recorded/best/metrics.json").read_text())
    trials = [*record.trials(1), *record.trials(2)]
    assert (row["run"], row["state"], row["alive"]) == ("recorded", "finished", False)
    assert (row["dataset"], row["backbone"]) == ("tiny", "tiny-bert")
    assert [row[f"stage{stage}_{what}"] for stage in (1, 2) for what in ("done", "budget")] == [6, 6, 5, 5]
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


def test_list_tells_a_broken_run_by_one_line_and_goes_on(command: Command, runs: Path) -> None:
    for name, content in (("cut", '{"state": "fin'), ("empty", "{}"), ("list", "[]")):
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(content)
    shutil.copytree(runs / "recorded", runs / "newer")
    change(runs / "newer", schema_version=99)
    shutil.copytree(runs / "recorded", runs / "damaged")
    (runs / "damaged/stage1/trials/0003.json").write_text('{"number": 3}')
    # Neither is a run.
    (runs / "notes.txt").write_text("mine")
    (runs / "folder").mkdir()
    rows = {row["run"]: row for row in answer(command, "list", "--json")}
    assert set(rows) == {"cut", "empty", "list", "newer", "damaged", "recorded"}
    assert {name for name, row in rows.items() if row["state"] == "broken"} == set(rows) - {"recorded"}
    assert "not JSON" in rows["cut"]["why"]
    assert "upgrade" in rows["newer"]["why"]
    code, out, _ = command("list")
    assert code == 0
    assert len([line for line in narrow(out) if line.startswith(("cut: ", "empty: ", "list: ", "newer: "))]) == 4
    (row,) = answer(command, "list", "--json", "--state", "finished")
    assert row["run"] == "recorded"


def test_broken_runs_alone_are_listed(command: Command, tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "run.json").write_text('{"state": "fin')
    code, out, err = command("list", "--storage", str(tmp_path))
    assert (code, err) == (0, "")
    (line,) = narrow(out)
    assert line.startswith("cut: ")


def test_list_tells_a_search_that_died_from_one_at_work(command: Command, runs: Path) -> None:
    change(runs / "recorded", state="running")
    assert answer(command, "list", "--json")[0]["state"] == "died"
    with Lease(storage_path(runs / "recorded"), "a search"):
        (row,) = answer(command, "list", "--json", "--state", "running")
        assert row["alive"] is True
    # Without locks there is a lease that beats: one look does not tell.
    (runs / "recorded/lease.json").write_text("{}")
    (row,) = answer(command, "list", "--json")
    assert (row["state"], row["alive"]) == ("running", None)
    assert "running?" in command("list")[1]


def test_list_sorts_the_best_first_and_filters(command: Command, runs: Path) -> None:
    for name, mae, corr in (("worse", 0.9, 0.1), ("better", 0.1, 0.9)):
        shutil.copytree(runs / "recorded", runs / name)
        path = runs / name / "best/metrics.json"
        metrics = json.loads(path.read_text())
        metrics["test"] |= {"mae": mae, "corr": corr}
        path.write_text(json.dumps(metrics))
    change(runs / "worse", ended="2030-01-01T00:00:00+00:00")
    shutil.copytree(runs / "recorded", runs / "untested")
    (runs / "untested/best/metrics.json").unlink()

    def names(*argv: str) -> list[str]:
        return [row["run"] for row in answer(command, "list", "--json", *argv)]

    assert names("--sort", "mae") == ["better", "recorded", "worse", "untested"]
    assert names("--sort", "corr")[0] == "better"
    assert names("--sort", "corr", "--reverse")[0] == "worse"
    assert names()[0] == "worse"
    assert names("--filter", "mae<0.6", "--sort", "run") == ["better", "recorded"]
    assert names("--filter", "dataset=mosi") == []
    code, _, err = command("list", "--sort", "mea")
    assert code == 2
    assert "mea: no such column" in err


def test_list_of_a_place_without_runs(command: Command, tmp_path: Path) -> None:
    code, out, err = command("list", "--storage", str(tmp_path / "none"))
    assert (code, out) == (0, "")
    assert "holds no runs" in err


def test_show_fits_80_columns_and_is_sorted_by_the_objective(command: Command, runs: Path) -> None:
    code, out, _ = command("show", "runs/recorded")
    assert code == 0
    lines, record = narrow(out), record_of(runs / "recorded")
    for stage, head in ((1, "Stage 1, valid PairwiseAcc"), (2, "Stage 2, valid MAE")):
        ranked = record.ranked(stage)
        start = next(index for index, line in enumerate(lines) if line.startswith(head))
        table = [line.split() for line in lines[start + 2 : start + 2 + len(ranked)]]
        assert [int(row[0]) for row in table] == [trial.number for trial in ranked]
        assert [row[2] for row in table] == [f"{trial.objective:.4f}" for trial in ranked]
    assert "No room for " in out
    assert "ranking.base_margin" in out


def test_show_shows_what_is_asked_for(command: Command, runs: Path) -> None:
    argv = ("show", "runs/recorded", "--stage", "2", "--filter", "state=pruned", "--sort", "stage2.head_lr")
    stopped = [trial for trial in record_of(runs / "recorded").trials(2) if trial.state == "pruned"]
    wanted = sorted(stopped, key=lambda trial: trial.params["stage2.head_lr"])
    reply = answer(command, *argv, "--json")
    assert [row["number"] for row in reply["trials"]] == [trial.number for trial in wanted]
    assert [row["stage2.head_lr"] for row in reply["trials"]] == [trial.params["stage2.head_lr"] for trial in wanted]
    code, out, _ = command(*argv, "--columns", "number,stage1.head_lr,best/valid/corr")
    assert code == 0
    assert ["number", "head_lr", "best/valid/corr"] in [line.split() for line in out.splitlines()]
    # A column of the other stage leaves nothing of this one.
    both = answer(command, "show", "runs/recorded", "--filter", "encoder_top_lr>0", "--json")
    assert {row["stage"] for row in both["trials"]} == {2}
    code, _, err = command("show", "runs/recorded", "--sort", "speed")
    assert code == 2
    assert "speed: no such column" in err


def test_show_has_all_of_one_trial(command: Command, runs: Path) -> None:
    record = record_of(runs / "recorded")
    trial = record.ranked(2)[0]
    name, finalist = f"stage2/{trial.number}", record.trial(1, int(trial.params["finalist"]))
    reply = answer(command, "show", "runs/recorded", "--trial", name, "--json")
    assert reply["params"] == trial.params
    assert reply["inherited"] == finalist.params
    assert reply["curve"] == trial.curve
    assert reply["objective"] == trial.objective
    assert reply["checkpoint"] == trial.checkpoint
    assert reply["command"] == f"python -m grcf_ray.train --from runs/recorded --trial {name}"
    code, out, _ = command("show", "runs/recorded", "--trial", name)
    assert code == 0
    lines = narrow(out)
    rows = [line.split() for line in lines]
    assert lines[0].startswith(f"Trial {name}: complete, valid MAE {trial.objective:.4f} at epoch")
    assert ["ranking.base_margin", f"{finalist.params['ranking.base_margin']:.4g}", "its", "finalist"] in rows
    for metrics in trial.curve:
        assert any(line.split()[:1] in ([f"{metrics['epoch']}"], [f"{metrics['epoch']}*"]) for line in lines)
    assert f"Again: {reply['command']}" in lines
    code, _, err = command("show", "runs/recorded", "--trial", "stage2/99")
    assert code == 2
    assert "python -m grcf_ray.runs show runs/recorded" in err


def test_what_data_say_reaches_the_terminal_without_control_codes(command: Command, runs: Path) -> None:
    record = record_of(runs / "recorded")
    failed = record.trial(1, 1)
    failed.state, failed.error, failed.cause = "failed", EVIL * 20, EVIL
    failed.failures = [{"attempt": 1, "cause": EVIL, "error": EVIL, "time": EVIL}]
    failed.notes, failed.params["model.modalities"] = [EVIL * 9], EVIL
    record.write_trial(failed)
    run = record.read_run()
    change(runs / "recorded", data=run["data"] | {"name": EVIL}, state=EVIL)
    shutil.copytree(runs / "recorded", runs / "other")
    change(runs / "other", settings=run["settings"] | {"model.backbone": EVIL})
    for argv in (
        ("list",),
        ("show", "runs/recorded"),
        ("show", "runs/recorded", "--columns", "number,error,cause,modalities"),
        ("show", "runs/recorded", "--trial", "stage1/1"),
        ("compare", "runs/recorded", "runs/other"),
        ("watch", "runs/recorded"),
    ):
        code, out, err = command(*argv)
        assert code == 0, err
        narrow(out)


def test_compare_says_what_differs_and_makes_no_claim_of_one_seed(command: Command, runs: Path) -> None:
    shutil.copytree(runs / "recorded", runs / "other")
    run = record_of(runs / "other").read_run()
    settings = run["settings"] | {"search.stage1_trials": 9, "train.clip_norm": 2.0}
    space = run["space"] | {"stage2": {"stage2.head_lr": {"low": 1e-4, "high": 1e-3, "log": True, "start": 1e-3}}}
    encoder = run["encoder"] | {"weights_sha256": "before"}
    change(runs / "other", settings=settings, space=space, versions=run["versions"] | {"torch": "9.9"}, encoder=encoder)
    path = runs / "other/best/metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {"test": {"mae": 0.25}}))
    reply = answer(command, "compare", "runs/recorded", "runs/other", "--json")
    assert reply["differences"] == {
        "budget": {"stage 1": ["6 x 3 epochs", "9 x 3 epochs"]},
        "settings": {"train.clip_norm": [1.0, 2.0]},
        "space": {
            "stage2.encoder_top_lr": ["0.0001 to 0.01, log", None],
            "stage2.head_lr": ["0.0001 to 0.01, log", "0.0001 to 0.001, log"],
        },
        "encoder": {"weights": [run["encoder"]["weights_sha256"], "before"]},
        "versions": {"torch": [run["versions"]["torch"], "9.9"]},
    }
    mae = metrics["test"]["mae"]
    assert reply["test"]["mae"] == {"values": [mae, 0.25], "difference": mae - 0.25}
    assert reply["test"]["corr"] == {"values": [metrics["test"]["corr"], None], "difference": None}
    assert reply["seeds"] is None
    assert reply["claim"].startswith("One seed each: no claim.")
    code, out, _ = command("compare", "runs/recorded", "runs/other")
    assert code == 0
    rows = [line.split() for line in narrow(out)]
    assert ["train.clip_norm", "1", "2"] in rows
    assert ["encoder:", "weights", run["encoder"]["weights_sha256"], "before"] in rows
    assert ["MAE", f"{mae:.4f}", "0.2500", f"{mae - 0.25:+.4f}"] in rows
    same = command("compare", "runs/recorded", "runs/recorded")[1]
    assert "versions are the same" in same


def test_compare_refuses_to_compare_figures_of_different_data(command: Command, runs: Path) -> None:
    shutil.copytree(runs / "recorded", runs / "other")
    data = record_of(runs / "other").read_run()["data"]
    change(runs / "other", data=data | {"fingerprint": "f" * 64})
    reply = answer(command, "compare", "runs/recorded", "runs/other", "--json")
    assert "cannot be compared" in reply["claim"]
    assert {entry["difference"] for split in ("valid", "test") for entry in reply[split].values()} == {None}


def test_compare_gives_the_paired_interval_where_both_have_seeds(command: Command, runs: Path) -> None:
    from scipy import stats

    shutil.copytree(runs / "recorded", runs / "other")
    winner = record_of(runs / "recorded").read_run()["winner"]

    def retrained(name: str, maes: dict[int, float]) -> None:
        models = [
            {"arm": arm, "index": seed, "seed": seed, "valid": {}, "test": {"mae": mae + 5 * (arm == "start")}}
            for seed, mae in maes.items()
            for arm in ("winner", "start")
        ]
        (runs / name / "seeds").mkdir(exist_ok=True)
        content = {"winner": winner, "seeds": len(maes), "complete": True, "models": models, "arms": {}, "gain": {}}
        (runs / name / "seeds/metrics.json").write_text(json.dumps(content))

    both = ("compare", "runs/recorded", "runs/other")
    retrained("recorded", {7: 0.70, 8: 0.72, 9: 0.68})
    assert "B has one seed" in answer(command, *both, "--json")["claim"]
    retrained("other", {5: 0.1, 6: 0.2})
    assert "fewer than two common seeds" in answer(command, *both, "--json")["claim"]
    retrained("other", {9: 0.76, 7: 0.75, 5: 0.1})
    reply = answer(command, *both, "--json")
    assert reply["seeds"]["seeds"] == 2
    gain = reply["seeds"]["gain"]["mae"]
    interval = stats.ttest_rel([0.70, 0.68], [0.75, 0.76]).confidence_interval(0.95)
    assert gain["mean"] == pytest.approx(-0.065)
    assert gain["mean"] - gain["half_width"] == pytest.approx(interval.low)
    out = command(*both)[1]
    assert any("under 2 common seeds" in line for line in narrow(out))


def trials_of(runs: Path) -> list[TrialRecord]:
    record = record_of(runs / "recorded")
    return [*record.trials(1), *record.trials(2)]


def test_export_to_parquet_is_typed_and_exact(command: Command, runs: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    code, out, err = command("export", "runs/recorded", "--to", "trials.parquet")
    assert (code, out) == (0, ""), err
    table = pq.read_table("trials.parquet")
    kinds = {name: table.schema.field(name).type for name in table.column_names}
    assert kinds["number"] == kinds["seed"] == kinds["finalist"] == pa.int64()
    assert kinds["objective"] == kinds["stage1.head_lr"] == kinds["best/valid/mae"] == pa.float64()
    assert kinds["state"] == kinds["model.modalities"] == pa.string()
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
        assert trial.best is not None
        for name, value in trial.best.items():
            assert float(line[f"best/{name}"]) == row[f"best/{name}"] == value
    assert command("export", "runs/recorded", "--to", "second.json", "--stage", "2")[0] == 0
    assert json.loads(Path("second.json").read_text())["trials"] == [row for row in rows if row["stage"] == 2]


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_csv_has_no_text_that_a_spreadsheet_runs(command: Command, runs: Path, start: str) -> None:
    record = record_of(runs / "recorded")
    failed = record.trial(1, 1)
    failed.state, failed.cause, failed.error = "failed", "error", f'{start},"\n;'
    failed.params["model.modalities"] = start
    record.write_trial(failed)
    assert command("export", "runs/recorded", "--to", "trials.csv")[0] == 0
    with Path("trials.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[1]["error"] == f"'{failed.error}"
    assert lines[1]["model.modalities"] == f"'{start}"
    # Numbers below zero stay numbers.
    assert all(float(line["best/valid/corr"] or 0) <= 1 for line in lines)
    assert command("export", "runs/recorded", "--to", "trials.json")[0] == 0
    assert json.loads(Path("trials.json").read_text())["trials"][1]["error"] == failed.error


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
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.trial import TrialState

    record = record_of(runs / "recorded")
    diverged, failed = record.trial(1, 1), record.trial(1, 4)
    diverged.state, diverged.error, diverged.cause = "diverged", "no longer finite", "not finite"
    failed.state, failed.error, failed.cause = "failed", EVIL, "out of memory"
    record.write_trial(diverged)
    record.write_trial(failed)
    unfinished = record.trial(1, 5)
    unfinished.state, unfinished.ended = "running", None
    record.write_trial(unfinished)
    code, _, err = command("export", "runs/recorded", "--to", "sqlite:///trials.db")
    assert code == 0, err
    assert "recorded-stage1 and recorded-stage2" in err
    states = {
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "diverged": TrialState.PRUNED,
        "failed": TrialState.FAIL,
        "running": TrialState.RUNNING,
    }
    seen = set()
    for stage, metric in ((1, "valid/pairwise_acc"), (2, "valid/mae")):
        study = optuna.load_study(study_name=f"recorded-stage{stage}", storage="sqlite:///trials.db")
        trials = record.trials(stage)
        for exported, recorded_trial in zip(study.trials, trials, strict=True):
            seen.add(recorded_trial.state)
            assert exported.number == recorded_trial.number
            assert exported.state == states[recorded_trial.state]
            assert exported.params == recorded_trial.params
            told = recorded_trial.state not in ("diverged", "failed", "running")
            assert exported.values == ([recorded_trial.objective] if told else None)
            curve = (
                {}
                if recorded_trial.state in ("diverged", "failed")
                else {m["epoch"]: m[metric] for m in recorded_trial.curve}
            )
            assert exported.intermediate_values == curve
            assert exported.user_attrs["seed"] == recorded_trial.seed
            assert exported.user_attrs["epochs"] == recorded_trial.epoch
            assert exported.user_attrs["seconds"] == recorded_trial.seconds
            assert exported.user_attrs.get("error") == recorded_trial.error
            assert exported.datetime_start is not None
            assert exported.datetime_start.astimezone() == datetime.fromisoformat(recorded_trial.started)
            if recorded_trial.ended:
                assert exported.datetime_complete is not None
                assert exported.datetime_complete.astimezone() == datetime.fromisoformat(recorded_trial.ended)
        best = next(trial for trial in record.ranked(stage) if trial.state == "complete")
        assert study.best_value == best.objective
        assert study.best_trial.number == best.number
    assert seen == set(states)
    first, second = (
        optuna.load_study(study_name=f"recorded-stage{stage}", storage="sqlite:///trials.db").trials[0].distributions
        for stage in (1, 2)
    )
    assert first["stage1.head_lr"] == FloatDistribution(1e-4, 1e-2, log=True)
    assert first["model.fusion_dropout"] == FloatDistribution(0.0, 0.5)
    assert first["model.modalities"] == CategoricalDistribution(("all", "text", "text+audio"))
    assert second["finalist"] == CategoricalDistribution(tuple(record.read_run()["finalists"]))


def test_export_to_optuna_leaves_what_is_there_unless_told(command: Command, runs: Path) -> None:
    import optuna

    to = ("export", "runs/recorded", "--to", "sqlite:///trials.db")
    assert command(*to)[0] == 0
    study = optuna.load_study(study_name="recorded-stage1", storage="sqlite:///trials.db")
    study.set_user_attr("mine", 1)
    code, _, err = command(*to)
    assert code == 2
    assert "recorded-stage1" in err
    assert "--overwrite" in err
    assert optuna.load_study(study_name="recorded-stage1", storage="sqlite:///trials.db").user_attrs["mine"] == 1
    assert command(*to, "--overwrite")[0] == 0
    study = optuna.load_study(study_name="recorded-stage1", storage="sqlite:///trials.db")
    assert "mine" not in study.user_attrs
    assert len(study.trials) == 6
    code, _, err = command("export", "runs/recorded", "--to", "sqlite:///no/such/folder/trials.db")
    assert code == 2
    assert "cannot be opened" in err


def test_an_export_to_optuna_that_fails_leaves_no_half_study(
    command: Command, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    whole = optuna.Study.add_trial

    def fail(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if study.study_name == "recorded-stage2" and trial.user_attrs["trial"] == "stage2/3":
            raise OSError("disk full")
        whole(study, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", fail)
    assert command("export", "runs/recorded", "--to", "sqlite:///trials.db")[0] == 1
    assert optuna.get_all_study_names("sqlite:///trials.db") == []


@pytest.fixture
def running(runs: Path) -> Iterator[RunRecord]:
    """A run that is at work on the third trial of Stage 2, held by a search."""
    record = record_of(runs / "recorded")
    change(runs / "recorded", state="running", winner=None)
    for number in (3, 4):
        (runs / f"recorded/stage2/trials/{number:04d}.json").unlink()
    trial = record.trial(2, 2)
    trial.state, trial.ended, trial.curve = "running", None, trial.curve[:1]
    record.write_trial(trial)
    with Lease(record.place, "a search"):
        yield record


def test_watch_shows_what_runs_and_what_is_left(command: Command, running: RunRecord) -> None:
    code, out, _ = command("watch", str(running.place), "--once")
    assert code == 0
    lines = narrow(out)
    assert lines[0].startswith("recorded: running for ")
    assert any(line.startswith("Stage 1  ████████████████████  6/6") for line in lines)
    assert any(line.startswith("Stage 2  ████████░░░░░░░░░░░░  2/5") for line in lines)
    (row,) = [line.split() for line in lines if line.startswith("stage2/2")]
    assert row[1:3] == ["1/3", "MAE"]
    assert row[3] == f"{running.trial(2, 2).objective:.4f}"
    assert any(line.startswith("Left: about ") for line in lines)


def test_watch_reads_again_only_what_may_have_changed(running: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Watch(running)
    first = seen.look()
    assert [trial.state for trial in first.view.trials[2]].count("running") == 1
    read: list[str] = []
    whole = type(running.place).read_bytes

    def count(place: Any) -> bytes:
        read.append(place.name)
        return whole(place)

    monkeypatch.setattr(type(running.place), "read_bytes", count)
    trial = running.trial(2, 2)
    read.clear()
    trial.curve = [*trial.curve, {**trial.curve[-1], "epoch": 2, "valid/mae": 0.125}]
    running.write_trial(trial)
    second = seen.look()
    assert sorted(read) == ["0002.json", "run.json"]
    assert second.view.trials[2][2].objective == 0.125
    assert second.view.trials[2][:2] == first.view.trials[2][:2]
    assert any("2/3" in line and "0.1250" in line for line in snapshot_lines(second, width=80))
    # One that has ended since is read once more, and never again.
    trial.state, trial.ended = "complete", trial.started
    running.write_trial(trial)
    assert seen.look().view.trials[2][2].state == "complete"
    read.clear()
    seen.look()
    assert read == ["run.json"]


def test_watch_tells_failures_retrainings_and_a_search_that_died(running: RunRecord) -> None:
    seen = Watch(running)
    trial = running.trial(2, 2)
    trial.failures = [{"attempt": 1, "cause": "process died", "error": EVIL, "time": ""}]
    running.write_trial(trial)
    lines = snapshot_lines(seen.look(), width=80)
    assert any(line.startswith("stage2/2 ") and "process died: " in line for line in lines)
    trial.state, trial.error, trial.cause, trial.ended = "failed", EVIL, "process died", trial.started
    running.write_trial(trial)
    lines = snapshot_lines(seen.look(), width=80)
    assert any(line.startswith("1 x process died, last stage2/2: ") for line in lines)
    assert all(line.isprintable() for line in lines)
    winner = "stage2/0"
    running.update_run(winner=winner)
    again = RunRecord(running.place / "seeds" / "stage2-0")
    again.write_trial(
        TrialRecord(number=0, stage=1, attempt=1, params={}, seed=1, state="running", started=trial.started)
    )
    lines = snapshot_lines(seen.look(), width=80)
    assert any("0 trials of stage 1 and 0 of stage 2" in line for line in lines)


def test_watch_of_a_run_whose_search_is_gone_says_how_to_go_on(command: Command, runs: Path) -> None:
    change(runs / "recorded", state="running")
    code, out, _ = command("watch", "runs/recorded")
    assert code == 0
    assert out.startswith("recorded: died\n")
    assert "To go on:\n  python -m grcf_ray.search --dataset tiny" in out


def test_a_lease_that_stands_still_is_a_dead_search(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("grcf_ray.report.watching.time.monotonic", lambda: clock[0])
    change(runs / "recorded", state="running")
    lease, seen = runs / "recorded/lease.json", Watch(record_of(runs / "recorded"))
    for beat in range(3):
        lease.write_text(json.dumps({"beat": beat}))
        clock[0] += 60
        assert seen.look().standing.state == "running"
    clock[0] += 14
    assert seen.look().standing.state == "running"
    clock[0] += 2
    assert seen.look().standing.state == "died"


class Terminal:
    """A command on a terminal of its own, 80 columns wide, and what it has written."""

    def __init__(self, *argv: str) -> None:
        self._leader, follower = pty.openpty()
        environment = os.environ | {"COLUMNS": "80", "LINES": "40", "TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "grcf_ray.runs", *argv], stdout=follower, stderr=follower, env=environment
        )
        os.close(follower)
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            select.select([self._leader], [], [])
            try:
                content = os.read(self._leader, 1 << 16)
            # The other end is closed.
            except OSError:
                return
            self.text += content.decode(errors="replace")

    def ended(self) -> int:
        code = wait_for(lambda: self.process.poll() is not None and [self.process.returncode], "the command's end")[0]
        self._reader.join(10)
        os.close(self._leader)
        return int(code)


def test_watch_follows_a_search_to_its_end(running: RunRecord) -> None:
    terminal = Terminal("watch", str(running.place), "--every", "0.1")
    wait_for(lambda: "2/5" in terminal.text, "the first look")
    trial = running.trial(2, 2)
    trial.curve = [*trial.curve, {**trial.curve[-1], "epoch": 2, "valid/mae": 0.03125}]
    running.write_trial(trial)
    wait_for(lambda: "0.0312" in terminal.text, "the epoch")
    trial.state, trial.ended = "complete", trial.started
    running.write_trial(trial)
    wait_for(lambda: "3/5" in terminal.text, "the trial's end")
    running.update_run(state="finished")
    assert terminal.ended() == 0
    assert "recorded: finished" in terminal.text


def test_ctrl_c_leaves_watch_and_the_terminal_as_it_was(running: RunRecord) -> None:
    terminal = Terminal("watch", str(running.place), "--every", "0.1")
    wait_for(lambda: "2/5" in terminal.text, "the first look")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.ended() == 130
    assert "Traceback" not in terminal.text
    assert terminal.text.rfind("\x1b[?25h") > terminal.text.rfind("\x1b[?25l"), "the cursor is shown again"
    assert running.read_run()["state"] == "running"


@pytest.mark.parametrize("name", ["list", "show", "compare", "export", "watch"])
def test_help_has_examples(name: str, command: Command) -> None:
    code, out, _ = command(name, "--help")
    assert code == 0
    assert f"python -m grcf_ray.runs {name} " in out


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
def test_runs_in_object_storage(command: Command, recorded: Recorded, s3: str, tmp_path: Path) -> None:
    bucket, _, query = s3.partition("?")
    uri = f"{bucket}/listed?{query}"
    with (storage_path(uri) / "recorded").writing_folder() as folder:
        shutil.copytree(recorded.folder, folder, dirs_exist_ok=True)
    (row,) = answer(command, "list", "--storage", uri, "--json")
    assert (row["run"], row["state"], row["stage1_done"]) == ("recorded", "finished", 6)
    run = f"{bucket}/listed/recorded?{query}"
    assert len(answer(command, "show", run, "--json")["trials"]) == 11
    assert command("watch", run)[1].startswith("recorded: finished")
    assert command("export", run, "--to", f"{bucket}/tables/trials.json?{query}")[0] == 0
    assert len((storage_path(f"{bucket}/tables?{query}") / "trials.json").read_json()["trials"]) == 11
    assert answer(command, "compare", run, str(recorded.folder), "--json")["differences"] == {}


@pytest.mark.page
def test_optuna_dashboard_shows_both_stages(command: Command, runs: Path, tmp_path: Path, browser: Chrome) -> None:
    from selenium.webdriver.common.by import By

    assert command("export", "runs/recorded", "--to", f"sqlite:///{tmp_path}/trials.db")[0] == 0
    port = free_port()
    program = Path(sys.executable).with_name("optuna-dashboard")
    server = subprocess.Popen(
        [program, f"sqlite:///{tmp_path}/trials.db", "--host", "127.0.0.1", "--port", str(port)],
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
            recorded_trials = record_of(runs / "recorded").trials(stage)
            assert [trial["number"] for trial in reply["trials"]] == [trial.number for trial in recorded_trials]
            # The dashboard gives values as they are.
            assert [trial["values"] for trial in reply["trials"]] == [[trial.objective] for trial in recorded_trials]
        for name in studies:
            browser.get(f"http://127.0.0.1:{port}/dashboard")
            wait_for(lambda name=name: name in text_of(browser), name)
        for name, study in studies.items():
            browser.get(f"http://127.0.0.1:{port}/dashboard/studies/{study['study_id']}")
            wait_for(lambda name=name: name in text_of(browser), name)
            wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .scatterlayer"), "a history")
            browser.save_screenshot(str(tmp_path / f"{name}.png"))
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("words", [["runs", "watch"], ["runs", "show"], ["report", "--text"]])
def test_a_terminal_that_has_ascii_alone_is_enough(words: list[str], runs: Path) -> None:
    argv = [sys.executable, "-m", f"grcf_ray.{words[0]}", *words[1:], "runs/recorded"]
    done = subprocess.run(argv, env=ASCII, capture_output=True, text=True, encoding="ascii")
    assert done.returncode == 0, done.stderr
    assert "recorded" in done.stdout
