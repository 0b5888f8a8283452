"""The direct-MAE baseline: its space, its cost, and a search of it by the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grcf_ray.config import ABLATIONS, flatten
from grcf_ray.experiments.grids import retuned_space
from grcf_ray.search.direct_baseline import ONE_DROPOUT, direct_space
from grcf_ray.search.space import Range, Space, load_space, recorded_space, space_for
from tests.search.conftest import Run

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore


@pytest.fixture
def space(tiny_space: Path) -> Space:
    return load_space(tiny_space)


def epochs(space: Space) -> int:
    """What a search of the space comes to, if no trial is stopped early."""
    config = space.config()
    return (
        config.stage1.epochs * config.search.stage1_trials * bool(config.stage1.epochs)
        + config.stage2.epochs * config.search.stage2_trials
    )


@pytest.mark.parametrize(
    ("settings", "trials"),
    [
        # Stage 1 epochs, Stage 2 epochs, trials of both: (3 * 6 + 3 * 5) / 6 = 5.5.
        ({}, 6),
        ({"search.stage1_trials": 30, "search.stage2_trials": 30, "stage1.epochs": 17, "stage2.epochs": 5}, 30),
        ({"search.stage1_trials": 14, "search.stage2_trials": 28, "stage1.epochs": 4, "stage2.epochs": 2}, 19),
        ({"search.stage1_trials": 1, "search.stage2_trials": 1}, 1),
    ],
)
def test_it_costs_as_many_epochs_as_both_stages(space: Space, settings: dict[str, int], trials: int) -> None:
    two = space.with_settings(settings)
    direct = direct_space(two)
    config, before = direct.config(), two.config()
    assert config.stage1.epochs == 0
    assert config.stage2.epochs == before.stage1.epochs + before.stage2.epochs
    assert config.search.stage2_trials == trials
    assert abs(epochs(direct) - epochs(two)) <= config.stage2.epochs / 2


def test_it_searches_model_batch_and_stage_2s_learning_rates(space: Space) -> None:
    direct = direct_space(space)
    assert direct.stage1 == {}
    assert set(direct.stage2) == {
        "model.fusion_dropout",
        "model.modalities",
        "stage2.encoder_top_lr",
        "stage2.head_lr",
    }
    assert all(direct.stage2[path] == {**space.stage1, **space.stage2}[path] for path in direct.stage2)
    assert recorded_space(json.loads(json.dumps(direct.as_dict())), direct.source) == direct


def test_its_one_stage_has_one_dropout_of_each_kind(space: Space) -> None:
    """The baseline searches Stage 1's; the two-stage search's Stage 2 may search or fix others."""
    both = dataclasses.replace(space, stage2={**space.stage2, "stage2.fusion_dropout": Range(0.0, 0.5, False, 0.3)})
    for two in (both, both.with_settings({"stage2.fusion_dropout": 0.4})):
        direct = direct_space(two)
        assert "stage2.fusion_dropout" not in direct.stage2
        assert direct.config({"model.fusion_dropout": 0.25}).model_in(2).fusion_dropout == 0.25
        alone = retuned_space(two, "no-stage1")
        assert "stage2.fusion_dropout" not in alone.stage2
        assert alone.config({"model.fusion_dropout": 0.25}).model_in(2).fusion_dropout == 0.25


@pytest.mark.parametrize("dataset", ["mosi", "mosei", "sims_v2"])
def test_the_rest_is_the_two_stage_searchs_starting_point(dataset: str) -> None:
    space = space_for(dataset, None)
    direct = direct_space(space)
    assert direct.stage2
    assert {path.partition(".")[0] for path in direct.stage2} <= {"model", "pairs", "stage2"}
    assert not [path for path in direct.stage2 if path.endswith(("mae_weight", "group_weight", "boundary_weight"))]
    before, after = flatten(space.config()), flatten(direct.config())
    changed = {path for path, value in after.items() if value != before[path]}
    assert changed <= {*ABLATIONS["direct-mae"], *ONE_DROPOUT, "stage2.epochs", "search.stage2_trials"}
    assert {path: after[path] for path in ABLATIONS["direct-mae"]} == ABLATIONS["direct-mae"]


def test_what_was_fixed_stays_fixed(space: Space) -> None:
    direct = direct_space(space.with_settings({"model.fusion_dropout": 0.25, "stage2.head_lr": 3e-4}))
    assert not {"model.fusion_dropout", "stage2.head_lr"} & set(direct.stage2)
    config = direct.config()
    assert (config.model.fusion_dropout, config.stage2.head_lr) == (0.25, 3e-4)


def test_the_command_searches_it_in_a_run_of_its_own(
    run: Run, ray_session: None, tiny_store: DatasetStore, tiny_space: Path, tmp_path: Path
) -> None:
    words = ["--dataset", "tiny", "--data", tiny_store.folder, "--space", tiny_space, "--storage", tmp_path / "runs"]
    words += ["--direct", "--stage1-trials", 2, "--stage2-trials", 2, "--concurrent", 1, "--json"]
    words += ["--set", "stage1.epochs=1", "--set", "stage2.epochs=1", "--set", "search.ridge_baseline=false"]
    words += ["--set", "search.pruning=false"]
    code, out, err = run(*words)
    assert code == 0, err
    assert "Budget:  stage 2: 2 x 2 epochs\n" in err
    folder = tmp_path / "runs" / "tiny-tiny-bert-seed42-direct"
    summary = json.loads(out)
    assert summary["run"] == str(folder)
    assert list(summary["stages"]) == ["stage2"]
    assert summary["winner"]["trial"] in ("stage2/0", "stage2/1")
    assert "finalist" not in summary["winner"]["params"]
    assert set(summary["winner"]["params"]) == set(direct_space(load_space(tiny_space)).stage2)
    assert not (folder / "finalists").exists()
    settings = json.loads((folder / "best" / "config.json").read_text())["settings"]
    for path, value in {**ABLATIONS["direct-mae"], **summary["winner"]["params"]}.items():
        assert settings[path] == value
    trials = [json.loads(path.read_text()) for path in sorted((folder / "stage2" / "trials").glob("*.json"))]
    # From the pretrained encoder, with the modalities that it proposes.
    assert {trial["params"]["model.modalities"] for trial in trials} <= {"all", "text", "text+audio"}
    for trial in trials:
        assert trial["state"] == "complete"
        for metrics in trial["curve"]:
            assert metrics["loss/total"] == pytest.approx(metrics["loss/mae"])
    # The command again prints the same; without --direct it is another run.
    again = run(*words)
    assert (again[0], json.loads(again[1])) == (0, summary)
    code, _, err = run(*(word for word in words if word != "--direct"), "--dry-run")
    assert code == 0
    assert err.rstrip().endswith("tiny-tiny-bert-seed42")
