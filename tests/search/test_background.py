"""What is written in the background: when, in which order, and what becomes of errors."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from grcf_ray.search import background
from grcf_ray.search.background import BackgroundWriter
from grcf_ray.search.record import Ranking, RunRecord, TrialRecord, rank
from grcf_ray.storage import LocalPath, storage_path

PATIENCE_S = 30


class Work:
    """Writes that note their value, or wait until they may end."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.begun, self.may_end = threading.Event(), threading.Event()

    def note(self, value: object) -> None:
        self.done.append(value)

    def wait(self) -> None:
        self.begun.set()
        assert self.may_end.wait(PATIENCE_S)
        self.done.append("waited")


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work()
    yield work
    work.may_end.set()


@pytest.fixture(autouse=True)
def _seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is written only when a test asks for it."""
    monkeypatch.setattr(background, "PAUSE_S", 3600.0)


def begin(writer: BackgroundWriter, work: Work) -> threading.Thread:
    """Have the writer begin a write under the key `slow`."""
    writer.later("slow", work.wait)
    flushing = threading.Thread(target=writer.flush)
    flushing.start()
    assert work.begun.wait(PATIENCE_S)
    return flushing


def test_of_each_key_the_last_write_takes_place(work: Work) -> None:
    with BackgroundWriter() as writer:
        for value in range(3):
            writer.later("a", lambda value=value: work.note(("a", value)))
        writer.later("b", lambda: work.note("b"))
        assert work.done == []
        writer.flush()
        assert work.done == [("a", 2), "b"]
        writer.later("a", lambda: work.note(("a", 3)))
    assert work.done[2:] == [("a", 3)]


def test_what_waits_is_written_after_the_pause(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PAUSE_S", 0.01)
    with BackgroundWriter() as writer:
        writer.later("slow", work.wait)
        assert work.begun.wait(PATIENCE_S)
        work.may_end.set()
    assert work.done == ["waited"]


def test_without_its_context_it_writes_at_once(work: Work) -> None:
    writer = BackgroundWriter()
    for _ in range(2):
        writer.later("a", lambda: work.note("a"))
        assert work.done.pop() == "a"
        with writer:
            writer.settle("a")


def test_a_caller_that_writes_itself_is_the_last(work: Work) -> None:
    """A write of the same key that waits is dropped; one that has begun ends first."""
    with BackgroundWriter() as writer:
        flushing = begin(writer, work)
        writer.later("slow", lambda: work.note("older"))
        threading.Timer(0.1, work.may_end.set).start()
        writer.settle("slow")
        work.note("newest")
        flushing.join()
    assert work.done == ["waited", "newest"]


def test_a_slow_write_holds_up_no_other_key(work: Work) -> None:
    with BackgroundWriter(threads=2) as writer:
        flushing = begin(writer, work)
        writer.settle("another")
        writer.later("another", lambda: work.note("another"))
        writer.flush(0.1)
        assert work.done == []
        work.may_end.set()
        flushing.join()
    assert sorted(map(str, work.done)) == ["another", "waited"]


def fail() -> None:
    raise OSError(28, "No space left on device")


def test_an_error_ends_the_writing_and_reaches_the_caller(work: Work) -> None:
    writer = BackgroundWriter()

    def search() -> None:
        with writer:
            writer.later("a", fail)
            writer.later("b", lambda: work.note("b"))
            writer.flush()
            for call in (lambda: writer.later("c", lambda: None), lambda: writer.settle("c")):
                with pytest.raises(OSError, match="No space"):
                    call()

    with pytest.raises(OSError, match="No space"):
        search()
    assert work.done == []
    # The next stage starts anew.
    writer.settle("a")
    with writer:
        writer.later("b", lambda: work.note("b"))
    assert work.done == ["b"]


@pytest.mark.parametrize("fails", [False, True])
def test_the_error_of_the_search_is_not_replaced(work: Work, fails: bool) -> None:
    def search() -> None:
        with BackgroundWriter() as writer:
            writer.later("a", fail if fails else lambda: work.note("a"))
            raise KeyError

    with pytest.raises(KeyError):
        search()
    assert work.done == ([] if fails else ["a"])


def test_a_signal_handler_may_flush_while_the_main_thread_waits(work: Work) -> None:
    """The handler runs inside the wait for a write in progress."""
    before = signal.signal(signal.SIGUSR1, lambda *_: (work.may_end.set(), writer.flush(PATIENCE_S)))
    try:
        with BackgroundWriter() as writer:
            flushing = begin(writer, work)
            writer.later("a", lambda: work.note("a"))
            threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGUSR1]).start()
            writer.settle("slow")
            assert work.done == ["waited", "a"]
            flushing.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def trial(number: int, *values: float | None, **more: object) -> TrialRecord:
    curve = [{"epoch": epoch, "valid/pairwise_acc": value} for epoch, value in enumerate(values, 1)]
    state = {"number": number, "stage": 1, "attempt": 1, "params": {}, "seed": 0, "state": "running", "curve": curve}
    return TrialRecord(**{**state, **more})  # type: ignore[arg-type]


def test_an_epoch_is_recorded_later_in_its_own_state(tmp_path: Path) -> None:
    """What the search changes after the epoch does not get into its record."""
    record = RunRecord(storage_path(tmp_path))
    kept = trial(3, 0.5)
    with record.background:
        record.write_trial_later(kept)
        expected = trial(3, 0.5)
        kept.notes.append("later")
        kept.failures.append({"attempt": 1})
        kept.curve = [*kept.curve, {"epoch": 2}]
        assert record.trials(1) == []
        record.background.flush()
        assert record.trials(1) == [expected]
        record.write_trial_later(trial(3, 0.5, 0.6))
        record.write_trial(trial(3, 0.5, 0.6, state="complete"))
    assert record.trials(1) == [trial(3, 0.5, 0.6, state="complete")]


def test_a_part_of_a_run_is_written_by_the_same_writer(tmp_path: Path) -> None:
    from grcf_ray.search.comparisons import seeds_record

    record = RunRecord(LocalPath(tmp_path))
    assert seeds_record(record, "stage2/4").background is record.background


def test_a_trial_has_a_line_for_each_key_and_each_epoch(tmp_path: Path) -> None:
    record = RunRecord(storage_path(tmp_path))
    record.write_trial(trial(0, 0.5, float("nan"), params={"ä": 1}))
    (path,) = tmp_path.rglob("*.json")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert '  "params": {"ä": 1},' in lines
    assert '    {"epoch": 2, "valid/pairwise_acc": null}' in lines
    assert record.trials(1) == [trial(0, 0.5, None, params={"ä": 1})]


def test_a_ranking_is_kept_up_to_date() -> None:
    ranking = Ranking([trial(0, 0.5), trial(1, 0.7), trial(2)])
    trials = {0: trial(0, 0.5), 1: trial(1, 0.7), 2: trial(2)}
    for changed in (trial(2, 0.7), trial(0, 0.5, 0.9), trial(3, 0.1), trial(0, 0.5, 0.9, state="diverged"), trial(4)):
        trials[changed.number] = changed
        ranking.put(changed)
        assert ranking.best() == rank(trials.values())
        assert ranking.best(2) == rank(trials.values())[:2]
    assert [kept.number for kept in ranking.best()] == [1, 2, 3]
