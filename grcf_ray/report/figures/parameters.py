"""The searched parameters of a stage for figures: scales of the recorded space, values of the trials."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from grcf_ray.report.view import RunView
from grcf_ray.search.record import TrialRecord
from grcf_ray.search.space import Choice, Dimension, Range, Space, recorded_space


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One searched setting."""

    path: str
    label: str
    """The path without its section, if that is unique in the stage."""
    log: bool
    """Whether the scale is logarithmic."""
    choices: tuple[str, ...] | None
    """Names of its values; None for numbers."""
    low: float = 0.0
    high: float = 1.0
    """Ends of the searched range, wider if a trial is outside."""

    def value(self, params: Mapping[str, Any]) -> float | str | None:
        """Return a trial's value: a number or the name of a choice, or None."""
        if self.path not in params:
            return None
        if self.choices is not None:
            return _name(params[self.path])
        value = number(params[self.path])
        return None if value is None or (self.log and value <= 0) else value

    def position(self, value: float | str) -> float:
        """Return a value's position on the searched scale: the number, its decimal logarithm, or the choice's index."""
        if self.choices is not None:
            return float(self.choices.index(str(value)))
        return math.log10(float(value)) if self.log else float(value)


def number(value: object) -> float | None:
    """Return a finite number unchanged, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if math.isfinite(value) else None


def objective(trial: TrialRecord) -> float | None:
    """Return the trial's best value of its stage's metric, or None."""
    return number(trial.objective)


def space_of(view: RunView) -> Space | None:
    """Return the search space of the run, or None."""
    return recorded_space(view.info.space.model_dump(), str(view.record))


def searched(trials: Sequence[TrialRecord], stage: Literal[1, 2], space: Space | None) -> list[Parameter]:
    """Return the stage's parameters in the space's order, then those of the trials alone, such as `finalist`.

    The values of the latter define their scale.
    """
    dimensions = {} if space is None else dict(space.dimensions(stage))
    paths = list(dict.fromkeys([*dimensions, *(path for trial in trials for path in trial.params)]))
    ends = Counter(_end(path) for path in paths)
    return [
        _parameter(
            path,
            _end(path) if ends[_end(path)] == 1 else path,
            dimensions.get(path),
            [trial.params[path] for trial in trials if path in trial.params],
        )
        for path in paths
    ]


def _parameter(path: str, label: str, dimension: Dimension | None, values: Sequence[object]) -> Parameter:
    numbers = [value for value in map(number, values) if value is not None]
    if isinstance(dimension, Choice) or (dimension is None and (len(numbers) < len(values) or not values)):
        known = dimension.choices if isinstance(dimension, Choice) else ()
        names = dict.fromkeys([*map(_name, known), *map(_name, values)])
        # Finalists are trial numbers: sort by number, not as strings.
        ordered = sorted(names, key=int) if not known and all(name.isdecimal() for name in names) else names
        return Parameter(path, label, log=False, choices=tuple(ordered))
    log, ends = (dimension.log, [dimension.low, dimension.high]) if isinstance(dimension, Range) else (False, [])
    ends += [value for value in numbers if value > 0 or not log]
    return Parameter(path, label, log=log, choices=None, low=min(ends), high=max(ends))


def _name(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _end(path: str) -> str:
    return path.rpartition(".")[2]
