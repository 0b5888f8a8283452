"""A run has one driver: a second is refused with the holder's name, and a dead driver's run is free."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grcf_ray.errors import ClusterError, ConfigError
from grcf_ray.search import lease as module
from grcf_ray.search.lease import Lease, fence, is_held
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.run_lookup import find_run
from grcf_ray.search.winner import note_test_read
from grcf_ray.storage import LocalPath, StoragePath, storage_path

COMMAND = "python -m grcf_ray.search --dataset tiny"
BEAT = 0.1
RIVAL = {"host": "elsewhere", "pid": 7, "started": "2026-11-23T00:20:11+00:00", "command": "another"}
STILL = json.dumps({"holder": RIVAL, "nonce": "old", "beat": 3})
HOLD = """
import os, sys
from pathlib import Path
from grcf_ray.cluster import connect
from grcf_ray.search.lease import Lease
from grcf_ray.storage import storage_path

with Lease(storage_path(Path(sys.argv[1])), "the other"):
    if "fork" in sys.argv:
        # A child that outlives its parent and holds all that it inherits.
        if os.fork() == 0:
            sys.stdin.read()
            os._exit(0)
    if "ray" in sys.argv:
        connect()
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def another_driver(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lease of a folder's run until it is killed."""
    argv = [sys.executable, "-c", HOLD, str(folder), *words]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; fail after a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(BEAT / 5)


@pytest.fixture
def run(tmp_path: Path) -> StoragePath:
    (tmp_path / "run").mkdir()
    return LocalPath(tmp_path / "run")


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make flock fail as on a disk without locks."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(module.fcntl, "flock", refuse)


def test_a_second_search_is_refused_with_who_holds_the_run(run: StoragePath) -> None:
    with Lease(run, COMMAND):
        holder = (run / "lock").read_json()
        assert holder["started"].endswith("+00:00")
        with pytest.raises(ConfigError) as refused, Lease(run, "the second"):
            pass
    for part in (run, socket.gethostname(), f"process {os.getpid()}", holder["started"], COMMAND, "--name NAME"):
        assert str(part) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "not recorded"), (b'{"host": "new"}', r"host new, process unknown, since unknown")]
)
def test_a_holder_whose_name_is_not_recorded_yet_refuses_too(run: StoragePath, content: bytes, message: str) -> None:
    with Lease(run, COMMAND):
        Path(str(run), "lock").write_bytes(content)
        with pytest.raises(ConfigError, match=message), Lease(run, "the second"):
            pass


@pytest.mark.parametrize("fails", [False, True])
def test_the_run_is_free_at_the_end(run: StoragePath, fails: bool) -> None:
    with contextlib.suppress(KeyError), Lease(run, COMMAND):
        if fails:
            raise KeyError
    with Lease(run, "the second"):
        assert (run / "lock").read_json()["command"] == "the second"


