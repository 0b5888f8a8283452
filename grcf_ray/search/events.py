"""What a search tells its listeners: the terminal, TensorBoard, tests. The search imports none of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from grcf_ray.search.record import TrialRecord

__all__ = [
    "EpochFinished",
    "Event",
    "Listener",
    "StageEnded",
    "StageStarted",
    "TrialEnded",
    "TrialStarted",
    "WinnerFixed",
]


@dataclasses.dataclass(frozen=True)
class StageStarted:
    """A stage is about to run the trials that its budget still has."""

    stage: Literal[1, 2]
    budget: int
    epochs: int
    trials: tuple[TrialRecord, ...]
    """What the record already holds."""


@dataclasses.dataclass(frozen=True)
class TrialStarted:
    """A trial has been proposed and launched."""

    trial: TrialRecord


@dataclasses.dataclass(frozen=True)
class EpochFinished:
    """A trial has finished an epoch and goes on."""

    trial: TrialRecord


@dataclasses.dataclass(frozen=True)
class TrialEnded:
    """A trial has ended, as its state says."""

    trial: TrialRecord


@dataclasses.dataclass(frozen=True)
class StageEnded:
    """Every trial of a stage has ended."""

    stage: Literal[1, 2]


@dataclasses.dataclass(frozen=True)
class WinnerFixed:
    """Validation has chosen; the test split is read only after this."""

    trial: TrialRecord


Event = StageStarted | TrialStarted | EpochFinished | TrialEnded | StageEnded | WinnerFixed
Listener = Callable[[Event], None]
