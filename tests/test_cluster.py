"""A Ray of our own is this process tree's alone; one that cannot be started or joined is told, with the remedy."""

from __future__ import annotations

import os
import resource
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from listeners import listening, reachable
from processes import marked
from waiting import wait_for

from grcf_ray import cluster
from grcf_ray.errors import ClusterError

CONNECT = """
from grcf_ray.cluster import connect
from grcf_ray.errors import ClusterError
try:
    connect()
except ClusterError as error:
    print(error.exit_code, error)
else:
    import ray
    print(ray.get(ray.remote(lambda: "answered").remote()))
"""


class Stranger:
    """A program that listens where a cluster is looked for: it says this, and nothing else."""

    def __init__(self, words: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, args=(words,), daemon=True).start()

    def _serve(self, words: bytes) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.sendall(words)
            connection.recv(1 << 16)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, without this process's Ray."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=outside | environment, capture_output=True, text=True, timeout=300
    )


def start(code: str = CONNECT, **environment: str) -> str:
    """What a process of its own prints."""
    ran = run(code, **environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.integration
def test_it_listens_on_the_loopback_interface_alone(ray_session: None) -> None:
    ray.get(ray.remote(lambda: None).remote())
    ports = listening()
    for part in ("gcs_server", "raylet", "Agent", "ray::"):
        assert any(part in title for title, _ in ports), part
    assert reachable(ports) == []


@pytest.mark.integration
def test_its_token_and_its_files_are_this_users_alone(ray_session: None) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    address = ray.get_runtime_context().gcs_address
    there = cluster._CLOSED | {"RAY_ADDRESS": address}
    assert start(**there, RAY_AUTH_TOKEN_PATH=str(token)) == "answered\n"
    assert start(**there, RAY_AUTH_TOKEN="0" * 64).startswith(f"5 no Ray cluster answers at RAY_ADDRESS={address}: ")


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of this process so far, and none that may be started or joined."""

    def unwanted(**_: Any) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", unwanted)
    monkeypatch.setattr(cluster, "_own", None)
    # Those that a start sets are as before at the end.
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_USE_TLS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def refusal() -> str:
    with pytest.raises(ClusterError) as caught:
        cluster.connect()
    assert caught.value.exit_code == 5
    return str(caught.value)


@pytest.mark.integration
def test_ray_starts_again_in_one_process_and_ends_with_it_at_sigterm() -> None:
    """At once, as before Ray was started, whose own handler prints its stack and aborts."""
    again = "import grcf_ray.cluster, ray\ngrcf_ray.cluster.connect()\nray.shutdown()\n" + CONNECT.strip()
    mark = secrets.token_hex(16)
    ended = run(
        again + "\nimport os, signal\nos.kill(os.getpid(), signal.SIGTERM)", GRCF_TEST_MARK=mark, PYTHONUNBUFFERED="1"
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "answered\n"), ended.stderr
    assert "SIGTERM received" not in ended.stderr
    # Ray's agents notice the end only after a minute.
    wait_for(lambda: all("Agent" in title for title in marked(mark).values()), "the end of Ray's processes")


@pytest.mark.integration
def test_a_ray_that_was_imported_before_is_not_started() -> None:
    """It would listen on all interfaces, unless it was told before."""
    assert start("import ray\n" + CONNECT).startswith("5 Ray was imported before grcf_ray")
    closed = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
    imported = "import ray, grcf_ray.cluster as cluster\nprint(cluster._TOO_LATE)"
    assert start(imported, **closed) == "False\n"
    assert start(imported) == "True\n"


@pytest.mark.parametrize("open_again", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}])
def test_one_that_was_opened_since_is_not_started(
    no_ray: None, monkeypatch: pytest.MonkeyPatch, open_again: dict[str, str]
) -> None:
    for name, value in open_again.items():
        monkeypatch.setenv(name, value)
    assert "open to other machines" in refusal()


def test_a_cluster_to_join_changes_nothing() -> None:
    said = "import os, grcf_ray.cluster\nprint([os.environ.get(name) for name in grcf_ray.cluster._CLOSED])"
    assert start(said, RAY_ADDRESS="10.0.0.4:6379") == "[None, None]\n"
    assert start(said) == "['0', 'token']\n"
    assert start(said, RAY_ADDRESS="local", RAY_AUTH_MODE="disabled") == "['0', 'token']\n"


def test_a_long_folder_for_temporary_files_is_passed_over(
    no_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The paths of sockets end at 107 bytes."""
    long = tmp_path / "long" / ("x" * 100)
    long.mkdir(parents=True)
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    folder = cluster._private_folder()
    shutil.rmtree(folder)
    assert folder.parent == Path("/tmp")
    monkeypatch.setattr(cluster, "_SOCKET_BYTES", 1)
    assert f"{long}: path too long" in refusal()


def test_folders_of_killed_processes_are_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of live processes, of other programs and of earlier releases stay."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(cluster, "_SOCKET_BYTES", 1000)
    names = ("ray-earlier/token", "ray-another/x.lock", f"some/{cluster._LOCK}")
    others = [tmp_path / name for name in names]
    for path in others:
        path.parent.mkdir()
        path.touch()
    live = cluster._private_folder()
    (live / "token").touch()
    code = (
        "import os, signal\nfrom grcf_ray import cluster\ncluster._SOCKET_BYTES = 1000\n"
        "(cluster._private_folder() / 'token').touch()\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "RAY_TMPDIR": str(tmp_path)})
    assert killed.returncode == -signal.SIGKILL
    before = set(tmp_path.glob("ray-*/token"))
    assert len(before) == 3
    cluster._remove_abandoned(tmp_path)
    assert set(tmp_path.glob("ray-*/token")) == {live / "token", others[0]}
    assert all(path.exists() for path in others)


def test_a_ray_that_does_not_start_is_a_fault_of_the_machine(no_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a bare Exception where a process of its own does not start, as at the limit on processes."""

    def fail(**_: Any) -> None:
        raise Exception("The current node timed out during startup.\nMore")

    monkeypatch.setattr(ray, "init", fail)
    said = refusal()
    assert "The current node timed out during startup" in said
    assert "ulimit -u" in said


def test_a_limit_on_processes_is_told_before_ray_hangs(no_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root has no such limit, so that the user is another one here."""
    user = 4242
    monkeypatch.setattr(os, "getuid", lambda: user)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    process = psutil.Process()
    monkeypatch.setattr(psutil.Process, "uids", lambda process: SimpleNamespace(real=user))
    monkeypatch.setattr(psutil, "process_iter", lambda: [process])
    used = process.num_threads()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + 280, resource.RLIM_INFINITY))
    cluster._check_threads()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + 279, resource.RLIM_INFINITY))
    said = refusal()
    assert f"ulimit -u {2 * (used + 280)}" in said


