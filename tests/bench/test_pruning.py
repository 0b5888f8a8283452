from __future__ import annotations

from typing import TYPE_CHECKING

import pruning
import pytest
from optuna.trial import TrialState
from pruning import Outcome, ReportAsComplete

from grcf_ray.search.record import RunRecord
from grcf_ray.search.searcher import OptunaSearcher
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from grcf_ray.bench.setup import Setup
    from grcf_ray.search.space import Space


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

    def outcome(setup: Setup, record: RunRecord, space: Space, searcher: type[OptunaSearcher]) -> Outcome:
        search = space.config().search
        searched.append((space.config().seed, search.pruning, searcher))
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
    setup = setup_of({"stage2.epochs": 0, "search.pruning": True, "search.reduction_factor": 3.0})
    record = RunRecord(storage_path(tmp_path / "pruning"))
    outcome = pruning.search_outcome(setup, record, setup.space, ReportAsComplete)
    assert 0.5 < outcome.best <= 1
    assert 0 < outcome.stopped < 6 and outcome.epochs < 18
