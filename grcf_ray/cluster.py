"""Start or join a Ray cluster. Every module that imports Ray imports this one first.

Ray reads much of its environment at import, so this module sets it before. A cluster that `connect` starts serves one
process tree: it listens on the loopback interface, requires a random token, and keeps its files in a private folder.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import fcntl
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
from typing import Any, NoReturn

import psutil

from grcf_ray.console import progress
from grcf_ray.errors import ClusterError, reason

PLACEMENT_S = 600.0
"""Seconds that the workers of a trial wait for a place: an autoscaling cluster needs minutes to start a node."""
TRAIN_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{PLACEMENT_S:g}",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Workers hang in the process group when a peer has died.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
"""Settings of Ray Train's driver."""
CLOSED_API = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
"""A closed port, for a cluster without a dashboard: it gives the usual port as its own. Ray Train's cleanup would ask
another cluster on that port, which reports the workers as unknown."""
_SETTINGS = {
    # Relative paths of a trial are relative to the user's folder. Our own output replaces Tune's.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The run record replaces Tune's snapshots, and the search handles signals itself.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    **TRAIN_SETTINGS,
}
_CLOSED = {
    # Keeps Ray on the loopback interface. Ray names it after the systems where that is the default.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}
"""Settings that keep other users and machines out of a Ray that we start."""
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
_LOOK_S = 1.0
"""Seconds between two checks of Ray's processes."""
_PATIENCE_S = 45.0
"""Seconds of silence after which a cluster's server counts as gone. It may restart elsewhere; Ray waits 60 s for it."""
_ANSWER_S = 10.0
"""Timeout for an answer of a cluster, in seconds."""
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""Start of an HTTP/2 connection: the preface and an empty settings frame."""
_SETTINGS_FRAME = b"\x04"
"""Type of the frame with which a server answers."""
_SOCKET_BYTES = 107 if sys.platform == "linux" else 103
"""Longest path of a Unix socket, in bytes."""
_SOCKET = "/ray-xxxxxxxx/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Longest path of a Ray socket below the folder for temporary files."""
_THREADS, _THREADS_PER_CPU = 220, 30
"""Number of processes and threads of a Ray that runs a search; measured with Ray 2.60: 264 on 2 CPUs."""


_LOCK = "grcf_ray.lock"
"""File in the folder of a Ray that we start; the process holds a lock on it for as long as it lives."""
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""File with the namespace of a Kubernetes pod, which has the token of its service account beside it."""

_own: Path | None = None
"""Folder of the Ray that this process starts. A restart reuses it: Ray reads its token once per process."""


def starts_own() -> bool:
    """Return whether `connect` starts a Ray on this machine, because no cluster address is set."""
    return os.environ.get("RAY_ADDRESS") in (None, "", "local")


def _open() -> bool:
    return any(os.environ.get(name) != value for name, value in _CLOSED.items())


for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)
_TOO_LATE = "ray" in sys.modules and _open()
"""Whether Ray was imported before its access could be restricted."""
if starts_own() and not _TOO_LATE:
    os.environ.update(_CLOSED)


def connect() -> None:
    """Join the cluster that this process was started for, or start one on this machine.

    ClusterError if the cluster does not answer, or if none can be started.
    """
    import ray

    # Ray logs the traceback of every failed trial. The record has them, and the terminal shows one line each.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        return
    if starts_own():
        _start()
    else:
        _join(os.environ["RAY_ADDRESS"])
    if threading.current_thread() is threading.main_thread():
        # Ray's handler prints its stack and aborts.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def watched(gone: Callable[[str], None]) -> Iterator[None]:
    """Check regularly, until the context ends, that Ray's server (GCS) and this node's raylet are alive.

    gone: called from another thread with the name of the part that is gone. Ray itself is silent for a minute, and then
    ends the process.
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
        # An error caused by a lost part can come before the next check.
        for name in _silent(parts):
            gone(f"{name} is gone")
        raise
    finally:
        ended.set()
        watch.join()


def leave(message: str) -> NoReturn:
    """Print an error and exit at once: without its cluster, a call of Ray blocks for a minute and reports no error."""
    try:
        progress(f"error: {message}")
    finally:
        os._exit(ClusterError.exit_code)


def _silent(parts: Mapping[str, str]) -> list[str]:
    """Return the names of the parts that do not answer now.

    parts: HOST:PORT by name.
    """
    silent = []
    for name, address in parts.items():
        try:
            _reach(address).close()
        except OSError:
            silent.append(name)
    return silent


def _watch(parts: Mapping[str, str], patience: float, gone: Callable[[str], None], ended: threading.Event) -> None:
    """Check the parts until one has been silent for `patience` seconds, and in two checks."""
    silent_since: dict[str, float] = {}
    while not ended.wait(_LOOK_S):
        now = time.monotonic()
        silent_since = {name: silent_since.get(name, now) for name in _silent(parts)}
        for name, since in silent_since.items():
            if now - since > patience:
                if not ended.is_set():
                    gone(f"{name} is gone")
                return


@dataclasses.dataclass(frozen=True)
class NodeType:
    """A kind of node that the cluster's autoscaler can add."""

    resources: Mapping[str, float]
    """Resources of a node, under Ray's names."""
    most: int
    """Largest number of such nodes."""


def node_types() -> list[NodeType]:
    """Return the kinds of nodes that the autoscaler of the joined cluster can add; none without an autoscaler.

    Ray has no API for them, so this reads what its autoscaler reads: the RayCluster resource on Kubernetes, else the
    file of `ray up`, which is on the head. A driver on another node knows of no autoscaler.
    """
    config = None if starts_own() else _kuberay_config() or _launcher_config()
    if config is None:
        return []
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    limits = {name: min(int(kind["max_workers"]), int(config["max_workers"])) for name, kind in workers.items()}
    return [NodeType(dict(workers[name]["resources"]), most) for name, most in limits.items() if most]


def _launcher_config() -> Any:
    """Return the configuration of the cluster that `ray up` started, if this is its head."""
    import ray
    import yaml

    server, option = f"--gcs-address={ray.get_runtime_context().gcs_address}", "--autoscaling-config="
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        files = [word.removeprefix(option) for word in words if word.startswith(option)]
        if files and server in words:
            return yaml.safe_load(Path(files[0]).expanduser().read_text(encoding="utf-8"))
    return None


def _kuberay_config() -> Any:
    """Return KubeRay's configuration of this pod's cluster; None outside of Kubernetes, or without its autoscaler."""
    # KubeRay sets the name in every pod.
    name = os.environ.get("RAY_CLUSTER_NAME")
    if name is None or not _NAMESPACE.exists():
        return None
    import requests
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        resource = KubernetesHttpApiClient(_NAMESPACE.read_text(encoding="utf-8")).get(f"rayclusters/{name}")
    except requests.HTTPError:
        # The autoscaler would run in the head's pod, under the same service account, which may not read the resource.
        return None
    return _derive_autoscaling_config_from_ray_cr(resource) if resource["spec"].get("enableInTreeAutoscaling") else None


def _start() -> None:
    global _own
    import ray

    # The address on which Ray will listen. Without a network it is the loopback address anyway.
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
    environment = dict(os.environ)
    # Ray's processes inherit it; this process may ask another cluster.
    os.environ.update(CLOSED_API)
    try:
        ray.init(address="local", include_dashboard=False, _temp_dir=str(_own / "ray"), **_QUIET)
    # Ray raises a bare Exception if one of its processes does not start.
    except Exception as error:
        logs = _own / "ray" / "session_latest" / "logs"
        if logs.exists():
            # The error names them, so the next start must not remove them either.
            atexit.unregister(_clear)
            (_own / _LOCK).unlink(missing_ok=True)
        raise ClusterError(
            f"Ray cannot start on this machine: {reason(error)}. "
            + (f"Its logs are in {logs}. " if logs.exists() else "")
            + "Check the limits on processes and open files (ulimit -u, ulimit -n), and the free memory and /dev/shm, "
            "or join a running cluster: RAY_ADDRESS=HOST:PORT"
        ) from error
    finally:
        for name in CLOSED_API.keys() - environment.keys():
            del os.environ[name]
        os.environ.update({name: environment[name] for name in CLOSED_API.keys() & environment.keys()})


def _check_threads() -> None:
    """Raise ClusterError if this user's limit on processes is too low: Ray would wait for minutes, or abort."""
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
            f"Ray cannot start on this machine: it needs about {needed} processes and threads, but {used} of the "
            f"{limit} allowed for your user (ulimit -u) are in use. Raise the limit: ulimit -u {2 * (used + needed)}"
        )


