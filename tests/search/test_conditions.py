"""Faults of real machines: a run that was moved, a clock that jumps, a full disk, a read-only disk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from repetition import essence
from safetensors.torch import load_file
from waiting import wait_for

from grcf_ray.search.events import EpochFinished, Event, TrialStarted
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path
from tests.search.conftest import Run, listen

if TYPE_CHECKING:
    from tests.conftest import Recorded

SMALL_MIB = 32
"""Room for a search of the tiny model, whose trials take about 1 MiB, and for its report, not for much else."""


def make_from_the_future(run: Path) -> None:
    """As if the machine's clock had been ten years ahead when the run was written, and is right now."""
    for path in run.rglob("*"):
        if path.suffix in (".json", ".jsonl"):
            path.write_text(re.sub(r'(?<=": ")20(\d\d)-', lambda m: f"20{int(m[1]) + 10}-", path.read_text()))
        stat = path.stat()
        os.utime(path, (stat.st_atime + 10 * 365 * 86400, stat.st_mtime + 10 * 365 * 86400))


def test_a_moved_run_resumes_bit_for_bit(
    run: Run, recorded: Recorded, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in Stage 2; then other paths, with odd names, and clock, cache and lock of another machine."""
    words = [*recorded.argv]
    words[words.index("--storage") + 1] = str(tmp_path / "there")
    words[words.index("--data") + 1] = str(tmp_path / "data there")
    shutil.copytree(recorded.data, tmp_path / "data there")
    pressed: list[int] = []

    def press_once(event: Event) -> None:
        # The first trial that early stopping does not end after its first epoch, but for the starting point.
        if isinstance(event, EpochFinished) and event.trial.stage == 2 and event.trial.number > 0 and not pressed:
            assert event.trial.epoch == 1
            pressed.append(event.trial.number)
            os.kill(os.getpid(), signal.SIGINT)

    listen(monkeypatch, press_once)
    handler = signal.getsignal(signal.SIGINT)
    code, _, err = run(*words)
    assert code == 130, err
    assert signal.getsignal(signal.SIGINT) is handler

    there, here = tmp_path / "there" / "recorded", tmp_path / "ünï 文 läufe" / "moved hére"
    (stopped,) = pressed
    assert [trial.finished for trial in RunRecord(storage_path(there)).trials(2)] == [True] * stopped + [False]
    make_from_the_future(there)
    (there / "lock").write_text(json.dumps({"host": "another", "pid": 1, "started": "2036", "command": "search"}))
    described = json.loads((there / "run.json").read_text())
    assert described["starts"][0]["time"].startswith("203")
    here.parent.mkdir()
    shutil.move(there, here)
    shutil.move(tmp_path / "data there", tmp_path / "dätä")
    monkeypatch.setenv("GRCF_CACHE", str(tmp_path / "another cache"))
    words[words.index("--storage") + 1] = str(here.parent)
    words[words.index("--data") + 1] = str(tmp_path / "dätä")
    words[words.index("--name") + 1] = here.name
    mine, undisturbed = RunRecord(storage_path(here)), RunRecord(storage_path(recorded.folder))
    first_stage = {path: path.read_bytes() for path in here.glob("stage1/trials/*.json")}
    ended = [trial.ended for trial in mine.trials(2) if trial.finished]

    code, _, err = run(*words)
    assert code == 0, err
    assert "manifest" not in err
    assert {path: path.read_bytes() for path in first_stage} == first_stage
    # The stopped trial goes on from its checkpoint, and no other is launched again.
    assert [trial.attempt for trial in mine.trials(2)] == [2 if number == stopped else 1 for number in range(5)]
    assert [trial.ended for trial in mine.trials(2)][:stopped] == ended
    for stage in (1, 2):
        assert essence(mine.trials(stage)) == essence(undisturbed.trials(stage))
    assert mine.read_run()["winner"] == undisturbed.read_run()["winner"]
    paths = [f"finalists/{int(number):04d}" for number in undisturbed.read_run()["finalists"]]
    for path in ("best", *paths):
        weights, expected = (load_file(folder / path / "model.safetensors") for folder in (here, recorded.folder))
        assert weights.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


def mount(options: str, folder: Path) -> int:
    """Mount a disk in memory, or change its options; the exit code."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of SMALL_MIB."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    try:
        code = mount(f"size={SMALL_MIB}m", folder)
    except OSError as error:
        pytest.skip(f"needs a mount: {error}")
    if code:
        pytest.skip(f"needs a mount, which is refused here (code {code})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def eaten(disk: Path) -> Iterator[None]:
    """Let a file take what room the disk has, and at once whatever the search gives back, until the context ends."""
    over = threading.Event()

    def eat() -> None:
        with (disk / "something else").open("ab", buffering=0) as file:
            while not over.wait(0.01):
                with contextlib.suppress(OSError):
                    file.write(bytes(shutil.disk_usage(disk).free))

    eater = threading.Thread(target=eat)
    eater.start()
    try:
        yield
    finally:
        over.set()
        eater.join()


def test_a_search_resumes_after_a_full_and_a_read_only_disk(
    run: Run, ray_session: None, small_disk: Path, tiny_argv: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with one clear message, and loses nothing."""
    words = [*tiny_argv, "--name", "n", "--concurrent", "1"]
    words[words.index("--storage") + 1] = small_disk
    for setting in ("stage2.epochs=0", "search.ridge_baseline=false"):
        words += ["--set", setting]
    record = RunRecord(storage_path(small_disk / "n"))

    with contextlib.ExitStack() as full:

        def fill(event: Event) -> None:
            if isinstance(event, TrialStarted) and event.trial.number == 2:
                full.enter_context(eaten(small_disk))

        listen(monkeypatch, fill)
        code, _, err = run(*words)
    last = err.splitlines()[-1]
    assert code == 5, err
    assert "can no longer be written (No space left on device); every finished epoch is kept." in last
    before = essence(trial for trial in record.trials(1) if trial.finished)
    assert len(before) >= 2

    listen(monkeypatch, lambda event: None)
    (small_disk / "something else").unlink()
    # Processes of trials may still have files open, which forbids it.
    wait_for(lambda: mount("remount,ro,size=200m", small_disk) == 0, "a read-only disk")
    code, _, err = run(*words)
    last = err.splitlines()[-1]
    assert (code, "cannot be written (Read-only file system)" in last) == (2, True), err

    assert mount("remount,rw", small_disk) == 0
    code, _, err = run(*words)
    assert code == 0, err
    after = essence(record.trials(1))
    assert after[: len(before)] == before
    assert len(after) == 6
