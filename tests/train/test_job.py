"""Jobs on one warm runner: each is as if it had a process of its own."""

from __future__ import annotations

import dataclasses
import datetime
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
from same_training import assert_same_checkpoints, best_in, checkpoint_in, timeless
from torch import distributed as dist

from grcf_ray.config import flatten
from grcf_ray.data.features import Features
from grcf_ray.storage import storage_path
from grcf_ray.train import job as job_module
from grcf_ray.train.checkpoint import export_weights, read_checkpoint
from grcf_ray.train.job import JobRunner, StageJob, open_loop
from grcf_ray.train.stage import StageLoop

if TYPE_CHECKING:
    from tests.train.conftest import NewConfig

Trained = tuple[StageJob, list[dict[str, Any]]]
KNOWN = {"epoch", "resumed", "curve", "notes", "checkpoint", "checkpoint_sha256", "done"}

FRESH = """
import json, pickle, sys
from pathlib import Path
from grcf_ray.train.job import JobRunner, StageJob

runner = JobRunner(pickle.loads(Path(sys.argv[1]).read_bytes()))
runner.start(StageJob(**json.loads(sys.argv[2])))
results = [runner.step()]
while not results[-1]["done"]:
    results.append(runner.step())
assert "ray" not in sys.modules
print(json.dumps(results))
"""


def new_job(new_config: NewConfig, folder: Path) -> StageJob:
    """Stage 1 with dropout, three epochs."""
    return StageJob(
        stage=1,
        seed=5,
        settings=flatten(new_config()),
        protocol="mosi",
        folder=str(folder),
        keeps_last=True,
        initial=None,
        initial_sha256=None,
        threads=1,
        gpu=False,
    )


@pytest.fixture
def job(new_config: NewConfig, tmp_path: Path) -> StageJob:
    return new_job(new_config, tmp_path / "job")


def changed(job: StageJob, *, settings: dict[str, Any] | None = None, **changes: Any) -> StageJob:
    return dataclasses.replace(job, settings={**job.settings, **(settings or {})}, **changes)


def run(runner: JobRunner, job: StageJob) -> list[dict[str, Any]]:
    """The results of a job's epochs."""
    runner.start(job)
    results = [runner.step()]
    while not results[-1]["done"]:
        results.append(runner.step())
    return results


def comparable(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results without times, and without the checkpoint, which holds the times and is written in the background."""
    return [
        {name: value for name, value in result.items() if not name.startswith("checkpoint")}
        | {"curve": timeless(result["curve"])}
        for result in results
    ]


@pytest.fixture(scope="module")
def trained(new_config: NewConfig, tiny_features: Features, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A finished job, to be read only, and its results."""
    job = new_job(new_config, tmp_path_factory.mktemp("trained"))
    return job, run(JobRunner(tiny_features), job)


def test_result_of_each_epoch(trained: Trained) -> None:
    job, results = trained
    assert [result["epoch"] for result in results] == [1, 2, 3]
    assert [result["done"] for result in results] == [False, False, True]
    for epoch, result in enumerate(results, start=1):
        assert result.keys() == {*KNOWN, "objective"}
        # Each has a curve of its own, which later epochs leave alone.
        assert [metrics["epoch"] for metrics in result["curve"]] == list(range(1, epoch + 1))
        assert result["objective"] == result["curve"][-1]["valid/pairwise_acc"]
        assert result["notes"] == []
        json.dumps(result, allow_nan=False)
    best = best_in(Path(job.folder))
    assert (results[-1]["checkpoint"], results[-1]["checkpoint_sha256"]) == (best.name, checkpoint_in(best).sha256)


def test_warm_runner_gives_what_a_fresh_process_gives(job: StageJob, tiny_features: Features, tmp_path: Path) -> None:
    """Bit for bit, whatever ran before: another stage, a job that was left halfway, one that diverged or failed."""
    runner = JobRunner(tiny_features)
    before = changed(job, folder=str(tmp_path / "before"), seed=9, settings={"model.modalities": "text"})
    run(runner, changed(before, stage=2))
    runner.start(before)
    runner.step()
    runner.finish(keep=False)
    assert not Path(before.folder).exists()
    run(runner, changed(before, folder=str(tmp_path / "diverged"), settings={"stage1.head_lr": 1e30}))
    run(runner, changed(before, folder=str(tmp_path / "failed"), initial=str(tmp_path / "missing")))
    warm = run(runner, job)

    (tmp_path / "features.pkl").write_bytes(pickle.dumps(tiny_features))
    fresh = changed(job, folder=str(tmp_path / "fresh"))
    words = [sys.executable, "-c", FRESH, str(tmp_path / "features.pkl"), json.dumps(vars(fresh))]
    done = subprocess.run(words, check=True, timeout=120, capture_output=True, text=True)
    assert comparable(json.loads(done.stdout)) == comparable(warm)
    assert_same_checkpoints(Path(job.folder), Path(fresh.folder))


def test_each_stage_has_its_dropout(job: StageJob, tiny_features: Features, tmp_path: Path) -> None:
    """Stage 2's where it has one, else Stage 1's."""
    settings = {**job.settings, "model.fusion_dropout": 0.3, "model.unified_dropout": 0.4}
    override = {**settings, "stage2.fusion_dropout": 0.0}
    for stage, given, expected in ((1, override, (0.3, 0.4)), (2, override, (0.0, 0.4)), (2, settings, (0.3, 0.4))):
        folder = str(tmp_path / f"{stage}")
        of_stage = dataclasses.replace(job, stage=stage, settings=given, folder=folder)
        model: Any = open_loop(of_stage, tiny_features).model
        assert (model.fusion_dropout.p, model.unified_dropout.p) == expected


def test_divergence_is_a_result(job: StageJob, tiny_features: Features, tmp_path: Path) -> None:
    (result,) = run(JobRunner(tiny_features), changed(job, settings={"stage1.head_lr": 1e30}))
    assert not (tmp_path / "job").exists()
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
        ("missing", "DamagedError", "no such checkpoint"),
        ("another", "DamagedError", "not the recorded checkpoint"),
        ("other model", "DataError", "made for another model"),
    ],
)
def test_initial_weights_that_will_not_do_are_a_result(
    trained: Trained, tiny_features: Features, tmp_path: Path, fault: str, error: str, said: str
) -> None:
    """Its message names the file, and nothing is trained; the runner takes the next job."""
    job, _ = trained
    initial = tmp_path / "finalist.safetensors"
    digest = export_weights(storage_path(best_in(Path(job.folder))), storage_path(initial))
    content = initial.read_bytes()
    settings = {"model.modalities": "text"} if fault == "other model" else {}
    if fault == "damaged":
        initial.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif fault == "missing":
        initial.unlink()
    elif fault == "another":
        digest = "ab" * 32
    given: dict[str, Any] = {"stage": 2, "folder": str(tmp_path / "second"), "initial": str(initial)}
    runner = JobRunner(tiny_features)
    (result,) = run(runner, changed(job, **given, initial_sha256=digest, settings=settings))
    assert (result["state"], result["error"], result["done"]) == ("failed", error, True)
    assert result["failure"].startswith(f"{initial}: {said}")
    assert (result["epoch"], result["curve"], result["checkpoint_sha256"]) == (1, [], None)
    assert not (tmp_path / "second").exists()
    initial.write_bytes(content)
    runner.start(changed(job, **given))
    assert runner.step()["epoch"] == 1


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


