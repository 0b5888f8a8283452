from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from safetensors.torch import load_file
from same_training import assert_same_checkpoints, best_in, timeless
from waiting import JOB_S, wait_for

from grcf_ray import cluster, console
from grcf_ray.api.training import figures
from grcf_ray.cli.train import app
from grcf_ray.config import ABLATIONS
from grcf_ray.data.store import DatasetStore
from grcf_ray.storage import storage_path
from grcf_ray.train import checkpoint, ray_job
from grcf_ray.train.checkpoint import read_state
from grcf_ray.train.stage import StageLoop

Train = Callable[..., int]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def space(tmp_path: Path, tiny_backbone: Path) -> Path:
    """The smallest search space that both stages learn something in."""
    content: dict[str, Any] = {
        "dataset": "tiny",
        "fixed": {
            "model.backbone": str(tiny_backbone),
            "model.text_vector": "mean",
            "pairs.pairs_per_epoch": 48,
            "pairs.pairs_per_group": 12,
            "pairs.groups_per_step": 2,
            "train.precision": "float32",
            "stage1.epochs": 2,
            "stage2.epochs": 2,
        },
        "stage1": {"stage1.head_lr": {"low": 1e-4, "high": 1e-2, "log": True, "start": 3e-3}},
        "stage2": {"stage2.head_lr": {"low": 1e-4, "high": 1e-2, "log": True, "start": 2e-3}},
    }
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        console.run(app, words)
    code = caught.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def train(space: Path, tiny_store: DatasetStore) -> Train:
    """Trains on the tiny data; the exit code."""

    def command(*words: str, data: Path | None = None, out: str = "out") -> int:
        place = str(data or tiny_store.folder)
        options = ("--space", str(space), "--data", place, "--out", out, "--threads", "1")
        return run("--dataset", "tiny", *options, *words)

    return command


def curve(stage: int, out: str = "out") -> list[dict[str, Any]]:
    return timeless(read_state(storage_path(out) / f"stage{stage}" / "last.safetensors")["curve"])


