"""Plans of a search by number of GPUs or CPUs, and the trials that they are made from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import ray

from grcf_ray.errors import ClusterError, ConfigError
from grcf_ray.search import trial_sources
from grcf_ray.search.planning import Plan, PlanRow, parse_counts, plan_search, time_to
from grcf_ray.search.space import Choice, Range, Space
from grcf_ray.search.trial_sources import KnownTrials, TransferredTrials, run_table
from grcf_ray.search.trial_table import TrialTable
from grcf_ray.statistics import spread
from tests.search.conftest import Run
from tests.search.made_trials import CONFIGURATIONS, EPOCHS
from tests.synthetic_run import Run as SyntheticRun

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore

ALL = 6 * EPOCHS[1] * 2.0 + 8 * EPOCHS[2] * 4.0
"""Seconds of all trials of the made space, 6 and 8 of them, without early stopping."""
LONGEST = EPOCHS[1] * 2.0 + EPOCHS[2] * 4.0
"""Seconds of one trial of each stage."""


@pytest.fixture
def known(table: TrialTable) -> KnownTrials:
    return KnownTrials(table, table, ("a note",))


def test_one_slot_takes_the_sum_and_many_the_longest_path(known: KnownTrials, table: TrialTable) -> None:
    plan = plan_search(known, table.space, [1, 8, 100])
    one, eight, many = plan.rows
    assert (plan.device, plan.trials) == ("CPU", {1: 6, 2: 8})
    assert one.seconds.mean == pytest.approx(ALL) and one.utilisation == pytest.approx(1.0)
    assert eight.seconds.mean == many.seconds.mean == pytest.approx(LONGEST)
    assert eight.utilisation == pytest.approx(ALL / (8 * LONGEST))
    assert many.utilisation == pytest.approx(ALL / (100 * LONGEST))
    # No search reaches the mean of all of them before it ends, but some do before the last trial.
    assert one.equal_seconds is not None and 0.5 * ALL < one.equal_seconds <= ALL
    assert one.figure.deviation and 0.2 < one.figure.mean < 0.4
    assert plan.knee == eight and not plan.beyond
    cells = plan.as_dict()["rows"]
    assert [row["device_hours"] for row in cells] == pytest.approx([ALL / 3600, 8 * LONGEST / 3600, LONGEST / 36])
    assert any("more, some buy nothing" in note for note in plan.notes()) and plan.notes()[-1] == "a note"


@pytest.mark.parametrize("stage", [1, 2])
def test_a_search_of_one_stage(table: TrialTable, stage: Literal[1, 2]) -> None:
    left_out = f"stage{3 - stage}"
    space = dataclasses.replace(table.space.with_settings({f"{left_out}.epochs": 0}), **{left_out: {}})
    facts = {"task": table.task, "protocol": table.protocol, "half_range": table.half_range}
    own = TrialTable({stage: table.recorded(stage)}, name="own", space=space, **facts)
    plan = plan_search(KnownTrials(own, own, ()), space, [1, 100])
    trials, seconds = {1: 6, 2: 8}[stage], EPOCHS[stage] * 2.0 * stage
    assert plan.trials == {stage: trials}
    assert [row.seconds.mean for row in plan.rows] == pytest.approx([trials * seconds, seconds])


def test_a_plan_repeats(known: KnownTrials, table: TrialTable) -> None:
    first, second = (plan_search(known, table.space, [2]).as_dict() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("settings", "counts", "at_a_time"),
    [
        ({"search.gpus_per_worker": 0.5}, [1, 3], [2, 6]),
        ({"search.gpus_per_worker": 0.3}, [1, 2], [3, 6]),
        ({"search.gpus_per_worker": 1.0, "search.workers": 2, "pairs.groups_per_step": 2}, [2, 5], [1, 2]),
        ({"search.cpus_per_worker": 3}, [4, 6], [1, 2]),
    ],
)
def test_devices_hold_as_many_trials_as_fit(
    known: KnownTrials, table: TrialTable, settings: dict[str, Any], counts: list[int], at_a_time: list[int]
) -> None:
    few = {"search.stage1_trials": 2, "search.stage2_trials": 2}
    plan = plan_search(known, table.space.with_settings({**few, **settings}), counts)
    assert [row.at_a_time for row in plan.rows] == at_a_time
    assert plan.device == ("GPU" if "search.gpus_per_worker" in settings else "CPU")


def test_too_few_devices_for_a_trial_are_refused(known: KnownTrials, table: TrialTable) -> None:
    with pytest.raises(ClusterError, match="a trial takes 4 CPUs"):
        plan_search(known, table.space.with_settings({"search.cpus_per_worker": 4}), [2, 8])


def test_more_trials_than_recorded_configurations_are_marked(known: KnownTrials, table: TrialTable) -> None:
    space = table.space.with_settings({"search.stage1_trials": CONFIGURATIONS + 1, "search.stage2_trials": 1})
    plan = plan_search(known, space, [CONFIGURATIONS])
    assert plan.beyond and plan.table().cells()[0][6].endswith("*")
    assert any("(40 and 40)" in note for note in plan.notes())


def row(devices: int, seconds: float) -> PlanRow:
    return PlanRow(
        devices=devices,
        at_a_time=devices,
        seconds=spread([seconds]),
        utilisation=0.5,
        figure=spread([0.5]),
        equal_seconds=None,
    )


@pytest.mark.parametrize(
    ("times", "trials", "knee"),
    [
        ({1: 100.0, 8: 50.0, 64: 46.0, 256: 45.5}, 300, 8),
        # 64 save little over 8, but 256 do not.
        ({1: 100.0, 8: 50.0, 64: 46.0, 256: 44.0}, 300, 64),
        ({1: 100.0, 8: 50.0, 64: 40.0}, 64, 64),
        ({1: 100.0, 8: 50.0, 64: 40.0}, 65, None),
        ({4: 10.0}, 65, None),
        ({4: 10.0}, 4, 4),
    ],
)
def test_the_knee(known: KnownTrials, times: dict[int, float], trials: int, knee: int | None) -> None:
    rows = [row(devices, seconds) for devices, seconds in times.items()]
    plan = Plan(device="GPU", searches=1, trials={1: trials, 2: 1}, known=known, rows=rows)
    assert plan.as_dict()["knee"] == knee
    assert plan.notes()[0].startswith(f"knee: {knee} GPUs" if knee else f"no knee up to {max(times)} GPUs")


def test_time_to_a_figure_is_that_of_the_mean_of_the_best_so_far() -> None:
    outcomes: Any = [
        SimpleNamespace(progress=[(2.0, 0.9), (6.0, 0.5)]),
        SimpleNamespace(progress=[(4.0, 0.7), (5.0, 0.6)]),
    ]
    # The means: 0.8 at 4, 0.75 at 5, 0.55 at 6.
    for target, time in ((0.9, 4.0), (0.8, 4.0), (0.79, 5.0), (0.6, 6.0), (0.54, None)):
        assert time_to(outcomes, lambda value, target=target: value <= target + 1e-9) == time


@pytest.mark.parametrize("text", ["", "0", "1,0", "1,,2", "x", "-1", "1.5", "9999999", "²"])
def test_a_bad_list_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="give numbers of GPUs or CPUs"):
        parse_counts(text)


def test_a_list_is_sorted() -> None:
    assert parse_counts("64, 1,8,8") == [1, 8, 64]


OWN_SPACE = {
    "dataset": "own",
    "fixed": {"stage1.epochs": 6, "stage2.epochs": 6},
    "stage1": {
        "stage1.head_lr": {"low": 1e-5, "high": 1e-1, "log": True, "start": 1e-3},
        "stage1.encoder_lr": {"low": 1e-6, "high": 1e-1, "log": True, "start": 1e-3},
        "model.modalities": {"choices": ["text", "other"], "start": "text"},
    },
    "stage2": {"stage2.head_lr": {"low": 1e-5, "high": 1e-1, "log": True, "start": 1e-3}},
}


@pytest.fixture
def own_run(tmp_path: Path) -> SyntheticRun:
    run = SyntheticRun(tmp_path / "own", text="text").start(space=OWN_SPACE)
    run.trials(1, "c" * 11 + "ppdfr", epochs=6).trials(2, "c" * 10 + "p", epochs=6)
    run.record.write_finalist(run.record.trial(1, 0), "0" * 64)
    return run


def test_a_runs_own_trials_are_a_table(own_run: SyntheticRun) -> None:
    own = run_table(own_run.record)
    assert own is not None
    # Those that failed, diverged or still run tell no result.
    assert (own.configurations(1), own.configurations(2)) == (13, 11)
    trials = own_run.record.trials(1)
    curves = np.array([[metrics["valid/pairwise_acc"] for metrics in trial.curve] for trial in trials[:11]])
    for number, row in enumerate(own.recorded(1)[:11]):
        np.testing.assert_array_equal(row.known.values_E, curves[number])
        assert row.known.seconds_E.tolist() == [1.25] * 6
    pruned, recorded = own.recorded(1)[11].known, trials[11].curve
    mean = curves.mean(0)
    expected = [*(metrics["valid/pairwise_acc"] for metrics in recorded), *(mean[2:] - mean[1])]
    expected[2:] = [recorded[1]["valid/pairwise_acc"] + rise for rise in expected[2:]]
    np.testing.assert_allclose(pruned.values_E, expected)
    drawn = own.draw(2, {"stage2.head_lr": 1e-3}, np.random.default_rng(0), 0.8)
    assert drawn.objective.keys() == {"valid"} and drawn.values_E.shape == (6,)


def test_a_run_with_few_complete_trials_is_no_table(own_run: SyntheticRun, tmp_path: Path) -> None:
    for number in (9, 8):
        trial = own_run.record.trial(2, number)
        own_run.record.write_trial(dataclasses.replace(trial, state="failed", error="lost", cause="error"))
    assert run_table(own_run.record) is None
    assert run_table(SyntheticRun(tmp_path / "none").record) is None


def other_space(**fixed: Any) -> Space:
    """A space of which the made table knows one of two settings of each stage."""
    rate = Range(1e-3, 1e1, True, 1e-1)
    return Space(
        "other",
        {"stage1.epochs": 6, "stage2.epochs": 2, **fixed},
        {"stage1.head_lr": rate, "model.fusion_dropout": Range(0.0, 0.5, False, 0.1)},
        {"stage2.head_lr": rate, "stage2.fusion_dropout": Choice((0.0, 0.1), 0.0)},
        "other.yaml",
    )


def test_a_table_serves_another_space(table: TrialTable) -> None:
    """By the places of its settings in their ranges; trials of another length are stretched."""
    moved = TransferredTrials(
        table=table,
        space=other_space(),
        epoch_seconds={1: 7.0, 2: 9.0},
        task="classification",
        protocol="own",
        half_range=0.5,
    )
    # 1e-1 is in the middle of its range, as 1e-3 is in that of the table.
    for stage, name in ((1, "model.fusion_dropout"), (2, "stage2.fusion_dropout")):
        params = {f"stage{stage}.head_lr": 1e-1, name: 0.1}
        there = {f"stage{stage}.head_lr": 1e-3, "stage2.fusion_dropout": 0.1}
        drawn = moved.draw(stage, params, np.random.default_rng(3), 0.8)  # type: ignore[arg-type]
        known = table.draw(stage, there, np.random.default_rng(3), 0.8)  # type: ignore[arg-type]
        values = known.values_E
        if stage == 1:
            between = [values[0], values[0], (values[0] + values[1]) / 2, values[1], (values[1] + values[2]) / 2]
            np.testing.assert_allclose(drawn.values_E, [*between, values[2]])
        else:
            np.testing.assert_allclose(drawn.values_E, values[1::2])
        assert drawn.seconds_E.tolist() == [7.0] * 6 if stage == 1 else [9.0] * 2
    assert moved.unknown == ["model.fusion_dropout", "stage2.fusion_dropout"]


@pytest.fixture
def simulated_run(
    run: Run, tiny_argv: list[Any], table_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Run:
    """Runs the command on the tiny data set with the made table as the package's; starts no Ray."""
    monkeypatch.setattr(trial_sources, "SHIPPED", table_path)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("started Ray"))
    return lambda *argv: run(*tiny_argv, *argv)