def test_initial_weights_are_what_training_starts_from(
    trained: Trained, tiny_features: Features, tmp_path: Path
) -> None:
    initial = storage_path(tmp_path / "finalist.safetensors")
    digest = export_weights(storage_path(best_in(Path(trained[0].folder))), initial)
    folder = str(tmp_path / "second")
    second = changed(trained[0], stage=2, folder=folder, initial=initial.uri, initial_sha256=digest)
    loop = open_loop(second, tiny_features)
    for name, tensor in read_checkpoint(initial).tensors.items():
        assert torch.equal(loop.model.state_dict()[name.removeprefix("model.")], tensor)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_job_resumes_from_its_folder(
    job: StageJob, trained: Trained, tiny_features: Features, tmp_path: Path, damaged: bool
) -> None:
    """In another runner; from the epoch before if the newest checkpoint is damaged, as a note of each epoch says."""
    first = JobRunner(tiny_features)
    first.start(job)
    first.step(), first.step()
    first.close()
    newest = tmp_path / "job" / "whole-00002.safetensors"
    if damaged:
        newest.write_bytes(newest.read_bytes()[:-1])
    results = run(JobRunner(tiny_features), job)
    assert [result["epoch"] for result in results] == ([2, 3] if damaged else [3])
    assert [result["resumed"] for result in results] == ([1, 1] if damaged else [2])
    assert comparable(results)[-1]["curve"] == comparable(trained[1])[-1]["curve"]
    assert_same_checkpoints(Path(job.folder), Path(trained[0].folder))
    for result in results:
        assert len(result["notes"]) == damaged
        assert all(note.startswith(f"{newest}: not a whole checkpoint") for note in result["notes"])


def test_epochs_that_were_reported_and_then_lost_are_trained_again(
    job: StageJob, trained: Trained, tiny_features: Features
) -> None:
    """A lost node: the next attempt reports the first epoch that the search has not heard of."""
    results = run(JobRunner(tiny_features), changed(job, reported=2))
    assert [(result["epoch"], result["resumed"]) for result in results] == [(3, 0)]
    assert comparable(results)[-1]["curve"] == comparable(trained[1])[-1]["curve"]
    assert_same_checkpoints(Path(job.folder), Path(trained[0].folder))


def test_epochs_that_nobody_was_told_of_are_told_first(trained: Trained, tiny_features: Features) -> None:
    """A process that dies between its checkpoint and its report: early stopping still hears of every epoch."""
    job, told = trained
    assert run(JobRunner(tiny_features), job) == [told[-1] | {"resumed": 3}]
    again = run(JobRunner(tiny_features), changed(job, reported=1))
    assert [result["epoch"] for result in again] == [2, 3]
    assert [result["curve"] for result in again] == [result["curve"] for result in told[1:]]
    assert [result["objective"] for result in again] == [result["objective"] for result in told[1:]]
    assert [result["done"] for result in again] == [False, True]


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


def test_waits_for_other_ranks_follow_the_epochs(
    job: StageJob, tiny_features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank waits as long as the process group was made to, until an epoch tells how long one takes."""
    run_epoch = StageLoop.run_epoch

    def slow(loop: StageLoop) -> dict[str, Any]:
        metrics = run_epoch(loop)
        metrics["seconds"] = 90.0 if loop.epoch == 1 else 1.0
        return metrics

    monkeypatch.setattr(StageLoop, "run_epoch", slow)
    dist.init_process_group(
        "gloo",
        init_method=(tmp_path / "meet").as_uri(),
        rank=0,
        world_size=1,
        timeout=datetime.timedelta(seconds=7000),
    )
    try:
        group = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        runner, limits = JobRunner(tiny_features), []
        runner.start(job)
        for _ in range(3):
            runner.step()
            limits.append(group.options._timeout.total_seconds())
        assert limits == [7000.0, 900.0, 600.0]
    finally:
        dist.destroy_process_group()
