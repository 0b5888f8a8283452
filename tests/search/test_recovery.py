"""Searches whose trials die, hang or fail: what goes on, what is given up, and which weights stay."""

from __future__ import annotations

import hashlib
import os
import platform
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from processes import gone
from repetition import essence
from safetensors.torch import save_file
from waiting import wait_for

from grcf_ray.errors import ClusterError, NoWinnerError
from grcf_ray.search import callback
from grcf_ray.search.callback import RecordCallback
from grcf_ray.search.events import EpochFinished, Event, StageEnded, TrialBroke, TrialEnded, TrialStarted
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.searcher import OptunaSearcher
from grcf_ray.search.stages import Search
from grcf_ray.search.trial import TrialTrainable
from grcf_ray.storage import storage_path
from grcf_ray.train.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from tests.conftest import Recorded


def same_weights(first: tuple[RunRecord, str], second: tuple[RunRecord, str]) -> bool:
    tensors, other = (read_checkpoint(record.at(path)).tensors for record, path in (first, second))
    return tensors.keys() == other.keys() and all(torch.equal(tensors[name], other[name]) for name in tensors)


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """The processes that gave results of a trial, by its number, in their order."""
    seen: dict[int, list[int]] = {}
    on_result = RecordCallback.on_trial_result

    def spy(self: Any, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        known = seen.setdefault(trial.config["number"], [])
        if result["pid"] not in known:
            known.append(result["pid"])
        on_result(self, iteration, trials, trial, result, **info)

    monkeypatch.setattr(RecordCallback, "on_trial_result", spy)
    return seen


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[OptunaSearcher, dict[str, Any]]]:
    """The proposals of each stage that runs, and what they were built from."""
    built: list[tuple[OptunaSearcher, dict[str, Any]]] = []

    begin = OptunaSearcher.__init__

    def note(self: OptunaSearcher, space: Any, **more: Any) -> None:
        begin(self, space, **more)
        built.append((self, {"space": space, **more}))

    monkeypatch.setattr(OptunaSearcher, "__init__", note)
    return built


def told(search: OptunaSearcher) -> list[tuple[Any, ...]]:
    """What Optuna has been told of each trial."""
    return [(t.number, t.params, t.state, t.values, t.intermediate_values) for t in search.study.trials]


