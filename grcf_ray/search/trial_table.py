"""Trials that were recorded over a whole search space, and draws of further ones from them.

T recorded trials of a stage, E epochs, N utterances of a split, D coordinates. C figures of a trial: those of its
epochs, and behind them, where they were recorded, those of its averaged weights.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from grcf_ray.config import Task
from grcf_ray.metrics import MetricProtocol
from grcf_ray.search.space import Dimension, Space
from grcf_ray.train.curve import DIRECTIONS

if TYPE_CHECKING:
    from sklearn.gaussian_process import GaussianProcessRegressor

NEIGHBOURS = 5
"""Recorded configurations, the nearest ones, that a trial is drawn from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownTrial:
    """The results of a trial."""

    stage: Literal[1, 2]
    objective: Mapping[str, NDArray[np.float64]]
    """[C] by split."""
    seconds_E: NDArray[np.float64]
    passes_E: NDArray[np.float64]
    """Encoded utterances over training utterances."""
    error: Mapping[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    """[C, N] by split: the score of each utterance minus its label, in label units. Empty unless it was asked for."""

    @property
    def values_E(self) -> NDArray[np.float64]:
        """The objective of each epoch on valid."""
        return self.objective["valid"][: len(self.seconds_E)]

    @property
    def best(self) -> int:
        """The index of the epoch with the best objective on valid; the averaged weights are not considered."""
        return int(self.values_E.argmin() if DIRECTIONS[self.stage] == "min" else self.values_E.argmax())

    @property
    def best_value(self) -> float:
        """The best objective of an epoch on valid."""
        return float(self.values_E[self.best])

    def shifted(self, by: Mapping[str, NDArray[np.float64]]) -> KnownTrial:
        """Return the trial with its objectives and the sizes of its errors changed by as much, [C] by split."""
        objective = {split: values + by[split] for split, values in self.objective.items()}
        error = self.error
        if DIRECTIONS[self.stage] == "min":
            error = {
                split: np.copysign(np.maximum(np.abs(values) + by[split][:, None], 0.0), values)
                for split, values in error.items()
            }
        return dataclasses.replace(self, objective=objective, error=error)

    def stretched(self, epochs: int, seconds: float) -> KnownTrial:
        """Return the epochs of a trial of another length: equal shares of the training have equal objectives.

        seconds: of an epoch.
        """
        length = len(self.seconds_E)
        at_E = np.arange(1, epochs + 1) * length / epochs
        return KnownTrial(
            stage=self.stage,
            objective={
                split: np.interp(at_E, np.arange(1, length + 1), values[:length])
                for split, values in self.objective.items()
            },
            seconds_E=np.full(epochs, seconds),
            passes_E=np.full(epochs, self.passes_E.mean()),
        )


@dataclasses.dataclass(frozen=True)
class TableTrial:
    """A trial of a table."""

    configuration: int
    params: Mapping[str, Any]
    known: KnownTrial
    finalist: float | None = None
    """The Stage 1 objective that a trial of Stage 2 starts from."""
    origin: tuple[int, int] | None = None
    """Configuration and seed of the Stage 1 trial that a trial of Stage 2 starts from, where they are known."""


class TrialTable:
    """The recorded trials of each stage, all of a stage with as many epochs.

    A drawn trial is a recorded one of a nearby configuration, under any of its seeds, plus the difference that a model
    of the objective expects between the two configurations, epoch by epoch. Its luck, which is what the model does not
    expect, is mixed with that of another trial: otherwise every search would end at the same few lucky trials.

    name: of the data, for messages. space: of the trials. half_range: half the label range.
    """

    def __init__(
        self,
        recorded: Mapping[Literal[1, 2], Sequence[TableTrial]],
        *,
        name: str,
        space: Space,
        task: Task,
        protocol: MetricProtocol,
        half_range: float,
    ) -> None:
        self.name, self.space, self.task, self.protocol, self.half_range = name, space, task, protocol, half_range
        self._recorded = recorded
        self._models = {stage: _Model(space.dimensions(stage), trials) for stage, trials in recorded.items()}

    @property
    def stages(self) -> list[Literal[1, 2]]:
        """The stages that have trials."""
        return list(self._recorded)

    def configurations(self, stage: Literal[1, 2]) -> int:
        """Return the number of recorded configurations."""
        return len({trial.configuration for trial in self._recorded[stage]})

    def recorded(self, stage: Literal[1, 2]) -> Sequence[TableTrial]:
        """Return the recorded trials."""
        return self._recorded[stage]

    def draw(
        self,
        stage: Literal[1, 2],
        params: Mapping[str, Any],
        rng: np.random.Generator,
        finalist: float | None = None,
    ) -> KnownTrial:
        """Return a trial with these parameters. finalist: the Stage 1 objective that a trial of Stage 2 starts from."""
        model, recorded = self._models[stage], self._recorded[stage]
        at_D = model.place(params, finalist)
        chosen = int(rng.choice(model.nearby(at_D)))
        other = (chosen + int(rng.integers(1, len(recorded)))) % len(recorded) if len(recorded) > 1 else chosen
        angle = rng.uniform(0, np.pi / 2) if other != chosen else 0.0
        difference = {}
        for split, trends in model.trends(np.stack([at_D, model.at_TD[chosen], model.at_TD[other]])).items():
            luck, other_luck = (
                recorded[index].known.objective[split] - trend
                for index, trend in zip((chosen, other), trends[1:], strict=True)
            )
            # Independent draws mixed in this way keep their covariance.
            mixed = np.cos(angle) * luck + np.sin(angle) * other_luck
            difference[split] = trends[0] + mixed - recorded[chosen].known.objective[split]
        return recorded[chosen].known.shifted(difference)


class _Model:
    """The coordinates [T, D] of a stage's trials, and a Gaussian process of their objectives by split."""

    def __init__(self, dimensions: Mapping[str, Dimension], trials: Sequence[TableTrial]) -> None:
        self._dimensions = dimensions
        starts = [trial.finalist for trial in trials if trial.finalist is not None]
        self._reach = (min(starts, default=0.0), max(starts, default=1.0))
        self.at_TD = np.array([self.place(trial.params, trial.finalist) for trial in trials])
        known = [trial.known for trial in trials]
        epochs = len(known[0].seconds_E)
        self._processes = {
            split: _process(self.at_TD, np.stack([trial.objective[split] for trial in known]), epochs - 1)
            for split in known[0].objective
        }
        kernel = self._processes["valid"].kernel_.get_params()
        # A setting that changes nothing must not make trials far apart.
        self._scale_D = np.broadcast_to(kernel["k1__k2__length_scale"], self.at_TD.shape[1:])

    def place(self, params: Mapping[str, Any], finalist: float | None) -> NDArray[np.float64]:
        """Return the coordinates of a configuration: its settings' places in their ranges, and its finalist's."""
        low, high = self._reach
        start = 0.0 if finalist is None or high == low else (finalist - low) / (high - low)
        return np.array([*(dimension.place_of(params[path]) for path, dimension in self._dimensions.items()), start])

    def nearby(self, at_D: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the indices of the trials of the nearest configurations."""
        distance_T = (((self.at_TD - at_D) / self._scale_D) ** 2).sum(axis=1)
        return np.flatnonzero(distance_T <= np.unique(distance_T)[:NEIGHBOURS][-1])

    def trends(self, at_ND: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return the expected objectives [N, C] by split."""
        return {split: process.predict(at_ND) for split, process in self._processes.items()}


def _process(at_TD: NDArray[np.float64], value_TC: NDArray[np.float64], last: int) -> GaussianProcessRegressor:
    """Return a Gaussian process of all figures, with the kernel that fits those of the last epoch."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    smooth = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(np.ones(at_TD.shape[1]), (0.1, 100.0))
    kernel = smooth + WhiteKernel(0.5, (1e-3, 10.0))
    with warnings.catch_warnings():
        # A length at its bound is that of a setting that changes nothing.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0)
        fitted.fit(at_TD, value_TC[:, last])
        return GaussianProcessRegressor(fitted.kernel_, normalize_y=True, optimizer=None).fit(at_TD, value_TC)
