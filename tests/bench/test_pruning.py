from __future__ import annotations

from typing import TYPE_CHECKING

import pruning
import pytest
from optuna.trial import TrialState
from pruning import Outcome, ReportAsComplete

from grcf_ray.search.searcher import OptunaSearcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from grcf_ray.bench.setup import Setup


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


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_searches_of_all_variants(setup_of: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SEEDS", (1, 2)), ("EPOCHS", 3), ("PAIRS", 12), ("TRAINED_LAYERS", 1)):
        monkeypatch.setattr(pruning, name, value)
    whole, by_seed = pruning.pruning_tables(setup_of())
    none, asha, complete = whole.rows
    assert none["epochs"] == 18
    assert none["stopped"] == 0
    assert asha["epochs"] < 18 > complete["epochs"]
    assert asha["stopped"] > 0
    assert [row["name"] for row in by_seed.rows] == ["1", "2"]
