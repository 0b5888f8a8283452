"""How a search is asked to end: signals and time budgets."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from grcf_ray.errors import ConfigError, NoWinnerError
from grcf_ray.files import scratch_folder
from grcf_ray.search import stopping
from grcf_ray.search.stopping import Stop, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from grcf_ray.search.stages import Search


class Left(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the budget is measured by, and by nobody else."""
    now = [1000.0]
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Codes that the process would have ended with at once."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Left

    monkeypatch.setattr(os, "_exit", leave)
    return codes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("1h1m1s", 3661), (" 0.5h ", 1800), ("0m", 0)],
        *[("3min", 180), ("2 h", 7200), ("90 S", 90), ("1 hour 30 minutes", 5400), ("2hrs5mins", 7500), ("1sec", 1)],
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "1d", "30m1h", "2 x", "2hm", "1 30m", "1.h", "nan", "infh"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--time-budget .*: should be a time such as 2h, 90m or 1h30m"):
        parse_duration(text)


def test_the_budget_is_counted_from_the_start(clock: list[float]) -> None:
    stop = Stop(time_budget=100)
    assert not stop.time_is_up(0.5)
    clock[0] += 49.9
    assert not stop.time_is_up(0.5)
    clock[0] += 0.2
    assert stop.time_is_up(0.5)
    assert not stop.time_is_up(0.85)
    assert not stop.requested


def test_ctrl_c_is_a_request_while_trials_run(capsys: pytest.CaptureFixture[str], exits: list[int]) -> None:
    said: list[str] = []
    stop = Stop(last_words=said.append)
    with stop.on_signals():
        with stop.deferred():
            signal.raise_signal(signal.SIGINT)
        assert stop.requested
        assert capsys.readouterr().err.startswith("Stopping the running trials; ")
        assert (exits, said) == ([], [])
        for again in (stop.deferred(), contextlib.nullcontext()):
            with again, pytest.raises(Left):
                signal.raise_signal(signal.SIGINT)
    assert (exits, said) == ([130, 130], ["Stopped", "Stopped"])


@pytest.mark.parametrize("after_trials", [False, True])
def test_ctrl_c_interrupts_what_is_no_trial(after_trials: bool, capsys: pytest.CaptureFixture[str]) -> None:
    stop = Stop()
    with stop.on_signals():
        if after_trials:
            with stop.deferred():
                pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.requested
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("deferred", [False, True])
def test_sigterm_leaves_at_once_without_temporary_files(deferred: bool, exits: list[int]) -> None:
    """Even if the last words fail."""
    said: list[str] = []

    def fail(how: str) -> None:
        said.append(how)
        raise OSError("no space")

    stop = Stop(last_words=fail)
    with scratch_folder("grcf-test-") as folder, stop.on_signals():
        with stop.deferred() if deferred else contextlib.nullcontext(), pytest.raises(Left):
            signal.raise_signal(signal.SIGTERM)
        assert not folder.exists()
    assert (exits, said) == ([130], ["Terminated"])
    assert not stop.requested


def test_handlers_are_as_before_afterwards() -> None:
    def fail() -> None:
        with Stop().on_signals():
            assert signal.getsignal(signal.SIGTERM) not in before
            raise ValueError("odd")

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ValueError, match="odd"):
        fail()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_another_thread_takes_no_signals() -> None:
    seen: list[Any] = []

    def run() -> None:
        with Stop().on_signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_stage_whose_time_is_up_starts_no_trial(make_search: Callable[..., Search], clock: list[float]) -> None:
    """No result in time is no winner, and no failure of trials."""
    stop = Stop(time_budget=10)
    clock[0] += 10
    search = make_search(None, stop=stop)
    with pytest.raises(NoWinnerError):
        search.run()
    assert search.record.trials(1) == []