def _private_folder() -> Path:
    """Create a folder for this user only: for the token, the sockets, the logs and spilled objects.

    It lies in the folder for temporary files, unless that path is too long for Ray's sockets.
    """
    faults = []
    for parent in dict.fromkeys(
        [os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
    ):
        if len(os.fsencode(parent + _SOCKET)) > _SOCKET_BYTES:
            faults.append(f"{parent}: path too long for Ray's sockets")
            continue
        try:
            _remove_abandoned(Path(parent))
            folder = Path(tempfile.mkdtemp(prefix="ray-", dir=parent))
            _lock(folder)
            return folder
        except OSError as error:
            faults.append(f"{parent}: {error.strerror or error}")
    raise ClusterError(
        f"Ray cannot start on this machine: no folder for its sockets ({'; '.join(faults)}). "
        f"Set TMPDIR to a writable folder whose path has at most {_SOCKET_BYTES - len(_SOCKET)} characters"
    )


def _lock(folder: Path) -> None:
    """Hold a lock in the folder until this process ends. It takes its name when it is locked already."""
    new = folder / f"{_LOCK}.new"
    # On a file system without locks, the name is missing, and nobody removes the folder.
    with contextlib.suppress(OSError):
        fcntl.flock(os.open(new, os.O_CREAT | os.O_RDWR, 0o600), fcntl.LOCK_EX)
        new.rename(folder / _LOCK)


def _remove_abandoned(parent: Path) -> None:
    """Remove the user's folders whose processes were killed, so that nobody holds their locks."""
    for lock in parent.glob(f"ray-*/{_LOCK}"):
        # Another process may remove the folder at the same time, or hold the lock.
        with contextlib.suppress(OSError):
            if lock.parent.lstat().st_uid != os.getuid():
                continue
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(descriptor)


def _clear(folder: Path, pid: int) -> None:
    import ray

    if os.getpid() == pid:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _join(address: str) -> None:
    """Join a running cluster, or fail at once: Ray itself would retry for minutes, or end the process."""
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    if "://" in address:
        raise ClusterError(
            f"RAY_ADDRESS={address}: a search cannot run through a URI. Use the address of the cluster's "
            "head, RAY_ADDRESS=HOST:6379, or submit the command: ray job submit -- python -m grcf_ray.search ..."
        )
    try:
        # For `auto` Ray reads its note on this machine, and raises ConnectionError if there is none.
        host_port = canonicalize_bootstrap_address(address)
        assert host_port is not None, "None means that Ray would start a cluster"
        _knock(host_port)
        ray.init(**_QUIET)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {reason(error)}. Start one (ray start --head), set the "
            "address of a running one, or unset RAY_ADDRESS to use this machine only"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError if no server answers, or if it does not speak HTTP/2, as Ray's servers do."""
    with _reach(address) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        connection.sendall(_GREETING)
        with connection.makefile("rb") as answer:
            if answer.read(9)[3:4] != _SETTINGS_FRAME:
                raise ConnectionError(f"{address} is used by another program")


def _reach(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S)
