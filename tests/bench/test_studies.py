"""The studies of precision and pruning, and what all studies share."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import precision
import pruning
import pytest
from optuna.trial import TrialState
from pruning import CompleteSearch, Outcome, ReportAsComplete
from scipy import stats
from study import paired_interval, run_study

from grcf_ray.search.record import RunRecord
from grcf_ray.search.searcher import OptunaSearcher
from grcf_ray.storage import storage_path
from grcf_ray.tables import Column, Table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from grcf_ray.bench.setup import Setup
    from grcf_ray.data.store import DatasetStore
    from grcf_ray.search.space import Space
    from grcf_ray.search.stages import Search


def test_a_study_writes_its_tables(
    tiny_space: Path, tiny_store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--dataset", "tiny", "--space", tiny_space, "--data", tiny_store.folder]
    words += ["--trials", "16", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/speed.py", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_study(
            "speed",
            "/checkout/benchmarks/speed.py",
            lambda setup: [Table("t", "A table", (Column("n", "trials"),), [{"n": setup.trials}])],
        )
    assert ended.value.code == 0
    written = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert written["command"].startswith("python benchmarks/speed.py --dataset tiny")
    assert "--data DIR " in written["command"]
    assert written["tables"][0]["rows"] == [{"n": 16}]
    assert "A table" in (tmp_path / "out" / "speed.md").read_text()


def test_paired_interval_is_that_of_the_differences() -> None:
    values, reference = [1.0, 2.0, 4.0, 3.0], [0.5, 2.5, 3.0, 2.0]
    gain_S = np.subtract(values, reference)
    low, high = stats.t.interval(0.95, 3, gain_S.mean(), stats.sem(gain_S))
    expected = {"difference": gain_S.mean(), "low": low, "high": high}
    assert paired_interval(values, reference) == pytest.approx(expected)


def searcher(kind: type[OptunaSearcher]) -> OptunaSearcher:
    return kind(
        {},
        starts=(),
        budget=1,
        trials=(),
        stage=1,
        epochs=3,
        seed=0,
        n_startup_trials=1,
        feasible=lambda _: True,
        launch=lambda number, params: params,
    )


def test_only_stopped_trials_are_reported_as_complete() -> None:
    curve = [{"epoch": epoch, "valid/pairwise_acc": 0.5 + epoch / 10} for epoch in (1, 2, 3)]
    default, complete = searcher(OptunaSearcher), searcher(ReportAsComplete)
    for whole in ((curve, None), (curve, "diverged"), ([], "failed")):
        assert default.outcome(*whole) == complete.outcome(*whole)
    assert default.outcome(curve[:2], None)[0] == TrialState.PRUNED
    assert complete.outcome(curve[:2], None) == (TrialState.COMPLETE, {1: 0.6, 2: 0.7}, 0.7)


def test_row_of_known_outcomes() -> None:
    first = [Outcome(0.70, 40, 0), Outcome(0.72, 40, 0), Outcome(0.74, 40, 0)]
    row = pruning.variant_row("asha", [Outcome(0.71, 10, 6), Outcome(0.72, 20, 6), Outcome(0.73, 30, 9)], first)
    assert row["share"] == pytest.approx(0.5)
    assert row["stopped"] == 7
    assert row["difference"] == pytest.approx(0)
    # Differences of +0.01, 0 and -0.01: a standard error of 0.01 / sqrt(3), and t(2) at 97.5 % is 4.3027.
    assert row["high"] == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    assert "difference" not in pruning.variant_row("none", first, first)


def test_every_variant_runs_under_every_seed(setup_of: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []

    def outcome(setup: Setup, record: RunRecord, space: Space, kind: type[Search]) -> Outcome:
        search = space.config().search
        searched.append((space.config().seed, search.pruning, kind))
        assert (search.stage1_trials, space.config().stage2.epochs, list(space.stage2)) == (6, 0, [])
        return Outcome(0.7 + len(searched) / 100, 20 if search.pruning else 40, 5 * search.pruning)

    monkeypatch.setattr(pruning, "SEEDS", (1, 2))
    monkeypatch.setattr(pruning, "TRAINED_LAYERS", 1)
    monkeypatch.setattr(pruning, "search_outcome", outcome)
    whole, by_seed = pruning.pruning_tables(setup_of())
    assert searched == [(seed, *variant) for seed in (1, 2) for variant in pruning.VARIANTS.values()]
    assert [(row["epochs"], row["share"], row["stopped"]) for row in whole.rows] == [(40, 1, 0), *[(20, 0.5, 5)] * 2]
    assert [row["name"] for row in by_seed.rows] == ["1", "2"]


@pytest.mark.integration
@pytest.mark.usefixtures("ray_session")
def test_outcome_of_a_search(setup_of: Callable[..., Setup], tmp_path: Path) -> None:
    settings = {"stage2.epochs": 0, "search.pruning": True, "search.reduction_factor": 3.0, "search.concurrent": 1}
    setup = setup_of(settings)
    record = RunRecord(storage_path(tmp_path / "pruning"))
    outcome = pruning.search_outcome(setup, record, setup.space, CompleteSearch)
    assert 0.5 < outcome.best <= 1
    assert 0 < outcome.stopped < 6 and outcome.epochs < 18


def test_precisions_are_compared_by_seed() -> None:
    """The seeds' own spread does not widen the interval; times are compared by seed, too."""
    figures = {1: (0.6, 1.0), 2: (0.7, 0.9), 3: (0.8, 0.8)}
    results = {
        (seed, name): {"pairwise_acc": accuracy + more, "mae": error - more, "seconds": seconds * seed}
        for seed, (accuracy, error) in figures.items()
        for name, more, seconds in (("float32", 0.0, 3.0), ("bfloat16", 0.001 * seed, 2.0))
    }
    table = precision.metrics_table(results)
    accuracy, error = table.rows
    assert (accuracy["single"], accuracy["half"]) == (pytest.approx(0.7), pytest.approx(0.702))
    assert accuracy["difference"] == pytest.approx(0.002) == pytest.approx(-error["difference"])
    assert accuracy["deviation"] == pytest.approx(0.1) and accuracy["high"] - accuracy["low"] < 0.01
    assert any("median 1.50" in note for note in table.notes)
