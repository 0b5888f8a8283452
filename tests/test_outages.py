"""Object storage that is away for a while: the holder of a run's lease waits for it, and others do not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import fs as pafs

from grcf_ray.errors import ClusterError
from grcf_ray.search import lease as lease_module
from grcf_ray.search.lease import Lease
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.storage import RemotePath, remote

COMMAND = "search --dataset mosi"
AWAY = "When getting information for key 'run' in bucket 'b': AWS Error NETWORK_CONNECTION during HeadObject"


class Storage:
    """A storage in a folder that is away until `until`, by a clock of its own, which only sleeping moves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._local = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
        self.now = self.until = 0.0
        self.error = OSError(AWAY)
        self.calls = 0
        names = pafs.FileSystemHandler.__abstractmethods__
        calls = {name: self._call(name) for name in names} | {"get_type_name": lambda handler: "outage"}
        handler: Any = type("Handler", (pafs.FileSystemHandler,), calls)
        self.filesystem = pafs.PyFileSystem(handler())

    def _call(self, name: str) -> Callable[..., Any]:
        def call(handler: Any, *args: Any) -> Any:
            self.calls += 1
            if self.now < self.until:
                raise self.error
            if name == "open_output_stream":
                (self._folder / args[0]).parent.mkdir(parents=True, exist_ok=True)
                return self._local.open_output_stream(args[0])
            return getattr(self._local, name.removesuffix("_selector"))(*args)

        return call

    def fail_for(self, seconds: float) -> None:
        self.until, self.calls = self.now + seconds, 0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    storage = Storage(tmp_path)
    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=lambda: storage.now, sleep=storage.sleep))
    return storage


@pytest.fixture
def place(storage: Storage) -> RemotePath:
    return RemotePath(storage.filesystem, "run", "s3://bucket/run", "")


@contextlib.contextmanager
def lease(place: RemotePath, lost: Callable[[], None] | None = None) -> Iterator[Lease]:
    """The run's lease, whose heartbeat is slower than the test."""
    with Lease(place, COMMAND, interval=3600.0, lost=lost) as held:
        yield held


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look at whether another driver started at the same time."""
    monkeypatch.setattr(lease_module, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))


def trial() -> TrialRecord:
    return TrialRecord(number=0, stage=1, attempt=1, params={}, seed=0, state="running")


def test_a_record_is_written_after_two_minutes_without_storage(
    place: RemotePath, storage: Storage, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunRecord(place)
    with lease(place):
        storage.fail_for(120.0)
        record.write_trial(trial())
        assert 120.0 <= storage.now < 240.0
        assert storage.calls < 20
        assert record.trials(1) == [trial()]
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "does not answer" in line]) == 1
    assert "The storage answers again" in said[-1]


def test_a_search_stops_after_ten_minutes(place: RemotePath, storage: Storage, quick: None) -> None:
    with lease(place):
        storage.fail_for(3600.0)
        with pytest.raises(OSError, match="NETWORK_CONNECTION"):
            RunRecord(place).write_trial(trial())
        assert 600.0 <= storage.now < 700.0
        storage.until = 0.0


@pytest.mark.parametrize("error", ["AWS Error NO_SUCH_BUCKET", "AWS Error ACCESS_DENIED", 28])
def test_an_error_that_stays_is_raised_at_once(
    place: RemotePath, storage: Storage, quick: None, error: str | int
) -> None:
    with lease(place):
        storage.error = OSError(error, "No space left on device") if isinstance(error, int) else OSError(error)
        storage.fail_for(10.0)
        with pytest.raises(OSError, match=str(error)):
            (place / "file").write_text("x")
        assert storage.now == 0.0
        storage.until = 0.0
        with pytest.raises(FileNotFoundError):
            (place / "none").read_bytes()
        assert storage.now == 0.0


def test_who_holds_no_lease_does_not_wait(place: RemotePath, storage: Storage, quick: None) -> None:
    """Such as a trial, whose attempt the search repeats, or a process that is about to be killed."""
    with lease(place):
        storage.fail_for(10.0)
        with pytest.raises(OSError, match="NETWORK"):
            (place.rooted() / "file").write_text("x")
        storage.until = 0.0
    storage.fail_for(10.0)
    with pytest.raises(OSError, match="NETWORK"):
        (place / "file").write_text("x")
    assert storage.now == 0.0


def test_a_driver_that_lost_its_lease_in_an_outage_writes_no_more(
    place: RemotePath, storage: Storage, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[bool] = []
    with lease(place, lambda: lost.append(True)) as held:
        record = RunRecord(place)
        record.write_trial(trial())
        (place.rooted() / "lease.json").write_json({"holder": {"host": "elsewhere"}, "nonce": "new", "beat": 0})
        storage.fail_for(120.0)
        # By the time the storage answers again, the last heartbeat is too old to rely on.
        monkeypatch.setattr(held, "_last_beat", -1e9)
        with pytest.raises(ClusterError, match="taken over by another search: host elsewhere"):
            (place / "file").write_text("x")
    assert lost == [True]
    assert not (place / "file").exists()
