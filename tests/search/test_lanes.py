"""Two stages in one run, under a virtual clock: what runs beside what, and which finalists Stage 2 starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from grcf_ray.errors import NoWinnerError
from grcf_ray.search.events import (
    EpochFinished,
    Event,
    FinalistsHeld,
    StageEnded,
    StageStarted,
    TrialEnded,
    TrialEvent,
    TrialStarted,
)
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.simulation import Clock, FedSearch, FedTrial
from grcf_ray.search.space import recorded_space
from grcf_ray.search.stopping import Stop
from grcf_ray.storage import storage_path
from tests.search.made_trials import EPOCHS, SPACE

OBJECTIVES = {1: "valid/pairwise_acc", 2: "valid/mae"}


class Killed(BaseException):
    """The driver was killed."""


class ClockStop(Stop):
    """A time budget on a virtual clock."""

    def __init__(self, clock: Clock, budget: float) -> None:
        super().__init__()
        self._clock, self._seconds = clock, budget

    def seconds_until(self, share: float) -> float:
        return max(0.0, share * self._seconds - self._clock.seconds)


@dataclasses.dataclass(kw_only=True)
class Play:
    """A search on made curves. seconds: of an epoch of a trial; value: its figure at all epochs."""

    folder: Path
    slots: int
    trials: tuple[int, int] = (6, 6)
    seconds: Callable[[int, int], float] = lambda stage, number: 1.0
    value: Callable[[int, int], float] = lambda stage, number: 0.5 + number / 100
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    budget: float | None = None
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    die: Callable[[Event], bool] = lambda event: False

    def __post_init__(self) -> None:
        self.events: list[tuple[float, Event]] = []
        self.record = RunRecord(storage_path(self.folder))
        if not self.record.exists:
            self.record.write_run({"state": "running"})
        self.clock = Clock()

    def run(self) -> Play:
        """Run the search."""
        budgets = {"search.stage1_trials": self.trials[0], "search.stage2_trials": self.trials[1]}
        features: Any = SimpleNamespace(half_range=3.0, task="regression")
        self.search = FedSearch(
            record=self.record,
            space=recorded_space(SPACE, "made").with_settings({**budgets, **self.settings}),
            features=features,
            protocol="mosi",
            concurrent=self.slots,
            listeners=[self._note],
            feed=self._feed,
            clock=self.clock,
            **({} if self.budget is None else {"stop": ClockStop(self.clock, self.budget)}),
            **self.more,
        )
        self.winner = self.search.run()
        return self

    def _note(self, event: Event) -> None:
        self.events.append((self.clock.seconds, event))
        if self.die(event):
            raise Killed

    def _feed(self, name: str, config: dict[str, Any]) -> FedTrial:
        stage, number = config["stage"], config["number"]
        figures = {"seconds": self.seconds(stage, number), "utterance_passes": 1.0}
        metric, value = OBJECTIVES[stage], self.value(stage, number)
        curve = [{"epoch": epoch, metric: value, **figures} for epoch in range(1, EPOCHS[stage] + 1)]
        return FedTrial(name, config, curve, metric)

    def times(self, kind: type[Any], stage: Literal[1, 2]) -> list[float]:
        """When events of a stage or of its trials came."""
        return [
            time
            for time, event in self.events
            if isinstance(event, kind)
            and (event.trial.stage if isinstance(event, TrialEvent) else event.stage) == stage
        ]

    @property
    def order(self) -> list[str]:
        """The starts and ends of stages, and the starts of trials."""
        names = {StageStarted: "begin {}", StageEnded: "end {}"}
        return [
            event.trial.name if isinstance(event, TrialStarted) else names[type(event)].format(event.stage)
            for _, event in self.events
            if isinstance(event, (StageStarted, StageEnded, TrialStarted))
        ]

    @property
    def finalists(self) -> list[str]:
        """The finalist of each trial of Stage 2."""
        return [trial.params["finalist"] for trial in self.record.trials(2)]


def slow_first(stage: int, number: int) -> float:
    """Stage 1's trial 2 takes four times as long as the others."""
    return 4.0 if (stage, number) == (1, 2) else 1.0


