"""clusters/with_nodes.py, on a cluster that Python stubs simulate."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from clusters_files import CLUSTERS

RAY = """
import json, os
def init(**words): pass
def nodes(polls=[]):
    polls.append(None)
    gpus = min(len(polls) - 1, int(os.environ["GPUS"]))
    lost = {"Alive": False, "Resources": {"GPU": 8.0}}
    return [{"Alive": True, "Resources": {"CPU": 0.0}}, lost] + [{"Alive": True, "Resources": {"GPU": 1.0}}] * gpus
"""
SDK = """
import json, os
def request_resources(bundles):
    with open(os.environ["REQUESTS"], "a") as file: file.write(json.dumps(bundles) + "\\n")
"""
STUBS = {"ray/__init__.py": RAY, "ray/autoscaler/__init__.py": "", "ray/autoscaler/sdk.py": SDK}

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start the script on a cluster that gets one more GPU at each poll, up to `gpus`."""
    for path, text in STUBS.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    script = (CLUSTERS / "with_nodes.py").read_text().replace("_POLL_S = 2.0", "_POLL_S = 0.01")
    (tmp_path / "with_nodes.py").write_text(script)
    (tmp_path / "requests").touch()

    def start(*words: str, gpus: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "with_nodes.py"), *words],
            env={"GPUS": str(gpus), "REQUESTS": str(tmp_path / "requests"), "PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def requests(tmp_path: Path) -> list[list[dict[str, int]]]:
    return [json.loads(line) for line in (tmp_path / "requests").read_text().splitlines()]


def test_command_runs_when_its_gpus_have_started(start: Start, tmp_path: Path) -> None:
    process = start("--gpus", "2", "bash", "-c", f"cat {tmp_path / 'requests'}; exit 4", gpus=2)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 4
    assert [re.findall(r"\d of \d GPUs", line) for line in errors.splitlines()] == [["0 of 2 GPUs"], ["1 of 2 GPUs"]]
    # The request lasts as long as the command.
    assert output == '[{"GPU": 1}, {"GPU": 1}]\n'
    assert requests(tmp_path) == [[{"GPU": 1}] * 2, []]


def test_command_does_not_run_without_its_nodes(start: Start, tmp_path: Path) -> None:
    process = start("--nodes", "4", "--gpus", "2", "--minutes", "0.005", "echo", "ran", gpus=1)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 5 and output == ""
    assert re.search(r"[12] of 4 nodes, [01] of 2 GPUs after 0.005 minutes", errors)
    assert requests(tmp_path)[-1] == []


def test_fixed_clusters_get_no_request(start: Start, tmp_path: Path) -> None:
    process = start("--nodes", "2", "echo", "--gpus", "9", gpus=1)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "--gpus 9\n")
    assert requests(tmp_path) == []


@pytest.mark.parametrize("waiting", [True, False])
def test_a_stopped_job_withdraws_its_request(start: Start, tmp_path: Path, waiting: bool) -> None:
    """Ray sends SIGTERM to all processes of a job, the first one first."""
    command = ("bash", "-c", "sleep 60 & trap 'kill $!; exit 130' TERM; echo $$; wait")
    process = start("--gpus", "1", *command, gpus=0 if waiting else 1)
    stream = process.stderr if waiting else process.stdout
    assert stream is not None
    line = stream.readline()
    process.send_signal(signal.SIGTERM)
    if not waiting:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line), signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert requests(tmp_path)[-1] == []
