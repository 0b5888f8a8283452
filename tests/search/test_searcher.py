from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from grcf_ray.config import build_config, check_margins
from grcf_ray.errors import ConfigError, DataError
from grcf_ray.search.record import TrialRecord
from grcf_ray.search.searcher import OptunaSearcher, distributions, startup_trials
from grcf_ray.search.space import Choice, Dimension, Range
from grcf_ray.train.curve import objective_name

EPOCHS = 4
SPACE: dict[str, Dimension] = {
    "stage1.encoder_lr": Range(1e-6, 1e-3, True, 1e-4),
    "model.fusion_dropout": Range(0.0, 0.6, False, 0.1),
    "pairs.pairs_per_group": Range(8, 64, True, 32),
    "model.modalities": Choice(("text", "text+audio", "all"), "all"),
}
State = Literal["complete", "pruned", "diverged", "failed", "died"]
"""How a trial ends; one that died broke off at every launch."""


def start_of(space: Mapping[str, Dimension]) -> dict[str, Any]:
    return {path: dimension.start for path, dimension in space.items()}


def proposals(
    trials: Sequence[TrialRecord] = (),
    *,
    space: Mapping[str, Dimension] = SPACE,
    stage: Literal[1, 2] = 1,
    seed: int = 42,
    n_startup_trials: int = 4,
    feasible: Callable[[Mapping[str, Any]], bool] = lambda params: True,
    budget: int = 1000,
    starts: Sequence[Mapping[str, Any]] | None = None,
    **more: Any,
) -> OptunaSearcher:
    return OptunaSearcher(
        distributions(space),
        starts=[start_of(space)] if starts is None else starts,
        budget=budget,
        trials=trials,
        stage=stage,
        epochs=EPOCHS,
        seed=seed,
        n_startup_trials=n_startup_trials,
        feasible=feasible,
        launch=lambda number, params: {"number": number, "params": params},
        **more,
    )


def fate(number: int) -> State:
    """Every kind of end in one search."""
    ends: tuple[State, ...] = ("complete", "pruned", "complete", "diverged", "died", "failed", "pruned", "complete")
    return ends[number % 8]


def curve_of(params: Mapping[str, Any], state: State, stage: int) -> list[dict[str, Any]]:
    """A curve that follows from the parameters alone."""
    name = f"valid/{objective_name(stage, 'regression')}"
    value = abs(math.log10(params["stage1.encoder_lr"]) + 4) + params["model.fusion_dropout"]
    epochs = {"complete": EPOCHS, "pruned": 2, "diverged": 1, "failed": 1, "died": 1}[state]
    return [{"epoch": epoch, name: value / epoch} for epoch in range(1, epochs + 1)]


def suggested(search: OptunaSearcher, trial_id: str) -> dict[str, Any]:
    config = search.suggest(trial_id)
    assert isinstance(config, dict)
    return config


def run_trial(
    search: OptunaSearcher, trial_id: str, *, stage: int = 1, fates: Callable[[int], State] = fate
) -> TrialRecord:
    """A trial as the search runs it, which tells its end alone. A trial whose process dies is launched twice."""
    config = suggested(search, trial_id)
    number, params = config["number"], config["params"]
    state = fates(number)
    curve = curve_of(params, state, stage)
    end: dict[str, Any] = {"epoch": curve[-1]["epoch"], "curve": curve}
    if state in ("diverged", "failed"):
        end |= {"epoch": 2, "failure": "it broke", "state": state}
    if state == "died":
        search.on_trial_complete(trial_id, error=True)
        search.settle(number, "again")
        assert suggested(search, f"{trial_id} again") == config
        search.on_trial_complete(f"{trial_id} again", error=True)
        search.settle(number, "failed")
        state = "failed"
    else:
        search.on_trial_complete(trial_id, end)
    return TrialRecord(
        number=number,
        stage=stage,  # type: ignore[arg-type]
        attempt=1,
        params=params,
        seed=number,
        state=state,
        curve=curve,
        error="it broke" if state in ("diverged", "failed") else None,
    )


