from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import pytest
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from grcf_ray.config import SearchConfig
from grcf_ray.search.record import TrialRecord
from grcf_ray.search.scheduler import build_scheduler
from grcf_ray.train.curve import objective_name

EPOCHS = 9
SEARCH = SearchConfig(reduction_factor=3.0)
STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


def record(number: int, values: list[float], *, stage: Literal[1, 2] = 1, state: Any = "complete") -> TrialRecord:
    name = f"valid/{objective_name(stage, 'regression')}"
    curve = [{"epoch": epoch, name: value} for epoch, value in enumerate(values, 1)]
    return TrialRecord(number=number, stage=stage, attempt=1, params={}, seed=0, state=state, curve=curve)


def play(scheduler: TrialScheduler, number: int, values: list[float], first: int = 1) -> list[str]:
    """The decisions on a trial as Tune asks for them, up to the first stop; then Tune says that it has ended."""
    trial: Any = SimpleNamespace(trial_id=f"tune{number}", config={"number": number})
    controller: Any = None
    scheduler.on_trial_add(controller, trial)
    decisions = []
    for epoch, value in enumerate(values, first):
        result = {"epoch": epoch, "objective": value}
        decisions.append(scheduler.on_trial_result(controller, trial, result))
        if decisions[-1] == STOP:
            scheduler.on_trial_complete(controller, trial, result)
            break
    return decisions


def curves(n: int) -> list[list[float]]:
    """Curves of different quality, in an order without a trend."""
    return [[0.5 + 0.01 * ((7 * k) % n) + 0.005 * epoch for epoch in range(EPOCHS)] for k in range(n)]


def scheduler(trials: list[TrialRecord] | None = None, stage: Literal[1, 2] = 1) -> TrialScheduler:
    return build_scheduler(SEARCH, stage=stage, epochs=EPOCHS, trials=trials or [])


@pytest.mark.parametrize("k", [1, 4, 10])
def test_later_decisions_are_those_of_an_uninterrupted_search(k: int) -> None:
    whole = scheduler()
    decisions = [play(whole, number, values) for number, values in enumerate(curves(16))]
    lengths = {len(made) for made in decisions}
    assert EPOCHS in lengths, "no trial ran to its end"
    assert lengths - {EPOCHS}, "no trial was stopped"
    recorded = [record(number, values[: len(decisions[number])]) for number, values in enumerate(curves(16)[:k])]
    again = scheduler(recorded)
    assert [play(again, number, values) for number, values in list(enumerate(curves(16)))[k:]] == decisions[k:]


def test_a_bad_newcomer_is_stopped_at_its_first_rung_and_a_good_one_is_not() -> None:
    recorded = [record(number, values) for number, values in enumerate(curves(6))]
    assert play(scheduler(recorded), 6, [0.1] * EPOCHS) == [STOP]
    assert play(scheduler(recorded), 6, [0.9] * EPOCHS) == [CONTINUE] * (EPOCHS - 1) + [STOP]
    assert play(scheduler(), 6, [0.1] * EPOCHS)[0] == CONTINUE


@pytest.mark.parametrize("waiting_trials", [0, 1, 3])
def test_a_trial_is_stopped_only_while_another_waits_for_its_slot(waiting_trials: int) -> None:
    """And the trials that go on stay on the rungs: the last one is judged as if they had been stopped."""
    recorded = [record(number, values) for number, values in enumerate(curves(6))]
    left = [waiting_trials]
    halving = build_scheduler(SEARCH, stage=1, epochs=EPOCHS, trials=recorded, waiting=lambda: left[0] > 0)
    played = []
    for number in range(6, 10):
        played.append(play(halving, number, [0.1] * EPOCHS))
        left[0] -= 1
    whole = [CONTINUE] * (EPOCHS - 1) + [STOP]
    assert played == [[STOP]] * waiting_trials + [whole] * (4 - waiting_trials)
    left[0] = 1
    assert play(halving, 10, [0.1] * EPOCHS) == [STOP]


