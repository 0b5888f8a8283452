"""`runs list`, `runs show` and `runs compare`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report.stored import EVIL, change, narrow, record_of
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
    assert "Upgrade" in rows["newer"]["why"]
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


def test_list_names_the_models_if_not_all_are_grcf(command: Command, answer: Answer, runs: Path) -> None:
    assert [row["model"] for row in answer("list")] == ["grcf"]
    assert "model" not in command("list")[1].split()
    shutil.copytree(runs / "recorded", runs / "rival")
    settings = record_of(runs / "rival").read_run()["settings"]
    change(runs / "rival/run.json", settings=settings | {"model.name": "tfn"})
    assert {row["run"]: row["model"] for row in answer("list", "--filter", "model=tfn")} == {"rival": "tfn"}
    titles, *_ = command("list")[1].splitlines()
    assert "model" in titles.split()


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


def test_show_of_a_run_without_text(command: Command, runs: Path) -> None:
    settings = record_of(runs / "recorded").read_run()["settings"]
    change(runs / "recorded/run.json", settings=settings | {"model.modalities": "audio"})
    code, out, err = command("show", "runs/recorded")
    assert code == 0, err
    assert "backbone none" in out


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


def test_show_shows_what_is_asked_for(command: Command, answer: Answer, runs: Path) -> None:
    argv = ("show", "runs/recorded", "--stage", "2", "--filter", "state=pruned", "--sort", "stage2.head_lr")
    stopped = [trial for trial in record_of(runs / "recorded").trials(2) if trial.state == "pruned"]
    wanted = sorted(stopped, key=lambda trial: trial.params["stage2.head_lr"])
    reply = answer(*argv)
    assert [row["number"] for row in reply["trials"]] == [trial.number for trial in wanted]
    assert [row["stage2.head_lr"] for row in reply["trials"]] == [trial.params["stage2.head_lr"] for trial in wanted]
    code, out, _ = command(*argv, "--columns", "number,stage1.head_lr,best/valid/corr")
    assert code == 0
    assert ["number", "head_lr", "best/valid/corr"] in [line.split() for line in out.splitlines()]
    # A column of the other stage leaves nothing of this one.
    assert {row["stage"] for row in answer("show", "runs/recorded", "--filter", "encoder_top_lr>0")["trials"]} == {2}
    code, _, err = command("show", "runs/recorded", "--sort", "speed")
    assert code == 2
    assert "speed: no such column" in err


def test_show_has_all_of_one_trial(command: Command, answer: Answer, runs: Path) -> None:
    record = record_of(runs / "recorded")
    trial = record.ranked(2)[0]
    finalist = record.trial(1, int(trial.params["finalist"]))
    reply = answer("show", "runs/recorded", "--trial", trial.name)
    assert reply["params"] == trial.params
    assert reply["inherited"] == finalist.params
    assert reply["curve"] == trial.curve
    assert reply["objective"] == trial.objective
    assert reply["checkpoint"] == trial.checkpoint
    assert reply["command"] == f"python -m grcf_ray.train --from runs/recorded --trial {trial.name}"
    code, out, _ = command("show", "runs/recorded", "--trial", trial.name)
    assert code == 0
    lines = narrow(out)
    rows = [line.split() for line in lines]
    assert lines[0].startswith(f"Trial {trial.name}: complete, valid MAE {trial.objective:.4f} at epoch")
    assert ["ranking.base_margin", f"{finalist.params['ranking.base_margin']:.4g}", "its", "finalist"] in rows
    for metrics in trial.curve:
        assert any(row[:1] in ([f"{metrics['epoch']}"], [f"{metrics['epoch']}*"]) for row in rows)
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
    change(runs / "recorded/run.json", data=run["data"] | {"name": EVIL}, state=EVIL)
    shutil.copytree(runs / "recorded", runs / "other")
    change(runs / "other/run.json", settings=run["settings"] | {"model.backbone": EVIL})
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


@pytest.mark.parametrize("name", ["list", "show", "compare", "export", "watch"])
def test_help_has_examples(name: str, command: Command) -> None:
    code, out, _ = command(name, "--help")
    assert code == 0
    assert f"python -m grcf_ray.runs {name} " in out


@pytest.mark.integration
@pytest.mark.parametrize("words", [["runs", "watch"], ["runs", "show"], ["report", "--text"]])
def test_a_terminal_that_has_ascii_alone_is_enough(words: list[str], runs: Path) -> None:
    argv = [sys.executable, "-m", f"grcf_ray.{words[0]}", *words[1:], "runs/recorded"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, encoding="ascii")
    assert done.returncode == 0, done.stderr
    assert "recorded" in done.stdout


BOTH = ("compare", "runs/recorded", "runs/other")


@pytest.fixture
def other(runs: Path) -> Path:
    """A second copy of the run, to change."""
    return Path(shutil.copytree(runs / "recorded", runs / "other"))


def test_compare_says_what_differs_and_makes_no_claim_of_one_seed(
    command: Command, answer: Answer, runs: Path, other: Path
) -> None:
    assert "versions are the same" in command(*BOTH)[1]
    run = record_of(other).read_run()
    change(
        other / "run.json",
        settings=run["settings"] | {"search.stage1_trials": 9, "train.clip_norm": 2.0},
        space=run["space"] | {"stage2": {"stage2.head_lr": {"low": 1e-4, "high": 1e-3, "log": True, "start": 1e-3}}},
        versions=run["versions"] | {"torch": "9.9"},
        encoder=run["encoder"] | {"weights_sha256": "before"},
    )
    path = other / "best/metrics.json"
    metrics = json.loads(path.read_text())
    change(path, test={"mae": 0.25})
    reply = answer(*BOTH)
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
    code, out, _ = command(*BOTH)
    assert code == 0
    rows = [line.split() for line in narrow(out)]
    assert ["train.clip_norm", "1", "2"] in rows
    assert ["MAE", f"{mae:.4f}", "0.2500", f"{mae - 0.25:+.4f}"] in rows
    assert ["epochs", "23", "23"] in rows
    change(other / "run.json", data=run["data"] | {"fingerprint": "f" * 64})
    reply = answer(*BOTH)
    assert "cannot be compared" in reply["claim"]
    assert {entry["difference"] for split in ("valid", "test") for entry in reply[split].values()} == {None}


def test_compare_gives_the_paired_interval_where_both_have_seeds(
    command: Command, answer: Answer, runs: Path, other: Path
) -> None:
    from scipy import stats

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

    retrained("recorded", {7: 0.70, 8: 0.72, 9: 0.68})
    assert "B has one seed" in answer(*BOTH)["claim"]
    retrained("other", {5: 0.1, 6: 0.2})
    assert "fewer than two common seeds" in answer(*BOTH)["claim"]
    retrained("other", {9: 0.76, 7: 0.75, 5: 0.1})
    reply = answer(*BOTH)
    assert reply["seeds"]["seeds"] == 2
    gain = reply["seeds"]["gain"]["mae"]
    interval = stats.ttest_rel([0.70, 0.68], [0.75, 0.76]).confidence_interval(0.95)
    assert gain["mean"] == pytest.approx(-0.065)
    assert gain["mean"] - gain["half_width"] == pytest.approx(interval.low)
    lines = narrow(command(*BOTH)[1])
    assert any("under 2 common seeds" in line for line in lines)
    assert any(line.startswith("MAE     0.6900 ± 0.0141  0.7550 ± 0.0071  -0.0650 [") for line in lines)
