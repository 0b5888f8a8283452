from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from grcf_ray.bench.step import LiteralStep, encoder_table, first_step, new_loop, shares_table
from grcf_ray.config import RunConfig, build_config
from grcf_ray.data.features import Features
from grcf_ray.train.stage import StageLoop

CPU = torch.device("cpu")
EXACT = {"train.precision": "float64", "features.max_tokens": 50, "pairs.micro_batch_tokens": 64}


@pytest.fixture(scope="module")
def config(tiny_backbone: Path) -> RunConfig:
    return build_config({"model.backbone": str(tiny_backbone), "model.text_vector": "mean", "features.max_tokens": 50})


def gradient(loop: StageLoop) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in loop.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("sort", [False, True])
def test_the_loop_over_pairs_has_our_gradient(tiny_features: Features, config: RunConfig, sort: bool) -> None:
    changes = {**EXACT, "pairs.pairs_per_group": 12, "pairs.groups_per_step": 3}
    ours, theirs = (new_loop(tiny_features, config, CPU, changes, dropout=False) for _ in range(2))
    step = first_step(ours)
    ours.backward(step)
    literal = LiteralStep(theirs, step, sort=sort)
    literal.backward()
    assert (gradient(ours) - gradient(theirs)).norm() < 1e-12 * gradient(theirs).norm()
    lengths_S = tiny_features.train.tokens.lengths[np.concatenate([step.utterance_U[g.slot_S] for g in step.groups])]
    assert len(lengths_S) == 2 * 36
    if sort:
        assert lengths_S.sum() <= literal.tokens() < 50 * 2 * 36
    else:
        assert literal.tokens() == 50 * 2 * 36


def test_encoder_table(tiny_features: Features, config: RunConfig) -> None:
    said: list[str] = []
    table = encoder_table(tiny_features, config, CPU, 1, said.append)
    literal, by_length, once, bounded = table.rows
    assert literal["speed_up"] == literal["bound"] == 1
    assert 1 < by_length["bound"] < once["bound"] == bounded["bound"]
    assert once["kept_mb"] < literal["kept_mb"]
    assert all(row["difference"] < 1e-5 for row in (by_length, once, bounded))
    assert all(len(row["seconds"]) == 1 for row in table.rows)


def test_shares_are_of_the_step_that_was_measured(tiny_features: Features, config: RunConfig) -> None:
    step = encoder_table(tiny_features, config, CPU, 1, lambda _: None)
    once = next(row for row in step.rows if row["name"] == "each utterance once")
    for whole in (step, None):
        rows = shares_table(tiny_features, config, CPU, 1, lambda _: None, whole).rows
        assert (rows[0]["seconds"] == once["seconds"]) == (whole is step)
        assert [row["share"] for row in rows] == [
            row["median"] / rows[0 if place < 6 else 6]["median"] for place, row in enumerate(rows)
        ]
        assert rows[6]["name"] == "a step of the space's own batch, whole"
