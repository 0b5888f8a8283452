"""The report as text of 80 columns."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from report.stored import EVIL, narrow, record_of, seeds_content

from grcf_ray.data import datasets
from grcf_ray.report.text import command_lines, text_report
from grcf_ray.report.view import RunView
from grcf_ray.search.lease import Lease
from grcf_ray.search.record import RunRecord


@pytest.fixture
def record(runs: Path) -> RunRecord:
    """A copy of the finished run, in the working directory's runs/."""
    record = record_of(runs / "recorded")
    # A command is as long as the folders of the tests; it has a test of its own.
    starts = [{**start, "command": "python -m grcf_ray.search --dataset tiny"} for start in record.read_run()["starts"]]
    record.update_run(starts=starts)
    return record


def report(record: RunRecord) -> list[str]:
    """The lines, all of them within 80 columns and without control codes."""
    text = text_report(RunView.read(record))
    assert text.endswith("\n")
    return narrow(text)


def cells(lines: list[str]) -> list[list[str]]:
    return [line.split() for line in lines]


def test_the_answer_comes_first_with_the_records_figures(record: RunRecord) -> None:
    lines = report(record)
    winner, metrics = record.ranked(2)[0], (record.place / "best" / "metrics.json").read_json()
    assert lines[0] == "GRCF on tiny: recorded"
    assert lines[2] == "State: finished"
    assert lines[4] == f"Winner: trial stage2/{winner.number}, valid MAE {winner.objective:.4f}"
    ridge = metrics["baselines"][0]["test"]["mae"]
    assert [
        "MAE",
        *(f"{value:.4f}" for value in (metrics["valid"]["mae"], metrics["test"]["mae"], ridge)),
    ] in cells(lines)
    assert "Validation figures are optimistic: the best of 11 trials." in lines
    assert any(line.startswith("One seed: ") for line in lines)
    assert ["stage2.head_lr", f"{winner.params['stage2.head_lr']:.4g}"] in cells(lines)


def test_of_a_search_that_went_on_the_model_in_best_counts(record: RunRecord) -> None:
    """It was cut off after another model had been put there, and before that was measured and named the winner."""
    best, other = record.place / "best", record.ranked(2)[1]
    (best / "provenance.json").write_json({**(best / "provenance.json").read_json(), "trial": f"stage2/{other.number}"})
    (best / "metrics.json").delete()
    record.update_run(state="interrupted")
    lines = report(record)
    assert f"Winner: trial stage2/{other.number}, valid MAE {other.objective:.4f}" in lines
    assert any("not been measured on test" in line for line in lines)


def test_the_paper_and_the_seeds_stand_beside(record: RunRecord) -> None:
    place = record.place / "best" / "metrics.json"
    why = ["backbone tiny-bert", "no vision", "split of 48/16/16 instead of 1281/229/685"]
    place.write_json({**place.read_json(), "paper": dict(datasets.get("mosi").paper_results), "not_comparable": why})
    (record.place / "seeds" / "metrics.json").write_json(seeds_content(record.read_run()["winner"]))
    lines = report(record)
    text = " ".join(" ".join(lines).split())
    assert "paper, test" in text
    assert f"Paper: not comparable: {'; '.join(why)}." in text
    assert any("under 3 fresh seeds" in line for line in lines)
    assert "MAE     0.7000 ± 0.0200  0.7500 ± 0.0200  -0.0500 [-0.0700, -0.0300]" in lines
    assert any(line.startswith("Too few seeds for a claim: 3") for line in lines)
    assert "One seed" not in text


def test_each_stage_has_its_best_trials_and_its_history(record: RunRecord) -> None:
    lines = report(record)
    for stage, head in ((1, "Stage 1: 6 of 6 trials"), (2, "Stage 2: 5 of 5 trials")):
        start = next(index for index, line in enumerate(lines) if line.startswith(head))
        table = cells(lines[start + 4 : start + 9])
        best = record.ranked(stage)[:5]
        assert [(int(row[0]), row[2]) for row in table] == [(t.number, f"{t.objective:.4f}") for t in best]
        objectives = [trial.objective for trial in record.trials(stage)]
        chart = [line for line in lines[start:] if "│" in line][:8]
        assert sum(line.count("•") for line in chart) == len(objectives)
        assert chart[0].split()[0] == f"{max(value for value in objectives if value is not None):.4f}"


