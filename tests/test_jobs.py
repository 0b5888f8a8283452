"""The search as a Ray job: `ray job submit -- python -m grcf_ray.search`, on a cluster of one machine."""

from __future__ import annotations

import json
import os
import secrets
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


def processes_of(folder: Path) -> list[int]:
    """The processes of the cluster whose session lies in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
        except OSError:
            continue
        if str(folder) in words:
            found.append(int(entry.name))
    return found


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node of its own with token authentication; the environment of its clients."""
    # Ray's sockets lie below this folder, and a socket's path has at most 107 characters.
    folder = Path("/tmp") / f"grcf-{secrets.token_hex(4)}"
    dashboard = free_port()
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ,
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "GRCF_RUNS": str(home / "runs"),
        "GRCF_CACHE": str(home / "cache"),
    }
    start = [
        *(str(RAY), "start", "--head", "--port=0", "--num-cpus=2", "--disable-usage-stats", f"--temp-dir={folder}"),
        *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"),
    ]
    head = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    subprocess.run(start, env=head, check=True, timeout=120, capture_output=True)
    try:
        yield environment
    finally:
        # `ray stop` would end every cluster of the machine.
        for process in processes_of(folder):
            os.kill(process, signal.SIGKILL)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def submit(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(RAY), "job", "submit", "--working-dir", ".", "--", "python", "-m", "grcf_ray.search", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=500, capture_output=True, text=True)


def test_a_search_runs_as_a_job(cluster: dict[str, str]) -> None:
    small = ["--set", "model.frozen_layers=all", "--set", "pairs.pairs_per_epoch=64"]
    words = ["--dataset", "demo", "--stage1-trials", "2", "--stage2-trials", "2", *small]
    done = submit(cluster, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Path(cluster["GRCF_RUNS"]) / "demo-all-MiniLM-L6-v2-seed42"
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert set(json.loads((run / "best" / "metrics.json").read_text())) >= {"valid", "test", "baselines"}
    # What the job prints is what its submitter follows.
    assert "Winner: trial stage2/" in done.stdout
    # The run lies where the cluster keeps runs, not in the copy of the working directory: a second job finds it.
    again = submit(cluster, *words)
    assert again.returncode == 0
    assert f"{run} is finished; this is its result" in again.stdout


def test_a_refused_job_fails_with_its_message(cluster: dict[str, str]) -> None:
    refused = submit(cluster, "--dataset", "demo", "--gpus-per-worker", "8")
    assert refused.returncode != 0
    assert "a trial asks for 1 CPU and 8 GPUs on one node" in refused.stdout
    assert not Path(cluster["GRCF_RUNS"]).exists()


def test_a_client_without_the_token_is_turned_away(cluster: dict[str, str]) -> None:
    stranger = submit({**cluster, "RAY_AUTH_TOKEN": secrets.token_hex(32)}, "--dataset", "demo")
    assert stranger.returncode != 0
    assert "Authentication" in stranger.stdout + stranger.stderr
