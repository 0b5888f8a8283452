from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from grcf_ray.errors import DataError
from grcf_ray.search.record import SCHEMA_VERSION, RunRecord, TrialRecord, missing_numbers, rank, spent
from grcf_ray.search.schema import RunData
from grcf_ray.storage import LocalPath, storage_path
from grcf_ray.train.curve import objective_name


def trial(number: int, *values: float | None, stage: Literal[1, 2] = 1, state: Any = "complete") -> TrialRecord:
    name = f"valid/{objective_name(stage, 'regression')}"
    curve = [{"epoch": epoch, name: value, "seconds": 0.5} for epoch, value in enumerate(values, 1)]
    return TrialRecord(number=number, stage=stage, attempt=1, params={"a": 1e-5}, seed=3, state=state, curve=curve)


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord(storage_path(tmp_path / "run"))


def trial_path(record: RunRecord, number: int) -> Path:
    assert isinstance(record.place, LocalPath)
    return record.place.local / "stage1" / "trials" / f"{number:04d}.json"


def test_trial_round_trip(record: RunRecord) -> None:
    whole = TrialRecord(
        number=7,
        stage=2,
        attempt=2,
        params={"stage2.head_lr": 1.2345678901234567e-5, "finalist": "3", "pairs.redraw": False, "n": 3},
        seed=4294967295,
        state="diverged",
        curve=[{"epoch": 1, "valid/mae": 0.1 + 0.2, "valid/corr": None}],
        error="no longer finite: ä",
        cause="not finite",
        failures=[{"attempt": 1, "cause": "hung", "error": "no epoch ended", "time": "2026-01-01T00:00:30+00:00"}],
        notes=["last.safetensors: damaged; trained again from epoch 1"],
        seconds=1.5,
        utterance_passes=2.25,
        checkpoint="stage2/trials/0007/attempt-2/best.safetensors",
        checkpoint_sha256="ab" * 32,
        started="2026-01-01T00:00:00+00:00",
        ended="2026-01-01T00:01:00+00:00",
    )
    record.write_trial(whole)
    assert record.trials(2) == [whole]
    assert record.trials(1) == []
    assert record.trial(2, 7) == whole
    with pytest.raises(DataError, match="has no trial stage1/7"):
        record.trial(1, 7)


def test_what_is_undefined_is_null(record: RunRecord) -> None:
    record.write_trial(trial(0, float("nan"), 0.5, float("inf")))
    text = trial_path(record, 0).read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    (read,) = record.trials(1)
    assert [m["valid/pairwise_acc"] for m in read.curve] == [None, 0.5, None]
    assert read.objective == 0.5


def test_stage_1_ranks_from_high_to_low_and_stage_2_from_low_to_high(record: RunRecord) -> None:
    for stage in (1, 2):
        for number, values in enumerate([(0.5, 0.9), (0.7,), (0.95, 0.2), (0.8, 0.1)]):
            record.write_trial(trial(number, *values, stage=stage))  # type: ignore[arg-type]
    assert [t.number for t in record.ranked(1)] == [2, 0, 3, 1]
    assert [t.number for t in record.ranked(2)] == [3, 2, 0, 1]
    assert [t.objective for t in record.ranked(2)] == [0.1, 0.2, 0.5, 0.7]
    assert [t.number for t in rank(record.trials(2)[:3])] == [2, 0, 1]


def test_the_earlier_of_equals_is_first(record: RunRecord) -> None:
    for number in (3, 1, 2):
        record.write_trial(trial(number, 0.5, 0.5))
    assert [t.number for t in record.ranked(1)] == [1, 2, 3]
    best = record.ranked(1)[0].best
    assert best is not None
    assert best["epoch"] == 1


