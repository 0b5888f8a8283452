"""Search spaces of models other than GRCF."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from grcf_ray.api.training import starting_config
from grcf_ray.config import flatten
from grcf_ray.errors import ConfigError
from grcf_ray.search.direct_baseline import direct_space
from grcf_ray.search.model_space import model_space
from grcf_ray.search.searcher import distributions
from grcf_ray.search.space import Range, load_space, recorded_space
from grcf_ray.search.space_file import write_space

RIVAL: dict[str, Any] = {
    "dataset": "mosi",
    "fixed": {"model.name": "lmf", "stage1.epochs": 0, "stage2.epochs": 2},
    "stage2": {
        "stage2.head_lr": {"low": 1e-4, "high": 1e-2, "log": True, "start": 1e-3},
        "lmf.rank": {"low": 1, "high": 8, "log": True, "start": 4},
    },
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(RIVAL | changes), encoding="utf-8")
    return path


def test_a_space_for_another_model_is_the_direct_baselines_with_its_options(tiny_space: Path) -> None:
    space = load_space(tiny_space)
    fitted, direct = model_space(space, {"model.name": "lmf", "lmf.rank": 2}), direct_space(space)
    options = {"lmf.text_width", "lmf.vision_width", "lmf.audio_width", "lmf.dropout"}
    assert (dict(fitted.stage1), set(fitted.stage2) - set(direct.stage2)) == ({}, options)
    assert set(direct.stage2) - set(fitted.stage2) == {"model.fusion_dropout"}
    config = fitted.config()
    assert (config.model.name, flatten(config)["lmf.rank"], config.stage1.epochs) == ("lmf", 2, 0)
    # The same cost, and the MAE alone.
    assert config.stage2 == direct.config().stage2
    assert config.search == direct.config().search
    assert recorded_space(fitted.as_dict(), "").config() == config


def test_a_rival_in_two_stages_keeps_the_stages_and_their_cost(tiny_space: Path) -> None:
    space = load_space(tiny_space)
    both = dataclasses.replace(space, stage2={**space.stage2, "stage2.fusion_dropout": Range(0.0, 0.5, False, 0.3)})
    fitted = model_space(both, {"model.name": "lmf"}, two_stage=True)
    options = {f"lmf.{name}" for name in ("rank", "text_width", "vision_width", "audio_width", "dropout")}
    assert set(fitted.stage1) - set(space.stage1) == options
    assert set(space.stage1) - set(fitted.stage1) == {"model.fusion_dropout"}
    assert fitted.stage2 == space.stage2
    config, start = fitted.config(), space.config()
    assert (config.stage1, config.stage2, config.search) == (start.stage1, start.stage2, start.search)
    assert recorded_space(fitted.as_dict(), "").config() == config


def test_a_space_stays_as_it_is_for_its_own_model(tiny_space: Path, tmp_path: Path) -> None:
    space = load_space(tiny_space)
    assert model_space(space, {}) == space
    assert model_space(space, {"model.name": "grcf"}).stage1 == space.stage1
    rival = load_space(written(tmp_path))
    assert model_space(rival, {"model.name": "lmf"}).stage2 == rival.stage2


def test_a_file_searches_options_of_its_model(tmp_path: Path) -> None:
    space = load_space(written(tmp_path))
    assert space.stage2["lmf.rank"] == Range(1, 8, True, 4)
    assert type(distributions(space.stage2)["lmf.rank"]).__name__ == "IntDistribution"


def test_a_fitted_space_can_be_written_and_read(tiny_space: Path, tmp_path: Path) -> None:
    fitted = model_space(load_space(tiny_space), {"model.name": "lmf"})
    assert {"model.modalities", "lmf.rank"} <= set(fitted.stage2)
    write_space(tmp_path / "lmf.yaml", fitted, "made for a test")
    read = load_space(tmp_path / "lmf.yaml")
    assert (read.stage1, read.stage2, read.config()) == ({}, fitted.stage2, fitted.config())


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"stage2": {"tfn.dropout": {"low": 0, "high": 0.5, "start": 0.1}}}, "tfn.dropout: cannot be searched"),
        (
            {"stage2": {"lmf.rnk": {"low": 1, "high": 8, "start": 4}}},
            "no such option of the model lmf; its options are",
        ),
        ({"stage2": {"lmf.rank": {"low": 0, "high": 8, "start": 4}}}, "lmf.rank: 0.0: should be greater than or equal"),
        ({"fixed": {"model.name": "lmf", "stage1.epochs": 2}}, "lmf.rank: cannot be searched in stage2"),
        ({"fixed": {"model.name": "lmff", "stage1.epochs": 0}}, "model.name = 'lmff': should be one of"),
        ({"stage1": {"model.name": {"choices": ["lmf", "tfn"], "start": "lmf"}}}, "model.name: can only be fixed"),
    ],
)
def test_faults_name_the_model_and_its_options(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        load_space(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("ablation", "given", "epochs"),
    [
        (None, {}, (0, 6)),
        (None, {"stage2.epochs": 2}, (0, 2)),
        ("full", {}, (3, 3)),
        ("direct-mae", {}, (0, 3)),
    ],
)
def test_a_rival_is_trained_on_the_mae_alone_unless_asked(
    tiny_space: Path, ablation: str | None, given: dict[str, Any], epochs: tuple[int, int]
) -> None:
    settings = {"model.name": "tfn", "tfn.fusion_width": 16} | given
    config = starting_config("tiny", None, None, tiny_space, settings, None, ablation)
    assert (config.stage1.epochs, config.stage2.epochs) == epochs
    assert (config.stage2.group_weight == 0) == (ablation != "full")
    assert config.model.options.fusion_width == 16


@pytest.mark.integration
def test_a_rival_is_searched_saved_and_reported(
    ray_session: None, tiny_store: Any, tiny_space: Path, tmp_path: Path
) -> None:
    import grcf_ray

    settings = {"model.name": "lmf", "model.frozen_layers": "all", "lmf.text_width": 8}
    run = grcf_ray.run_search(
        "tiny", data=tiny_store.folder, space=str(tiny_space), settings=settings, storage=str(tmp_path)
    )
    folder = tmp_path / "tiny-lmf-tiny-bert-seed42"
    assert "LMF (2018)" in (folder / "best" / "README.md").read_text(encoding="utf-8")
    assert "<p>LMF on tiny" in (folder / "report.html").read_text(encoding="utf-8")
    model = grcf_ray.load_model(folder / "best")
    assert model.config.model.name == "lmf"
    assert len(model.score(tiny_store.read("valid"))) == 16
    assert all(rank == int(rank) for rank in run.trials["lmf.rank"])
