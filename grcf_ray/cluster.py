"""The door to Ray: every module that imports Ray imports this one first, and `connect` alone starts or joins a cluster.

Ray reads much of its environment when it is imported, so this module sets it before. A Ray of our own serves one
process tree: it listens on the loopback interface, asks for a random token, and keeps its files in a private folder.
"""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import logging
import os
import resource
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from grcf_ray.errors import ClusterError, reason

_SETTINGS = {
    # Trials' relative paths are the user's; Tune's own printing is replaced by ours.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The record is the truth: signals are the search's own, and Tune's snapshots of itself are for nobody.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
_CLOSED = {
    # Named after the systems where it is the default: Ray listens on the loopback interface and on no other.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}
"""What keeps others out of a Ray of our own."""
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
_LOOK_S = 1.0
"""Seconds between two looks at Ray's processes."""
_PATIENCE_S = 45.0
"""Silence after which a cluster's server is gone: it may be started again elsewhere, and Ray waits for it for 60 s."""
_ANSWER_S = 10.0
"""Seconds within which a cluster that is there answers."""
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""How a client of HTTP/2 begins: the preface, and a frame of settings that sets nothing."""
_SETTINGS_FRAME = b"\x04"
"""The type of the frame that a server answers with."""
_SOCKET_BYTES = 107 if sys.platform == "linux" else 103
"""The longest path of a Unix socket."""
_SOCKET = "/ray-xxxxxxxx/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Ray's longest socket below the folder for temporary files."""
_THREADS, _THREADS_PER_CPU = 220, 30
"""Processes and threads of a Ray that runs a search; measured with Ray 2.60: 264 on 2 CPUs."""


_own: Path | None = None
"""The folder of the Ray that this process starts, and starts again: Ray reads its token once in a process."""


def starts_own() -> bool:
    """Whether `connect` starts a Ray on this machine, for want of a cluster to join."""
    return os.environ.get("RAY_ADDRESS") in (None, "", "local")


def _open() -> bool:
    return any(os.environ.get(name) != value for name, value in _CLOSED.items())


for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)
_TOO_LATE = "ray" in sys.modules and _open()
"""Whether Ray was imported before it could be closed to others."""
if starts_own() and not _TOO_LATE:
    os.environ.update(_CLOSED)


def connect() -> None:
    """Join the cluster that this process was started for, else start one on this machine.

    ClusterError where there is none to join, or none can be started.
    """
    import ray

    # It logs the traceback of every trial that fails; the record has them, and the terminal a line each.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        return
    if starts_own():
        _start()
    else:
        _join(os.environ["RAY_ADDRESS"])
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler prints its stack and aborts.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def watched(gone: Callable[[str], None]) -> Iterator[None]:
    """While the context lasts, look whether Ray's server (GCS) and this node's raylet live.

    gone: called, from another thread, once one of them does not, with what that is. Ray itself says nothing for a
    minute, and then ends the process.
    """
    import ray

    here = ray.get_runtime_context()
    (raylet,) = [
        f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["NodeID"] == here.get_node_id()
    ]
    ended = threading.Event()
    patience = 0.0 if _own and starts_own() else _PATIENCE_S
    parts = {f"Ray's server (GCS, {here.gcs_address})": here.gcs_address, f"this node's raylet ({raylet})": raylet}
    watch = threading.Thread(target=_watch, args=(parts, patience, gone, ended), name="cluster", daemon=True)
    watch.start()
    try:
        yield
    except Exception:
        # What fails because one is gone may fail before anybody has looked.
        for name in _silent(parts):
            gone(f"{name} is gone")
        raise
    finally:
        ended.set()
        watch.join()


def _silent(parts: Mapping[str, str]) -> list[str]:
    """The parts, HOST:PORT by what they are called, that do not answer now."""
    found = []
    for name, address in parts.items():
        try:
            _reach(address).close()
        except OSError:
            found.append(name)
    return found


def _watch(parts: Mapping[str, str], patience: float, gone: Callable[[str], None], ended: threading.Event) -> None:
    """Look at the parts until one has been silent for `patience` seconds, and at two looks."""
    since: dict[str, float] = {}
    while not ended.wait(_LOOK_S):
        now = time.monotonic()
        since = {name: since.get(name, now) for name in _silent(parts)}
        for name, begun in since.items():
            if now - begun > patience:
                if not ended.is_set():
                    gone(f"{name} is gone")
                return


def _start() -> None:
    """Start a Ray that nobody else reaches."""
    global _own
    import ray

    # The address that it will listen on; without a network that is the loopback one anyway.
    address = ipaddress.ip_address(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    if _TOO_LATE or _open() or not address.is_loopback:
        settings = " ".join(f"{name}={value}" for name, value in _CLOSED.items())
        raise ClusterError(
            "Ray was imported before grcf_ray, so a Ray started here would be open to other machines and users. "
            f"Import grcf_ray.cluster before ray, or set {settings} before the process starts; "
            "to use a cluster of your own, set RAY_ADDRESS=HOST:PORT"
        )
    _check_threads()
    if _own is None:
        _own = _private_folder()
        token = _own / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32), encoding="utf-8")
        atexit.register(_clear, _own, os.getpid())
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(_own / "token")
    try:
        ray.init(address="local", include_dashboard=False, _temp_dir=str(_own / "ray"), **_QUIET)
    # Ray raises a bare Exception where a process of its own does not start.
    except Exception as error:
        logs = _own / "ray" / "session_latest" / "logs"
        if logs.exists():
            atexit.unregister(_clear)
        raise ClusterError(
            f"Ray cannot start on this machine: {reason(error)}. "
            + (f"Its logs are in {logs}. " if logs.exists() else "")
            + "Check the limits on processes and open files (ulimit -u, ulimit -n), free memory and room in /dev/shm, "
            "or join a running cluster: RAY_ADDRESS=HOST:PORT"
        ) from error


