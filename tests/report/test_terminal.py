from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from grcf_ray.console import duration
from grcf_ray.data import datasets
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.progress_lines import ProgressLines
from grcf_ray.report.summary import RunSummary
from grcf_ray.report.terminal import print_result
from grcf_ray.report.view import RunView
from grcf_ray.search.events import (
    EpochFinished,
    Event,
    FinalistsHeld,
    FinalistSkipped,
    ModelMeasured,
    RetrainingsStarted,
    SearchStarted,
    StageEnded,
    StageStarted,
    StepStarted,
    TrialBroke,
    TrialEnded,
    TrialStarted,
    WinnerFixed,
)
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.storage import storage_path
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


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (42.4, "42 s"), (89, "89 s"), (90, "2 min"), (720, "12 min"), (3540, "59 min"), (11100, "3 h 05 min")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


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


def test_the_recorded_progress_is_plain_and_narrow(recorded: Recorded) -> None:
    lines = recorded.err.splitlines()
    trials = [line for line in lines if "  trial " in line]
    assert len(trials) > 22
    assert all(len(line) <= 100 and line.isprintable() for line in trials)
    assert "\x1b" not in recorded.err
    assert "\r" not in recorded.err
    assert all("ETA" in line for line in trials[1:])


def summarise(recorded: Recorded) -> RunSummary:
    return RunSummary.of(RunView.read(RunRecord(storage_path(recorded.folder))))


def summary_of(recorded: Recorded, **changes: Any) -> RunSummary:
    """The recorded run's summary with the metrics of a run on MOSI, and with these changes."""
    facts = datasets.get("mosi")
    metrics = {
        "valid": {"mae": 0.71, "acc7": 0.45, "corr": 0.8},
        "test": {"mae": 0.72, "acc7": 0.44, "corr": 0.79, "acc2_non0": 0.85},
        "paper": dict(facts.paper_results),
        "not_comparable": ["backbone tiny-bert", "no vision"],
        "baselines": [{"name": "ridge regression", "alpha": 0.1, "valid": {}, "test": {"mae": 0.9}}],
    }
    return RunSummary.model_validate({**summarise(recorded).as_json(), **metrics, **changes})


def test_result_stands_beside_the_paper_with_its_reasons(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(summary_of(recorded))
    out, err = capsys.readouterr()
    assert err == ""
    rows = {tuple(line.split()[:1]): line.split() for line in out.splitlines() if line}
    assert rows["metric",] == ["metric", "valid", "test", "ridge", "regression,", "test", "paper,", "test"]
    assert rows["MAE",] == ["MAE", "0.7100", "0.7200", "0.9000", "0.5810"]
    assert rows["Corr",] == ["Corr", "0.8000", "0.7900", "-", "0.8660"]
    assert rows["Acc2",] == ["Acc2", "(non-zero)", "-", "0.8500", "-", "0.9030"]
    assert "not comparable: backbone tiny-bert; no vision" in out
    assert "Validation figures are optimistic: the best of 11 trials." in out
    assert "Baseline: ridge regression of the same encoder, alpha 0.1" in out
    assert "has the better" not in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("task", "metric", "kind"), [("regression", "mae", "ridge"), ("classification", "bce", "logistic")]
)
def test_a_baseline_that_is_better_is_said_to_be(
    recorded: Recorded, capsys: pytest.CaptureFixture[str], task: str, metric: str, kind: str
) -> None:
    baseline = {
        "name": f"{kind} regression on the frozen text vectors",
        "alpha": 1.0,
        "valid": {},
        "test": {metric: 0.6},
    }
    print_result(summary_of(recorded, task=task, baselines=[baseline], test={metric: 0.7}))
    out = capsys.readouterr().out
    better = f"{kind.capitalize()} regression has the better test {metric.upper()}: 0.6000 against 0.7000."
    assert better in out.splitlines()[-12:]
    assert f"Baseline: {kind} regression on the frozen text vectors of the same encoder" in out
    assert f"{kind} regression, test" in out
    assert "ridge" not in out.lower() or kind == "ridge"
    for equal in (0.7, 0.8):
        changed = {"baselines": [{**baseline, "test": {metric: equal}}]}
        print_result(summary_of(recorded, task=task, test={metric: 0.7}, **changed))
        assert "has the better" not in capsys.readouterr().out


