"""Damage and edits of a run's files are said by the file's name; earlier versions are brought up to date."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from synthetic_run import Run

from grcf_ray.errors import DamagedError, DataError
from grcf_ray.report.view import RunView
from grcf_ray.search.predictions import Predictions, keep_predictions
from grcf_ray.search.record import RunRecord
from grcf_ray.search.schema import SCHEMA_VERSION, MetricsFile, ProvenanceFile, read_file
from grcf_ray.storage import storage_path

STORED = Path(__file__).parents[1] / "stored" / "run-1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of two trials."""
    folder = tmp_path / "run"
    Run(folder).start().trials(1, "cd").trials(2, "c").finish()
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


FAULTS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "extra key": ("run.json", lambda run: run.update(more=1)),
    "misspelt key": ("run.json", lambda run: run.update(winer=run.pop("winner"))),
    "no version": ("run.json", lambda run: run.pop("schema_version")),
    "version of another kind": ("run.json", lambda run: run.update(schema_version=True)),
    "no start": ("run.json", lambda run: run["starts"].clear()),
    "no time": ("run.json", lambda run: run["starts"][0].update(time="noon")),
    "winner that is no trial": ("run.json", lambda run: run.update(winner="stage3/1")),
    "finalist that is no number": ("run.json", lambda run: run.update(finalists=["one"])),
    "unknown setting": ("run.json", lambda run: run["settings"].update({"stage1.head_rl": 1.0})),
    "setting of another kind": ("run.json", lambda run: run["settings"].update({"search.stage1_trials": "six"})),
    "one label": ("run.json", lambda run: run["data"].update(label_range=[1.0])),
    "crossed bounds": ("run.json", lambda run: run["space"]["stage2"]["stage2.head_lr"].update(low=1.0, high=0.1)),
    "no search": ("run.json", lambda run: [run.pop(key) for key in ("starts", "space", "data", "versions")]),
    "extra key of a trial": ("stage1/trials/0000.json", lambda trial: trial.update(more=1)),
    "state that is none": ("stage1/trials/0000.json", lambda trial: trial.update(state="over")),
    "missing epoch": ("stage1/trials/0000.json", lambda trial: trial["curve"].pop(0)),
    "endless curve": ("stage1/trials/0000.json", lambda t: t.update(curve=[{"epoch": n + 1} for n in range(200_000)])),
    "figure that is a word": ("stage1/trials/0000.json", lambda trial: trial["curve"][0].update({"valid/mae": "low"})),
    "another trial's number": ("stage1/trials/0000.json", lambda trial: trial.update(number=1)),
    "another stage": ("stage1/trials/0000.json", lambda trial: trial.update(stage=2)),
    "a way out": ("stage1/trials/0000.json", lambda trial: trial.update(checkpoint="../../../weights.safetensors")),
    "finalist that is a word": ("stage2/trials/0000.json", lambda trial: trial["params"].update(finalist="best")),
    "infinite figure": ("best/metrics.json", lambda metrics: metrics["test"].update(mae=None)),
    "no threads": ("best/metrics.json", lambda metrics: metrics.pop("threads")),
    "no reads": ("best/provenance.json", lambda provenance: provenance.pop("test_reads")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_file_of_a_run_is_said_by_its_name(fault: str, folder: Path) -> None:
    name, change = FAULTS[fault]
    RunView.read(RunRecord(storage_path(folder)))
    edit(folder / name, change)
    with pytest.raises(DataError) as caught:
        RunView.read(RunRecord(storage_path(folder)))
    assert (caught.value.exit_code, str(folder / name).removesuffix("/run.json") in str(caught.value)) == (3, True)


@pytest.mark.parametrize("name", ["notes.json", "0007 copy.json", "7.json"])
def test_a_foreign_file_among_the_trials_is_said(name: str, folder: Path) -> None:
    trials = folder / "stage1" / "trials"
    content = json.loads((trials / "0000.json").read_text())
    (trials / name).write_text(json.dumps(content if "copy" in name else {**content, "number": 7}))
    with pytest.raises(DamagedError) as caught:
        RunRecord(storage_path(folder)).trials(1)
    assert name in str(caught.value)


def test_every_fault_of_a_file_is_said_at_once(folder: Path) -> None:
    edit(folder / "run.json", lambda run: [run.update(more=1), run.pop("state"), run["data"].pop("name")])
    with pytest.raises(DamagedError) as caught:
        RunRecord(storage_path(folder)).read_run()
    assert all(key in str(caught.value) for key in ("more", "state is missing", "data.name is missing"))


def test_an_earlier_version_is_brought_up_to_date_and_what_it_has_beyond_is_left_out(tmp_path: Path) -> None:
    content = json.loads((STORED / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**content, "more": 1, "data": {**content["data"], "more": 1}}))
    record = RunRecord(storage_path(tmp_path))
    run = record.read_search()
    assert (run["schema_version"], run["data"]["task"]) == (SCHEMA_VERSION, "regression")
    assert "more" not in run
    assert "more" not in run["data"]
    assert len(record.lacks()) == 2
    record.update_run(state="running")
    assert record.read_search() == {**run, "state": "running"}
    assert record.lacks() == []


def test_files_that_had_no_version_are_of_the_first(folder: Path) -> None:
    best = storage_path(STORED) / "best"
    assert read_file(best / "metrics.json", MetricsFile)["schema_version"] == SCHEMA_VERSION
    assert read_file(best / "provenance.json", ProvenanceFile)["trial"] == "stage2/4"
    assert RunRecord(storage_path(STORED)).read_finalist(3)["trial"] == 3
    # Beyond what is known, the current version admits nothing and the first one anything.
    metrics = folder / "best" / "metrics.json"
    edit(metrics, lambda content: content.update(more=1))
    assert "more" not in read_file(storage_path(metrics), MetricsFile)
    edit(metrics, lambda content: content.update(schema_version=SCHEMA_VERSION))
    with pytest.raises(DamagedError, match="more: no such key"):
        read_file(storage_path(metrics), MetricsFile)


def test_a_flipped_byte_of_predictions_is_said(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "valid.parquet"
    table = pa.table({"id": [str(n) for n in range(40)], "text": ["words"] * 40})
    scores, states = rng.normal(size=40), rng.normal(size=(40, 8)).astype(np.float32)
    keep_predictions(storage_path(path), table, scores.round(1), scores, states)
    np.testing.assert_array_equal(Predictions.read(storage_path(path)).state_ND, states)
    whole = path.read_bytes()
    for value in (scores[7].tobytes(), states[7].tobytes()[:8]):
        at = whole.index(value)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedError, match="damaged"):
            Predictions.read(storage_path(path))
