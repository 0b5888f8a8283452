"""Runs and searches from Python."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest

import grcf_ray
from grcf_ray.cli.search import search
from grcf_ray.data.columns import ROLES
from grcf_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore
    from tests.conftest import Recorded

NOTEBOOK = """
import asyncio

async def cell():
    import grcf_ray
    settings = {{"stage1.epochs": 1, "stage2.epochs": 1, "model.modalities": "text"}}
    run = grcf_ray.run_search(
        "tiny", data={data!r}, space={space!r}, storage={storage!r}, name="notebook",
        stage1_trials=1, stage2_trials=1, finalists=1, settings=settings, seed=0,
    )
    print(run.state, len(run.trials), run.predict(["great film", "awful plot"]).shape)
    again = grcf_ray.run_search(
        "tiny", data={data!r}, space={space!r}, storage={storage!r}, name="notebook",
        stage1_trials=1, stage2_trials=1, finalists=1, settings=settings, seed=0,
    )
    print(again.path == run.path, again.summary.winner == run.summary.winner)

asyncio.run(cell())
"""


@pytest.mark.integration
def test_a_search_runs_in_a_notebook(tiny_store: DatasetStore, tiny_space: Path, tmp_path: Path) -> None:
    """In a process whose main module is no file and whose event loop runs; the same call again returns the result."""
    code = NOTEBOOK.format(data=str(tiny_store.folder), space=str(tiny_space), storage=str(tmp_path))
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["finished 2 (2,)", "True True"]
    start = json.loads((tmp_path / "notebook" / "run.json").read_text())["starts"][0]
    assert start["command"].startswith("grcf_ray.run_search('tiny', data=")
    assert start["command"].endswith(", seed=0)")


def test_a_search_has_the_commands_options() -> None:
    ending = {"init_space", "dry_run", "calibrate", "simulate", "print_config"}
    command = set(inspect.signature(search).parameters) - ending - {"set_", "json"}
    columns = {name for name in command if name.endswith("_column")}
    arguments = set(inspect.signature(grcf_ray.run_search).parameters)
    assert arguments == (command - columns) | {"settings", "columns"}
    assert columns == {f"{role}_column" for role in ROLES}


@pytest.mark.parametrize(
    ("argument", "option"),
    [("workers", "--workers"), ("cpus_per_worker", "--cpus-per-worker"), ("stage1_trials", "--stage1-trials")],
)
def test_a_wrong_argument_is_refused_by_its_option(argument: str, option: str) -> None:
    with pytest.raises(ConfigError, match=f"^{option} 0: should be"):
        grcf_ray.run_search("mosi", **{argument: 0})


def test_fewer_than_no_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--seeds -1: should be 0 or more"):
        grcf_ray.run_search("demo", seeds=-1, storage=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.integration
def test_an_opened_run_has_the_record(recorded: Recorded, tmp_path: Path) -> None:
    shutil.copytree(recorded.folder, tmp_path / "run")
    run = grcf_ray.open_run(tmp_path / "run")
    summary = json.loads(recorded.out)
    assert run.state == "finished"
    assert run.summary.as_json()["test"] == summary["test"]
    trials = run.trials
    assert len(trials) == 11 and set(trials["stage"]) == {1, 2}
    best = trials[trials["trial"] == summary["winner"]["trial"]].iloc[0]
    assert best["objective"] == trials[trials["stage"] == 2]["objective"].min()
    assert best["stage2.head_lr"] == summary["winner"]["params"]["stage2.head_lr"]
    assert Path(run.report()).stat().st_size > 1e6


@pytest.mark.integration
def test_an_opened_run_predicts(recorded: Recorded) -> None:
    run = grcf_ray.open_run(recorded.folder)
    table = pq.read_table(recorded.folder / "best" / "predictions" / "valid.parquet")
    rows = pq.read_table(recorded.data / "valid.parquet")
    np.testing.assert_allclose(run.predict(rows), table["score"].to_numpy(), atol=1e-5)
    assert run.best is run.best


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run\.json"):
        grcf_ray.open_run(tmp_path)


def test_the_package_imports_quickly() -> None:
    code = (
        "import sys; import grcf_ray; print(sorted({'torch', 'numpy', 'ray', 'pandas', 'typer'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