def _check_threads() -> None:
    """ClusterError if this user's limit on processes is too low: Ray would wait for minutes, or abort the process."""
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    user = os.getuid()
    if limit == resource.RLIM_INFINITY or user == 0:
        return
    used = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            used += process.num_threads() if process.uids().real == user else 0
    needed = _THREADS + _THREADS_PER_CPU * (os.cpu_count() or 1)
    if limit - used < needed:
        raise ClusterError(
            f"Ray cannot start on this machine: it needs about {needed} processes and threads, and of the {limit} that "
            f"your user may have (ulimit -u) {used} are in use. Raise the limit: ulimit -u {2 * (used + needed)}"
        )


def _private_folder() -> Path:
    """A new folder, this user's alone, for the token, the sockets, the logs and what is spilled.

    Where temporary files go, unless that leaves no room for the names of Ray's sockets.
    """
    faults = []
    for parent in dict.fromkeys(
        [os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
    ):
        if len(os.fsencode(parent + _SOCKET)) > _SOCKET_BYTES:
            faults.append(f"{parent}: too long a path for the sockets of Ray")
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="ray-", dir=parent))
        except OSError as error:
            faults.append(f"{parent}: {error.strerror or error}")
    raise ClusterError(
        f"Ray cannot start on this machine: no folder for its sockets ({'; '.join(faults)}). "
        f"Set TMPDIR to a folder that you can write, of at most {_SOCKET_BYTES - len(_SOCKET)} characters"
    )


def _clear(folder: Path, pid: int) -> None:
    """Remove the folder of a Ray that has served; its processes are told to end first."""
    import ray

    if os.getpid() == pid:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _join(address: str) -> None:
    """Join a running cluster; at once, or not at all: Ray itself would try for minutes, or end the process."""
    import ray

    if "://" in address:
        raise ClusterError(
            f"RAY_ADDRESS={address}: a search does not run through this address. Give the address of the cluster's "
            "head, RAY_ADDRESS=HOST:6379, or submit the command: ray job submit -- python -m grcf_ray.search ..."
        )
    try:
        _knock(_resolved(address))
        ray.init(**_QUIET)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {reason(error)}. Start one (ray start --head), give the "
            "address of one that runs, or unset RAY_ADDRESS to use this machine alone"
        ) from error


def _resolved(address: str) -> str:
    """HOST:PORT of the cluster; for `auto`, what Ray has noted on this machine. ConnectionError where there is none."""
    from ray._private.services import canonicalize_bootstrap_address

    found = canonicalize_bootstrap_address(address)
    assert found is not None, "it is None where a Ray would be started"
    return found


def _knock(address: str) -> None:
    """OSError where nobody answers, or somebody who does not speak HTTP/2, as Ray's servers do."""
    with _reach(address) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        connection.sendall(_GREETING)
        with connection.makefile("rb") as answer:
            if answer.read(9)[3:4] != _SETTINGS_FRAME:
                raise ConnectionError(f"{address} is the port of another program")


def _reach(address: str) -> socket.socket:
    """A connection to HOST:PORT. OSError where nobody listens."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S)
