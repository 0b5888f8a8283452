"""The record of a run, read once for the page, the terminal and TensorBoard.

A run may be unfinished: missing parts are None or empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from grcf_ray.config import Task
from grcf_ray.data.features import LABEL_DECIMALS
from grcf_ray.errors import DamagedError, reason
from grcf_ray.metrics import MetricProtocol
from grcf_ray.search.record import RunRecord, TrialRecord, protocol_in, rank
from grcf_ray.search.schema import MetricsFile, ProvenanceFile, StoredFile, read_file
from grcf_ray.storage import StoragePath
from grcf_ray.train.curve import objective_name

_COLUMNS = ["id", "text", "label", "score", "state"]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The best model's predictions of a split, in its order: `best/predictions/<split>.parquet`."""

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
                    label_N=np.round(table["label"].to_numpy().astype(np.float64), LABEL_DECIMALS),
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


@dataclasses.dataclass(frozen=True)
class RunView:
    """The parts of a record that reports are made from."""

    record: RunRecord
    run: Mapping[str, Any]
    """run.json."""
    trials: Mapping[int, Sequence[TrialRecord]]
    """Trials of both stages, by number."""
    metrics: Mapping[str, Any] | None
    """best/metrics.json, once test has been read."""
    provenance: Mapping[str, Any] | None
    """best/provenance.json, once there is a winner."""

    @classmethod
    def read(cls, record: RunRecord) -> RunView:
        """Read a run. DataError if there is none."""
        best = record.place / "best"

        def read_if_present(name: str, kind: type[StoredFile]) -> Mapping[str, Any] | None:
            try:
                return read_file(best / name, kind)
            except FileNotFoundError:
                return None

        return cls(
            record=record,
            run=record.read_search(),
            trials={stage: record.trials(stage) for stage in (1, 2)},
            metrics=read_if_present("metrics.json", MetricsFile),
            provenance=read_if_present("provenance.json", ProvenanceFile),
        )

    @property
    def task(self) -> Task:
        """The kind of the labels."""
        task: Task = self.run.get("data", {}).get("task", "regression")
        return task

    @property
    def label_range(self) -> tuple[float, float]:
        """Lowest and highest label."""
        low, high = self.run["data"]["label_range"]
        return float(low), float(high)

    @property
    def protocol(self) -> MetricProtocol:
        """The protocol of the run's metrics."""
        return protocol_in(self.run)

    def objective(self, stage: Literal[1, 2]) -> str:
        """Return the validation metric that a stage optimises, a key of `METRIC_TITLES`."""
        return objective_name(stage, self.task)

    def ranked(self, stage: Literal[1, 2]) -> list[TrialRecord]:
        """Return the stage's trials with a usable result, best first."""
        return rank(self.trials[stage])

    @cached_property
    def winner(self) -> TrialRecord | None:
        """The trial whose model is in best/, or None."""
        # A resumed search may replace the model before it names the new winner.
        name = (self.provenance or {}).get("trial") or self.run.get("winner")
        if name is None:
            return None
        stage, number = (int(part) for part in name.removeprefix("stage").split("/"))
        return next((trial for trial in self.trials[stage] if trial.number == number), None)

    @cached_property
    def winner_params(self) -> Mapping[str, Any]:
        """The winner's searched parameters, with those inherited from its finalist."""
        return {} if self.winner is None else self.params(self.winner)

    def params(self, trial: TrialRecord) -> dict[str, Any]:
        """Return a trial's searched parameters, with those inherited from its finalist."""
        finalist = trial.params.get("finalist")
        inherited = next((t.params for t in self.trials[1] if finalist is not None and t.number == int(finalist)), {})
        return {**inherited, **trial.params}

    @cached_property
    def shown_split(self) -> Literal["valid", "test"]:
        """The split whose predictions are shown: test once it has been read, else valid."""
        return "test" if self.metrics is not None and self.scored("test") is not None else "valid"

    def scored(self, split: Literal["valid", "test"]) -> Predictions | None:
        """Return the best model's predictions of a split, or None."""
        return _read(self.record.place / "best" / "predictions" / f"{split}.parquet")

    def finalist_scored(self, number: int) -> Predictions | None:
        """Return the validation predictions of a finalist after Stage 1, or None."""
        return _read(self.record.finalist_folder(number) / "predictions" / "valid.parquet")


def _read(place: StoragePath) -> Predictions | None:
    try:
        return Predictions.read(place)
    except FileNotFoundError:
        return None
