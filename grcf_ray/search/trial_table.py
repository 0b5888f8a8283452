"""Trials that were recorded over a whole search space, and draws of further ones from them.

`benchmarks/record_trials.py` records a table. T recorded trials of a stage, E epochs, N utterances of a split, D
coordinates.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from grcf_ray.config import Task
from grcf_ray.errors import DataError, reason
from grcf_ray.files import atomic_write
from grcf_ray.metrics import MetricProtocol, split_metrics
from grcf_ray.search.space import Choice, Dimension, Space, recorded_space
from grcf_ray.train.curve import DIRECTIONS, objective_name

if TYPE_CHECKING:
    from sklearn.gaussian_process import GaussianProcessRegressor

NEIGHBOURS = 5
"""Recorded configurations, the nearest ones, that a trial is drawn from."""
SPLITS = ("valid", "test")


@dataclasses.dataclass(frozen=True)
class KnownTrial:
    """The results of a trial by epoch, and behind them those of its averaged weights."""

    objective: Mapping[str, NDArray[np.float64]]
    """[E + 1] by split."""
    error: Mapping[str, NDArray[np.float64]]
    """[E + 1, N] by split: the absolute error of each utterance, in label units."""
    seconds_E: NDArray[np.float64]
    passes_E: NDArray[np.float64]
    """Encoded utterances over training utterances."""

    lower_is_better: bool

    @property
    def best(self) -> int:
        """The index of the epoch with the best objective on valid; the averaged weights are not considered."""
        values = self.objective["valid"][:-1]
        return int(values.argmin() if self.lower_is_better else values.argmax())

    def shifted(self, by: Mapping[str, NDArray[np.float64]]) -> KnownTrial:
        """Return the trial with its objectives and errors changed by as much, [E + 1] by split."""
        objective = {split: values + by[split] for split, values in self.objective.items()}
        error = self.error
        if self.lower_is_better:
            error = {split: np.maximum(values + by[split][:, None], 0.0) for split, values in error.items()}
        return dataclasses.replace(self, objective=objective, error=error)


def write_table(path: Path, about: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> None:
    """Write recorded trials as one Parquet file.

    about: the data set, its task, protocol and half_range, the space, and the labels of valid and test about the centre
    of the label range. trials: each with stage, configuration, seed, finalist (the configuration of Stage 1 that it
    starts from, or None), params, curve, and scores [E + 1, N], those of valid before those of test, and those of the
    averaged weights last.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    epoch = pa.struct({"epoch": pa.int32(), "seconds": pa.float32(), "utterance_passes": pa.float32()})
    schema = pa.schema(
        {
            "stage": pa.int8(),
            "configuration": pa.int32(),
            "seed": pa.int32(),
            "finalist": pa.int32(),
            "params": pa.string(),
            "curve": pa.list_(epoch),
            "scores": pa.list_(pa.float16()),
        },
        {"about": json.dumps(about)},
    )
    rows = [
        {
            **trial,
            "params": json.dumps(trial["params"]),
            "curve": [{name: metrics[name] for name in epoch.names} for metrics in trial["curve"]],
            # Half precision keeps a score to 0.002 at worst, a tenth of what seeds change in an error.
            "scores": np.asarray(trial["scores"], np.float16).reshape(-1),
        }
        for trial in trials
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema), file, compression="zstd")


