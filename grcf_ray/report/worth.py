"""What the gain of a search is worth: how much of it is parameters, and how much the luck of the best of many figures.

A figure, here, is a trial's best validation objective. Intervals hold 95 % of the posterior.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, computed_field

from grcf_ray.metrics import METRIC_TITLES, split_metrics
from grcf_ray.report.coordinates import Coordinates
from grcf_ray.report.noise_model import Posterior, draw_posterior
from grcf_ray.report.stopped_trials import draw_finished, rung_values
from grcf_ray.report.view import RunView
from grcf_ray.search.comparisons import ARMS, retrainings, winner_models
from grcf_ray.search.predictions import Predictions
from grcf_ray.search.record import TrialRecord
from grcf_ray.statistics import Floats, expected_maximum, sampling_deviations
from grcf_ray.train.curve import minimised, objective_value

LEAST_TRIALS = 12
"""With fewer complete trials, parameters and seeds cannot be told apart."""
_DRAWS = 4000
_ROUNDS = 8
"""Draws of the values of stopped trials."""
_MOST_TRIALS = 300
"""Trials of the model: its time grows with their third power."""
_LEAST_FREEDOM = 2
"""Degrees of freedom below which retrainings alone do not measure the noise of seeds."""


class Interval(BaseModel):
    """An estimate with its 95 % interval."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float
    high: float

    def text(self, spec: str = ".3f") -> str:
        """Return the estimate and its interval in brackets."""
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


class Worth(BaseModel):
    """The figure of a winner, taken apart; None stands for what the run cannot tell."""

    model_config = ConfigDict(frozen=True)

    metric: str
    """The validation metric that the last stage optimises."""
    figure: float
    """The winner's."""
    candidates: int
    """The number of figures that it is the best of."""
    trials: int
    """Complete and stopped trials of the last stage."""
    complete: int
    retrainings: int
    """Trainings under fresh seeds that measure the noise of seeds."""
    share: Interval | None = None
    """The share of the parameters in the variance between the trials; the rest is the seed's."""
    seed_deviation: Interval | None = None
    """Standard deviation of a figure over seeds, and over whatever else the parameters do not explain."""
    corrected: Interval | None = None
    """The expected figure of the winner's parameters under another seed."""
    start: Interval | None = None
    """The expected figure of the starting point."""
    affordable: int | None = None
    """Number of trainings of the starting point, both stages, at the cost of the search."""
    best_start: Interval | None = None
    """The best figure of as many seeds of the starting point."""
    utterances: int | None = None
    """Of the validation split."""
    split_deviation: float | None = None
    """Standard deviation of a figure over validation splits of this size, nearly the same for all models."""
    paired_deviation: float | None = None
    """The same of the difference between two seeds of the winner's parameters."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def validation_share(self) -> float | None:
        """The share of the validation sample in the noise of seeds: half the variance of the difference of two."""
        if self.paired_deviation is None or self.seed_deviation is None:
            return None
        return min(1.0, self.paired_deviation**2 / 2 / self.seed_deviation.mean**2)

    @classmethod
    def of(cls, view: RunView) -> Worth | None:
        """Take the winner's figure apart. None before the winner has been measured on test."""
        winner = view.winner
        if view.metrics is None or winner is None or (figure := winner.objective) is None:
            return None
        stage, metric = winner.stage, view.objective(winner.stage)
        trials = _usable(view, stage)
        repeats = _repeats(view, winner, metric)
        return cls(
            metric=metric,
            figure=figure,
            candidates=len(view.ranked(stage)),
            trials=len(trials),
            complete=sum(trial.state == "complete" for trial in trials),
            retrainings=sum(len(figures) for figures in repeats.values() if len(figures) > 1),
            **_estimates(view, winner, repeats),
            **_validation_noise(view, metric),
        )

    def sentences(self) -> Iterator[str]:
        """Yield what the estimates say."""
        title, deviation = METRIC_TITLES[self.metric], self.seed_deviation
        if self.share is not None:
            share = self.share.text(".0%")
            yield f"Of the variance between {self.trials} trials, parameters explain {share}, seeds the rest."
        elif self.complete < LEAST_TRIALS:
            few = f"{self.complete} trials are complete, {LEAST_TRIALS} are needed"
            yield f"Too few trials to tell parameters from seeds: {few}."
        else:
            yield "Parameters cannot be told from seeds: the trials have equal figures, or unknown parameters."
        if deviation is not None:
            source = f" ({self.retrainings} retrainings)" if self.retrainings else ""
            yield f"Another seed changes the valid {title} by {deviation.text()}, one standard deviation{source}."
        if self.corrected is not None:
            best = f"The winner's {self.figure:.3f} is the best of {self.candidates} figures"
            yield f"{best}; without that luck its parameters give {self.corrected.text()}."
        if self.best_start is not None:
            cost = f"The search cost as much as {self.affordable} seeds of the starting point"
            yield f"{cost}; the best of them would have {self.best_start.text()}."
        if self.split_deviation is not None:
            sample = f"Another {self.utterances} validation utterances change the {title} by {self.split_deviation:.3f}"
            between = "" if self.paired_deviation is None else f", and differences by {self.paired_deviation:.3f}"
            share = "" if self.validation_share is None else f" ({self.validation_share:.0%} of the noise of seeds)"
            yield f"{sample}{between}{share}."


