from __future__ import annotations

import pytest
import torch
from torch import nn

from grcf_ray.bench.measure import Variant, interleave, kept_bytes

CPU = torch.device("cpu")


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
