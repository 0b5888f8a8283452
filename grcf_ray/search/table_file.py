"""Read tables of recorded trials, which `benchmarks/record_trials.py` writes.

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
from grcf_ray.search.space import recorded_space
from grcf_ray.search.trial_table import KnownTrial, TableTrial, TrialTable

SPLITS = ("valid", "test")
SCALE = 64
"""Steps of a score in a label unit: rounding changes an error by less than a tenth of what seeds do."""


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
        parts = np.split(step_CN.cumsum(axis=0) / SCALE, [len(labels[0])], axis=1)
        errors = {split: part - label for split, part, label in zip(SPLITS, parts, labels, strict=True)}
    return KnownTrial(
        stage=row["stage"],
        objective={split: np.array(row[split]) for split in SPLITS},
        seconds_E=np.array(row["seconds"]),
        passes_E=np.array(row["passes"]),
        error=errors,
    )