def test_stage_2_takes_the_slots_that_stage_1_leaves(tmp_path: Path) -> None:
    """Trial 2 of Stage 1 takes 12 s, the others 3 s; a trial of Stage 2 takes 4 s."""
    play = Play(folder=tmp_path, slots=2, trials=(6, 9), seconds=slow_first).run()
    # The last other trial ends at 12 s. Then 5 of 6 have ended: Stage 2 may start 7 of its 9 trials.
    assert play.times(StageStarted, 2) == [12.0]
    assert play.times(TrialStarted, 2) == [12.0, 15.0, 16.0, 19.0, 20.0, 23.0, 24.0, 27.0, 28.0]
    assert play.order[-10:-7] == ["end 1", "stage2/1", "stage2/2"]
    assert play.times(StageEnded, 1) == [15.0] and play.times(StageEnded, 2) == [32.0]
    for stage, budget in ((1, 6), (2, 9)):
        assert [trial.state for trial in play.record.trials(stage)] == ["complete"] * budget
    assert play.search.complete


def test_a_trial_that_ends_late_becomes_a_finalist(tmp_path: Path) -> None:
    """The slow trial of Stage 1 is its best; trials of Stage 2 that started before have others."""
    play = Play(
        folder=tmp_path,
        slots=2,
        trials=(6, 9),
        seconds=lambda stage, number: 8.0 if (stage, number) == (1, 2) else 1.0,
        value=lambda stage, number: 0.9 if (stage, number) == (1, 2) else 0.5 + number / 100,
    ).run()
    # It ends at 27 s. The best ones of then are taken in turn, the better one by even numbers.
    assert play.times(StageEnded, 1) == [27.0]
    before = sum(time < 27.0 for time in play.times(TrialStarted, 2))
    assert before == 4
    assert play.finalists == ["5", "4", "5", "4", *["2", "5", "2", "5", "2"]]
    assert play.record.info().finalists == ["5", "4", "2"]
    for number in (2, 4, 5):
        assert play.record.trial(1, number).checkpoint == f"finalists/{number:04d}/model.safetensors"
        assert play.record.read_finalist(number)["trial"] == number
    # Nothing that came too late for Stage 2.
    assert not any(isinstance(event, FinalistsHeld) for _, event in play.events)


@pytest.mark.parametrize(("slots", "trials"), [(1, (6, 6)), (6, (6, 6)), (9, (6, 6)), (3, (6, 3))])
def test_without_a_slot_to_fill_the_stages_run_one_after_the_other(
    slots: int, trials: tuple[int, int], tmp_path: Path
) -> None:
    """On one slot, and where each trial of Stage 2 finds a slot at once."""
    play = Play(folder=tmp_path, slots=slots, trials=trials, seconds=slow_first).run()
    first, second = ([f"stage{stage}/{number}" for number in range(trials[stage - 1])] for stage in (1, 2))
    assert play.order == ["begin 1", *first, "end 1", "begin 2", *second, "end 2"]
    assert play.finalists == [("5", "4")[number % 2] for number in range(trials[1])]
    assert play.record.info().finalists == ["5", "4"]


@pytest.mark.parametrize("slots", [2, 3, 5, 8, 13])
@pytest.mark.parametrize("pruning", [False, True])
def test_stage_2_is_never_further_than_stage_1_and_slots_are_never_exceeded(
    slots: int, pruning: bool, tmp_path: Path
) -> None:
    play = Play(
        folder=tmp_path,
        slots=slots,
        trials=(18, 30),
        seconds=lambda stage, number: 1.0 + 7 * number % 5,
        value=lambda stage, number: 7 * number % 18 / 18,
        settings={"search.pruning": pruning, "search.grace_epochs": 1, "search.reduction_factor": 3},
    ).run()
    running = [0, 0]
    started = ended = 0
    for _, event in play.events:
        if isinstance(event, TrialEvent) and isinstance(event, (TrialStarted, TrialEnded)):
            change = 1 if isinstance(event, TrialStarted) else -1
            running[event.trial.stage - 1] += change
            started += event.trial.stage == 2 and change == 1
            ended += event.trial.stage == 1 and change == -1
            assert sum(running) <= slots
            assert started / 30 <= ended / 18
    # Each finalist had ended before, and was among the best then.
    assert {int(number) for number in play.finalists} <= {int(number) for number in play.record.info().finalists}
    busy = sum(trial.seconds for stage in (1, 2) for trial in play.record.trials(stage))
    assert busy / (slots * play.clock.seconds) > 0.6


