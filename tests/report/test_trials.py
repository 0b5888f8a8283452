"""`runs show`: the trials of a run, and one of them in full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report.stored import EVIL, change, narrow, record_of

Command = Callable[..., tuple[int, str, str]]
Answer = Callable[..., Any]


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
