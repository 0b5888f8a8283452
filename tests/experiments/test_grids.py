"""Spaces of ablations that are searched anew, margins, stability, and other text encoders."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from grcf_ray.errors import ConfigError
from grcf_ray.experiments.arms import figures

if TYPE_CHECKING:
    from grcf_ray.experiments.context import ExperimentContext
    from grcf_ray.experiments.model_pool import Arm
    from grcf_ray.tables import Table

pytestmark = pytest.mark.slow

MakeContext = Callable[..., "ExperimentContext"]


def rows(table: Table) -> dict[str, Any]:
    return {row["title"]: row for row in table.rows}


def test_retuned_spaces_cost_what_the_runs_own_does(make_context: MakeContext) -> None:
    from grcf_ray.config import ABLATIONS, flatten
    from grcf_ray.experiments.retuned import retuned_space

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


class MadeUpModels:
    """Stands in for `ExperimentContext.models`: made-up figures, and the arms that an experiment asks for."""

    def __init__(self, context: ExperimentContext) -> None:
        self.context, self.arms = context, {}
        self.test = context.view.scored("test")

    def __call__(self, arms: Sequence[Arm], experiment: str) -> dict[str, list[Any]]:
        self.arms = {arm.name: arm for arm in arms}
        rng = np.random.default_rng(0)
        return {arm.name: [self.model(index, rng) for index in range(2)] for arm in arms}

    def model(self, index: int, rng: np.random.Generator) -> Any:
        scored = dataclasses.replace(self.test, score_N=self.test.score_N + rng.normal(size=len(self.test.score_N)))
        metrics = figures(self.context, scored.score_N, scored.label_N)
        by_split = {"test": metrics, "valid": {name: value / 2 for name, value in metrics.items()}}
        return SimpleNamespace(index=index, metrics=by_split, scored=lambda split: scored)


@pytest.fixture
def untrained(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> ExperimentContext:
    """Return a context that trains nothing: `untrained.models` makes its figures up."""
    context = make_context()
    monkeypatch.setattr(context, "models", MadeUpModels(context))
    return context


def test_stability_changes_each_weight_alone(untrained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from grcf_ray.experiments import grids

    monkeypatch.setattr(grids, "LAMBDA1", (0.6, 1.3))
    monkeypatch.setattr(grids, "LAMBDA2", (0.04,))
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
    assert all(any("few seeds" in note for note in table.notes) for table in result.tables)
    picture, _ = result.pictures
    assert [line["x"] for line in picture.data["panels"][0]["lines"]] == [[0.6, 1.3]] * 2
    assert picture.draw(picture.data)


def test_margins_differ_by_their_groups_alone(untrained: Any) -> None:
    from grcf_ray.experiments.arms import full_arm
    from grcf_ray.experiments.grids import margins
    from grcf_ray.experiments.model_pool import configured, entries_of, shape_of

    mae = rows(next(table for table in margins(untrained).tables if table.name == "mae"))
    assert list(mae) == ["overlap,5", "overlap,3", "overlap,7", "strict,5"]
    assert ["difference" in row for row in mae.values()] == [False, True, True, True]
    arms = untrained.models.arms
    assert {name: dict(arm.settings) for name, arm in arms.items()} == {name: {"ranking.groups": name} for name in mae}
    # The first row has the winner's own groups, so it shares the full model's trainings, and no other row does.
    full = configured(untrained.config, full_arm(untrained))
    assert full.ranking.groups == "overlap,5"
    for name, arm in arms.items():
        config = configured(untrained.config, arm)
        assert shape_of(config) == shape_of(full)
        assert (entries_of(config, range(2)) == entries_of(full, range(2))) == (name == "overlap,5")


def test_weights_and_groups_that_a_run_does_not_train_with_are_not_compared(make_context: MakeContext) -> None:
    from grcf_ray.experiments.grids import margins, stability
    from grcf_ray.experiments.model_pool import Arm, configured

    context = make_context()
    context.config = configured(
        context.config, Arm("direct", "direct", {"stage1.epochs": 0, "stage2.group_weight": 0.0})
    )
    with pytest.raises(ConfigError, match="Stage 1"):
        stability(context)
    with pytest.raises(ConfigError, match="ranking loss"):
        margins(context)


def test_backbones_that_cannot_be_had_are_named(make_context: MakeContext, tiny_backbone: Path, tmp_path: Path) -> None:
    from grcf_ray.experiments.grids import backbones
    from grcf_ray.experiments.model_pool import Arm, configured
    from grcf_ray.experiments.options import Options

    other = tmp_path / "wider-bert"
    _another(tiny_backbone, other)
    context = make_context(seeds=1, options=Options(backbones=(str(other), "nobody/no-such-encoder")))
    # Stage 2 alone, to save time.
    context.config = configured(context.config, Arm("short", "short", {"stage1.epochs": 0}))
    result = backbones(context)
    mae = rows(next(table for table in result.tables if table.name == "mae"))
    assert list(mae) == ["tiny-bert", "wider-bert", "no-such-encoder"]
    assert len(mae["wider-bert"]["values"]) == 1
    assert mae["wider-bert"]["values"] != mae["tiny-bert"]["values"]
    assert mae["no-such-encoder"].get("mean") is None
    assert any("no-such-encoder" in note and "nobody/" in note for note in result.notes)


def test_an_option_of_another_experiment_is_refused() -> None:
    from grcf_ray.experiments.options import Options

    Options(retune=True).check("ablation")
    Options(retune=True, onto="mosi").check("all")
    with pytest.raises(ConfigError, match=r"--onto-data .* transfer"):
        Options(onto_data=Path("data")).check("ablation")


def test_complexity_of_a_run_is_its_configurations(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    from grcf_ray.cli.reproduce import _outcome
    from grcf_ray.experiments import complexity
    from grcf_ray.experiments.registry import EXPERIMENTS

    asked: list[Any] = []

    def described(config: Any, dataset: str, *, task: str, dims: Any, threads: int) -> str:
        asked.append((config, dataset, task, dims))
        return "described"

    monkeypatch.setattr(complexity, "complexity", described)
    context = make_context()
    assert _outcome(EXPERIMENTS["complexity"], context) == "described"
    dims = {"audio": context.store.info.audio_dim, "vision": context.store.info.vision_dim}
    assert asked == [(context.config, "tiny", "regression", dims)]


def _another(backbone: Path, folder: Path) -> None:
    """The tiny encoder with other random weights, of width 48."""
    import torch
    from transformers import BertConfig, BertModel

    shutil.copytree(backbone, folder)
    torch.manual_seed(1)
    config = BertConfig.from_pretrained(backbone, hidden_size=48, num_attention_heads=3)
    BertModel(config).save_pretrained(folder)
