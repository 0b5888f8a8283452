"""The command as people type it, ended by signals or by the loss of Ray. It says how to resume."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import waiting
from processes import gone, kill_marked, marked

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore

PATIENCE_S = 120
"""How long to wait for what takes a few seconds on an idle machine."""
TERMINATION_S = 3
"""A Ray job that is stopped has this long."""
TRIAL = "Trainable"
"""Part of the title of a trial's process."""


wait_for = functools.partial(waiting.wait_for, patience=PATIENCE_S, every=0.02)


class Driver:
    """A search in a process group of its own, as in a terminal, whose first trial would run for hours."""

    def __init__(self, argv: list[str], folder: Path, err: Path) -> None:
        self.mark, self.folder, self._err = uuid.uuid4().hex, folder, err
        with err.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "grcf_ray.search", *argv],
                env={**os.environ, "GRCF_TEST_MARK": self.mark},
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )

    @property
    def err(self) -> str:
        return self._err.read_text()

    def others(self) -> dict[int, str]:
        """Return the titles of the living processes that it has started, by process id."""
        return {pid: title for pid, title in marked(self.mark).items() if pid != self.process.pid}

    def trial(self) -> dict[str, Any]:
        """Return the record of the first trial; empty before there is one."""
        path = self.folder / "stage1" / "trials" / "0000.json"
        if not path.exists():
            return {}
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    def wait_for_epoch(self, epoch: int) -> None:
        """Wait until the record has so many epochs."""
        self.wait_until(lambda trial: len(trial.get("curve", [])) >= epoch, f"epoch {epoch}")

    def wait_until(self, condition: Callable[[dict[str, Any]], bool], what: str) -> None:
        """Wait until the condition holds for the first trial."""

        def holds() -> bool:
            assert self.process.poll() is None, self.err
            return condition(self.trial())

        wait_for(holds, what)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the whole group, Ray's processes included, as a terminal does."""
        os.killpg(self.process.pid, number)

    def end(self, *, agents: bool = False) -> tuple[int, float]:
        """Wait until no process is left; return the exit code and the seconds until the driver exited.

        agents: leave out Ray's agents, which notice only after a minute that their raylet was killed with the driver.
        """
        begun = time.monotonic()
        code = self.process.wait(PATIENCE_S)
        seconds = time.monotonic() - begun

        def left() -> list[str]:
            return [title for title in self.others().values() if not (agents and "Agent" in title)]

        wait_for(lambda: not left(), f"the end of {left()}")
        return code, seconds

    def state(self) -> str:
        """Return the state in run.json."""
        return str(json.loads((self.folder / "run.json").read_text())["state"])


@pytest.fixture
def start(tiny_store: DatasetStore, tiny_space: Path, tmp_path: Path) -> Iterator[Callable[[], Driver]]:
    """Starts the same search, again and again."""
    argv = ["--dataset", "tiny", "--data", str(tiny_store.folder), "--space", str(tiny_space), "--name", "n"]
    argv += ["--storage", str(tmp_path / "runs"), "--concurrent", "1", "--set", "stage1.epochs=1000000"]
    drivers: list[Driver] = []

    def begin() -> Driver:
        drivers.append(Driver(argv, tmp_path / "runs" / "n", tmp_path / f"err{len(drivers)}"))
        return drivers[-1]

    yield begin
    for driver in drivers:
        kill_marked(driver.mark)
        driver.process.wait()


def to_resume(driver: Driver) -> str:
    """Return the end of the last line of standard error."""
    args = driver.process.args
    assert isinstance(args, list)
    return "To resume: " + shlex.join(["python", *map(str, args[1:])])


@pytest.mark.integration
def test_ctrl_c_sigterm_and_a_second_ctrl_c_end_a_search_that_resumes(start: Callable[[], Driver]) -> None:
    """One search is ended in each of these ways, and resumes each time."""
    first = start()
    first.wait_for_epoch(2)
    first.send(signal.SIGINT)
    code, _ = first.end()
    assert code == 130, first.err
    assert first.state() == "interrupted"
    assert "\nStopping the running trials; " in first.err
    assert first.err.splitlines()[-1] == f"Interrupted; every finished epoch is kept. {to_resume(first)}"
    assert "Traceback" not in first.err
    before = first.trial()
    assert before["state"] == "running"
    assert len(before["curve"]) >= 2

    second = start()
    # While a trial starts, the driver may be in a call of Ray's server, which the signal ends too.
    second.wait_until(lambda trial: len(trial["curve"]) > len(before["curve"]), "an epoch of the second attempt")
    second.send(signal.SIGTERM)
    code, seconds = second.end()
    assert code == 130, second.err
    assert seconds < TERMINATION_S
    assert second.state() == "interrupted"
    assert second.err.splitlines()[-1] == f"Terminated; every finished epoch is kept. {to_resume(second)}"
    assert "Traceback" not in second.err

    between = second.trial()
    assert between["attempt"] == 2

    third = start()
    third.wait_until(lambda trial: len(trial["curve"]) > len(between["curve"]), "an epoch of the third attempt")
    after = third.trial()
    assert after["attempt"] == 3
    assert after["curve"][: len(between["curve"])] == between["curve"]
    assert between["curve"][: len(before["curve"])] == before["curve"]
    assert after["failures"] == []
    # Its trial does not answer, so that the search waits for it until it is told to leave.
    # On a busy machine a single look at /proc has been seen to miss it.
    (pid,) = wait_for(lambda: [pid for pid, title in third.others().items() if TRIAL in title], "its process")
    os.kill(pid, signal.SIGSTOP)
    third.send(signal.SIGINT)
    wait_for(lambda: "Stopping the running trials" in third.err, "the first Ctrl-C")
    third.send(signal.SIGINT)
    code, seconds = third.end(agents=True)
    wait_for(lambda: gone(pid), "the end of the stopped process")
    assert code == 130, third.err
    assert seconds < TERMINATION_S
    assert third.state() == "interrupted"
    assert third.err.splitlines()[-1] == f"Stopped; every finished epoch is kept. {to_resume(third)}"


@pytest.mark.integration
def test_a_search_whose_ray_server_dies_ends_at_once(start: Callable[[], Driver]) -> None:
    """Ray alone would be silent for a minute, and then end the process without saying how to resume."""
    driver = start()
    driver.wait_for_epoch(1)
    (pid,) = [pid for pid, title in driver.others().items() if "gcs/gcs_server" in title.split("\0")[0]]
    os.kill(pid, signal.SIGKILL)
    code, _ = driver.end(agents=True)
    assert code == 5, driver.err
    assert driver.state() == "interrupted"
    last = driver.err.splitlines()[-1]
    assert last.startswith("error: ") and "GCS" in last and last.endswith(to_resume(driver))
