"""Endings of a search: which of its trained models is delivered, and by which figure."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from policies import SeenTable

from grcf_ray.search.trial_table import KnownTrial

RESAMPLES = 1000
SURE = 0.9
"""Share of resampled validation splits on which a contender has to be worse to be dropped."""
MEMBERS = 3
"""Models of an ensemble of the best."""
ROUNDS = 10
"""Models that the greedy selection of an ensemble takes at most, repeats counted."""
DRAWS = 40
"""Draws that a configuration's mean test figure is taken over."""
Split = Literal["valid", "test"]


@dataclasses.dataclass(frozen=True)
class Delivered:
    """What a policy hands over, and its cost."""

    valid: float
    test: float
    passes: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A complete trial of Stage 2: parameters of both stages, the finalist's objective, and its results."""

    first: Mapping[str, Any]
    second: Mapping[str, Any]
    finalist: float | None
    known: KnownTrial


@dataclasses.dataclass(frozen=True)
class Finished:
    """A search that has ended."""

    table: SeenTable
    seed: int
    winner: KnownTrial
    """The trial with the best validation figure."""
    candidates: Sequence[Candidate]
    """The complete trials of Stage 2, best first."""
    passes: float
    seconds: float
    seconds_per_pass: float
    """Of a trial alone, over the slots."""

    @property
    def models(self) -> list[KnownTrial]:
        """The models of the complete trials of Stage 2."""
        return [candidate.known for candidate in self.candidates]

    def delivers(self, known: KnownTrial, more_passes: float = 0.0) -> Delivered:
        """Return a model as delivered. more_passes: those of the ending."""
        return Delivered(
            _figure(known, "valid"),
            _figure(known, "test"),
            self.passes + more_passes,
            self.seconds + more_passes * self.seconds_per_pass,
        )


Ending = Callable[[Finished], Delivered]


def best_by_validation(search: Finished) -> Delivered:
    """Deliver the winner."""
    return search.delivers(search.winner)


def best_configuration(search: Finished) -> Delivered:
    """Deliver the trial whose configuration has the least mean test error under fresh seeds: a perfect judge of
    configurations."""
    rng = np.random.default_rng([search.seed, 5])

    def mean(candidate: Candidate) -> float:
        return statistics.fmean(
            _figure(search.table.draw(2, candidate.second, rng, candidate.finalist), "test") for _ in range(DRAWS)
        )

    return search.delivers(min(search.candidates, key=mean).known)


def best_by_test(search: Finished) -> Delivered:
    """Deliver the model with the least test error: no choice among these models can be better."""
    return search.delivers(min(search.models, key=lambda known: _figure(known, "test")))


def best_by_more_utterances(search: Finished) -> Delivered:
    """Deliver the model that is best on valid and half of test together; the test figure is that of the other half.

    Each half judges once, and the figure is the mean of both.
    """
    sizes = [_sizes(known, "test") for known in search.models]
    order_N = np.random.default_rng([search.seed, 6]).permutation(len(sizes[0]))
    halves = np.array_split(order_N, 2)
    valid, test = [], []
    for judging, left in (halves, halves[::-1]):
        errors = [
            np.concatenate([_sizes(known, "valid"), size_N[judging]]).mean()
            for known, size_N in zip(search.models, sizes, strict=True)
        ]
        chosen = int(np.argmin(errors))
        valid.append(_figure(search.models[chosen], "valid"))
        test.append(float(sizes[chosen][left].mean()))
    return Delivered(statistics.fmean(valid), statistics.fmean(test), search.passes, search.seconds)


def mean_of_best(search: Finished) -> Delivered:
    """Deliver the mean score of the best models by validation."""
    return _ensemble(search, search.models[:MEMBERS])


def greedy_ensemble(search: Finished) -> Delivered:
    """Deliver the mean score of models that are added, repeats allowed, while the validation error falls.

    Caruana et al., Ensemble selection from libraries of models, ICML 2004.
    """
    members: list[KnownTrial] = []
    error = float("inf")
    for _ in range(ROUNDS):
        best = min(search.models, key=lambda known: ensemble_error([*members, known], "valid"))
        if (lower := ensemble_error([*members, best], "valid")) >= error:
            break
        members, error = [*members, best], lower
    return _ensemble(search, members)


