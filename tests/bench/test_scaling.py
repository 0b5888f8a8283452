from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import scaling
import torch
from scaling import Cost, Scaling

if TYPE_CHECKING:
    from collections.abc import Sequence


def costs_of(monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float]) -> Scaling:
    """Make the costs of 1, 10 and 100 units that take these seconds."""
    times = iter(seconds)
    monkeypatch.setattr(scaling, "_seconds", lambda ready, repetitions: next(times))
    costs = Scaling([Cost("sort", "sorting", "item")], 1, lambda text: None)
    for size in (1, 10, 100):
        costs.begin(size)
        costs.measure("sort", size, lambda: None)
    return costs


def test_linear_cost_with_a_fixed_part(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = costs_of(monkeypatch, (2.0, 11.0, 101.0))
    assert [row["sort_each"] for row in costs.rows] == pytest.approx([2e6, 1.1e6, 1.01e6])
    linear, fixed = costs.notes(lambda run: {})
    assert linear.endswith("sorting (1.00)") and "sorting (at most 2.000 s)" in fixed
    # Trapezoids: 9 x 6.5 + 90 x 56.
    assert costs.together("sort") == pytest.approx(9 * 6.5 + 90 * 56)


def test_what_rose_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = costs_of(monkeypatch, (1.0, 10.0, 400.0))
    profiles = iter([{"compare": 1.0, "copy": 1.0}, {"compare": 310.0, "copy": 100.0}])
    (note,) = costs.notes(lambda run: next(profiles))
    # A unit: from 1 to 3.1 and from 1 to 1 second.
    assert "sorting, 4.00 times" in note and note.endswith("compare 100%, copy 0%")
    profiles = iter([{"compare": 1.0}, {"compare": 3.0, "copy": 2.0}])
    (note,) = costs.rises(lambda run: next(profiles))
    assert "sorting: 400.0 times" in note and note.endswith("compare 50%, copy 50%")
    assert "no such rise" in scaling._rise({"a": 1.0}, {"a": 0.5})


def test_long_calls_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def run() -> None:
        calls.append(sum(range(300_000)))

    scaling._seconds(lambda: run, 3)
    assert len(calls) == 4, "a warm-up, then three"
    monkeypatch.setattr(scaling, "LONG", 1e-6)
    assert scaling._seconds(lambda: run, 3) > 0
    assert len(calls) == 5


def test_profiles_name_functions_and_kernels() -> None:
    def spin() -> int:
        return sum(range(100_000))

    assert {"spin (test_scaling.py)", "<built-in method builtins.sum>"} <= scaling.function_times(spin).keys()
    weight = torch.zeros(3, 3, requires_grad=True)
    kernels = scaling.kernel_times(lambda: (torch.ones(2, 3) @ weight).sum().backward())
    assert {"aten.mm", "aten.sum", "aten.expand"} <= kernels.keys(), "forward and backward"
