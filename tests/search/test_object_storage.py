"""A whole search whose run lies in object storage: killed, and resumed by a machine that knows nothing of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import command
from processes import kill_marked
from repetition import essence

from grcf_ray.cli import evaluate
from grcf_ray.report.view import RunView
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path
from tests.search.conftest import Run

if TYPE_CHECKING:
    from tests.conftest import Recorded

pytestmark = [pytest.mark.s3, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
STUCK_S = 600
"""An undisturbed search takes a minute or two."""


class Machine:
    """A disk of its own: nothing that one command leaves behind is found by the next machine's."""

    def __init__(self, root: Path) -> None:
        self.root, self._mark = root, uuid.uuid4().hex
        self._places = {"HOME": root / "home", "GRCF_CACHE": root / "cache", "TMPDIR": root / "tmp"}
        for folder in (*self._places.values(), root / "cwd"):
            folder.mkdir()

    def search(self, *argv: str) -> subprocess.Popen[str]:
        """Start a search, in a process group of its own."""
        variables = {name: str(path) for name, path in self._places.items()}
        return subprocess.Popen(
            [sys.executable, "-m", "grcf_ray.search", *argv],
            cwd=self.root / "cwd",
            env={**os.environ, **variables, "PYTHONPATH": str(ROOT), "GRCF_TEST_MARK": self._mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def move_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process use its disk."""
        for name, path in self._places.items():
            monkeypatch.setenv(name, str(path))
        monkeypatch.setattr(tempfile, "tempdir", str(self._places["TMPDIR"]))
        monkeypatch.chdir(self.root / "cwd")

    def switch_off(self) -> None:
        """Kill all that it runs, whatever group it has put itself into."""
        kill_marked(self._mark)

    def files(self) -> list[str]:
        """What lies on its disk, but Ray's own files, matplotlib's list of fonts and what was derived from the data."""
        home = self.root / "home"
        other = (self.root / "tmp" / "ray", home / ".ray", home / ".cache" / "matplotlib", self._places["GRCF_CACHE"])
        return [
            str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if not path.is_dir() and not any(path.is_relative_to(folder) for folder in other)
        ]


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    # Ray's sockets lie in TMPDIR, and their paths must be short.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as root:
        made = Machine(Path(root))
        try:
            yield made
        finally:
            made.switch_off()


def test_a_killed_search_resumes_on_a_machine_with_an_empty_disk(
    s3: str, recorded: Recorded, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = storage_path(s3) / "some runs"
    record, reference = RunRecord(runs / "recorded"), RunRecord(storage_path(recorded.folder))
    argv = list(recorded.argv)
    argv[argv.index("--storage") + 1] = runs.uri
    # The plan changes nothing in the bucket.
    code, _, err = run(*argv, "--dry-run")
    assert code == 0, err
    assert str(runs) in err and not runs.exists()

    with machine() as first:
        search = first.search(*argv)
        end = time.monotonic() + STUCK_S
        while sum(trial.epoch for trial in record.trials(2)) < 4:
            assert search.poll() is None and time.monotonic() < end, search.communicate()
            time.sleep(0.1)
        assert (record.place / "lease.json").exists()
        os.killpg(search.pid, signal.SIGKILL)
        first.switch_off()
        search.communicate()
    before = {stage: record.trials(stage) for stage in (1, 2)}
    assert record.read_run()["state"] == "running" and not (record.place / "best").exists()

    with machine() as second:
        search = second.search(*argv)
        out, err = search.communicate(timeout=STUCK_S)
        assert search.returncode == 0, err
        # Its process is known to have ended, so it is not waited for.
        assert "Waiting" not in err
        assert second.files() == []

        for stage in (1, 2):
            after = record.trials(stage)
            assert essence(after) == essence(reference.trials(stage))
            # What had ended was left alone.
            ended = {(trial.number, trial.attempt, trial.ended) for trial in before[stage] if trial.finished}
            assert ended <= {(trial.number, trial.attempt, trial.ended) for trial in after}
        described = record.read_run()
        assert described["state"] == "finished" and len(described["starts"]) == 2
        weights = "best/model.safetensors"
        assert record.at(weights).read_bytes() == reference.at(weights).read_bytes()
        scored, expected = (RunView.read(searched).scored("test") for searched in (record, reference))
        assert scored is not None and expected is not None
        assert scored.id_N == expected.id_N and (scored.score_N == expected.score_N).all()
        assert json.loads(out)["run"] == str(record) and json.loads(out)["test"] == json.loads(recorded.out)["test"]
        assert sorted(record.place.names()) == sorted(set(reference.place.names()) - {"lock"})

        second.move_in(monkeypatch)
        code, out, err = command(evaluate.app, capsys)(record.place.uri, "--json")
        assert code == 0, err
        assert json.loads(out)["as_recorded"]
        assert second.files() == []