@pytest.mark.parametrize("words", ["fork", pytest.param("ray", marks=pytest.mark.integration)])
def test_a_killed_drivers_run_is_free_at_once(run: StoragePath, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither a child that inherits the lock nor Ray keeps it."""
    with another_driver(Path(str(run)), words) as driver:
        assert is_held(run) is True
        with pytest.raises(ConfigError, match=f"process {driver.pid}"), Lease(run, COMMAND):
            pass
        driver.kill()
        driver.wait()
        assert is_held(run) is False
        assert (run / "lease.json").exists()
        with Lease(run, COMMAND):
            assert (run / "lease.json").read_json()["holder"]["command"] == COMMAND
    assert "Waiting" not in capfd.readouterr().err


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"cannot be written \(.*--storage DIR"),
        Lease(LocalPath(tmp_path / folder), COMMAND),
    ):
        pass


def _deny(*_: Any) -> Any:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_lock_that_may_not_be_opened_is_refused(run: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "open", _deny)
    with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\)"), Lease(run, COMMAND):
        pass


def test_another_users_run_is_refused(run: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalPath, "exists", _deny)
    with pytest.raises(ConfigError, match=r"run belongs to another user \(Permission denied\); .*--name NAME"):
        find_run(storage_path(run.local.parent), "run", None, None, force=False)


class TestBeats:
    """The heartbeat on disks without locks and on object storage."""

    @pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
    def place(self, request: pytest.FixtureRequest, run: StoragePath) -> StoragePath:
        if request.param == "local":
            request.getfixturevalue("no_locks")
            return run
        return storage_path(request.getfixturevalue("s3")) / "leases" / run.uri.replace("/", "-")

    def test_it_beats_until_the_end(self, place: StoragePath) -> None:
        with Lease(place, COMMAND, interval=BEAT):
            eventually(lambda: (place / "lease.json").read_json()["beat"] > 2)
            assert (place / "lease.json").read_json()["holder"]["command"] == COMMAND
        assert not (place / "lease.json").exists()

    def test_a_second_search_sees_it_beat_and_is_refused(
        self, place: StoragePath, capfd: pytest.CaptureFixture[str]
    ) -> None:
        # The second driver watches much longer than the heartbeat's interval, so a late heartbeat does not matter.
        with (
            Lease(place, COMMAND, interval=BEAT),
            pytest.raises(ConfigError, match=rf"process {os.getpid()}, .*{COMMAND}.*--name NAME"),
            Lease(place, "the second", interval=50 * BEAT),
        ):
            pass
        waiting = capfd.readouterr().err
        assert "Waiting 12.5 s" in waiting and socket.gethostname() in waiting

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"holder": 1}', '{"holder": {"host": 1}}', STILL])
    def test_what_stands_still_or_is_no_lease_is_taken_over(self, place: StoragePath, content: str) -> None:
        (place / "lease.json").write_text(content)
        with Lease(place, COMMAND, interval=BEAT):
            assert (place / "lease.json").read_json()["holder"]["command"] == COMMAND

    def test_who_loses_it_is_told_and_leaves_it_alone(
        self, place: StoragePath, capfd: pytest.CaptureFixture[str]
    ) -> None:
        lost = threading.Event()
        with Lease(place, COMMAND, interval=BEAT, lost=lost.set):
            # A heartbeat in progress would overwrite the rival's file, so write it until the lease is lost.
            def overtaken() -> bool:
                (place / "lease.json").write_json({"holder": RIVAL, "nonce": "new", "beat": 0})
                return lost.wait(BEAT)

            eventually(overtaken)
        assert (place / "lease.json").read_json()["holder"] == RIVAL
        assert "was taken over by another search: host elsewhere, process 7" in capfd.readouterr().err


class Rough(LocalPath):
    """A place that calls `trouble` after each write."""

    trouble: Callable[[Path], None]

    def __truediv__(self, name: str) -> LocalPath:
        child = Rough(self.local / name)
        child.trouble = self.trouble
        return child

    def rooted(self) -> LocalPath:
        return self

    def write_json(self, value: Any) -> None:
        super().write_json(value)
        self.trouble(self.local)


def test_of_two_that_start_at_a_time_one_has_it(run: StoragePath, no_locks: None) -> None:
    def overwrite(path: Path) -> None:
        path.write_text(json.dumps({"holder": RIVAL, "nonce": "x", "beat": 0}), encoding="utf-8")

    place = Rough(Path(str(run)))
    place.trouble = overwrite
    with pytest.raises(ConfigError, match="host elsewhere"), Lease(place, COMMAND, interval=BEAT):
        pass
    assert (run / "lease.json").read_json()["holder"] == RIVAL


def test_a_beat_that_fails_is_made_up_for(run: StoragePath, no_locks: None) -> None:
    beats = iter(range(100))
    failed = []

    def fail(path: Path) -> None:
        if next(beats) in (1, 2):
            failed.append(path)
            raise OSError(errno.EIO, "no network")

    place = Rough(Path(str(run)))
    place.trouble = fail
    with Lease(place, COMMAND, interval=BEAT):
        eventually(lambda: len(failed) == 2 and (run / "lease.json").read_json()["beat"] > 3)


def test_an_old_lease_of_another_machine_holds_nothing_to_who_looks(tmp_path: Path) -> None:
    place = storage_path(tmp_path / "run")
    assert is_held(place) is False
    (place / "lease.json").write_json({"holder": RIVAL, "nonce": "n", "beat": 0})
    assert is_held(place) is None
    os.utime(tmp_path / "run" / "lease.json", (1, 1))
    assert is_held(place) is False


def test_of_a_lease_that_beats_one_look_tells_nothing(run: StoragePath, no_locks: None) -> None:
    with Lease(run, COMMAND, interval=BEAT):
        assert is_held(run) is None
    assert is_held(run) is False


def test_a_search_that_starts_while_somebody_looks_is_not_refused(
    run: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        module.fcntl.flock(look, module.fcntl.LOCK_UN)

    Path(str(run), "lock").touch()
    look = os.open(Path(str(run), "lock"), os.O_RDONLY)
    module.fcntl.flock(look, module.fcntl.LOCK_SH)
    monkeypatch.setattr(module.time, "sleep", sleep)
    with Lease(run, COMMAND):
        assert looks, "the look was in its way"
        # Looking takes no lease and does not disturb the holder.
        assert is_held(run) is True
        assert is_held(run) is True
    assert is_held(run) is False
    os.close(look)


def test_a_lock_that_another_machine_does_not_see_is_not_enough(
    run: StoragePath, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On NFS with local_lock, or after the lock's file was deleted, both drivers get the lock."""
    with Lease(run, COMMAND, interval=BEAT):
        (run / "lock").delete()
        monkeypatch.setattr(module, "_machine", lambda: "another")
        second = Lease(run, "the second", interval=50 * BEAT)
        with pytest.raises(ConfigError, match=rf"process {os.getpid()}, .*{COMMAND}"), second:
            pass
    # The refused driver has released its lock.
    assert not (run / "lease.json").exists()
    with Lease(run, COMMAND):
        pass


@pytest.mark.parametrize(
    ("changes", "dead"),
    [
        ({}, False),
        ({"born": "1"}, True),
        ({"machine": "another", "born": "1"}, False),
        ({"holder": {"pid": 1 << 30}}, True),
        ({"born": None}, False),
        ({"holder": {}}, False),
    ],
)
def test_who_is_known_to_be_dead(run: StoragePath, changes: dict[str, Any], dead: bool) -> None:
    """By process id and start time, on the same boot of the same machine."""
    with Lease(run, COMMAND):
        written = (run / "lease.json").read_json()
    assert module._is_dead(written | changes) is dead


class TestFence:
    """A driver that lost its lease while the machine was suspended, before its thread noticed."""

    @pytest.fixture
    def taken(self, run: StoragePath, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        """Yield the calls of `lost` for a lease that another search took while the machine was suspended."""
        called: list[str] = []
        with Lease(run, COMMAND, interval=1000, lost=lambda: called.append("lost")):
            (run / "lease.json").write_json({"holder": RIVAL, "nonce": "new", "beat": 0})
            fence(run)
            assert called == [], "too soon after a heartbeat for another search to have taken it"
            later = module._clock() + 10_000
            monkeypatch.setattr(module, "_clock", lambda: later)
            yield called

    @pytest.mark.parametrize("write", ["write_run", "update_run", "write_trial", "write_space", "export_trials"])
    def test_it_writes_no_record(self, run: StoragePath, taken: list[str], write: str) -> None:
        record, trial = RunRecord(run), TrialRecord(number=0, stage=1, attempt=1, params={}, seed=1, state="running")
        arguments = {
            "write_run": ({"state": "running"},),
            "write_trial": (trial,),
            "write_space": ("",),
            "export_trials": (1,),
        }
        Path(str(run), "run.json").write_text('{"schema_version": 1, "state": "running"}')
        with pytest.raises(ClusterError, match="taken over by another search: host elsewhere, process 7"):
            getattr(record, write)(*arguments.get(write, ()))
        assert taken == ["lost"]
        assert record.read_run()["state"] == "running"
        assert '"schema_version": 1' in Path(str(run), "run.json").read_text()
        assert sorted(run.names()) == ["lease.json", "lock", "run.json"]

    def test_it_reads_no_test(self, run: StoragePath, taken: list[str]) -> None:
        with pytest.raises(ClusterError):
            note_test_read(run / "best", "search", [])
        assert not (run / "best").exists()

    def test_another_run_is_no_concern_of_it(self, run: StoragePath, taken: list[str]) -> None:
        fence(run.beside("run-2"))
        assert taken == []

    def test_one_that_still_holds_it_beats_and_goes_on(self, run: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
        with Lease(run, COMMAND, interval=1000) as lease:
            later = module._clock() + 10_000
            monkeypatch.setattr(module, "_clock", lambda: later)
            beats = (run / "lease.json").read_json()["beat"]
            fence(run / "seeds")
            assert (run / "lease.json").read_json()["beat"] == beats + 1
            lease.confirm()
            assert (run / "lease.json").read_json()["beat"] == beats + 1
