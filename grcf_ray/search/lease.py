"""One driver for each run: the driver that writes a run holds its lease; a second search is refused.

The lease is a file lock and a heartbeat, always both:

- The lock on `lock` in the run's folder works at once: the system frees it when the holder ends, even after a crash.
  Some NFS mounts keep locks on one machine, some disks have none, and the lock's file can be deleted.
- The heartbeat is `lease.json`, which the holder rewrites every few seconds. A second driver watches the file and
  takes the run over if it stops changing, or at once if the holder's process on this machine has ended. Clocks are
  not compared.

Two drivers can still overlap, for example after a machine was suspended. The driver that lost the lease stops before
it next writes the record or reads the test split (`fence`). Each attempt of a trial writes to its own folder, so no
checkpoint is overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from grcf_ray import console
from grcf_ray.errors import ClusterError, ConfigError
from grcf_ray.storage import StoragePath

_LOCK, _LEASE = "lock", "lease.json"
_CONTENTION = frozenset({errno.EAGAIN, errno.EACCES})
"""Errors of flock if another process has the lock; network disks of Windows report EACCES."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""Errors of flock on a disk without locks."""
_DEAD_INTERVALS = 2.5
"""Intervals without a heartbeat after which the holder counts as dead."""
_SAFE_INTERVALS = 2.0
"""Intervals after a heartbeat within which no other driver can have taken the lease."""
_STALE_SECONDS = 300.0
"""Age of a `lease.json` on a disk, by this machine's clock, at which `is_held` calls its holder dead."""
_LOCK_SECONDS, _POLL_SECONDS = 0.1, 0.02
"""How long and how often to try for a lock, because `is_held` shares it for an instant."""

_READS = 3
"""Reads of a `lease.json` that is no JSON: object storage can cut a read short if the file is replaced meanwhile."""

_held: list[Lease] = []
"""The leases that this process holds."""

# A forked child holds none of its parent's leases.
os.register_at_fork(after_in_child=_held.clear)


