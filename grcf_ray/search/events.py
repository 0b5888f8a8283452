"""What a search tells its listeners: the terminal, TensorBoard, tests. The search imports none of them."""

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
    """Fresh seeds that the winner and the starting point are trained under when the search has ended."""
    seconds: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Seconds until each stage hands on what it has, by the time budget; empty without one."""


@dataclasses.dataclass(frozen=True)
class StageStarted:
    """A stage is about to run the trials that its budget still has."""

    stage: Literal[1, 2]
    budget: int
    epochs: int
    trials: tuple[TrialRecord, ...]
    """What the record already holds."""


@dataclasses.dataclass(frozen=True)
class TrialsMissing:
    """The record lacks trials between others, as where their JSON was deleted. Their numbers stay spent."""

    stage: Literal[1, 2]
    numbers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TrialStarted:
    """A trial has been proposed and launched."""

    trial: TrialRecord


@dataclasses.dataclass(frozen=True)
class EpochFinished:
    """A trial has finished an epoch and goes on."""

    trial: TrialRecord


@dataclasses.dataclass(frozen=True)
class TrialBroke:
    """A trial's process died; the trial goes on in another."""

    trial: TrialRecord


@dataclasses.dataclass(frozen=True)
class TrialEnded:
    """A trial has ended, as its state says."""

    trial: TrialRecord


@dataclasses.dataclass(frozen=True)
class StageEnded:
    """No trial of a stage will run in this search."""

    stage: Literal[1, 2]
    cut: int = 0
    """Trials of its budget that the time budget left unfinished or did not begin."""


@dataclasses.dataclass(frozen=True)
class FinalistsHeld:
    """Stage 1 was extended and has new finalists, but Stage 2 has spent its budget and was not asked to reopen."""

    trials: tuple[TrialRecord, ...]


@dataclasses.dataclass(frozen=True)
class FinalistSkipped:
    """A trial's weights turned out to be damaged: it is left out of the finalists."""

    trial: TrialRecord
    why: str


@dataclasses.dataclass(frozen=True)
class RetrainingsStarted:
    """Trials whose parameters and seeds are given are about to be trained; the stages that follow are theirs."""

    what: str
    """What is trained, for people."""
    trials: Mapping[int, int]
    """By stage, how many there are to train at most."""


@dataclasses.dataclass(frozen=True)
class ModelMeasured:
    """Of so many trained models, so many are measured on valid and test; the first time none."""

    done: int
    total: int


@dataclasses.dataclass(frozen=True)
class StepStarted:
    """Something that trains nothing is about to be done with the models that were trained."""

    what: str
    """As a noun phrase of what is done: "saving the winner's model"."""
    models: int = 0
    """Models that are still to be measured, before any retrainings."""


@dataclasses.dataclass(frozen=True)
class WinnerFixed:
    """Validation has chosen; the test split is read only after this."""

    trial: TrialRecord


Event = (
    SearchStarted
    | StageStarted
    | TrialStarted
    | TrialsMissing
    | EpochFinished
    | TrialBroke
    | TrialEnded
    | StageEnded
    | StepStarted
    | FinalistsHeld
    | FinalistSkipped
    | RetrainingsStarted
    | ModelMeasured
    | WinnerFixed
)
Listener = Callable[[Event], None]