def run(search: OptunaSearcher, n: int, *, stage: int = 1, fates: Callable[[int], State] = fate) -> list[TrialRecord]:
    return [run_trial(search, f"id{k}", stage=stage, fates=fates) for k in range(n)]


def running(number: int, params: dict[str, Any]) -> TrialRecord:
    return TrialRecord(number=number, stage=1, attempt=1, params=params, seed=number, state="running")


def frozen(search: OptunaSearcher) -> list[tuple[Any, ...]]:
    """What Optuna has been told of each trial: all that a sampler can see, but times."""
    return [
        (t.number, t.params, t.distributions, t.state, t.values, t.intermediate_values) for t in search.study.trials
    ]


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("k", [1, 3, 5, 9, 13])
def test_proposals_depend_on_the_record_alone(stage: Literal[1, 2], k: int) -> None:
    whole = run(proposals(stage=stage), 16, stage=stage)
    again = run(proposals(whole[:k], stage=stage), 16 - k, stage=stage)
    assert [t.number for t in again] == list(range(k, 16))
    assert [t.params for t in again] == [t.params for t in whole[k:]]


def test_a_rebuilt_study_equals_the_one_that_was_told() -> None:
    search = proposals()
    trials = run(search, 14)
    assert {t.state for t in search.study.trials} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert frozen(proposals(trials)) == frozen(search)


def test_unfinished_trials_come_first_and_leave_the_later_proposals_as_they_were() -> None:
    whole = run(proposals(), 12)
    record = [*whole[:2], running(2, whole[2].params), whole[3], running(4, whole[4].params)]
    search = proposals(record)
    for number in (2, 4):
        config = suggested(search, f"again{number}")
        assert (config["number"], config["params"]) == (number, whole[number].params)
    assert suggested(search, "new")["number"] == 5
    again = run(proposals([*whole[:6], running(6, whole[6].params)]), 6)
    assert [t.params for t in again] == [t.params for t in whole[6:]]


def test_what_runs_at_the_same_time_differs() -> None:
    """Constant liar: trials that are proposed before any has ended do not repeat each other."""
    search = proposals(run(proposals(), 6))
    params = [suggested(search, f"id{k}")["params"] for k in range(4)]
    assert len({p["stage1.encoder_lr"] for p in params}) == 4


def test_first_trial_is_the_start_and_a_seed_and_a_stage_are_a_search() -> None:
    params = {
        (stage, seed): [t.params for t in run(proposals(stage=stage, seed=seed), 3, stage=stage)]  # type: ignore[arg-type]
        for stage in (1, 2)
        for seed in (42, 43)
    }
    assert all(first == start_of(SPACE) for first, *_ in params.values())
    assert params[1, 42] == [t.params for t in run(proposals(), 3)]
    assert len({str(rest) for _, *rest in params.values()}) == 4


def test_states_are_told_truthfully() -> None:
    search = proposals()
    complete, pruned, *_ = run(search, 6)
    told = search.study.trials
    scores = [{m["epoch"]: m["valid/pairwise_acc"] for m in trial.curve} for trial in (complete, pruned)]
    assert [(t.state, t.intermediate_values) for t in (*told[:2], *told[3:6])] == [
        (TrialState.COMPLETE, scores[0]),
        (TrialState.PRUNED, scores[1]),
        (TrialState.PRUNED, {}),
        (TrialState.FAIL, {}),
        (TrialState.FAIL, {}),
    ]
    assert (told[0].value, told[1].last_step) == (complete.curve[-1]["valid/pairwise_acc"], 2)
    assert [told[number].value for number in (3, 4, 5)] == [None] * 3


def test_direction_is_the_stages() -> None:
    assert proposals(stage=1).study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert proposals(stage=2).study.direction == optuna.study.StudyDirection.MINIMIZE


def test_an_epoch_without_an_objective_is_passed_over_and_a_trial_is_told_once() -> None:
    search = proposals()
    search.suggest("id")
    curve = [{"epoch": 1, "valid/pairwise_acc": 0.5}, {"epoch": 2, "valid/pairwise_acc": None}]
    search.on_trial_complete("id", {"epoch": 2, "curve": curve})
    search.on_trial_complete("id", error=True)
    assert search.study.trials[0].state == TrialState.PRUNED
    assert search.study.trials[0].intermediate_values == {1: 0.5}


