"""Ablations searched anew, and other text encoders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grcf_ray import console
from grcf_ray.errors import ConfigError

if TYPE_CHECKING:
    from grcf_ray.reproduce.lab import Lab
    from grcf_ray.tables import Table

pytestmark = pytest.mark.slow

MakeLab = Callable[..., "Lab"]


def rows(table: Table) -> dict[str, Any]:
    return {row["title"]: row for row in table.rows}


@pytest.fixture(scope="module")
def brief(copied: Path) -> Path:
    """The recorded run as if it had had two trials in Stage 1 and one in Stage 2."""
    run = json.loads((copied / "run.json").read_text())
    budget = {"search.stage1_trials": 2, "search.stage2_trials": 1, "search.finalists": 1}
    run["settings"] |= budget
    run["space"]["fixed"] |= budget
    (copied / "run.json").write_text(json.dumps(run))
    return copied


def test_retuned_spaces_cost_what_the_runs_own_does(make_lab: MakeLab) -> None:
    from grcf_ray.config import ABLATIONS, flatten
    from grcf_ray.reproduce.retuned import retuned_space

    space = make_lab().space
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


def test_ablation_has_a_second_column_that_is_searched_anew(
    brief: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    from grcf_ray.config import ABLATIONS
    from grcf_ray.reproduce import grids
    from grcf_ray.reproduce.__main__ import app

    # Without either stage; the others are searched as the run itself was.
    monkeypatch.setattr(grids, "ABLATIONS", {name: ABLATIONS[name] for name in ("full", "no-stage1", "no-stage2")})

    def ablation() -> Any:
        with pytest.raises(SystemExit) as ended:
            console.run(app, ["ablation", "--from", str(brief), "--seeds", "1", "--retune", "--json"])
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        return json.loads(out), err

    answer, _ = ablation()
    mae = next(table for table in answer["tables"] if table["name"] == "mae")
    assert [row["title"] for row in mae["rows"]] == [
        "Full model",
        *("w/o Stage 1", "w/o Stage 1, retuned"),
        *("w/o Stage 2", "w/o Stage 2, retuned"),
    ]
    for name in ("no-stage1", "no-stage2"):
        place = brief / "reproduce" / "retuned" / name
        run = json.loads((place / "run.json").read_text())
        assert run["state"] == "finished"
        assert {path: run["settings"][path] for path in ABLATIONS[name]} == dict(ABLATIONS[name])
        # What the search found is what the row was trained with.
        found = json.loads((place / "best" / "provenance.json").read_text())["params"]
        trained = [
            {**entry["stage1"], **entry["stage2"]}
            for file in (brief / "reproduce" / "models").glob("*/entries.json")
            for entry in json.loads(file.read_text())
        ]
        assert any(found.items() <= entry.items() for entry in trained)
    reads = json.loads((brief / "best" / "provenance.json").read_text())["test_reads"]
    assert "reproduce/retuned/no-stage1" in {name for read in reads for name in read["models"]}
    again, err = ablation()
    assert again["tables"] == answer["tables"]
    assert "trial" not in err.lower(), "nothing is searched or trained twice"


def test_stability_is_of_each_weight_by_itself(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    from grcf_ray.reproduce import grids
    from grcf_ray.reproduce.pool import Arm

    monkeypatch.setattr(grids, "LAMBDA1", (0.6, 1.3))
    monkeypatch.setattr(grids, "LAMBDA2", (0.04,))
    lab = make_lab()
    outcome = grids.stability(lab)
    tables = {table.name: table.rows for table in outcome.tables}
    assert {name: [row["value"] for row in of] for name, of in tables.items()} == {
        **{f"stage1.group_weight {split}": [0.6, 1.3] for split in ("valid", "test")},
        **{f"stage1.reg_weight {split}": [0.04] for split in ("valid", "test")},
    }
    (arm,) = lab.models([Arm("again", "again", {"stage1.group_weight": 1.3})], "test").values()
    for split in ("valid", "test"):
        row = tables[f"stage1.group_weight {split}"][1]
        figures = [model.metrics[split]["mae"] for model in arm]
        assert row["mae"] == pytest.approx(sum(figures) / 2)
        assert row["mae deviation"] == pytest.approx(abs(figures[0] - figures[1]) / 2**0.5)
    assert all(any("too few seeds for a claim: 2" in note for note in table.notes) for table in outcome.tables)
    first, _ = outcome.pictures
    assert [line["x"] for line in first.data["panels"][0]["lines"]] == [[0.6, 1.3]] * 2
    assert first.draw(first.data)


def test_margins_differ_by_their_groups_alone(make_lab: MakeLab) -> None:
    from grcf_ray.reproduce.arms import full_arm
    from grcf_ray.reproduce.grids import margins

    lab = make_lab()
    mae = rows(next(table for table in margins(lab).tables if table.name == "mae"))
    assert list(mae) == ["overlap,5", "overlap,3", "overlap,7", "strict,5"]
    # The winner's own groups are the first row's: the same models.
    assert lab.config.ranking.groups == "overlap,5"
    full = [model.metrics["test"]["mae"] for model in lab.models([full_arm(lab)], "test")["full"]]
    assert mae["overlap,5"]["values"] == full and "difference" not in mae["overlap,5"]
    assert all(row["values"] != full and "difference" in row for name, row in mae.items() if name != "overlap,5")


def test_weights_and_groups_that_a_run_does_not_train_with_are_not_compared(make_lab: MakeLab) -> None:
    from grcf_ray.reproduce.grids import margins, stability
    from grcf_ray.reproduce.pool import Arm, configured

    lab = make_lab()
    lab.config = configured(lab.config, Arm("direct", "direct", {"stage1.epochs": 0, "stage2.group_weight": 0.0}))
    with pytest.raises(ConfigError, match="no Stage 1"):
        stability(lab)
    with pytest.raises(ConfigError, match="does not train"):
        margins(lab)


def test_backbones_that_cannot_be_had_are_named(make_lab: MakeLab, tiny_backbone: Path, tmp_path: Path) -> None:
    from grcf_ray.reproduce.grids import backbones
    from grcf_ray.reproduce.options import Options

    other = tmp_path / "wider-bert"
    _another(tiny_backbone, other)
    outcome = backbones(make_lab(options=Options(backbones=(str(other), "nobody/no-such-encoder"))))
    mae = rows(next(table for table in outcome.tables if table.name == "mae"))
    assert list(mae) == ["tiny-bert", "wider-bert", "no-such-encoder"]
    assert len(mae["wider-bert"]["values"]) == 2
    assert mae["wider-bert"]["values"] != mae["tiny-bert"]["values"]
    assert mae["no-such-encoder"].get("mean") is None
    assert any(note.startswith("no-such-encoder cannot be had here: backbone nobody/") for note in outcome.notes)


def test_an_option_of_another_experiment_is_refused() -> None:
    from grcf_ray.reproduce.options import Options

    Options(retune=True).check("ablation")
    Options(retune=True, onto="mosi").check("all")
    with pytest.raises(ConfigError, match="--onto-data is for transfer, not for ablation"):
        Options(onto_data=Path("data")).check("ablation")


def test_complexity_of_a_run_is_its_configurations(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    from grcf_ray.reproduce import complexity
    from grcf_ray.reproduce.__main__ import _outcome
    from grcf_ray.reproduce.catalog import EXPERIMENTS

    asked: list[Any] = []

    def described(config: Any, dataset: str, *, task: str, dims: Any, threads: int) -> str:
        asked.append((config, dataset, task, dims))
        return "described"

    monkeypatch.setattr(complexity, "complexity", described)
    lab = make_lab()
    assert _outcome(EXPERIMENTS["complexity"], lab) == "described"
    dims = {"audio": lab.store.info.audio_dim, "vision": lab.store.info.vision_dim}
    assert asked == [(lab.config, "tiny", "regression", dims)]


def _another(backbone: Path, folder: Path) -> None:
    """The tiny encoder with other random weights, of width 48."""
    import torch
    from transformers import BertConfig, BertModel

    shutil.copytree(backbone, folder)
    torch.manual_seed(1)
    config = BertConfig.from_pretrained(backbone, hidden_size=48, num_attention_heads=3)
    BertModel(config).save_pretrained(folder)
