"""Measure a trained model on another data set (appendix B.3)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from grcf_ray.data.datasets import protocol_of
from grcf_ray.data.frames import Frames
from grcf_ray.data.rows import RowSource
from grcf_ray.data.schema import TableInfo, labels_of
from grcf_ray.errors import ConfigError, DataError
from grcf_ray.train.export import SavedModel
from grcf_ray.train.stage import use_deterministic_torch


def measure_on(
    saved: SavedModel, table: pa.Table, info: TableInfo, *, threads: int, fit: bool
) -> tuple[dict[str, float], list[str]]:
    """Return a saved model's metrics on rows of another data set, under that data set's protocol, and notes.

    fit: adapt audio and vision as `fit_features` does; without it, raise DataError if they differ. Raises ConfigError
    if the tasks differ. Scores are scaled from the model's label range to that of the data. The notes name each change.
    """
    use_deterministic_torch(threads)
    score_N, notes = score_on(saved, table, info, fit=fit)
    label_N = labels_of(table)
    protocol = protocol_of(info.name, info.task)
    return saved.metrics(score_N, label_N, protocol=protocol, label_range=info.label_range), notes


def score_on(
    saved: SavedModel, table: pa.Table, info: TableInfo, *, fit: bool
) -> tuple[NDArray[np.float64], list[str]]:
    """Return [N] scores for rows of another data set, in that data set's label units, and notes on each change.

    fit, errors: see `measure_on`.
    """
    if saved.task != info.task:
        raise ConfigError(f"the model was trained for {saved.task}, and {info.name} is labelled for {info.task}")
    lowercase = saved.lowercase or (saved.config.features.lowercase == "auto" and info.transcripts == "upper")
    table, notes = fit_features(table, info, saved, asked=fit)
    score_N = dataclasses.replace(saved, lowercase=lowercase, word_aligned=info.word_aligned).score(table)
    (low, high), (to_low, to_high) = saved.label_range, info.label_range
    if (low, high) != (to_low, to_high):
        score_N = to_low + (score_N - low) * (to_high - to_low) / (high - low)
        notes.append(f"scores are scaled from [{low:g}, {high:g}] to [{to_low:g}, {to_high:g}]")
    return score_N, notes


def fit_features(
    table: pa.Table, info: TableInfo | RowSource, saved: SavedModel, *, asked: bool
) -> tuple[pa.Table, list[str]]:
    """Return the table with audio and vision of the model's width, and notes on each change.

    Raises DataError if a change is needed and not asked for. The last values of wider rows are cut off. Narrower rows
    are filled with the means of the model's training rows, which standardise to zero, or with zeros if the model was
    trained without standardising. A modality that the table lacks is missing in every utterance. Rows stay unchanged
    if only one of the two data sets aligns rows to words: the caller sets the model's `word_aligned` from `info`.
    """
    notes, refused, shared = [], [], []
    for name, width in saved.model.modality_dims.items():
        kind = pa.list_(pa.list_(pa.float32(), width))
        here = table.schema.field(name).type.value_type.list_size if name in table.column_names else None
        if here is None:
            refused.append(f"there is no {name}, which the model was trained with")
            notes.append(f"no {name}: taken as missing in every utterance")
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
            continue
        shared.append(name)
        if here == width:
            continue
        refused.append(f"{name} has rows of {here} values, and the model takes {width}")
        if name in saved.standardisers:
            fill_A, filling = saved.standardisers[name].mean_A, "the means of the model's training rows"
        else:
            fill_A = np.zeros(width, np.float32)
            filling = "zeros, because the model was trained without standardising"
        notes.append(
            f"{name}: the last {here - width} of {here} values are cut off"
            if here > width
            else f"{name}: {width - here} values, {filling}, are added to {here}"
        )
        table = table.set_column(table.column_names.index(name), name, _fitted(Frames.of(table[name]), here, fill_A))
    if shared and saved.word_aligned != info.word_aligned:
        refusal, note = _alignment(" and ".join(shared), info)
        refused.append(refusal)
        notes.append(note)
    if refused and not asked:
        raise DataError(f"{'; '.join(refused)}. With --fit-features: {'; '.join(notes)}")
    return table, notes


def _fitted(frames: Frames, width: int, fill_A: NDArray[np.float32]) -> pa.Array:
    """Cut rows of `width` values at the end, or fill them from fill_A, to the width of fill_A."""
    rows_RA = frames.values.reshape(-1, width)[:, : len(fill_A)]
    missing = fill_A[rows_RA.shape[1] :]
    rows_RA = np.concatenate([rows_RA, np.broadcast_to(missing, (len(rows_RA), len(missing)))], axis=1)
    fitted = Frames(frames.lengths_N, np.full(len(rows_RA), len(fill_A)), rows_RA.reshape(-1))
    return fitted.to_arrow(width=len(fill_A))


def _alignment(names: str, info: TableInfo | RowSource) -> tuple[str, str]:
    """Return the refusal and the note for rows that are aligned to words in only one of the two data sets."""
    if info.word_aligned:
        return (
            f"{info.name} aligns rows of {names} to words, but the model's training data do not",
            f"each subword gets the rows of {names} of its word, but the model was trained on rows that are not "
            "aligned to words",
        )
    return (
        f"{info.name} does not align rows of {names} to words, but the model's training data do",
        f"rows of {names} stay unchanged, but the model was trained on rows aligned to words",
    )
