"""Compare policies of a search at equal cost, by simulated searches on a table of recorded trials.

    python benchmarks/search_policy.py --table trials/mosi_text.parquet --passes 168 --out docs/performance

A policy has settings of the search, and an ending: how the delivered model is chosen from what the search recorded.
Each gets as many trials as fit the passes (encoded utterances over training utterances), its ending included. The
figure is the test error of the delivered model, which no policy sees, apart from the perfect judges: they choose by it,
and bound what any judge could gain.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from paired_stopping import StoppingRule, stopped_by
from policies import (
    GPSearch,
    PortfolioSearch,
    RandomSearch,
    SeenTable,
    SobolSearch,
    WideSearch,
    as_recorded,
    averaged,
    important,
    over_three_epochs,
)
from recorded_noise import averaging_table, ensembles_table, finalists_table, variance_table
from search_endings import (
    Candidate,
    Contender,
    Delivered,
    Ending,
    Finished,
    Race,
    best_by_more_utterances,
    best_by_test,
    best_by_validation,
    best_configuration,
    greedy_ensemble,
    mean_of_best,
)
from study import PAIRED, paired_interval

from grcf_ray.bench.setup import deliver
from grcf_ray.search.record import rank
from grcf_ray.search.simulation import FedSearch, simulate
from grcf_ray.search.table_file import read_table
from grcf_ray.search.trial_table import KnownTrial, TrialTable
from grcf_ray.search.winner import versions
from grcf_ray.tables import Column, Table

SLOTS = 2
FEW = 10
"""Simulated searches that find the number of trials of a policy."""
TRIES = 4
"""Numbers of trials that are tried for it at most."""
NEAR = 0.04
"""Share by which a cost may differ from the one that is asked for."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """A way to search."""

    name: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: type[FedSearch] = FedSearch
    stopping: StoppingRule | None = None
    """Early stopping in place of the search's own."""
    parameters: int | None = None
    """Searched settings of each stage, the most important ones; None for all."""
    seen: Callable[[KnownTrial], KnownTrial] = as_recorded
    """What the search sees and keeps of a trial."""
    folds: int = 1
    """Models of a trial, whose mean is its figure."""
    ending: Ending = best_by_validation
    others: Mapping[str, Ending] = dataclasses.field(default_factory=dict)
    """Other choices among the same models at no cost, by name."""
    searches: bool = True
    """Whether there is a search; otherwise the starting point alone is trained, under as many seeds as fit."""


_ASHA, _WHOLE = {"search.pruning": True}, {"search.pruning": False}
POLICIES = (
    Policy(
        "best of the trials",
        _ASHA,
        others={
            "ensemble: the best three models": mean_of_best,
            "ensemble: greedy selection": greedy_ensemble,
            "judge by the configuration's mean on test": best_configuration,
            "judge by valid and half of test": best_by_more_utterances,
            "judge by test": best_by_test,
        },
    ),
    Policy("grace of two epochs", {**_ASHA, "search.grace_epochs": 2}),
    Policy("reduction factor of two", {**_ASHA, "search.reduction_factor": 2}),
    Policy("best epoch so far at the rungs", _ASHA, stopping=StoppingRule(best_so_far=True)),
    Policy("margin of a standard error", _ASHA, stopping=StoppingRule(margin=1.0)),
    Policy(
        "grace of a fifth, margin, best epoch so far",
        _ASHA,
        stopping=StoppingRule(best_so_far=True, margin=1.0, grace=0.2),
    ),
    Policy("one finalist", {**_ASHA, "search.finalists": 1}),
    Policy("eight finalists", {**_ASHA, "search.finalists": 8}),
    Policy("random search", _ASHA, kind=RandomSearch),
    Policy("Sobol start", _ASHA, kind=SobolSearch),
    Policy("start with known optima", _ASHA, kind=PortfolioSearch),
    Policy("two parameters a stage", _ASHA, parameters=2),
    Policy("three parameters a stage", _ASHA, parameters=3),
    Policy("a quarter counts as good", _ASHA, kind=WideSearch),
    Policy("mean of three epochs", _ASHA, seen=over_three_epochs),
    Policy("averaged weights", _ASHA, seen=averaged),
    Policy("three folds", _ASHA, folds=3),
    Policy("best of five under 3 fresh seeds", _ASHA, ending=Race(5, rounds=3)),
    Policy("best of three under 4 fresh seeds", _ASHA, ending=Race(3, rounds=4)),
    Policy("best of five under 3 fresh seeds of Stage 2", _ASHA, ending=Race(5, rounds=3, both_stages=False)),
    Policy(
        "no early stopping",
        _WHOLE,
        others={
            "no early stopping, ensemble: the best three models": mean_of_best,
            "no early stopping, ensemble: greedy selection": greedy_ensemble,
        },
    ),
    Policy("random search, no early stopping", _WHOLE, kind=RandomSearch),
    Policy("averaged weights, no early stopping", _WHOLE, seen=averaged),
    Policy(
        "best seed of the starting point",
        searches=False,
        others={
            "seeds of the starting point, ensemble: the best three": mean_of_best,
            "seeds of the starting point, ensemble: greedy selection": greedy_ensemble,
        },
    ),
    Policy("best seed of the starting point, averaged weights", searches=False, seen=averaged),
    Policy("Gaussian process", _WHOLE, kind=GPSearch),
)


@lru_cache(maxsize=1)
def opened(path: Path) -> TrialTable:
    """Return the table, read once per process."""
    return read_table(path, with_errors=True)


@lru_cache(maxsize=1)
def valid_labels(path: Path) -> NDArray[np.float64]:
    """Return the labels of the table's validation utterances, about the centre of the label range."""
    return np.array(json.loads(pq.read_schema(path).metadata[b"about"])["valid"])


