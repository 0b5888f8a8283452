"""Coordinates of trials for models of their objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from grcf_ray.report.figures.parameters import Parameter, searched
from grcf_ray.report.view import RunView
from grcf_ray.search.record import TrialRecord
from grcf_ray.search.space import Range


class Coordinates:
    """Coordinates of a stage's trials, each from 0 to 1 over the searched range.

    In Stage 2 the finalist counts as its Stage 1 objective.
    """

    def __init__(self, view: RunView, stage: Literal[1, 2], trials: Sequence[TrialRecord]) -> None:
        self._firsts = {trial.number: trial.objective for trial in view.trials[1]}
        parameters = searched([self._resolved(trial) for trial in trials], stage, view.space)
        self._varying = [
            parameter
            for parameter in parameters
            if len({parameter.value(self._resolved(trial).params) for trial in trials}) > 1
        ]
        self.start = next((trial for trial in view.trials[stage] if trial.number == 0), None)
        if self.start is not None and "finalist" in self.start.params:
            # Stage 2's first trial starts from the best finalist, the starting point of both stages from its own.
            self.start = dataclasses.replace(self.start, params={**self.start.params, "finalist": "0"})

    def of(self, trial: TrialRecord) -> list[float] | None:
        """Return the trial's coordinates; None if it lacks a parameter."""
        params = self._resolved(trial).params
        values = [parameter.value(params) for parameter in self._varying]
        if any(value is None for value in values):
            return None
        pairs = zip(self._varying, values, strict=True)
        # Without a varying parameter all trials have the same place.
        return [place for p, value in pairs if value is not None for place in _coordinates(p, value)] or [0.0]

    def _resolved(self, trial: TrialRecord) -> TrialRecord:
        finalist = trial.params.get("finalist")
        if finalist is None:
            return trial
        return dataclasses.replace(trial, params={**trial.params, "finalist": self._firsts.get(int(finalist))})


def _coordinates(parameter: Parameter, value: float | str) -> list[float]:
    if not isinstance(parameter.scale, Range):
        # Two different choices are as far apart as the ends of a range.
        return [float(value == choice) * 0.5**0.5 for choice in parameter.scale]
    # The starting point may lie below the worst finalist, where the model knows nothing.
    return [min(max(parameter.place(value), 0.0), 1.0)]
