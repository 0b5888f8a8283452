"""One driver to a run: whoever writes a run holds its lease, and a second search is told who that is.

The lease is `lease.json`, which its holder rewrites every few seconds: a second driver watches it for a while, and
takes the run over if it stands still. A holder that is known to be dead, by its process on this machine, is not waited
for. Clocks are not compared. On a disk there is also a lock on `lock` in the run's folder, which the system frees when
its holder ends, however it ends: it tells at once, but alone it is not enough, since it may be known to one machine
only, as with some mounts of NFS, and its file may be removed.

Two drivers can still meet, say when a machine was asleep for a while. Whoever lost the lease stops before its next
write of the record and before it reads test (`fence`). Every launch of a trial writes to a folder of its own, so no
checkpoint is harmed. Drivers within one Ray cluster also meet at an actor whose name comes from the run's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from grcf_ray import console
from grcf_ray.errors import ClusterError, ConfigError
from grcf_ray.storage import StoragePath

_HELD = frozenset({errno.EAGAIN, errno.EACCES})
"""What flock says where another process has the lock; EACCES is from network disks of Windows."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""What flock says on a disk without locks."""
_STILL = 2.5
"""Intervals without a beat after which the holder of `lease.json` counts as dead."""
_SURE = 2.0
"""Intervals after a beat within which nobody can have taken the lease."""
_STALE_SECONDS = 300.0
"""Age of a `lease.json` on a disk, by this machine's clock, at which a look calls its holder dead. Nothing is taken."""
_LOOKS, _LOOK_SECONDS = 5, 0.02
"""How often a lock is asked for, and the time between: `is_held` has it for an instant."""
_ANSWER_SECONDS, _SURE_SECONDS, _DYING_SECONDS, _BIRTH_SECONDS = 5.0, 3.0, 15.0, 60.0
"""The actor's time to answer; when an answer is not a dying one's, and when silence is a dead one's; time to start."""

_held: list[Lease] = []
"""The leases that this process holds."""
_locks: set[int] = set()
"""File descriptors of the locks that this process holds."""


def _close_locks() -> None:
    """A child that is forked and lives on must not keep its parent's locks."""
    for lock in _locks:
        with contextlib.suppress(OSError):
            os.close(lock)
    _locks.clear()
    _held.clear()


os.register_at_fork(after_in_child=_close_locks)


def is_held(place: StoragePath) -> bool | None:
    """Whether a search is writing the run now. None where one look cannot tell: a lease that beats may stand still."""
    if place.local is not None:
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(place.local / "lock", os.O_RDONLY | os.O_CLOEXEC)
            try:
                # Shared, so that two who look do not take each other for a search.
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _HELD:
                    return True
                if error.errno not in _NO_LOCKS:
                    raise
            finally:
                os.close(lock)
    try:
        content = (place / "lease.json").read_bytes()
        old = place.local is not None and time.time() - (place.local / "lease.json").stat().st_mtime > _STALE_SECONDS
    except FileNotFoundError:
        return False
    return False if old or _is_dead(_parsed(content)) else None


def fence(place: StoragePath) -> None:
    """Come back only while this process may write to a run, if it has held its lease: call it before each write.

    place: the run, or what lies in it.
    """
    for lease in _held:
        if f"{place}/".startswith(f"{lease.place}/"):
            lease.confirm()


def _lock(lock: int) -> None:
    """Lock the file of a descriptor for this process alone. OSError where another one has it."""
    for look in range(1, _LOOKS + 1):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD or look == _LOOKS:
                raise
            time.sleep(_LOOK_SECONDS)
        else:
            return


