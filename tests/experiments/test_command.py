"""The command: which run it starts from, what it refuses, and Table 12, which needs no run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grcf_ray.config import build_config
from grcf_ray.data import datasets
from grcf_ray.experiments.complexity import TOKENS, complexity_of
from grcf_ray.experiments.paper import TABLES
from grcf_ray.model.build import described_model, parameter_table

Reproduce = Callable[..., tuple[int, str, str]]


def test_a_data_set_stands_for_its_finished_search(fresh: Path, tmp_path: Path, reproduce: Reproduce) -> None:
    # What else lies there: another data set's search, the baseline, one that goes on, and a folder of somebody's.
    run = json.loads((fresh / "run.json").read_text())
    changes = {"another": {"data": {"name": "other"}}, "tiny-direct": {}, "tiny-unfinished": {"state": "running"}}
    for name, change in changes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(run | change))
    (tmp_path / "notes").mkdir()
    words = ("scatter", "--dataset", "tiny")
    code, out, _ = reproduce(*words, "--storage", tmp_path)
    assert code == 0 and str(fresh / "reproduce" / "scatter" / "index.html") in out.replace("\n", "")
    assert (fresh / "reproduce" / "scatter" / "result.json").exists()

    shutil.copytree(fresh, tmp_path / "tiny-2")
    code, _, err = reproduce(*words, "--storage", tmp_path)
    assert code == 2 and f"--from {fresh} or {tmp_path / 'tiny-2'}" in err
    assert reproduce("complexity", "--dataset", "tiny", "--from", tmp_path / "tiny-2")[0] == 0


def test_what_cannot_be_started_from_is_said(fresh: Path, tmp_path: Path, reproduce: Reproduce) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in [
        (["curves"], "--dataset NAME, or --from RUN"),
        (["curves", "--dataset", "tiny", "--storage", tmp_path / "empty"], "python -m grcf_ray.search --dataset tiny"),
        (["curves", "--dataset", "mosi", "--from", fresh], "a search of tiny, not of mosi"),
        (["curve", "--dataset", "tiny"], "no experiment 'curve'"),
        (["complexity"], "--dataset NAME"),
        (["complexity", "--from", fresh, "--backbone", "bert"], "--backbone is for complexity without a run"),
    ]:
        code, _, err = reproduce(*words)
        assert code == 2 and message in err.replace("\n", " ")


def test_complexity_of_a_run_is_its_configurations(fresh: Path, reproduce: Reproduce) -> None:
    code, out, err = reproduce("complexity", "--from", fresh, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert "tiny, tiny-bert" in answer["title"] and answer["run"].startswith("tiny, winner stage2/4")
    # The winner sees no vision.
    counts = {row["title"] for row in answer["tables"][0]["rows"]}
    assert "Audio Pooler" in counts and "Vision Pooler" not in counts


def test_parameters_are_table_12s_to_the_unit() -> None:
    facts = datasets.get("mosi")
    config = build_config({"model.backbone": facts.default_backbone})
    with torch.device("meta"):
        counts = dict(parameter_table(described_model(config, facts)))
    table = TABLES["complexity"]["mosi"]
    assert counts == {name: count for name, count in table.items() if "(total)" not in name}
    assert sum(counts.values()) == table["GRCF (total)"] == 186_585_724


@pytest.mark.parametrize(("task", "dims"), [("regression", {"audio": 5, "vision": 3}), ("classification", {})])
def test_operations_of_the_encoder_are_those_of_its_products(
    task: Any, dims: dict[str, int], tiny_backbone: Path
) -> None:
    """BERT of two layers, width 32 and 64 inside: projections, scores, mixing, and the two layers after it."""
    config = build_config({"model.backbone": str(tiny_backbone), "model.text_vector": "mean"})
    data: Any = SimpleNamespace(name="own", task=task, audio_dim=dims.get("audio"), vision_dim=dims.get("vision"))
    result = complexity_of(config, data)
    cost = {row["title"]: row["value"] for row in result.tables[1].rows}
    layer = 4 * TOKENS * 32 * 32 + 2 * TOKENS * TOKENS * 32 + 2 * TOKENS * 32 * 64
    encoder = 2 * 2 * layer
    # What comes after the encoder is a few vectors an utterance: no more than its weights twice, and pooling.
    rows = {row["title"]: row["count"] for row in result.tables[0].rows}
    after = sum(count for name, count in rows.items() if name not in ("Text Encoder", "GRCF (total)"))
    pooled = 2 * 2 * TOKENS * sum(dims.values())
    assert encoder <= cost["forward pass"] * 1e9 <= encoder + 2 * after + pooled
    assert cost["forward pass, one utterance at a time"] > 0
    assert result.title == "Complexity of GRCF on own, tiny-bert"
    assert all(row["paper"] is None for row in result.tables[0].rows) and not result.notes
