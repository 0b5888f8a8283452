"""The run record: readable files that are the truth of a search. Written by the driver alone, each time whole.

    run.json  space.yaml              what was asked for, and the state
    stage1/trials/0007.json           a trial: parameters, curve, state, cost, checkpoint
    stage1/trials/0007/attempt-1/     its `last` and `best` checkpoints, written by the trial
    stage1/trials.jsonl               export of the above, one line a trial
    finalists/0007/                   the hand-off to Stage 2

Paths inside are relative, so that a run can be moved.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from grcf_ray.errors import DataError
from grcf_ray.files import write_json, write_text
from grcf_ray.train.stage import OBJECTIVES, finite

__all__ = ["SCHEMA_VERSION", "RunRecord", "TrialRecord", "TrialState", "now"]

SCHEMA_VERSION = 1

TrialState = Literal["running", "complete", "pruned", "diverged", "failed"]


def now() -> str:
    """The time, as the record has it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


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
    seconds: float = 0.0
    """Time in training and validation."""
    utterance_passes: float = 0.0
    """Cost: encoded utterances over training utterances."""
    checkpoint: str | None = None
    """The best epoch's checkpoint, relative to the run; None once the trial can no longer be chosen."""
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
        name, direction = OBJECTIVES[self.stage]
        usable = [metrics for metrics in self.curve if metrics.get(f"valid/{name}") is not None]
        if not usable or self.state in ("diverged", "failed"):
            return None
        sign = 1 if direction == "min" else -1
        return min(usable, key=lambda metrics: (sign * metrics[f"valid/{name}"], metrics["epoch"]))

    @property
    def objective(self) -> float | None:
        """The best epoch's value of the metric that the stage is judged by."""
        best = self.best
        return None if best is None else best[f"valid/{OBJECTIVES[self.stage][0]}"]


class RunRecord:
    """A run directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def exists(self) -> bool:
        """Whether a run has been recorded here."""
        return (self.folder / "run.json").exists()

    def read_run(self) -> dict[str, Any]:
        """The content of run.json. DataError where there is none, or a newer release wrote it."""
        try:
            run: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"{self.folder}: not a run directory, it has no run.json") from error
        except ValueError as error:
            raise DataError(f"{self.folder / 'run.json'}: not JSON ({error})") from error
        if run["schema_version"] > SCHEMA_VERSION:
            raise DataError(f"{self.folder}: written by a newer grcf_ray; upgrade to read it")
        return run

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Replace run.json."""
        write_json(self.folder / "run.json", {"schema_version": SCHEMA_VERSION, **run})

    def update_run(self, **changes: Any) -> None:
        """Replace some of run.json's entries."""
        self.write_run({**self.read_run(), **changes})

    def write_space(self, text: str) -> None:
        """Keep the search space beside the record."""
        write_text(self.folder / "space.yaml", text)

    def trial_path(self, stage: int, number: int) -> Path:
        """The JSON of a trial."""
        return self.folder / f"stage{stage}" / "trials" / f"{number:04d}.json"

    def attempt_folder(self, trial: TrialRecord) -> Path:
        """Where the trial's present attempt keeps its checkpoints."""
        return self.trial_path(trial.stage, trial.number).with_suffix("") / f"attempt-{trial.attempt}"

    def write_trial(self, trial: TrialRecord) -> None:
        """Replace a trial's JSON."""
        values = dataclasses.asdict(trial)
        write_json(self.trial_path(trial.stage, trial.number), values | {"curve": finite(trial.curve)})

    def trials(self, stage: int) -> list[TrialRecord]:
        """The stage's trials by number."""
        paths = sorted((self.folder / f"stage{stage}" / "trials").glob("*.json"))
        return [TrialRecord(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]

    def ranked(self, stage: int) -> list[TrialRecord]:
        """The stage's trials that have a usable result, best first, the earlier of equals first."""
        sign = 1 if OBJECTIVES[stage][1] == "min" else -1
        scored = [(sign * t.objective, t.number, t) for t in self.trials(stage) if t.objective is not None]
        return [trial for *_, trial in sorted(scored, key=lambda entry: entry[:2])]

    def export_trials(self, stage: int) -> None:
        """Write the stage's trials as one JSON line each."""
        lines = [
            json.dumps(dataclasses.asdict(trial), ensure_ascii=False, allow_nan=False) + "\n"
            for trial in self.trials(stage)
        ]
        write_text(self.folder / f"stage{stage}" / "trials.jsonl", "".join(lines))

    def finalist_folder(self, number: int) -> Path:
        """Where a Stage 1 trial waits for Stage 2."""
        return self.folder / "finalists" / f"{number:04d}"
