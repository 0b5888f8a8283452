"""What a search that was disturbed has to repeat."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from grcf_ray.search.record import TrialRecord
from grcf_ray.search.replay import TIMINGS

__all__ = ["essence"]


def essence(trials: Iterable[TrialRecord]) -> list[tuple[Any, ...]]:
    """Return all of the trials but times, speeds, attempts and places; the curve comes last."""

    def curve(trial: TrialRecord) -> list[dict[str, Any]]:
        return [{name: value for name, value in epoch.items() if name not in TIMINGS} for epoch in trial.curve]

    return [(t.number, t.params, t.seed, t.state, t.error, curve(t)) for t in trials]
