"""What befalls searches on real machines: moved runs, clocks that jump, disks that fill, trials that all fail."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from repetition import essence
from safetensors.torch import load_file
from waiting import JOB_S

from grcf_ray.search.events import EpochFinished, Event
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path
from tests.search.conftest import Run, listen

if TYPE_CHECKING:
    from tests.conftest import Recorded

SMALL_MIB = 32
"""Room for a search of the tiny model, whose trials take about 1 MiB, and for its report, not for much else."""


def interrupt_once(monkeypatch: pytest.MonkeyPatch, at: Callable[[Event], bool]) -> None:
    """Have the command's first listener press Ctrl-C at the first such event."""
    pressed: list[Event] = []

    def press(event: Event) -> None:
        if at(event) and not pressed:
            pressed.append(event)
            os.kill(os.getpid(), signal.SIGINT)

    listen(monkeypatch, press)


def make_from_the_future(run: Path) -> None:
    """As if the machine's clock had been ten years ahead when the run was written, and is right now."""
    for path in run.rglob("*"):
        if path.suffix in (".json", ".jsonl"):
            path.write_text(re.sub(r'(?<=": ")20(\d\d)-', lambda m: f"20{int(m[1]) + 10}-", path.read_text()))
        stat = path.stat()
        os.utime(path, (stat.st_atime + 10 * 365 * 86400, stat.st_mtime + 10 * 365 * 86400))


def test_a_run_from_another_machine_goes_on_bit_for_bit(
    run: Run, recorded: Recorded, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in each stage; moved to odd names in between, where clock, cache and lock were another machine's."""
    words = [*recorded.argv]
    words[words.index("--storage") + 1] = str(tmp_path / "there")
    words[words.index("--data") + 1] = str(tmp_path / "data there")
    shutil.copytree(recorded.data, tmp_path / "data there")
    interrupt_once(monkeypatch, lambda e: isinstance(e, EpochFinished) and (e.trial.number, e.trial.epoch) == (2, 1))
    handler = signal.getsignal(signal.SIGINT)
    code, _, err = run(*words)
    assert code == 130, err
    assert signal.getsignal(signal.SIGINT) is handler

    there, here = tmp_path / "there" / "recorded", tmp_path / "ünï 文 läufe" / "moved hére"
    assert [trial.finished for trial in RunRecord(storage_path(there)).trials(1)] == [True, True, False]
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
    interrupt_once(monkeypatch, lambda e: isinstance(e, EpochFinished) and (e.trial.stage, e.trial.number) == (2, 3))
    code, _, err = run(*words)
    assert code == 130, err
    mine, undisturbed = RunRecord(storage_path(here)), RunRecord(storage_path(recorded.folder))
    # The stopped trial goes on from its checkpoint, and no other is launched again.
    assert [trial.attempt for trial in mine.trials(1)] == [1, 1, 2, 1, 1, 1]
    ended = {path: path.read_bytes() for path in (here / "stage1" / "trials").glob("*.json")}

    code, _, err = run(*words)
    assert code == 0, err
    assert {path: path.read_bytes() for path in ended} == ended
    for stage in (1, 2):
        assert essence(mine.trials(stage)) == essence(undisturbed.trials(stage))
    assert mine.read_run()["winner"] == undisturbed.read_run()["winner"]
    paths = [f"finalists/{int(number):04d}" for number in undisturbed.read_run()["finalists"]]
    for path in ("best", *paths):
        weights, expected = (load_file(folder / path / "model.safetensors") for folder in (here, recorded.folder))
        assert weights.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of SMALL_MIB."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a mount, which is refused here: {error}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.integration
@pytest.mark.timeout(4 * JOB_S)
def test_a_disk_that_fills_and_one_that_is_read_only(small_disk: Path, recorded: Recorded) -> None:
    """The search ends with one clear message, and goes on without a loss when there is room again."""
    words = [*recorded.argv]
    words[words.index("--storage") + 1] = str(small_disk)

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-m", "grcf_ray.search", *words], stderr=subprocess.PIPE, text=True)

    def ended(driver: subprocess.Popen[str]) -> tuple[int, str]:
        err = driver.communicate(timeout=JOB_S)[1]
        return driver.returncode, err.splitlines()[-1]

    def left() -> int:
        return shutil.disk_usage(small_disk).free

    filler, record = small_disk / "something else", RunRecord(storage_path(small_disk / "recorded"))
    driver = start()
    while driver.poll() is None and not (small_disk / "recorded" / "stage1" / "trials" / "0002.json").exists():
        time.sleep(0.05)
    # Whatever the search gives back, the page that another replaces among it, is taken at once.
    with filler.open("ab", buffering=0) as file:
        while driver.poll() is None:
            with contextlib.suppress(OSError):
                file.write(bytes(left()))
            time.sleep(0.01)
    code, says = ended(driver)
    assert code == 5, says
    assert "can no longer be written (No space left on device); every finished epoch is kept." in says
    before = {(t.stage, t.number): essence([t]) for stage in (1, 2) for t in record.trials(stage) if t.finished}
    assert len(before) >= 2

    filler.unlink()
    subprocess.run(["mount", "-o", "remount,ro,size=200m", str(small_disk)], check=True)
    code, says = ended(start())
    assert (code, "cannot be written (Read-only file system)" in says) == (2, True), says

    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    code, says = ended(start())
    assert code == 0, says
    after = {(t.stage, t.number): essence([t]) for stage in (1, 2) for t in record.trials(stage)}
    assert {key: after[key] for key in before} == before
    assert len(after) == 6 + 5
