"""Compare policies of a search at equal cost, by simulated searches on a table of recorded trials.

    python benchmarks/search_policy.py --table trials/mosi_text.parquet --passes 168 --out docs/performance

A policy has settings of the search, and an ending: how the delivered model is chosen from what the search recorded.
Each gets as many trials as fit the passes (encoded utterances over training utterances), its ending included. The
figure is the test error of the delivered model, which no policy sees.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from scipy.stats import qmc, spearmanr

from grcf_ray.bench.setup import deliver
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.search.searcher import OptunaSearcher
from grcf_ray.search.simulation import FedSearch, Outcome, simulate
from grcf_ray.search.space import Choice, Dimension, Range
from grcf_ray.search.table_file import read_table
from grcf_ray.search.trial_table import KnownTrial, TrialTable
from grcf_ray.search.winner import versions
from grcf_ray.statistics import spread
from grcf_ray.tables import Column, Table
from grcf_ray.train.curve import objective_name

SLOTS = 2
FEW = 10
"""Simulated searches that find the number of trials of a policy."""
RESAMPLES = 1000
SURE = 0.9
"""Share of resampled validation splits on which a contender has to be worse to be dropped."""


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


class SeenTable:
    """A table of which a search sees and keeps something else than what was recorded."""

    def __init__(self, table: TrialTable, seen: Callable[[KnownTrial], KnownTrial]) -> None:
        self._table, self._seen = table, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def draw(self, *about: Any) -> KnownTrial:
        """Draw a trial as the table does."""
        return self._seen(self._table.draw(*about))


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


class _Rotating(OptunaSearcher):
    """Each finalist in turn, instead of TPE's choice."""

    def _sampler_for(self, number: int) -> Any:
        space = self._sampler_settings[0]
        # Number 0 is the starting point, and there is no study before it.
        if number and "finalist" in space and len(self.study.get_trials(deepcopy=False)) == number:
            assert isinstance(space["finalist"], CategoricalDistribution)
            finalists = space["finalist"].choices
            self.study.enqueue_trial({"finalist": finalists[number % len(finalists)]})
        return super()._sampler_for(number)


class RotatingSearch(FedSearch):
    """A search that gives the trials of Stage 2 its finalists in turn."""

    searcher = _Rotating


@dataclasses.dataclass(frozen=True)
class Policy:
    """A way to search."""

    name: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: type[FedSearch] = FedSearch
    seen: Callable[[KnownTrial], KnownTrial] = as_recorded
    """What the search sees and keeps of a trial."""
    contenders: int = 0
    """Configurations of Stage 2 that run against each other under fresh seeds at the end; 0 delivers the winner."""
    rounds: int = 0
    """Fresh seeds of each contender at most."""
    both_stages: bool = True
    """Whether contenders run both stages; otherwise Stage 2 alone, from the finalist of their trial."""
    searches: bool = True
    """Whether there is a search; otherwise the starting point alone is trained, under as many seeds as fit."""


_ASHA, _WHOLE = {"search.pruning": True}, {"search.pruning": False}
POLICIES = (
    Policy("best of the trials", _ASHA),
    Policy("no early stopping", _WHOLE),
    Policy("grace of two epochs", {**_ASHA, "search.grace_epochs": 2}),
    Policy("reduction factor of two", {**_ASHA, "search.reduction_factor": 2}),
    Policy("one finalist", {**_ASHA, "search.finalists": 1}),
    Policy("finalists in turn", _ASHA, kind=RotatingSearch),
    Policy("eight finalists", {**_ASHA, "search.finalists": 8}),
    Policy("random search", _ASHA, kind=RandomSearch),
    Policy("random search, no early stopping", _WHOLE, kind=RandomSearch),
    Policy("Sobol start", _ASHA, kind=SobolSearch),
    Policy("a quarter counts as good", _ASHA, kind=WideSearch),
    Policy("Gaussian process", _WHOLE, kind=GPSearch),
    Policy("mean of three epochs", _ASHA, seen=over_three_epochs),
    Policy("averaged weights", _ASHA, seen=averaged),
    Policy("averaged weights, no early stopping", _WHOLE, seen=averaged),
    Policy("best of five under 3 fresh seeds", _ASHA, contenders=5, rounds=3),
    Policy("best of three under 4 fresh seeds", _ASHA, contenders=3, rounds=4),
    Policy("best of five under 3 fresh seeds of Stage 2", _ASHA, contenders=5, rounds=3, both_stages=False),
    Policy("best seed of the starting point", searches=False),
    Policy("best seed of the starting point, averaged weights", searches=False, seen=averaged),
)


