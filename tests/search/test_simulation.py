"""Searches on recorded trials: what is drawn, what the clock shows, and that a simulation is a search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grcf_ray.errors import DataError
from grcf_ray.search.simulation import simulate
from grcf_ray.search.table_file import read_table, write_table
from grcf_ray.search.trial_table import TrialTable

EPOCHS = {1: 3, 2: 4}
SPACE = {
    "dataset": "mosi",
    "fixed": {
        "stage1.epochs": EPOCHS[1],
        "stage2.epochs": EPOCHS[2],
        "search.stage1_trials": 6,
        "search.stage2_trials": 8,
        "search.finalists": 2,
        "search.pruning": False,
        "search.gpus_per_worker": 0.0,
        "train.precision": "float32",
    },
    "stage1": {"stage1.head_lr": {"low": 1e-4, "high": 1e-2, "log": True, "start": 1e-3}},
    "stage2": {
        "stage2.head_lr": {"low": 1e-4, "high": 1e-2, "log": True, "start": 1e-4},
        "stage2.fusion_dropout": {"low": 0.0, "high": 0.5, "log": False, "start": 0.1},
    },
}
CONFIGURATIONS, SEEDS = 40, 2
LABELS = np.random.default_rng(0).uniform(-3, 3, 90)
N_VALID = 40


def noise_of(stage: int, params: Mapping[str, Any], epoch: int) -> float:
    """The size of a model's errors: least at a rate of 1e-3, whatever the dropout, and less with each epoch."""
    rate = params[f"stage{stage}.head_lr"]
    return float(0.3 + 0.4 * np.log10(rate / 1e-3) ** 2 + 0.5 / epoch)


def recorded_trial(stage: int, configuration: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng([stage, configuration])
    params: dict[str, Any] = {f"stage{stage}.head_lr": float(10 ** rng.uniform(-4, -2))}
    if stage == 2:
        params["stage2.fusion_dropout"] = float(rng.uniform(0, 0.5))
    rng = np.random.default_rng([stage, configuration, seed, 1])
    epochs = EPOCHS[stage]
    sizes = [noise_of(stage, params, epoch) for epoch in (*range(1, epochs + 1), epochs)]
    return {
        "stage": stage,
        "configuration": configuration,
        "seed": seed,
        "finalist": configuration if stage == 2 else None,
        "params": params,
        "curve": [
            {"epoch": epoch, "seconds": 2.0 * stage, "utterance_passes": 1.0, "ignored": 7}
            for epoch in range(1, epochs + 1)
        ],
        "scores": np.clip([LABELS + size * rng.normal(size=len(LABELS)) for size in sizes], -6, 6),
    }


ABOUT = {
    "dataset": "mosi",
    "task": "regression",
    "protocol": "mosi",
    "half_range": 3.0,
    "space": SPACE,
    "valid": LABELS[:N_VALID].tolist(),
    "test": LABELS[N_VALID:].tolist(),
}
TRIALS = [
    recorded_trial(stage, configuration, seed)
    for stage in (1, 2)
    for configuration in range(CONFIGURATIONS)
    for seed in range(SEEDS)
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TrialTable:
    path = tmp_path_factory.mktemp("table") / "trials.parquet"
    write_table(path, ABOUT, TRIALS)
    return read_table(path, with_errors=True)


def test_a_table_has_the_objectives_and_errors_of_its_scores(table: TrialTable) -> None:
    assert (table.configurations(1), table.configurations(2)) == (CONFIGURATIONS, CONFIGURATIONS)
    scores, known = recorded_trial(2, 0, 0)["scores"], table.recorded(2)[0]
    # Scores are rounded to a 64th of a label unit; the objectives come from the scores before.
    np.testing.assert_allclose(known.error["valid"], np.abs(scores - LABELS)[:, :N_VALID], atol=1 / 128 + 1e-9)
    np.testing.assert_allclose(known.objective["test"], np.abs(scores - LABELS)[:, N_VALID:].mean(1), rtol=1e-6)
    first = table.recorded(1)[0]
    scores = recorded_trial(1, 0, 0)["scores"][:, :N_VALID]
    above = LABELS[:N_VALID, None] > LABELS[:N_VALID]
    share = [((row[:, None] > row) & above).sum() / above.sum() for row in scores]
    np.testing.assert_allclose(first.objective["valid"], share, rtol=1e-6)
    assert len(first.seconds_E) == EPOCHS[1] and len(first.values_E) == EPOCHS[1]


def test_a_table_without_scores_has_the_same_figures(table: TrialTable, tmp_path: Path) -> None:
    path = tmp_path / "trials.parquet"
    write_table(path, ABOUT, TRIALS, with_scores=False)
    small = read_table(path)
    for stage in (1, 2):
        for known, full in zip(small.recorded(stage), table.recorded(stage), strict=True):
            assert not known.error
            np.testing.assert_array_equal(known.objective["valid"], full.objective["valid"])
    with pytest.raises(DataError, match="no scores"):
        read_table(path, with_errors=True)


def test_trials_that_diverged_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trials.parquet"
    cut = {**TRIALS[3], "curve": TRIALS[3]["curve"][:1], "scores": TRIALS[3]["scores"][:1]}
    write_table(path, ABOUT, [*TRIALS[:3], cut, *TRIALS[4:]])
    assert len(read_table(path).recorded(1)) == CONFIGURATIONS * SEEDS - 1


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


def test_a_shift_changes_errors_as_much_as_their_mean(table: TrialTable) -> None:
    known = table.recorded(2)[0]
    by = {split: np.linspace(0.0, 0.2, EPOCHS[2] + 1) for split in ("valid", "test")}
    moved = known.shifted(by)
    np.testing.assert_allclose(moved.error["test"].mean(1), known.error["test"].mean(1) + by["test"], rtol=1e-12)
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
        [
            table.expected(2, simulate(table, space, slots=4, seed=seed).winner.params, 0.8)["valid"][-2]
            for seed in range(8)
        ]
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
