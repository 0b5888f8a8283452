"""Table 12: parameters to the unit, and operations counted by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grcf_ray.config import build_config
from grcf_ray.data import datasets
from grcf_ray.experiments.complexity import TOKENS, complexity_of, described_model
from grcf_ray.experiments.paper import TABLES
from grcf_ray.model.build import parameter_table


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
