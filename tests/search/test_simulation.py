"""Searches on recorded trials: what is drawn, what the clock shows, and that a simulation is a search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_trials import write_table

from grcf_ray.errors import DataError
from grcf_ray.search.simulation import simulate
from grcf_ray.search.table_file import read_table
from grcf_ray.search.trial_table import TrialTable
from tests.search.made_trials import (
    ABOUT,
    CONFIGURATIONS,
    EPOCHS,
    LABELS,
    N_VALID,
    SEEDS,
    TRIALS,
    noise_of,
    recorded_trial,
)


def test_a_table_has_the_objectives_and_errors_of_its_scores(table: TrialTable) -> None:
    assert (table.configurations(1), table.configurations(2)) == (CONFIGURATIONS, CONFIGURATIONS)
    scores, known = recorded_trial(2, 0, 0)["scores"], table.recorded(2)[0].known
    # Scores are rounded to a 64th of a label unit; the objectives come from the scores before.
    np.testing.assert_allclose(known.error["valid"], (scores - LABELS)[:, :N_VALID], atol=1 / 128 + 1e-9)
    np.testing.assert_allclose(known.objective["test"], np.abs(scores - LABELS)[:, N_VALID:].mean(1), rtol=1e-6)
    first = table.recorded(1)[0].known
    scores = recorded_trial(1, 0, 0)["scores"][:, :N_VALID]
    above = LABELS[:N_VALID, None] > LABELS[:N_VALID]
    share = [((row[:, None] > row) & above).sum() / above.sum() for row in scores]
    np.testing.assert_allclose(first.objective["valid"], share, rtol=1e-6)
    assert len(first.seconds_E) == EPOCHS[1] and len(first.values_E) == EPOCHS[1]


def test_a_table_grows(table: TrialTable, tmp_path: Path) -> None:
    first, whole = tmp_path / "first.parquet", tmp_path / "whole.parquet"
    write_table(first, ABOUT, [trial for trial in TRIALS if trial["configuration"] < 10])
    write_table(whole, ABOUT, [trial for trial in TRIALS if trial["configuration"] >= 10], after=first)
    grown = read_table(whole, with_errors=True)
    for stage in (1, 2):
        assert grown.configurations(stage) == CONFIGURATIONS
        kept = {trial.known.objective["valid"].tobytes() for trial in table.recorded(stage)}
        assert {trial.known.objective["valid"].tobytes() for trial in grown.recorded(stage)} == kept


def test_a_table_without_scores_has_the_same_figures(table: TrialTable, tmp_path: Path) -> None:
    path = tmp_path / "trials.parquet"
    write_table(path, ABOUT, TRIALS, with_scores=False)
    small = read_table(path)
    for stage in (1, 2):
        for trial, full in zip(small.recorded(stage), table.recorded(stage), strict=True):
            assert not trial.known.error
            np.testing.assert_array_equal(trial.known.objective["valid"], full.known.objective["valid"])
    with pytest.raises(DataError, match="no scores"):
        read_table(path, with_errors=True)


def test_trials_that_diverged_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trials.parquet"
    cut = [{**TRIALS[3], "curve": TRIALS[3]["curve"][:1], "scores": TRIALS[3]["scores"][:1]}]
    # In its first epoch.
    cut.append({**TRIALS[-1], "curve": [], "scores": np.array([])})
    write_table(path, ABOUT, [*TRIALS[:3], *cut, *TRIALS[4:-1]])
    read = read_table(path)
    assert [len(read.recorded(stage)) for stage in (1, 2)] == [CONFIGURATIONS * SEEDS - 1] * 2


def test_draws_follow_the_settings_and_differ_by_seed(table: TrialTable) -> None:
    drawn = {
        rate: np.array(
            [
                table.draw(
                    2, {"stage2.head_lr": rate, "stage2.fusion_dropout": 0.2}, np.random.default_rng(seed), 0.8
                ).objective["valid"]
                for seed in range(40)
            ]
        )
        for rate in (2e-4, 1e-3, 8e-3)
    }
    for rate, values in drawn.items():
        expected = [
            noise_of(2, {"stage2.head_lr": rate}, epoch) * np.sqrt(2 / np.pi) for epoch in range(1, EPOCHS[2] + 1)
        ]
        np.testing.assert_allclose(values.mean(0)[:-1], expected, atol=0.12)
        assert 0.0 < values.std(0)[-1] < 0.2
    assert drawn[1e-3].mean() < min(drawn[2e-4].mean(), drawn[8e-3].mean())


def test_draws_have_the_spread_of_the_recorded_trials_but_do_not_repeat_them(table: TrialTable) -> None:
    params = {"stage2.head_lr": 1e-3, "stage2.fusion_dropout": 0.2}
    drawn = np.array([table.draw(2, params, np.random.default_rng(seed), 0.8).values_E[-1] for seed in range(300)])
    trials = [recorded_trial(2, number, seed) for number in range(CONFIGURATIONS) for seed in range(SEEDS)]
    luck = [
        row.known.values_E[-1] - expected(table, trial["params"])
        for trial, row in zip(trials, table.recorded(2), strict=True)
        if 3e-4 < trial["params"]["stage2.head_lr"] < 3e-3
    ]
    assert len(set(drawn.tolist())) == len(drawn)
    assert 0.6 < drawn.std() / np.std(luck) < 1.6


def expected(table: TrialTable, params: Mapping[str, Any]) -> float:
    """The validation figure that the table's model expects of the last epoch of Stage 2."""
    model = table._models[2]
    return float(model.trends(model.place(params, 0.8)[None])["valid"][0, -2])