def _repeats(view: RunView, winner: TrialRecord, metric: str) -> dict[str, list[float]]:
    """Return the validation figures of the retrainings by arm, which measure the noise of seeds directly."""
    models = (retrainings(view.record, winner.name) or {}).get("models", [])
    return {arm: [m["valid"][metric] for m in models if m["arm"] == arm and metric in m["valid"]] for arm in ARMS}


def _noise(repeats: Mapping[str, Sequence[float]]) -> tuple[float, int]:
    """Return the sum of squares of the retrainings about their arm's mean, and its degrees of freedom."""
    known = [figures for figures in repeats.values() if figures]
    return float(sum(np.var(figures) * len(figures) for figures in known)), sum(len(figures) - 1 for figures in known)


def _estimates(view: RunView, winner: TrialRecord, repeats: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return share, seed_deviation, corrected, start, affordable and best_start, as far as they can be told."""
    squares, freedom = _noise(repeats)
    posterior = _posterior(view, winner, squares, freedom)
    rng = np.random.default_rng(0)
    estimates: dict[str, Any] = {"affordable": _affordable(view)}
    if posterior is not None:
        estimates["share"] = _interval(posterior.share_D)
        variance_D = posterior.variance_D
        levels = dict(zip(ARMS, posterior.level_DP.T, strict=False))
    elif freedom >= _LEAST_FREEDOM and squares > 0:
        variance_D, levels = squares / rng.chisquare(freedom, size=_DRAWS), {}
    else:
        return estimates
    deviation_D = np.sqrt(variance_D)
    for arm, figures in repeats.items():
        # Trainings under fresh seeds are a better estimate than the model's, and nothing was chosen among them.
        if len(figures) > 1:
            levels[arm] = np.mean(figures) + deviation_D * rng.standard_normal(len(variance_D)) / len(figures) ** 0.5
    estimates["seed_deviation"] = _interval(deviation_D)
    if ARMS[0] in levels:
        estimates["corrected"] = _interval(levels[ARMS[0]])
    if ARMS[1] in levels:
        estimates["start"] = _interval(levels[ARMS[1]])
        if count := estimates["affordable"]:
            estimates["best_start"] = best_of(count, minimised(winner.stage, 1.0), levels[ARMS[1]], deviation_D, rng)
    return estimates


def best_of(count: int, sign: float, level_D: Floats, deviation_D: Floats, rng: np.random.Generator) -> Interval:
    """Return the best of `count` normal figures. sign: 1 if lower is better, else -1."""
    from scipy import stats

    # The largest of n uniform values is distributed as the n-th root of one.
    gain_D = stats.norm.ppf(rng.uniform(size=len(level_D)) ** (1 / count))
    low, high = np.percentile(level_D - sign * deviation_D * gain_D, [2.5, 97.5]).tolist()
    mean = level_D.mean() - sign * deviation_D.mean() * expected_maximum(count)
    return Interval(mean=float(mean), low=low, high=high)


def _interval(draws_D: Floats) -> Interval:
    low, high = np.percentile(draws_D, [2.5, 97.5]).tolist()
    return Interval(mean=float(draws_D.mean()), low=low, high=high)


def _posterior(view: RunView, winner: TrialRecord, squares: float, freedom: int) -> Posterior | None:
    """Return the model's posterior with the levels of the winner and, if it is on record, of the starting point.

    Stopped trials have values that are drawn several times, so that the posterior is as wide as they are uncertain.
    """
    trials = _usable(view, winner.stage)
    if len(trials) > _MOST_TRIALS:
        # A random share, but never one with too few complete trials.
        drawn = np.random.default_rng(0).permutation(len(trials)).tolist()
        needed = [index for index in drawn if trials[index].state == "complete"][:LEAST_TRIALS]
        trials = [trials[index] for index in sorted(list(dict.fromkeys([*needed, *drawn]))[:_MOST_TRIALS])]
    places = Coordinates(view, winner.stage, trials)
    at, start = places.of(winner), places.start and places.of(places.start)
    used = [(place, trial) for trial in trials if (place := places.of(trial))]
    if sum(trial.state == "complete" for _, trial in used) < LEAST_TRIALS or at is None:
        return None
    value_TR = rung_values([trial for _, trial in used])
    rng = np.random.default_rng(0)
    rounds = _ROUNDS if np.isnan(value_TR[:, -1]).any() else 1
    finished = [draw_finished(value_TR, rng) for _ in range(rounds)]
    if any(np.ptp(value_T) == 0 for value_T in finished):
        return None
    place_TC, at_PC = np.array([place for place, _ in used]), np.array([at, start] if start else [at])
    return Posterior.pooled(
        [
            draw_posterior(place_TC, value_T, at_PC, squares=squares, freedom=freedom, draws=_DRAWS // rounds)
            for value_T in finished
        ]
    )


def _usable(view: RunView, stage: Literal[1, 2]) -> list[TrialRecord]:
    """Return the complete and the stopped trials that have a figure from the first epoch on."""
    return [
        trial
        for trial in view.trials[stage]
        if trial.state in ("complete", "pruned") and trial.curve and objective_value(stage, trial.curve[0]) is not None
    ]


def _affordable(view: RunView) -> int | None:
    """Return how many trainings of the starting point cost as many passes over the training split as the search."""
    start = 0.0
    for stage, (_, epochs) in view.budgets.items():
        trained = [trial for trial in view.trials[stage] if trial.epoch]
        # The first trial is the starting point; it may have been stopped early.
        start += sum(trial.utterance_passes / trial.epoch * epochs for trial in trained[:1])
    return max(1, round(sum(trial.utterance_passes for trial in view.all_trials) / start)) if start else None


def _validation_noise(view: RunView, metric: str) -> dict[str, Any]:
    """Return utterances, split_deviation and, if retrained models are on record, paired_deviation."""
    best = view.scored("valid")
    if best is None:
        return {}
    models = [best, *_retrained(view)]
    low, high = view.label_range
    measuring: dict[str, Any] = {
        "protocol": view.protocol,
        "limit": (high - low) / 2,
        "center": (low + high) / 2,
        "ties": view.info.settings["metrics.ties"],
    }
    score_MN = np.stack([model.score_N for model in models if model.id_N == best.id_N])
    single, paired = sampling_deviations(
        score_MN,
        best.label_N,
        lambda score_N, label_N: split_metrics(score_N, label_N, only=metric, **measuring).get(metric, float("nan")),
        seed=0,
    )
    if not np.isfinite(single):
        return {}
    return {"utterances": len(best.id_N), "split_deviation": single, "paired_deviation": paired}


def _retrained(view: RunView) -> Iterator[Predictions]:
    """Yield the validation predictions of the retrained models with the winner's parameters."""
    assert view.winner is not None
    for place in winner_models(view.record, view.winner.name):
        if (path := place / "predictions" / "valid.parquet").exists():
            yield Predictions.read(path)
