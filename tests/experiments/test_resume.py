"""Killed experiments: the same command resumes, trains nothing twice, and ends with the same figures."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grcf_ray import console
from tests.waiting import wait_for

if TYPE_CHECKING:
    from tests.conftest import Recorded

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KEPT = ("full", "no-stage1", "no-stage2")
"""Ablations whose own searches are short, one in each stage."""
SMALL = {
    **{"search.stage1_trials": 1, "search.stage2_trials": 1, "search.finalists": 1},
    **{"stage1.epochs": 1, "stage2.epochs": 1},
}
"""Settings of the recorded run that keep its experiments short."""
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


def inputs(recorded: Recorded, tmp_path: Path, name: str) -> list[str]:
    """Return the experiment's arguments, without the run."""
    if name == "ablation":
        return ["ablation", "--retune", "--seeds", "1"]
    import pyarrow as pa

    from grcf_ray.data.schema import TableInfo
    from grcf_ray.data.store import DatasetStore, write_store

    store = DatasetStore.open(recorded.data)
    # Opposite labels make other data.
    parts = [store.read(split) for split in ("train", "valid", "test")]
    table = pa.concat_tables(parts)
    column = table.column_names.index("label")
    table = table.set_column(column, "label", pa.array([-label for label in table["label"].to_pylist()], pa.float32()))
    info = TableInfo.describe(table, name="other", label_range=store.info.label_range)
    folder = write_store(tmp_path / "other", table, info).folder
    return ["transfer", "--onto", "other", "--onto-data", str(folder), "--seeds", "1"]


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("ablation", "retuned/no-stage2/stage1/trials/0000.json"),
        ("transfer", "transfer/*/stage1-there/*/stage2/trials/0000.json"),
    ],
)
def test_an_experiment_that_is_killed_goes_on(
    name: str,
    moment: str,
    recorded: Recorded,
    ray_session: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from grcf_ray.cli.reproduce import app
    from grcf_ray.experiments import grids

    monkeypatch.setattr(grids, "ABLATIONS", {kept: grids.ABLATIONS[kept] for kept in KEPT})
    words = inputs(recorded, tmp_path, name)

    def answer(run: Path) -> Any:
        with pytest.raises(SystemExit) as ended:
            console.run(app, [*words, "--from", str(run), "--json"])
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        return json.loads(out)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        shutil.copytree(recorded.folder, folder)
        run = json.loads((folder / "run.json").read_text())
        run["settings"] |= SMALL
        run["space"]["fixed"] |= SMALL
        (folder / "run.json").write_text(json.dumps(run))
    expected = answer(whole)
    if name == "ablation":
        check_retuned(whole, expected)

    with started(*words, "--from", str(cut)) as process:
        wait_for(
            lambda: process.poll() is not None or list((cut / "reproduce").glob(moment)), f"{moment} of the command"
        )
        assert process.poll() is None, "the command ended before the kill"
    before = {path: trial for path, trial in trials(cut).items() if trial["state"] == "complete"}
    assert before and not list((cut / "reproduce").glob("*/result.json"))

    assert answer(cut)["tables"] == expected["tables"]
    assert list((cut / "reproduce").glob(f"{name}-*/result.json"))
    after = trials(cut)
    assert {path: after[path]["ended"] for path in before} == {path: trial["ended"] for path, trial in before.items()}
    assert after.keys() == trials(whole).keys()
    assert answer(cut)["tables"] == expected["tables"] and trials(cut) == after, "nothing is left to train"


def check_retuned(run: Path, answer: Any) -> None:
    """Check that each ablation has a second row, with the parameters of its own search."""
    from grcf_ray.config import ABLATIONS

    mae = next(table for table in answer["tables"] if table["name"] == "mae")
    assert [row["title"] for row in mae["rows"]] == [
        "Full model",
        *("w/o Stage 1", "w/o Stage 1, retuned"),
        *("w/o Stage 2", "w/o Stage 2, retuned"),
    ]
    trained = [
        {**entry["stage1"], **entry["stage2"]}
        for file in (run / "reproduce" / "models").glob("*/entries.json")
        for entry in json.loads(file.read_text())
    ]
    for name in ("no-stage1", "no-stage2"):
        place = run / "reproduce" / "retuned" / name
        searched = json.loads((place / "run.json").read_text())
        assert searched["state"] == "finished"
        assert {path: searched["settings"][path] for path in ABLATIONS[name]} == dict(ABLATIONS[name])
        params = json.loads((place / "best" / "provenance.json").read_text())["params"]
        assert any(params.items() <= entry.items() for entry in trained)
    reads = json.loads((run / "best" / "provenance.json").read_text())["test_reads"]
    assert "reproduce/retuned/no-stage1" in {name for read in reads for name in read["models"]}
