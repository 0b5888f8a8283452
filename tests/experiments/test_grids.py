"""Spaces of ablations that are searched anew, margins, and stability, on made-up models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grcf_ray.config import ABLATIONS, flatten
from grcf_ray.errors import ConfigError
from grcf_ray.experiments import grids
from grcf_ray.experiments.arms import full_arm
from grcf_ray.experiments.grids import retuned_space
from grcf_ray.experiments.model_pool import Arm, configured, entries_of, shape_of
from grcf_ray.experiments.registry import Options

if TYPE_CHECKING:
    from grcf_ray.experiments.context import ExperimentContext

MakeContext = Callable[..., "ExperimentContext"]


def test_retuned_spaces_cost_what_the_runs_own_does(make_context: MakeContext) -> None:
    space = make_context().space
    config = space.config()
    whole = config.stage1.epochs * config.search.stage1_trials + config.stage2.epochs * config.search.stage2_trials
    for name, settings in ABLATIONS.items():
        retuned = retuned_space(space, name)
        ablated = retuned.config()
        assert {path: flatten(ablated)[path] for path in settings} == dict(settings)
        assert not set(settings) & {*retuned.stage1, *retuned.stage2}
        cost = ablated.stage1.epochs * ablated.search.stage1_trials if ablated.stage1.epochs else 0
        cost += ablated.stage2.epochs * ablated.search.stage2_trials if ablated.stage2.epochs else 0
        assert abs(cost - whole) <= max(ablated.stage1.epochs, ablated.stage2.epochs) / 2
        # Nothing is searched in a stage that is not trained.
        assert ablated.stage1.epochs or not retuned.stage1
        assert ablated.stage2.epochs or not retuned.stage2
    without = retuned_space(space, "no-stage1")
    assert "ranking.intra_margin" in without.stage2 and "stage1.head_lr" not in without.stage2


def test_stability_changes_each_weight_alone(untrained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "LAMBDA1", (0.6, 1.3))
    monkeypatch.setattr(grids, "LAMBDA2", (0.04,))
    untrained.printed = {"stability": {"stage1.group_weight=1.3": {"corr": 0.7}}}.__getitem__
    result = grids.stability(untrained)
    paths = ("stage1.group_weight", "stage1.group_weight", "stage1.reg_weight")
    settings = [{path: value} for path, value in zip(paths, (0.6, 1.3, 0.04), strict=True)]
    assert [dict(arm.settings) for arm in untrained.models.arms.values()] == settings
    tables = {table.name: table.rows for table in result.tables}
    assert {name: [row["value"] for row in table_rows] for name, table_rows in tables.items()} == {
        **{f"stage1.group_weight {split}": [0.6, 1.3] for split in ("valid", "test")},
        **{f"stage1.reg_weight {split}": [0.04] for split in ("valid", "test")},
    }
    models = untrained.models([*untrained.models.arms.values()], "again")["stage1.group_weight=1.3"]
    for split in ("valid", "test"):
        row = tables[f"stage1.group_weight {split}"][1]
        first, second = [model.metrics[split]["mae"] for model in models]
        assert row["mae"] == pytest.approx((first + second) / 2)
        assert row["mae deviation"] == pytest.approx(abs(first - second) / 2**0.5)
    printed = {table.name: [row["paper corr"] for row in table.rows] for table in result.tables}
    assert printed["stage1.group_weight test"] == [None, 0.7] and printed["stage1.group_weight valid"] == [None, None]
    assert [any(c.key == "paper corr" for c in table.columns) for table in result.tables] == [False, True, False, False]
    assert all(any("few seeds" in note for note in table.notes) for table in result.tables)
    picture, _ = result.pictures
    assert [line["x"] for line in picture.data["panels"][0]["lines"]] == [[0.6, 1.3]] * 2
    assert picture.draw(picture.data)


def test_a_weight_under_which_nothing_trains_leaves_the_other_rows(
    untrained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grids, "LAMBDA1", (0.6, 1.3))
    monkeypatch.setattr(grids, "LAMBDA2", (0.04,))
    untrained.models.diverged = {"stage1.group_weight=0.6", "stage1.reg_weight=0.04"}
    first, *_, last = grids.stability(untrained).tables
    assert [row["seeds"] for row in first.rows] == [0, 2] and "mae" not in first.rows[0]
    assert any("few seeds for a claim: 2" in note for note in first.notes)
    assert any("few seeds for a claim: 0" in note for note in last.notes)


def test_text_encoders_of_a_model_without_text_are_not_compared(make_context: MakeContext) -> None:
    context = make_context()
    context.config = configured(context.config, Arm("sound", "sound", {"model.modalities": "audio+vision"}))
    with pytest.raises(ConfigError, match="no text"):
        grids.backbones(context)


def test_margins_differ_by_their_groups_alone(untrained: Any, few_draws: None) -> None:
    mae = next(table for table in grids.margins(untrained).tables if table.name == "mae")
    rows = {row["title"]: row for row in mae.rows}
    assert list(rows) == ["overlap,5", "overlap,3", "overlap,7", "strict,5"]
    assert ["difference" in row for row in rows.values()] == [False, True, True, True]
    arms = untrained.models.arms
    assert {name: dict(arm.settings) for name, arm in arms.items()} == {name: {"ranking.groups": name} for name in rows}
    # The first row has the winner's own groups, so it shares the full model's trainings, and no other row does.
    full = configured(untrained.config, full_arm(untrained))
    assert full.ranking.groups == "overlap,5"
    for name, arm in arms.items():
        config = configured(untrained.config, arm)
        assert shape_of(config) == shape_of(full)
        assert (entries_of(config, range(2)) == entries_of(full, range(2))) == (name == "overlap,5")


def test_weights_and_groups_that_a_run_does_not_train_with_are_not_compared(make_context: MakeContext) -> None:
    context = make_context()
    settings = {"stage1.epochs": 0, "stage2.group_weight": 0.0}
    context.config = configured(context.config, Arm("direct", "direct", settings))
    with pytest.raises(ConfigError, match="Stage 1"):
        grids.stability(context)
    with pytest.raises(ConfigError, match="ranking loss"):
        grids.margins(context)


def test_an_option_of_another_experiment_is_refused() -> None:
    Options(retune=True).check("ablation")
    Options(retune=True, onto="mosi").check("all")
    with pytest.raises(ConfigError, match=r"--onto-data .* transfer"):
        Options(onto_data=Path("data")).check("ablation")