@pytest.mark.parametrize("state", ["diverged", "failed"])
def test_what_did_not_end_well_is_not_ranked(record: RunRecord, state: str) -> None:
    record.write_trial(trial(0, 0.99, state=state))
    record.write_trial(trial(1, 0.2, state="pruned"))
    record.write_trial(trial(2, None))
    record.write_trial(trial(3))
    assert [t.number for t in record.ranked(1)] == [1]
    assert [t.objective for t in record.trials(1)] == [None, 0.2, None, None]


def test_export_is_a_line_of_json_for_each_trial(record: RunRecord) -> None:
    # By number, whatever the order of the writes.
    for number in (10, 0, 2):
        record.write_trial(trial(number, 0.5 + number, float("nan")))
    record.export_trials(1)
    lines = (record.place / "stage1" / "trials.jsonl").read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == [
        json.loads(trial_path(record, number).read_text()) for number in (0, 2, 10)
    ]


def test_run_round_trip_and_update(record: RunRecord) -> None:
    assert not record.exists
    record.write_run({"state": "running", "stage2_trials": 5})
    assert record.exists
    record.update_run(state="finished", winner="stage2/3")
    assert record.read_run() == {
        "schema_version": SCHEMA_VERSION,
        "state": "finished",
        "stage2_trials": 5,
        "winner": "stage2/3",
    }


def test_no_run_damaged_run_and_newer_run_are_data_errors(record: RunRecord) -> None:
    with pytest.raises(DataError, match=r"not a run: it has no run\.json"):
        record.read_run()
    record.write_run({"state": "running"})
    (record.place / "run.json").write_json({"state": "running", "schema_version": SCHEMA_VERSION + 1})
    with pytest.raises(DataError, match="newer grcf_ray"):
        record.read_run()
    (record.place / "run.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        record.read_run()


def test_a_failed_write_leaves_the_old_record(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    record.write_trial(trial(0, 0.5))
    before = trial_path(record, 0).read_bytes()
    with pytest.raises(TypeError):
        record.write_trial(trial(0, object()))  # type: ignore[arg-type]
    assert trial_path(record, 0).read_bytes() == before
    assert [path.name for path in trial_path(record, 0).parent.iterdir()] == ["0000.json"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"name": "reviews", "task": "regression", "metrics": "own"}, "own"),
        # Runs of the first releases do not say: all but SIMS had the accuracies of MOSI, and still have them on record.
        ({"name": "reviews", "task": "regression"}, "mosi"),
        ({"name": "demo", "task": "regression"}, "mosi"),
        ({"name": "mosei", "task": "regression"}, "mosi"),
        ({"name": "sims_v2", "task": "regression"}, "sims"),
        ({"name": "mosi", "task": "classification"}, "binary"),
    ],
)
def test_whose_metrics_a_run_has(data: dict[str, Any], expected: str) -> None:
    described = {"folder": "data", "fingerprint": "0", "label_range": [-3.0, 3.0], **data}
    assert RunData.model_validate(described).protocol == expected


def test_trials_without_a_run_json_are_nobodys(record: RunRecord, tmp_path: Path) -> None:
    """They would be adopted by whatever is searched here next."""
    assert not record.exists
    record.write_space("a: 1")
    assert not record.exists
    record.write_trial(trial(0, 0.5))
    with pytest.raises(DataError, match="stage1 of a run, but no run"):
        record.exists  # noqa: B018


def test_a_record_that_is_moved_is_not_begun_anew(record: RunRecord, tmp_path: Path) -> None:
    record.write_trial(trial(0, 0.5))
    (tmp_path / "run").rename(tmp_path / "other")
    with pytest.raises(DataError, match="moved or deleted"):
        record.write_trial(trial(1, 0.5))
    assert not (tmp_path / "run").exists()


def test_missing_numbers_are_spent() -> None:
    assert (missing_numbers([]), spent([])) == ([], 0)
    trials = [trial(1, 0.5), trial(4, 0.5), trial(5, state="running")]
    assert (missing_numbers(trials), spent(trials)) == ([0, 2, 3], 5)
