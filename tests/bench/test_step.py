from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from grcf_ray.bench.step import LiteralStep, first_step, new_loop, shares_table, step_table
from grcf_ray.config import build_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from grcf_ray.bench.setup import Setup
    from grcf_ray.data.features import Features
    from grcf_ray.train.stage import StageLoop

CPU = torch.device("cpu")
EXACT = {
    "model.text_vector": "mean",
    "train.precision": "float64",
    "features.max_tokens": 50,
    "pairs.micro_batch_tokens": 64,
    "pairs.pairs_per_group": 12,
    "pairs.groups_per_step": 3,
}


def gradient(loop: StageLoop) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in loop.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("sort", [False, True])
def test_the_loop_over_pairs_has_the_same_gradient(tiny_features: Features, tiny_backbone: Path, sort: bool) -> None:
    config = build_config({"model.backbone": str(tiny_backbone), **EXACT})
    once, pair_by_pair = (new_loop(tiny_features, config, CPU, {}, dropout=False) for _ in range(2))
    step = first_step(once)
    once.backward(step)
    literal = LiteralStep(pair_by_pair, step, sort=sort)
    literal.backward()
    assert (gradient(once) - gradient(pair_by_pair)).norm() < 1e-12 * gradient(pair_by_pair).norm()
    lengths_S = tiny_features.train.tokens.lengths[np.concatenate([step.utterance_U[g.slot_S] for g in step.groups])]
    assert len(lengths_S) == 2 * 36
    if sort:
        assert lengths_S.sum() <= literal.tokens() < 50 * 2 * 36
    else:
        assert literal.tokens() == 50 * 2 * 36


def test_step_and_its_shares(setup_of: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grcf_ray.bench.step.PAPER_STEP", {"pairs.pairs_per_group": 48, "pairs.groups_per_step": 2})
    setup = setup_of()
    literal, by_length, once, bounded = step_table(setup).rows
    assert literal["speed_up"] == literal["bound"] == 1
    assert 1 < by_length["bound"] < once["bound"] == bounded["bound"]
    assert once["kept_mb"] < literal["kept_mb"]
    assert all(row["difference"] < 1e-5 for row in (by_length, once, bounded))
    for measured in (False, True):
        if measured:
            setup.tables["step"] = step_table(setup)
        rows = shares_table(setup).rows
        assert not measured or rows[0]["seconds"] == setup.tables["step"].rows[2]["seconds"]
        assert [row["share"] for row in rows] == [
            row["median"] / rows[0 if place < 6 else 6]["median"] for place, row in enumerate(rows)
        ]
