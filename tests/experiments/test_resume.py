"""A killed experiment: the same command resumes, trains nothing twice, and ends with the same figures."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grcf_ray.config import ABLATIONS
from tests.waiting import wait_for

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
KEPT = ("full", "no-stage2")
"""The reference, and an ablation whose own search is of one stage."""
DRIVER = f"""
import sys
from grcf_ray import console
from grcf_ray.experiments import grids
from grcf_ray.cli.reproduce import app
grids.ABLATIONS = {{name: grids.ABLATIONS[name] for name in {KEPT!r}}}
console.run(app)
"""


@contextlib.contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command in a process of its own; kill it and its children at the end."""
    mark = f"killed-{uuid.uuid4().hex}"
    environment = {**os.environ, "GRCF_TEST": mark, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
        process.wait()


def trials(run: Path) -> dict[Path, Any]:
    """Return all trials that experiments trained below a run."""
    files = (run / "reproduce").rglob("stage?/trials/[0-9]*.json")
    return {path.relative_to(run): json.loads(path.read_text()) for path in files}


@pytest.fixture
def run(copy_run: Callable[[Path], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a maker of copies of the search, with one trial in each stage."""

    def make(name: str) -> Path:
        folder = copy_run(tmp_path / name)
        content = json.loads((folder / "run.json").read_text())
        for settings in (content["settings"], content["space"]["fixed"]):
            settings |= {"search.stage1_trials": 1, "search.stage2_trials": 1, "search.finalists": 1}
        (folder / "run.json").write_text(json.dumps(content))
        return folder

    return make


def test_an_experiment_that_is_killed_goes_on(
    run: Callable[[str], Path], ray_session: None, reproduce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grcf_ray.experiments import grids

    monkeypatch.setattr(grids, "ABLATIONS", {kept: grids.ABLATIONS[kept] for kept in KEPT})
    words = ("ablation", "--retune", "--seeds", "1")

    def answer(folder: Path) -> Any:
        code, out, err = reproduce(*words, "--from", folder, "--json")
        assert code == 0, err
        return json.loads(out)

    whole, cut = run("whole"), run("cut")
    expected = answer(whole)
    check_retuned(whole, expected)

    moment = "retuned/no-stage2/stage1/trials/0000.json"
    with started(*words, "--from", str(cut)) as process:
        wait_for(
            lambda: process.poll() is not None or (cut / "reproduce" / moment).exists(), f"{moment} of the command"
        )
        assert process.poll() is None, "the command ended before the kill"
    before = {path: trial for path, trial in trials(cut).items() if trial["state"] == "complete"}
    assert not list((cut / "reproduce").glob("*/result.json"))

    assert answer(cut)["tables"] == expected["tables"]
    assert (cut / "reproduce" / "ablation-retuned" / "result.json").exists()
    after = trials(cut)
    assert {path: after[path]["ended"] for path in before} == {path: trial["ended"] for path, trial in before.items()}
    assert after.keys() == trials(whole).keys()
    assert answer(cut)["tables"] == expected["tables"] and trials(cut) == after, "nothing is left to train"


def check_retuned(run: Path, answer: Any) -> None:
    """Check that the ablation has a second row, with the parameters of its own search."""
    mae = next(table for table in answer["tables"] if table["name"] == "mae")
    assert [row["title"] for row in mae["rows"]] == ["Full model", "w/o Stage 2", "w/o Stage 2, retuned"]
    trained = [
        {**entry["stage1"], **entry["stage2"]}
        for file in (run / "reproduce" / "models").glob("*/entries.json")
        for entry in json.loads(file.read_text())
    ]
    place = run / "reproduce" / "retuned" / "no-stage2"
    searched = json.loads((place / "run.json").read_text())
    assert searched["state"] == "finished"
    assert {path: searched["settings"][path] for path in ABLATIONS["no-stage2"]} == dict(ABLATIONS["no-stage2"])
    params = json.loads((place / "best" / "provenance.json").read_text())["params"]
    assert any(params.items() <= entry.items() for entry in trained)
    reads = json.loads((run / "best" / "provenance.json").read_text())["test_reads"]
    assert "reproduce/retuned/no-stage2" in {name for read in reads for name in read["models"]}
