"""The state of trials, and the time left of a search."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import Run

from grcf_ray.report.run_status import concurrent_trials, pace, seconds_after, time_left
from grcf_ray.report.trials import trial_rows
from grcf_ray.report.view import RunView
from grcf_ray.report.watching import snapshot_lines

BUDGET = {"search.stage1_trials": 4, "search.stage2_trials": 2}


def view_of(folder: Path, *trials: str, **more: Any) -> RunView:
    """A running search of stages of trials in these states, by the letters that `Run.trials` has."""
    run = Run(folder, settings=BUDGET).start(**more)
    for stage, states in zip((1, 2), trials, strict=False):
        run.trials(stage, states)
    return dataclasses.replace(RunView.read(run.record), state=more.get("state", "running"))


def start(**more: object) -> list[dict[str, object]]:
    return [{"time": "2026-11-01T00:00:00+00:00", "command": "python -m grcf_ray.search", **more}]


@pytest.mark.parametrize(
    ("state", "cut", "words"),
    [
        ("running", [], ["complete", "running"]),
        ("running", [1], ["complete", "unfinished"]),
        ("time is up", [1], ["complete", "unfinished"]),
        ("interrupted", [], ["complete", "unfinished"]),
    ],
)
def test_a_trial_runs_only_while_a_search_runs_it(tmp_path: Path, state: str, cut: list[int], words: list[str]) -> None:
    view = view_of(tmp_path / "run", "cr", state=state, cut=cut)
    assert [view.state_of(trial) for trial in view.trials[1]] == words
    assert [row["state"] for row in trial_rows(view, 1)] == words
    lines = snapshot_lines(view, {1: [], 2: []}, width=80)
    assert any(line.startswith("running") for line in lines) == ("running" in words)
    assert any("time budget" in line for line in lines) == bool(cut)


def test_a_time_budget_bounds_the_time_left(tmp_path: Path) -> None:
    def left(name: str, stage_ends: dict[str, str], **more: object) -> float:
        seconds = time_left(view_of(tmp_path / name, "cr", starts=start(stage_ends=stage_ends), **more))
        assert seconds is not None
        return seconds

    epoch = pace(view_of(tmp_path / "pace", "cr").trials[1])
    assert epoch is not None
    past, future = "2026-11-01T01:00:00+00:00", "9999-11-01T01:00:00+00:00"
    # To measure the winner is as long as an epoch.
    assert left("past", {"1": past, "2": past}) == pytest.approx(epoch)
    assert left("future", {"1": future, "2": future}) == left("none", {})
    assert left("second", {"1": future, "2": past}) == pytest.approx(epoch)
    # Of a stage that has ended nothing is left.
    assert epoch < left("cut", {}, cut=[1]) < left("whole", {})


def test_the_time_left_has_the_seeds(tmp_path: Path) -> None:
    without, with_seeds = (
        time_left(view_of(tmp_path / str(seeds), "cccc", "cc", starts=start(seeds=seeds))) for seeds in (0, 3)
    )
    view = view_of(tmp_path / "run", "cccc", "cc")
    epoch, concurrent = pace(view.all_trials), concurrent_trials(view.all_trials)
    assert epoch is not None and without is not None and with_seeds is not None
    more = seconds_after({1: (4, 3), 2: (2, 3)}, concurrent, models=0, seeds=3, epoch_seconds=epoch)
    assert more == pytest.approx(6 * 7 * epoch / concurrent)
    assert with_seeds - without == pytest.approx(more)
