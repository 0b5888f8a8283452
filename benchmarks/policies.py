"""The parts that policies of a search are made of: what a search sees of a trial, and how it proposes trials."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from scipy.stats import qmc

from grcf_ray.search.searcher import OptunaSearcher
from grcf_ray.search.simulation import FedSearch
from grcf_ray.search.space import Choice, Dimension, Range
from grcf_ray.search.trial_table import KnownTrial, TrialTable
from grcf_ray.train.curve import DIRECTIONS

TABLE_13: Mapping[str, tuple[float, float, float]] = {
    "stage1.encoder_lr": (8e-6, 1e-5, 4e-6),
    "stage1.head_lr": (1e-5, 1e-5, 3e-5),
    "stage1.weight_decay": (2e-2, 2e-4, 1e-4),
    "stage1.group_weight": (0.9, 1.0, 1.0),
    "stage1.reg_weight": (5e-3, 3e-2, 6e-2),
    "model.fusion_dropout": (0.4, 0.2, 0.3),
    "model.unified_dropout": (0.2, 0.5, 0.5),
    "stage2.head_lr": (1e-4, 4e-5, 1e-4),
    "stage2.encoder_top_lr": (4e-5, 2e-5, 6e-5),
    "stage2.encoder_base_lr": (2e-5, 2e-6, 2e-6),
    "stage2.group_weight": (0.3, 0.8, 1.0),
    "stage2.mae_weight": (0.3, 2.0, 3.0),
}
"""The paper's optima (Table 13) for CMU-MOSI, CMU-MOSEI and CH-SIMS v2."""
FASTER = 10.0
"""Learning rates over those of Table 13: trials of a few passes need larger ones (search_spaces/mosi_cpu.yaml)."""
COMMON_RATES = (2e-5, 5e-5, 1e-4)
"""Rates that encoders are often fine-tuned with: two of those of BERT (Devlin et al. 2019, appendix A.3), and 1e-4."""


def as_recorded(drawn: KnownTrial) -> KnownTrial:
    """Return the trial itself."""
    return drawn


def over_three_epochs(drawn: KnownTrial) -> KnownTrial:
    """Return a trial whose validation figure is the mean of an epoch and the two before it."""
    values = drawn.objective["valid"]
    means = [values[max(0, epoch - 2) : epoch + 1].mean() for epoch in range(len(values) - 1)]
    return dataclasses.replace(drawn, objective={**drawn.objective, "valid": np.array([*means, values[-1]])})


def averaged(drawn: KnownTrial) -> KnownTrial:
    """Return a trial whose last epoch has the results of the averaged weights."""
    by_epoch = (drawn.objective, drawn.error)
    objective, error = (
        {split: np.concatenate([v[:-2], v[-1:], v[-1:]]) for split, v in known.items()} for known in by_epoch
    )
    return dataclasses.replace(drawn, objective=objective, error=error)


