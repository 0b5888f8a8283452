"""The run record: readable files that are the truth of a search. Written by the driver alone, each time whole.

    run.json  space.yaml              what was asked for, and the state
    stage1/trials/0007.json           a trial: parameters, curve, state, failures, cost, checkpoint
    stage1/trials/0007/attempt-1/     its checkpoints, written by the trial
    stage1/trials.jsonl               export of the above, one line a trial
    finalists/0007/                   the hand-off to Stage 2
    seeds/stage2-4/                   retrainings of a winner under fresh seeds, laid out like a run

Paths inside are relative, so that a run can be moved or copied.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from grcf_ray.errors import DamagedError, DataError
from grcf_ray.metrics import MetricProtocol
from grcf_ray.search.lease import fence
from grcf_ray.search.schema import (
    SCHEMA_VERSION,
    FinalistFile,
    PartInfo,
    RunData,
    RunInfo,
    TrialFile,
    checked,
    parsed,
    read_file,
)
from grcf_ray.storage import StoragePath
from grcf_ray.train.curve import DIRECTIONS, best_epoch, finite, objective_value

TrialState = Literal["running", "complete", "pruned", "diverged", "failed"]


def now() -> str:
    """The time, as the record has it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def protocol_in(run: Mapping[str, Any]) -> MetricProtocol:
    """Return the metric protocol of a run's figures. run: the content of run.json."""
    return RunData.model_validate(run["data"]).protocol


@dataclasses.dataclass(kw_only=True)
class TrialRecord:
    """One trial, as its JSON has it."""

    number: int
    stage: Literal[1, 2]
    attempt: int
    """Launches so far; each writes to a folder of its own."""
    params: dict[str, Any]
    """Searched settings by path; in Stage 2 also `finalist`, the Stage 1 trial it starts from."""
    seed: int
    state: TrialState
    curve: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """The metrics of each epoch, as the stage loop gives them."""
    error: str | None = None
    """Why it diverged or failed: the last error."""
    cause: str | None = None
    """The kind of that error, by which failures are grouped."""
    failures: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Attempts that broke off, with cause, error and time; the last one's is the trial's where it failed."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What happened that the figures do not show, such as a damaged checkpoint."""
    seconds: float = 0.0
    """Time in training and validation."""
    utterance_passes: float = 0.0
    """Cost: encoded utterances over training utterances."""
    checkpoint: str | None = None
    """The best epoch's checkpoint, relative to the run; None once the trial can no longer be chosen."""
    checkpoint_sha256: str | None = None
    """Of the checkpoint's content."""
    started: str = ""
    ended: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return len(self.curve)

    @property
    def finished(self) -> bool:
        """Whether it will not run again."""
        return self.state != "running"

    @property
    def best(self) -> dict[str, Any] | None:
        """The metrics of the best epoch, the earliest of equals; None before the first, or after divergence."""
        return None if self.state in ("diverged", "failed") else best_epoch(self.stage, self.curve)

    @property
    def objective(self) -> float | None:
        """The best epoch's value of the metric that the stage is judged by."""
        best = self.best
        return None if best is None else objective_value(self.stage, best)