def test_the_command_prints_a_plan_and_writes_nothing(simulated_run: Run, tmp_path: Path) -> None:
    code, out, err = simulated_run("--simulate", "8,1", "--json", "--gpus-per-worker", "0")
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["unit"], plan["trials"], plan["data"]) == ("CPU", {"stage1": 6, "stage2": 5}, "mosi")
    assert [row["devices"] for row in plan["rows"]] == [1, 8]
    assert plan["rows"][0]["seconds"] > plan["rows"][1]["seconds"] and plan["knee"] == 8
    assert any("estimated from a few timed passes" in note for note in plan["notes"])
    assert not (tmp_path / "runs").exists()
    code, out, err = simulated_run("--simulate", "2", "--gpus-per-worker", "1")
    assert code == 0, err
    assert "GPU-hours" in out and "from an assumed rate" in out


def test_epochs_on_record_give_the_time(
    simulated_run: Run, tiny_store: DatasetStore, recorded: Any, tmp_path: Path
) -> None:
    """A run with too few trials for a plan of its own still has their time."""
    code, out, err = simulated_run("--simulate", "1", "--storage", recorded.folder.parent, "--name", "recorded")
    assert code == 0, err
    assert f"measured in {recorded.folder}" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--simulate", "1,none"], 2, "give numbers of GPUs or CPUs, 1 or more, such as 1,8,64"),
        (["--simulate", "1", "--workers", "2", "--set", "pairs.groups_per_step=2"], 5, "a trial takes 2 CPUs"),
        (["--simulate", "1", "--direct"], 2, "a search of one stage is planned from its own run"),
        (["--simulate", "1", "--set", "model.modalities=audio+vision"], 2, "models that read the text only"),
    ],
)
def test_what_cannot_be_planned_is_refused(simulated_run: Run, words: list[str], code: int, message: str) -> None:
    ended, out, err = simulated_run("--gpus-per-worker", "0", *words)
    assert (ended, out) == (code, "")
    assert message in err
