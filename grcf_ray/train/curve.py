"""The objective of a stage, and the curve of its epochs. Needs no torch, so that readers of a record stay light."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from grcf_ray.config import Task

STAGES: tuple[Literal[1, 2], ...] = (1, 2)
DIRECTIONS: dict[int, Literal["max", "min"]] = {1: "max", 2: "min"}
"""Direction in which each stage's objective improves."""
_SHORTEST_WAIT_S = 600.0
_EPOCHS_WAITED = 10


def hang_limit(seconds: Sequence[float]) -> float:
    """Return the seconds without progress after which a training counts as hung.

    seconds: of similar epochs, at least one.
    """
    return max(_SHORTEST_WAIT_S, _EPOCHS_WAITED * statistics.median(seconds))


def minimised(stage: int, value: float) -> float:
    """Return a value of a stage's objective such that lower is better."""
    return value if DIRECTIONS[stage] == "min" else -value


def objective_name(stage: int, task: Task) -> str:
    """Return the name of the validation metric that a stage optimises (appendix C.3), without its split."""
    if stage == 1:
        return "pairwise_acc"
    return "bce" if task == "classification" else "mae"


def objective_value(stage: int, metrics: Mapping[str, Any]) -> float | None:
    """Return the objective of an epoch; None if it is undefined."""
    task: Task = "classification" if "valid/bce" in metrics else "regression"
    value: float | None = metrics.get(f"valid/{objective_name(stage, task)}")
    return value


def best_epoch(stage: int, curve: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the metrics of the epoch with the best objective, the earliest of equals; None if no epoch has one."""
    scored = [(objective_value(stage, metrics), metrics) for metrics in curve]
    usable = [(minimised(stage, value), metrics["epoch"], metrics) for value, metrics in scored if value is not None]
    return min(usable, key=lambda entry: entry[:2])[2] if usable else None


def finite(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the curve with None for undefined values, such as a correlation of constant scores, for JSON."""
    return [
        {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in metrics.items()}
        for metrics in curve
    ]