def test_a_shift_changes_errors_as_much_as_their_mean(table: TrialTable) -> None:
    known = table.recorded(2)[0].known
    by = {split: np.linspace(0.0, 0.2, EPOCHS[2] + 1) for split in ("valid", "test")}
    moved = known.shifted(by)
    size, before = (np.abs(trial.error["test"]).mean(1) for trial in (moved, known))
    np.testing.assert_allclose(size, before + by["test"], rtol=1e-12)
    np.testing.assert_array_equal(np.sign(moved.error["test"]), np.sign(known.error["test"]))
    np.testing.assert_allclose(moved.objective["test"], known.objective["test"] + by["test"], rtol=1e-12)


@pytest.mark.parametrize("slots", [1, 4, 100])
def test_the_clock_shows_when_the_last_trial_ends(table: TrialTable, slots: int) -> None:
    outcome = simulate(table, table.space, slots=slots, seed=0)
    rounds = [-(-trials // slots) * EPOCHS[stage] * 2.0 * stage for stage, trials in ((1, 6), (2, 8))]
    assert outcome.seconds == pytest.approx(sum(rounds))
    assert outcome.busy == pytest.approx(6 * EPOCHS[1] * 2.0 + 8 * EPOCHS[2] * 4.0)
    assert outcome.passes == 6 * EPOCHS[1] + 8 * EPOCHS[2]


def test_a_simulation_repeats_and_depends_on_its_seed(table: TrialTable) -> None:
    first, again, other = (simulate(table, table.space, slots=2, seed=seed) for seed in (0, 0, 1))
    assert first.winner.params == again.winner.params != other.winner.params
    assert first.known.objective["test"].tolist() == again.known.objective["test"].tolist()
    assert first.winner.objective == first.known.objective["valid"][first.known.best]


def test_more_trials_find_better_settings(table: TrialTable) -> None:
    few, many = (
        [expected(table, simulate(table, space, slots=4, seed=seed).winner.params) for seed in range(8)]
        for space in (table.space.with_settings({"search.stage2_trials": trials}) for trials in (2, 24))
    )
    assert np.mean(many) < np.mean(few)


def test_early_stopping_saves_time(table: TrialTable) -> None:
    halved = table.space.with_settings({"search.pruning": True, "search.grace_epochs": 1, "search.reduction_factor": 3})
    whole, stopped = (simulate(table, space, slots=2, seed=3) for space in (table.space, halved))
    assert stopped.passes < whole.passes and stopped.seconds < whole.seconds
    # No more trials at a time than slots.
    assert stopped.busy <= 2 * stopped.seconds


def test_early_stopping_leaves_trials_alone_that_have_the_slots_to_themselves(table: TrialTable) -> None:
    halved = table.space.with_settings({"search.pruning": True, "search.grace_epochs": 1, "search.reduction_factor": 3})
    whole, stopped = (simulate(table, space, slots=8, seed=3) for space in (table.space, halved))
    assert (stopped.passes, stopped.seconds) == (whole.passes, whole.seconds)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.parquet"
    path.write_text(json.dumps({}))
    with pytest.raises(DataError, match="not a table of recorded trials"):
        read_table(path)
