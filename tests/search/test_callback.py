"""RecordCallback without Ray: what it records of launches, epochs, ends and deaths, and which weights it deletes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from grcf_ray.cluster import PLACEMENT_S

import pytest

from grcf_ray.retry import pause
from grcf_ray.search import background, callback
from grcf_ray.search.callback import FIRST_EPOCH_S, OUTSIDE_RETRIES, RETRIES
from grcf_ray.search.events import EpochFinished, TrialBroke, TrialEnded, TrialLeft, TrialStarted
from grcf_ray.search.nodes import Node
from grcf_ray.search.record import RunRecord, TrialRecord
from tests.search.callbacks import DEATH, OWN_ERROR, Process, answers, keep, nodes, record, result, started, tunes

__all__ = ["answers", "nodes", "record"]

BEST = "best-00001.safetensors"
WHOLE = "whole-00001.safetensors"


def files(record: RunRecord, trial: TrialRecord) -> dict[str, str]:
    folder = record.trial_folder(trial).local
    assert folder is not None
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.safetensors"))}


def write(record: RunRecord, trial: TrialRecord, **contents: str) -> None:
    for name, content in contents.items():
        (record.attempt_folder(trial) / f"{name.replace('_', '-')}.safetensors").write_text(content)


def test_a_launch_is_on_record_before_its_process_starts(record: RunRecord) -> None:
    kept, events, _ = keep(record)
    config = kept.launch(3, {"stage1.head_lr": 1e-3})
    (trial,) = record.trials(1)
    assert (trial.number, trial.attempt, trial.state, trial.seed) == (3, 1, "running", 103)
    assert trial.params == {"stage1.head_lr": 1e-3}
    assert events == [TrialStarted(trial)]
    assert config["number"] == 3
    assert config["job"]["folder"] == record.attempt_folder(trial).uri
    assert (config["job"]["seed"], config["job"]["stage"]) == (103, 1)


def test_a_new_attempt_is_told_of_the_earlier_ones(record: RunRecord) -> None:
    """And writes to a folder of its own: a process of an earlier one may still live."""
    kept, _, _ = keep(record)
    jobs = [kept.launch(0, {})["job"] for _ in range(3)]
    assert jobs[2]["earlier"] == [jobs[1]["folder"], jobs[0]["folder"]]
    assert len({job["folder"] for job in jobs}) == 3
    (trial,) = record.trials(1)
    assert (trial.attempt, trial.seed) == (3, 100)


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses without jitter: the longest."""
    monkeypatch.setattr(callback, "pause", lambda failures, **bounds: pause(failures, **bounds, draw=lambda: 1.0))


def test_a_trials_own_failures_count_over_all_starts(
    record: RunRecord, tmp_path: Path, nodes: list[Node], draw: None
) -> None:
    """Of a trial that failed twice under one driver, the next driver sees one more failure, and no other."""
    for start in range(RETRIES + 1):
        kept, events, settled = keep(record, *record.trials(1))
        kept.launch(0, {})
        kept.on_trial_error(0, [], tunes(0, OWN_ERROR, tmp_path))
        last = start == RETRIES
        assert settled == [(0, "failed", 0.0) if last else (0, "again", 10.0)]
        assert isinstance(events[-1], TrialEnded if last else TrialBroke)
        assert kept.failing == int(last)
    (trial,) = record.trials(1)
    assert (trial.state, trial.cause, trial.error) == ("failed", "error", "ValueError: odd")
    assert [failure["attempt"] for failure in trial.failures] == [1, 2, 3]


def test_failures_outside_a_trial_leave_it_to_the_next_start(
    record: RunRecord, tmp_path: Path, nodes: list[Node], draw: None
) -> None:
    """They use up none of its attempts; pauses double up to the longest. An epoch starts the count again."""
    kept, events, settled = keep(record)
    kept.launch(0, {})
    kept.on_trial_error(0, [], tunes(0, DEATH, tmp_path))
    kept.launch(0, {})
    kept.on_trial_result(0, [], tunes(0), result(0.5))
    for _ in range(OUTSIDE_RETRIES + 1):
        kept.launch(0, {})
        kept.on_trial_error(0, [], tunes(0, DEATH, tmp_path))
    pauses = [10.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0]
    assert settled == [*((0, "again", seconds) for seconds in pauses), (0, "left", 0.0)]
    (trial,) = record.trials(1)
    assert isinstance(events[-1], TrialLeft)
    assert (trial.state, trial.cause, trial.error, kept.failing) == ("running", None, None, 0)
    assert record.info().left == ["stage1/0"]
    assert {failure["cause"] for failure in trial.failures} == {"process died"}
    assert len(trial.failures) == OUTSIDE_RETRIES + 2

    # The next driver starts to count again, and the trial has all of its own attempts.
    kept, events, settled = keep(record, trial)
    for error in (DEATH, OWN_ERROR, OWN_ERROR):
        kept.launch(0, {})
        kept.on_trial_error(0, [], tunes(0, error, tmp_path))
    assert [fate for _, fate, _ in settled] == ["again"] * 3
    # An end without words is the death of the process.
    kept.launch(1, {})
    kept.on_trial_error(0, [], tunes(1))
    (failure,) = record.trial(1, 1).failures
    assert (failure["cause"], failure["error"]) == ("process died", "the trial's process died")


