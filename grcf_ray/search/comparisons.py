"""What is told beside a run's figures: retrainings, the direct and the linear baseline, and when seeds are too few.

It reads records only, so that runs are listed without torch and Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from grcf_ray.config import Task
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.search.direct_baseline import both_sides
from grcf_ray.search.record import RunRecord
from grcf_ray.search.schema import SeedsFile, read_file
from grcf_ray.train.curve import objective_name

ARMS = ("winner", "start")
_FEW_SEEDS = 5
"""Below so many seeds nothing is claimed."""


def seeds_record(run: RunRecord, winner: str) -> RunRecord:
    """The record of a winner's retrainings. A search that goes on may find another winner: each has its own."""
    return RunRecord(run.place / "seeds" / winner.replace("/", "-"))


def retrainings(record: RunRecord, winner: str) -> dict[str, Any] | None:
    """What the winner's retrainings came to; None where there are none."""
    try:
        metrics = read_file(record.place / "seeds" / "metrics.json", SeedsFile)
    except FileNotFoundError:
        return None
    return metrics if metrics["winner"] == winner else None


def compare(models: Sequence[Mapping[str, Any]], seeds: int) -> dict[str, Any]:
    """Mean and deviation (n - 1) of each arm's figures, and the paired gain of the winner with its 95 % t interval.

    models: entries with `arm`, `index`, `valid` and `test`. A gain is winner minus start: below zero is better for MAE.
    """
    by_arm = {arm: {m["index"]: m for m in models if m["arm"] == arm} for arm in ARMS}
    arms = {
        arm: {
            "trained": len(of),
            **{split: _spread([m[split] for m in of.values()]) for split in ("valid", "test")},
        }
        for arm, of in by_arm.items()
    }
    pairs = [(by_arm["winner"][index], by_arm["start"][index]) for index in range(seeds) if _both(by_arm, index)]
    gains = [_difference(ours["test"], theirs["test"]) for ours, theirs in pairs]
    return {"arms": arms, "gain": _spread(gains)}


def paired(models: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict[str, Any]:
    """Two sides' models of the same seeds: how many seeds they share, the figures of each side, the paired `gain`.

    models: of each of the two sides, by seed, the metrics of its model. A gain is the first side minus the second.
    """
    (one, ours), (other, theirs) = models.items()
    shared = sorted(ours.keys() & theirs.keys())
    return {
        "seeds": len(shared),
        one: _spread([ours[seed] for seed in shared]),
        other: _spread([theirs[seed] for seed in shared]),
        "gain": _spread([_difference(ours[seed], theirs[seed]) for seed in shared]),
    }


def against_baseline(record: RunRecord) -> dict[str, Any] | None:
    """The two-stage search against the direct-MAE one of the same name, whichever of the two this is.

    Their winners' retrainings, paired by seed: `gain` is two-stage minus direct on test, so below zero is better for
    MAE. None where either has no retrainings.
    """
    places = both_sides(record.place)
    found = {}
    for side, place in places.items():
        try:
            models = read_file(place / "seeds" / "metrics.json", SeedsFile)["models"]
        except FileNotFoundError:
            return None
        found[side] = {m["index"]: m["test"] for m in models if m["arm"] == "winner"}
    return {"runs": {side: str(place) for side, place in places.items()}, **paired(found)}


def few_seeds(seeds: int) -> str | None:
    """What has to be said of so few seeds; None where there are enough."""
    return None if seeds >= _FEW_SEEDS else f"too few seeds for a claim: {seeds}, and {_FEW_SEEDS} are the least"


def few_retrainings(seeds: Mapping[str, Any]) -> str | None:
    """As `few_seeds`, of what `compare` found: the arm with the fewest models counts."""
    return few_seeds(min(arm["trained"] for arm in seeds["arms"].values()))


def baseline_kind(baseline: Mapping[str, Any]) -> str:
    """What a recorded baseline is, without what it reads: ridge regression, or of two classes logistic regression."""
    kind: str = baseline["name"].partition(" on ")[0]
    return kind


def baseline_remarks(baselines: Sequence[Mapping[str, Any]], test: Mapping[str, float], task: Task) -> Iterator[str]:
    """What has to be said of the recorded baselines, a sentence each. test: the winner's metrics."""
    objective = objective_name(2, task)
    for baseline in baselines:
        yield f"Baseline: {baseline['name']} of the same encoder, alpha {baseline['alpha']:g} by validation."
        ours, theirs = test.get(objective), baseline["test"].get(objective)
        if ours is not None and theirs is not None and theirs < ours:
            kind = baseline_kind(baseline).capitalize()
            yield f"{kind} has the better test {METRIC_TITLES[objective]}: {theirs:.4f} against {ours:.4f}."


def _both(by_arm: Mapping[str, Mapping[int, Any]], index: int) -> bool:
    return all(index in by_arm[arm] for arm in ARMS)


def _difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    return {name: ours[name] - theirs[name] for name in ours if name in theirs}


def _spread(figures: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Of each metric that all have: mean, deviation, and the half width of the mean's 95 % t interval."""
    from scipy import stats

    if not figures:
        return {}
    names = [name for name in figures[0] if all(name in entry for entry in figures)]
    found: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = np.array([entry[name] for entry in figures])
        n = len(values)
        deviation = float(values.std(ddof=1)) if n > 1 else None
        half = float(stats.t.ppf(0.975, n - 1)) * deviation / n**0.5 if deviation is not None else None
        found[name] = {"mean": float(values.mean()), "deviation": deviation, "half_width": half}
    return found