def ensemble_error(members: Sequence[KnownTrial], split: Split) -> float:
    """Return the MAE of the mean score."""
    # The labels are the same, so the mean of the signed errors is the error of the mean.
    return float(np.abs(np.mean([known.error[split][known.best] for known in members], axis=0)).mean())


def _ensemble(search: Finished, members: Sequence[KnownTrial]) -> Delivered:
    valid, test = (ensemble_error(members, split) for split in ("valid", "test"))
    return Delivered(valid, test, search.passes, search.seconds)


def _figure(known: KnownTrial, split: Split) -> float:
    return float(known.objective[split][known.best])


def _sizes(known: KnownTrial, split: Split) -> NDArray[np.float64]:
    """Return the absolute error of each utterance."""
    size_N: NDArray[np.float64] = np.abs(known.error[split][known.best])
    return size_N


@dataclasses.dataclass
class Contender:
    """A configuration of both stages, and its models under fresh seeds."""

    first: Mapping[str, Any]
    second: Mapping[str, Any]
    finalist: float | None = None
    """Objective of the Stage 1 model that each model starts from; None for one of its own."""
    models: list[KnownTrial] = dataclasses.field(default_factory=list)

    def add(self, table: SeenTable, rng: np.random.Generator) -> float:
        """Train it under a fresh seed; return the passes."""
        passes, finalist = 0.0, self.finalist
        if finalist is None:
            first = table.draw(1, self.first, rng)
            passes, finalist = float(first.passes_E.sum()), first.best_value
        model = table.draw(2, self.second, rng, finalist)
        self.models.append(model)
        return passes + float(model.passes_E.sum())

    @property
    def mean(self) -> float:
        """Mean validation error of its models."""
        return statistics.fmean(model.best_value for model in self.models)

    @property
    def best(self) -> KnownTrial:
        """Its model with the least validation error."""
        return min(self.models, key=lambda model: model.best_value)

    def errors(self) -> NDArray[np.float64]:
        """Return the mean absolute error of each validation utterance over its models."""
        errors: NDArray[np.float64] = np.mean([_sizes(model, "valid") for model in self.models], axis=0)
        return errors


@dataclasses.dataclass(frozen=True)
class Race:
    """An ending that runs the best configurations against each other under fresh seeds."""

    contenders: int
    """Configurations of Stage 2."""
    rounds: int
    """Fresh seeds of each contender at most."""
    both_stages: bool = True
    """Whether contenders run both stages; otherwise Stage 2 alone, from the finalist of their trial."""

    def __call__(self, search: Finished) -> Delivered:
        """Run the race; deliver the best model of the configuration with the best mean."""
        table, rng, passes = search.table, np.random.default_rng([search.seed, 3]), 0.0
        contenders = [Contender(table.space.start(1), table.space.start(2))] if self.both_stages else []
        contenders += [
            Contender(known.first, known.second, None if self.both_stages else known.finalist)
            for known in search.candidates[: self.contenders]
        ]
        for played in range(self.rounds):
            if played and len(contenders) > 1:
                drop_worst(contenders, rng)
            passes += sum(contender.add(table, rng) for contender in contenders)
        return search.delivers(min(contenders, key=lambda contender: contender.mean).best, passes)


def drop_worst(contenders: list[Contender], rng: np.random.Generator) -> None:
    """Drop the contender with the largest error if it is larger than the best one's on most resampled splits."""
    ranked = sorted(contenders, key=lambda contender: contender.mean)
    difference_N = ranked[-1].errors() - ranked[0].errors()
    drawn = rng.integers(len(difference_N), size=(RESAMPLES, len(difference_N)))
    if (difference_N[drawn].mean(axis=1) > 0).mean() >= SURE:
        contenders.remove(ranked[-1])
