"""`runs watch`: a running search from another terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report.stored import EVIL, change, narrow, record_of
from waiting import wait_for

from grcf_ray.report.watching import Watch, snapshot_lines
from grcf_ray.search.lease import Lease
from grcf_ray.search.record import RunRecord, TrialRecord

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def running(runs: Path) -> Iterator[RunRecord]:
    """A run that is at work on the third trial of Stage 2, held by a search."""
    record = record_of(runs / "recorded")
    change(runs / "recorded/run.json", state="running", winner=None)
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
    first, _ = seen.look()
    assert [trial.state for trial in first.trials[2]].count("running") == 1
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
    second, anew = seen.look()
    assert sorted(read) == ["0002.json", "run.json"]
    assert second.trials[2][2].objective == 0.125
    assert second.trials[2][:2] == first.trials[2][:2]
    assert any("2/3" in line and "0.1250" in line for line in snapshot_lines(second, anew, width=80))
    # One that has ended since is read once more, and never again.
    trial.state, trial.ended = "complete", trial.started
    running.write_trial(trial)
    assert seen.look()[0].trials[2][2].state == "complete"
    read.clear()
    seen.look()
    assert read == ["run.json"]


def test_watch_tells_failures_retrainings_and_a_search_that_died(running: RunRecord) -> None:
    seen = Watch(running)
    trial = running.trial(2, 2)
    trial.failures = [{"attempt": 1, "cause": "process died", "error": EVIL, "time": ""}]
    running.write_trial(trial)
    lines = snapshot_lines(*seen.look(), width=80)
    assert any(line.startswith("stage2/2 ") and "process died: " in line for line in lines)
    trial.state, trial.error, trial.cause, trial.ended = "failed", EVIL, "process died", trial.started
    running.write_trial(trial)
    lines = snapshot_lines(*seen.look(), width=80)
    assert any(line.startswith("1 x process died, last stage2/2: ") for line in lines)
    assert all(line.isprintable() for line in lines)
    running.update_run(winner="stage2/0")
    again = RunRecord(running.place / "seeds" / "stage2-0")
    again.write_trial(
        TrialRecord(number=0, stage=1, attempt=1, params={}, seed=1, state="running", started=trial.started)
    )
    lines = snapshot_lines(*seen.look(), width=80)
    assert any("0 trials of stage 1 and 0 of stage 2" in line for line in lines)


def test_watch_of_a_run_whose_search_is_gone_says_how_to_resume(command: Command, runs: Path) -> None:
    change(runs / "recorded/run.json", state="running")
    code, out, _ = command("watch", "runs/recorded")
    assert code == 0
    assert out.startswith("recorded: died\n")
    assert "To resume:\n  python -m grcf_ray.search --dataset tiny" in out


def test_a_lease_that_stands_still_is_a_dead_search(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("grcf_ray.report.watching.time.monotonic", lambda: clock[0])
    change(runs / "recorded/run.json", state="running")
    lease, seen = runs / "recorded/lease.json", Watch(record_of(runs / "recorded"))
    for beat in range(3):
        lease.write_text(json.dumps({"beat": beat}))
        clock[0] += 60
        assert seen.look()[0].state == "running"
    clock[0] += 14
    assert seen.look()[0].state == "running"
    clock[0] += 2
    assert seen.look()[0].state == "died"


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


@pytest.mark.integration
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


@pytest.mark.integration
def test_ctrl_c_leaves_watch_and_the_terminal_as_it_was(running: RunRecord) -> None:
    terminal = Terminal("watch", str(running.place), "--every", "0.1")
    wait_for(lambda: "2/5" in terminal.text, "the first look")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.ended() == 130
    assert "Traceback" not in terminal.text
    assert terminal.text.rfind("\x1b[?25h") > terminal.text.rfind("\x1b[?25l"), "the cursor is shown again"
    assert running.read_run()["state"] == "running"