def folded(models: Sequence[KnownTrial], rng: np.random.Generator) -> KnownTrial:
    """Return a trial that trains as many models, and whose figure after each epoch is the mean of theirs.

    The model of a fold is validated on utterances that are drawn from those of valid with replacement. That is an
    approximation, since the table has no other folds. In Stage 1, whose figure is over pairs, the utterances stay the
    same. What is kept of an epoch is the model with the best figure.
    """
    valid_KC = np.array([_resampled(model, rng) for model in models])
    lowest = DIRECTIONS[models[0].stage] == "min"
    best_C = (valid_KC if lowest else -valid_KC).argmin(axis=0)

    def kept(by_model: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        figures: NDArray[np.float64] = np.stack(by_model)[best_C, np.arange(len(best_C))]
        return figures

    return KnownTrial(
        stage=models[0].stage,
        objective={
            **{split: kept([model.objective[split] for model in models]) for split in models[0].objective},
            "valid": valid_KC.mean(axis=0),
        },
        seconds_E=np.sum([model.seconds_E for model in models], axis=0),
        passes_E=np.sum([model.passes_E for model in models], axis=0),
        error={split: kept([model.error[split] for model in models]) for split in models[0].error},
    )


def _resampled(model: KnownTrial, rng: np.random.Generator) -> NDArray[np.float64]:
    valid_C = model.objective["valid"]
    if DIRECTIONS[model.stage] == "max":
        return valid_C
    size_CN = np.abs(model.error["valid"])
    drawn_N = rng.integers(size_CN.shape[1], size=size_CN.shape[1])
    changed_C: NDArray[np.float64] = valid_C + size_CN[:, drawn_N].mean(axis=1) - size_CN.mean(axis=1)
    return changed_C


class SeenTable:
    """A table of which a search sees and keeps something else than what was recorded.

    seen: what it sees of a trial. folds: the models of a trial.
    """

    def __init__(
        self, table: TrialTable, seen: Callable[[KnownTrial], KnownTrial] = as_recorded, folds: int = 1
    ) -> None:
        self._table, self._seen, self._folds = table, seen, folds
        self.drawn: list[tuple[Mapping[str, Any], KnownTrial]] = []
        """The parameters and results of all drawn trials."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def draw(
        self, stage: Literal[1, 2], params: Mapping[str, Any], rng: np.random.Generator, finalist: float | None = None
    ) -> KnownTrial:
        """Draw a trial as the table does; settings that are not searched have their starting values."""
        whole = {**self._table.space.start(stage), **params}
        models = [self._table.draw(stage, whole, rng, finalist) for _ in range(self._folds)]
        known = self._seen(models[0] if self._folds == 1 else folded(models, rng))
        self.drawn.append((params, known))
        return known


def important(table: TrialTable, stage: Literal[1, 2], count: int) -> list[str]:
    """Return the settings of a stage that matter most to the validation figure.

    The importances are those of a random forest over the trials of every other configuration.
    """
    from sklearn.ensemble import RandomForestRegressor

    dimensions = table.space.dimensions(stage)
    half = [trial for trial in table.recorded(stage) if trial.configuration % 2 == 0]
    place_TD = [[dimension.place_of(trial.params[path]) for path, dimension in dimensions.items()] for trial in half]
    forest = RandomForestRegressor(n_estimators=500, random_state=0)
    forest.fit(place_TD, [trial.known.best_value for trial in half])
    return [list(dimensions)[index] for index in np.argsort(-forest.feature_importances_)[:count]]


class _Random(OptunaSearcher):
    def _sampler_for(self, number: int) -> Any:
        sampler = super()._sampler_for(number)
        sampler._n_startup_trials = sys.maxsize
        return sampler


class RandomSearch(FedSearch):
    """A search with random proposals."""

    searcher = _Random


class _Sobol(OptunaSearcher):
    """The trials before TPE's model are a scrambled Sobol sequence, after the starting point."""

    def __init__(self, space: Mapping[str, BaseDistribution], **options: Any) -> None:
        count, names = options["n_startup_trials"] - 1, sorted(space)
        drawn = qmc.Sobol(len(names), seed=10 * options["seed"] + options["stage"]).random_base2(4)[:count]
        dimensions = [_dimension(space[name]) for name in names]
        more = [
            {name: dimension.value_at(at) for name, dimension, at in zip(names, dimensions, row, strict=True)}
            for row in drawn.tolist()
        ]
        super().__init__(space, **{**options, "starts": [*options["starts"], *more]})


def _dimension(distribution: BaseDistribution) -> Dimension:
    if isinstance(distribution, CategoricalDistribution):
        return Choice(distribution.choices, distribution.choices[0])  # type: ignore[arg-type]
    assert isinstance(distribution, FloatDistribution)
    return Range(distribution.low, distribution.high, distribution.log, distribution.low)


class SobolSearch(FedSearch):
    """A search that starts with a Sobol sequence."""

    searcher = _Sobol


def portfolio(space: Mapping[str, BaseDistribution], start: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return settings that are known to be good elsewhere, as far as the space has them, clipped to its ranges.

    The three columns of Table 13, then the starting point with each of the common rates for all parts of the encoder.
    start: the starting point, whose finalist is left to the search.
    """
    ranges = {path: known for path, known in space.items() if isinstance(known, FloatDistribution)}
    settings = {path: value for path, value in start.items() if path != "finalist"}
    columns = [
        {path: FASTER * row[column] if path.endswith("_lr") else row[column] for path, row in TABLE_13.items()}
        for column in range(3)
    ]
    columns += [dict.fromkeys((path for path in ranges if ".encoder_" in path), rate) for rate in COMMON_RATES]
    points: list[dict[str, Any]] = []
    for column in columns:
        clipped = {path: min(max(column[path], at.low), at.high) for path, at in ranges.items() if path in column}
        point = {**settings, **clipped}
        if point not in [settings, *points]:
            points.append(point)
    return points


class _Portfolio(OptunaSearcher):
    """The trials after the starting point are settings that are known to be good elsewhere."""

    def __init__(self, space: Mapping[str, BaseDistribution], **options: Any) -> None:
        starts = [*options["starts"], *portfolio(space, options["starts"][0])]
        super().__init__(space, **{**options, "starts": starts})


class PortfolioSearch(FedSearch):
    """A search that starts with known optima."""

    searcher = _Portfolio


class _Wide(OptunaSearcher):
    def _sampler_for(self, number: int) -> Any:
        sampler = super()._sampler_for(number)
        sampler._gamma = lambda count: -(-count // 4)
        return sampler


class WideSearch(FedSearch):
    """A search whose TPE counts a quarter of the trials as good instead of a tenth."""

    searcher = _Wide


class _GP(OptunaSearcher):
    def _sampler_for(self, number: int) -> Any:
        seed = super()._sampler_for(number)._rng.rng.randint(2**31 - 1)
        return optuna.samplers.GPSampler(seed=int(seed), n_startup_trials=self._sampler_settings[2])


class GPSearch(FedSearch):
    """A search with Optuna's Gaussian process."""

    searcher = _GP
