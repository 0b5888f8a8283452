"""Early stopping: what it spares, what it costs, and how the sampler should be told of a trial that was stopped.

The test split is not read.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grcf_ray.cluster import connect

from optuna.trial import TrialState as OptunaState

from grcf_ray.bench.measure import PAIRED, paired
from grcf_ray.config import flatten
from grcf_ray.data.datasets import protocol_of
from grcf_ray.data.features import Features
from grcf_ray.search.nodes import cluster_nodes
from grcf_ray.search.preflight import find_capacity
from grcf_ray.search.record import RunRecord
from grcf_ray.search.searcher import OptunaSearcher
from grcf_ray.search.space import Range, Space
from grcf_ray.search.stages import Search
from grcf_ray.storage import storage_path
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features

if TYPE_CHECKING:
    from grcf_ray.bench.setup import Setup

SEEDS = (1, 2, 3, 4, 5)
EPOCHS, PAIRS = 9, 160
"""Of a trial, and of an epoch."""
LAYERS_LEFT = 2
"""Layers of the text encoder that are trained."""
RATES = {"stage1.encoder_lr": 2.0, "stage1.head_lr": 2.0}
"""What is searched: from the starting point divided by this factor to the starting point times it."""


class ToldAsComplete(OptunaSearcher):
    """Tells the sampler of a stopped trial as of a whole one whose value is its last."""

    def outcome(
        self, curve: Sequence[Mapping[str, Any]], state: str | None
    ) -> tuple[OptunaState, dict[int, float], float | None]:
        """As in `OptunaSearcher`, but for stopped trials."""
        told, values, last = super().outcome(curve, state)
        return OptunaState.COMPLETE if told == OptunaState.PRUNED and values else told, values, last


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a search came to."""

    best: float
    """Highest validation PairwiseAcc of its trials."""
    epochs: int
    stopped: int
    """Trials that were stopped early."""


def pruning_tables(setup: Setup) -> list[Table]:
    """Stage 1 searches under several seeds: without early stopping, with it, and with it told as COMPLETE."""
    connect()
    space = _narrow(setup.space, setup.trials)
    features = prepare_features(setup.store, space.config(), cache=setup.folder)
    variants: list[tuple[str, bool, type[OptunaSearcher]]] = [
        ("no early stopping", False, OptunaSearcher),
        ("ASHA, stopped trials told as PRUNED", True, OptunaSearcher),
        ("ASHA, stopped trials told as COMPLETE", True, ToldAsComplete),
    ]
    outcomes: dict[str, list[Outcome]] = {name: [] for name, _, _ in variants}
    for seed in SEEDS:
        for number, (name, pruning, proposals) in enumerate(variants):
            setup.say(f"seed {seed}: {name}")
            chosen = space.with_settings({"seed": seed, "search.pruning": pruning})
            record = RunRecord(storage_path(setup.folder / f"pruning-{seed}-{number}"))
            outcomes[name].append(_search(record, chosen, features, setup, proposals))
    names = list(outcomes)
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
            [_row(name, outcomes[name], outcomes[names[0]]) for name in names],
            (
                f"each epoch has {PAIRS} pairs; all but the top {LAYERS_LEFT} layers are frozen; searched: "
                + ", ".join(f"{path} within a factor of {factor:g}" for path, factor in RATES.items()),
                f"ASHA keeps one trial in {search.reduction_factor:g} from epoch {search.grace_epochs} on",
                "the difference to the first line is paired over the seeds, with the 95 % interval of a t test",
            ),
        ),
        Table(
            "pruning by seed",
            "Best validation PairwiseAcc and epochs, by seed",
            (Column("name", "seed"), *(Column(name, name) for name in names)),
            [
                {
                    "name": str(seed),
                    **{name: f"{outcomes[name][i].best:.4f}, {outcomes[name][i].epochs}" for name in names},
                }
                for i, seed in enumerate(SEEDS)
            ],
        ),
    ]


def _narrow(space: Space, trials: int) -> Space:
    """Stage 1 alone, over learning rates about the starting point."""
    config = space.config()
    settings = flatten(config)
    start = {path: dimension.start for path, dimension in space.stage1.items() if path not in RATES}
    ranges = {
        path: Range(settings[path] / factor, settings[path] * factor, log=True, start=settings[path])
        for path, factor in RATES.items()
    }
    fixed = {
        **space.fixed,
        **start,
        "model.frozen_layers": _layers(config.model.backbone) - LAYERS_LEFT,
        "pairs.pairs_per_epoch": PAIRS,
        "stage1.epochs": EPOCHS,
        "stage2.epochs": 0,
        "search.stage1_trials": trials,
        "search.reduction_factor": 3.0,
    }
    return dataclasses.replace(space, fixed=fixed, stage1=ranges, stage2={})


def _layers(backbone: str) -> int:
    from grcf_ray.model.pretrained import backbone_config

    return int(backbone_config(backbone)["num_hidden_layers"])


def _search(
    record: RunRecord, space: Space, features: Features, setup: Setup, proposals: type[OptunaSearcher]
) -> Outcome:
    config, info = space.config(), setup.store.info
    record.write_run({"state": "running", "settings": flatten(config)})
    room = find_capacity(cluster_nodes(), config, [config.search.stage1_trials])
    winner = Search(
        record=record,
        space=space,
        features=features,
        protocol=protocol_of(info.name, info.task),
        concurrent=room.concurrent,
        proposals=proposals,
    ).run()
    assert winner.objective is not None
    trials = record.trials(1)
    return Outcome(winner.objective, sum(len(t.curve) for t in trials), sum(t.state == "pruned" for t in trials))


def _row(name: str, outcomes: Sequence[Outcome], first: Sequence[Outcome]) -> dict[str, Any]:
    mean: Callable[[Sequence[float]], float] = statistics.fmean
    best, others = [one.best for one in outcomes], [one.best for one in first]
    epochs = mean([one.epochs for one in outcomes])
    row = {
        "name": name,
        "epochs": epochs,
        "share": epochs / mean([one.epochs for one in first]),
        "stopped": mean([one.stopped for one in outcomes]),
        "best": mean(best),
        "deviation": statistics.stdev(best),
        "seeds": [vars(one) for one in outcomes],
    }
    if outcomes is not first:
        row |= paired(best, others)
    return row