def test_trials_that_are_left_end_the_search_unless_another_may_succeed(
    record: RunRecord, tmp_path: Path, nodes: list[Node]
) -> None:
    kept, _, settled = keep(record)

    def leave(number: int) -> None:
        for _ in range(OUTSIDE_RETRIES + 1):
            kept.launch(number, {})
            kept.on_trial_start(0, [], started(number))
            kept.on_trial_error(0, [], tunes(number, DEATH, tmp_path))
        assert settled[-1] == (number, "left", 0.0)

    leave(0)
    assert not kept.stuck
    kept.launch(5, {})
    kept.on_trial_start(0, [], started(5))
    leave(1)
    assert not kept.stuck, "trial 5 has not failed yet"
    kept.on_trial_error(0, [], tunes(5, DEATH, tmp_path))
    assert kept.stuck
    kept.on_trial_result(0, [], tunes(5), result(0.5))
    assert not kept.stuck


def test_an_epoch_is_recorded(record: RunRecord) -> None:
    kept, events, _ = keep(record)
    kept.launch(0, {})
    kept.on_trial_result(0, [], tunes(0), result(0.5, 0.6, notes=["odd"]))
    kept.on_trial_result(0, [], tunes(0), result(0.5, 0.6, 0.7, notes=["odd", "odder"]))
    (trial,) = record.trials(1)
    assert (trial.epoch, trial.seconds, trial.utterance_passes, trial.state) == (3, 6.0, 9.0, "running")
    assert trial.notes == ["odd", "odder"]
    assert (trial.checkpoint, trial.checkpoint_sha256) == (f"stage1/trials/0000/attempt-1/{BEST}", "ab" * 32)
    assert [type(event) for event in events] == [TrialStarted, EpochFinished, EpochFinished]