@dataclasses.dataclass(frozen=True)
class Delivered:
    """What a policy hands over, and its cost."""

    valid: float
    test: float
    passes: float
    seconds: float


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

    def errors(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the mean error of each validation utterance over its models."""
        errors: np.ndarray[Any, np.dtype[np.float64]] = np.mean(
            [model.error["valid"][model.best] for model in self.models], axis=0
        )
        return errors


def drop_worst(contenders: list[Contender], rng: np.random.Generator) -> None:
    """Drop the contender with the largest error if it is larger than the best one's on most resampled splits."""
    ranked = sorted(contenders, key=lambda contender: contender.mean)
    difference_N = ranked[-1].errors() - ranked[0].errors()
    drawn = rng.integers(len(difference_N), size=(RESAMPLES, len(difference_N)))
    if (difference_N[drawn].mean(axis=1) > 0).mean() >= SURE:
        contenders.remove(ranked[-1])


def deliver_from(table: SeenTable, policy: Policy, outcome: Outcome, seed: int) -> Delivered:
    """Return the model that a policy delivers after a search."""
    passes, seconds, known = outcome.passes, outcome.seconds, outcome.known
    if policy.contenders:
        rng = np.random.default_rng([seed, 3])
        contenders = [Contender(table.space.start(1), table.space.start(2))] if policy.both_stages else []
        contenders += [
            Contender(first, second, None if policy.both_stages else finalist)
            for first, second, finalist in outcome.ranked[: policy.contenders]
        ]
        for played in range(policy.rounds):
            if played and len(contenders) > 1:
                drop_worst(contenders, rng)
            added = sum(contender.add(table, rng) for contender in contenders)
            passes += added
            seconds += added * outcome.busy / outcome.passes / SLOTS
        known = min(contenders, key=lambda contender: contender.mean).best
    return Delivered(_value(known, "valid"), _value(known, "test"), passes, seconds)


def _value(known: KnownTrial, split: str) -> float:
    return float(known.objective[split][known.best])


@lru_cache(maxsize=1)
def opened(path: Path) -> TrialTable:
    """Return the table, read once per process."""
    return read_table(path, with_errors=True)


def play(path: Path, policy: Policy, trials: int, seed: int) -> Delivered:
    """Simulate a policy once. trials: of each stage, or models of the starting point."""
    table = SeenTable(opened(path), policy.seen)
    if not policy.searches:
        rng = np.random.default_rng([seed, 4])
        start = Contender(table.space.start(1), table.space.start(2))
        passes = sum(start.add(table, rng) for _ in range(trials))
        seconds = sum(float(model.seconds_E.sum()) for model in start.models) / SLOTS
        return Delivered(_value(start.best, "valid"), _value(start.best, "test"), passes, seconds)
    budget = {"search.stage1_trials": trials, "search.stage2_trials": trials}
    space = table.space.with_settings({**policy.settings, **budget})
    return deliver_from(table, policy, simulate(table, space, slots=SLOTS, seed=seed, kind=policy.kind), seed)


def trials_for(pool: concurrent.futures.Executor, path: Path, policy: Policy, passes: float) -> int:
    """Return the number of trials with which a policy costs about so many passes."""

    def cost(trials: int) -> float:
        return statistics.fmean(d.passes for d in pool.map(play, *_jobs(path, policy, trials, range(FEW))))

    low, high = 2, 4
    while cost(high) < passes:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) < passes else (low, middle)
    return low if passes - cost(low) < cost(high) - passes else high


