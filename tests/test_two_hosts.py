"""Searches on two hosts, submitted from a third. One of the two is lost meanwhile.

The hosts are namespaces (`hosts`), so they share only what two machines would share.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import command
from hosts import ROOT, Host, Network, lacking
from repetition import essence
from waiting import JOB_S, wait_for

from grcf_ray.cli.search import app
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.storage import storage_path
from tests.conftest import TINY_SPACE

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2 * JOB_S)]

EPOCHS = 2
"""Epochs of each trial of Stage 1, the only stage."""
FAST = {"initial_delay_ms": 2000, "period_ms": 1000, "timeout_ms": 3000, "failure_threshold": 3}
"""Settings with which the head soon counts a silent node as lost. Ray's own take half a minute."""


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


def words(cluster: Cluster, name: str, *more: str, trials: int = 1, epochs: int = EPOCHS) -> list[str]:
    """Return the arguments of a search whose epochs take long enough for something to happen in one."""
    settings = {"pairs.pairs_per_epoch": 3072, "search.pruning": "false", "search.ridge_baseline": "false"}
    settings |= {"stage1.epochs": epochs, "stage2.epochs": 0}
    argv = ["--dataset", "tiny", "--space", str(cluster.shared / "tiny.yaml"), "--name", name]
    argv += ["--stage1-trials", str(trials)]
    return [*argv, *(word for path, value in settings.items() for word in ("--set", f"{path}={value}")), *more]


def trials(run: Path) -> list[TrialRecord]:
    """Return the recorded trials."""
    return RunRecord(storage_path(run)).trials(1)


def running(run: Path, epochs: int) -> list[TrialRecord]:
    """Return the running trials that have finished at least so many epochs."""
    return [trial for trial in trials(run) if not trial.finished and trial.epoch >= epochs]


def at_work(host: Host, title: str) -> bool:
    return any(title in line for line in host.titles())


def complete_trials(run: Path) -> list[TrialRecord]:
    """Return the trials of a finished run; each is complete, and exactly one lost its process, once."""
    assert RunRecord(storage_path(run)).info().state == "finished"
    seen = trials(run)
    assert all((trial.state, trial.epoch) == ("complete", EPOCHS) for trial in seen)
    causes = [failure["cause"] for trial in seen for failure in trial.failures]
    assert len(causes) == 1 and causes[0] in ("process died", "node lost")
    # An attempt more for each process that was lost, and no more.
    assert all(trial.attempt == 1 + len(trial.failures) for trial in seen)
    return seen


def lose_beta(cluster: Cluster, job: subprocess.Popen[str], run: Path, title: str, *, trials: int, epochs: int) -> None:
    """Cut beta's power once both hosts run a process of that title, and so many trials have so many epochs."""
    hosts = (cluster.alpha, cluster.beta)

    def ready() -> bool:
        assert job.poll() is None, job.communicate()[0]
        return len(running(run, epochs)) == trials and all(at_work(host, title) for host in hosts)

    wait_for(ready, "trials on both hosts")
    cluster.network.cut("beta")


def test_a_fault_of_any_node_stops_the_search_before_it_trains(cluster: Cluster) -> None:
    """Runs would lie on each host's own disk, and workers would meet on the loopback interface."""
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


def test_a_host_that_fails_all_trials_gets_no_more(cluster: Cluster) -> None:
    """Beta cannot write to the runs any more, while alpha can: its trials end on alpha, and none has failed.

    Alpha is busy with its first trial until beta has failed twice: its own trial, and the third that it takes then.
    """
    runs, count, epochs = cluster.shared / "runs", 3, 7
    run = runs / "bad"
    job = cluster.submit(*words(cluster, "bad", trials=count, epochs=epochs))

    def both() -> bool:
        assert job.poll() is None, job.communicate()[0]
        return bool(running(run, 1)) and all(at_work(host, "Trainable.train") for host in (cluster.alpha, cluster.beta))

    wait_for(both, "trials on both hosts")
    cluster.beta.do(f"mount --bind {runs} {runs}", f"mount -o remount,ro,bind {runs}")
    try:
        said, _ = job.communicate(timeout=JOB_S)
    finally:
        cluster.beta.do(f"umount {runs}")
    assert job.returncode == 0, said
    beta = f"beta ({cluster.beta.address})"
    assert said.count(f"Node {beta} gets no more trials") == said.count("gets no more trials") == 1, said
    info = RunRecord(storage_path(run)).info()
    assert (info.state, info.excluded, info.left) == ("finished", [beta], [])
    seen = trials(run)
    assert [(trial.state, trial.epoch) for trial in seen] == [("complete", epochs)] * count
    failures = [failure for trial in seen for failure in trial.failures]
    assert {(failure["host"], failure["cause"]) for failure in failures} == {(beta, "storage")}
    assert {failure["node"] for failure in failures} == {failures[0]["node"]}
    assert len(failures) >= 2


def test_a_search_goes_on_when_one_of_its_hosts_is_lost(cluster: Cluster) -> None:
    run = cluster.shared / "runs" / "single"
    job = cluster.submit(*words(cluster, "single", trials=2))
    lose_beta(cluster, job, run, "Trainable.train", trials=2, epochs=0)
    said, _ = job.communicate(timeout=JOB_S)
    assert job.returncode == 0, said
    assert [trial.number for trial in complete_trials(run)] == [0, 1]
    assert "2 node(s), 2 CPUs" in said


def test_a_trial_on_two_hosts_waits_for_the_lost_one(
    cluster: Cluster,
    ray_session: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The search has the result, bit for bit, of one on a single machine that loses nothing."""
    if "beta" not in cluster.network.hosts:
        cluster.join()
    run, alone = cluster.shared / "runs" / "double", tmp_path / "double"
    argv = words(cluster, "double", "--workers", "2")
    job = cluster.submit(*argv)
    lose_beta(cluster, job, run, "RayTrainWorker", trials=1, epochs=1)
    wait_for(lambda: any(trial.failures for trial in trials(run)), "the loss on record")
    cluster.join()

    monkeypatch.setenv("GRCF_RUNS", str(tmp_path))
    monkeypatch.setenv("GRCF_DATA", str(cluster.shared / "data"))
    code, _, err = command(app, capsys)(*argv)
    assert code == 0, err
    said, _ = job.communicate(timeout=JOB_S)
    assert job.returncode == 0, said
    assert essence(complete_trials(run)) == essence(trials(alone))
    winners = [json.loads((folder / "run.json").read_text())["winner"] for folder in (run, alone)]
    assert winners[0] == winners[1]
    weights = [(folder / "best" / "model.safetensors").read_bytes() for folder in (run, alone)]
    assert weights[0] == weights[1]