@pytest.mark.parametrize("words", [b"HTTP/1.0 400 Bad Request\r\n\r\n", b""])
def test_another_programs_port_is_no_cluster(no_ray: None, monkeypatch: pytest.MonkeyPatch, words: bytes) -> None:
    stranger = Stranger(words)
    monkeypatch.setenv("RAY_ADDRESS", stranger.address)
    said = refusal()
    assert said.startswith(f"no Ray cluster answers at RAY_ADDRESS={stranger.address}: ")
    assert "another program" in said


@pytest.mark.parametrize("address", ["127.0.0.1:1", "head", "ray://127.0.0.1:1", "http://127.0.0.1:1"])
def test_an_address_where_no_cluster_answers_is_named(
    no_ray: None, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"RAY_ADDRESS={address}: " in refusal()


def test_a_cluster_that_is_gone_is_not_waited_for(
    no_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray keeps the address of the last one, and tries it for minutes."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {})
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert refusal().startswith("no Ray cluster answers at RAY_ADDRESS=auto: ")


class TestWatch:
    """Two parts that are looked at: both listen, until one is closed."""

    @pytest.fixture
    def parts(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, socket.socket]]:
        monkeypatch.setattr(cluster, "_LOOK_S", 0.01)
        with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
            yield {"the server": first, "the raylet": second}

    def watch(self, parts: dict[str, socket.socket], patience: float, gone: list[str], ended: threading.Event) -> Any:
        names = {name: f"127.0.0.1:{part.getsockname()[1]}" for name, part in parts.items()}
        thread = threading.Thread(target=cluster._watch, args=(names, patience, gone.append, ended), daemon=True)
        thread.start()
        return thread

    @pytest.mark.parametrize("victim", ["the server", "the raylet"])
    def test_what_is_gone_is_told_once(self, parts: dict[str, socket.socket], victim: str) -> None:
        gone: list[str] = []
        thread = self.watch(parts, 0.0, gone, threading.Event())
        parts[victim].accept()[0].close()
        assert gone == []
        parts[victim].close()
        thread.join(60)
        assert gone == [f"{victim} is gone"]

    def test_a_silence_within_the_patience_is_none(self, parts: dict[str, socket.socket]) -> None:
        gone: list[str] = []
        ended = threading.Event()
        silent = parts.pop("the server")
        names = {"the server": silent, **parts}
        address = silent.getsockname()
        thread = self.watch(names, 3600.0, gone, ended)
        silent.accept()[0].close()
        silent.close()
        # Looks go on meanwhile, and find the other part.
        for _ in range(3):
            parts["the raylet"].accept()[0].close()
        with socket.create_server(address) as again:
            again.accept()[0].close()
            ended.set()
            thread.join(60)
        assert gone == [] and not thread.is_alive()
