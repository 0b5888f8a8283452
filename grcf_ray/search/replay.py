"""Train a recorded trial again and compare the result with the record."""

from __future__ import annotations

import dataclasses
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
"""Causes of failures that repeat with the same settings and input."""

TIMINGS = ("seconds", "utterances_per_s", "pairs_per_s")
"""Metrics that may differ between two runs of the same trial."""


def find_trial(run: str, name: str) -> tuple[RunRecord, RunRecord, TrialRecord]:
    """Return the run, the record that holds the trial, and the trial. Raises ConfigError for an invalid name.

    name: stage1/7, stage2/0, or seeds/stage2/3 for a retraining, whose record is a folder of the run.
    """
    match = re.fullmatch(r"(seeds/)?stage([12])/(\d+)", name)
    if not match:
        raise ConfigError(f"--trial {name}: should be named like stage1/7, stage2/0 or seeds/stage2/3")
    seeds, stage, number = match.groups()
    record = RunRecord(storage_path(run))
    winner = record.search_info().winner
    if seeds and winner is None:
        raise ConfigError(f"{record} has no winner yet, so there are no retrainings; give a trial such as stage1/7")
    holder = seeds_record(record, winner) if seeds and winner else record
    return record, holder, holder.trial(int(stage), int(number))


def replay_job(
    run: RunRecord, holder: RunRecord, trial: TrialRecord, folder: StoragePath
) -> tuple[StageJob, RunConfig]:
    """Return the trial's job from its start, with checkpoints in `folder`, and the trial's whole configuration."""
    info = run.search_info()
    config = config_of(run_space(info, f"{run}/space.yaml"), holder, trial)
    job = stage_job(holder, trial, config=config, protocol=info.data.protocol, folder=folder.uri)
    return dataclasses.replace(job, earlier=(), reported=None), config


def epochs_to_repeat(trial: TrialRecord) -> int:
    """Return the number of epochs to repeat, including the failed epoch if the failure would repeat."""
    return trial.epoch + (trial.cause in REPEATED)


def unlike(trial: TrialRecord, result: Mapping[str, Any]) -> list[str]:
    """Return the differences between a trial's record and the last result of another run of it, one line each."""
    # A dead process or a full disk does not repeat, but the epochs before it do.
    broke = trial.cause is not None and trial.cause not in REPEATED
    curve, error = (result["curve"][: trial.epoch], None) if broke else (result["curve"], trial.error)
    lines = differences(trial.curve, curve)
    if error != result.get("failure"):
        lines.append(f"{_ended(result.get('failure'))} instead of: {_ended(error)}")
    return lines


def other_versions(recorded: Mapping[str, str]) -> list[str]:
    """Return the differences between the recorded versions and those of this machine, one line each."""
    here = versions()
    return [
        f"{name}: {recorded.get(name)} there, {here.get(name)} here"
        for name in sorted(recorded.keys() | here.keys())
        if recorded.get(name) != here.get(name)
    ]


def _ended(error: str | None) -> str:
    return f"it failed ({error})" if error else "it did not fail"


def differences(recorded: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the metrics that are not bit-identical, one line each, except timings."""
    lines = []
    if len(recorded) != len(again):
        lines.append(f"{len(again)} epochs instead of {len(recorded)}")
    for before, now in zip(recorded, again, strict=False):
        lines += [
            f"epoch {before['epoch']}, {name}: {before.get(name)} -> {now.get(name)}"
            for name in sorted(before.keys() | now.keys())
            if name not in TIMINGS and before.get(name) != now.get(name)
        ]
    return lines
