"""Events that a search sends to its listeners, such as the terminal and TensorBoard. The search imports no listener."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from grcf_ray.config import Task
from grcf_ray.search.record import TrialRecord


@dataclasses.dataclass(frozen=True)
class SearchStarted:
    """The search is about to run."""

    concurrent: int
    """Trials at a time."""
    budgets: Mapping[int, tuple[int, int]]
    """Trials and epochs of each stage."""
    task: Task = "regression"
    seeds: int = 0
    """Fresh seeds for retraining the winner and the starting point after the search."""
    seconds: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Seconds until each stage ends by the time budget; empty without a time budget."""


@dataclasses.dataclass(frozen=True)
class StageStarted:
    """A stage is about to run the rest of its budget. Stage 2 may start before Stage 1 has ended."""

    stage: Literal[1, 2]
    budget: int
    epochs: int
    trials: tuple[TrialRecord, ...]
    """Trials on record."""


@dataclasses.dataclass(frozen=True)
class TrialsMissing:
    """The record lacks some trials below the last number, for example deleted files. Their numbers are not reused."""

    stage: Literal[1, 2]
    numbers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TrialEvent:
    """An event of one trial."""

    trial: TrialRecord


class TrialStarted(TrialEvent):
    """A trial has been proposed and launched."""


class EpochFinished(TrialEvent):
    """A trial has finished an epoch and goes on."""


@dataclasses.dataclass(frozen=True)
class TrialBroke(TrialEvent):
    """A trial's process died; the trial continues in another process."""

    seconds: float = 0.0
    """Pause before the trial is launched again."""


class TrialLeft(TrialEvent):
    """A trial failed too often for causes outside of it; the next start of the search runs it again."""


@dataclasses.dataclass(frozen=True)
class NodeExcluded:
    """A node gets no more trials of this search, because trials failed there and other nodes can take them."""

    host: str
    """Host name and address."""


class TrialEnded(TrialEvent):
    """A trial has ended, as its state says."""


@dataclasses.dataclass(frozen=True)
class StageEnded:
    """A stage has ended: this search runs no more of its trials."""

    stage: Literal[1, 2]
    cut: int = 0
    """Trials that the time budget left unfinished or did not start."""
    left: int = 0
    """Trials left unfinished after failures for causes outside of them."""


@dataclasses.dataclass(frozen=True)
class FinalistsHeld:
    """Stage 1 has new finalists, but Stage 2 has spent its budget and `--reopen` was not given."""

    trials: tuple[TrialRecord, ...]


@dataclasses.dataclass(frozen=True)
class FinalistSkipped(TrialEvent):
    """A trial is not a finalist because its weights are damaged."""

    why: str


@dataclasses.dataclass(frozen=True)
class RetrainingsStarted:
    """Retrainings with fixed parameters and seeds are about to start; later stage events are theirs."""

    what: str
    """Description of the models to train."""
    trials: Mapping[int, int]
    """Most trials to train, by stage."""


@dataclasses.dataclass(frozen=True)
class ModelMeasured:
    """`done` of `total` trained models are measured on valid and test; the first event has `done` 0."""

    done: int
    total: int


@dataclasses.dataclass(frozen=True)
class StepStarted:
    """A step without training, such as saving a model, is about to start."""

    what: str
    """The step as a noun phrase: "saving the winner's model"."""
    models: int = 0
    """Models still to measure, without retrainings."""


class WinnerFixed(TrialEvent):
    """Validation has chosen the winner; the test split is read only after this event."""


@dataclasses.dataclass(frozen=True)
class SearchFinished:
    """The search has its result, on record; the run is still this driver's."""


Event = (
    SearchStarted
    | StageStarted
    | TrialStarted
    | TrialsMissing
    | EpochFinished
    | TrialBroke
    | TrialLeft
    | TrialEnded
    | NodeExcluded
    | StageEnded
    | StepStarted
    | FinalistsHeld
    | FinalistSkipped
    | RetrainingsStarted
    | ModelMeasured
    | WinnerFixed
    | SearchFinished
)
Listener = Callable[[Event], None]