class Lease:
    """The right to write a run, held while the context lasts. ConfigError where another search has it.

    interval: seconds between beats. lost: called, perhaps from another thread, if another search takes the run over
    while this one holds it, as after a long sleep of the machine; as it comes, it ends the process with exit code 5.
    """

    def __init__(
        self, place: StoragePath, command: str, *, interval: float = 5.0, lost: Callable[[], None] | None = None
    ) -> None:
        # Not above: the actor's process imports this file, and has no use for torch.
        from grcf_ray.search.record import now

        self.place = place
        self._interval, self._lost = interval, lost or _give_way
        pid = os.getpid()
        self._holder = {"host": socket.gethostname(), "pid": pid, "started": now(), "command": command}
        self._process = {"machine": _machine(), "born": _born(pid)}
        self._nonce = uuid.uuid4().hex
        self._lock: int | None = None
        self._beating: threading.Thread | None = None
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._beats, self._beaten = 0, 0.0
        self._actor: Any = None

    def __enter__(self) -> Lease:
        try:
            locked = self.place.local is not None and self._take_lock(self.place.local / "lock")
            self._take_file(locked=locked)
        except BaseException as error:
            self._free_lock()
            if not isinstance(error, OSError):
                raise
            raise ConfigError(
                f"{self.place} cannot be written ({error.strerror or error}); give another place: --storage DIR"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._actor is not None:
            import ray

            # Ray may have ended before.
            with contextlib.suppress(Exception):
                ray.kill(self._actor)
        if self in _held:
            _held.remove(self)
        if self._beating is not None:
            self._ended.set()
            self._beating.join()
            with contextlib.suppress(OSError):
                if self._is_mine(self._read()):
                    self._file.delete()
        self._free_lock()

    def _free_lock(self) -> None:
        if self._lock is not None:
            _locks.discard(self._lock)
            os.close(self._lock)
            self._lock = None

    def confirm(self) -> None:
        """Come back only if this process still holds the lease. OSError where that cannot be told now."""
        if _clock() - self._beaten > _SURE * self._interval and (taker := self._renew()):
            raise self._given_up(taker)

    def join_cluster(self) -> None:
        """Hold the run's name in the Ray cluster too, once it is joined. ConfigError where another search has it."""
        import grcf_ray.cluster  # noqa: F401  before Ray

        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        name = "grcf-run-" + hashlib.sha256(self.place.uri.encode()).hexdigest()[:16]
        # Beside the driver, so that they die together and no other node is kept from being given back. By a soft
        # affinity, Ray puts what asks for no resources on any node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"name": name, "namespace": "grcf", "num_cpus": 0, "scheduling_strategy": here}
        begun = time.monotonic()
        while time.monotonic() - begun < _BIRTH_SECONDS:
            try:
                other = ray.get_actor(name, namespace="grcf")
            except ValueError:
                # Between the look and this, another driver may have taken the name: then the answer is its holder.
                actor = ray.remote(_Witness).options(**options, get_if_exists=True).remote(self._nonce, self._holder)
                nonce, holder = self._ask(actor, _BIRTH_SECONDS) or ("", {})
                if nonce == self._nonce:
                    self._actor = actor
                    return
            else:
                _, holder = self._ask(other, _ANSWER_SECONDS) or ("", {})
                if not holder and time.monotonic() - begun > _DYING_SECONDS:
                    ray.kill(other)
            if holder and time.monotonic() - begun > _SURE_SECONDS:
                raise ConfigError(_refusal(self.place, holder))
            time.sleep(0.2)
        raise ClusterError(
            f"the cluster started no process for {name} in {_BIRTH_SECONDS:g} s; see `ray status` for what it lacks"
        )

    @staticmethod
    def _ask(actor: Any, seconds: float) -> tuple[str, dict[str, Any]] | None:
        """Who the actor stands for; None where it is dying, dead or deaf."""
        import ray

        try:
            answer: tuple[str, dict[str, Any]] = ray.get(actor.answer.remote(), timeout=seconds)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return None
        return answer

    def _take_lock(self, path: Path) -> bool:
        """Whether this disk has locks; ConfigError where another search holds this one."""
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(lock)
            os.ftruncate(lock, 0)
            os.write(lock, json.dumps(self._holder, indent=2, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            holder = b""
            with contextlib.suppress(OSError):
                holder = os.pread(lock, 1 << 20, 0)
            os.close(lock)
            if error.errno in _HELD:
                raise ConfigError(_refusal(self.place, _parsed(holder))) from error
            if error.errno in _NO_LOCKS:
                return False
            raise
        self._lock = lock
        _locks.add(lock)
        return True

    @property
    def _file(self) -> StoragePath:
        return self.place / "lease.json"

    def _take_file(self, *, locked: bool) -> None:
        """Take the lease that beats, unless its holder's heart does."""
        before = self._read()
        if before and not _is_dead(_parsed(before)):
            seconds = _STILL * self._interval
            host = _holder_in(before).get("host", "unknown")
            console.progress(f"Waiting {seconds:g} s to see whether the search on host {host} still lives")
            end = time.monotonic() + seconds
            while before and time.monotonic() < end:
                time.sleep(self._interval / 5)
                seen = self._read()
                if seen and seen != before:
                    self._refuse(seen)
                before = seen
        self._beat()
        # Of two that start at a time, the one that wrote last has it. They seldom get here where there are locks: then
        # the first beat looks.
        if not locked:
            time.sleep(self._interval / 5)
            if not self._is_mine(seen := self._read()):
                self._refuse(seen)
        _held.append(self)
        self._beating = threading.Thread(target=self._beat_on, name="lease", daemon=True)
        self._beating.start()

    def _beat_on(self) -> None:
        taker, pause = b"", self._interval / 5
        while not taker and not self._ended.wait(pause):
            pause = self._interval
            # The network may fail for a while, and training goes on: the next beat is the retry.
            with contextlib.suppress(Exception):
                taker = self._renew()
        if taker:
            self._given_up(taker)

    def _renew(self) -> bytes:
        """Beat once more, unless another search has taken the lease: then what it wrote."""
        with self._writing:
            seen = self._read()
            if seen and not self._is_mine(seen):
                return seen
            self._beat()
        return b""

    def _given_up(self, taker: bytes) -> ClusterError:
        error = ClusterError(f"{self.place} was taken over by another search: {_told(_holder_in(taker))}")
        console.progress(str(error))
        self._lost()
        return error

    def _beat(self) -> None:
        before = _clock()
        self._file.write_json({"holder": self._holder, **self._process, "nonce": self._nonce, "beat": self._beats})
        self._beats, self._beaten = self._beats + 1, before

    def _read(self) -> bytes:
        """The content of `lease.json`; empty where there is none."""
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            return b""

    def _is_mine(self, content: bytes) -> bool:
        return _parsed(content).get("nonce") == self._nonce

    def _refuse(self, content: bytes) -> None:
        raise ConfigError(_refusal(self.place, _holder_in(content)))


class _Witness:
    """What the actor in the cluster knows: who holds the run."""

    def __init__(self, nonce: str, holder: dict[str, Any]) -> None:
        self._answer = nonce, holder

    def answer(self) -> tuple[str, dict[str, Any]]:
        """The lease's nonce and its holder."""
        return self._answer


def _parsed(content: bytes) -> dict[str, Any]:
    """A JSON object; empty where it is none, as in the moment before it is written."""
    with contextlib.suppress(ValueError):
        value = json.loads(content)
        if isinstance(value, dict):
            return value
    return {}


def _holder_in(content: bytes) -> dict[str, Any]:
    """Who wrote a `lease.json`; empty where it does not say."""
    holder = _parsed(content).get("holder")
    return holder if isinstance(holder, dict) else {}


def _clock() -> float:
    """Seconds that also go by while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _machine() -> str:
    """Names this start of the machine, and in it the room where a process id means something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _born(pid: int) -> str | None:
    """When a process was started, as its system counts; None where there is no such process, or it has ended."""
    try:
        if sys.platform == "linux":
            # psutil adds the time of the start of the machine, which changes with the clock.
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            return None if stat[0] in "ZX" else stat[19]
        return str(psutil.Process(pid).create_time())
    except (OSError, psutil.Error):
        return None


def _is_dead(lease: dict[str, Any]) -> bool:
    """Whether the holder of a `lease.json` is known to have ended. Of another machine, nothing is known."""
    holder, born = lease.get("holder"), lease.get("born")
    pid = holder.get("pid") if isinstance(holder, dict) else None
    return bool(isinstance(pid, int) and born and lease.get("machine") == _machine() and _born(pid) != born)


def _give_way() -> None:
    """Another search has the run, as after a long sleep of this machine: not a word more into its record."""
    console.progress("This search ends here; the run is the other's")
    os._exit(5)


def _told(holder: dict[str, Any]) -> str:
    if not holder:
        return "it has not said who it is"
    host, pid, started, command = (holder.get(key, "unknown") for key in ("host", "pid", "started", "command"))
    return f"host {host}, process {pid}, since {started} ({command})"


def _refusal(place: StoragePath, holder: dict[str, Any]) -> str:
    return (
        f"{place} is being written by another search: {_told(holder)}. "
        "Wait for it, stop it, or give this one a name of its own: --name NAME"
    )
