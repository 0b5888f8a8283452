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
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from grcf_ray.bench.setup import deliver
from grcf_ray.search.simulation import Outcome, simulate
from grcf_ray.search.table_file import read_table
from grcf_ray.search.trial_table import KnownTrial, TrialTable
from grcf_ray.search.winner import versions
from grcf_ray.statistics import spread
from grcf_ray.tables import Column, Table

SLOTS = 2
FEW = 10
"""Simulated searches that find the number of trials of a policy."""
RESAMPLES = 1000
SURE = 0.9
"""Share of resampled validation splits on which a contender has to be worse to be dropped."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """A way to search."""

    name: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    contenders: int = 0
    """Configurations of Stage 2 that run against each other under fresh seeds at the end; 0 delivers the winner."""
    rounds: int = 0
    """Fresh seeds of each contender at most."""
    searches: bool = True
    """Whether there is a search; otherwise the starting point alone is trained, under as many seeds as fit."""


POLICIES = (
    Policy("best of the trials", {"search.pruning": True}),
    Policy("no early stopping", {"search.pruning": False}),
    Policy("grace of two epochs", {"search.pruning": True, "search.grace_epochs": 2}),
    Policy("best of five under 3 fresh seeds", {"search.pruning": True}, contenders=5, rounds=3),
    Policy("best of three under 4 fresh seeds", {"search.pruning": True}, contenders=3, rounds=4),
    Policy("best seed of the starting point", searches=False),
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
    models: list[KnownTrial] = dataclasses.field(default_factory=list)

    def add(self, table: TrialTable, rng: np.random.Generator) -> float:
        """Train it under a fresh seed; return the passes."""
        first = table.draw(1, self.first, rng)
        model = table.draw(2, self.second, rng, first.best_value)
        self.models.append(model)
        return float(first.passes_E.sum() + model.passes_E.sum())

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


def deliver_from(table: TrialTable, policy: Policy, outcome: Outcome, seed: int) -> Delivered:
    """Return the model that a policy delivers after a search."""
    passes, seconds, known = outcome.passes, outcome.seconds, outcome.known
    if policy.contenders:
        rng = np.random.default_rng([seed, 3])
        contenders = [Contender(table.space.start(1), table.space.start(2))]
        contenders += [Contender(first, second) for first, second in outcome.ranked[: policy.contenders]]
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
    table = opened(path)
    if not policy.searches:
        rng, start = np.random.default_rng([seed, 4]), Contender(table.space.start(1), table.space.start(2))
        passes = sum(start.add(table, rng) for _ in range(trials))
        seconds = sum(float(model.seconds_E.sum()) for model in start.models) / SLOTS
        return Delivered(_value(start.best, "valid"), _value(start.best, "test"), passes, seconds)
    budget = {"search.stage1_trials": trials, "search.stage2_trials": trials}
    space = table.space.with_settings({**policy.settings, **budget})
    return deliver_from(table, policy, simulate(table, space, slots=SLOTS, seed=seed), seed)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, metavar="FILE", help="table of recorded trials")
    parser.add_argument("--passes", type=float, default=168.0, metavar="N", help="cost of a policy [default: 168]")
    parser.add_argument("--searches", type=int, default=200, metavar="N", help="of each policy [default: 200]")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="simulations at a time [default: 2]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the page")
    given = parser.parse_args(arguments)
    table = policies_table(given.table, given.passes, given.searches, given.processes)
    about = {"command": f"python benchmarks/{Path(__file__).name}", "table": given.table.name, "versions": versions()}
    deliver("search_policy", about, [table], given.out, as_json=False)


if __name__ == "__main__":
    main()