def test_epochs_are_recorded_in_the_background_and_ends_at_once(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listeners are told of each epoch at once. What waits of a trial does not replace its end."""
    monkeypatch.setattr(background, "PAUSE_S", 3600.0)
    kept, events, _ = keep(record)
    with record.background:
        for number in range(2):
            kept.launch(number, {})
            kept.on_trial_result(0, [], tunes(number), result(0.5))
        assert [(trial.epoch, trial.state) for trial in record.trials(1)] == [(0, "running")] * 2
        kept.on_trial_result(0, [], tunes(0), result(0.5, 0.6, done=True))
        assert [(trial.epoch, trial.state) for trial in record.trials(1)] == [(2, "pruned"), (0, "running")]
    assert [trial.epoch for trial in record.trials(1)] == [2, 1]
    assert [type(event) for event in events] == [TrialStarted, EpochFinished] * 2 + [TrialEnded]


def test_what_a_dead_driver_did_not_delete_is_deleted(record: RunRecord) -> None:
    """It had recorded the end of a trial that another outranks; that of a finalist is a copy."""
    checkpoints = [*(f"stage1/trials/000{n}/attempt-1/{BEST}" for n in range(2)), "finalists/0002/model.safetensors"]
    for number, (value, checkpoint) in enumerate(zip((0.5, 0.6, 0.4), checkpoints, strict=True)):
        trial = TrialRecord(number=number, stage=1, attempt=1, params={}, seed=0, state="complete")
        trial.curve, trial.checkpoint = result(value)["curve"], checkpoint
        record.write_trial(trial)
        write(record, trial, best_00001="b")
    keep(record, *record.trials(1))
    assert [trial.checkpoint for trial in record.trials(1)] == [None, *checkpoints[1:]]
    assert [len(files(record, trial)) for trial in record.trials(1)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("last", "state", "cause"),
    [
        (result(0.5, 0.6, 0.7, done=True), "complete", None),
        (result(0.5, 0.6, done=True), "pruned", None),
        (result(0.5, done=True, failure="NaN", state="diverged", error="DivergedError"), "diverged", "not finite"),
        (result(done=True, failure="why", state="failed", error="DamagedError"), "failed", "damaged file"),
        (result(done=True, failure="why", state="failed", error="ClusterError"), "failed", "refused"),
    ],
)
def test_ends(record: RunRecord, last: dict[str, Any], state: str, cause: str | None) -> None:
    kept, events, settled = keep(record)
    kept.launch(0, {})
    kept.on_trial_result(0, [], tunes(0), last)
    (trial,) = record.trials(1)
    assert (trial.state, trial.cause, trial.error) == (state, cause, last.get("failure"))
    assert trial.ended
    assert trial.failures == []
    assert isinstance(events[-1], TrialEnded)
    assert kept.failing == int(cause is not None)
    assert settled == []


def test_only_the_best_weights_of_those_that_may_be_chosen_stay(record: RunRecord) -> None:
    """Two may be: the third best loses what it has, the retried one its older attempts, the running one nothing."""
    kept, _, _ = keep(record, choices=2)
    values = {0: 0.5, 1: 0.6, 2: 0.4, 3: 0.7}
    kept.launch(9, {})
    write(record, record.trial(1, 9), whole_00001="9", best_00001="9")
    kept.on_trial_result(0, [], tunes(9), result(0.99))
    for number, value in values.items():
        kept.launch(number, {})
        write(record, record.trial(1, number), whole_00001="w", best_00001="b")
        if number == 1:
            kept.launch(number, {})
            write(record, record.trial(1, number), whole_00001="w", best_00001="b")
        kept.on_trial_result(0, [], tunes(number), result(0.1, 0.1, value, done=True))
    trials = {trial.number: trial for trial in record.trials(1)}
    assert {number: list(files(record, trial)) for number, trial in trials.items()} == {
        0: [],
        1: [f"attempt-2/{BEST}"],
        2: [],
        3: [f"attempt-1/{BEST}"],
        9: [f"attempt-1/{name}" for name in (BEST, WHOLE)],
    }
    assert {number for number, trial in trials.items() if trial.checkpoint} == {1, 3, 9}
    assert all((trial.checkpoint is None) == (trial.checkpoint_sha256 is None) for trial in trials.values())
    assert not record.trial_folder(trials[0]).exists()


def test_the_last_weights_stay_where_stage_2_starts_from_them(record: RunRecord) -> None:
    kept, _, _ = keep(record)
    kept.launch(0, {})
    write(record, record.trial(1, 0), whole_00001="w", best_00001="b", last="l")
    kept.on_trial_result(0, [], tunes(0), result(0.1, 0.2, 0.3, done=True))
    assert list(files(record, record.trial(1, 0))) == [f"attempt-1/{BEST}", "attempt-1/last.safetensors"]


@pytest.mark.parametrize(("value", "kept"), [(0.4, False), (0.6, True)])
def test_a_pruned_trial_saves_its_weights_if_it_may_be_chosen(record: RunRecord, value: float, kept: bool) -> None:
    """Before its end is on record, because they are written in the background."""
    keeper, _, _ = keep(record)
    keeper.launch(0, {})
    keeper.on_trial_result(0, [], tunes(0), result(0.1, 0.1, 0.5, done=True))
    keeper.launch(1, {})
    pruned = tunes(1)
    keeper.on_trial_result(0, [], pruned, result(value, done=True))
    assert pruned.temporary_state.ray_actor.asked == [kept]
    trial = record.trial(1, 1)
    assert trial.state == "pruned"
    expected = ("stage1/trials/0001/attempt-1/best-00007.safetensors", "cd" * 32) if kept else (None, None)
    assert (trial.checkpoint, trial.checkpoint_sha256) == expected


def test_what_a_pruned_trial_wrote_late_is_deleted(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process ends its last upload after the driver has deleted its files."""
    keeper, _, _ = keep(record)
    for number, value in ((0, 0.5), (1, 0.4)):
        keeper.launch(number, {})
        keeper.on_trial_result(0, [], tunes(number), result(value, done=True))
    late = record.trial_folder(record.trial(1, 1)) / "attempt-1" / "best-00001.safetensors"
    late.write_text("")
    answers: list[Any] = []
    monkeypatch.setattr(callback.ray, "wait", lambda waiting, **_: (answers, []))
    keeper.clear()
    assert late.exists()
    answers += [answer for answer, _ in keeper._ending]
    keeper.clear()
    assert not record.trial_folder(record.trial(1, 1)).exists()


def test_a_process_that_dies_before_it_saves_the_weights_of_a_pruned_trial(record: RunRecord) -> None:
    keeper, _, _ = keep(record)
    keeper.launch(0, {})
    pruned = tunes(0)
    pruned.temporary_state.ray_actor = Process(dies=True)
    keeper.on_trial_result(0, [], pruned, result(0.6, done=True))
    trial = record.trial(1, 0)
    assert (trial.state, trial.checkpoint, trial.checkpoint_sha256) == ("pruned", None, None)
    assert "died before the weights were saved" in trial.notes[0]


def test_finalists_on_record_keep_their_weights(record: RunRecord) -> None:
    """Those of an extended search: others outrank them now, and Stage 2 still starts from them."""
    kept, _, _ = keep(record)
    kept.launch(0, {})
    kept.on_trial_result(0, [], tunes(0), result(0.1, 0.1, 0.1, done=True))
    trial = record.trial(1, 0)
    trial.checkpoint = "finalists/0000/model.safetensors"
    record.write_trial(trial)
    kept, _, _ = keep(record, trial)
    kept.launch(1, {})
    kept.on_trial_result(0, [], tunes(1), result(0.9, 0.9, 0.9, done=True))
    assert record.trial(1, 0).checkpoint == "finalists/0000/model.safetensors"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of the callback."""
    now = [0.0]
    monkeypatch.setattr(callback, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The processes that the callback killed."""
    killed: list[str] = []
    monkeypatch.setattr(callback.ray, "kill", killed.append)
    return killed


class Silent(str):
    """A process that has not answered where it runs."""

    __slots__ = ()
    __ray_call__ = SimpleNamespace(remote=lambda ask: None)


def test_silence_before_the_start_counts_where_there_is_a_process(
    record: RunRecord, now: list[float], killed: list[str]
) -> None:
    """One that was another trial's, and has not taken this one yet."""
    kept, _, _ = keep(record, hang_minutes=1)
    kept.launch(0, {})
    trial = tunes(0)
    trial.temporary_state, trial.status = SimpleNamespace(ray_actor="a process"), "PENDING"
    for seconds, dead in ((1000.0, 0), (59.0, 0), (2.0, 1)):
        now[0] += seconds
        kept.on_step_end(0, [trial])
        assert len(killed) == dead


def test_hang_limit_follows_the_epochs_of_the_stage(record: RunRecord, now: list[float], killed: list[str]) -> None:
    """A process that replaces another has the time to train its epochs again, and several workers to find a place."""
    for workers, place in ((1, 0.0), (2, PLACEMENT_S)):
        kept, _, _ = keep(record, workers=workers)
        for number, seconds in ((0, 60.0), (1, 90.0), (2, 1000.0)):
            kept.launch(number, {})
            assert kept._hang_limit(kept._trials[number]) == (
                FIRST_EPOCH_S if number == 0 else (600.0 if number == 1 else 750.0) + place
            )
            epoch = result(0.5)
            epoch["curve"][0]["seconds"] = seconds
            kept.on_trial_result(0, [], tunes(number), epoch)
        for number in range(3):
            assert kept._hang_limit(kept._trials[number]) == 900.0
        kept.launch(1, {})
        assert kept._hang_limit(kept._trials[1]) == 900.0 + 90.0 + place
    # The next driver reads the epochs from the record.
    kept, _, _ = keep(record, *record.trials(1))
    kept.launch(0, {})
    trial = tunes(0)
    kept.on_step_end(0, [trial])
    for seconds, dead in ((989.0, 0), (2.0, 1)):
        now[0] += seconds
        kept.on_step_end(0, [trial])
        assert len(killed) == dead
    kept.on_trial_error(0, [trial], tunes(0))
    failure = record.trial(1, 0).failures[-1]
    assert (failure["cause"], failure["error"]) == ("hung", "no epoch ended within 16 minutes")


def test_silence_is_measured_from_the_start_of_the_process_and_of_each_epoch(
    record: RunRecord, now: list[float], killed: list[str]
) -> None:
    """Waiting for a place in the cluster is no silence, and a process is killed once."""
    kept, _, _ = keep(record, hang_minutes=1)
    kept.launch(0, {})
    trial = tunes(0)
    trial.temporary_state = SimpleNamespace(ray_actor=None)
    trial.status = "PENDING"
    kept.on_step_end(0, [trial])
    now[0] = 1000.0
    kept.on_step_end(0, [trial])
    trial.temporary_state.ray_actor = Silent("its process")
    kept.on_trial_start(0, [trial], trial)
    trial.status = "RUNNING"
    for step in (59.0, 59.0, 2.0):
        kept.on_step_end(0, [trial])
        assert killed == []
        if step == 59.0:
            now[0] += step
            kept.on_trial_result(0, [trial], trial, result(0.5))
    now[0] += 61.0
    kept.on_step_end(0, [trial])
    kept.on_step_end(0, [trial])
    assert killed == ["its process"]
    kept.on_trial_error(0, [trial], tunes(0))
    assert record.trial(1, 0).failures[0]["cause"] == "hung"
    # The next process has its own time.
    kept.launch(0, {})
    again = tunes(0)
    again.temporary_state = SimpleNamespace(ray_actor=Silent("another process"))
    kept.on_trial_start(0, [again], again)
    for seconds, dead in ((59.0, 1), (2.0, 2)):
        now[0] += seconds
        kept.on_step_end(0, [again])
        assert killed == ["its process", "another process"][:dead]