def test_own_labels_say_which_classes_their_accuracy_has(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(summary_of(recorded, test={"acc_whole": 0.54}, label_range=[1.0, 5.0], paper={}))
    out = capsys.readouterr().out
    assert "Acc (whole labels): scores and labels rounded to the nearest of 5 labels, 1, 2, 3, 4, 5." in out
    print_result(summary_of(recorded, paper=dict(datasets.get("sims_v2").paper_results)))
    assert datasets.TWO_READINGS in capsys.readouterr().out


def test_result_without_a_paper_has_no_such_column(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(summary_of(recorded, paper={}, not_comparable=[], baselines=[]))
    out = capsys.readouterr().out
    assert "paper" not in out.lower()
    assert "ridge" not in out.lower()
    print_result(summary_of(recorded, not_comparable=[]))
    assert "Paper: one seed." in capsys.readouterr().out


def test_result_names_the_winner_its_settings_its_places_and_the_next_commands(
    recorded: Recorded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recorded.folder.parents[1])
    print_result(summary_of(recorded))
    out = capsys.readouterr().out
    winner = RunRecord(storage_path(recorded.folder)).ranked(2)[0]
    place = Path(*recorded.folder.parts[-2:])
    assert f"Winner: trial stage2/{winner.number}\n" in out
    for path in ("stage2.head_lr", "ranking.intra_margin", "finalist"):
        assert f"\n{path} " in out
    for line in (
        f"Model:  {place}/best",
        f"Record: {place}/stage1/trials.jsonl, {place}/stage2/trials.jsonl",
        f"python -m grcf_ray.evaluate {place}",
        f"tensorboard --logdir {place}/tensorboard",
    ):
        assert line in out
    assert max(map(len, out.splitlines())) <= 120


def test_the_next_commands_can_be_typed_as_they_stand(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    """With spaces in the run's folder, and with the endpoint that an object store is asked by."""
    print_result(summary_of(recorded, run="my runs/a", uri="my runs/a"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "Next:   python -m grcf_ray.evaluate 'my runs/a'",
        "        tensorboard --logdir 'my runs/a/tensorboard'",
    ]
    store = "s3://bucket/runs/a"
    print_result(summary_of(recorded, run=store, uri=f"{store}?endpoint_override=host:9000"))
    lines = capsys.readouterr().out.splitlines()
    assert f"Model:  {store}/best" in lines
    assert lines[-2] == f"Next:   python -m grcf_ray.evaluate '{store}?endpoint_override=host:9000'"


def test_summary_counts_states_and_cost(recorded: Recorded) -> None:
    record = RunRecord(storage_path(recorded.folder))
    trials = [*record.trials(1), *record.trials(2)]
    summary = summary_of(recorded)
    assert summary.state == "finished"
    assert summary.seeds is None
    assert summary.cost.epochs == sum(t.epoch for t in trials)
    assert summary.cost.utterance_passes == sum(t.utterance_passes for t in trials)
    for stage in (1, 2):
        part = summary.stages[f"stage{stage}"]
        assert part.trials == sum(part.states.values()) == len(record.trials(stage))
        assert [best.trial for best in part.best] == [t.number for t in record.ranked(stage)[:3]]
        assert part.failures == []


def test_summary_has_the_figures_of_the_record(recorded: Recorded) -> None:
    summary = summarise(recorded).as_json()
    metrics = json.loads((recorded.folder / "best" / "metrics.json").read_text())
    for name in ("valid", "test", "paper", "not_comparable", "baselines"):
        assert summary[name] == metrics[name]
    assert summary["winner"]["trial"] == metrics["trial"]
    assert summary["command"] == shlex.join(["python", "-m", "grcf_ray.search", *recorded.argv])
    assert summary["test_seen_before_selection_ended"] is False


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


def test_what_becomes_of_the_finalists_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(1, {1: (1, 2)})
    held, skipped = told(capsys, lines, FinalistsHeld((trial(7), trial(3))), FinalistSkipped(trial(2), "best: damaged"))
    assert ": 7, 3. --reopen" in held
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


def test_failures_are_listed_by_cause_with_the_command_that_runs_one_again(
    recorded: Recorded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recorded.folder.parents[1])
    stages = summarise(recorded).as_json()["stages"]
    stages["stage1"]["failures"] = [
        {"cause": "hung", "trials": list(range(12)), "error": "no epoch ended within 1 minutes"},
        {"cause": "not finite", "trials": [13], "error": "the loss\nis no longer finite"},
    ]
    print_result(summary_of(recorded, stages=stages))
    out = capsys.readouterr().out
    place = Path(*recorded.folder.parts[-2:])
    again = f"  again: python -m grcf_ray.train --from {place} --trial"
    assert (
        "\nhung: trial 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more: no epoch ended within 1 minutes\n"
        f"{again} stage1/11\nnot finite: trial 13: the loss is no longer finite\n{again} stage1/13\n"
    ) in out


def seeds_of(winner: dict[str, Any], start: dict[str, Any], *, trained: tuple[int, int]) -> dict[str, Any]:
    """seeds/metrics.json with these estimates of the test MAE, and a gain as wide as the winner's estimate."""
    arms = {
        arm: {"trained": count, "valid": {}, "test": {"mae": estimate}}
        for arm, estimate, count in zip(("winner", "start"), (winner, start), trained, strict=True)
    }
    gain = {**winner, "mean": round(winner["mean"] - start["mean"], 4)}
    whole = {"schema_version": 2, "winner": "stage2/0", "complete": True, "models": []}
    return {**whole, "seeds": min(trained), "arms": arms, "gain": {"mae": gain}}


def test_retrainings_stand_side_by_side(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    winner = {"mean": 0.7, "deviation": 0.02, "half_width": 0.05}
    print_result(summary_of(recorded, seeds=seeds_of(winner, {**winner, "mean": 0.75}, trained=(3, 5))))
    out = capsys.readouterr().out
    assert "under 3 fresh seeds" in out
    assert "\nToo few seeds for a claim: 3" in out
    assert "MAE     0.7000 ± 0.0200  0.7500 ± 0.0200  -0.0500 [-0.1000, +0.0000]" in out
    # Of one seed there is neither a deviation nor an interval.
    single = {"mean": 0.7, "deviation": None, "half_width": None}
    print_result(summary_of(recorded, seeds=seeds_of(single, single, trained=(1, 1))))
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith("MAE")][-1] == ["MAE", "0.7000", "0.7000", "-"]


def test_the_baseline_stands_beside_the_two_stages(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    one = {"mean": 0.7, "deviation": 0.02, "half_width": 0.05}
    against: dict[str, Any] = {
        "runs": {},
        "seeds": 3,
        "two-stage": {"mae": one},
        "direct": {"mae": {**one, "mean": 0.75}},
        "gain": {"mae": {"mean": -0.05, "deviation": 0.01, "half_width": 0.02}},
    }
    print_result(summary_of(recorded, against_baseline=against))
    out = capsys.readouterr().out
    assert "Two stages against MAE alone" in out and "under 3 seeds" in out
    assert "Stage 2 inherits" in out
    assert "\nToo few seeds for a claim: 3" in out
    assert "MAE     0.7000 ± 0.0200  0.7500 ± 0.0200  -0.0500 [-0.0700, -0.0300]" in out
    assert summary_of(recorded).against_baseline is None
    print_result(summary_of(recorded, against_baseline={**against, "seeds": 5}))
    assert "oo few seeds" not in capsys.readouterr().out


def test_an_unfinished_search_says_how_to_go_on(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(summary_of(recorded, state="time is up", command="python -m grcf_ray.search --dataset tiny"))
    out = capsys.readouterr().out
    assert "The time was up before every trial had ended. To go on: python -m grcf_ray.search --dataset tiny\n" in out
    print_result(summary_of(recorded))
    assert "The time was up" not in capsys.readouterr().out


def test_a_look_at_test_before_the_choice_is_told(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(summary_of(recorded, test_seen_before_selection_ended=True))
    assert "Test was seen before selection ended" in capsys.readouterr().out
    print_result(summary_of(recorded))
    assert "Test was seen" not in capsys.readouterr().out


def test_every_metric_of_the_paper_has_a_title() -> None:
    for name in datasets.names():
        assert datasets.get(name).paper_results.keys() <= METRIC_TITLES.keys()