def _jobs(path: Path, policy: Policy, trials: int, seeds: Sequence[int]) -> list[list[Any]]:
    return [[path] * len(seeds), [policy] * len(seeds), [trials] * len(seeds), list(seeds)]


def policies_table(path: Path, passes: float, searches: int, processes: int) -> Table:
    """Compare the policies with the first of them."""
    rows: list[dict[str, Any]] = []
    reference: list[float] = []
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for policy in POLICIES:
            trials = trials_for(pool, path, policy, passes)
            results = list(pool.map(play, *_jobs(path, policy, trials, range(searches)), chunksize=4))
            tests = [result.test for result in results]
            reference = reference or tests
            gain = spread(np.subtract(tests, reference).tolist())
            half = gain.half_width or 0.0
            rows.append(
                {
                    "name": policy.name,
                    "trials": trials,
                    "passes": statistics.fmean(result.passes for result in results),
                    "valid": statistics.fmean(result.valid for result in results),
                    "test": statistics.fmean(tests),
                    "deviation": statistics.stdev(tests),
                    "difference": gain.mean,
                    "low": gain.mean - half,
                    "high": gain.mean + half,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return Table(
        "policies",
        f"Policies of a search of {passes:g} passes, over {searches} simulated searches each",
        (
            Column("name", "policy"),
            Column("trials", "trials of each stage", "{}"),
            Column("passes", "passes", "{:.0f}"),
            Column("valid", "its figure on valid", "{:.4f}"),
            Column("test", "on test", "{:.4f}"),
            Column("deviation", "deviation", "{:.4f}"),
            Column("difference", "difference", "{:+.4f}"),
            Column("low", "from", "{:+.4f}"),
            Column("high", "to", "{:+.4f}"),
        ),
        rows,
        ("difference on test to the first line, with its 95 % interval over the simulated searches",),
    )


def variance_table(table: TrialTable) -> Table:
    """Take the variance of the recorded figures apart: configurations, and seeds within one."""
    rows = []
    for stage in table.stages:
        figures = table.by_configuration(stage)
        means = {split: value_CS.mean(axis=1) for split, value_CS in figures.items()}
        for split, value_CS in figures.items():
            within = float(value_CS.var(axis=1, ddof=1).mean())
            between = max(0.0, float(means[split].var(ddof=1)) - within / value_CS.shape[1])
            rows.append(
                {
                    "stage": f"{stage}: {METRIC_TITLES[objective_name(stage, table.task)]}, {split}",
                    "mean": float(value_CS.mean()),
                    "seed": within**0.5,
                    "configuration": between**0.5,
                    "share": between / (between + within),
                    "again": float(spearmanr(figures["valid"][:, 0], value_CS[:, 1]).statistic),
                }
            )
    configurations, seeds = table.by_configuration(1)["valid"].shape
    return Table(
        "variance",
        f"Where the differences come from: {configurations} configurations of each stage under {seeds} seeds",
        (
            Column("stage", "stage and split"),
            Column("mean", "mean", "{:.4f}"),
            Column("seed", "deviation over seeds", "{:.4f}"),
            Column("configuration", "over configurations", "{:.4f}"),
            Column("share", "share of configurations", "{:.0%}"),
            Column("again", "rank correlation", "{:+.2f}"),
        ),
        rows,
        (
            "figures of the best epoch on valid",
            "rank correlation: between a configuration's figure on valid under one seed and the line's under another",
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, metavar="FILE", help="table of recorded trials")
    parser.add_argument("--passes", type=float, default=168.0, metavar="N", help="cost of a policy [default: 168]")
    parser.add_argument("--searches", type=int, default=200, metavar="N", help="of each policy [default: 200]")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="simulations at a time [default: 2]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the page")
    given = parser.parse_args(arguments)
    variance = variance_table(opened(given.table))
    print(json.dumps(variance.rows), flush=True)
    policies = policies_table(given.table, given.passes, given.searches, given.processes)
    about = {"command": f"python benchmarks/{Path(__file__).name}", "table": given.table.name, "versions": versions()}
    deliver("search_policy", about, [variance, policies], given.out, as_json=False)


if __name__ == "__main__":
    main()
