"""The run record: readable files from which a search resumes. Only the driver writes them, each file whole.

    run.json  space.yaml              the command, the settings and the state
    stage1/trials/0007.json           a trial: parameters, curve, state, failures, cost, checkpoint
    stage1/trials/0007/attempt-1/     its checkpoints, written by the trial
    stage1/trials.jsonl               export of the trials, one line each
    finalists/0007/                   the weights that Stage 2 starts from
    seeds/stage2-4/                   retrainings of a winner under fresh seeds, laid out like a run

Paths in the files are relative, so that a run can be moved or copied.
"""

from __future__ import annotations

import bisect
import dataclasses
import datetime
import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from grcf_ray.errors import DamagedError, DataError
from grcf_ray.search.background import BackgroundWriter
from grcf_ray.search.lease import fence
from grcf_ray.search.schema import (
    SCHEMA_VERSION,
    FinalistFile,
    PartInfo,
    RunInfo,
    TrialFile,
    checked,
    parsed,
    read_file,
)
from grcf_ray.storage import StoragePath
from grcf_ray.train.curve import best_epoch, finite, minimised, objective_value

TrialState = Literal["running", "complete", "pruned", "diverged", "failed"]
_WRITES = 16
"""Background writes at a time: each waits for the network, or until a disk confirms it."""


def now() -> str:
    """Return the time in the record's format."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@dataclasses.dataclass(kw_only=True)
class TrialRecord:
    """One trial, with the keys of its JSON."""

    number: int
    stage: Literal[1, 2]
    attempt: int
    """Launches so far; each launch writes to a separate folder."""
    params: dict[str, Any]
    """Searched settings by path; in Stage 2 also `finalist`, the number of the Stage 1 trial to start from."""
    seed: int
    state: TrialState
    curve: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """The metrics of each epoch, from the stage loop."""
    error: str | None = None
    """The last error of a diverged or failed trial."""
    cause: str | None = None
    """The kind of that error, for grouping failures."""
    failures: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Attempts whose process died, with cause, error, time and, if known, Ray's node id, the host and the GPU."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Events that the metrics do not show, such as a damaged checkpoint."""
    seconds: float = 0.0
    """Seconds of training and validation."""
    utterance_passes: float = 0.0
    """Cost: encoded utterances over training utterances."""
    checkpoint: str | None = None
    """The best epoch's checkpoint, relative to the run; None once the trial can no longer be chosen."""
    checkpoint_sha256: str | None = None
    """Hash of the checkpoint's content."""
    started: str = ""
    ended: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def name(self) -> str:
        """The trial's name in its run, such as stage2/7."""
        return f"stage{self.stage}/{self.number}"

    @property
    def searched(self) -> dict[str, Any]:
        """The searched settings by path."""
        return {path: value for path, value in self.params.items() if path != "finalist"}

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.curve)

    @property
    def finished(self) -> bool:
        """Whether the trial has ended for good."""
        return self.state != "running"

    @property
    def best(self) -> dict[str, Any] | None:
        """The metrics of the best epoch, the earliest of equals; None before epoch 1 and for unusable trials."""
        return None if self.state in ("diverged", "failed") else best_epoch(self.stage, self.curve)

    @property
    def objective(self) -> float | None:
        """The best epoch's value of the stage's objective."""
        best = self.best
        return None if best is None else objective_value(self.stage, best)


