"""The search as a Ray job: `ray job submit -- python -m grcf_ray.search`, on a cluster of one machine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from commands import command
from processes import kill_marked
from waiting import JOB_S, PATIENCE_S, free_port, wait_for

from grcf_ray.cli.search import app

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")


pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2 * JOB_S)]


def stop(folder: Path, token: str) -> None:
    """End the cluster; `ray stop` would end every one of the machine. Its folder is gone once nobody writes to it."""
    while folder.exists():
        kill_marked(str(folder), token)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(tiny_store: DatasetStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node with token authentication, and the data that its jobs read; the environment of its clients."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_store.folder, home / "data" / "tiny")
    # Ray's sockets lie below this folder, and a socket's path has at most 107 characters.
    folder = Path("/tmp") / f"grcf-{secrets.token_hex(4)}"
    dashboard, token = free_port(), secrets.token_hex(32)
    environment = {
        **os.environ,
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "GRCF_DATA": str(home / "data"),
        "GRCF_RUNS": str(home / "runs"),
        "GRCF_CACHE": str(home / "cache"),
    }
    start = [
        *(str(RAY), "start", "--head", "--port=0", "--num-cpus=2", "--disable-usage-stats"),
        *(f"--temp-dir={folder}", f"--ray-client-server-port={free_port()}"),
        *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"),
    ]
    without = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    try:
        subprocess.run(start, env=without, check=True, timeout=120, capture_output=True)
        yield environment
    finally:
        stop(folder, token)


def begin(environment: dict[str, str], *words: str, options: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Submit a search; its standard output and error go to one pipe."""
    argv = [RAY, "job", "submit", *options, "--working-dir", ".", "--", "python", "-m", "grcf_ray.search", *words]
    return subprocess.Popen(
        argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def submit(environment: dict[str, str], *words: str, options: Sequence[str] = ()) -> tuple[int, str]:
    """Submit a search and wait for the command's end; return its exit code and output."""
    process = begin(environment, *words, options=options)
    said, _ = process.communicate(timeout=JOB_S)
    return process.returncode, said


def first_trial(run: Path) -> dict[str, Any]:
    """As it is on record; nothing before that."""
    path = run / "stage1" / "trials" / "0000.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def test_a_client_without_the_token_is_turned_away(cluster: dict[str, str]) -> None:
    code, said = submit({**cluster, "RAY_AUTH_TOKEN": secrets.token_hex(32)}, "--dataset", "demo")
    assert code != 0
    assert "Authentication" in said


def test_a_stopped_job_resumes_while_another_cluster_of_the_machine_trains(
    cluster: dict[str, str],
    ray_session: None,
    tiny_space: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The job is submitted without waiting and followed, as from a laptop that may be shut; its data are the cluster's.

    The other cluster is this process's. It trains on a group of workers, which asks its own cluster alone.
    """
    run = Path(cluster["GRCF_RUNS"]) / "long"
    words = ["--dataset", "tiny", "--space", str(tiny_space), "--stage1-trials", "1"]
    for setting in ("stage2.epochs=0", "search.ridge_baseline=false"):
        words += ["--set", setting]
    # Epochs enough for the stop to come before the end.
    long = [*words, "--name", "long", "--concurrent", "1"]
    long += ["--set", "pairs.pairs_per_epoch=3072", "--set", "stage1.epochs=8"]
    code, said = submit(cluster, *long, options=["--no-wait", "--submission-id", "first"])
    assert code == 0, said
    log = tmp_path / "log"
    with log.open("w") as file:
        follower = subprocess.Popen([RAY, "job", "logs", "--follow", "first"], env=cluster, stdout=file, stderr=file)
    try:
        wait_for(lambda: first_trial(run).get("curve"), f"an epoch on record ({log.read_text()})")
        stopping = [RAY, "job", "stop", "first"]
        stopped = subprocess.run(stopping, env=cluster, timeout=PATIENCE_S, capture_output=True, text=True, check=True)
        follower.wait(PATIENCE_S)
    finally:
        follower.kill()
    assert "Job 'first' was stopped" in stopped.stdout + stopped.stderr
    assert "Terminated; every finished epoch is kept. To resume: python -m grcf_ray.search --dataset" in log.read_text()
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"
    before = first_trial(run)

    again = begin(cluster, *long)
    monkeypatch.setenv("GRCF_DATA", cluster["GRCF_DATA"])
    monkeypatch.setenv("GRCF_RUNS", str(tmp_path / "other"))
    beside = [*words, "--name", "beside", "--workers", "2", "--set", "stage1.epochs=1"]
    code, _, err = command(app, capsys)(*beside)
    said, _ = again.communicate(timeout=JOB_S)
    assert code == 0, err
    assert "1 trials at a time, 2 workers of 1 CPU each" in err
    assert json.loads((tmp_path / "other" / "beside" / "run.json").read_text())["state"] == "finished"

    assert again.returncode == 0, said
    assert "1 node(s), 2 CPUs, 0 GPUs; 1 trials at a time, 1 CPU each" in said
    # The job's output reaches whoever submits it.
    assert "Winner: trial stage1/" in said
    assert json.loads((run / "best" / "metrics.json").read_text()).keys() >= {"valid", "test"}
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    after = first_trial(run)
    assert after["curve"][: len(before["curve"])] == before["curve"]
    assert after["attempt"] == before["attempt"] + (before["state"] == "running")
    assert after["failures"] == []
