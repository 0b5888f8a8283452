"""What a GPU computes, against the CPU and against itself; shares of one GPU. Run by name: -m gpu."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.train.assemble import initial_model
from grcf_ray.train.job import JobRunner, StageJob
from grcf_ray.train.stage import StageLoop, predict, use_deterministic_torch
from tests.search.conftest import Run

if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from grcf_ray.search.stages import Search

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]

CPU, GPU = torch.device("cpu"), torch.device("cuda")
UNEQUAL = ("seconds", "utterances_per_s", "pairs_per_s", "utterance_passes")
"""Times, and what several workers encode twice."""


@pytest.fixture
def config(tiny_backbone: Path) -> RunConfig:
    return build_config(
        {
            "model.backbone": str(tiny_backbone),
            "model.text_vector": "mean",
            "pairs.pairs_per_epoch": 100,
            "pairs.pairs_per_group": 12,
            "pairs.groups_per_step": 2,
            "pairs.micro_batch_tokens": 64,
            "stage1.epochs": 3,
            "stage1.head_lr": 3e-3,
            "stage1.encoder_lr": 1e-3,
            "train.precision": "float64",
        }
    )


def changed(config: RunConfig, settings: dict[str, Any]) -> RunConfig:
    return build_config({**flatten(config), **settings})


def loop_on(device: torch.device, features: Features, config: RunConfig) -> StageLoop:
    use_deterministic_torch(1)
    model = initial_model(config.model, features, seed=1)
    return StageLoop(model, features, config, 1, seed=1, protocol="mosi", device=device)


def gradient(loop: StageLoop) -> Tensor:
    """Of a step without dropout, whose masks no two devices draw alike."""
    loop.model.eval()
    loop.backward(next(iter(loop.steps())))
    return torch.cat([p.grad.reshape(-1).double().cpu() for p in loop.model.parameters() if p.grad is not None])


def scores(loop: StageLoop) -> Tensor:
    score_N = predict(loop.model, loop.features, loop.features.valid, device=loop.device, token_budget=64)
    return torch.from_numpy(score_N)


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("activation_tokens", [None, 8])
def test_a_gpu_has_the_gradient_of_the_cpu(
    tiny_features: Features, config: RunConfig, activation_tokens: int | None
) -> None:
    """With activations kept, and with the encoder run twice."""
    twice = changed(config, {"pairs.activation_tokens": activation_tokens})
    actual = gradient(loop_on(GPU, tiny_features, twice))
    assert relative(actual, gradient(loop_on(CPU, tiny_features, config))) < 1e-11


def test_bfloat16_is_the_default_of_a_gpu_and_near_the_exact_gradient(
    tiny_features: Features, config: RunConfig
) -> None:
    loop = loop_on(GPU, tiny_features, changed(config, {"train.precision": "auto"}))
    with loop.autocast():
        assert torch.isautocast_enabled("cuda") and torch.getautocast_dtype("cuda") == torch.bfloat16
    difference = relative(gradient(loop), gradient(loop_on(CPU, tiny_features, config)))
    assert 1e-5 < difference < 0.1


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_a_training_repeats_bit_for_bit(tiny_features: Features, config: RunConfig, precision: str) -> None:
    def curve() -> list[dict[str, Any]]:
        loop = loop_on(GPU, tiny_features, changed(config, {"train.precision": precision}))
        return comparable(list(loop))

    first = curve()
    assert first == curve()
    assert first[-1]["valid/pairwise_acc"] > 0.7


def comparable(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in epoch.items() if name not in UNEQUAL} for epoch in curve]


def job(config: RunConfig, folder: Path) -> StageJob:
    return StageJob(
        stage=1,
        seed=5,
        settings=flatten(config),
        protocol="mosi",
        folder=str(folder),
        initial=None,
        initial_sha256=None,
        threads=1,
        gpu=1.0,
    )


def finish(runner: Any, work: StageJob) -> list[dict[str, Any]]:
    """The curve of a job, run to its end."""
    runner.start(work)
    while not (result := runner.step())["done"]:
        pass
    assert "failure" not in result, result
    curve: list[dict[str, Any]] = result["curve"]
    return comparable(curve)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("workers", "share"),
    [
        pytest.param(2, 0.5, id="gloo, two to a GPU"),
        pytest.param(1, 1.0, id="NCCL"),
        pytest.param(
            2,
            1.0,
            id="NCCL, two ranks",
            marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA GPUs"),
        ),
    ],
)
def test_a_group_of_workers_does_what_one_process_does(
    tiny_features: Features, config: RunConfig, tmp_path: Path, workers: int, share: float
) -> None:
    from grcf_ray.train import distributed

    still = changed(config, {f"model.{name}_dropout": 0.0 for name in ("fusion", "unified", "modality")})
    still = changed(still, {"model.frozen_layers": "all"})
    alone = finish(JobRunner(tiny_features), job(still, tmp_path / "alone"))
    features = distributed.share(tiny_features)
    with distributed.WorkerGroup(
        features, workers=workers, resources={"CPU": 1.0, "GPU": share}, interfaces={}
    ) as group:
        together = finish(group, job(still, tmp_path / "group"))
    for actual, expected in zip(together, alone, strict=True):
        assert actual == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_trials_share_a_gpu_to_the_end(make_search: Callable[..., Search]) -> None:
    search = make_search({"search.gpus_per_worker": 0.5, "train.device": "cuda"}, concurrent=2)
    winner = search.run()
    trials = [trial for stage in (1, 2) for trial in search.record.trials(stage)]
    assert winner.stage == 2
    assert search.complete
    assert {trial.state for trial in trials} <= {"complete", "pruned"}
    assert {trial.state for trial in trials if trial.epoch == search.epochs(trial.stage)} == {"complete"}


def test_a_search_takes_the_gpu_without_being_asked(run: Run, tiny_argv: list[Any], ray_session: None) -> None:
    small = ["--stage1-trials", 2, "--stage2-trials", 2, "--finalists", 1, "--set", "search.ridge_baseline=false"]
    code, out, err = run(*tiny_argv, *small, "--dry-run", "--json")
    assert code == 0, err
    assert " 1 CPU + 1 GPU each" in err
    assert json.loads(out)["settings"]["search.gpus_per_worker"] == 1.0
    code, _, err = run(*tiny_argv, *small)
    assert code == 0, err
    [described] = Path(tiny_argv[-1]).glob("*/run.json")
    assert json.loads(described.read_text())["settings"]["search.gpus_per_worker"] == 1.0
    # A later start means the recorded value, and the run is finished.
    assert run(*tiny_argv, *small)[0] == 0
    assert run(*tiny_argv, *small, "--gpus-per-worker", 0)[0] == 2


def test_the_command_calibrates_to_its_end(run: Run, tiny_argv: list[Any], ray_session: None) -> None:
    code, out, err = run(*tiny_argv, "--calibrate", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["suggested"]["gpus"] > 0
    assert [way["fault"] for way in answer["ways"]] == [None] * len(answer["ways"])


@pytest.mark.usefixtures("ray_session")
def test_calibration_times_shares_of_a_gpu(
    tiny_features: Features, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grcf_ray.search import calibration

    monkeypatch.setattr(calibration, "SECONDS", 0.05)
    settings = {"train.precision": "auto", "search.gpus_per_worker": 1.0}
    ways = calibration.calibrate(tiny_features, changed(config, settings), lambda _: None)
    assert [way.trials for way in ways][:2] == [1, 2]
    assert all(way.gpus > 0 and way.rate for way in ways), [dataclasses.asdict(way) for way in ways]
