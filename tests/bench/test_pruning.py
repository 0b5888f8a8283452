from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from optuna.trial import TrialState

from grcf_ray.bench import pruning
from grcf_ray.bench.pruning import Outcome, ToldAsComplete, pruning_tables
from grcf_ray.bench.setup import Setup
from grcf_ray.search.searcher import OptunaSearcher
from grcf_ray.search.space import load_space

if TYPE_CHECKING:
    from pathlib import Path

    from grcf_ray.data.store import DatasetStore


def proposals(kind: type[OptunaSearcher]) -> OptunaSearcher:
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


def test_only_stopped_trials_are_told_otherwise() -> None:
    curve = [{"epoch": epoch, "valid/pairwise_acc": 0.5 + epoch / 10} for epoch in (1, 2, 3)]
    truth, otherwise = proposals(OptunaSearcher), proposals(ToldAsComplete)
    for whole in ((curve, None), (curve, "diverged"), ([], "failed")):
        assert truth.outcome(*whole) == otherwise.outcome(*whole)
    assert truth.outcome(curve[:2], None)[0] == TrialState.PRUNED
    assert otherwise.outcome(curve[:2], None) == (TrialState.COMPLETE, {1: 0.6, 2: 0.7}, 0.7)


def test_row_of_known_outcomes() -> None:
    first = [Outcome(0.70, 40, 0), Outcome(0.72, 40, 0), Outcome(0.74, 40, 0)]
    row = pruning._row("asha", [Outcome(0.71, 10, 6), Outcome(0.72, 20, 6), Outcome(0.73, 30, 9)], first)
    assert row["share"] == pytest.approx(0.5)
    assert row["stopped"] == 7
    assert row["difference"] == pytest.approx(0)
    # Differences of +0.01, 0 and -0.01: a standard error of 0.01 / sqrt(3), and t(2) at 97.5 % is 4.3027.
    assert row["high"] == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    assert "difference" not in pruning._row("none", first, first)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_searches_of_all_variants(
    tiny_store: DatasetStore, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("SEEDS", (1, 2)), ("EPOCHS", 3), ("PAIRS", 12), ("LAYERS_LEFT", 1)):
        monkeypatch.setattr(pruning, name, value)
    space = load_space(tiny_space)
    setup = Setup(tiny_store, space.config(), space, torch.device("cpu"), 1, 6, 2, tmp_path, lambda _: None)
    whole, by_seed = pruning_tables(setup)
    none, asha, complete = whole.rows
    assert none["epochs"] == 18
    assert none["stopped"] == 0
    assert asha["epochs"] < 18 > complete["epochs"]
    assert asha["stopped"] > 0
    assert [row["name"] for row in by_seed.rows] == ["1", "2"]
