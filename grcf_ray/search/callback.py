"""Keep the run record while Tune runs the trials of a stage, and end trials that hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import grcf_ray.cluster  # noqa: F401  before Ray

import ray
from ray import tune

from grcf_ray.config import RunConfig, flatten
from grcf_ray.metrics import MetricProtocol
from grcf_ray.search.events import EpochFinished, TrialBroke, TrialEnded, TrialStarted
from grcf_ray.search.failures import HUNG, cause_of_error, cause_of_result, last_line
from grcf_ray.search.record import RunRecord, TrialRecord, now, rank
from grcf_ray.train.job import StageJob

if TYPE_CHECKING:
    from grcf_ray.search.stages import Search

RETRIES = 2
"""Restarts of a trial after its process died, counted over all drivers."""


class RecordCallback(tune.Callback):
    """Record every launch, epoch and end of a stage's trials before Tune acts on it.

    choices: number of trials that the stage hands over, whose weights are kept.
    """

    settle: Callable[[int, bool], None]
    """Called with the number of a trial whose process died, and whether the trial will be launched again."""

    def __init__(self, search: Search, stage: Literal[1, 2], trials: list[TrialRecord], *, choices: int) -> None:
        self._search, self._record, self._stage, self._choices = search, search.record, stage, choices
        self._limits, self._tell, self._epochs = search.config.search, search.tell, search.epochs(stage)
        self._keep = ("best", search.config.stage2.start) if stage == 1 else ("best",)
        self._trials = {trial.number: trial for trial in trials}
        self._sign_of_life: dict[int, float] = {}
        self._hung: set[int] = set()
        self.failing = 0
        """Number of consecutive failed trials up to the last one that ended."""

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Tune pickles callbacks for a restore that is not used, and this one holds the features."""
        return {}

    @property
    def hopeless(self) -> bool:
        """Whether enough trials failed in a row to blame a shared cause."""
        return self.failing >= self._limits.failures_in_a_row

    def launch(self, number: int, params: dict[str, Any]) -> dict[str, Any]:
        """Record a proposal; return the trial's configuration for Tune."""
        record, known = self._record, self._trials.get(number)
        trial = known or TrialRecord(
            number=number,
            stage=self._stage,
            attempt=0,
            params=params,
            seed=self._search.seed(self._stage, params, number),
            state="running",
            started=now(),
        )
        before = record.attempt_folder(trial)
        trial.attempt += 1
        folder = record.attempt_folder(trial)
        # The driver creates the folder, because it checks for links; a missing folder tells the trial of a moved run.
        folder.make_private()
        if known:
            # The new attempt resumes from a copy: a surviving process of the old attempt may still write to its folder.
            for name in before.names():
                (before / name).copy_to(folder / name)
        self._trials[number] = trial
        self._sign_of_life.pop(number, None)
        record.write_trial(trial)
        self._tell(TrialStarted(trial))
        config, protocol = self._search.config_of(trial), self._search.protocol
        return {
            "number": number,
            "job": vars(stage_job(record, trial, config=config, protocol=protocol, folder=folder.uri)),
        }

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Note that the trial's process has started."""
        self._sign_of_life[trial.config["number"]] = time.monotonic()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Record an epoch; `done` tells whether the trial has ended, for example by ASHA."""
        kept = self._trials[trial.config["number"]]
        self._sign_of_life[kept.number] = time.monotonic()
        kept.curve = result["curve"]
        kept.seconds = sum(metrics["seconds"] for metrics in kept.curve)
        kept.utterance_passes = sum(metrics["utterance_passes"] for metrics in kept.curve)
        kept.notes += [note for note in result["notes"] if note not in kept.notes]
        best = f"stage{kept.stage}/trials/{kept.number:04d}/attempt-{kept.attempt}/best.safetensors"
        kept.checkpoint = best if kept.curve else None
        kept.checkpoint_sha256 = result["checkpoint_sha256"]
        if result.get("failure"):
            cause = cause_of_result(result["state"], result["error"])
            self._end(kept, result["state"], result["failure"], cause)
        elif result["done"]:
            self._end(kept, "complete" if kept.epoch >= self._epochs else "pruned")
        else:
            self._record.write_trial(kept)
            self._tell(EpochFinished(kept))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Record that a trial's process died; restart the trial, or fail it after the last restart."""
        kept = self._trials[trial.config["number"]]
        # `get_error` reads a copy that a thread writes later.
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        cause, error = cause_of_error(text), last_line(text) if text.strip() else "the trial's process died"
        if kept.number in self._hung:
            self._hung.discard(kept.number)
            cause, error = HUNG, f"no epoch ended within {self._limits.hang_minutes:g} minutes"
        kept.failures.append({"attempt": kept.attempt, "cause": cause, "error": error, "time": now()})
        again = len(kept.failures) <= RETRIES
        if again:
            self._record.write_trial(kept)
            self._tell(TrialBroke(kept))
        else:
            self._end(kept, "failed", error, cause)
        self.settle(kept.number, again)

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Kill the processes of trials that finished no epoch within `search.hang_minutes`."""
        now = time.monotonic()
        for trial in trials:
            number, process = trial.config["number"], trial.temporary_state.ray_actor
            # A pending trial with a process waits for the process to end its last trial.
            if trial.status not in ("RUNNING", "PENDING") or process is None or number in self._hung:
                continue
            if now - self._sign_of_life.setdefault(number, now) > 60 * self._limits.hang_minutes:
                self._hung.add(number)
                ray.kill(process)

    def _end(
        self,
        trial: TrialRecord,
        state: Literal["complete", "pruned", "diverged", "failed"],
        error: str | None = None,
        cause: str | None = None,
    ) -> None:
        trial.state, trial.error, trial.cause, trial.ended = state, error, cause, now()
        self.failing = self.failing + 1 if error else 0
        self._record.write_trial(trial)
        self._drop_weights(trial)
        self._tell(TrialEnded(trial))

    def _drop_weights(self, ended: TrialRecord) -> None:
        """Delete unused checkpoints: all of outranked trials, and all but the kept ones of the ended trial."""
        record = self._record
        # A running trial may lead now and diverge later, so it does not outrank others.
        finished = [trial for trial in self._trials.values() if trial.finished]
        chosen = {trial.number for trial in rank(finished)[: self._choices]}
        for trial in finished:
            has_weights = trial.checkpoint is not None and trial.checkpoint.startswith(f"stage{trial.stage}/")
            if trial.number not in chosen and (has_weights or trial is ended):
                record.drop_weights(trial)
        if ended.number not in chosen:
            return
        attempt, folder = record.attempt_folder(ended), record.trial_folder(ended)
        for name in folder.names():
            if name != attempt.name:
                (folder / name).delete()
        for name in attempt.names():
            if name.removesuffix(".safetensors") not in self._keep:
                (attempt / name).delete()


def stage_job(
    record: RunRecord, trial: TrialRecord, *, config: RunConfig, protocol: MetricProtocol, folder: str
) -> StageJob:
    """Return the training job of a trial, with its checkpoints in `folder`."""
    search, finalist = config.search, trial.params.get("finalist")
    initial = record.finalist_folder(int(finalist)) if finalist is not None else None
    return StageJob(
        stage=trial.stage,
        seed=trial.seed,
        settings=flatten(config),
        protocol=protocol,
        folder=folder,
        initial=(initial / "model.safetensors").uri if initial else None,
        initial_sha256=record.read_finalist(int(finalist))["sha256"] if finalist is not None else None,
        threads=search.cpus_per_worker,
        gpu=search.gpus_per_worker,
        reported=trial.epoch,
    )