@lru_cache
def fixed_settings(path: Path, parameters: int) -> Mapping[str, Any]:
    """Return the starting values of all searched settings but the most important ones of each stage."""
    table = opened(path)
    searched = {name for stage in table.stages for name in important(table, stage, parameters)}
    starts = {name: value for stage in table.stages for name, value in table.space.start(stage).items()}
    return {name: value for name, value in starts.items() if name not in searched}


def play(path: Path, policy: Policy, trials: int, seed: int) -> list[Delivered]:
    """Simulate a policy once; return what it delivers, and what the other endings would.

    trials: of each stage, or models of the starting point.
    """
    table = SeenTable(opened(path), policy.seen, policy.folds)
    run = search if policy.searches else train_start
    finished = run(path, table, policy, trials, seed)
    return [ending(finished) for ending in (policy.ending, *policy.others.values())]


def search(path: Path, table: SeenTable, policy: Policy, trials: int, seed: int) -> Finished:
    """Simulate the search of a policy."""
    settings = {**policy.settings, "search.stage1_trials": trials, "search.stage2_trials": trials}
    if policy.parameters is not None:
        settings |= fixed_settings(path, policy.parameters)
    kind = policy.kind if policy.stopping is None else stopped_by(policy.stopping, table, valid_labels(path))
    outcome = simulate(table, table.space.with_settings(settings), slots=SLOTS, seed=seed, kind=kind)
    firsts = {str(trial.number): trial for trial in outcome.trials if trial.stage == 1}
    complete = rank(trial for trial in outcome.trials if trial.stage == 2 and trial.state == "complete")
    return Finished(
        table=table,
        seed=seed,
        winner=outcome.known,
        candidates=[
            Candidate(first.params, trial.params, first.objective, outcome.results[2, trial.number])
            for trial in complete
            for first in [firsts[trial.params["finalist"]]]
        ],
        passes=outcome.passes,
        seconds=outcome.seconds,
        seconds_per_pass=outcome.busy / outcome.passes / SLOTS,
    )


def train_start(path: Path, table: SeenTable, policy: Policy, trials: int, seed: int) -> Finished:
    """Train the starting point under several seeds."""
    rng = np.random.default_rng([seed, 4])
    start = Contender(table.space.start(1), table.space.start(2))
    passes = sum(start.add(table, rng) for _ in range(trials))
    seconds = sum(float(known.seconds_E.sum()) for _, known in table.drawn) / SLOTS
    models = sorted(start.models, key=lambda known: known.best_value)
    return Finished(
        table=table,
        seed=seed,
        winner=start.best,
        candidates=[Candidate(start.first, start.second, None, known) for known in models],
        passes=passes,
        seconds=seconds,
        seconds_per_pass=seconds / passes,
    )


def fitted(
    pool: concurrent.futures.Executor, path: Path, policy: Policy, passes: float, trials: int
) -> tuple[int, list[list[Delivered]]]:
    """Return the number of trials with which a policy costs about so many passes, and what its first searches deliver.

    trials: a guess.
    """
    played: dict[int, list[list[Delivered]]] = {}
    while trials not in played and len(played) < TRIES:
        played[trials] = _played(pool, path, policy, trials, range(FEW))
        cost = _cost(played[trials])
        if abs(cost / passes - 1) > NEAR:
            # The cost is nearly in proportion.
            trials = max(2, round(trials * passes / cost))
    best = min(played, key=lambda tried: abs(_cost(played[tried]) - passes))
    return best, played[best]


def _cost(results: Sequence[Sequence[Delivered]]) -> float:
    return statistics.fmean(delivered.passes for delivered, *_ in results)


def _played(
    pool: concurrent.futures.Executor, path: Path, policy: Policy, trials: int, seeds: Sequence[int]
) -> list[list[Delivered]]:
    return list(pool.map(partial(play, path, policy, trials), seeds, chunksize=4))


def _row(delivered: Sequence[Delivered], reference: Sequence[Delivered]) -> dict[str, float]:
    tests = [one.test for one in delivered]
    return {
        "passes": statistics.fmean(one.passes for one in delivered),
        "valid": statistics.fmean(one.valid for one in delivered),
        "test": statistics.fmean(tests),
        "deviation": statistics.stdev(tests),
        **({} if delivered is reference else paired_interval(tests, [one.test for one in reference])),
    }


def policies_table(path: Path, passes: float, searches: int, processes: int) -> Table:
    """Compare the policies with the first of them."""
    rows: list[dict[str, Any]] = []
    reference: Sequence[Delivered] = ()
    trials = 33
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for policy in POLICIES:
            trials, results = fitted(pool, path, policy, passes, trials)
            results = [*results, *_played(pool, path, policy, trials, range(FEW, searches))][:searches]
            for name, delivered in zip((policy.name, *policy.others), zip(*results, strict=True), strict=True):
                reference = reference or delivered
                rows.append({"name": name, "trials": trials, **_row(delivered, reference)})
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
            *PAIRED,
        ),
        rows,
        (
            "difference on test to the first line, with its 95 % interval over the simulated searches",
            "an ensemble is several models; a judge sees what no search may see, so its line is a bound and no policy",
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
    table = opened(given.table)
    recorded = [part(table) for part in (variance_table, finalists_table, averaging_table, ensembles_table)]
    print(json.dumps([part.rows for part in recorded]), flush=True)
    policies = policies_table(given.table, given.passes, given.searches, given.processes)
    command = shlex.join(["python", f"benchmarks/{Path(__file__).name}", *(arguments or sys.argv[1:])])
    about = {"command": command, "table": given.table.name, "versions": versions()}
    deliver("search_policy", about, [*recorded, policies], given.out, as_json=False)


if __name__ == "__main__":
    main()
