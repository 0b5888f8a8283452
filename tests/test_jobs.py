"""The search as a Ray job: `ray job submit -- python -m grcf_ray.search`, on a cluster of one machine."""

from __future__ import annotations

import contextlib
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
from processes import kill_marked
from waiting import JOB_S, PATIENCE_S, free_port, wait_for

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


@contextlib.contextmanager
def head(home: Path, cpus: int) -> Iterator[dict[str, str]]:
    """A head node of its own with token authentication; the environment of its clients."""
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
        *(str(RAY), "start", "--head", "--port=0", f"--num-cpus={cpus}", "--disable-usage-stats"),
        *(f"--temp-dir={folder}", f"--ray-client-server-port={free_port()}"),
        *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"),
    ]
    without = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    try:
        subprocess.run(start, env=without, check=True, timeout=120, capture_output=True)
        yield environment
    finally:
        stop(folder, token)


@pytest.fixture(scope="module")
def cluster(tiny_store: DatasetStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_store.folder, home / "data" / "tiny")
    with head(home, 2) as environment:
        yield environment


def search(*words: str, options: Sequence[str] = ()) -> list[str]:
    """What submits a search."""
    return [str(RAY), "job", "submit", *options, "--working-dir", ".", "--", "python", "-m", "grcf_ray.search", *words]


def submit(environment: dict[str, str], *words: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = search(*words, options=options)
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=JOB_S, capture_output=True, text=True)


def job(environment: dict[str, str], *words: str) -> str:
    """What `ray job` says."""
    done = subprocess.run(
        [str(RAY), "job", *words], env=environment, timeout=120, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def first_trial(run: Path) -> dict[str, Any]:
    """As it is on record; nothing before that."""
    path = run / "stage1" / "trials" / "0000.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def test_a_client_without_the_token_is_turned_away(cluster: dict[str, str]) -> None:
    stranger = submit({**cluster, "RAY_AUTH_TOKEN": secrets.token_hex(32)}, "--dataset", "demo")
    assert stranger.returncode != 0
    assert "Authentication" in stranger.stdout + stranger.stderr


def test_a_job_that_was_stopped_goes_on_when_it_is_submitted_again(
    cluster: dict[str, str], tiny_space: Path, tmp_path: Path
) -> None:
    """Submitted without waiting and followed, as from a laptop that may be shut; its data are the cluster's."""
    run = Path(cluster["GRCF_RUNS"]) / "long"
    words = ["--dataset", "tiny", "--space", str(tiny_space), "--name", "long", "--stage1-trials", "2"]
    # Epochs enough for the stop to come before the end.
    settings = ("pairs.pairs_per_epoch=3072", "stage1.epochs=8", "stage2.epochs=0", "search.ridge_baseline=false")
    words += [word for setting in settings for word in ("--set", setting)]
    sent = submit(cluster, *words, options=["--no-wait", "--submission-id", "first"])
    assert sent.returncode == 0, sent.stderr
    log = tmp_path / "log"
    with log.open("w") as file:
        follower = subprocess.Popen(
            [str(RAY), "job", "logs", "--follow", "first"], env=cluster, stdout=file, stderr=file
        )
    try:
        wait_for(lambda: first_trial(run).get("curve"), f"an epoch on record ({log.read_text()})")
        job(cluster, "stop", "first")
        follower.wait(PATIENCE_S)
    finally:
        follower.kill()
    assert "Terminated; every finished epoch is kept. To resume: python -m grcf_ray.search --dataset" in log.read_text()
    assert "stopped" in job(cluster, "status", "first")
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"
    before = first_trial(run)

    again = submit(cluster, *words)
    assert again.returncode == 0, again.stdout + again.stderr
    # What the job prints is what its submitter follows.
    assert "Winner: trial stage1/" in again.stdout
    assert json.loads((run / "best" / "metrics.json").read_text()).keys() >= {"valid", "test"}
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    after = first_trial(run)
    assert after["curve"][: len(before["curve"])] == before["curve"]
    assert after["attempt"] == before["attempt"] + (before["state"] == "running")
    assert after["failures"] == []


def test_two_clusters_of_one_machine_do_not_clash(
    cluster: dict[str, str], tiny_space: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each has its own ports, token and folder; a group of workers asks its own cluster alone."""
    words = ["--dataset", "tiny", "--space", str(tiny_space), "--stage1-trials", "2", "--set", "stage2.epochs=0"]
    words += ["--set", "search.ridge_baseline=false", "--name", "beside"]
    home = tmp_path_factory.mktemp("other")
    shutil.copytree(Path(cluster["GRCF_DATA"]), home / "data")
    with head(home, 1) as other:
        begun = [
            subprocess.Popen(
                search(*words, *more),
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for environment, more in ((cluster, ["--workers", "2"]), (other, []))
        ]
        said = [process.communicate(timeout=JOB_S)[0] for process in begun]
    assert [process.returncode for process in begun] == [0, 0], "\n\n".join(said)
    assert "1 node(s), 2 CPUs, 0 GPUs; 1 trials at a time, 2 workers of 1 CPU each" in said[0]
    assert "1 node(s), 1 CPUs, 0 GPUs; 1 trials at a time, 1 CPU each" in said[1]
    for environment in (cluster, other):
        run = Path(environment["GRCF_RUNS"]) / "beside" / "run.json"
        assert json.loads(run.read_text())["state"] == "finished"
