"""Memory of a process that takes one trial after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from grcf_ray.bench.measure import Column, Table
from grcf_ray.bench.resident import STATUS, resident
from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.data.datasets import protocol_of
from grcf_ray.data.features import Ragged, SplitFeatures
from grcf_ray.data.store import Store
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.job import JobRunner, StageJob

__all__ = ["memory_table"]

AFTER = (1, 5, 20, 50)
"""Trials after which it is read."""
_UTTERANCES = 64
"""Of each split: what a trial leaves behind does not depend on how long it trains."""


def memory_table(store: Store, config: RunConfig, say: Callable[[str], None], folder: Path) -> Table:
    """Private memory after so many trials of one epoch, each with its model, optimizer and checkpoint."""
    config = build_config({**flatten(config), "pairs.pairs_per_epoch": _UTTERANCES // 2, "stage1.epochs": 1})
    features = prepare_features(store, config, cache=folder)
    runner = JobRunner(dataclasses.replace(features, train=_first(features.train), valid=_first(features.valid)))
    after: dict[int, int] = {}
    for number in range(1, AFTER[-1] + 1):
        say(f"trial {number} of {AFTER[-1]} in one process")
        runner.start(
            StageJob(
                stage=1,
                seed=number,
                settings=flatten(config),
                protocol=protocol_of(store.info.name, store.info.task),
                folder=str(folder / "memory"),
                initial=None,
                initial_sha256=None,
                threads=1,
                gpu=False,
                reported=0,
            )
        )
        for file in (folder / "memory").glob("*"):
            file.unlink()
        runner.step()
        if number in AFTER:
            after[number] = _private_bytes()
    return Table(
        "memory",
        "A process that takes one trial after the other",
        (
            Column("name", "after trial"),
            Column("mb", "private memory, MB", "{:.0f}"),
            Column("share", "of that after trial 5", "{:.3f}"),
        ),
        [{"name": f"{number}", "mb": size / 1e6, "share": size / after[5]} for number, size in after.items()],
        (f"trials of one epoch on {_UTTERANCES} utterances, the whole model trained",),
    )


def _first(split: SplitFeatures) -> SplitFeatures:
    n = min(_UTTERANCES, len(split))

    def cut(ragged: Ragged | None) -> Ragged | None:
        if ragged is None:
            return None
        return Ragged(np.array(ragged.values[: ragged.offsets[n]]), ragged.offsets[: n + 1])

    tokens = cut(split.tokens)
    assert tokens is not None
    return SplitFeatures(
        label_N=split.label_N[:n],
        tokens=tokens,
        audio=cut(split.audio),
        vision=cut(split.vision),
        hidden=cut(split.hidden),
        vector_ND=None if split.vector_ND is None else split.vector_ND[:n],
    )


def _private_bytes() -> int:
    """What no other process shares and no file backs, as Linux has it; elsewhere the most that was ever resident."""
    if STATUS.exists():
        return resident()["RssAnon"]
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
