"""A stage loop on the tiny data set, small enough to run many of."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import nn

from grcf_ray.config import RunConfig, build_config
from grcf_ray.data.features import Features
from grcf_ray.storage import storage_path
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.stage import StageLoop

NewConfig = Callable[..., RunConfig]
NewLoop = Callable[..., StageLoop]


@pytest.fixture(scope="session")
def new_config(tiny_backbone: Path) -> NewConfig:
    """Makes a configuration of three steps an epoch, of which the last is short and its last group too."""

    def make(**changes: Any) -> RunConfig:
        settings = {
            "model.backbone": str(tiny_backbone),
            "model.text_vector": "mean",
            "pairs.pairs_per_epoch": 100,
            "pairs.pairs_per_group": 12,
            "pairs.groups_per_step": 3,
            "pairs.micro_batch_tokens": 64,
            "stage1.epochs": 3,
            "stage2.epochs": 3,
            "stage1.head_lr": 3e-3,
            "stage1.encoder_lr": 1e-3,
            "stage1.reg_weight": 0.6,
            "stage1.reg_margin": 0.03,
            "stage2.head_lr": 3e-3,
            "stage2.encoder_top_lr": 1e-3,
            "stage2.encoder_base_lr": 3e-4,
            "stage2.mae_weight": 1.0,
            "checkpoint.minutes": 0,
        }
        return build_config(settings | {path.replace("__", "."): value for path, value in changes.items()})

    return make


@pytest.fixture(scope="session")
def new_loop(new_config: NewConfig, tiny_features: Features) -> NewLoop:
    """Makes a loop over a fresh model; `changes` are settings, a double underscore for the dot of a path.

    features: by default the tiny ones. dropout: false leaves it out, the text encoder's too.
    """

    def make(
        stage: Literal[1, 2] = 1,
        *,
        seed: int = 1,
        folder: Path | None = None,
        earlier: Sequence[Path] = (),
        keeps_last: bool = False,
        features: Features | None = None,
        dropout: bool = True,
        **changes: Any,
    ) -> StageLoop:
        config = new_config(**changes)
        seen = select_modalities(features or tiny_features, config.model.modalities)
        model = initial_model(config.model, seen, seed=seed)
        for module in model.modules():
            if isinstance(module, nn.Dropout) and not dropout:
                module.p = 0.0
        return StageLoop(
            model,
            seen,
            config,
            stage,
            seed=seed,
            protocol="mosi",
            folder=storage_path(folder) if folder else None,
            earlier=[storage_path(path) for path in earlier],
            keeps_last=keeps_last,
        )

    return make


@pytest.fixture
def at_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int, Callable[[], None]], None]:
    """Does something when the command tells of a finished epoch, once."""
    from grcf_ray.api import training

    def register(stage: int, epoch: int, act: Callable[[], None]) -> None:
        real, waiting = training._Progress.show, [act]

        def show(progress: Any, metrics: dict[str, Any]) -> None:
            real(progress, metrics)
            if (metrics["stage"], metrics["epoch"]) == (stage, epoch) and waiting:
                waiting.pop()()

        monkeypatch.setattr(training._Progress, "show", show)

    return register


@pytest.fixture
def kill_a_worker() -> Callable[[], None]:
    """Kills one of the workers of Ray Train in the session's Ray."""
    from processes import marked

    def kill() -> None:
        titles = marked(os.environ["RAY_AUTH_TOKEN_PATH"])
        os.kill(min(pid for pid, title in titles.items() if title.startswith("ray::RayTrainWorker")), signal.SIGKILL)

    return kill