class RunRecord:
    """A run directory. background: of the run that this record is a part of [default: one of its own]."""

    def __init__(self, place: StoragePath, background: BackgroundWriter | None = None) -> None:
        self.place = place
        self.background = background or BackgroundWriter(_WRITES)

    def __str__(self) -> str:
        return str(self.place)

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run. Raises DataError if it holds trials without a run.json.

        The next search here would otherwise adopt those trials, perhaps on other data.
        """
        if (self.place / "run.json").exists():
            return True
        if parts := [name for name in ("stage1", "stage2", "finalists") if (self.place / name).exists()]:
            raise DataError(
                f"{self}: holds {', '.join(parts)} of a run, but no run.json. Restore run.json from a copy, "
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
            raise DataError(
                f"{self} is not a run: it has no run.json. List runs: python -m grcf_ray.runs list"
            ) from error
        return parsed(content, RunInfo if _is_search(content) else PartInfo, place)

    def lacks(self) -> list[str]:
        """Return the entries that a run.json of an earlier version lacks, with the values used instead."""
        content = (self.place / "run.json").read_json()
        missing = {
            "the task of its data (regression is used)": "task" in content["data"],
            "the weights of its encoder (the present weights are used)": "encoder" in content,
        }
        return [name for name, present in missing.items() if not present] if content["schema_version"] == 1 else []

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Replace run.json."""
        fence(self.place)
        (self.place / "run.json").write_json({"schema_version": SCHEMA_VERSION, **run})

    def update_run(self, **changes: Any) -> None:
        """Replace entries of run.json."""
        self.write_run({**self.read_run(), **changes})

    def write_space(self, text: str) -> None:
        """Write the search space to space.yaml."""
        fence(self.place)
        (self.place / "space.yaml").write_text(text)

    def _trials_place(self, stage: int) -> StoragePath:
        return self.place / f"stage{stage}" / "trials"

    def trial_folder(self, trial: TrialRecord) -> StoragePath:
        """Return the folder of the trial's attempts."""
        return self._trials_place(trial.stage) / f"{trial.number:04d}"

    def attempt_folders(self, trial: TrialRecord) -> list[StoragePath]:
        """Return the folders of the checkpoints of all attempts, the current one's first."""
        return [self.trial_folder(trial) / f"attempt-{number}" for number in range(trial.attempt, 0, -1)]

    def attempt_folder(self, trial: TrialRecord) -> StoragePath:
        """Return the folder of the current attempt's checkpoints."""
        return self.attempt_folders(trial)[0]

    def relative(self, place: StoragePath) -> str:
        """Return the path of a place in the record, relative to the record."""
        return str(place).removeprefix(f"{self.place}/")

    def at(self, path: str) -> StoragePath:
        """Return the place of a relative path from the record."""
        return self.place.at(path)

    def write_trial(self, trial: TrialRecord) -> None:
        """Replace a trial's JSON."""
        self.background.settle(trial.name)
        self._write_trial(trial)

    def write_trial_later(self, trial: TrialRecord) -> None:
        """Replace a trial's JSON in the background by its present state, unless a newer state comes first."""
        state = dataclasses.replace(trial, notes=[*trial.notes], failures=[*trial.failures])
        self.background.later(trial.name, functools.partial(self._write_trial, state))

    def _write_trial(self, trial: TrialRecord) -> None:
        fence(self.place)
        (self._trials_place(trial.stage) / f"{trial.number:04d}.json").write_text(_as_text(trial))

    def drop_weights(self, trial: TrialRecord) -> None:
        """Delete a trial's checkpoints."""
        if trial.checkpoint is not None:
            # Write the record first, so that it never names a deleted file.
            trial.checkpoint = trial.checkpoint_sha256 = None
            self.write_trial(trial)
        self.trial_folder(trial).delete()

    def trial(self, stage: int, number: int) -> TrialRecord:
        """Return a trial. Raises DataError if the record lacks it."""
        place = self._trials_place(stage) / f"{number:04d}.json"
        try:
            return _trial(place.read_json(), place, stage)
        except FileNotFoundError as error:
            raise DataError(f"{self}: has no trial stage{stage}/{number}") from error

    def trials(self, stage: int, known: Iterable[TrialRecord] = ()) -> list[TrialRecord]:
        """Return the stage's trials by number. Raises DataError for the first file that is not a trial.

        known: trials from an earlier call. Those that had ended are not read again; only their checkpoint path may be
        out of date.
        """
        place = self._trials_place(stage)
        ended = {f"{trial.number:04d}.json": trial for trial in known if trial.finished}
        names = [name for name in place.names() if name.endswith(".json") and name not in ended]
        contents = zip(names, place.read_jsons(names), strict=True)
        trials = [*ended.values(), *(_trial(content, place / name, stage) for name, content in contents)]
        return sorted(trials, key=lambda trial: trial.number)

    def ranked(self, stage: int) -> list[TrialRecord]:
        """Return the stage's trials with a usable result, best first, ties by number."""
        return rank(self.trials(stage))

    def export_trials(self, stage: int) -> None:
        """Write the stage's trials to trials.jsonl."""
        fence(self.place)
        lines = [json.dumps(vars(trial), ensure_ascii=False, allow_nan=False) + "\n" for trial in self.trials(stage)]
        (self.place / f"stage{stage}" / "trials.jsonl").write_text("".join(lines))

    def finalist_folder(self, number: int) -> StoragePath:
        """Return the folder of a finalist's weights."""
        return self.place / "finalists" / f"{number:04d}"

    def read_finalist(self, number: int) -> dict[str, Any]:
        """Return a finalist's trial.json. Raises DamagedError if it is missing."""
        place = self.finalist_folder(number) / "trial.json"
        try:
            return read_file(place, FinalistFile)
        except FileNotFoundError as error:
            raise DamagedError(
                f"{place}: missing, but trials of Stage 2 start from it; restore it from a copy"
            ) from error

    def write_finalist(self, trial: TrialRecord, sha256: str) -> None:
        """Write a finalist's trial.json. sha256: of the finalist's weights."""
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
            f"{place}: holds trial stage{trial.stage}/{trial.number}, which does not match the file's name; move the "
            "file away, or restore the trial from a copy"
        )
    return trial


