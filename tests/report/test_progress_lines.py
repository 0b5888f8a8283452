"""Progress on standard error: a line for each event, with the time left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import pytest

from grcf_ray.report.progress_lines import ProgressLines
from grcf_ray.search.events import (
    EpochFinished,
    Event,
    FinalistsHeld,
    FinalistSkipped,
    ModelMeasured,
    NodeExcluded,
    RetrainingsStarted,
    SearchStarted,
    StageEnded,
    StageStarted,
    StepStarted,
    TrialBroke,
    TrialEnded,
    TrialLeft,
    TrialStarted,
    WinnerFixed,
)
from grcf_ray.search.record import TrialRecord
from grcf_ray.train.curve import objective_name

if TYPE_CHECKING:
    from tests.conftest import Recorded


def trial(
    number: int, *values: float, stage: Literal[1, 2] = 1, state: Any = "running", seconds: float = 10.0, **more: Any
) -> TrialRecord:
    name = f"valid/{objective_name(stage, 'regression')}"
    curve = [{"epoch": epoch, name: value, "seconds": seconds} for epoch, value in enumerate(values, 1)]
    return TrialRecord(
        number=number,
        stage=stage,
        attempt=more.pop("attempt", 1),
        params={},
        seed=0,
        state=state,
        curve=curve,
        seconds=seconds * len(values),
        **more,
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that `time.monotonic` says; the time of day stands still."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "strftime", lambda form: "12:34:56")
    return now


def lines_of(concurrent: int, budgets: dict[int, tuple[int, int]]) -> ProgressLines:
    lines = ProgressLines()
    lines(SearchStarted(concurrent, budgets))
    return lines


def told(capsys: pytest.CaptureFixture[str], lines: ProgressLines, *events: Event) -> list[str]:
    for event in events:
        lines(event)
    out, err = capsys.readouterr()
    assert out == "", "standard output is kept for the answer"
    return err.splitlines()


def test_a_line_for_each_event(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    lines = lines_of(2, {1: (4, 2), 2: (2, 5)})
    first = told(capsys, lines, StageStarted(1, 4, 2, ()), TrialStarted(trial(0)))
    assert first == [
        "Stage 1: 4 trials of up to 2 epochs, maximise validation PairwiseAcc",
        "12:34:56  stage 1   0/4  trial 0  started",
    ]
    # Left: this trial's second epoch, 3 trials of 2 epochs, then 2 of 5; 10 s each, two trials at a time. And to
    # measure the winner, as long as an epoch.
    assert told(capsys, lines, EpochFinished(trial(0, 0.5))) == [
        "12:34:56  stage 1   0/4  trial 0  epoch 1/2           PairwiseAcc 0.5000  best 0.5000  ETA 2 min"
    ]
    # Trials to come are as long as one of 2 epochs and the one of 2 that ended.
    assert told(capsys, lines, TrialEnded(trial(0, 0.5, 0.75, state="complete"))) == [
        "12:34:56  stage 1   1/4  trial 0  epoch 2/2 complete  PairwiseAcc 0.7500  best 0.7500  ETA 2 min"
    ]
    # Now one of 2, one of 1 and one of 2: 5/3 each.
    assert told(capsys, lines, TrialEnded(trial(1, 0.25, state="pruned"))) == [
        "12:34:56  stage 1   2/4  trial 1  epoch 1/2 pruned    PairwiseAcc 0.2500  best 0.7500  ETA 77 s"
    ]
    assert told(capsys, lines, TrialStarted(trial(2, 0.9, attempt=2)))[0].startswith(
        "12:34:56  stage 1   2/4  trial 2  resumed (attempt 2)"
    )
    clock[0] += 3700
    assert told(capsys, lines, StageEnded(1)) == ["Stage 1 done in 1 h 02 min: best trial 2, PairwiseAcc 0.9000"]
    assert told(capsys, lines, StageStarted(2, 2, 5, ())) == [
        "Stage 2: 2 trials of up to 5 epochs, minimise validation MAE"
    ]
    told(capsys, lines, TrialEnded(trial(0, 0.9, 0.8, stage=2, state="pruned")))
    (line,) = told(capsys, lines, TrialEnded(trial(1, 0.7, 0.95, stage=2, state="pruned")))
    assert "MAE 0.9500  best 0.7000  ETA 10 s" in line
    assert told(capsys, lines, WinnerFixed(trial(1, stage=2))) == ["Winner: trial stage2/1"]


def test_the_seeds_and_each_step_before_them_are_left(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    lines = ProgressLines()
    lines(SearchStarted(2, {1: (1, 2), 2: (1, 3)}, seeds=2))
    told(capsys, lines, StageStarted(1, 1, 2, ()), TrialEnded(trial(0, 0.5, 0.75, state="complete")))
    told(capsys, lines, StageStarted(2, 1, 3, ()))
    ended = trial(0, 0.9, 0.8, 0.7, stage=2, state="complete")
    # Four models of five epochs and their measuring, two at a time, are twelve epochs; the winner's measuring is one.
    (line,) = told(capsys, lines, TrialEnded(ended))
    assert line.endswith("best 0.7000  ETA 2 min")
    assert told(capsys, lines, WinnerFixed(ended), StepStarted("saving it", 1), StepStarted("writing the card")) == [
        "Winner: trial stage2/0",
        "12:34:56  saving it  ETA 2 min",
        "12:34:56  writing the card  ETA 2 min",
    ]
    assert told(capsys, lines, RetrainingsStarted("Both anew", {1: 4, 2: 4})) == ["Both anew  ETA 2 min"]
    # Work that no estimate has may follow: nothing is said rather than 0 s.
    assert told(capsys, lines, StepStarted("writing the card")) == ["12:34:56  writing the card"]


def test_stages_that_overlap_are_counted_apart_and_estimated_together(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    lines = lines_of(2, {1: (2, 2), 2: (3, 2)})
    told(capsys, lines, StageStarted(1, 2, 2, ()), TrialEnded(trial(0, 0.5, 0.75, state="complete")))
    clock[0] += 30
    second = told(capsys, lines, StageStarted(2, 3, 2, ()), EpochFinished(trial(1, 0.5)))
    assert second[0] == "Stage 2: 3 trials of up to 2 epochs, minimise validation MAE"
    # An epoch of Stage 1 and three trials of two epochs, two at a time; then the winner is measured.
    assert second[1].startswith("12:34:56  stage 1   1/2  trial 1  epoch 1/2") and second[1].endswith("ETA 45 s")
    clock[0] += 30
    (line,) = told(capsys, lines, EpochFinished(trial(0, 0.9, stage=2)))
    # One of them has one epoch left.
    assert line.startswith("12:34:56  stage 2   0/3  trial 0  epoch 1/2") and line.endswith("ETA 40 s")
    clock[0] += 30
    ends = told(capsys, lines, StageEnded(1), StageEnded(2))
    assert ends == [
        "Stage 1 done in 2 min: best trial 0, PairwiseAcc 0.7500",
        "Stage 2 done in 60 s: best trial 0, MAE 0.9000",
    ]


def test_a_time_budget_bounds_what_is_left(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    lines = ProgressLines()
    lines(SearchStarted(1, {1: (50, 2), 2: (50, 2)}, seconds={1: 40.0, 2: 60.0}))
    clock[0] += 20
    (_, line) = told(capsys, lines, StageStarted(1, 50, 2, ()), EpochFinished(trial(0, 0.5)))
    assert line.endswith("ETA 50 s")
    clock[0] += 20
    assert told(capsys, lines, StageEnded(1, cut=50)) == [
        "Stage 1 ended by the time budget after 20 s, 50 of 50 trials unfinished: best trial 0, PairwiseAcc 0.5000"
    ]


def test_what_is_recorded_counts(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    lines = lines_of(1, {1: (3, 2)})
    before = (trial(0, 0.5, 0.75, state="complete"), trial(1, 0.6))
    assert told(capsys, lines, StageStarted(1, 3, 2, before)) == [
        "Stage 1: 3 trials of up to 2 epochs, maximise validation PairwiseAcc, 1 recorded"
    ]
    # One epoch of trial 1 and two of trial 2.
    (line,) = told(capsys, lines, TrialStarted(trial(1, 0.6, attempt=2)))
    assert line.endswith("trial 1  resumed (attempt 2)  best 0.7500  ETA 40 s")


@pytest.mark.parametrize("state", ["diverged", "failed"])
def test_an_error_is_one_line_of_bounded_width(
    state: str, capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    lines = lines_of(1, {1: (1000, 100)})
    told(capsys, lines, TrialEnded(trial(7, 0.5, state="complete")))
    known = "the loss or its gradient is no longer finite after epoch 12"
    for error in (known, "x\x1b[31my\nz " * 100, "z" * 500):
        cause = "not finite"
        (line,) = told(capsys, lines, TrialEnded(trial(12, 0.5, state=state, error=error, cause=cause)))
        assert f"trial 12  {state}, {cause}: {error[:1]}" in line
        assert len(line) <= 120
        assert line.isprintable()
        assert line.endswith(known if error == known else "...")


def test_a_stage_without_a_usable_trial_has_no_best(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    lines = lines_of(1, {1: (1, 2)})
    assert told(capsys, lines, TrialEnded(trial(0, state="failed", error="why", cause="refused")), StageEnded(1)) == [
        "12:34:56  stage 1   1/1  trial 0  failed, refused: why"
    ]


def test_a_broken_trial_is_told_with_its_cause(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    lines = lines_of(1, {1: (1000, 2)})
    failures = [{"attempt": 1, "cause": "process died", "error": "ActorDiedError: \x1b[31mthe actor", "time": ""}]
    (line,) = told(capsys, lines, TrialBroke(trial(0, 0.5, failures=failures)))
    assert line.startswith("12:34:56  stage 1   0/1000  trial 0  interrupted")
    assert line.endswith("process died: ActorDiedError: \\x1b[31mthe actor")
    failures[0]["error"] = "x" * 500
    (line,) = told(capsys, lines, TrialBroke(trial(0, 0.5, failures=failures)))
    assert len(line) == 120
    assert line.endswith("xxx...")


def test_retries_and_what_is_left_are_told(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    lines = lines_of(1, {1: (10, 2)})
    failures = [{"attempt": 1, "cause": "storage", "error": "AWS Error", "time": ""}]
    told_lines = told(
        capsys,
        lines,
        TrialBroke(trial(0, 0.5, failures=failures), 40.0),
        TrialLeft(trial(1, 0.5, failures=failures)),
        NodeExcluded("beta (10.0.0.3)"),
        StageEnded(1, left=1),
    )
    assert told_lines[0].endswith("trial 0  interrupted, will retry in 40 s: storage: AWS Error")
    assert told_lines[1].endswith("trial 1  left unfinished: storage: AWS Error")
    assert "Node beta (10.0.0.3) gets no more trials" in told_lines[2]
    assert told_lines[3] == "Stage 1: 1 trial(s) left unfinished; the same command runs them again"


def test_what_becomes_of_the_finalists_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(1, {1: (1, 2)})
    held, skipped = told(capsys, lines, FinalistsHeld((trial(7), trial(3))), FinalistSkipped(trial(2), "best: damaged"))
    assert "trials 7, 3 of Stage 1" in held and "--reopen" in held
    assert "stage1/2" in skipped and skipped.endswith(": best: damaged")


def test_retrainings_are_counted_anew(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    lines = lines_of(1, {1: (3, 2), 2: (3, 2)})
    told(capsys, lines, StageStarted(1, 3, 2, ()), TrialEnded(trial(0, 0.9, 0.9, state="complete")))
    assert told(
        capsys,
        lines,
        RetrainingsStarted("Both anew under 2 seeds", {1: 4, 2: 4}),
        StageStarted(1, 4, 2, ()),
        TrialStarted(trial(0)),
    ) == [
        "Both anew under 2 seeds  ETA 3 min",
        "Stage 1: 4 trials of 2 epochs",
        "12:34:56  stage 1   0/4  trial 0  started             ETA 3 min",
    ]
    # One more epoch of this trial and three whole trials, then four of Stage 2: 15 epochs; and four models to
    # measure.
    assert told(capsys, lines, EpochFinished(trial(0, 0.5))) == [
        "12:34:56  stage 1   0/4  trial 0  epoch 1/2           PairwiseAcc 0.5000  ETA 3 min"
    ]
    # None is the best, nor a winner: nothing is chosen among them.
    (line,) = told(capsys, lines, StageEnded(1))
    assert line.startswith("Stage 1 done in ") and "best" not in line
    assert told(capsys, lines, WinnerFixed(trial(0, stage=2))) == []
    # A search that follows, such as that of an ablation, has its own.
    lines(SearchStarted(1, {1: (3, 2)}))
    assert told(capsys, lines, StageStarted(1, 3, 2, ())) == [
        "Stage 1: 3 trials of up to 2 epochs, maximise validation PairwiseAcc"
    ]


def test_measuring_says_how_long_it_will_take(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    lines = lines_of(1, {1: (3, 2)})
    assert told(capsys, lines, ModelMeasured(0, 3)) == ["Measuring 3 models on valid and test"]
    clock[0] += 40
    assert told(capsys, lines, ModelMeasured(1, 3)) == ["12:34:56  measured 1/3  ETA 80 s"]
    clock[0] += 40
    assert told(capsys, lines, ModelMeasured(3, 3)) == ["12:34:56  measured 3/3"]


@pytest.mark.integration
def test_the_recorded_progress_is_plain_and_narrow(recorded: Recorded) -> None:
    lines = recorded.err.splitlines()
    trials = [line for line in lines if "  trial " in line]
    assert len(trials) > 22
    assert all(len(line) <= 100 and line.isprintable() for line in trials)
    assert "\x1b" not in recorded.err
    assert "\r" not in recorded.err
    assert all("ETA" in line for line in trials[1:])