@pytest.mark.parametrize(("dataset", "total"), [("mosi", "186,585,724"), ("mosei", "186,576,496")])
def test_model_is_printed_without_data_or_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dataset: str, total: str
) -> None:
    def unwanted(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", unwanted)
    assert run("--dataset", dataset, "--print-model") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["component", "parameters"]
    assert lines[1].split() == ["Text", "Encoder", "183,831,552"]
    assert lines[-1].split() == ["GRCF", "(total)", total]
    assert len(lines) == 12


def test_model_of_own_data_and_chosen_modalities(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--print-model", "--set", "model.modalities=text+audio") == 0
    lines = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["Audio Pooler"], lines["Fusion Layer"]) == ("6", f"{64 * 32 + 32:,}")
    assert "Vision Pooler" not in lines
    assert not Path("out").exists()


def test_configuration_is_printed(space: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The space's starting point, the ablation over it, --backbone and --set over both. Data are not needed."""
    words = ("--ablation", "direct-mae", "--set", "stage2.mae_weight=2", "--set", "seed=7", "--backbone", "a: b")
    assert run("--dataset", "tiny", "--space", str(space), "--print-config", *words) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["stage2"] == {
        **printed["stage2"],
        "epochs": 2,
        "head_lr": 2e-3,
        "mae_weight": 2.0,
        "group_weight": 0.0,
        "boundary_weight": 0.0,
    }
    assert (printed["stage1"]["epochs"], printed["stage1"]["head_lr"]) == (0, 3e-3)
    assert (printed["seed"], printed["model"]["backbone"]) == (7, "a: b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["space.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ablation", "no-stage3"], "'no-stage3'; did you mean no-stage"),
        (["--set", "stage1.epoch=3"], "stage1.epoch: no such setting; did you mean stage1.epochs?"),
        (["--set", "ranking.base_margin=6.9"], "the settings contradict themselves\n  ranking.base_margin + 4"),
        (["--backbone", "nosuch/backbone"], "backbone nosuch/backbone is not on this machine"),
        (["--set", "model.frozen_layers=3"], "model.frozen_layers = 3: the backbone has 2 layers"),
        (["--label-range", "1", "5"], "was imported with --label-range -3 3"),
    ],
)
def test_settings_that_cannot_be(
    train: Train, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert train(*words) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == "" and "Traceback" not in err
    assert not Path("out").exists()


def test_data_that_are_not_there(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--label-range", "-3", "3", data=Path("nosuch")) == 3
    assert "nosuch does not exist" in capsys.readouterr().err
    assert run("--dataset", "mossi") == 2
    assert "unknown data set 'mossi'. Did you mean mosi?" in capsys.readouterr().err


def test_gpu_that_is_not_there(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train("--set", "train.device=cuda") == 5
    assert "train.device = cuda, but there is no GPU" in capsys.readouterr().err


def test_both_stages_are_trained(
    train: Train, tiny_store: DatasetStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a store whose test split is not there."""
    data = tmp_path / "data"
    shutil.copytree(tiny_store.folder, data)
    (data / "test.parquet").unlink()
    assert train(data=data) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split(",")[0].rsplit(" ", 1)[0] for line in lines[:2]] == [
        "stage 1: best epoch",
        "stage 2: best epoch",
    ]
    assert lines[2:] == ["checkpoints: out"]
    *notes, few = [line for line in err.splitlines() if line.startswith("Note: ")]
    assert few.startswith("Note: the valid split has 16 utterances")
    assert notes == [f"Note: {note}" for note in tiny_store.info.notes]
    progress = err.splitlines()[len(notes) + 1 :]
    assert [line.split("  ")[:2] for line in progress] == [
        [f"stage {stage}", f"epoch {epoch}/2"] for stage in (1, 2) for epoch in (1, 2)
    ]
    for stage, metric in ((1, "pairwise_acc"), (2, "mae")):
        best = read_state(storage_path(best_in(Path("out", f"stage{stage}"))))["curve"][-1]
        title = {"pairwise_acc": "PairwiseAcc", "mae": "MAE"}[metric]
        assert f"best epoch {best['epoch']}," in lines[stage - 1]
        assert f"{title} {best[f'valid/{metric}']:.4f}" in lines[stage - 1]


def test_foreign_file_is_trained_on(space: Path, tiny_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its name, and the range of its labels, are said; the same command with them resumes."""
    words = ("--data", str(tiny_csv), "--space", str(space), "--out", "csv", "--threads", "1")
    assert run(*words, "--text-column", "text") == 0
    assert "Note: labels from -3 to 3" in capsys.readouterr().err
    assert len(curve(2, "csv")) == 2
    assert run("--dataset", tiny_csv.stem, "--label-range", "-3", "3", *words) == 0


@pytest.mark.parametrize("start", ["best", "last"])
def test_stage_2_starts_from_the_chosen_checkpoint(train: Train, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """The validation of Stage 1 likes its first epoch best."""
    told = iter([0.9, 0.1])
    real = StageLoop._validate

    def validate(loop: StageLoop) -> dict[str, float]:
        return real(loop) | ({"valid/pairwise_acc": next(told)} if loop.stage == 1 else {})

    starts: list[dict[str, torch.Tensor]] = []
    init = StageLoop.run_epoch

    def run_epoch(loop: StageLoop) -> dict[str, Any]:
        if loop.stage == 2 and loop.epoch == 0:
            starts.append({name: tensor.clone() for name, tensor in checkpoint.trained_tensors(loop.model).items()})
        return init(loop)

    monkeypatch.setattr(StageLoop, "_validate", validate)
    monkeypatch.setattr(StageLoop, "run_epoch", run_epoch)
    assert train("--set", f"stage2.start={start}") == 0
    folder = Path("out", "stage1")
    best, last = load_file(best_in(folder)), load_file(folder / "last.safetensors")
    chosen, other = (best, last) if start == "best" else (last, best)
    assert all(torch.equal(tensor, chosen[f"model.{name}"]) for name, tensor in starts[0].items())
    assert not torch.equal(starts[0]["fusion.weight"], other["model.fusion.weight"])


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablations_run(train: Train, ablation: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--ablation", ablation, "--set", "ranking.intra_margin=0.3") == 0
    stages = {"no-stage1": [2], "direct-mae": [2], "no-stage2": [1]}.get(ablation, [1, 2])
    assert [stage for stage in (1, 2) if list(Path("out", f"stage{stage}").glob("best-*"))] == stages
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()[:-1]] == [
        f"stage {stage}" for stage in stages
    ]
    weights = [metrics["pair_weight"] for stage in stages for metrics in curve(stage)]
    assert all((weight == pytest.approx(1)) == (ablation == "no-advantage") for weight in weights)
    settings = json.loads(Path("out/train.json").read_text())
    assert settings.items() >= ABLATIONS[ablation].items()
    if ablation == "static-margin":
        assert train("--set", "ranking.intra_margin=0.3", out="full") == 0
        full, static = curve(1, "full")[0], curve(1)[0]
        assert full["loss/group"] != static["loss/group"]
        assert full["lr/head"] == static["lr/head"]
    if ablation == "direct-mae":
        assert all(metrics["loss/total"] == pytest.approx(metrics["loss/mae"]) for metrics in curve(2))


def test_same_command_goes_on_and_then_ends_at_once(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted after each of the four epochs in turn, it ends where an uninterrupted one does."""
    assert train(out="whole") == 0
    whole = capsys.readouterr().out.splitlines()
    real = StageLoop.run_epoch
    ran = []

    def one_epoch(loop: StageLoop) -> dict[str, Any]:
        if ran and ran[-1] is not None:
            raise KeyboardInterrupt
        metrics = real(loop)
        ran[-1:] = [(loop.stage, loop.epoch)]
        return metrics

    monkeypatch.setattr(StageLoop, "run_epoch", one_epoch)
    order = []
    for code in (130, 130, 130, 0):
        ran[:] = [None]
        assert train() == code
        order.append(ran[-1])
    assert order == [(1, 1), (1, 2), (2, 1), (2, 2)]
    out, err = capsys.readouterr()
    assert out.splitlines()[-3:-1] == whole[:2]
    assert "stage 1: resumes after epoch 1" in err
    for stage in (1, 2):
        assert_same_checkpoints(Path("out", f"stage{stage}"), Path("whole", f"stage{stage}"))

    ran[:] = [(0, 0)]
    assert train() == 0, "every epoch has run"
    assert capsys.readouterr().out.splitlines()[:2] == whole[:2]


def test_other_settings_or_data_in_the_same_folder_are_refused(
    train: Train, tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train("--set", "stage1.group_weight=0.5", "--set", "seed=1") == 2
    err = capsys.readouterr().err
    assert "out holds checkpoints of other settings:\n  seed: 42 -> 1\n  stage1.group_weight: 0.9 -> 0.5\n" in err
    assert "Give another folder: --out DIR" in err
    changed = tmp_path / "changed.csv"
    changed.write_text(tiny_csv.read_text().replace("great", "good"))
    assert train("--label-range", "-3", "3", data=changed) == 2
    assert "out holds checkpoints of other settings:\n  data: " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


def test_divergence_is_an_error_with_a_code(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--set", "stage1.head_lr=1e30") == 4
    assert "no longer finite" in capsys.readouterr().err


WITHOUT_DROPOUT = [
    word
    for setting in ("frozen_layers=2", "fusion_dropout=0", "unified_dropout=0")
    for word in ("--set", f"model.{setting}")
]


@pytest.mark.integration
def test_workers_go_on_where_one_process_stopped(
    ray_session: None, train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers after an epoch of one process: both stages end where one process alone takes them."""
    words = ("--set", "train.precision=float64", *WITHOUT_DROPOUT)
    assert train(*words, out="whole") == 0
    lines = capsys.readouterr().out.splitlines()
    real = StageLoop.run_epoch

    def one_epoch(loop: StageLoop) -> dict[str, Any]:
        if loop.epoch:
            raise KeyboardInterrupt
        return real(loop)

    with monkeypatch.context() as patch:
        patch.setattr(StageLoop, "run_epoch", one_epoch)
        assert train(*words) == 130
    capsys.readouterr()
    assert train(*words, "--workers", "2") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [*lines[:2], "checkpoints: out"]
    told = [line.split("  ")[:2] for line in err.splitlines() if not line.startswith("Note: ")]
    epochs = [["stage 1", "epoch 2/2"], ["stage 2", "epoch 1/2"], ["stage 2", "epoch 2/2"]]
    assert told == [["Starting 2 workers"], ["stage 1: resumes after epoch 1"], *epochs]
    for stage in (1, 2):
        resumed, uninterrupted = curve(stage), curve(stage, "whole")
        assert len(resumed) == len(uninterrupted) == 2
        for metrics, reference in zip(resumed, uninterrupted, strict=True):
            # An utterance that both workers need is encoded by both.
            assert metrics.pop("utterance_passes") >= reference.pop("utterance_passes")
            assert metrics == pytest.approx(reference, rel=1e-9, abs=1e-12)

    assert train(*words, "--workers", "2", "--set", "stage2.epochs=3") == 2, "workers are no setting, epochs are"
    assert "stage2.epochs: 2 -> 3\nGive another folder" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.timeout(2 * JOB_S)
def test_interrupted_and_killed_workers_end_where_others_do(
    ray_session: None,
    train: Train,
    at_epoch: Callable[..., None],
    kill_a_worker: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C in Stage 1, and the death of a worker in Stage 2, after which Ray Train starts the workers again."""
    words = ("--workers", "2", "--set", "pairs.pairs_per_epoch=2400")
    assert train(*words, out="whole") == 0
    lines = capsys.readouterr().out.splitlines()
    before = signal.getsignal(signal.SIGINT)
    at_epoch(1, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train(*words) == 130
    assert signal.getsignal(signal.SIGINT) is before
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], "the end of the workers")
    # Ray Train overwrites its list of checkpoints, and was killed meanwhile.
    Path("out/checkpoint_manager_snapshot.json").write_text('{"ray_version": ')
    capsys.readouterr()
    at_epoch(2, 1, kill_a_worker)
    assert train(*words) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == lines[:2]
    told = [
        line
        for line in err.splitlines()
        if not line.startswith(("Note: ", "stage 1  ", "stage 2  ")) and "(raylet)" not in line
    ]
    assert told[:2] == ["Starting 2 workers", "stage 1: resumes after epoch 1"]
    assert "workers exited unexpectedly (worker" in told[2] and "ActorDiedError" in told[2]
    # It is in Stage 2 that they go on.
    assert told[3:] == ["stage 2: resumes after epoch 1"]
    for stage in (1, 2):
        assert_same_checkpoints(Path("out", f"stage{stage}"), Path("whole", f"stage{stage}"))
    snapshot = json.loads(Path("out/checkpoint_manager_snapshot.json").read_text())
    assert snapshot["latest_checkpoint_result"]["checkpoint_dir_name"] == "stage2"


@pytest.mark.integration
def test_workers_that_die_too_often_are_told_of(
    ray_session: None,
    train: Train,
    at_epoch: Callable[..., None],
    kill_a_worker: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ray_job, "RESTARTS", 0)
    at_epoch(1, 1, kill_a_worker)
    assert train("--workers", "2", "--set", "pairs.pairs_per_epoch=2400") == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert "workers exited unexpectedly (worker" in err and "resume with the same command" in err
    assert "internal error" not in err


def test_more_workers_than_groups_are_refused_before_ray_starts(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unwanted() -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr(cluster, "connect", unwanted)
    assert train("--workers", "3") == 2
    assert "pairs.groups_per_step=3" in capsys.readouterr().err
    assert train("--workers", "2", "--set", "train.device=cuda", "--gpus-per-worker", "0") == 2
    assert "--gpus-per-worker 1" in capsys.readouterr().err
    assert train("--workers", "2", "--gpus-per-worker", "2") == 2
    assert "a process drives one GPU" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "lack"),
    [(["--cpus-per-worker", "4096"], "no node has more than"), (["--gpus-per-worker", "1"], "no node has a GPU")],
)
def test_workers_that_fit_no_machine_are_refused(
    ray_session: None, train: Train, capsys: pytest.CaptureFixture[str], words: list[str], lack: str
) -> None:
    assert train("--workers", "2", *words) == 5
    assert lack in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.integration
def test_one_process_needs_no_ray(space: Path, tiny_store: DatasetStore) -> None:
    code = (
        "import sys\n"
        "from grcf_ray import console\n"
        "from grcf_ray.cli.train import app\n"
        "try:\n"
        "    console.run(app)\n"
        "finally:\n"
        "    assert 'ray' not in sys.modules\n"
    )
    words = ["--dataset", "tiny", "--space", str(space), "--data", str(tiny_store.folder), "--out", "out"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "checkpoints: out"


def test_an_epoch_shows_the_figures_of_its_task() -> None:
    scores = {"valid/pairwise_acc": 0.7, "valid/mae": 0.9, "valid/corr": None}
    assert figures(scores) == ["PairwiseAcc 0.7000", "MAE 0.9000"]
    classes = {"valid/pairwise_acc": 0.7, "valid/bce": 0.6, "valid/acc2": 0.65, "valid/auroc": 0.7}
    assert figures(classes) == ["PairwiseAcc 0.7000", "BCE 0.6000", "Acc2 0.6500", "AUROC 0.7000"]
