"""The recorded predictions of a model, utterance by utterance."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from grcf_ray.data.schema import labels_of
from grcf_ray.errors import DamagedError, reason
from grcf_ray.storage import StoragePath

_COLUMNS = ["id", "text", "label", "score", "state"]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A model's predictions of a split, in its order: `predictions/<split>.parquet` beside the model."""

    id_N: Sequence[str]
    text_N: Sequence[str]
    label_N: NDArray[np.float64]
    score_N: NDArray[np.float64]
    """In label units, or logits of the positive class."""
    state_ND: NDArray[np.float32]
    """z_final, the representation before the head."""

    @classmethod
    def read(cls, place: StoragePath) -> Predictions:
        """Read the file. FileNotFoundError if there is none, DamagedError if it is damaged."""
        with place.reading() as path:
            try:
                table = pq.read_table(path, columns=_COLUMNS, partitioning=None, page_checksum_verification=True)
                state = table["state"].combine_chunks()
                predictions = cls(
                    id_N=table["id"].to_pylist(),
                    text_N=table["text"].to_pylist(),
                    # Float32 has no 1.2; the metrics were computed from the rounded label.
                    label_N=labels_of(table),
                    score_N=table["score"].to_numpy().astype(np.float64),
                    state_ND=np.asarray(state.flatten(), np.float32).reshape(len(table), -1),
                )
            # Arrow reports some damage as OSError, and a flipped byte can change a column's type.
            except (pa.ArrowException, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
                raise DamagedError(f"{place}: damaged ({reason(error)}); bring it back from a copy") from error
        if not all(
            np.isfinite(array).all() for array in (predictions.label_N, predictions.score_N, predictions.state_ND)
        ):
            raise DamagedError(f"{place}: damaged (numbers that are not finite); bring it back from a copy")
        return predictions


def keep_predictions(
    place: StoragePath,
    table: pa.Table,
    label_N: NDArray[np.float64],
    score_N: NDArray[np.float64],
    state_ND: NDArray[np.float32],
) -> None:
    """Write a model's predictions for a table's rows, in their order: id, text, label, score, z_final."""
    columns = {
        "id": table["id"],
        "text": table["text"],
        "label": pa.array(label_N.astype(np.float32)),
        "score": pa.array(score_N),
        "state": pa.FixedSizeListArray.from_arrays(pa.array(state_ND.reshape(-1)), state_ND.shape[1]),
    }
    with place.writing() as path:
        pq.write_table(pa.table(columns), path, write_page_checksum=True)
