"""The study of search policies: its noise, its race, and that every policy delivers a model for its cost."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from policies import SeenTable
from record_trials import next_configuration, write_table
from recorded_noise import (
    GROUP,
    averaging_table,
    by_configuration,
    ensembles_table,
    explained_share,
    finalists_table,
    judged_gain,
    variance_table,
)
from scipy import stats
from search_endings import (
    Candidate,
    Contender,
    Finished,
    Race,
    best_by_more_utterances,
    best_by_test,
    best_by_validation,
    best_configuration,
    drop_worst,
    ensemble_error,
    greedy_ensemble,
    mean_of_best,
)
from search_policy import POLICIES, Policy, play

from grcf_ray.errors import ConfigError
from grcf_ray.search.table_file import read_table
from grcf_ray.search.trial_table import KnownTrial
from tests.search.made_trials import ABOUT, CONFIGURATIONS, LABELS, N_VALID, TRIALS

if TYPE_CHECKING:
    from grcf_ray.search.trial_table import TrialTable


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_every_policy_delivers_a_model(table_path: Path, policy: Policy) -> None:
    first, again, other = (play(table_path, policy, 6, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 1 + len(policy.others)
    assert all(0.1 < delivered.valid < 2.0 and 0.1 < delivered.test < 2.0 for delivered in first)
    race = policy.ending
    whole = 6 * (3 + 4) * policy.folds
    whole += 7 * race.rounds * (race.contenders + 1) if isinstance(race, Race) else 0
    assert all(6 * 2 <= delivered.passes <= whole for delivered in first)


def test_the_race_drops_the_worst_when_it_is_sure(table: TrialTable) -> None:
    seen = SeenTable(table)
    rng = np.random.default_rng(0)
    make = functools.partial(Contender, {"stage1.head_lr": 1e-3})
    good, equal, bad = (make({"stage2.head_lr": rate, "stage2.fusion_dropout": 0.2}) for rate in (1e-3, 1e-3, 1e-2))
    for contender in (good, equal, bad):
        for _ in range(4):
            contender.add(seen, rng)
    racing = [good, bad, equal]
    drop_worst(racing, rng)
    assert racing == [good, equal]
    racing = [good, good]
    drop_worst(racing, rng)
    assert racing == [good, good]


def test_the_variance_is_taken_apart(table: TrialTable) -> None:
    rows = {row["stage"]: row for row in variance_table(table).rows}
    figures = by_configuration(table, 2)["test"]
    assert figures.shape == (40, 2)
    # One-way analysis of variance, by hand.
    within = np.mean([(a - b) ** 2 / 2 for a, b in figures])
    between = figures.mean(axis=1).var(ddof=1) - within / 2
    row = rows["2: MAE, test"]
    assert row["seed"] ** 2 == pytest.approx(within)
    assert row["share"] == pytest.approx(between / (between + within))
    assert row["share"] > 0.5


def test_the_share_of_a_stage_1_model_is_that_of_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    covered, shares = 0, []
    for _ in range(300):
        group_T = np.repeat(np.arange(20), rng.integers(1, 5, 20))
        value_T = rng.normal(size=20)[group_T] + rng.normal(size=len(group_T))
        share, low, high = explained_share(value_T, group_T)
        shares.append(share)
        covered += low <= 0.5 <= high
    assert np.mean(shares) == pytest.approx(0.5, abs=0.04)
    assert 0.92 <= covered / 300 <= 0.98
    # Groups of two: the squared differences within, by hand.
    value_GT = rng.normal(size=(10, 1)) + rng.normal(size=(10, 2))
    within = ((value_GT[:, 0] - value_GT[:, 1]) ** 2 / 2).mean()
    between = (2 * value_GT.mean(axis=1).var(ddof=1) - within) / 2
    share, _, _ = explained_share(value_GT.reshape(-1), np.repeat(np.arange(10), 2))
    assert share == pytest.approx(between / (between + within))


def test_a_judge_gains_what_a_selection_by_it_gains(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # Of 4,000 models with three trials each, a trial judges the model, and the others have its use without that luck.
    use_G = rng.normal(size=4000)
    judged_GT = use_G[:, None] + rng.normal(size=(4000, 3))
    figure_GT = 0.5 * use_G[:, None] + judged_GT - use_G[:, None]
    group_T = np.repeat(np.arange(4000), 3)
    gain, low, high = judged_gain(judged_GT.reshape(-1), figure_GT.reshape(-1), group_T)
    chosen = np.argsort(judged_GT[:, 0].reshape(500, 8), axis=1)[:, :3]
    plain = np.take_along_axis(figure_GT[:, 1].reshape(500, 8), chosen, axis=1).mean()
    assert low < gain < high
    assert gain == pytest.approx(plain, abs=0.06) and gain < -0.25
    shared = [trial | {"finalist": trial["configuration"] % 10} if trial["stage"] == 2 else trial for trial in TRIALS]
    write_table(tmp_path / "shared.parquet", ABOUT, shared)
    judged = finalists_table(read_table(tmp_path / "shared.parquet"))
    assert "80 trials of Stage 2 from 20 models" in judged.title
    # The made trials do not depend on where they start.
    for row in judged.rows:
        assert abs(float(row["test"].split()[0])) < 0.1


def test_averaging_gains_what_it_does_over_all_pairs(table: TrialTable) -> None:
    models = [trial.known for trial in table.recorded(2)]
    error_MN = np.array([known.error["test"][known.best] for known in models])
    size_M = np.abs(error_MN).mean(axis=1)
    gains = [
        np.abs(error_MN[[i, j]].mean(axis=0)).mean() - size_M[[i, j]].mean()
        for i in range(len(models))
        for j in range(i)
    ]
    row = averaging_table(table).rows[0]
    assert row["size"] == 2
    assert float(row["test"].split()[0]) == pytest.approx(np.mean(gains), abs=0.01)


def finished(table: SeenTable, models: list[KnownTrial], rates: list[float]) -> Finished:
    candidates = [
        Candidate({}, {"stage2.head_lr": rate, "stage2.fusion_dropout": 0.2}, 0.8, known)
        for known, rate in zip(models, rates, strict=True)
    ]
    return Finished(
        table=table,
        seed=0,
        winner=models[0],
        candidates=candidates,
        passes=10.0,
        seconds=20.0,
        seconds_per_pass=1.0,
    )


def model(valid: float, error: np.ndarray) -> KnownTrial:
    """A model of one epoch, with an error of its own on each utterance."""
    parts = {"valid": error[:N_VALID], "test": error[N_VALID:]}
    return KnownTrial(
        stage=2,
        objective={"valid": np.array([valid]), "test": np.array([np.abs(parts["test"]).mean()])},
        seconds_E=np.ones(1),
        passes_E=np.ones(1),
        error={split: part[None] for split, part in parts.items()},
    )


def test_each_judge_delivers_the_model_that_it_finds_best(table: TrialTable) -> None:
    rng = np.random.default_rng(0)
    sizes = [1.0, 0.5, 0.8, 1.2]
    models = [model(0.1 * number, size * rng.normal(size=len(LABELS))) for number, size in enumerate(sizes)]
    # The third has the learning rate that the made trials are best with.
    search = finished(SeenTable(table), models, [1e-4, 1e-2, 1e-3, 5e-3])
    test = [float(known.objective["test"][0]) for known in models]
    assert best_by_validation(search).test == test[0]
    assert best_by_test(search).test == min(test) == test[1]
    assert best_configuration(search).test == test[2]
    # The second is best on any half, so its figure is the mean of both halves.
    judged = best_by_more_utterances(search)
    assert judged.test == pytest.approx(test[1], abs=1e-12) and judged.valid == pytest.approx(0.1)
    assert {best_by_validation(search).passes, judged.passes, best_by_test(search).passes} == {10.0}


def test_an_ensemble_has_the_error_of_the_mean_score(table: TrialTable) -> None:
    rng = np.random.default_rng(0)
    score_MN = np.array([LABELS + rng.normal(size=len(LABELS)) for _ in range(5)])
    models = [model(0.1 * number, score_N - LABELS) for number, score_N in enumerate(score_MN)]
    search = finished(SeenTable(table), models, [1e-3] * 5)
    error_N = np.abs(score_MN[:3].mean(axis=0) - LABELS)
    assert mean_of_best(search).valid == pytest.approx(error_N[:N_VALID].mean())
    assert mean_of_best(search).test == pytest.approx(error_N[N_VALID:].mean())
    # Greedy, in a plain loop over scores.
    chosen: list[int] = []
    least = np.inf
    for _ in range(10):
        errors = [np.abs(score_MN[[*chosen, m]].mean(axis=0) - LABELS)[:N_VALID].mean() for m in range(5)]
        if min(errors) >= least:
            break
        least = min(errors)
        chosen.append(int(np.argmin(errors)))
    assert len(chosen) > 1
    assert greedy_ensemble(search).valid == pytest.approx(least)
    assert greedy_ensemble(search).test == pytest.approx(ensemble_error([models[m] for m in chosen], "test"))


def test_ensembles_of_groups_against_their_best_trial(table: TrialTable) -> None:
    rows = ensembles_table(table).rows
    models = [trial.known for trial in table.recorded(2)]
    order = np.random.default_rng(0).permutation(len(models))
    tests: dict[int, list[float]] = {1: [], 3: [], GROUP: []}
    for first in range(0, len(order) - GROUP + 1, GROUP):
        group = [models[index] for index in order[first : first + GROUP]]
        group.sort(key=lambda known: min(known.values_E))
        for size, errors in tests.items():
            mean_N = sum(known.error["test"][known.best] for known in group[:size]) / size
            errors.append(float(np.abs(mean_N).mean()))
    assert [row["models"] for row in rows] == list(tests)
    assert [row["test"] for row in rows] == pytest.approx([np.mean(errors) for errors in tests.values()])
    assert "difference" not in rows[0]
    for row, errors in zip(rows[1:], list(tests.values())[1:], strict=True):
        interval = stats.ttest_rel(errors, tests[1]).confidence_interval(0.95)
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))


def test_a_table_is_extended_by_trials_of_its_own_space(table_path: Path, table: TrialTable) -> None:
    assert next_configuration(table_path, table.space) == CONFIGURATIONS
    with pytest.raises(ConfigError, match="another space or precision"):
        next_configuration(table_path, table.space.with_settings({"train.precision": "bfloat16"}))
