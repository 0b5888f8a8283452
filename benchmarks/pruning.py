"""Compare searches without early stopping and with ASHA, and two ways to report stopped trials to the sampler.

    python benchmarks/pruning.py --dataset mosi --data DIR --trials 16 --out docs/performance

Runs three Stage 1 searches under each of five seeds, in about an hour on two cores.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import grcf_ray.cluster  # noqa: F401  before Ray

from optuna.trial import TrialState as OptunaState
from study import PAIRED, paired_interval, run_study

from grcf_ray.bench.setup import Setup
from grcf_ray.config import flatten
from grcf_ray.model.pretrained import backbone_config
from grcf_ray.search.record import RunRecord
from grcf_ray.search.searcher import OptunaSearcher
from grcf_ray.search.space import Range, Space
from grcf_ray.search.stages import Search
from grcf_ray.storage import storage_path
from grcf_ray.tables import Column, Table

SEEDS = (1, 2, 3, 4, 5)
EPOCHS, PAIRS = 9, 160
"""Epochs of a trial, and pairs of an epoch."""
TRAINED_LAYERS = 2
"""Top layers of the text encoder that are trained."""
RATES = {"stage1.encoder_lr": 2.0, "stage1.head_lr": 2.0}
"""The searched settings; the range is the starting point divided and multiplied by the factor."""


class ReportAsComplete(OptunaSearcher):
    """Reports a stopped trial to the sampler as a complete trial with its last value."""

    def outcome(
        self, curve: Sequence[Mapping[str, Any]], state: str | None
    ) -> tuple[OptunaState, dict[int, float], float | None]:
        """Return Optuna's state, the intermediate values and the value of a trial."""
        reported, values, last = super().outcome(curve, state)
        return OptunaState.COMPLETE if reported == OptunaState.PRUNED and values else reported, values, last


class CompleteSearch(Search):
    """A search that learns from stopped trials as if they were complete."""

    searcher = ReportAsComplete


VARIANTS: dict[str, tuple[bool, type[Search]]] = {
    "no early stopping": (False, Search),
    "ASHA, stopped trials reported as PRUNED": (True, Search),
    "ASHA, stopped trials reported as COMPLETE": (True, CompleteSearch),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a search."""

    best: float
    """Highest validation PairwiseAcc of its trials."""
    epochs: int
    stopped: int
    """Trials that ASHA stopped."""


def pruning_tables(setup: Setup) -> list[Table]:
    """Run each variant's search under each seed."""
    space = _narrow(setup.space, setup.trials)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in VARIANTS}
    for seed in SEEDS:
        for number, (name, (pruning, kind)) in enumerate(VARIANTS.items()):
            setup.say(f"seed {seed}: {name}")
            seeded = space.with_settings({"seed": seed, "search.pruning": pruning})
            record = RunRecord(storage_path(setup.folder / f"pruning-{seed}-{number}"))
            outcomes[name].append(search_outcome(setup, record, seeded, kind))
    baseline, *_ = outcomes.values()
    search = space.config().search
    return [
        Table(
            "pruning",
            f"Early stopping of Stage 1: {search.stage1_trials} trials of {EPOCHS} epochs, {len(SEEDS)} seeds",
            (
                Column("name", "search"),
                Column("epochs", "epochs", "{:.0f}"),
                Column("share", "of all", "{:.0%}"),
                Column("stopped", "trials stopped", "{:.1f}"),
                Column("best", "best PairwiseAcc", "{:.4f}"),
                Column("deviation", "deviation", "{:.4f}"),
                *PAIRED,
            ),
            [variant_row(name, results, baseline) for name, results in outcomes.items()],
            (
                f"an epoch has {PAIRS} pairs; only the top {TRAINED_LAYERS} layers are trained; searched settings: "
                + ", ".join(f"{path} within a factor of {factor:g}" for path, factor in RATES.items()),
                f"ASHA keeps one trial in {search.reduction_factor:g} from epoch {search.grace_epochs} on",
                "the difference to the first line is paired over the seeds, with the 95 % interval of a t test",
            ),
        ),
        Table(
            "pruning by seed",
            "Best validation PairwiseAcc and epochs, by seed",
            (Column("name", "seed"), *(Column(name, name) for name in outcomes)),
            [
                {
                    "name": str(seed),
                    **{name: f"{results[i].best:.4f}, {results[i].epochs}" for name, results in outcomes.items()},
                }
                for i, seed in enumerate(SEEDS)
            ],
        ),
    ]


def search_outcome(setup: Setup, record: RunRecord, space: Space, kind: type[Search]) -> Outcome:
    """Run a search of Stage 1."""
    config = space.config()
    slots = setup.slots(config, config.search.stage1_trials)
    winner = setup.search(record, space, slots, features=setup.features(config), kind=kind)
    assert winner.objective is not None
    trials = record.trials(1)
    return Outcome(winner.objective, sum(len(t.curve) for t in trials), sum(t.state == "pruned" for t in trials))


def _narrow(space: Space, trials: int) -> Space:
    """Return a space of Stage 1 alone, with learning rates around the starting point."""
    config = space.config()
    settings = flatten(config)
    start = {path: dimension.start for path, dimension in space.stage1.items() if path not in RATES}
    ranges = {
        path: Range(settings[path] / factor, settings[path] * factor, log=True, start=settings[path])
        for path, factor in RATES.items()
    }
    layers = int(backbone_config(config.model.backbone)["num_hidden_layers"])
    fixed = {
        **space.fixed,
        **start,
        "model.frozen_layers": layers - TRAINED_LAYERS,
        "pairs.pairs_per_epoch": PAIRS,
        "stage1.epochs": EPOCHS,
        "stage2.epochs": 0,
        "search.stage1_trials": trials,
        "search.reduction_factor": 3.0,
    }
    return dataclasses.replace(space, fixed=fixed, stage1=ranges, stage2={})


def variant_row(name: str, outcomes: Sequence[Outcome], baseline: Sequence[Outcome]) -> dict[str, Any]:
    """Return the means of a variant over the seeds, and its paired difference to the baseline."""
    best = [outcome.best for outcome in outcomes]
    epochs = statistics.fmean(outcome.epochs for outcome in outcomes)
    row = {
        "name": name,
        "epochs": epochs,
        "share": epochs / statistics.fmean(outcome.epochs for outcome in baseline),
        "stopped": statistics.fmean(outcome.stopped for outcome in outcomes),
        "best": statistics.fmean(best),
        "deviation": statistics.stdev(best),
        "seeds": [vars(outcome) for outcome in outcomes],
    }
    if outcomes is not baseline:
        row |= paired_interval(best, [outcome.best for outcome in baseline])
    return row


if __name__ == "__main__":
    run_study("pruning", __file__, pruning_tables)
