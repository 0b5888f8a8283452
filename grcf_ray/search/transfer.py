"""A trained model measured on another data set than its own (appendix B.3)."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from grcf_ray.data.datasets import protocol_of
from grcf_ray.data.features import LABEL_DECIMALS
from grcf_ray.data.frames import Frames
from grcf_ray.data.schema import TableInfo
from grcf_ray.errors import ConfigError, DataError
from grcf_ray.metrics import split_metrics
from grcf_ray.search.winner import finite_metrics
from grcf_ray.train.export import SavedModel
from grcf_ray.train.stage import use_deterministic_torch


class Rows(Protocol):
    """What must be known of rows to fit them to a model, as a `TableInfo` says it."""

    @property
    def name(self) -> str:
        """What they are called."""

    @property
    def word_aligned(self) -> bool:
        """Whether their audio and vision have a row for each word."""


def measure_on(
    saved: SavedModel, table: pa.Table, info: TableInfo, *, threads: int, fit: bool
) -> tuple[dict[str, float], list[str]]:
    """Metrics of a saved model on rows of another data set, under that one's protocol; and what was done to get them.

    fit: take audio and vision of other widths, with other rows, or none, as `fit_features` has it; else DataError says
    what differs. ConfigError where the tasks differ. Scores are scaled from the one label range to the other.
    """
    use_deterministic_torch(threads)
    score_N, notes = score_on(saved, table, info, fit=fit)
    low, high = info.label_range
    metrics = split_metrics(
        score_N,
        np.round(table["label"].to_numpy().astype(np.float64), LABEL_DECIMALS),
        protocol=protocol_of(info.name, info.task),
        limit=(high - low) / 2,
        center=(low + high) / 2,
        ties=saved.config.metrics.ties,
    )
    return finite_metrics(metrics), notes


def score_on(
    saved: SavedModel, table: pa.Table, info: TableInfo, *, fit: bool
) -> tuple[NDArray[np.float64], list[str]]:
    """[N] scores of rows of another data set in that one's label units, and what was done to get them.

    fit, and what is raised: as `measure_on` has it.
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


def fit_features(table: pa.Table, info: Rows, saved: SavedModel, *, asked: bool) -> tuple[pa.Table, list[str]]:
    """The table with audio and vision as wide as the model takes them, and what was done; DataError unless asked.

    Of wider rows the last values are cut off. Narrower ones are filled with the means of the model's training rows,
    which are zero once standardised, or with zeros where the model was trained without standardising. A modality that
    the table lacks is missing in every utterance. Rows that follow words, where those of the model's data do not, or
    the other way round, stay as they are: the model is to be told that they are those of `info`.
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
        mean_A = saved.standardisers[name].mean_A if name in saved.standardisers else None
        notes.append(
            f"{name}: the last {here - width} of {here} values are cut off"
            if here > width
            else f"{name}: {width - here} values, {_filling(mean_A)}, are added to {here}"
        )
        fill_A = np.zeros(width, np.float32) if mean_A is None else mean_A
        table = table.set_column(table.column_names.index(name), name, _fitted(Frames.of(table[name]), here, fill_A))
    if shared and saved.word_aligned != info.word_aligned:
        refusal, note = _alignment(" and ".join(shared), info)
        refused.append(refusal)
        notes.append(note)
    if refused and not asked:
        raise DataError(
            f"{'; '.join(refused)}: --fit-features cuts off, fills up, does without, or takes the rows as they are"
        )
    return table, notes


def _fitted(frames: Frames, width: int, fill_A: NDArray[np.float32]) -> pa.Array:
    """The rows, `width` wide, as wide as fill_A: cut off at their end, or filled up from it."""
    rows_RA = frames.values.reshape(-1, width)[:, : len(fill_A)]
    missing = fill_A[rows_RA.shape[1] :]
    rows_RA = np.concatenate([rows_RA, np.broadcast_to(missing, (len(rows_RA), len(missing)))], axis=1)
    fitted = Frames(frames.lengths_N, np.full(len(rows_RA), len(fill_A)), rows_RA.reshape(-1))
    return fitted.to_arrow(width=len(fill_A))


def _filling(mean_A: NDArray[np.float32] | None) -> str:
    if mean_A is None:
        return "zeros, for the model was trained without standardising"
    return "the means of the model's training rows"


def _alignment(names: str, info: Rows) -> tuple[str, str]:
    """Of rows that follow words in one of the two data sets alone: why they are refused, what is done when asked."""
    if info.word_aligned:
        return (
            f"{info.name}'s rows of {names} follow words, and those that the model was trained on do not",
            f"rows of {names} are given by word, to each subword its word's: the model was trained on rows that follow "
            "no words",
        )
    return (
        f"{info.name}'s rows of {names} follow no words, and those that the model was trained on do",
        f"rows of {names} are taken as they are: the model was trained on rows that follow words",
    )
