"""What keeps the run record while Tune runs the trials of a stage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ray import tune

from grcf_ray.config import RunConfig, flatten
from grcf_ray.search.events import EpochFinished, Event, TrialEnded, TrialStarted
from grcf_ray.search.record import RunRecord, TrialRecord, now
from grcf_ray.search.trial import trial_config
from grcf_ray.train.stage import stage_seed

__all__ = ["GiveUp", "RecordKeeper"]

HOPELESS = 3
"""Failed trials in a row from the start, after which a stage is given up."""


class RecordKeeper(tune.Callback):
    """Keeps the record of one stage: every launch, epoch and end, before Tune acts on it.

    seed: the run's. epochs: of a whole trial. choices: how many trials the stage hands on, whose weights are kept.
    config_of: the whole configuration of a trial. tell: where events go.
    """

    def __init__(
        self,
        record: RunRecord,
        stage: Literal[1, 2],
        *,
        seed: int,
        epochs: int,
        choices: int,
        config_of: Callable[[TrialRecord], RunConfig],
        tell: Callable[[Event], None],
    ) -> None:
        self._record, self._stage, self._seed, self._epochs, self._choices = record, stage, seed, epochs, choices
        self._config_of, self._tell = config_of, tell
        self._trials = {trial.number: trial for trial in record.trials(stage)}
        self._before = sum(trial.finished for trial in self._trials.values())
        self._ended: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that is not used, and the features hang on this one."""
        return {}

    @property
    def hopeless(self) -> bool:
        """Whether the first trials to end all failed: what they share is at fault, and so will the others."""
        return len(self._ended) >= HOPELESS and set(self._ended) == {"failed"}

    def expected(self, left: int) -> int:
        """Trials that have finished when nothing interrupts."""
        return self._before + left

    def launch(self, number: int, params: dict[str, Any]) -> dict[str, Any]:
        """Record a proposal; the configuration that its trial gets."""
        record, stage = self._record, self._stage
        known = self._trials.get(number)
        seed = stage_seed(self._seed, stage, number)
        trial = known or TrialRecord(
            number=number, stage=stage, attempt=0, params=params, seed=seed, state="running", started=now()
        )
        old_last = record.attempt_folder(trial) / "last.safetensors"
        trial.attempt += 1
        folder = record.attempt_folder(trial)
        folder.mkdir(parents=True, exist_ok=True)
        if known and old_last.exists():
            # The new attempt goes on from a copy: a surviving process of the old one may still write to its own.
            for path in old_last.parent.glob("*.safetensors"):
                shutil.copyfile(path, folder / path.name)
        self._trials[number] = trial
        record.write_trial(trial)
        self._tell(TrialStarted(trial))
        finalist = params.get("finalist")
        return trial_config(
            number=number,
            seed=seed,
            settings=flatten(self._config_of(trial)),
            folder=folder,
            initial=record.finalist_folder(int(finalist)) / "model.safetensors" if finalist else None,
        )

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """An epoch has ended; `done` says whether the trial has too, be it by ASHA."""
        kept = self._trials[trial.config["number"]]
        kept.curve = result["curve"]
        kept.seconds = sum(metrics["seconds"] for metrics in kept.curve)
        kept.utterance_passes = sum(metrics["utterance_passes"] for metrics in kept.curve)
        best = self._record.attempt_folder(kept) / "best.safetensors"
        kept.checkpoint = str(best.relative_to(self._record.folder)) if kept.curve else None
        if result.get("failure"):
            self._end(kept, result["state"], result["failure"])
        elif result["done"]:
            self._end(kept, "complete" if kept.epoch >= self._epochs else "pruned", None)
        else:
            self._record.write_trial(kept)
            self._tell(EpochFinished(kept))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial's process failed more often than it is started again."""
        kept = self._trials[trial.config["number"]]
        # Tune's own copy here; the one that `get_error` reads is written later, by a thread.
        error = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        self._end(kept, "failed", _last_line(error) if error.strip() else "the trial's process died")

    def _end(
        self,
        trial: TrialRecord,
        state: Literal["complete", "pruned", "diverged", "failed"],
        error: str | None,
    ) -> None:
        trial.state, trial.error, trial.ended = state, error, now()
        self._ended.append(state)
        self._record.write_trial(trial)
        attempt = self._record.attempt_folder(trial)
        for older in set(attempt.parent.glob("attempt-*")) - {attempt}:
            shutil.rmtree(older, ignore_errors=True)
        self._drop_weights()
        self._tell(TrialEnded(trial))

    def _drop_weights(self) -> None:
        """Delete the checkpoints of ended trials that can no longer be chosen: each ranks below enough others."""
        record = self._record
        # A running trial may lead now and diverge later: it pushes nobody out.
        ended = [trial for trial in record.ranked(self._stage) if trial.finished]
        chosen = {trial.number for trial in ended[: self._choices]}
        for trial in self._trials.values():
            if trial.finished and trial.checkpoint is not None and trial.number not in chosen:
                trial.checkpoint = None
                record.write_trial(trial)
                shutil.rmtree(record.attempt_folder(trial).parent, ignore_errors=True)


class GiveUp(tune.Stopper):
    """Ends a stage whose trials all fail."""

    def __init__(self, keeper: RecordKeeper) -> None:
        self._keeper = keeper

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped for its results."""
        return False

    def stop_all(self) -> bool:
        """Whether to give up."""
        return self._keeper.hopeless


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else text
