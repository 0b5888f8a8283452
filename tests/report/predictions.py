"""Predictions as a search leaves them, of made-up scores."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grcf_ray.search.record import RunRecord

__all__ = ["HOSTILE", "write_predictions"]

HOSTILE = 'a\tb\nc\r\u2028d<img src=x onerror="document.title=1">\x1b[31m\x00'
"""A text that would break out of its cell, of its line and of its page."""


def write_predictions(record: RunRecord, split: Literal["valid", "test"], *, count: int = 16) -> None:
    """Write `best/predictions/<split>.parquet`, whose first text is hostile."""
    rng = np.random.default_rng(0)
    label_N = np.round(rng.uniform(-3, 3, count), 1)
    state_ND = (label_N[:, None] * np.ones(8) + rng.normal(size=(count, 8))).astype(np.float32)
    table = pa.table(
        {
            "id": [f"video{index}[0]" for index in range(count)],
            "text": [HOSTILE, *(f"utterance {index}" for index in range(1, count))],
            "label": label_N,
            "score": label_N + rng.normal(scale=0.5, size=count),
            "state": pa.FixedSizeListArray.from_arrays(pa.array(state_ND.ravel()), 8),
        }
    )
    with (record.place / "best" / "predictions" / f"{split}.parquet").writing() as path:
        pq.write_table(table, path)