def test_stage_1_ends_at_its_share_of_the_time_while_its_trials_wait(tmp_path: Path) -> None:
    """Stage 2 then runs alone, on what Stage 1 has."""
    play = Play(folder=tmp_path, slots=2, budget=10.0, seconds=slow_first).run()
    ended = next(event for _, event in play.events if isinstance(event, StageEnded))
    assert (ended, play.times(StageEnded, 1), play.times(StageStarted, 2)) == (StageEnded(1, cut=4), [5.0], [5.0])
    assert play.order.index("end 1") < play.order.index("begin 2")
    assert [trial.state for trial in play.record.trials(1)].count("running") == 2
    assert play.record.info().cut == [1, 2]


def test_the_last_trials_of_stage_1_have_the_time_of_stage_2(tmp_path: Path) -> None:
    play = Play(folder=tmp_path, slots=2, trials=(6, 9), budget=26.0, seconds=slow_first).run()
    # Half of the time is over at 13 s, but Stage 2 has begun at 12 s.
    assert play.times(StageEnded, 1) == [15.0]
    assert {trial.state for trial in play.record.trials(1)} == {"complete"}
    (end,) = [event for _, event in play.events if isinstance(event, StageEnded) and event.stage == 2]
    assert end.cut == 4 and play.record.info().cut == [2]


def test_time_is_up_for_both_stages_at_once(tmp_path: Path) -> None:
    def slow(stage: int, number: int) -> float:
        return 100.0 if (stage, number) == (1, 2) else 1.0

    play = Play(folder=tmp_path, slots=2, trials=(6, 9), budget=30.0, seconds=slow).run()
    assert [event.cut for _, event in play.events if isinstance(event, StageEnded)] == [1, 5]
    # The next start finishes both: Stage 1 first.
    again = Play(folder=tmp_path, slots=2, trials=(6, 9)).run()
    assert again.order[:3] == ["begin 1", "stage1/2", "begin 2"]
    assert again.search.complete
    assert [trial.attempt for trial in again.record.trials(1)] == [1, 1, 2, 1, 1, 1]


