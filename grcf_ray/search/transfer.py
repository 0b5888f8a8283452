"""A trained model measured on another data set than its own (appendix B.3)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa

from grcf_ray.data.datasets import protocol_of
from grcf_ray.data.features import LABEL_DECIMALS
from grcf_ray.data.frames import Frames
from grcf_ray.data.schema import TableInfo
from grcf_ray.errors import ConfigError, DataError
from grcf_ray.metrics import split_metrics
from grcf_ray.search.winner import finite_metrics
from grcf_ray.train.export import SavedModel, load_model
from grcf_ray.train.stage import use_deterministic_torch

__all__ = ["fit_features", "measure_on"]


def measure_on(
    folder: Path, table: pa.Table, info: TableInfo, *, threads: int, fit: bool
) -> tuple[dict[str, float], list[str]]:
    """Metrics of a saved model on rows of another data set, under that one's protocol; and what was done to get them.

    fit: take audio and vision of other widths, or none, as `fit_features` has it; else DataError says what differs.
    ConfigError where the tasks differ. Scores are scaled from the one label range to the other.
    """
    use_deterministic_torch(threads)
    saved = load_model(folder)
    if saved.task != info.task:
        raise ConfigError(f"the model was trained for {saved.task}, and {info.name} is labelled for {info.task}")
    lowercase = saved.lowercase or (saved.config.features.lowercase == "auto" and info.transcripts == "upper")
    table, notes = fit_features(table, saved, asked=fit)
    score_N = dataclasses.replace(saved, lowercase=lowercase, word_aligned=info.word_aligned).score(table)
    (low, high), (to_low, to_high) = saved.label_range, info.label_range
    if (low, high) != (to_low, to_high):
        score_N = to_low + (score_N - low) * (to_high - to_low) / (high - low)
        notes.append(f"scores are scaled from [{low:g}, {high:g}] to [{to_low:g}, {to_high:g}]")
    metrics = split_metrics(
        score_N,
        np.round(table["label"].to_numpy().astype(np.float64), LABEL_DECIMALS),
        protocol=protocol_of(info.name, info.task),
        limit=(to_high - to_low) / 2,
        center=(to_low + to_high) / 2,
    )
    return finite_metrics(metrics), notes


def fit_features(table: pa.Table, saved: SavedModel, *, asked: bool) -> tuple[pa.Table, list[str]]:
    """The table with audio and vision as wide as the model takes them, and what was done; DataError unless asked.

    Of wider rows the last values are cut off. Narrower ones are filled with the means of the model's training rows,
    which are zero once standardised. A modality that the table lacks is missing in every utterance.
    """
    notes, refused = [], []
    for name, width in saved.model.modality_dims.items():
        kind = pa.list_(pa.list_(pa.float32(), width))
        here = table.schema.field(name).type.value_type.list_size if name in table.column_names else None
        if here == width:
            continue
        if here is None:
            refused.append(f"there is no {name}, which the model was trained with")
            notes.append(f"no {name}: taken as missing in every utterance")
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
            continue
        refused.append(f"{name} has rows of {here} values, and the model takes {width}")
        notes.append(
            f"{name}: the last {here - width} of {here} values are cut off"
            if here > width
            else f"{name}: {width - here} values, the means of the model's training rows, are added to {here}"
        )
        frames = Frames.of(table[name])
        rows_RA = frames.values.reshape(-1, here)[:, :width]
        mean_A = saved.standardisers[name].mean_A if name in saved.standardisers else np.zeros(width, np.float32)
        fill_RA = np.broadcast_to(mean_A[rows_RA.shape[1] :], (len(rows_RA), width - rows_RA.shape[1]))
        fitted = Frames(
            frames.lengths_N, np.full(len(rows_RA), width), np.concatenate([rows_RA, fill_RA], axis=1).reshape(-1)
        )
        table = table.set_column(table.column_names.index(name), name, fitted.to_arrow(width=width))
    if refused and not asked:
        raise DataError(f"{'; '.join(refused)}: --fit-features cuts off, fills up, or does without")
    return table, notes
