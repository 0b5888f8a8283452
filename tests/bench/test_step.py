"""Steps, layers, and the way in which variants are timed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from grcf_ray.bench.measure import Variant, interleave, kept_bytes
from grcf_ray.bench.step import LiteralStep, first_step, matmul_flops, new_loop, shares_table, step_table
from grcf_ray.config import build_config
from grcf_ray.train.stage import use_deterministic_torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

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
    assert all(0 < row["peak_share"] < 1 for row in (literal, by_length, once, bounded))
    for measured in (False, True):
        if measured:
            setup.tables["step"] = step_table(setup)
        rows = shares_table(setup).rows
        assert not measured or rows[0]["seconds"] == setup.tables["step"].rows[2]["seconds"]
        assert [row["share"] for row in rows] == [
            row["median"] / rows[0 if place < 6 else 6]["median"] for place, row in enumerate(rows)
        ]


def test_the_share_of_the_peak_is_in_operations_and_seconds(
    setup_of: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that gives every call a second."""
    clock = iter(range(1000))
    monkeypatch.setattr("grcf_ray.bench.measure.time.process_time", lambda: float(next(clock)))
    setup = setup_of({"pairs.micro_batch_tokens": 64})
    peak = matmul_flops(setup, torch.float32, 32)
    assert peak == 2 * 32**3
    monkeypatch.setattr("grcf_ray.bench.step.PAPER_STEP", {"pairs.pairs_per_group": 12, "pairs.groups_per_step": 2})
    monkeypatch.setattr("grcf_ray.bench.step._SIDE", {"cpu": 32})
    literal, _, once, _ = step_table(setup).rows
    # Two layers of width 32; each token is multiplied with 4 x 32^2 + 2 x 32 x 64 weights, 50 keys and 50 values.
    per_token = 2 * (4 * 32**2 + 2 * 32 * 64 + 2 * 50 * 32)
    # Two operations for each product, once forward and twice backward.
    tokens = literal["peak_share"] * peak * literal["median"] / (2 * 3 * per_token)
    assert tokens == pytest.approx(2 * 2 * 12 * 50, rel=0.05)
    assert 0 < once["peak_share"] < literal["peak_share"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_the_paper_s_batch_on_a_gpu(setup_of: Callable[..., Setup]) -> None:
    use_deterministic_torch(1)
    setup = dataclasses.replace(setup_of(repetitions=3), device=torch.device("cuda"))
    table = step_table(setup)
    assert all(0 < row["peak_share"] < 1 for row in table.rows)
    assert "8192 x 8192 in bfloat16" in table.notes[-1]


def test_variants_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    variants = [Variant(name, lambda name=name: calls.append(name), scale) for name, scale in (("a", 1), ("b", 8))]
    said: list[str] = []
    timings = interleave(variants, 3, CPU, said.append)
    assert calls == ["a", "b"] * 4
    assert [len(seconds) for seconds in timings] == [3, 3]
    assert said[:3] == ["a, warm-up", "b, warm-up", "a, 1/3"]


def test_time_is_the_processs_own_and_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("grcf_ray.bench.measure.time.process_time", lambda: float(next(clock)))
    plain, scaled = interleave([Variant("a", lambda: None), Variant("b", lambda: None, 8)], 2, CPU, lambda _: None)
    assert plain == (1, 1)
    assert scaled == (8, 8)


def test_kept_bytes_are_those_of_activations_at_one_time() -> None:
    """Two layers in a row keep their inputs at once; after the backward pass of one part the next starts anew."""
    layers = nn.Sequential(nn.Linear(10, 20, bias=False), nn.Tanh(), nn.Linear(20, 5, bias=False))
    parameters = list(layers.parameters())
    x_N10 = torch.ones(7, 10)
    # The first layer's input, and the output of tanh, which is the second one's input: [7, 10] and [7, 20] of 4 bytes.
    whole = 4 * 7 * (10 + 20)
    assert kept_bytes(lambda: layers(x_N10).sum().backward(), parameters) == whole

    def in_parts() -> None:
        for part in (x_N10[:3].clone(), x_N10[3:].clone()):
            layers(part).sum().backward()

    assert kept_bytes(in_parts, parameters) == whole * 4 // 7