class RunRecord:
    """A run directory."""

    def __init__(self, place: StoragePath) -> None:
        self.place = place

    def __str__(self) -> str:
        return str(self.place)

    @property
    def exists(self) -> bool:
        """Whether a run has been recorded here. DataError where there are trials of one without its run.json.

        They would be taken for trials of whatever is searched here next, be it on other data.
        """
        if (self.place / "run.json").exists():
            return True
        if found := [name for name in ("stage1", "stage2", "finalists") if (self.place / name).exists()]:
            raise DataError(
                f"{self}: holds {', '.join(found)} of a run, but no run.json. Bring run.json back from a copy, "
                "move the folder away, or give another name: --name NAME"
            )
        return False

    def info(self) -> PartInfo:
        """Return run.json. Raises DataError if it is missing or damaged, or if a newer release wrote it."""
        return self._read()[1]

    def search_info(self) -> RunInfo:
        """Return the run.json of a search. Raises DataError as `info` does, and if the record is a part of a run."""
        return self._checked_search(self.info())

    def read_run(self) -> dict[str, Any]:
        """Return run.json as JSON. Raises DataError as `info` does."""
        content, info = self._read()
        return content | {"settings": info.settings} if isinstance(info, RunInfo) else content

    def read_search(self) -> dict[str, Any]:
        """Return the run.json of a search as JSON. Raises DataError as `search_info` does."""
        content, info = self._read()
        return content | {"settings": self._checked_search(info).settings}

    def _checked_search(self, info: PartInfo) -> RunInfo:
        if not isinstance(info, RunInfo):
            raise DataError(f"{self}: not a search; its run.json has no search space and no data")
        return info

    def _read(self) -> tuple[dict[str, Any], PartInfo]:
        place = self.place / "run.json"
        try:
            content = place.read_json()
        except FileNotFoundError as error:
            raise DataError(f"{self}: not a run directory, it has no run.json") from error
        return parsed(content, RunInfo if _is_search(content) else PartInfo, place)

    def lacks(self) -> list[str]:
        """What the run.json of an earlier version does not say, and what is taken instead."""
        content = (self.place / "run.json").read_json()
        missing = {
            "the task of its data, taken for regression": "task" in content["data"],
            "the weights of its encoder, taken for those that are here": "encoder" in content,
        }
        return [what for what, said in missing.items() if not said] if content["schema_version"] == 1 else []

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Replace run.json."""
        fence(self.place)
        (self.place / "run.json").write_json({"schema_version": SCHEMA_VERSION, **run})

    def update_run(self, **changes: Any) -> None:
        """Replace some of run.json's entries."""
        self.write_run({**self.read_run(), **changes})

    def write_space(self, text: str) -> None:
        """Keep the search space beside the record."""
        fence(self.place)
        (self.place / "space.yaml").write_text(text)

    def _trials_place(self, stage: int) -> StoragePath:
        return self.place / f"stage{stage}" / "trials"

    def trial_folder(self, trial: TrialRecord) -> StoragePath:
        """Where the trial's attempts keep their checkpoints."""
        return self._trials_place(trial.stage) / f"{trial.number:04d}"

    def attempt_folder(self, trial: TrialRecord) -> StoragePath:
        """Where the trial's present attempt keeps its checkpoints."""
        return self.trial_folder(trial) / f"attempt-{trial.attempt}"

    def at(self, path: str) -> StoragePath:
        """The place of a path that the record holds."""
        place = self.place
        for part in path.split("/"):
            place = place / part
        return place

    def write_trial(self, trial: TrialRecord) -> None:
        """Replace a trial's JSON."""
        fence(self.place)
        values = dataclasses.asdict(trial)
        place = self._trials_place(trial.stage) / f"{trial.number:04d}.json"
        place.write_json(values | {"curve": finite(trial.curve)})

    def trial(self, stage: int, number: int) -> TrialRecord:
        """One trial. DataError where there is no such one."""
        place = self._trials_place(stage) / f"{number:04d}.json"
        try:
            return _trial(place.read_json(), place, stage)
        except FileNotFoundError as error:
            raise DataError(f"{self}: has no trial stage{stage}/{number}") from error

    def trials(self, stage: int, known: Iterable[TrialRecord] = ()) -> list[TrialRecord]:
        """The stage's trials by number. DataError that names the first file that is not one.

        known: what was read before; of it trials that had ended are not read again. What may have changed of those is
        where their checkpoint lies.
        """
        place = self._trials_place(stage)
        ended = {f"{trial.number:04d}.json": trial for trial in known if trial.finished}
        names = [name for name in place.names() if name.endswith(".json") and name not in ended]
        contents = zip(names, place.read_jsons(names), strict=True)
        trials = [*ended.values(), *(_trial(content, place / name, stage) for name, content in contents)]
        return sorted(trials, key=lambda trial: trial.number)

    def ranked(self, stage: int) -> list[TrialRecord]:
        """The stage's trials that have a usable result, best first, the earlier of equals first."""
        return rank(self.trials(stage))

    def export_trials(self, stage: int) -> None:
        """Write the stage's trials as one JSON line each."""
        fence(self.place)
        lines = [
            json.dumps(dataclasses.asdict(trial), ensure_ascii=False, allow_nan=False) + "\n"
            for trial in self.trials(stage)
        ]
        (self.place / f"stage{stage}" / "trials.jsonl").write_text("".join(lines))

    def finalist_folder(self, number: int) -> StoragePath:
        """Where a Stage 1 trial waits for Stage 2."""
        return self.place / "finalists" / f"{number:04d}"

    def read_finalist(self, number: int) -> dict[str, Any]:
        """What a Stage 1 trial was handed over as. DataError where it was not."""
        place = self.finalist_folder(number) / "trial.json"
        try:
            return read_file(place, FinalistFile)
        except FileNotFoundError as error:
            raise DamagedError(f"{place}: missing, and trials of Stage 2 start from it") from error

    def write_finalist(self, trial: TrialRecord, sha256: str) -> None:
        """Say what a trial is handed over as. sha256: of the content of the weights beside."""
        (self.finalist_folder(trial.number) / "trial.json").write_json(
            {
                "schema_version": SCHEMA_VERSION,
                "trial": trial.number,
                "objective": trial.objective,
                "params": trial.params,
                "sha256": sha256,
            }
        )


def _is_search(content: Any) -> bool:
    """Return whether a run.json is, or was, that of a search: a part of a run has none of these keys."""
    return isinstance(content, dict) and not content.keys().isdisjoint(("starts", "space", "data", "versions"))


def _trial(content: Any, place: StoragePath, stage: int) -> TrialRecord:
    trial = TrialRecord(**checked(content, TrialFile, place))
    if (place.name, stage) != (f"{trial.number:04d}.json", trial.stage):
        raise DamagedError(
            f"{place}: holds trial stage{trial.stage}/{trial.number}, which its name is not; move it away, or bring "
            "the trial back from a copy"
        )
    return trial


def missing_numbers(trials: Iterable[TrialRecord]) -> list[int]:
    """Numbers of a stage below its last trial's that the record lacks, as where a trial's JSON was deleted.

    They are spent: a trial that took such a number again would not be the one that others were proposed after.
    """
    numbers = {trial.number for trial in trials}
    return [number for number in range(max(numbers, default=0)) if number not in numbers]


def spent(trials: Iterable[TrialRecord]) -> int:
    """How much of a stage's budget is spent: trials that have ended, and missing ones."""
    trials = list(trials)
    return sum(trial.finished for trial in trials) + len(missing_numbers(trials))


def rank(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials of a stage that have a usable result, best first, the earlier of equals first."""
    scored = []
    for trial in trials:
        if (objective := trial.objective) is not None:
            sign = 1 if DIRECTIONS[trial.stage] == "min" else -1
            scored.append((sign * objective, trial.number, trial))
    return [trial for *_, trial in sorted(scored, key=lambda entry: entry[:2])]
