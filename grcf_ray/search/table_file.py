"""Tables of recorded trials as files. `benchmarks/record_trials.py` records a table.

The figures of the trials are a few kilobytes. The scores of the utterances, which the errors come from, are optional.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from grcf_ray.errors import DataError, reason
from grcf_ray.files import atomic_write
from grcf_ray.metrics import split_metrics
from grcf_ray.search.space import recorded_space
from grcf_ray.search.trial_table import KnownTrial, TableTrial, TrialTable
from grcf_ray.train.curve import objective_name

SPLITS = ("valid", "test")
_FIGURES = ("seconds", "passes", *SPLITS)
_SCALE = 64
"""Steps of a score in a label unit: rounding changes an error by less than a tenth of what seeds do."""


def write_table(
    path: Path,
    about: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
    *,
    with_scores: bool = True,
    after: Path | None = None,
) -> None:
    """Write recorded trials as one Parquet file. Trials that diverged are left out.

    about: the data set, its task, protocol and half_range, the space, and the labels of valid and test about the centre
    of the label range. trials: each with stage, configuration, seed, finalist (the configuration of Stage 1 that it
    starts from, or None), params, curve, and scores [C, N], those of valid before those of test. after: a table whose
    trials come first.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    figures = pa.list_(pa.float32())
    columns = {
        "stage": pa.int8(),
        "configuration": pa.int32(),
        "seed": pa.int32(),
        "finalist": pa.int32(),
        "start": pa.float32(),
        "params": pa.string(),
        **dict.fromkeys(_FIGURES, figures),
    }
    if with_scores:
        columns["scores"] = pa.list_(pa.int16())
    told = about if with_scores else {name: value for name, value in about.items() if name not in SPLITS}
    rows = [_row(about, trial) for trial in trials]
    starts = {
        (row["configuration"], row["seed"]): max(row["valid"][: len(row["seconds"])], default=None)
        for row in rows
        if row["stage"] == 1
    }
    lengths = {stage: max(len(row["seconds"]) for row in rows if row["stage"] == stage) for stage in (1, 2)}
    kept = [
        {**row, "start": starts.get((row["finalist"], row["seed"]))}
        for row in rows
        if len(row["seconds"]) == lengths[row["stage"]]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        schema = pa.schema(columns, {"about": json.dumps(told)})
        earlier = [] if after is None else [pq.read_table(after, columns=schema.names).cast(schema)]
        table = pa.concat_tables([*earlier, pa.Table.from_pylist(kept, schema)])
        pq.write_table(table, file, compression="zstd", compression_level=19)


def _row(about: Mapping[str, Any], trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial as a row of the file."""
    metric = objective_name(trial["stage"], about["task"])
    score_CN = np.asarray(trial["scores"]).reshape(-1, len(about["valid"]) + len(about["test"]))
    limits = {"protocol": about["protocol"], "limit": about["half_range"]}
    row = {name: trial[name] for name in ("stage", "configuration", "seed", "finalist")}
    row |= {
        "params": json.dumps(trial["params"]),
        "seconds": [metrics["seconds"] for metrics in trial["curve"]],
        "passes": [metrics["utterance_passes"] for metrics in trial["curve"]],
        # Scores change little from epoch to epoch, and small numbers take less room.
        "scores": np.diff(np.round(score_CN * _SCALE).astype(np.int16), axis=0, prepend=np.int16(0)).reshape(-1),
    }
    for split, part_CN in zip(SPLITS, np.split(score_CN, [len(about["valid"])], axis=1), strict=True):
        label_N = np.asarray(about[split])
        row[split] = [split_metrics(score_N, label_N, only=metric, **limits)[metric] for score_N in part_CN]
    return row


def read_table(path: Path, *, with_errors: bool = False) -> TrialTable:
    """Read a table. with_errors: read the errors of the utterances too.

    Raises DataError if the file is not a table, or has no scores to take errors from.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        about = json.loads(schema.metadata[b"about"])
        wanted = [name for name in schema.names if with_errors or name != "scores"]
        rows = pq.read_table(path, columns=wanted).to_pylist()
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a table of recorded trials ({reason(error)})") from error
    if with_errors and "scores" not in wanted:
        raise DataError(f"{path}: has no scores of utterances; record it again without --no-scores")
    labels = [np.array(about[split]) for split in SPLITS] if with_errors else []
    recorded: dict[Literal[1, 2], list[TableTrial]] = {1: [], 2: []}
    for row in rows:
        origin = None if row["finalist"] is None else (row["finalist"], row["seed"])
        trial = TableTrial(row["configuration"], json.loads(row["params"]), _known(row, labels), row["start"], origin)
        recorded[trial.known.stage].append(trial)
    return TrialTable(
        recorded,
        name=about["dataset"],
        space=recorded_space(about["space"], str(path)),
        task=about["task"],
        protocol=about["protocol"],
        half_range=about["half_range"],
    )


def _known(row: Mapping[str, Any], labels: Sequence[NDArray[np.float64]]) -> KnownTrial:
    """Return the results of a row. labels: of valid and test, to take the errors from; empty for none."""
    errors = {}
    if labels:
        step_CN = np.array(row["scores"], np.int64).reshape(len(row["valid"]), -1)
        parts = np.split(step_CN.cumsum(axis=0) / _SCALE, [len(labels[0])], axis=1)
        errors = {split: part - label for split, part, label in zip(SPLITS, parts, labels, strict=True)}
    return KnownTrial(
        stage=row["stage"],
        objective={split: np.array(row[split]) for split in SPLITS},
        seconds_E=np.array(row["seconds"]),
        passes_E=np.array(row["passes"]),
        error=errors,
    )