def test_the_cost_and_what_early_stops_saved(record: RunRecord) -> None:
    trials = [*record.trials(1), *record.trials(2)]
    epochs = sum(trial.epoch for trial in trials)
    saved = sum(3 - trial.epoch for trial in trials if trial.state == "pruned")
    text = " ".join(" ".join(report(record)).split())
    assert (
        f"Cost: {epochs} epochs, {sum(t.utterance_passes for t in trials):.1f} passes over the training split" in text
    )
    assert f"saved {saved} epochs ({saved / (saved + epochs):.0%}" in text


def test_the_most_important_parameters_are_told_with_their_warning(record: RunRecord) -> None:
    for number, trial in enumerate(record.trials(1)):
        trial.state = "complete"
        trial.curve = [{**trial.curve[-1], "epoch": epoch, "valid/pairwise_acc": number / 10} for epoch in (1, 2, 3)]
        record.write_trial(trial)
    lines = report(record)
    start = next(index for index, line in enumerate(lines) if line.startswith("importance"))
    shares = [int(row[1].rstrip("%")) for row in cells(lines[start + 2 : start + 8])]
    assert shares == sorted(shares, reverse=True)
    assert 98 <= sum(shares) <= 102
    warning = " ".join(lines[start + 8 : start + 10])
    assert "only 6 trials" in warning and "10 for each of 6 parameters" in warning


def test_failures_are_told_by_cause_with_the_command_that_repeats_one(record: RunRecord) -> None:
    trial = record.trial(1, 1)
    trial.state, trial.cause, trial.error = "diverged", "not finite", EVIL * 9
    record.write_trial(trial)
    lines = report(record)
    start = lines.index("Failures")
    assert lines[start + 1].startswith("Stage 1, not finite: trial 1: ")
    assert "  python -m grcf_ray.train --from runs/recorded --trial stage1/1" in lines


def test_a_running_search_has_the_best_so_far_and_how_to_watch_it(record: RunRecord) -> None:
    record.update_run(state="running", winner=None)
    (record.place / "best").delete()
    (record.place / "stage2" / "trials" / "0004.json").delete()
    with Lease(record.place, "a search"):
        lines = report(record)
    assert lines[2].startswith("State: running, about ")
    assert any(line.startswith("No winner yet") for line in lines)
    best = record.ranked(1)[0]
    assert f"Best of stage 1 so far: trial stage1/{best.number}, valid PairwiseAcc {best.objective:.4f}" in lines
    assert "  python -m grcf_ray.runs watch runs/recorded" in lines
    assert not any("grcf_ray.evaluate" in line for line in lines)
    # Nobody holds it any more.
    lines = report(record)
    assert lines[2] == "State: died"
    assert any(line.endswith("To resume:") for line in lines)
    assert "  python -m grcf_ray.search --dataset tiny" in lines


def test_a_failed_search_without_a_usable_trial(record: RunRecord) -> None:
    record.update_run(state="failed", winner=None)
    (record.place / "best").delete()
    (record.place / "stage2").delete()
    for trial in record.trials(1):
        trial.state, trial.cause, trial.error, trial.curve = "failed", "out of memory", EVIL, []
        record.write_trial(trial)
    lines = report(record)
    assert lines[2] == "State: failed"
    assert "No trial has a usable result." in lines
    assert any(line.startswith("Stage 1, out of memory: trial 0, 1, 2, 3, 4, 5: ") for line in lines)
    assert any(line.endswith("is kept. To resume:") for line in lines)
    assert not any(line.startswith("Cost:") for line in lines)


def test_a_search_that_has_not_begun_a_trial(record: RunRecord) -> None:
    record.update_run(state="interrupted", winner=None)
    for name in ("best", "stage1", "stage2"):
        (record.place / name).delete()
    lines = report(record)
    assert lines[2] == "State: interrupted"
    assert not any(line.startswith("Stage") for line in lines)


def test_names_from_data_are_made_harmless(record: RunRecord) -> None:
    run = record.read_run()
    record.update_run(
        state="x" + EVIL, data=run["data"] | {"name": EVIL}, settings=run["settings"] | {"model.backbone": EVIL * 9}
    )
    trial = record.ranked(1)[0]
    trial.params["model.modalities"] = EVIL
    record.write_trial(trial)
    report(record)


def test_a_long_command_takes_several_lines_and_is_the_same(tmp_path: Path) -> None:
    words = ["printf", "%s\\n", *(f"--option-{index}" for index in range(20)), "with space", "it's", "x" * 100, "$HOME"]
    lines = command_lines(shlex.join(words))
    assert all(len(line) <= 80 or line.strip(" \\") == "x" * 100 for line in lines)
    done = subprocess.run(["sh", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == words[2:]
    assert command_lines("an 'open quote") == ["  an 'open quote"]