def test_trials_whose_processes_die_or_hang_resume_as_if_nothing_had_happened(
    recorded: Recorded,
    make_search: Callable[..., Search],
    pids: dict[int, list[int]],
    studies: list[tuple[OptunaSearcher, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A trial of Stage 1 loses two processes, the next trial's hangs before it starts, the winner's after an epoch.

    The processes that hang are stopped, so that they neither answer nor end by themselves. The callback's clock then
    skips more than an epoch may take.
    """
    undisturbed = RunRecord(storage_path(recorded.folder))
    winner = undisturbed.ranked(2)[0]
    first = next(trial for trial in undisturbed.trials(1) if trial.epoch == 3)
    second = undisturbed.trial(1, first.number + 1)
    assert winner.epoch > 1
    deaths, hang = [(1, first.number, 1), (1, first.number, 2)], (2, winner.number, 1)
    hung: list[int] = []
    skipped = [0.0, 0.0]
    """Minutes that the clock has skipped, and that it has yet to skip, some at each look."""

    def monotonic() -> float:
        step = min(5.0, skipped[1])
        skipped[:] = skipped[0] + step, skipped[1] - step
        return time.monotonic() + 60 * skipped[0]

    monkeypatch.setattr(callback, "time", SimpleNamespace(monotonic=monotonic))
    broke: list[tuple[int, int, int]] = []
    starts: list[tuple[int, int]] = []

    def disturb(event: Event) -> None:
        trial = getattr(event, "trial", None)
        if trial is None:
            return
        at = (trial.stage, trial.number, trial.epoch)
        if isinstance(event, EpochFinished) and at in deaths:
            os.kill(pids[trial.number][-1], signal.SIGKILL)
        elif (isinstance(event, EpochFinished) and at == hang) or (
            isinstance(event, TrialEnded) and at[:2] == (1, first.number)
        ):
            hung.append(pids[trial.number][-1])
            os.kill(hung[-1], signal.SIGSTOP)
            skipped[1] = 40
        elif isinstance(event, TrialBroke):
            broke.append(at)
        elif isinstance(event, TrialStarted) and at[:2] == (1, first.number):
            starts.append((trial.attempt, trial.epoch))

    search = make_search({"search.hang_minutes": 30}, disturb)
    try:
        search.run()
        wait_for(lambda: all(map(gone, hung)), "the end of the processes")
    finally:
        for pid in hung:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    record = search.record
    for stage in (1, 2):
        assert essence(record.trials(stage)) == essence(undisturbed.trials(stage))
    assert record.read_run()["finalists"] == undisturbed.read_run()["finalists"]
    assert broke == [*deaths, (1, second.number, 0), hang]

    died = record.trial(1, first.number)
    assert died.attempt == 3
    assert [(failure["attempt"], failure["cause"]) for failure in died.failures] == [
        (1, "process died"),
        (2, "process died"),
    ]
    assert all("died" in failure["error"] and "\n" not in failure["error"] for failure in died.failures)
    assert all(failure["time"] for failure in died.failures)
    assert (died.error, died.cause, died.notes) == (None, None, [])
    assert starts == [(1, 0), (2, 1), (3, 2)]
    assert len(set(pids[first.number])) >= 3
    # Its first process never came to its start.
    waited = record.trial(1, second.number)
    assert (waited.attempt, [failure["cause"] for failure in waited.failures]) == (2, ["hung"])

    best = record.ranked(2)[0]
    assert best.attempt == 2
    assert best.checkpoint is not None
    assert best.checkpoint.startswith(f"stage2/trials/{winner.number:04d}/attempt-2/best-")
    (failure,) = best.failures
    assert (failure["attempt"], failure["cause"]) == (1, "hung")
    assert failure["error"] == "no epoch ended within 30 minutes"
    assert pids[winner.number][-1] != hung[-1]
    assert winner.checkpoint is not None
    assert same_weights((record, best.checkpoint), (undisturbed, winner.checkpoint))
    for number in record.read_run()["finalists"]:
        path = f"finalists/{int(number):04d}/model.safetensors"
        assert same_weights((record, path), (undisturbed, path))

    # Optuna was told of each trial once, and of the same as a study that is built from the record.
    for (live, built), stage in zip(list(studies), (1, 2), strict=True):
        assert told(live) == told(OptunaSearcher(**{**built, "trials": record.trials(stage)}))
        assert len(live.study.trials) == built["budget"]


REFUSED = '{"format": 99}'


def refuse(record: RunRecord, trial: TrialRecord) -> None:
    """Let the trial fail by itself: what it should go on from is of a newer release."""
    folder = record.attempt_folder(trial).local
    assert folder is not None
    digest = hashlib.sha256(REFUSED.encode()).hexdigest()
    save_file({}, folder / "whole-00001.safetensors", {"state": REFUSED, "sha256": digest})


def test_failures_in_a_row_end_the_search_and_the_next_start_has_another_chance(
    make_search: Callable[..., Search],
) -> None:
    """Good trials in between break the row; they are kept."""
    failing = {1, 2, 4, 5, 6}
    started: list[int] = []

    def fail(event: Event) -> None:
        if isinstance(event, TrialStarted):
            started.append(event.trial.number)
            if event.trial.number in failing:
                refuse(search.record, event.trial)

    settings = {
        "stage2.epochs": 0,
        "stage1.epochs": 1,
        "search.stage1_trials": 10,
        "search.failures_in_a_row": 3,
    }
    search = make_search(settings, fail)
    says = r"stage 1: 3 trials failed in a row, .*; 2 trials succeeded .* 5 x refused"
    with pytest.raises(NoWinnerError, match=says) as caught:
        search.run()
    assert caught.value.exit_code == 4
    assert started == list(range(7))
    trials = search.record.trials(1)
    assert [trial.state for trial in trials] == [
        "failed" if trial.number in failing else "complete" for trial in trials
    ]
    assert all((trial.cause, trial.failures) == ("refused", []) for trial in trials if trial.number in failing)
    good = [trial for trial in trials if trial.state == "complete"]
    assert all(trial.checkpoint and search.record.at(trial.checkpoint).exists() for trial in good)

    # Two more in a row are not three, whatever came before this start.
    failing, started = {7, 8}, []
    search = make_search(settings, fail)
    assert search.run().number in (0, 3, 9)
    assert started == [7, 8, 9]
    assert essence([trial for trial in search.record.trials(1) if trial.number in (0, 3)]) == essence(good)


def test_trials_that_fail_for_causes_outside_of_them_are_left_to_the_next_start(
    make_search: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three at first, then all that are left, which ends the search, then none."""
    monkeypatch.setattr(callback, "OUTSIDE_RETRIES", 1)
    settings = {"stage2.epochs": 0, "stage1.epochs": 1, "search.stage1_trials": 3, "search.failures_in_a_row": 1}

    def failing(*numbers: int) -> type[TrialTrainable]:
        class Failing(TrialTrainable):  # of this function, so that it travels whole: a worker cannot import the tests
            def step(self) -> dict[str, Any]:
                if self.config["number"] in numbers:
                    raise OSError("AWS Error NETWORK_CONNECTION")
                return super().step()

        return Failing

    ended: list[StageEnded] = []

    def note(event: Event) -> None:
        if isinstance(event, StageEnded):
            ended.append(event)

    monkeypatch.setattr(Search, "trainable", failing(1))
    search = make_search(settings, note)
    assert search.run().number in (0, 2)
    first, left, last = search.record.trials(1)
    assert (left.state, left.error, left.attempt) == ("running", None, 2)
    assert {(failure["cause"], failure["gpu"]) for failure in left.failures} == {("storage", None)}
    assert all(failure["node"] and platform.node() in failure["host"] for failure in left.failures)
    assert ended == [StageEnded(1, cut=0, left=1)]
    assert (search.record.info().left, search.complete) == (["stage1/1"], False)

    monkeypatch.setattr(Search, "trainable", failing(1, 3, 4))
    search = make_search({**settings, "search.stage1_trials": 5})
    with pytest.raises(ClusterError, match=r"causes outside of them.*stage1/1: storage: .*stage1/3: storage: "):
        search.run()
    assert [trial.state for trial in search.record.trials(1)] == ["complete", "running", "complete", "running"]

    monkeypatch.setattr(Search, "trainable", TrialTrainable)
    search = make_search({**settings, "search.stage1_trials": 5}, note)
    search.run()
    trials = search.record.trials(1)
    assert [(trial.number, trial.state) for trial in trials] == [(number, "complete") for number in range(5)]
    assert essence([trials[0], trials[2]]) == essence([first, last])
    assert (search.record.info().left, search.complete) == ([], True)
    assert ended[-1] == StageEnded(1)
