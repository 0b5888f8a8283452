"""Two machines and a client, joined by a network: the search is submitted from the third, and one of the two is lost.

The hosts are made of namespaces (`hosts`): what one of them does not share with the other, they do not share here.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hosts import ROOT, Host, Network, lacking
from repetition import essence
from waiting import JOB_S, wait_for

from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.storage import storage_path
from tests.conftest import TINY_SPACE

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2 * JOB_S)]

TRIALS, EPOCHS = {1: 3, 2: 2}, 2
"""Of each stage, and of each trial."""
FAST = {"initial_delay_ms": 2000, "period_ms": 1000, "timeout_ms": 3000, "failure_threshold": 3}
"""When the head counts a silent node as lost: Ray waits for half a minute by itself."""


class Cluster:
    """alpha, the head, and beta, each with one CPU; the job's data and runs in what they share."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared
        self.network = Network(shared)
        bin_folders = {str(Path(sys.executable).parent), *os.environ["PATH"].split(":"), "/usr/sbin", "/sbin"}
        self.environment = {
            "PATH": ":".join([str(Path(sys.executable).parent), *sorted(bin_folders)]),
            "PYTHONPATH": str(ROOT),
            "HOME": "/tmp",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "GRCF_DATA": str(shared / "data"),
            "GRCF_RUNS": str(shared / "runs"),
            **{f"RAY_health_check_{name}": str(value) for name, value in FAST.items()},
        }
        self.alpha = self.network.add("alpha", 2, "net0")
        head = ["--head", "--port=6379", "--dashboard-host=0.0.0.0"]
        self._start(self.alpha, head)
        self.beta = self.join()

    def join(self) -> Host:
        """Beta, for the first time or again."""
        self.beta = self.network.add("beta", 3, "lan5")
        self._start(self.beta, [f"--address={self.alpha.address}:6379"])
        return self.beta

    def _start(self, host: Host, words: list[str]) -> None:
        words = [*words, "--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
        done = host.run(["ray", "start", *words], self.environment)
        assert done.returncode == 0, done.stdout + done.stderr

    def submit(self, *words: str, settings: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """The job, followed from the client; what it says goes to a pipe."""
        environment = self.environment | {"RAY_ADDRESS": f"http://{self.alpha.address}:8265"}
        extra = ["--runtime-env-json", json.dumps({"env_vars": settings})] if settings else []
        command = ["ray", "job", "submit", *extra, "--working-dir", ".", "--", "python", "-m", "grcf_ray.search"]
        return subprocess.Popen(
            self.network.client.command([*command, *words], environment, ROOT),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def cluster(
    tiny_backbone: Path, tiny_store: DatasetStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    if why := lacking():
        pytest.skip(why)
    shared = tmp_path_factory.mktemp("shared")
    shutil.copytree(tiny_backbone, shared / "tiny-bert")
    shutil.copytree(tiny_store.folder, shared / "data" / "tiny")
    (shared / "tiny.yaml").write_text(TINY_SPACE.format(backbone=shared / "tiny-bert"), encoding="utf-8")
    network = None
    try:
        cluster = Cluster(shared)
        network = cluster.network
        yield cluster
    finally:
        if network is not None:
            network.close()


def words(cluster: Cluster, name: str, *more: str, epochs: Sequence[int] = (EPOCHS, EPOCHS)) -> list[str]:
    """A search of few trials, whose epochs take long enough for something to happen in one.

    epochs: of each stage.
    """
    small = {"pairs.pairs_per_epoch": 3072, "search.pruning": "false"}
    small |= {f"stage{stage}.epochs": count for stage, count in enumerate(epochs, 1)}
    argv = ["--dataset", "tiny", "--space", str(cluster.shared / "tiny.yaml"), "--name", name]
    argv += [word for stage, count in TRIALS.items() for word in (f"--stage{stage}-trials", str(count))]
    return [*argv, *(word for path, value in small.items() for word in ("--set", f"{path}={value}")), *more]


def trials(run: Path) -> list[TrialRecord]:
    """The recorded trials of both stages."""
    record = RunRecord(storage_path(run))
    return [trial for stage in (1, 2) for trial in record.trials(stage)]


def running(run: Path, epochs: int) -> list[TrialRecord]:
    """Those at work that have so many epochs behind them."""
    return [trial for trial in trials(run) if not trial.finished and trial.epoch >= epochs]


def at_work(host: Host, title: str) -> bool:
    return any(title in line for line in host.titles())


def whole(run: Path, stages: Sequence[int] = (1, 2)) -> list[TrialRecord]:
    """The trials of a finished run: each ended once, and none failed."""
    assert RunRecord(storage_path(run)).info().state == "finished"
    seen = trials(run)
    assert [(t.stage, t.number) for t in seen] == [(stage, n) for stage in stages for n in range(TRIALS[stage])]
    for trial in seen:
        assert (trial.state, trial.epoch) == ("complete", EPOCHS)
        # An attempt more for each process that was lost, and no more.
        assert trial.attempt == 1 + len(trial.failures)
        assert {failure["cause"] for failure in trial.failures} <= {"process died"}
    return seen


def test_what_is_wrong_with_any_node_is_said_before_anything_is_trained(cluster: Cluster) -> None:
    """Runs that would lie on each host's own disk, and workers that would meet on the loopback interface."""
    settings = {"GRCF_RUNS": "/tmp/runs", "GLOO_SOCKET_IFNAME": "lo"}
    job = cluster.submit(*words(cluster, "refused", "--workers", "2"), settings=settings)
    said, _ = job.communicate(timeout=JOB_S)
    assert job.returncode != 0
    assert "Job entrypoint command failed with exit code 5" in said
    loopback = "GLOO_SOCKET_IFNAME=lo names the loopback interface"
    assert "error: not every node of the cluster can run trials:" in said
    assert f"alpha ({cluster.alpha.address}): {loopback}" in said
    assert f"beta ({cluster.beta.address}): {loopback}" in said
    assert f"beta ({cluster.beta.address}): does not see files written to /tmp/runs" in said
    assert f"alpha ({cluster.alpha.address}): does not see" not in said
    assert "started" not in said


def test_a_search_on_both_hosts_outlives_one(cluster: Cluster) -> None:
    run = cluster.shared / "runs" / "single"
    job = cluster.submit(*words(cluster, "single"))
    hosts = (cluster.alpha, cluster.beta)

    def both() -> bool:
        assert job.poll() is None, job.communicate()[0]
        return len(running(run, 0)) == 2 and all(at_work(host, "Trainable.train") for host in hosts)

    wait_for(both, "trials on both hosts")
    cluster.network.cut("beta")
    said, _ = job.communicate(timeout=JOB_S)
    assert job.returncode == 0, said
    lost = [trial for trial in whole(run) if trial.failures]
    assert len(lost) == 1
    assert "2 node(s), 2 CPUs" in said


def test_a_trial_over_two_hosts_waits_for_the_lost_one(cluster: Cluster, tmp_path: Path) -> None:
    """And comes to what it comes to on one, where nothing is lost, bit for bit."""
    if "beta" not in cluster.network.hosts:
        cluster.join()
    run, alone = cluster.shared / "runs" / "double", tmp_path / "double"
    argv = words(cluster, "double", "--workers", "2", epochs=(EPOCHS, 0))
    job = cluster.submit(*argv)
    hosts = (cluster.alpha, cluster.beta)

    def both() -> bool:
        assert job.poll() is None, job.communicate()[0]
        return bool(running(run, 1)) and all(at_work(host, "RayTrainWorker") for host in hosts)

    wait_for(both, "a trial over both hosts")
    cluster.network.cut("beta")
    # On this machine, while the others wait.
    environment = {**os.environ, "GRCF_RUNS": str(tmp_path), "GRCF_DATA": str(cluster.shared / "data")}
    undisturbed = subprocess.Popen(
        [sys.executable, "-m", "grcf_ray.search", *argv],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any(trial.failures for trial in trials(run)), "the loss on record")
    cluster.join()
    said, _ = job.communicate(timeout=JOB_S)
    assert job.returncode == 0, said
    lossy = whole(run, [1])
    assert [len(trial.failures) for trial in lossy if trial.failures] == [1]

    _, faults = undisturbed.communicate(timeout=JOB_S)
    assert undisturbed.returncode == 0, faults
    assert essence(lossy) == essence(trials(alone))
    winners = [json.loads((folder / "run.json").read_text())["winner"] for folder in (run, alone)]
    assert winners[0] == winners[1]
    weights = [(folder / "best" / "model.safetensors").read_bytes() for folder in (run, alone)]
    assert weights[0] == weights[1]
