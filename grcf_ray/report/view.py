"""The record of a run, read once for the page, the terminal and TensorBoard.

A run may be unfinished: missing parts are None or empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from grcf_ray.config import Task
from grcf_ray.metrics import MetricProtocol
from grcf_ray.search.lease import is_held
from grcf_ray.search.predictions import Predictions
from grcf_ray.search.record import RunRecord, TrialRecord, rank
from grcf_ray.search.schema import MetricsFile, ProvenanceFile, RunInfo, StoredFile, read_file
from grcf_ray.search.space import Space, recorded_space
from grcf_ray.storage import StoragePath
from grcf_ray.train.curve import objective_name

DIED = "died"
"""State of a run that its record calls running and that no search holds."""


@dataclasses.dataclass(frozen=True)
class RunView:
    """The parts of a record that reports are made from."""

    record: RunRecord
    info: RunInfo
    """run.json."""
    state: str
    """The state in run.json, or `DIED`."""
    alive: bool | None
    """Whether a search holds the run; None in object storage, where one reading cannot tell."""
    trials: Mapping[int, Sequence[TrialRecord]]
    """Trials of both stages, by number."""
    metrics: Mapping[str, Any] | None
    """best/metrics.json, once test has been read."""
    provenance: Mapping[str, Any] | None
    """best/provenance.json, once there is a winner."""

    @classmethod
    def read(cls, record: RunRecord) -> RunView:
        """Read a run. DataError if there is none."""
        best, (info, state, alive) = record.place / "best", read_state(record)

        def read_if_present(name: str, kind: type[StoredFile]) -> Mapping[str, Any] | None:
            try:
                return read_file(best / name, kind)
            except FileNotFoundError:
                return None

        return cls(
            record=record,
            info=info,
            state=state,
            alive=alive,
            trials={stage: record.trials(stage) for stage in (1, 2)},
            metrics=read_if_present("metrics.json", MetricsFile),
            provenance=read_if_present("provenance.json", ProvenanceFile),
        )

    @property
    def task(self) -> Task:
        """The kind of the labels."""
        return self.info.data.task

    @property
    def label_range(self) -> tuple[float, float]:
        """Lowest and highest label."""
        low, high = self.info.data.label_range
        return low, high

    @property
    def protocol(self) -> MetricProtocol:
        """The protocol of the run's metrics."""
        return self.info.data.protocol

    @cached_property
    def space(self) -> Space:
        """The search space of the trials."""
        return recorded_space(self.info.space.model_dump(), str(self.record))

    @property
    def budgets(self) -> dict[Literal[1, 2], tuple[int, int]]:
        """The number of trials and of epochs of each stage that has epochs."""
        settings = self.info.settings
        # A reopened Stage 2 has its budget again.
        second = max(settings["search.stage2_trials"], self.info.stage2_trials)
        trials: dict[Literal[1, 2], int] = {1: settings["search.stage1_trials"], 2: second}
        return {s: (count, epochs) for s, count in trials.items() if (epochs := settings[f"stage{s}.epochs"])}

    @property
    def all_trials(self) -> list[TrialRecord]:
        """The trials of both stages."""
        return [*self.trials[1], *self.trials[2]]

    def state_of(self, trial: TrialRecord) -> str:
        """Return the state of a trial to show: the recorded one, or `unfinished` if no search runs the trial.

        A trial that is recorded as running resumes with its search.
        """
        running = self.state == "running" and trial.stage not in self.info.cut and trial.name not in self.info.left
        return "unfinished" if trial.state == "running" and not running else trial.state

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
        name = (self.provenance or {}).get("trial") or self.info.winner
        if name is None:
            return None
        return self.named_trial(name)

    def named_trial(self, name: str) -> TrialRecord | None:
        """Return the trial of a name such as stage2/7, or None."""
        return next((trial for trial in self.all_trials if trial.name == name), None)

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


def read_state(record: RunRecord) -> tuple[RunInfo, str, bool | None]:
    """Read run.json; return it with the fields `state` and `alive` of a `RunView`. DataError if there is no run."""
    info = record.search_info()
    alive = is_held(record.place) if info.state == "running" else False
    if info.state == "running" and alive is False:
        # A search writes its final state before it releases the run, possibly after `info` was read.
        info = record.search_info()
        return info, DIED if info.state == "running" else info.state, False
    return info, info.state, alive


def _read(place: StoragePath) -> Predictions | None:
    try:
        return Predictions.read(place)
    except FileNotFoundError:
        return None
