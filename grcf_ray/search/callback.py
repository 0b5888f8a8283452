"""Keep the run record while Tune runs the trials of a stage, and end trials that hang."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from grcf_ray.cluster import PLACEMENT_S

import ray
from ray import tune
from ray.exceptions import RayActorError

from grcf_ray.config import RunConfig, flatten
from grcf_ray.metrics import MetricProtocol
from grcf_ray.retry import pause
from grcf_ray.search.events import EpochFinished, NodeExcluded, TrialBroke, TrialEnded, TrialLeft, TrialStarted
from grcf_ray.search.failures import HUNG, OUTSIDE, cause_of_error, cause_of_result, last_line, node_of_error
from grcf_ray.search.nodes import cluster_nodes
from grcf_ray.search.preflight import Room
from grcf_ray.search.record import Ranking, RunRecord, TrialRecord, now
from grcf_ray.train.curve import hang_limit
from grcf_ray.train.job import StageJob
from grcf_ray.train.location import Location, gpu_of_error, locate
from grcf_ray.train.saving import LAST

if TYPE_CHECKING:
    from grcf_ray.search.searcher import Fate
    from grcf_ray.search.stages import Search

RETRIES = 2
"""Restarts of a trial after its own failures, counted over all drivers."""
OUTSIDE_RETRIES = 6
"""Restarts of a trial in a row, without a finished epoch, after failures for causes outside of it."""
LEFT_IN_A_ROW = 2
"""Trials left unfinished, without a finished epoch of any trial in between, that end the search."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 300.0
"""Pause before the first restart of a trial, and the longest; six restarts take 5 to 10 minutes."""
FIRST_EPOCH_S = 2 * 3600.0
"""Hang limit until an epoch of the stage is on record."""
_ANSWER_S = 5.0
"""Time for a trial's process to answer where it runs; it has answered before its first epoch."""