@pytest.mark.parametrize("moment", range(1, 40, 3))
@pytest.mark.parametrize("pruning", [False, True])
def test_a_search_killed_at_any_event_goes_on(moment: int, pruning: bool, tmp_path: Path) -> None:
    made: dict[str, Any] = {"folder": tmp_path, "slots": 2, "trials": (6, 9), "seconds": slow_first}
    made["settings"] = {"search.pruning": pruning}

    def value(stage: int, number: int) -> float:
        return 0.9 if (stage, number) == (1, 2) else 0.5 + number / 100

    left = [moment]

    def die(event: Event) -> bool:
        left[0] -= isinstance(event, (TrialStarted, TrialEnded, EpochFinished, StageStarted, StageEnded))
        return left[0] == 0

    with pytest.raises(Killed):
        Play(**made, value=value, die=die).run()
    record = RunRecord(storage_path(tmp_path))
    before = {trial.name: trial for stage in (1, 2) for trial in record.trials(stage)}
    play = Play(**made, value=value).run()
    after = {trial.name: trial for stage in (1, 2) for trial in record.trials(stage)}
    assert len(after) == 15 and {trial.state for trial in after.values()} <= {"complete", "pruned"}
    for name, trial in before.items():
        assert after[name].params == trial.params
        assert after[name].attempt == trial.attempt + (not trial.finished)
    unfinished = [name for name, trial in before.items() if not trial.finished]
    # Stage 1's unfinished trials go first.
    started = [name for name in play.order if name in unfinished]
    assert started == sorted(unfinished)
    assert set(play.finalists) <= set(play.record.info().finalists)
    assert play.finalists[-1] == "2"


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Retrainings: three of Stage 1, and one of Stage 2 for each finalist."""

    def params(self, stage: Literal[1, 2], finalists: Sequence[Any]) -> list[dict[str, Any]]:
        if stage == 1:
            return [{"stage1.head_lr": 1e-3}] * 4
        fixed = {"stage2.head_lr": 1e-3, "stage2.fusion_dropout": 0.1}
        return [{**fixed, "finalist": number} for number in finalists]

    def seed_for(self, stage: Literal[1, 2], params: Mapping[str, Any], number: int) -> int:
        return int(params.get("finalist", number))


def test_retrainings_of_stage_2_wait_for_all_of_stage_1(tmp_path: Path) -> None:
    settings = {"search.finalists": 4}
    more = {"retrainings": Fixed()}
    play = Play(
        folder=tmp_path, slots=3, trials=(4, 4), seconds=slow_first, settings=settings, more=more, budget=1.0
    ).run()
    assert play.order.index("end 1") < play.order.index("begin 2")
    assert play.finalists == ["3", "2", "1", "0"]
    assert [trial.seed for trial in play.record.trials(2)] == [3, 2, 1, 0]


def test_a_stage_2_that_is_over_waits_for_all_of_an_extended_stage_1(tmp_path: Path) -> None:
    before = Play(folder=tmp_path, slots=2, trials=(6, 6)).run().finalists
    held = Play(folder=tmp_path, slots=2, trials=(12, 6), seconds=slow_first).run()
    assert held.order[-3:] == ["end 1", "begin 2", "end 2"]
    (told,) = [event for _, event in held.events if isinstance(event, FinalistsHeld)]
    assert [trial.number for trial in told.trials] == [11, 10]
    reopened = Play(folder=tmp_path, slots=2, trials=(12, 6), more={"reopen": True}).run()
    assert reopened.order == ["begin 1", "end 1", "begin 2", *(f"stage2/{n}" for n in range(6, 12)), "end 2"]
    assert reopened.finalists == [*before, "11", "10", "11", "10", "11", "10"]
    assert reopened.record.info().stage2_trials == 12


def test_without_a_usable_trial_of_stage_1_there_is_no_stage_2(tmp_path: Path) -> None:
    play = Play(folder=tmp_path, slots=2)
    for number in range(6):
        play.record.write_trial(
            TrialRecord(number=number, stage=1, attempt=1, params={"stage1.head_lr": 1e-3}, seed=0, state="failed")
        )
    with pytest.raises(NoWinnerError, match="stage 1: none of 6 trials has a usable result"):
        play.run()
    assert play.order == ["begin 1", "end 1"]


@pytest.mark.parametrize("ensemble", [1, 2, 4])
def test_the_last_stage_keeps_the_weights_of_the_ensemble(ensemble: int, tmp_path: Path) -> None:
    """Trials that fall out of the best ones lose theirs, and so do pruned ones that no longer count."""
    play = Play(
        folder=tmp_path,
        slots=2,
        trials=(6, 9),
        value=lambda stage, number: 7 * number % 9 / 9 + 0.1,
        settings={"search.ensemble": ensemble, "search.pruning": True},
    ).run()
    ranked = play.record.ranked(2)
    assert {"complete", "pruned"} == {trial.state for trial in ranked}
    assert [trial.checkpoint is not None for trial in ranked] == [place < ensemble for place in range(9)]


def test_a_search_of_one_stage_keeps_the_weights_of_the_ensemble(tmp_path: Path) -> None:
    play = Play(
        folder=tmp_path, slots=2, settings={"search.ensemble": 4, "search.finalists": 1, "stage2.epochs": 0}
    ).run()
    assert [trial.checkpoint is not None for trial in play.record.ranked(1)] == [True] * 4 + [False] * 2
