"""Jobs on one warm runner: each is as if it had a process of its own."""

from __future__ import annotations

import dataclasses
import gc
import json
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from grcf_ray.config import flatten
from grcf_ray.data.features import Features
from grcf_ray.errors import DamagedError
from grcf_ray.storage import storage_path
from grcf_ray.train import job as job_module
from grcf_ray.train.checkpoint import export_weights, read_checkpoint
from grcf_ray.train.job import JobRunner, StageJob, open_loop

if TYPE_CHECKING:
    from tests.train.conftest import NewConfig

TIMES = ("seconds", "utterances_per_s", "pairs_per_s")
KNOWN = {"epoch", "curve", "notes", "checkpoint_sha256", "done"}

FRESH = """
import json, pickle, sys
from pathlib import Path
from grcf_ray.train.job import JobRunner, StageJob

runner = JobRunner(pickle.loads(Path(sys.argv[1]).read_bytes()))
runner.start(StageJob(**json.loads(sys.argv[2])))
results = [runner.step()]
while not results[-1]["done"]:
    results.append(runner.step())
print(json.dumps(results))
"""


@pytest.fixture
def job(new_config: NewConfig, tmp_path: Path) -> StageJob:
    """Stage 1 with dropout, three epochs."""
    return StageJob(
        stage=1,
        seed=5,
        settings=flatten(new_config()),
        protocol="mosi",
        folder=str(tmp_path / "job"),
        initial=None,
        initial_sha256=None,
        threads=1,
        gpu=False,
    )


def changed(job: StageJob, *, settings: dict[str, Any] | None = None, **changes: Any) -> StageJob:
    return dataclasses.replace(job, settings={**job.settings, **(settings or {})}, **changes)


def run(runner: JobRunner, job: StageJob) -> list[dict[str, Any]]:
    """The results of a job's epochs."""
    runner.start(job)
    results = [runner.step()]
    while not results[-1]["done"]:
        results.append(runner.step())
    return results


