"""A run as its record has it, read once: what the page, the terminal and TensorBoard show.

Nothing is trained or computed here. A run may still be going on: what is not there yet is None or empty.
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
    """What the best model makes of a split: `best/predictions/<split>.parquet`, in the split's order."""

    id_N: Sequence[str]
    text_N: Sequence[str]
    label_N: NDArray[np.float64]
    score_N: NDArray[np.float64]
    """In label units, or logits of the positive class."""
    state_ND: NDArray[np.float32]
    """z_final, the representation before the head."""

    @classmethod
    def read(cls, place: StoragePath) -> Predictions:
        """FileNotFoundError where there is none, DamagedError where the file is damaged."""
        with place.reading() as path:
            try:
                table = pq.read_table(path, columns=_COLUMNS, partitioning=None, page_checksum_verification=True)
                state = table["state"].combine_chunks()
                found = cls(
                    id_N=table["id"].to_pylist(),
                    text_N=table["text"].to_pylist(),
                    # In float32 a label of 1.2 is none; the metrics are of 1.2.
                    label_N=np.round(table["label"].to_numpy().astype(np.float64), LABEL_DECIMALS),
                    score_N=table["score"].to_numpy().astype(np.float64),
                    state_ND=np.asarray(state.flatten(), np.float32).reshape(len(table), -1),
                )
            # Arrow says some damage with errors of the system, and a flipped byte can make anything of a column.
            except (pa.ArrowException, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
                raise DamagedError(f"{place}: damaged ({reason(error)}); bring it back from a copy") from error
        if not all(np.isfinite(array).all() for array in (found.label_N, found.score_N, found.state_ND)):
            raise DamagedError(f"{place}: damaged (numbers that are not finite); bring it back from a copy")
        return found


@dataclasses.dataclass(frozen=True)
class RunView:
    """Everything that a report of a run is made of."""

    record: RunRecord
    run: Mapping[str, Any]
    """run.json."""
    trials: Mapping[int, Sequence[TrialRecord]]
    """By stage, by number; a stage without trials is there too."""
    metrics: Mapping[str, Any] | None
    """best/metrics.json: the winner's figures on valid and test, once test has been read."""
    provenance: Mapping[str, Any] | None
    """best/provenance.json, once there is a winner."""

    @classmethod
    def read(cls, record: RunRecord) -> RunView:
        """DataError where there is no run."""
        best = record.place / "best"

        def found(name: str, kind: type[StoredFile]) -> Mapping[str, Any] | None:
            try:
                return read_file(best / name, kind)
            except FileNotFoundError:
                return None

        return cls(
            record=record,
            run=record.read_search(),
            trials={stage: record.trials(stage) for stage in (1, 2)},
            metrics=found("metrics.json", MetricsFile),
            provenance=found("provenance.json", ProvenanceFile),
        )

    @property
    def task(self) -> Task:
        """What the labels are."""
        task: Task = self.run.get("data", {}).get("task", "regression")
        return task

    @property
    def label_range(self) -> tuple[float, float]:
        """Lowest and highest label."""
        low, high = self.run["data"]["label_range"]
        return float(low), float(high)

    @property
    def protocol(self) -> MetricProtocol:
        """Whose metrics the run's figures are."""
        return protocol_in(self.run)

    def objective(self, stage: Literal[1, 2]) -> str:
        """The validation metric that a stage is judged by, as `terminal.METRIC_TITLES` knows it."""
        return objective_name(stage, self.task)

    def ranked(self, stage: Literal[1, 2]) -> list[TrialRecord]:
        """The stage's trials that have a usable result, best first."""
        return rank(self.trials[stage])

    @cached_property
    def winner(self) -> TrialRecord | None:
        """The trial whose model lies in best/; None while there is none."""
        # A search that goes on may put another model there before it names that its winner.
        name = (self.provenance or {}).get("trial") or self.run.get("winner")
        if name is None:
            return None
        stage, number = (int(part) for part in name.removeprefix("stage").split("/"))
        return next((trial for trial in self.trials[stage] if trial.number == number), None)

    @cached_property
    def winner_params(self) -> Mapping[str, Any]:
        """What was searched, as the winner has it; Stage 2 inherits from its finalist."""
        return {} if self.winner is None else self.params(self.winner)

    def params(self, trial: TrialRecord) -> dict[str, Any]:
        """What was searched, as a trial has it, with what it inherits of its finalist."""
        finalist = trial.params.get("finalist")
        inherited = next((t.params for t in self.trials[1] if finalist is not None and t.number == int(finalist)), {})
        return {**inherited, **trial.params}

    @cached_property
    def shown_split(self) -> Literal["valid", "test"]:
        """The split that predictions are shown of: test once it has been read, valid until then."""
        return "test" if self.metrics is not None and self.scored("test") is not None else "valid"

    def scored(self, split: Literal["valid", "test"]) -> Predictions | None:
        """The best model's scores of a split; None where the run has none on record."""
        return _read(self.record.place / "best" / "predictions" / f"{split}.parquet")

    def finalist_scored(self, number: int) -> Predictions | None:
        """What a finalist, as Stage 1 left it, makes of valid; None where the run has none on record."""
        return _read(self.record.finalist_folder(number) / "predictions" / "valid.parquet")


def _read(place: StoragePath) -> Predictions | None:
    try:
        return Predictions.read(place)
    except FileNotFoundError:
        return None