class TrialTable:
    """The recorded trials of both stages.

    A drawn trial is a recorded one of a nearby configuration, under any of its seeds, plus the difference that a model
    of the objective expects between the two configurations, epoch by epoch.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            about = json.loads(table.schema.metadata[b"about"])
        except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not a table of recorded trials ({reason(error)})") from error
        self.space: Space = recorded_space(about["space"], str(path))
        self.task: Task = about["task"]
        self.protocol: MetricProtocol = about["protocol"]
        self.half_range: float = about["half_range"]
        self._labels = {split: np.array(about[split]) for split in SPLITS}
        self._rows = {stage: [row for row in table.to_pylist() if row["stage"] == stage] for stage in (1, 2)}
        self._firsts: dict[tuple[int, int], float] = {}
        self._reach = (0.0, 1.0)
        self._stages = {stage: self._read(stage) for stage in (1, 2)}

    def configurations(self, stage: Literal[1, 2]) -> int:
        """Return the number of recorded configurations."""
        return len({row["configuration"] for row in self._rows[stage]})

    def recorded(self, stage: Literal[1, 2]) -> Sequence[KnownTrial]:
        """Return the recorded trials that did not diverge."""
        return self._stages[stage].trials

    def draw(
        self,
        stage: Literal[1, 2],
        params: Mapping[str, Any],
        rng: np.random.Generator,
        finalist: float | None = None,
    ) -> KnownTrial:
        """Return a trial with these parameters. finalist: the Stage 1 objective that a trial of Stage 2 starts from."""
        return self._stages[stage].draw(self._at(stage, params, finalist), rng)

    def expected(
        self, stage: Literal[1, 2], params: Mapping[str, Any], finalist: float | None = None
    ) -> Mapping[str, NDArray[np.float64]]:
        """Return the objective [E + 1] that the model expects of these parameters, by split."""
        at_1D = self._at(stage, params, finalist)[None]
        return {split: self._stages[stage].trend(split, at_1D)[0] for split in SPLITS}

    def _at(self, stage: Literal[1, 2], params: Mapping[str, Any], finalist: float | None) -> NDArray[np.float64]:
        places = [_place(dimension, params[path]) for path, dimension in self.space.dimensions(stage).items()]
        if finalist is not None:
            low, high = self._reach
            places.append((finalist - low) / (high - low))
        return np.array(places)

    def _read(self, stage: Literal[1, 2]) -> _Stage:
        trials, ats = [], []
        epochs = max(len(row["curve"]) for row in self._rows[stage])
        if stage == 2:
            low, high = min(self._firsts.values()), max(self._firsts.values())
            self._reach = (low, high if high > low else low + 1.0)
        for row in self._rows[stage]:
            # Trials that diverged are rare, and no draw is one.
            if len(row["curve"]) < epochs:
                continue
            trial = self._trial(stage, row)
            if stage == 1:
                self._firsts[row["configuration"], row["seed"]] = float(trial.objective["valid"][trial.best])
            finalist = None if row["finalist"] is None else self._firsts[row["finalist"], row["seed"]]
            trials.append(trial)
            ats.append(self._at(stage, json.loads(row["params"]), finalist))
        return _Stage(trials, np.array(ats))

    def _trial(self, stage: Literal[1, 2], row: Mapping[str, Any]) -> KnownTrial:
        n_valid = len(self._labels["valid"])
        score_EN = np.asarray(row["scores"], np.float64).reshape(len(row["curve"]) + 1, -1)
        scores = {"valid": score_EN[:, :n_valid], "test": score_EN[:, n_valid:]}
        name = objective_name(stage, self.task)
        objective = {
            split: np.array([self._metric(name, score_N, self._labels[split]) for score_N in scores[split]])
            for split in SPLITS
        }
        return KnownTrial(
            objective=objective,
            error={split: np.abs(scores[split] - self._labels[split]) for split in SPLITS},
            seconds_E=np.array([metrics["seconds"] for metrics in row["curve"]]),
            passes_E=np.array([metrics["utterance_passes"] for metrics in row["curve"]]),
            lower_is_better=DIRECTIONS[stage] == "min",
        )

    def _metric(self, name: str, score_N: NDArray[np.float64], label_N: NDArray[np.float64]) -> float:
        metrics = split_metrics(score_N, label_N, protocol=self.protocol, limit=self.half_range, only=name)
        return metrics[name]


class _Stage:
    """The recorded trials of a stage, with their coordinates [T, D] and a model of their objectives."""

    def __init__(self, trials: Sequence[KnownTrial], at_TD: NDArray[np.float64]) -> None:
        self.trials, self._at_TD = trials, at_TD
        self._models = {}
        for split in SPLITS:
            self._models[split] = _models(at_TD, np.stack([trial.objective[split] for trial in trials]))
        kernel = self._models["valid"][0].kernel_.get_params()
        # A setting that changes nothing must not make trials far apart.
        self._scale_D = np.broadcast_to(kernel["k1__k2__length_scale"], at_TD.shape[1:])

    def trend(self, split: str, at_ND: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([model.predict(at_ND) for model in self._models[split]], axis=1)

    def draw(self, at_D: NDArray[np.float64], rng: np.random.Generator) -> KnownTrial:
        distance_T = (((self._at_TD - at_D) / self._scale_D) ** 2).sum(axis=1)
        reach = np.unique(distance_T)[:NEIGHBOURS][-1]
        chosen = int(rng.choice(np.flatnonzero(distance_T <= reach)))
        both_2D = np.stack([at_D, self._at_TD[chosen]])
        trends = {split: self.trend(split, both_2D) for split in SPLITS}
        return self.trials[chosen].shifted({split: trend[0] - trend[1] for split, trend in trends.items()})


def _place(dimension: Dimension, value: Any) -> float:
    """Return the place of a value in its dimension, from 0 to 1."""
    if isinstance(dimension, Choice):
        return dimension.choices.index(value) / (len(dimension.choices) - 1)
    low, high = dimension.low, dimension.high
    if dimension.log:
        return math.log(value / low) / math.log(high / low)
    return float((value - low) / (high - low))


def _models(at_TD: NDArray[np.float64], value_TE: NDArray[np.float64]) -> list[GaussianProcessRegressor]:
    """Return a model of each column; all have the kernel that fits the last epoch, the last but one column."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    smooth = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(np.ones(at_TD.shape[1]), (0.1, 100.0))
    kernel = smooth + WhiteKernel(0.5, (1e-3, 10.0))
    with warnings.catch_warnings():
        # A length at its bound is that of a setting that changes nothing.
        warnings.simplefilter("ignore", ConvergenceWarning)
        last = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0)
        last.fit(at_TD, value_TE[:, -2])
        return [
            GaussianProcessRegressor(last.kernel_, normalize_y=True, optimizer=None).fit(at_TD, value_T)
            for value_T in value_TE.T
        ]
