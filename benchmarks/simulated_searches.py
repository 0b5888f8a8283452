"""Check simulated searches against real ones of the same policies."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr, t
from search_policy import opened

from grcf_ray.console import Progress
from grcf_ray.search.simulation import FedSearch, simulate
from grcf_ray.search.space import Space
from grcf_ray.tables import Column, Table

LEVEL = 0.9
"""Of the intervals for the next search."""
Figures = Mapping[str, Any]
"""Of a delivered model, `valid` and `test`; of its search, the cost in `passes`, `seconds`, and `trial_seconds` of all
trials together."""
Results = Mapping[str, Mapping[int, Figures]]
"""The figures of each policy, by the number of the repeat."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """A way to search."""

    name: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    program: tuple[str, ...] = ("-m", "grcf_ray.search")
    kind: type[FedSearch] = FedSearch
    """The class of its simulated searches."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What simulated searches of a policy say of its next search."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Prediction:
        """Predict the next of normal values from those so far."""
        n = len(values)
        factor = float(t.ppf((1 + LEVEL) / 2, n - 1)) * (1 + 1 / n) ** 0.5
        return cls(statistics.fmean(values), factor * statistics.stdev(values))

    def covers(self, value: float) -> bool:
        """Return whether a value lies in the interval."""
        return abs(value - self.mean) <= self.half_width


def simulated_figures(path: Path, space: Space, policy: Policy, seed: int, slots: int) -> dict[str, float]:
    """Simulate a search of a policy. The names are those of a real search's figures."""
    searched = space.with_settings(policy.settings)
    outcome = simulate(opened(path), searched, slots=slots, seed=seed, kind=policy.kind)
    return {
        "valid": outcome.known.best_value,
        "passes": outcome.passes,
        "seconds": outcome.seconds,
        "trial_seconds": outcome.busy,
    }


def simulate_all(
    path: Path, space: Space, policies: Sequence[Policy], simulations: int, processes: int
) -> dict[str, list[dict[str, float]]]:
    """Simulate searches of each policy; return their figures by policy."""
    progress = Progress("simulating", len(policies) * simulations)
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        jobs = {
            policy.name: [
                pool.submit(simulated_figures, path, space, policy, seed, processes) for seed in range(simulations)
            ]
            for policy in policies
        }
        for job in concurrent.futures.as_completed([job for of_policy in jobs.values() for job in of_policy]):
            job.result()
            progress.add(1)
    return {name: [job.result() for job in of_policy] for name, of_policy in jobs.items()}


def simulation_tables(results: Results, simulated: Mapping[str, Sequence[Figures]], title: str) -> list[Table]:
    """Check simulated searches against the real ones of the same policies. title: of the error."""
    real = {name: list(results[name].values()) for name in simulated}
    pace = _seconds_of_pass(real) / _seconds_of_pass(simulated)
    rows, verdicts = [], []
    for key, heading, format in (
        ("passes", "passes", "{:.0f}"),
        ("seconds", "seconds", "{:.0f}"),
        ("valid", f"{title} on valid", "{:.4f}"),
    ):
        factor = pace if key == "seconds" else 1.0
        values = {name: [figures[key] for figures in of] for name, of in real.items()}
        predictions = {name: Prediction.of([factor * figures[key] for figures in of]) for name, of in simulated.items()}
        covered = {name: [predictions[name].covers(value) for value in of] for name, of in values.items()}
        means = {name: statistics.fmean(of) for name, of in values.items()}
        for name, predicted in predictions.items():
            ends = (means[name], predicted.mean, predicted.mean - predicted.half_width)
            texts = [format.format(value) for value in (*ends, predicted.mean + predicted.half_width)]
            row = dict(zip(("real", "mean", "low", "high"), texts, strict=True))
            inside = f"{sum(covered[name])} of {len(covered[name])}"
            rows.append({"figure": heading, "name": name, **row, "covered": inside})
        spread = 2 * float(t.ppf((1 + LEVEL) / 2, np.inf)) * pooled_deviation(list(values.values()))
        width = 2 * statistics.fmean(predicted.half_width for predicted in predictions.values())
        verdicts.append(
            {
                "figure": heading,
                "covered": f"{sum(map(sum, covered.values()))} of {sum(map(len, covered.values()))}",
                "width": width / (2 * spread) if spread else None,
                "order": _order([predictions[name].mean for name in means], list(means.values())),
            }
        )
    return [_policies_table(rows, len(next(iter(simulated.values())))), _verdicts_table(verdicts)]


def _seconds_of_pass(figures: Mapping[str, Sequence[Figures]]) -> float:
    every = [each for of in figures.values() for each in of]
    seconds, passes = (sum(float(each[key]) for each in every) for key in ("trial_seconds", "passes"))
    return seconds / passes


def _order(simulated: Sequence[float], real: Sequence[float]) -> float | None:
    """Return the rank correlation; None if it is undefined."""
    if len(set(simulated)) < 2 or len(set(real)) < 2:
        return None
    return float(spearmanr(simulated, real).statistic)


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float:
    """Return the deviation within groups, 0 if none has two values."""
    more = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in more)
    return (sum(statistics.variance(group) * (len(group) - 1) for group in more) / freedom) ** 0.5 if more else 0.0


def _policies_table(rows: Sequence[Mapping[str, Any]], simulations: int) -> Table:
    return Table(
        "simulated",
        f"Real searches and {simulations} simulated ones of each policy",
        (
            Column("figure", "figure"),
            Column("name", "policy"),
            Column("real", "real"),
            Column("mean", "simulated"),
            Column("low", "from"),
            Column("high", "to"),
            Column("covered", "covered"),
        ),
        rows,
        (
            f"means; from, to: where the next search lies with {LEVEL:.0%}, by the simulated ones (t)",
            "the recorded trials are others than those of the searches",
            "seconds: of the simulated searches, times the ratio of the mean seconds of a pass",
        ),
    )


def _verdicts_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        "verdict",
        "Whether simulated searches tell of real ones",
        (
            Column("figure", "figure"),
            Column("covered", "real searches covered"),
            Column("width", "width", "{:.2f}"),
            Column("order", "rank correlation", "{:+.2f}"),
        ),
        rows,
        (
            f"width: mean width of the intervals, over twice that of real searches of one policy at {LEVEL:.0%}",
            "rank correlation: of the simulated and the real means of the policies",
        ),
    )