def timeless(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results whose times are left out, and the checksums, since checkpoints hold the times."""
    return [
        {name: value for name, value in result.items() if name != "checkpoint_sha256"}
        | {"curve": [{k: v for k, v in metrics.items() if k not in TIMES} for metrics in result["curve"]]}
        for result in results
    ]


def assert_same_weights(ours: str, theirs: str) -> None:
    for name in ("best", "last", "previous"):
        one, other = (read_checkpoint(storage_path(folder) / f"{name}.safetensors") for folder in (ours, theirs))
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(tensor, other.tensors[key]) for key, tensor in one.tensors.items())


def test_result_of_each_epoch(job: StageJob, tiny_features: Features) -> None:
    results = run(JobRunner(tiny_features), job)
    assert [result["epoch"] for result in results] == [1, 2, 3]
    assert [result["done"] for result in results] == [False, False, True]
    for epoch, result in enumerate(results, start=1):
        assert result.keys() == {*KNOWN, "objective"}
        # Each has a curve of its own, which later epochs leave alone.
        assert [metrics["epoch"] for metrics in result["curve"]] == list(range(1, epoch + 1))
        assert result["objective"] == result["curve"][-1]["valid/pairwise_acc"]
        assert result["notes"] == []
        json.dumps(result, allow_nan=False)
    best = read_checkpoint(storage_path(job.folder) / "best.safetensors")
    assert results[-1]["checkpoint_sha256"] == best.sha256


def test_warm_runner_gives_what_a_fresh_process_gives(job: StageJob, tiny_features: Features, tmp_path: Path) -> None:
    """Bit for bit, whatever ran before: another stage, a job that was left halfway, one that diverged or failed."""
    runner = JobRunner(tiny_features)
    before = changed(job, folder=str(tmp_path / "before"), seed=9, settings={"model.modalities": "text"})
    run(runner, changed(before, stage=2))
    runner.start(before)
    runner.step()
    run(runner, changed(before, folder=str(tmp_path / "diverged"), settings={"stage1.head_lr": 1e30}))
    run(runner, changed(before, folder=str(tmp_path / "failed"), initial=str(tmp_path / "missing")))
    warm = run(runner, job)

    (tmp_path / "features.pkl").write_bytes(pickle.dumps(tiny_features))
    fresh = changed(job, folder=str(tmp_path / "fresh"))
    words = [sys.executable, "-c", FRESH, str(tmp_path / "features.pkl"), json.dumps(vars(fresh))]
    done = subprocess.run(words, check=True, timeout=120, capture_output=True, text=True)
    assert timeless(json.loads(done.stdout)) == timeless(warm)
    assert_same_weights(job.folder, fresh.folder)


def test_each_stage_has_its_dropout(job: StageJob, tiny_features: Features, tmp_path: Path) -> None:
    """Stage 2's where it has one, else Stage 1's."""
    settings = {**job.settings, "model.fusion_dropout": 0.3, "model.unified_dropout": 0.4}
    own = {**settings, "stage2.fusion_dropout": 0.0}
    for stage, given, expected in ((1, own, (0.3, 0.4)), (2, own, (0.0, 0.4)), (2, settings, (0.3, 0.4))):
        folder = str(tmp_path / f"{stage}")
        of_stage = dataclasses.replace(job, stage=stage, settings=given, folder=folder)
        model: Any = open_loop(of_stage, tiny_features).model
        assert (model.fusion_dropout.p, model.unified_dropout.p) == expected


def test_divergence_is_a_result(job: StageJob, tiny_features: Features) -> None:
    (result,) = run(JobRunner(tiny_features), changed(job, settings={"stage1.head_lr": 1e30}))
    assert result.keys() == {*KNOWN, "failure", "error", "state"}
    assert (result["state"], result["error"], result["done"]) == ("diverged", "DivergedError", True)
    assert "no longer finite after epoch 1" in result["failure"]
    assert (result["epoch"], result["curve"], result["checkpoint_sha256"]) == (1, [], None)


def test_divergence_keeps_the_epochs_before(job: StageJob, tiny_features: Features) -> None:
    runner = JobRunner(tiny_features)
    runner.start(job)
    first = runner.step()
    assert runner._loop is not None
    with torch.no_grad():
        runner._loop.model.unified.weight.fill_(torch.nan)
    result = runner.step()
    assert (result["state"], result["epoch"], result["curve"]) == ("diverged", 2, first["curve"])


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("damaged", "DamagedError", "damaged, its content has SHA-256"),
        ("truncated", "DamagedError", "not a whole checkpoint"),
        ("missing", "DamagedError", "no such checkpoint"),
        ("another", "DamagedError", "another file than the one on record"),
        ("other model", "DataError", "made for another model"),
    ],
)
def test_initial_weights_that_will_not_do_are_a_result(
    job: StageJob, tiny_features: Features, tmp_path: Path, fault: str, error: str, said: str
) -> None:
    """Its message names the file, and nothing is trained; the runner takes the next job."""
    runner = JobRunner(tiny_features)
    first = run(runner, job)
    initial = tmp_path / "finalist.safetensors"
    digest = export_weights(storage_path(job.folder) / "best.safetensors", storage_path(initial))
    content = initial.read_bytes()
    settings = {"model.modalities": "text"} if fault == "other model" else {}
    if fault == "damaged":
        initial.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif fault == "truncated":
        initial.write_bytes(content[:-1])
    elif fault == "missing":
        initial.unlink()
    elif fault == "another":
        digest = first[-1]["checkpoint_sha256"]
    second = changed(
        job,
        stage=2,
        folder=str(tmp_path / "second"),
        initial=str(initial),
        initial_sha256=digest,
        settings=settings,
    )
    (result,) = run(runner, second)
    assert (result["state"], result["error"], result["done"]) == ("failed", error, True)
    assert result["failure"].startswith(f"{initial}: {said}")
    assert (result["epoch"], result["curve"], result["checkpoint_sha256"]) == (1, [], None)
    assert not (tmp_path / "second").exists()
    initial.write_bytes(content)
    sound = run(runner, changed(second, initial_sha256=None, settings={"model.modalities": "all"}))
    assert [result["epoch"] for result in sound] == [1, 2, 3]


def test_settings_that_will_not_do_are_a_result(job: StageJob, tiny_features: Features) -> None:
    runner = JobRunner(tiny_features)
    for settings, error in (({"no.such": 1}, "ConfigError"), ({"train.device": "cuda"}, "ClusterError")):
        (result,) = run(runner, changed(job, settings=settings))
        assert (result["state"], result["error"]) == ("failed", error)


def test_unknown_error_is_not_a_result(job: StageJob, tiny_features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may not be sound: it is for whoever runs it to start another."""

    def broken(*_: Any) -> Any:
        raise OSError("input/output error")

    monkeypatch.setattr(job_module, "open_loop", broken)
    runner = JobRunner(tiny_features)
    runner.start(job)
    with pytest.raises(OSError, match="input/output"):
        runner.step()


def test_initial_weights_are_what_training_starts_from(job: StageJob, tiny_features: Features, tmp_path: Path) -> None:
    run(JobRunner(tiny_features), job)
    initial = storage_path(tmp_path / "finalist.safetensors")
    digest = export_weights(storage_path(job.folder) / "best.safetensors", initial)
    second = changed(job, stage=2, folder=str(tmp_path / "second"), initial=initial.uri, initial_sha256=digest)
    loop = open_loop(second, tiny_features)
    for name, tensor in read_checkpoint(initial).tensors.items():
        assert torch.equal(loop.model.state_dict()[name.removeprefix("model.")], tensor)
    with pytest.raises(DamagedError, match="another file than the one on record"):
        open_loop(changed(second, initial_sha256="0" * 64), tiny_features)


@pytest.mark.parametrize("damaged", [False, True])
def test_job_goes_on_from_its_folder(job: StageJob, tiny_features: Features, tmp_path: Path, damaged: bool) -> None:
    """In another runner; from the epoch before where the last one is damaged, which a note says each time."""
    whole = run(JobRunner(tiny_features), changed(job, folder=str(tmp_path / "whole")))
    first = JobRunner(tiny_features)
    first.start(job)
    first.step(), first.step()
    last = tmp_path / "job" / "last.safetensors"
    if damaged:
        last.write_bytes(last.read_bytes()[:-1])
    results = run(JobRunner(tiny_features), job)
    assert [result["epoch"] for result in results] == ([2, 3] if damaged else [3])
    assert timeless(results)[-1]["curve"] == timeless(whole)[-1]["curve"]
    assert_same_weights(job.folder, str(tmp_path / "whole"))
    for result in results:
        assert len(result["notes"]) == damaged
        assert all(note.startswith(f"{last}: not a whole checkpoint") for note in result["notes"])


def test_finished_job_tells_its_result_again(job: StageJob, tiny_features: Features) -> None:
    """As where the process died between the last epoch's end and its report."""
    runner = JobRunner(tiny_features)
    results = run(runner, job)
    assert run(runner, job) == [results[-1]]


def test_next_job_frees_what_the_last_one_held(job: StageJob, tiny_features: Features, tmp_path: Path) -> None:
    """Also where it diverged, whose error knows the loop."""
    runner = JobRunner(tiny_features)
    for index, settings in enumerate([{}, {"stage1.head_lr": 1e30}]):
        run(runner, changed(job, folder=str(tmp_path / str(index)), settings=settings))
        assert runner._loop is not None
        held = [weakref.ref(runner._loop), weakref.ref(runner._loop.model), weakref.ref(runner._loop.optimizer)]
        gc.disable()
        try:
            runner.start(job)
        finally:
            gc.enable()
        assert [reference() for reference in held] == [None] * 3


def test_job_is_plain_values(job: StageJob) -> None:
    """It is recorded and sent about as JSON."""
    assert StageJob(**json.loads(json.dumps(vars(job)))) == job


def test_epochs_that_nobody_was_told_of_are_told_first(job: StageJob, tiny_features: Features) -> None:
    """A process that dies between its checkpoint and its report: early stopping still hears of every epoch."""
    first = JobRunner(tiny_features)
    first.start(job)
    told = [first.step(), first.step()]
    second = JobRunner(tiny_features)
    second.start(changed(job, reported=1))
    again = [second.step(), second.step()]
    assert [result["epoch"] for result in again] == [2, 3]
    assert again[0]["curve"] == told[1]["curve"]
    assert again[0]["objective"] == told[1]["objective"]
    assert not again[0]["done"]
