"""Compare a run's winner with its starting point, the direct baseline and the linear baseline.

Reads records only, so that listing runs imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grcf_ray.search.direct_baseline import both_sides
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.schema import SeedsFile, read_file
from grcf_ray.statistics import spread
from grcf_ray.storage import StoragePath

ARMS = ("winner", "start")
_FEW_SEEDS = 5
"""Fewer seeds do not support a claim."""


def seeds_record(run: RunRecord, winner: str) -> RunRecord:
    """Return the record of a winner's retrainings. Each winner of an extended search has its own."""
    return RunRecord(run.place / "seeds" / winner.replace("/", "-"), run.background)


def retrainings(record: RunRecord, winner: str) -> dict[str, Any] | None:
    """Return the content of `seeds/metrics.json`; None if this winner was not retrained."""
    try:
        metrics = read_file(record.place / "seeds" / "metrics.json", SeedsFile)
    except FileNotFoundError:
        return None
    return metrics if metrics["winner"] == winner else None


def winner_models(record: RunRecord, winner: str) -> list[StoragePath]:
    """Return the folders of the winner's retrained models, without those of the starting point."""
    models = seeds_record(record, winner)
    trials = models.trials(2) or models.trials(1)
    ended = [trial for trial in trials if trial.state == "complete" and arm_of(trial) == ARMS[0]]
    places = [model_place(models, trial, last=trial.stage) for trial in ended]
    return [place for place in places if (place / "metrics.json").exists()]


def arm_of(trial: TrialRecord) -> str:
    """Return the arm of a retraining."""
    return ARMS[retrained_number(trial) % 2]


def retrained_number(trial: TrialRecord) -> int:
    """Return the number of a retraining's Stage 1 trial, or its own number without one."""
    return int(trial.params.get("finalist", trial.number))


def model_place(record: RunRecord, trial: TrialRecord, *, last: int) -> StoragePath:
    """Return the folder of a retraining's model, for `train.export.load_model`. last: the last stage of the run."""
    stage = "" if trial.stage == last else f"stage{trial.stage}-"
    return record.place / "models" / f"{stage}{trial.number:04d}"


def compare(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and deviation (n - 1) of each arm's metrics, and the winner's paired gain with its 95 % t interval.

    models: entries with `arm`, `index`, `valid`, `test`. The gain is winner minus start: below zero is better for MAE.
    """
    by_arm = {arm: {m["index"]: m for m in models if m["arm"] == arm} for arm in ARMS}
    arms = {
        arm: {
            "trained": len(entries),
            **{split: _spread([m[split] for m in entries.values()]) for split in ("valid", "test")},
        }
        for arm, entries in by_arm.items()
    }
    tests = {arm: {index: m["test"] for index, m in entries.items()} for arm, entries in by_arm.items()}
    return {"arms": arms, "gain": paired(tests)["gain"]}


def paired(models: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict[str, Any]:
    """Return the number of shared seeds, the metrics of both sides on them, and the paired `gain`, first minus second.

    models: for each of the two sides, the metrics of its model by seed.
    """
    (first_name, first), (second_name, second) = models.items()
    shared = sorted(first.keys() & second.keys())
    return {
        "seeds": len(shared),
        first_name: _spread([first[seed] for seed in shared]),
        second_name: _spread([second[seed] for seed in shared]),
        "gain": _spread([_difference(first[seed], second[seed]) for seed in shared]),
    }


def against_baseline(record: RunRecord) -> dict[str, Any] | None:
    """Compare the two-stage search with the direct-MAE search of the same name; record: either of the two.

    The winners' retrainings are paired by seed: `gain` is two-stage minus direct on test, so below zero is better for
    MAE. Returns None if either search has no retrainings.
    """
    places = both_sides(record.place)
    by_side = {}
    for side, place in places.items():
        try:
            models = read_file(place / "seeds" / "metrics.json", SeedsFile)["models"]
        except FileNotFoundError:
            return None
        by_side[side] = {m["index"]: m["test"] for m in models if m["arm"] == "winner"}
    return {"runs": {side: str(place) for side, place in places.items()}, **paired(by_side)}


def few_seeds(seeds: int) -> str | None:
    """Return a warning about too few seeds; None if there are enough."""
    return None if seeds >= _FEW_SEEDS else f"too few seeds for a claim: {seeds}; use at least {_FEW_SEEDS}"


def baseline_kind(name: str) -> str:
    """Return the kind of a recorded baseline: ridge regression or, for classification, logistic regression."""
    return name.partition(" on ")[0]


def _difference(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {name: first[name] - second[name] for name in first if name in second}


def _spread(figures: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Return mean, deviation and half width of the 95 % t interval for each metric that all figures have."""
    names = [name for name in figures[0] if all(name in entry for entry in figures)] if figures else []
    spreads = {name: spread([entry[name] for entry in figures]) for name in names}
    return {
        name: {"mean": over.mean, "deviation": over.deviation, "half_width": over.half_width}
        for name, over in spreads.items()
    }