def test_stage_2_is_minimised() -> None:
    recorded = [record(number, values, stage=2) for number, values in enumerate(curves(6))]
    assert play(scheduler(recorded, 2), 6, [0.9] * EPOCHS) == [STOP]
    assert play(scheduler(recorded, 2), 6, [0.1] * EPOCHS)[:-1] == [CONTINUE] * (EPOCHS - 1)


@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_trial_that_goes_on_is_judged_as_if_nothing_had_happened(at: int) -> None:
    """Its recorded epochs hold its place on the rungs: it is neither judged again nor its own rival."""
    others = curves(8)
    trial = [0.56, 0.56, 0.57, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    whole = scheduler([record(number, values) for number, values in enumerate(others)])
    decisions = play(whole, 8, trial)
    assert len(decisions) > at, "it was stopped before"
    recorded = [record(number, values) for number, values in enumerate(others)]
    again = scheduler([*recorded, record(8, trial[:at], state="running")])
    assert play(again, 8, trial[at:], first=at + 1) == decisions[at:]
    newcomers = [[value] * EPOCHS for value in (0.5, 0.54, 0.56, 0.58, 0.62)]
    assert [play(again, 9 + k, values) for k, values in enumerate(newcomers)] == [
        play(whole, 9 + k, values) for k, values in enumerate(newcomers)
    ]


def test_epochs_without_an_objective_and_diverged_trials_are_no_rivals() -> None:
    diverged = record(0, [], state="diverged")
    undefined = record(1, [0.9])
    undefined.curve[0]["valid/pairwise_acc"] = None
    assert play(scheduler([diverged, undefined]), 2, [0.1, 0.1, 0.1])[0] == CONTINUE


def test_a_live_trial_that_diverges_or_is_removed_stays_off_the_rungs() -> None:
    halving = scheduler()
    first, second = (SimpleNamespace(trial_id=f"tune{n}", config={"number": n}) for n in (0, 1))
    controller: Any = None
    halving.on_trial_add(controller, first)
    assert halving.on_trial_result(controller, first, {"epoch": 1, "failure": "NaN"}) == CONTINUE
    halving.on_trial_complete(controller, first, {"epoch": 1, "failure": "NaN"})
    halving.on_trial_add(controller, second)
    halving.on_trial_remove(controller, second)
    assert [play(halving, number, [0.1])[0] for number in (1, 2)] == [CONTINUE] * 2


@pytest.mark.parametrize(
    ("search", "epochs", "kind"),
    [
        (SearchConfig(pruning=False), 9, FIFOScheduler),
        (SearchConfig(), 1, FIFOScheduler),
        (SearchConfig(grace_epochs=9), 9, FIFOScheduler),
        (SearchConfig(grace_epochs=8), 9, ASHAScheduler),
        (SearchConfig(), 2, ASHAScheduler),
    ],
)
def test_without_pruning_trials_run_to_their_end(search: SearchConfig, epochs: int, kind: type) -> None:
    built = build_scheduler(search, stage=1, epochs=epochs, trials=[])
    assert isinstance(built, kind)
    if kind is FIFOScheduler:
        assert not isinstance(built, ASHAScheduler)
        recorded = [record(number, values) for number, values in enumerate(curves(6))]
        full = build_scheduler(search, stage=1, epochs=epochs, trials=recorded)
        assert set(play(full, 6, [0.0] * (epochs - 1))) <= {CONTINUE}


def test_grace_and_reduction_are_the_configurations() -> None:
    recorded = [record(number, values) for number, values in enumerate(curves(6))]
    late = build_scheduler(SearchConfig(grace_epochs=3), stage=1, epochs=EPOCHS, trials=recorded)
    assert play(late, 6, [0.1] * EPOCHS) == [CONTINUE, CONTINUE, STOP]
    middling = [0.5 + 0.01 * 2.6] * EPOCHS
    strict, mild = (
        build_scheduler(SearchConfig(reduction_factor=factor), stage=1, epochs=EPOCHS, trials=recorded)
        for factor in (3.0, 2.0)
    )
    assert play(strict, 6, middling)[0] == STOP
    assert play(mild, 6, middling)[0] == CONTINUE
