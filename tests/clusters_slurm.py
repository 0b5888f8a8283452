"""Slurm in small: `slurm.sbatch` run as on the first node of an allocation, with stubs for all that it calls."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "clusters" / "slurm.sbatch"

# Every stub notes its arguments, and the authentication that it would have.
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


class Scheduler:
    """Runs the script on an allocation of nodes n1, n2 and so on, and knows what it called."""

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
        """Commands in the order in which they were called, and what the search did."""
        return self._calls.read_text().splitlines()

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """The script with the search's arguments. variables: how the stubs behave."""
        environment = {
            **{"PATH": f"{self._folder / 'stubs'}:{os.environ['PATH']}", "HOME": str(self._folder)},
            **{"CALLS": str(self._calls), "HEAD_FAILS": "", "WAIT_STATUS": "0", "STATUS": "0", "LASTS": ""},
            **{"SLURM_SUBMIT_DIR": str(self._folder), "SLURMD_NODENAME": "n1", "SLURM_CPUS_PER_TASK": "8"},
            **{"SLURM_JOB_NUM_NODES": str(self._nodes), "SLURM_GPUS_ON_NODE": "2"},
            # Of another cluster.
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
        """The script's exit code and all that it printed."""
        job = self.start(*words, **variables)
        output, _ = job.communicate(timeout=60)
        return job.returncode, output

    def wait_for(self, text: str) -> None:
        """Until something has been noted."""
        while not any(text in call for call in self.calls):
            time.sleep(0.01)
