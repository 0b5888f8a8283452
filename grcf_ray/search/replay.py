"""A recorded trial as a job that runs again, and whether it came out the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from grcf_ray.config import RunConfig
from grcf_ray.errors import ConfigError
from grcf_ray.search.callback import stage_job
from grcf_ray.search.comparisons import seeds_record
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.space import run_space
from grcf_ray.search.stages import config_of
from grcf_ray.search.winner import versions
from grcf_ray.storage import StoragePath, storage_path
from grcf_ray.train.job import StageJob

REPEATED = ("not finite", "refused", "damaged file")
"""Causes of failures that the trial's settings or input bring about again."""

TIMINGS = ("seconds", "utterances_per_s", "pairs_per_s")
"""What another run of the same trial need not repeat."""


def find_trial(run: str, name: str) -> tuple[RunRecord, RunRecord, TrialRecord]:
    """The run, the record that the trial lies in, and the trial. ConfigError for a name that is none.

    name: stage1/7, stage2/0, or seeds/stage2/3 for a retraining, whose record lies below the run's.
    """
    match = re.fullmatch(r"(seeds/)?stage([12])/(\d+)", name)
    if not match:
        raise ConfigError(f"--trial {name}: should be named like stage1/7, stage2/0 or seeds/stage2/3")
    seeds, stage, number = match.groups()
    record = RunRecord(storage_path(run))
    winner = record.search_info().winner
    if seeds and winner is None:
        raise ConfigError(f"{record} has no winner yet, and so no retrainings under seeds")
    holder = seeds_record(record, winner) if seeds and winner else record
    return record, holder, holder.trial(int(stage), int(number))


def replay_job(
    run: RunRecord, holder: RunRecord, trial: TrialRecord, folder: StoragePath
) -> tuple[StageJob, RunConfig]:
    """The trial's job with checkpoints of its own, and its whole configuration."""
    info = run.search_info()
    config = config_of(run_space(info, f"{run}/space.yaml"), holder, trial)
    return stage_job(holder, trial, config=config, protocol=info.data.protocol, folder=folder.uri), config


def epochs_to_repeat(trial: TrialRecord) -> int:
    """How far a trial came, counting the epoch that failed if it would fail again."""
    return trial.epoch + (trial.cause in REPEATED)


def unlike(trial: TrialRecord, result: Mapping[str, Any]) -> list[str]:
    """What another run of a trial, by its last result, did otherwise than the record has it."""
    # A process that died, or a disk that was full, is nothing that a trial repeats: what it had done before is.
    broke = trial.cause is not None and trial.cause not in REPEATED
    again, own = result["curve"][: trial.epoch] if broke else result["curve"], None if broke else trial.error
    found = differences(trial.curve, again)
    if own != result.get("failure"):
        found.append(f"{_ended(result.get('failure'))} instead of: {_ended(own)}")
    return found


def other_versions(recorded: Mapping[str, str]) -> list[str]:
    """What differs between here and where a run was recorded, a line each."""
    here = versions()
    return [
        f"{name}: {recorded.get(name)} there, {here.get(name)} here"
        for name in sorted(recorded.keys() | here.keys())
        if recorded.get(name) != here.get(name)
    ]


def _ended(error: str | None) -> str:
    return f"it failed ({error})" if error else "it did not fail"


def differences(recorded: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]]) -> list[str]:
    """Figures that are not the same to the last bit, a line each; timings aside."""
    found = []
    if len(recorded) != len(again):
        found.append(f"{len(again)} epochs instead of {len(recorded)}")
    for before, now in zip(recorded, again, strict=False):
        found += [
            f"epoch {before['epoch']}, {name}: {before.get(name)} -> {now.get(name)}"
            for name in sorted(before.keys() | now.keys())
            if name not in TIMINGS and before.get(name) != now.get(name)
        ]
    return found