def test_a_trial_whose_process_died_is_proposed_again_as_it_was_and_told_at_its_end() -> None:
    whole = run(proposals(), 6, fates=lambda number: "complete")
    search = proposals(whole[:4])
    first, other = suggested(search, "first"), suggested(search, "other")
    search.on_trial_complete("first", error=True)
    # What becomes of it is not known yet.
    assert search.study.trials[4].state == TrialState.RUNNING
    search.settle(4, "again")
    again = suggested(search, "again")
    assert again == first == {"number": 4, "params": whole[4].params}
    assert search.study.trials[4].state == TrialState.RUNNING
    assert suggested(search, "new")["number"] == 6
    for trial_id, config in (("again", again), ("other", other)):
        curve = curve_of(config["params"], "complete", 1)
        search.on_trial_complete(trial_id, {"epoch": EPOCHS, "curve": curve})
    assert [t.state for t in search.study.trials] == [TrialState.COMPLETE] * 6 + [TrialState.RUNNING]
    # One entry each, as if nothing had broken.
    rebuilt = [TrialRecord(number=5, stage=1, attempt=1, params=other["params"], seed=5, state="complete", curve=curve)]
    assert frozen(search)[:6] == frozen(proposals([*whole[:5], *rebuilt]))


def test_a_trial_that_died_once_too_often_has_failed_and_spends_the_budget() -> None:
    search = proposals(budget=2)
    search.suggest("id")
    search.on_trial_complete("id", error=True)
    search.settle(0, "failed")
    assert search.study.trials[0].state == TrialState.FAIL
    assert numbers_until_finished(search) == [1]


def test_the_search_is_finished_only_when_no_trial_can_come_back() -> None:
    search = proposals(budget=2)
    suggested(search, "a")
    params = suggested(search, "b")["params"]
    assert search.suggest("c") is None, "both run"
    search.on_trial_complete("b", {"epoch": EPOCHS, "curve": curve_of(params, "complete", 1)})
    assert search.suggest("c") is None, "the first one runs"
    search.on_trial_complete("a", error=True)
    assert search.suggest("c") is None, "whether it will run again is not known"
    search.settle(0, "again")
    again = suggested(search, "c")
    assert again["number"] == 0
    assert search.suggest("d") is None
    search.on_trial_complete("c", {"epoch": EPOCHS, "curve": curve_of(again["params"], "complete", 1)})
    assert search.suggest("d") == Searcher.FINISHED
    assert len(search.study.trials) == 2


def test_a_trial_waits_before_it_is_launched_again_and_keeps_its_place() -> None:
    """Two at a time: while one waits, the other place goes on with new trials."""
    now = [0.0]
    search = proposals(room=lambda: 2, clock=lambda: now[0])
    broken, other = suggested(search, "a"), suggested(search, "b")
    search.on_trial_complete("a", error=True)
    search.settle(0, "again", 30.0)
    assert search.suggest("c") is None, "one runs, one waits"
    search.on_trial_complete("b", {"epoch": EPOCHS, "curve": curve_of(other["params"], "complete", 1)})
    assert suggested(search, "c")["number"] == 2
    now[0] = 29.9
    assert search.suggest("d") is None
    now[0] = 30.0
    assert suggested(search, "d") == broken
    assert search.suggest("e") is None


def test_a_trial_that_is_left_comes_again_from_the_record_alone() -> None:
    search = proposals(budget=2)
    left, other = suggested(search, "a"), suggested(search, "b")
    search.on_trial_complete("a", error=True)
    search.settle(0, "left")
    search.on_trial_complete("b", {"epoch": EPOCHS, "curve": (curve := curve_of(other["params"], "complete", 1))})
    assert search.suggest("c") == Searcher.FINISHED
    assert search.study.trials[0].state == TrialState.RUNNING
    done = TrialRecord(number=1, stage=1, attempt=1, params=other["params"], seed=1, state="complete", curve=curve)
    again = proposals([running(0, left["params"]), done], budget=2)
    assert suggested(again, "a") == left
    assert again.suggest("b") is None


