"""Spaces of ablations that are searched anew, margins, stability, and other text encoders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grcf_ray.errors import ConfigError

if TYPE_CHECKING:
    from grcf_ray.experiments.context import ExperimentContext
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
        own = retuned_space(space, name)
        its = own.config()
        assert {path: flatten(its)[path] for path in settings} == dict(settings)
        assert not set(settings) & {*own.stage1, *own.stage2}
        cost = its.stage1.epochs * its.search.stage1_trials if its.stage1.epochs else 0
        cost += its.stage2.epochs * its.search.stage2_trials if its.stage2.epochs else 0
        assert abs(cost - whole) <= max(its.stage1.epochs, its.stage2.epochs) / 2
        # Nothing is searched in a stage that is not trained.
        assert its.stage1.epochs or not own.stage1
        assert its.stage2.epochs or not own.stage2
    without = retuned_space(space, "no-stage1")
    assert "ranking.intra_margin" in without.stage2 and "stage1.head_lr" not in without.stage2


def test_stability_is_of_each_weight_by_itself(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    from grcf_ray.experiments import grids
    from grcf_ray.experiments.model_pool import Arm

    monkeypatch.setattr(grids, "LAMBDA1", (0.6, 1.3))
    monkeypatch.setattr(grids, "LAMBDA2", (0.04,))
    context = make_context()
    result = grids.stability(context)
    tables = {table.name: table.rows for table in result.tables}
    assert {name: [row["value"] for row in of] for name, of in tables.items()} == {
        **{f"stage1.group_weight {split}": [0.6, 1.3] for split in ("valid", "test")},
        **{f"stage1.reg_weight {split}": [0.04] for split in ("valid", "test")},
    }
    (arm,) = context.models([Arm("again", "again", {"stage1.group_weight": 1.3})], "test").values()
    for split in ("valid", "test"):
        row = tables[f"stage1.group_weight {split}"][1]
        figures = [model.metrics[split]["mae"] for model in arm]
        assert row["mae"] == pytest.approx(sum(figures) / 2)
        assert row["mae deviation"] == pytest.approx(abs(figures[0] - figures[1]) / 2**0.5)
    assert all(any("too few seeds for a claim: 2" in note for note in table.notes) for table in result.tables)
    first, _ = result.pictures
    assert [line["x"] for line in first.data["panels"][0]["lines"]] == [[0.6, 1.3]] * 2
    assert first.draw(first.data)


def test_margins_differ_by_their_groups_alone(make_context: MakeContext) -> None:
    from grcf_ray.experiments.arms import full_arm
    from grcf_ray.experiments.grids import margins

    context = make_context()
    mae = rows(next(table for table in margins(context).tables if table.name == "mae"))
    assert list(mae) == ["overlap,5", "overlap,3", "overlap,7", "strict,5"]
    # The winner's own groups are the first row's: the same models.
    assert context.config.ranking.groups == "overlap,5"
    full = [model.metrics["test"]["mae"] for model in context.models([full_arm(context)], "test")["full"]]
    assert mae["overlap,5"]["values"] == full and "difference" not in mae["overlap,5"]
    assert all(row["values"] != full and "difference" in row for name, row in mae.items() if name != "overlap,5")


def test_weights_and_groups_that_a_run_does_not_train_with_are_not_compared(make_context: MakeContext) -> None:
    from grcf_ray.experiments.grids import margins, stability
    from grcf_ray.experiments.model_pool import Arm, configured

    context = make_context()
    context.config = configured(
        context.config, Arm("direct", "direct", {"stage1.epochs": 0, "stage2.group_weight": 0.0})
    )
    with pytest.raises(ConfigError, match="no Stage 1"):
        stability(context)
    with pytest.raises(ConfigError, match="does not train"):
        margins(context)


def test_backbones_that_cannot_be_had_are_named(make_context: MakeContext, tiny_backbone: Path, tmp_path: Path) -> None:
    from grcf_ray.experiments.grids import backbones
    from grcf_ray.experiments.options import Options

    other = tmp_path / "wider-bert"
    _another(tiny_backbone, other)
    result = backbones(make_context(options=Options(backbones=(str(other), "nobody/no-such-encoder"))))
    mae = rows(next(table for table in result.tables if table.name == "mae"))
    assert list(mae) == ["tiny-bert", "wider-bert", "no-such-encoder"]
    assert len(mae["wider-bert"]["values"]) == 2
    assert mae["wider-bert"]["values"] != mae["tiny-bert"]["values"]
    assert mae["no-such-encoder"].get("mean") is None
    assert any(note.startswith("no-such-encoder cannot be had here: backbone nobody/") for note in result.notes)


def test_an_option_of_another_experiment_is_refused() -> None:
    from grcf_ray.experiments.options import Options

    Options(retune=True).check("ablation")
    Options(retune=True, onto="mosi").check("all")
    with pytest.raises(ConfigError, match="--onto-data is for transfer, not for ablation"):
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
