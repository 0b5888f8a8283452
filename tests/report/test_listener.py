"""The page that a search writes while it runs and at its end."""

from __future__ import annotations

import json
import shlex
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from synthetic_run import Run

from grcf_ray.report import listener as listener_module
from grcf_ray.report.listener import PageListener
from grcf_ray.report.summary import RunSummary
from grcf_ray.report.view import RunView
from grcf_ray.search.events import (
    EpochFinished,
    Event,
    SearchFinished,
    SearchStarted,
    StageEnded,
    StageStarted,
    TrialEnded,
    TrialStarted,
    WinnerFixed,
)
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from tests.conftest import Recorded

BEGUN = SearchStarted(1, {1: (3, 2)})


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, bool]]:
    """When pages were written, and whether the search goes on then; each takes as long as `clock` says."""
    pages: list[tuple[float, bool]] = []

    def write(record: Any, *, going_on: bool) -> None:
        pages.append((Clock.now, going_on))
        Clock.now += Clock.takes

    monkeypatch.setattr(listener_module, "write_report", write)
    monkeypatch.setattr(listener_module.time, "monotonic", lambda: Clock.now)
    Clock.now, Clock.takes = 1000.0, 0.5
    return pages


class Clock:
    now = 1000.0
    takes = 0.5


def tell(page: PageListener, event: Event) -> None:
    """An event, and what is written beside the search because of it."""
    page(event)
    if page._waiting is not None:
        page._waiting.result(timeout=60)


def test_pages_come_at_the_turns_of_a_search_and_seldom_between(tmp_path: Path, written: list[Any]) -> None:
    run = Run(tmp_path / "run").start().trials(1, "c")
    (trial,) = run.record.trials(1)
    with PageListener(run.record) as page:
        for event in (BEGUN, StageStarted(1, 3, 2, ()), TrialStarted(trial), EpochFinished(trial)):
            tell(page, event)
        assert written == [(1000.0, True)]
        for now in (1060.4, 1060.5, 1061.0, 1121.0):
            Clock.now = now
            tell(page, EpochFinished(trial))
        assert written[1:] == [(1060.5, True), (1121.0, True)]
        # After ten seconds of building, five hundred pass.
        Clock.takes, Clock.now = 10.0, 1200.0
        tell(page, TrialEnded(trial))
        for now in (1709.9, 1710.0):
            Clock.now = now
            tell(page, EpochFinished(trial))
        assert written[3:] == [(1200.0, True), (1710.0, True)]
        Clock.takes = 0.0
        tell(page, StageEnded(1))
        tell(page, WinnerFixed(trial))
        assert len(written) == 7
        page(SearchFinished())
        assert written[7:] == [(1720.0, False)]
    assert len(written) == 8


def test_of_a_search_that_never_began_there_is_no_page(tmp_path: Path, written: list[Any]) -> None:
    with PageListener(Run(tmp_path / "run").start().record):
        pass
    assert written == []


def test_the_last_page_comes_however_the_search_ends(tmp_path: Path, written: list[Any]) -> None:
    def search() -> None:
        with PageListener(Run(tmp_path / "run").start().record) as page:
            page(BEGUN)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search()
    assert written == [(1000.0, True)], "without what takes long"


def test_the_search_does_not_wait_for_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is written, the next turn's waits, and no more than one does."""
    go, begun, pages = threading.Event(), threading.Event(), []

    def write(record: Any, *, going_on: bool) -> None:
        pages.append(going_on)
        begun.set()
        assert go.wait(60)

    monkeypatch.setattr(listener_module, "write_report", write)
    with PageListener(Run(tmp_path / "run").start().record) as page:
        page(BEGUN)
        page(StageStarted(1, 3, 2, ()))
        assert begun.wait(60)
        for _ in range(3):
            page(StageEnded(1))
        assert pages == [True]
        assert page._waiting is not None
        go.set()
        page._waiting.result(timeout=60)
        assert pages == [True, True]
        page(SearchFinished())
    assert pages == [True, True, False]


def test_a_fault_of_the_report_is_told_in_a_line_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("no\nfigures")

    monkeypatch.setattr(listener_module, "write_report", broken)
    with PageListener(Run(tmp_path / "run").start().record) as page:
        page(BEGUN)
        tell(page, StageStarted(1, 3, 2, ()))
        page(SearchFinished())
    out, err = capsys.readouterr()
    assert out == ""
    failed, writing, again = err.splitlines()
    assert failed == again and failed.endswith("the search is not affected: no")
    assert writing == "Writing the report"


@pytest.mark.integration
def test_a_search_leaves_its_page_and_names_it(recorded: Recorded) -> None:
    assert json.loads((recorded.folder / "report.json").read_text())["state"] == "finished"
    assert "The search has finished. Report written" in (recorded.folder / "report.html").read_text(encoding="utf-8")
    assert json.loads(recorded.out)["report"] == str(recorded.folder / "report.html")
    summary = RunSummary.of(RunView.read(RunRecord(storage_path(recorded.folder)))).as_json()
    assert json.loads(recorded.out) == summary
    assert summary["command"] == shlex.join(["python", "-m", "grcf_ray.search", *recorded.argv])
    assert "was not written" not in recorded.err