def test_fewer_trials_run_where_there_is_less_room() -> None:
    room = [2]
    search = proposals(room=lambda: room[0], clock=lambda: 0.0)
    suggested(search, "a"), suggested(search, "b")
    search.on_trial_complete("b", error=True)
    search.settle(1, "again")
    room[0] = 1
    assert search.suggest("c") is None, "the one place is taken"
    room[0] = 2
    assert suggested(search, "c")["number"] == 1


@pytest.mark.parametrize("recorded", [0, 3, 5, 8])
def test_a_budget_is_what_the_record_and_the_proposals_come_to(recorded: int) -> None:
    whole = run(proposals(), 8)
    search = proposals(whole[:recorded], budget=5)
    assert numbers_until_finished(search) == list(range(recorded, 5))


def test_unfinished_trials_beyond_the_budget_still_end() -> None:
    whole = run(proposals(), 4)
    search = proposals([*whole[:3], running(3, whole[3].params)], budget=2)
    assert numbers_until_finished(search) == [3]


def numbers_until_finished(search: OptunaSearcher) -> list[int]:
    numbers = []
    while isinstance(config := search.suggest(f"id{len(numbers)}"), dict):
        numbers.append(config["number"])
        ended = {"epoch": EPOCHS, "curve": curve_of(config["params"], "complete", 1)}
        search.on_trial_complete(f"id{len(numbers) - 1}", ended)
    assert config == Searcher.FINISHED
    return numbers


@pytest.mark.parametrize("recorded", [0, 1, 3])
def test_trials_that_are_given_come_in_their_order(recorded: int) -> None:
    """As the retrainings are: nothing is searched beside them, and a resumed search runs the rest."""
    starts = [{**start_of(SPACE), "model.fusion_dropout": 0.1 * k} for k in range(4)]
    whole = run(proposals(starts=starts, budget=4), 4)
    assert [t.params for t in whole] == starts
    rest = run(proposals(whole[:recorded], starts=starts, budget=4), 4 - recorded)
    assert [(t.number, t.params) for t in rest] == list(enumerate(starts))[recorded:]


@pytest.mark.parametrize("done", [0, 8])
def test_margins_that_contradict_each_other_are_never_proposed(done: int) -> None:
    """Neither among the random trials, nor once TPE's model draws."""
    space: dict[str, Dimension] = {
        "stage1.encoder_lr": Range(1e-6, 1e-3, True, 1e-4),
        "model.fusion_dropout": Range(0.0, 0.6, False, 0.1),
        "ranking.intra_margin": Range(0.05, 1, True, 0.1),
        "ranking.base_margin": Range(0.05, 1, True, 0.5),
    }

    def feasible(params: Mapping[str, Any]) -> bool:
        return not check_margins(build_config(params), 3.0)

    free = run(proposals(space=space), 40, fates=lambda number: "complete")
    assert not all(feasible(t.params) for t in free), "the space has nothing to forbid"
    trials = run(proposals(space=space, feasible=feasible), done, fates=lambda number: "complete")
    search = proposals(trials, space=space, feasible=feasible, n_startup_trials=8)
    for trial in run(search, 32, fates=lambda number: "complete"):
        assert trial.params["ranking.base_margin"] >= trial.params["ranking.intra_margin"]


def test_a_number_that_the_record_lacks_stays_spent() -> None:
    """What comes after is proposed under its own number, by its own sampler, and nothing runs twice."""
    whole = proposals(budget=7)
    trials = [run_trial(whole, str(number)) for number in range(5)]
    holed = [trial for trial in trials if trial.number != 2]
    holed[-1].state = "running"
    search = proposals(holed, budget=7)
    assert [trial.number for trial in search.study.get_trials() if trial.state != TrialState.WAITING] == [0, 1, 2, 3]
    again = [run_trial(search, str(index)) for index in range(3)]
    assert [trial.number for trial in again] == [4, 5, 6]
    assert again[0].params == trials[4].params
    assert search.suggest("over") == Searcher.FINISHED


