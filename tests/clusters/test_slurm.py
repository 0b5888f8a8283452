"""clusters/slurm.sbatch, run as on the first node of an allocation, with stubs for all commands that it calls."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from clusters_files import CLUSTERS

SCRIPT = CLUSTERS / "slurm.sbatch"

# Each stub records its arguments, and the token and the address that it sees.
_NOTE = 'echo "$(basename "$0") $* [$RAY_AUTH_MODE $RAY_AUTH_TOKEN] ${RAY_ADDRESS:-}" >> "$CALLS"\n'
_STUBS = {
    "ip": '[ "${@: -1}" = eth0 ] && echo "2: eth0    inet 10.0.0.1/24 brd 10.0.0.255 scope global eth0"',
    "srun": _NOTE,
    "ray": f'[ "$1" = get-auth-token ] && {{ echo -n secret; exit; }}\n{_NOTE}[ -z "$HEAD_FAILS" ]',
    # The wait for nodes, then the search.
    "python": f"""{_NOTE}
if [ "$1" = clusters/with_nodes.py ]; then
    until [ "$SLURM_JOB_NUM_NODES" = 1 ] || grep -q "^srun" "$CALLS"; do sleep 0.01; done
    exit "$WAIT_STATUS"
fi
if [ "$LASTS" ]; then
    trap 'echo "search terminated" >> "$CALLS"; exit 130' TERM
    echo "search runs" >> "$CALLS"
    for _ in {{1..600}}; do sleep 0.1; done
fi
exit "$STATUS"
""",
}


class Slurm:
    """Runs the script on an allocation of nodes n1, n2, ..., and records the commands that it calls."""

    def __init__(self, folder: Path, nodes: int = 3) -> None:
        self._folder, self._nodes = folder, nodes
        self._calls = folder / "calls"
        self._calls.touch()
        stubs = folder / "stubs"
        stubs.mkdir()
        for name, text in _STUBS.items():
            (stubs / name).write_text(f"#!/bin/bash\n{text}\n")
            (stubs / name).chmod(0o755)

    @property
    def calls(self) -> list[str]:
        """Return the commands in the order of their calls, and the events of the search."""
        return self._calls.read_text().splitlines()

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """Start the script with the search's arguments. variables: control the stubs."""
        environment = {
            **{"PATH": f"{self._folder / 'stubs'}:{os.environ['PATH']}", "HOME": str(self._folder)},
            **{"CALLS": str(self._calls), "HEAD_FAILS": "", "WAIT_STATUS": "0", "STATUS": "0", "LASTS": ""},
            **{"SLURM_SUBMIT_DIR": str(self._folder), "SLURMD_NODENAME": "n1", "SLURM_CPUS_PER_TASK": "8"},
            **{"SLURM_JOB_NUM_NODES": str(self._nodes), "SLURM_GPUS_ON_NODE": "2"},
            # The address of another cluster, inherited from the user.
            **{"RAY_ADDRESS": "10.9.9.9:6379"},
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), *words],
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, **variables: str) -> tuple[int, str]:
        """Return the script's exit code and output."""
        job = self.start(*words, **variables)
        output, _ = job.communicate(timeout=60)
        return job.returncode, output

    def wait_for(self, text: str) -> None:
        """Wait until a recorded call contains the text."""
        while not any(text in call for call in self.calls):
            time.sleep(0.01)


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def test_head_then_workers_then_the_search(slurm: Slurm) -> None:
    status, output = slurm.run("--dataset", "mosi", "--gpus-per-worker", "1")
    assert status == 0, output
    head, *rest, search = slurm.calls
    assert head.startswith("ray start --head --node-ip-address=10.0.0.1 --port=6379 ")
    workers, wait = sorted(rest, reverse=True)
    assert workers.startswith("srun --no-kill --nodes=2 --ntasks=2 --exclude=n1 --cpus-per-task=8 ray start ")
    assert "--address=10.0.0.1:6379 --block" in workers
    assert all("--num-cpus=8 --num-gpus=2" in start for start in (head, workers))
    assert wait.startswith("python clusters/with_nodes.py --nodes 3 --minutes 10 true ")
    assert search.startswith("python -m grcf_ray.search --dataset mosi --gpus-per-worker 1 ")
    assert all("[token secret]" in call for call in slurm.calls)
    # Ray's commands follow RAY_ADDRESS: none is left for the head, the others get the head's.
    assert head.endswith("] ") and all(call.endswith("] 10.0.0.1:6379") for call in (*rest, search))


def test_one_node_has_no_workers(tmp_path: Path) -> None:
    slurm = Slurm(tmp_path, nodes=1)
    assert slurm.run("--dataset", "demo")[0] == 0
    assert not any(call.startswith("srun ") for call in slurm.calls)


@pytest.mark.parametrize(
    ("variables", "status", "message", "calls", "searches"),
    [
        ({"STATUS": "1"}, 1, "", 4, True),
        ({"STATUS": "4"}, 4, "", 4, True),
        ({"WAIT_STATUS": "5"}, 5, "", 3, False),
        ({"HEAD_FAILS": "1"}, 5, "head did not start on n1", 1, False),
        ({"GLOO_SOCKET_IFNAME": "eth8"}, 5, "n1 has no network interface eth8", 0, False),
    ],
    ids=["search fails", "no winner", "nodes missing", "head fails", "wrong interface"],
)
def test_exit_codes(
    slurm: Slurm, variables: dict[str, str], status: int, message: str, calls: int, searches: bool
) -> None:
    code, output = slurm.run("--dataset", "mosi", **variables)
    assert code == status and message in output
    assert len(slurm.calls) == calls
    assert any("grcf_ray.search" in call for call in slurm.calls) == searches


def test_the_search_stops_at_the_time_limit(slurm: Slurm) -> None:
    job = slurm.start("--dataset", "mosi", LASTS="1")
    slurm.wait_for("search runs")
    # --signal=B: signals the batch shell alone.
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 130, output
    assert slurm.calls[-1] == "search terminated"
    assert "sbatch" in output


def test_slurm_options() -> None:
    lines = SCRIPT.read_text().splitlines()
    options = [line.split()[1] for line in lines if line.startswith("#SBATCH ")]
    assert {"--signal=B:TERM@300", "--no-kill", "--requeue", "--exclusive", "--ntasks-per-node=1"} <= set(options)
    # Slurm reads options up to the first command.
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
