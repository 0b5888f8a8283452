"""Run the stages of a search as lanes of one Tune run, so that no slot waits for the end of Stage 1.

A lane is a stage with its searcher, its scheduler and its keeper. Stage 1 goes first. Once it has no more trials to
propose, Stage 2 takes the slots that it leaves, but starts no larger share of its trials than have ended in Stage 1. So
all trials of Stage 1 end before the last one of Stage 2 starts, and each can still become a finalist.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import grcf_ray.cluster  # noqa: F401  before Ray

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from grcf_ray.errors import NoWinnerError
from grcf_ray.search.callback import RecordCallback
from grcf_ray.search.events import StageEnded, StageStarted, TrialsMissing
from grcf_ray.search.hand_over import HandOver
from grcf_ray.search.record import TrialRecord, missing_numbers, rank, spent
from grcf_ray.search.searcher import OptunaSearcher, distributions, startup_trials
from grcf_ray.train.resuming import find_best

if TYPE_CHECKING:
    from grcf_ray.search.stages import Search


@dataclasses.dataclass(frozen=True)
class Lane:
    """A stage that runs."""

    stage: Literal[1, 2]
    budget: int
    searcher: OptunaSearcher
    scheduler: TrialScheduler
    keeper: RecordCallback


class Lanes:
    """The stages of a search, in order, and what runs them in Tune: `searcher`, `scheduler` and `callback`."""

    def __init__(self, search: Search) -> None:
        self._search, self._record = search, search.record
        self._ahead = list(search.stages)
        self._hand_over = HandOver(search) if search.stages == [1, 2] else None
        self._lanes: dict[int, Lane] = {}
        self.open: list[Lane] = []
        """The lanes of the stages that have not ended."""
        self.searcher, self.scheduler, self.callback = _Searcher(self), _Scheduler(self), _Callback(self)

    @property
    def all(self) -> list[Lane]:
        """The lanes of all stages that have run."""
        return list(self._lanes.values())

    def of(self, trial: Any) -> Lane:
        """Return the lane of a trial of Tune."""
        return self._lanes[trial.config["stage"]]

    @property
    def hopeless(self) -> list[Lane]:
        """The lanes whose trials fail by themselves."""
        return [lane for lane in self.open if lane.keeper.hopeless]

    @property
    def stuck(self) -> bool:
        """Whether no lane progresses for causes outside of the trials."""
        return bool(self.open) and all(lane.keeper.stuck for lane in self.open)

    @property
    def stopped(self) -> bool:
        """Whether to end all trials: a Stage 1 whose last trials run beside Stage 2 has the time of Stage 2."""
        late = bool(self.open) and self._search.time_is_up(self.open[-1].stage)
        return late or self._search.stop.requested or bool(self.hopeless) or self.stuck

    def advance(self) -> bool:
        """End the stages whose trials have ended, and begin the next stage when it can; return whether any runs."""
        for lane in [lane for lane in self.open if lane.searcher.done]:
            self._end(lane.stage, lane.budget)
        while self._ahead and (not self.open or self._may_overlap()):
            self._begin(self._ahead.pop(0))
        return bool(self.open)

    def close(self) -> None:
        """End the stages that the run has left open."""
        for lane in list(self.open):
            self._end(lane.stage, lane.budget)

    def _may_overlap(self) -> bool:
        """Whether Stage 2 can begin before the end of Stage 1: a slot is left, and enough trials for all finalists.

        With a slot for each of its trials it waits: it ends no later, and all of them start from the best finalists.
        """
        first, hand_over = self.open[0], self._hand_over
        assert hand_over is not None
        if self._search.retrainings or hand_over.over or not first.searcher.all_proposed:
            return False
        if not first.searcher.pending < first.keeper.room() < hand_over.budget:
            return False
        complete = sum(trial.state == "complete" for trial in first.keeper.best())
        return complete >= self._search.config.search.finalists and hand_over.begin()

    def _begin(self, stage: Literal[1, 2]) -> None:
        search, trials = self._search, self._record.trials(stage)
        starts, budget, finalist = self._plan(stage)
        search.tell(StageStarted(stage, budget, search.epochs(stage), tuple(trials)))
        if missing := missing_numbers(trials):
            search.tell(TrialsMissing(stage, tuple(missing)))
        if spent(trials) >= budget or search.time_is_up(stage):
            self._end(stage, budget)
            return
        if left := self._left(stage):
            # They run again.
            self._record.update_run(left=[name for name in self._record.info().left if name not in left])
        lane = self._lanes[stage] = self._lane(stage, trials, starts, budget, finalist)
        self.open.append(lane)
        if stage == 1 and self._hand_over:
            self._hand_over.ranked = lane.keeper.best

    def _plan(self, stage: Literal[1, 2]) -> tuple[Sequence[Mapping[str, Any]], int, Callable[[int], str] | None]:
        """Return the parameters of a stage's first trials, its budget, and which finalist a trial starts from.

        Raises NoWinnerError if Stage 1 has no finalist.
        """
        search, limits = self._search, self._search.config.search
        hand_over = self._hand_over if stage == 2 else None
        if hand_over and not hand_over.numbers:
            raise NoWinnerError(search.no_result(1))
        if not search.retrainings:
            budget = limits.stage1_trials if stage == 1 else hand_over.budget if hand_over else limits.stage2_trials
            return [search.space.start(stage)], budget, hand_over.finalist if hand_over else None
        fixed = search.retrainings.params(stage, hand_over.numbers if hand_over else ())
        return fixed, len(fixed), (lambda number: str(fixed[number]["finalist"])) if hand_over else None

    def _lane(
        self,
        stage: Literal[1, 2],
        trials: list[TrialRecord],
        starts: Sequence[Mapping[str, Any]],
        budget: int,
        finalist: Callable[[int], str] | None,
    ) -> Lane:
        search, limits = self._search, self._search.config.search
        choices = limits.ensemble if stage == search.stages[-1] else limits.finalists
        choices = budget if search.retrainings else choices
        keeper = search.keeper(search, stage, trials, choices=choices, finalist=finalist)

        def allowed() -> int:
            """Return how many trials may be proposed in all: of Stage 2, the share that has ended in Stage 1."""
            before = next((lane for lane in self.open if lane.stage < stage), None)
            if before is None:
                return sys.maxsize
            return (before.searcher.proposed - before.searcher.pending) * budget // before.budget

        def room() -> int:
            others = sum(lane.searcher.pending for lane in self.open if lane.stage != stage)
            return min(keeper.room() - others, searcher.pending + allowed() - searcher.proposed)

        searcher: OptunaSearcher = search.searcher(
            distributions(search.space.dimensions(stage)),
            starts=starts,
            budget=budget,
            trials=trials,
            stage=stage,
            epochs=search.epochs(stage),
            seed=search.config.seed,
            n_startup_trials=startup_trials(budget),
            # A finalist's margins are those of its Stage 1 trial.
            feasible=search.feasible if finalist is None else lambda params: True,
            launch=keeper.launch,
            room=room,
        )
        keeper.settle = searcher.settle
        scheduler = search.scheduler(
            limits,
            stage=stage,
            epochs=search.epochs(stage),
            trials=trials,
            # With Stage 2 held back, a slot would stay empty.
            waiting=lambda: searcher.waiting and searcher.proposed < allowed(),
        )
        return Lane(stage, budget, searcher, scheduler, keeper)

    def _end(self, stage: Literal[1, 2], budget: int) -> None:
        self.open = [lane for lane in self.open if lane.stage != stage]
        record, trials = self._record, self._record.trials(stage)
        self._settle_unfinished(trials)
        if self._hand_over and stage == 1:
            best = rank(trials)
            self._hand_over.ranked = lambda: best
            self._hand_over.begin()
        record.export_trials(stage)
        left = len(self._left(stage))
        cut = 0 if self._search.retrainings else max(0, budget - spent(trials) - left)
        if cut:
            # Trials that ran out of time stay on record as running, so that a later start resumes them.
            record.update_run(cut=sorted({*record.info().cut, stage}))
        self._search.tell(StageEnded(stage, cut, left))
        if self._hand_over and stage == 2 and spent(trials) >= budget:
            self._hand_over.tell_held()

    def _left(self, stage: int) -> list[str]:
        """Return the trials that were left unfinished after failures for causes outside of them."""
        return [name for name in self._record.info().left if name.startswith(f"stage{stage}/")]

    def _settle_unfinished(self, trials: Sequence[TrialRecord]) -> None:
        """Record the weights of trials that ran out of time: their processes saved them at the end."""
        for trial in trials:
            if trial.finished:
                continue
            best = find_best(self._record.attempt_folders(trial))
            trial.checkpoint = trial.checkpoint_sha256 = None
            if best is not None:
                trial.checkpoint = self._record.relative(best.place)
                trial.checkpoint_sha256 = best.sha256
            recorded = trial.best
            if recorded is not None and recorded["epoch"] != (best.state["epoch"] if best else 0):
                lost = len(trial.curve)
                trial.curve = best.state["curve"] if best else []
                trial.notes.append(f"epochs {len(trial.curve) + 1} to {lost} are lost: they were not saved in time")
            self._record.write_trial(trial)


class _Stateless:
    """What Tune pickles for a restore that is not used. The lanes hold the features."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_Stateless, Searcher):
    """Asks the first lane, and the next one only when the first has nothing more to propose."""

    def __init__(self, lanes: Lanes) -> None:
        super().__init__()
        self._lanes = lanes

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the next trial's configuration; None if there may be one later, FINISHED after the last stage."""
        # Tune asks every second while no trial runs, and looks at its stopper only after that.
        if self._lanes.stopped or not self._lanes.advance():
            return str(Searcher.FINISHED)
        for lane in self._lanes.open:
            config = lane.searcher.suggest(trial_id)
            if isinstance(config, dict):
                return config
            if not lane.searcher.all_proposed:
                break
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the lanes; only the trial's own knows it."""
        for lane in self._lanes.all:
            lane.searcher.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the run record is the state."""


class _Scheduler(_Stateless, FIFOScheduler):
    """Has the scheduler of a trial's lane decide."""

    def __init__(self, lanes: Lanes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lanes = lanes

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._lanes.of(trial).scheduler.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self._lanes.of(trial).scheduler.on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._lanes.of(trial).scheduler.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._lanes.of(trial).scheduler.on_trial_remove(tune_controller, trial)


class _Callback(_Stateless, tune.Callback):
    """Has the keeper of a trial's lane record it."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._lanes.of(trial).keeper.on_trial_start(iteration, trials, trial)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self._lanes.of(trial).keeper.on_trial_result(iteration, trials, trial, result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._lanes.of(trial).keeper.on_trial_error(iteration, trials, trial)

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        for lane in self._lanes.all:
            lane.keeper.on_step_end(iteration, [trial for trial in trials if trial.config["stage"] == lane.stage])