def is_held(place: StoragePath) -> bool | None:
    """Return whether a search is writing the run now; None if a heartbeat has to be watched to tell.

    Takes no lease and needs no permission to write.
    """
    if place.local is not None:
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(place.local / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
            try:
                # A shared lock, so that two processes that look do not take each other for a search.
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _CONTENTION:
                    return True
                if error.errno not in _NO_LOCKS:
                    raise
            finally:
                os.close(lock)
    try:
        content = (place / _LEASE).read_bytes()
        stale = place.local is not None and time.time() - (place.local / _LEASE).stat().st_mtime > _STALE_SECONDS
    except FileNotFoundError:
        return False
    return False if stale or _is_dead(_parsed(content)) else None


def fence(place: StoragePath) -> None:
    """Return only if this process may still write to a run whose lease it took; call it before each write.

    place: the run, or a path in it. Raises ClusterError if another search has taken the run over.
    """
    for lease in _held:
        if f"{place}/".startswith(f"{lease.place}/"):
            place.outlasting(lease.confirm)


def unwritable(place: StoragePath, error: OSError, *, remedy: str = "--storage DIR") -> ConfigError:
    """Return the error for a place that cannot be written. remedy: how to give another place."""
    return ConfigError(f"{place} cannot be written ({error.strerror or error}); give another place: {remedy}")


class Lease:
    """The right to write a run, held while the context lasts. Raises ConfigError if another search holds it.

    interval: seconds between heartbeats. lost: called, perhaps from another thread, if another search takes the run
    over, for example after this machine was suspended; by default it ends the process with exit code 5.
    """

    def __init__(
        self, place: StoragePath, command: str, *, interval: float = 5.0, lost: Callable[[], None] | None = None
    ) -> None:
        # `record` imports this module.
        from grcf_ray.search.record import now

        self.place = place
        # The heartbeat outlasts no outage itself: its next turn is the next try.
        self._file = place.rooted() / _LEASE
        self._interval, self._lost = interval, lost or _exit_for_successor
        pid = os.getpid()
        self._holder = {"host": socket.gethostname(), "pid": pid, "started": now(), "command": command}
        self._process = {"machine": _machine(), "born": _born(pid)}
        self._nonce = uuid.uuid4().hex
        self._locks = contextlib.ExitStack()
        self._heartbeat = threading.Thread(target=self._beat_until_end, name="lease", daemon=True)
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._beats, self._last_beat = 0, 0.0

    def __enter__(self) -> Lease:
        with contextlib.ExitStack() as stack:
            try:
                locked = self.place.local is not None and self._take_lock(self.place.local / _LOCK, stack)
                self._take_file(locked=locked)
            except OSError as error:
                raise unwritable(self.place, error) from error
            self._locks = stack.pop_all()
        self.place.outlast_outages(self.confirm)
        return self

    def __exit__(self, *_: object) -> None:
        self.place.outlast_outages(None)
        with self._locks:
            if self in _held:
                _held.remove(self)
            self._ended.set()
            self._heartbeat.join()
            with contextlib.suppress(OSError):
                if self._is_mine(self._read()):
                    self._file.delete()

    def confirm(self) -> None:
        """Return only if this process still holds the lease. Raises OSError if the lease cannot be read now."""
        if _clock() - self._last_beat > _SAFE_INTERVALS * self._interval and (successor := self._renew()):
            raise self._taken_over(successor)

    def _take_lock(self, path: Path, stack: contextlib.ExitStack) -> bool:
        """Lock the run; return whether its disk has locks. Raises ConfigError if another search holds the lock."""
        # FileLock would create a missing run folder.
        path.parent.stat()
        lock = FileLock(path, timeout=_LOCK_SECONDS, poll_interval=_POLL_SECONDS, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise ConfigError(_refusal(self.place, _parsed(path.read_bytes()))) from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise
        stack.callback(lock.release)
        path.write_text(json.dumps(self._holder, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return True

    def _take_file(self, *, locked: bool) -> None:
        """Write the first heartbeat, unless another holder's heartbeat goes on."""
        before = self._read()
        if before and not _is_dead(_parsed(before)):
            seconds = _DEAD_INTERVALS * self._interval
            host = _holder_in(before).get("host", "unknown")
            console.progress(f"Waiting {seconds:g} s to see whether the search on host {host} is still running")
            end = time.monotonic() + seconds
            while before and time.monotonic() < end:
                time.sleep(self._interval / 5)
                seen = self._read()
                if seen and seen != before:
                    self._refuse(seen)
                before = seen
        self._beat()
        # If two drivers start at once, the last to write holds the lease. Locks make that rare: the next heartbeat
        # notices it.
        if not locked:
            time.sleep(self._interval / 5)
            if not self._is_mine(seen := self._read()):
                self._refuse(seen)
        _held.append(self)
        self._heartbeat.start()

    def _beat_until_end(self) -> None:
        successor, pause = b"", self._interval / 5
        while not successor and not self._ended.wait(pause):
            pause = self._interval
            # The network may fail for a while, and training goes on: the next heartbeat is the retry.
            with contextlib.suppress(Exception):
                successor = self._renew()
        if successor:
            self._taken_over(successor)

    def _renew(self) -> bytes:
        """Write a heartbeat and return b""; if another search has taken the lease, return its `lease.json`."""
        with self._writing:
            seen = self._read()
            if seen and not self._is_mine(seen):
                return seen
            self._beat()
        return b""

    def _taken_over(self, successor: bytes) -> ClusterError:
        error = ClusterError(f"{self.place} was taken over by another search: {_described(_holder_in(successor))}")
        console.progress(str(error))
        self._lost()
        return error

    def _beat(self) -> None:
        before = _clock()
        self._file.write_json({"holder": self._holder, **self._process, "nonce": self._nonce, "beat": self._beats})
        self._beats, self._last_beat = self._beats + 1, before

    def _read(self) -> bytes:
        content = b""
        for _ in range(_READS):
            try:
                content = self._file.read_bytes()
            except FileNotFoundError:
                return b""
            if _parsed(content):
                break
        return content

    def _is_mine(self, content: bytes) -> bool:
        return _parsed(content).get("nonce") == self._nonce

    def _refuse(self, content: bytes) -> None:
        raise ConfigError(_refusal(self.place, _holder_in(content)))


def _parsed(content: bytes) -> dict[str, Any]:
    """Return a JSON object, empty if the content is not one, as in the moment before it is written."""
    with contextlib.suppress(ValueError):
        value = json.loads(content)
        if isinstance(value, dict):
            return value
    return {}


def _holder_in(content: bytes) -> dict[str, Any]:
    holder = _parsed(content).get("holder")
    return holder if isinstance(holder, dict) else {}


def _clock() -> float:
    """Return seconds that also pass while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _machine() -> str:
    """Identify this boot of the machine and the namespace in which its process ids are valid."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _born(pid: int) -> str | None:
    """Return the system's start time of a process, None if the process does not exist or has ended."""
    try:
        if sys.platform == "linux":
            # psutil adds the boot time, which changes with the clock.
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            return None if stat[0] in "ZX" else stat[19]
        return str(psutil.Process(pid).create_time())
    except (OSError, psutil.Error):
        return None


def _is_dead(lease: dict[str, Any]) -> bool:
    """Return whether the holder of a `lease.json` is known to have ended; False for holders on other machines."""
    holder, born = lease.get("holder"), lease.get("born")
    pid = holder.get("pid") if isinstance(holder, dict) else None
    return bool(isinstance(pid, int) and born and lease.get("machine") == _machine() and _born(pid) != born)


def _exit_for_successor() -> None:
    """End the process at once: another search writes the record now."""
    console.progress("This search ends here; the other search goes on with the run")
    os._exit(5)


def _described(holder: dict[str, Any]) -> str:
    if not holder:
        return "its holder is not recorded yet"
    host, pid, started, command = (holder.get(key, "unknown") for key in ("host", "pid", "started", "command"))
    return f"host {host}, process {pid}, since {started} ({command})"


def _refusal(place: StoragePath, holder: dict[str, Any]) -> str:
    return (
        f"{place} is being written by another search: {_described(holder)}. "
        "Wait for that search, stop it, or give this one another name: --name NAME"
    )