class RecordCallback(tune.Callback):
    """Record the trials of a stage: launches and ends before Tune acts on them, epochs within about a second.

    choices: number of best trials whose weights are kept, for the next stage or for the result. finalist: called with
    the number of a new trial, returns the finalist that it starts from.
    """

    settle: Callable[[int, Fate, float], None]
    """Called with the number of a trial whose process died, its fate, and the seconds until it is launched again."""

    def __init__(
        self,
        search: Search,
        stage: Literal[1, 2],
        trials: list[TrialRecord],
        *,
        choices: int,
        finalist: Callable[[int], str] | None = None,
    ) -> None:
        self._search, self._record, self._stage, self._choices = search, search.record, stage, choices
        self._finalist = finalist
        self._limits, self._tell, self._epochs = search.config.search, search.tell, search.epochs(stage)
        self._trials = {trial.number: trial for trial in trials}
        # A running trial may lead now and diverge later, so it does not outrank others.
        self._ranking = Ranking(trial for trial in trials if trial.finished)
        for trial in trials:
            # An earlier driver may have died between the end of a trial and the deletion.
            if trial.finished and not self._is_chosen(trial) and self._has_weights(trial):
                self._record.drop_weights(trial)
        self._sign_of_life: dict[int, float] = {}
        self._epoch_seconds = sorted(metrics["seconds"] for trial in trials for metrics in trial.curve)
        self._silent: set[int] = set()
        """Trials whose process has finished no epoch yet."""
        self._hung: dict[int, float] = {}
        """Hang limits, in seconds, of the trials that exceeded them."""
        self._health = search.health
        self._asked: dict[int, ray.ObjectRef[Location]] = {}
        self._ending: list[tuple[ray.ObjectRef[Any], TrialRecord]] = []
        """Pruned trials whose weights are not needed, with the answer of their process that it writes no more."""
        self._locations: dict[int, Location] = {}
        self._failures: Counter[int] = Counter()
        """Failures of a trial since its last finished epoch, under this driver."""
        self._failed_on: list[Location | None] = []
        """Locations of the consecutive failed trials up to the last one that ended."""
        self._left = 0
        self.hopeless = False
        """Whether enough trials failed in a row by themselves to blame a shared cause."""

    @property
    def failing(self) -> int:
        """Number of consecutive failed trials up to the last one that ended."""
        return len(self._failed_on)

    @property
    def stuck(self) -> bool:
        """Whether trials cannot run for causes outside of them: several were left unfinished, and all others fail too.

        A trial without a failure since its start or its last epoch may still succeed.
        """
        if self._left < LEFT_IN_A_ROW:
            return False
        running = [n for n, trial in self._trials.items() if not trial.finished and n in self._sign_of_life]
        return all(self._failures[number] for number in running)

    def room(self) -> int:
        """Return how many trials can run at a time, on the nodes that are not excluded."""
        excluded, most = self._excluded(), self._search.room()
        return min(most, self._room(excluded)) if excluded else most

    def launch(self, number: int, params: dict[str, Any]) -> dict[str, Any]:
        """Record a proposal; return the trial's configuration for Tune."""
        record, known = self._record, self._trials.get(number)
        if known is None and self._finalist:
            params = {**params, "finalist": self._finalist(number)}
        trial = known or TrialRecord(
            number=number,
            stage=self._stage,
            attempt=0,
            params=params,
            seed=self._search.seed(self._stage, params, number),
            state="running",
            started=now(),
        )
        trial.attempt += 1
        folder = record.attempt_folder(trial)
        # The driver creates the folder, because it checks for links; a missing folder tells the trial of a moved run.
        folder.make_private()
        self._trials[number] = trial
        for known_of_process in (self._sign_of_life, self._asked, self._locations):
            known_of_process.pop(number, None)
        self._silent.add(number)
        record.write_trial(trial)
        self._tell(TrialStarted(trial))
        config, protocol = self._search.config_of(trial), self._search.protocol
        return {
            "stage": self._stage,
            "number": number,
            "avoid": sorted(self._excluded()),
            "job": vars(stage_job(record, trial, config=config, protocol=protocol, folder=folder.uri)),
        }

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Note that the trial's process has started, and ask where it runs; it answers before its first epoch."""
        number = trial.config["number"]
        self._sign_of_life[number] = time.monotonic()
        # Ray Train places the workers of a trial of several workers, and this process only holds them.
        if self._limits.workers == 1:
            self._asked[number] = trial.temporary_state.ray_actor.__ray_call__.remote(locate)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Record an epoch; `done` tells whether the trial has ended, for example by ASHA."""
        kept = self._trials[trial.config["number"]]
        self._sign_of_life[kept.number] = time.monotonic()
        self._failures[kept.number] = self._left = 0
        self._silent.discard(kept.number)
        if len(result["curve"]) > kept.epoch:
            bisect.insort(self._epoch_seconds, result["curve"][-1]["seconds"])
        kept.curve = result["curve"]
        kept.seconds = sum(metrics["seconds"] for metrics in kept.curve)
        kept.utterance_passes = sum(metrics["utterance_passes"] for metrics in kept.curve)
        kept.notes += [note for note in result["notes"] if note not in kept.notes]
        self._note_checkpoint(kept, result)
        if result.get("failure"):
            cause = cause_of_result(result["state"], result["error"])
            self._end(kept, result["state"], result["failure"], cause)
            return
        location = self._location(kept.number)
        # An epoch alone does not show that the node can write to the run's folder: that takes place in the background.
        if kept.checkpoint is not None:
            # The runner of several workers says where they run.
            for node in result.get("nodes", [location.node] if location else []):
                self._health.epoch_saved(node)
        if result["done"] and kept.epoch < self._epochs:
            self._finish(kept, trial)
            self._end(kept, "pruned")
        elif result["done"]:
            self._end(kept, "complete")
        else:
            self._record.write_trial_later(kept)
            self._tell(EpochFinished(kept))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Record that a trial's process died; restart the trial, fail it, or leave it to the next start."""
        kept = self._trials[trial.config["number"]]
        # `get_error` reads a copy that a thread writes later.
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        cause, error = cause_of_error(text), last_line(text) if text.strip() else "the trial's process died"
        if (limit := self._hung.pop(kept.number, None)) is not None:
            cause, error = HUNG, f"no epoch ended within {limit / 60:.0f} minutes"
        location = self._location(kept.number, text)
        failure = {"attempt": kept.attempt, "cause": cause, "error": error, "time": now()}
        kept.failures.append({**failure, **(dataclasses.asdict(location) if location else {})})
        self._failures[kept.number] += 1
        if cause in OUTSIDE:
            if location:
                self._health.failed(location, cause)
                self._tell_excluded()
            self._retry(kept, "again" if self._failures[kept.number] <= OUTSIDE_RETRIES else "left")
        elif sum(failure["cause"] not in OUTSIDE for failure in kept.failures) <= RETRIES:
            self._retry(kept, "again")
        else:
            self._end(kept, "failed", error, cause)
            self.settle(kept.number, "failed", 0.0)

    def _retry(self, trial: TrialRecord, fate: Literal["again", "left"]) -> None:
        """Record a failure, and have the trial launched again after a pause, or by the next start of the search."""
        self._record.write_trial(trial)
        seconds = 0.0
        if fate == "again":
            seconds = pause(self._failures[trial.number], first=FIRST_PAUSE_S, most=LONGEST_PAUSE_S)
            self._tell(TrialBroke(trial, seconds))
        else:
            self._left += 1
            self._record.update_run(left=[*self._record.info().left, trial.name])
            self._tell(TrialLeft(trial))
        self.settle(trial.number, fate, seconds)

    def _location(self, number: int, text: str = "") -> Location | None:
        """Return where a trial's process runs or ran, as it answered or as its error says; None if unknown."""
        if (asked := self._asked.pop(number, None)) is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                self._locations[number] = ray.get(asked, timeout=_ANSWER_S)
        if number not in self._locations and text:
            nodes = {node.id: node for node in cluster_nodes()}
            named = node_of_error(text, {node.id: node.address for node in nodes.values()})
            if named is not None:
                self._locations[number] = Location(named, str(nodes.get(named, "lost node")), gpu_of_error(text))
        return self._locations.get(number)

    def _room(self, without: Collection[str]) -> int:
        present = [node.resources for node in cluster_nodes() if node.id not in without]
        return Room(self._search.worker_resources, self._limits.workers).most(present)

    def _excluded(self) -> frozenset[str]:
        """Return the nodes that get no more trials; empty if no other node can take them."""
        bad = self._health.bad
        return bad if bad and self._room(bad) else frozenset()

    def _tell_excluded(self) -> None:
        for node in self._excluded() - self._health.told:
            host = self._health.hosts[node]
            self._health.told.add(node)
            self._record.update_run(excluded=sorted({*self._record.info().excluded, host}))
            self._tell(NodeExcluded(host))

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Kill the processes of trials that finished no epoch within the hang limit."""
        self.clear()
        now = time.monotonic()
        for trial in trials:
            number, process = trial.config["number"], trial.temporary_state.ray_actor
            # A pending trial with a process waits for the process to end its last trial.
            if trial.status not in ("RUNNING", "PENDING") or process is None or number in self._hung:
                continue
            limit = self._hang_limit(self._trials[number])
            if now - self._sign_of_life.setdefault(number, now) > limit:
                self._hung[number] = limit
                ray.kill(process)

    def _hang_limit(self, trial: TrialRecord) -> float:
        """Return the seconds that a trial has for its next epoch."""
        if self._limits.hang_minutes is not None:
            return 60 * self._limits.hang_minutes
        if not self._epoch_seconds:
            return FIRST_EPOCH_S
        # The list is sorted; `statistics.median` would sort it again for each trial.
        half = len(self._epoch_seconds) // 2
        median = (self._epoch_seconds[half] + self._epoch_seconds[~half]) / 2
        limit = hang_limit([median])
        if trial.number in self._silent:
            # A new process may train epochs again that are in no checkpoint, and its workers may wait for a place.
            limit += trial.epoch * median
            limit += PLACEMENT_S if self._limits.workers > 1 else 0.0
        return limit

    def _note_checkpoint(self, trial: TrialRecord, result: dict[str, Any]) -> None:
        name = result["checkpoint"]
        trial.checkpoint = self._record.relative(self._record.attempt_folder(trial) / name) if name else None
        trial.checkpoint_sha256 = result["checkpoint_sha256"]

    def _finish(self, trial: TrialRecord, tuned: Any) -> None:
        """Have the process of a pruned trial end its training: it saves weights that may still be chosen."""
        self._ranking.put(trial)
        keep = self._is_chosen(trial)
        answer = tuned.temporary_state.ray_actor.finish.remote(keep)
        if not keep:
            self._ending.append((answer, trial))
            return
        try:
            self._note_checkpoint(trial, ray.get(answer))
        except RayActorError as error:
            trial.checkpoint = trial.checkpoint_sha256 = None
            trial.notes.append(f"its process died before the weights were saved ({last_line(str(error))})")

    def clear(self, seconds: float = 0.0) -> None:
        """Delete what the processes of pruned trials wrote until they had ended their training.

        seconds: how long to wait for processes that have not ended it.
        """
        if not self._ending:
            return
        answers = [answer for answer, _ in self._ending]
        ended, _ = ray.wait(answers, num_returns=len(answers), timeout=seconds)
        for answer, trial in self._ending:
            if answer in ended:
                self._record.trial_folder(trial).delete()
        self._ending = [(answer, trial) for answer, trial in self._ending if answer not in ended]

    def _is_chosen(self, trial: TrialRecord) -> bool:
        """Return whether a finished trial's weights would be used now."""
        return any(chosen is trial for chosen in self._ranking.best(self._choices))

    def best(self) -> list[TrialRecord]:
        """Return the finished trials with a usable result, best first."""
        return self._ranking.best()

    @staticmethod
    def _has_weights(trial: TrialRecord) -> bool:
        """Return whether a trial has its own weights, rather than a finalist's copy or none."""
        return trial.checkpoint is not None and trial.checkpoint.startswith(f"stage{trial.stage}/")

    def _end(
        self,
        trial: TrialRecord,
        state: Literal["complete", "pruned", "diverged", "failed"],
        error: str | None = None,
        cause: str | None = None,
    ) -> None:
        trial.state, trial.error, trial.cause, trial.ended = state, error, cause, now()
        if error:
            self._failed_on.append(self._location(trial.number))
            self._judge_row()
        else:
            self._failed_on.clear()
        self._ranking.put(trial)
        self._record.write_trial(trial)
        self._drop_weights(trial)
        self._tell(TrialEnded(trial))

    def _judge_row(self) -> None:
        """Give up if enough trials failed in a row on several nodes, or on one if no other node can take them."""
        if self.failing < self._limits.failures_in_a_row:
            return
        last = self._failed_on[-1]
        nodes = {location and location.node for location in self._failed_on}
        if last is not None and len(nodes) == 1:
            self._health.condemn(last)
            if last.node in self._excluded():
                self._tell_excluded()
                return
        self.hopeless = True

    def _drop_weights(self, ended: TrialRecord) -> None:
        """Delete unused checkpoints: all of an outranked trial, and all but the kept ones of the ended trial."""
        record = self._record
        if not self._is_chosen(ended):
            record.drop_weights(ended)
            return
        for outranked in self._ranking.best(self._choices + 1)[self._choices :]:
            if self._has_weights(outranked):
                record.drop_weights(outranked)
        attempt, folder = record.attempt_folder(ended), record.trial_folder(ended)
        for name in folder.names():
            if name != attempt.name:
                (folder / name).delete()
        for name in attempt.names():
            if name != LAST and (ended.checkpoint is None or name != ended.checkpoint.rpartition("/")[2]):
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
        earlier=[earlier.uri for earlier in record.attempt_folders(trial)[1:]],
        keeps_last=trial.stage == 1 and config.stage2.start == "last",
        initial=(initial / "model.safetensors").uri if initial else None,
        initial_sha256=record.read_finalist(int(finalist))["sha256"] if finalist is not None else None,
        threads=search.cpus_per_worker,
        gpu=search.gpus,
        reported=trial.epoch,
    )
