"""The search as a Ray job: `ray job submit -- python -m grcf_ray.search`, on a cluster of one machine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")

pytestmark = pytest.mark.cluster


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def processes_of(folder: Path, token: str) -> list[int]:
    """The processes of the cluster whose session lies in a folder; those that Ray renames have its token left."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = ((entry / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue
        if entry.name != str(os.getpid()) and (os.fsencode(folder) in words or token.encode() in environment):
            found.append(int(entry.name))
    return found


def stop(folder: Path, token: str) -> None:
    """End the cluster; `ray stop` would end every one of the machine. Its folder is gone once nobody writes to it."""
    while folder.exists():
        for process in processes_of(folder, token):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node of its own with token authentication; the environment of its clients."""
    # Ray's sockets lie below this folder, and a socket's path has at most 107 characters.
    folder = Path("/tmp") / f"grcf-{secrets.token_hex(4)}"
    dashboard, token = free_port(), secrets.token_hex(32)
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ,
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "GRCF_RUNS": str(home / "runs"),
        "GRCF_CACHE": str(home / "cache"),
    }
    start = [
        *(str(RAY), "start", "--head", "--port=0", "--num-cpus=2", "--disable-usage-stats", f"--temp-dir={folder}"),
        *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"),
    ]
    head = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    try:
        subprocess.run(start, env=head, check=True, timeout=120, capture_output=True)
        yield environment
    finally:
        stop(folder, token)


def submit(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(RAY), "job", "submit", "--working-dir", ".", "--", "python", "-m", "grcf_ray.search", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=500, capture_output=True, text=True)


def test_a_search_runs_as_a_job(cluster: dict[str, str], tiny_backbone: Path) -> None:
    """The demo data, with the tests' own encoder to be quick."""
    small = ["model.frozen_layers=all", "pairs.pairs_per_epoch=64", "search.ridge_baseline=false"]
    words = ["--dataset", "demo", "--backbone", str(tiny_backbone), "--stage1-trials", "2", "--stage2-trials", "2"]
    words += [word for setting in small for word in ("--set", setting)]
    done = submit(cluster, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Path(cluster["GRCF_RUNS"]) / "demo-tiny-bert-seed42"
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert set(json.loads((run / "best" / "metrics.json").read_text())) >= {"valid", "test"}
    # What the job prints is what its submitter follows.
    assert "Winner: trial stage2/" in done.stdout
    # The run lies where the cluster keeps runs, not in the copy of the working directory: a second job finds it.
    again = submit(cluster, *words)
    assert again.returncode == 0
    assert f"{run} is finished; this is its result" in again.stdout


def test_a_refused_job_fails_with_its_message(cluster: dict[str, str]) -> None:
    refused = submit(cluster, "--dataset", "demo", "--gpus-per-worker", "8", "--name", "refused")
    assert refused.returncode != 0
    assert "a trial asks for 1 CPU and 8 GPUs on one node" in refused.stdout
    assert not (Path(cluster["GRCF_RUNS"]) / "refused").exists()


def test_a_client_without_the_token_is_turned_away(cluster: dict[str, str]) -> None:
    stranger = submit({**cluster, "RAY_AUTH_TOKEN": secrets.token_hex(32)}, "--dataset", "demo")
    assert stranger.returncode != 0
    assert "Authentication" in stranger.stdout + stranger.stderr