def missing_numbers(trials: Iterable[TrialRecord]) -> list[int]:
    """Return the numbers below the last trial's that the record lacks, for example after a file was deleted.

    The numbers are not reused, because later proposals depended on the missing trials.
    """
    numbers = {trial.number for trial in trials}
    return [number for number in range(max(numbers, default=0)) if number not in numbers]


def spent(trials: Iterable[TrialRecord]) -> int:
    """Return the spent part of a stage's budget: finished and missing trials."""
    trials = list(trials)
    return sum(trial.finished for trial in trials) + len(missing_numbers(trials))


def pace(trials: Iterable[TrialRecord]) -> float | None:
    """Return the mean seconds of an epoch, or None before the first."""
    seen = list(trials)
    epochs = sum(trial.epoch for trial in seen)
    return sum(trial.seconds for trial in seen) / epochs if epochs else None


class Ranking:
    """A stage's trials with a usable result, best first, ties by number. A change costs no look at the other trials."""

    def __init__(self, trials: Iterable[TrialRecord] = ()) -> None:
        self._trials: dict[int, TrialRecord] = {}
        self._order: list[tuple[float, int]] = []
        self._costs: dict[int, float] = {}
        for trial in trials:
            self.put(trial)

    def put(self, trial: TrialRecord) -> None:
        """Add a trial, or note its new result."""
        number, objective = trial.number, trial.objective
        if (before := self._costs.pop(number, None)) is not None:
            del self._order[bisect.bisect_left(self._order, (before, number))]
            del self._trials[number]
        if objective is not None:
            self._trials[number], self._costs[number] = trial, minimised(trial.stage, objective)
            bisect.insort(self._order, (self._costs[number], number))

    def best(self, count: int | None = None) -> list[TrialRecord]:
        """Return the best trials, by default all."""
        return [self._trials[number] for _, number in self._order[:count]]


def rank(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return a stage's trials with a usable result, best first, ties by number."""
    return Ranking(trials).best()


def _as_text(trial: TrialRecord) -> str:
    """Return a trial as JSON, with a line for each key and each epoch. ValueError for infinity outside of the curve."""
    dump = functools.partial(json.dumps, ensure_ascii=False, allow_nan=False)
    curve = ",\n    ".join(map(dump, finite(trial.curve)))
    texts = {key: dump(value) for key, value in vars(trial).items() if key != "curve"}
    texts["curve"] = f"[\n    {curve}\n  ]" if curve else "[]"
    lines = ",\n".join(f"  {dump(key)}: {texts[key]}" for key in vars(trial))
    return f"{{\n{lines}\n}}\n"