@pytest.mark.parametrize("state", ["complete", "running"])
@pytest.mark.parametrize("change", [{"model.fusion_dropout": 7.0}, {"model.modalities": "smell"}, {"more": 1}])
def test_parameters_of_another_space_are_a_fault_of_the_record(state: Any, change: dict[str, Any]) -> None:
    trial = run_trial(proposals(), "0")
    trial.state, trial.params = state, {**trial.params, **change}
    with pytest.raises(DataError, match=r"trials/0000\.json"):
        proposals([trial])


def test_a_space_without_a_feasible_setting_is_a_configuration_error() -> None:
    search = proposals(feasible=lambda params: False)
    search.suggest("start")
    with pytest.raises(ConfigError, match="margin rule"):
        search.suggest("id")


@pytest.mark.parametrize(
    ("budget", "startup"), [(1, 4), (4, 4), (16, 4), (20, 5), (27, 6), (40, 10), (44, 10), (400, 10)]
)
def test_startup_trials_are_a_quarter_from_4_to_10(budget: int, startup: int) -> None:
    assert startup_trials(budget) == startup


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        *[(path, int) for path in ("pairs.pairs_per_group", "pairs.pairs_per_epoch", "stage2.top_layers")],
        ("stage1.group_weight", float),
    ],
)
def test_whole_number_settings_get_whole_numbers(path: str, kind: type) -> None:
    """Also those whose default is None; other numbers are not rounded."""
    space: dict[str, Dimension] = {**SPACE, path: Range(kind(2), kind(40), False, kind(12))}
    values = [t.params[path] for t in run(proposals(space=space), 12)]
    assert all(type(value) is kind for value in values)
    assert values[0] == 12
    assert len(set(values)) > 3
    assert all(2 <= value <= 40 for value in values)
    assert any(value != int(value) for value in values) == (kind is float)


def test_the_model_takes_over_after_the_startup_trials() -> None:
    """TPE looks where it was good; random trials do not. Numbers before the takeover are the same for both."""
    model = run(proposals(n_startup_trials=6, stage=2), 40, stage=2, fates=lambda number: "complete")
    random = run(proposals(n_startup_trials=1000, stage=2), 40, stage=2, fates=lambda number: "complete")
    assert [t.params for t in model[:6]] == [t.params for t in random[:6]]
    assert all(a.params != b.params for a, b in zip(model[6:], random[6:], strict=True))

    def mean(trials: list[TrialRecord]) -> float:
        return sum(t.curve[-1]["valid/mae"] for t in trials) / len(trials)

    assert mean(model[20:]) < 0.7 * mean(random[20:])


def test_a_stage_without_anything_to_search_repeats_its_start() -> None:
    search = proposals(space={})
    configs = [suggested(search, f"id{k}") for k in range(3)]
    assert configs == [{"number": k, "params": {}} for k in range(3)]


def test_a_single_choice_is_proposed_as_it_is() -> None:
    search = proposals(space={**SPACE, "model.modalities": Choice(("all",), "all")})
    assert {t.params["model.modalities"] for t in run(search, 7)} == {"all"}


def test_a_recorded_finalist_is_no_searched_setting() -> None:
    """Records of earlier releases have finalists that TPE chose."""
    recorded = run(proposals(stage=2), 6, stage=2)
    with_finalist = [dataclasses.replace(t, params={**t.params, "finalist": "7"}) for t in recorded]
    assert frozen(proposals(with_finalist, stage=2)) == frozen(proposals(recorded, stage=2))


def test_rays_class_has_what_the_searcher_uses() -> None:
    """Held against every release of Ray that the package admits; docs/architecture.md names the attributes."""
    search = OptunaSearch({"x": optuna.distributions.FloatDistribution(0, 1)}, metric="objective", mode="max")
    assert search.suggest("a")["x"] == search._ot_trials["a"].params["x"]
    assert [trial.number for trial in search._ot_study.trials] == [0]
    unknown = OptunaSearch({}, metric="objective", mode="max")
    assert unknown._ot_study is None
    unknown._setup_study("max")
    assert unknown._ot_study.direction == optuna.study.StudyDirection.MAXIMIZE
