"""The study of endings: averages of known models, its tables, and a seed on made data."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import endings
import numpy as np
import pytest
import torch
from endings import AGAIN_BEST, AGAIN_LAST, ENSEMBLE, GREEDY, REFIT, SINGLE, SOUP, THREE, Model, Trainings
from recording import Source
from scipy import stats

from grcf_ray.search.table_file import write_table
from tests.search.made_trials import ABOUT, TRIALS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from grcf_ray.data.store import DatasetStore

ENDINGS = [SINGLE, GREEDY, SOUP, THREE, ENSEMBLE, AGAIN_BEST, AGAIN_LAST, REFIT]
VALID, TEST = np.array([0.0, 1.0]), np.array([1.0, 3.0])


class Line:
    """A loop whose model has two weights: the scores of valid, and those of test are twice as large."""

    def scores_of(self, weights: dict[str, torch.Tensor]) -> NDArray[np.float64]:
        scores = weights["scores"].numpy()
        return np.concatenate([scores, 2 * scores])

    def objectives(self, score_N: NDArray[np.float64]) -> dict[str, float]:
        return {"valid": float(np.abs(score_N[:2] - VALID).mean()), "test": float(np.abs(score_N[2:] - TEST).mean())}


def model_of(*scores: float) -> Model:
    """A model of two epochs, of which the second is worse."""
    loop, weights = Line(), {"scores": torch.tensor(scores)}
    score_EN = np.stack([loop.scores_of(weights), loop.scores_of(weights) + 9]).astype(np.float32)
    return Model([loop.objectives(score_N) for score_N in score_EN], score_EN, weights, {})


def test_mixed_models() -> None:
    # The mean of the first two is exact on valid. The third makes it worse, and so does the fourth.
    models = [model_of(0.5, 1.5), model_of(-0.5, 0.5), model_of(1.0, 2.0), model_of(2.0, 2.0)]
    loop: Any = Line()
    mixed = endings.mixed_endings(models, loop)
    assert mixed[SINGLE] == {"valid": 0.5, "test": 0.0, "models": 1}
    assert mixed[GREEDY] == {"valid": 0.0, "test": 1.0, "models": 2}
    assert mixed[SOUP] == {"valid": pytest.approx(0.625), "test": 0.25, "models": 4}
    # The mean of scores is that of the weights, since these models are linear.
    assert mixed[ENSEMBLE] == mixed[SOUP]
    assert mixed[THREE] == {"valid": pytest.approx(1 / 3), "test": pytest.approx(1 / 3), "models": 3}


def test_mean_weights_are_those_of_a_loop() -> None:
    parts = [{"a": torch.randn(3, 2), "b": torch.randn(1)} for _ in range(3)]
    mean = endings.mean_weights(parts)
    for name, tensor in mean.items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, sum((part[name] for part in parts), torch.zeros(())) / 3)


def test_endings_are_compared_by_seed() -> None:
    tests = {name: [0.80 + 0.01 * place, 0.82, 0.81 - 0.01 * place] for place, name in enumerate(ENDINGS)}
    seeds: list[dict[str, dict[str, float]]] = []
    for seed in range(3):
        seeds.append({name: {"valid": 0.7, "test": of[seed], "models": 1 + seed} for name, of in tests.items()})
        del seeds[-1][REFIT]["valid"]
    rows = {row["name"]: row for row in endings.endings_table(seeds, "endings", "Endings", "seeds").rows}
    gain = stats.ttest_rel(tests[SOUP], tests[SINGLE]).confidence_interval(0.95)
    assert (rows[SOUP]["low"], rows[SOUP]["high"]) == pytest.approx(gain)
    assert "difference" not in rows[SINGLE] and rows[SINGLE]["models"] == 2
    assert rows[REFIT]["valid"] is None and rows[ENSEMBLE]["valid"] == pytest.approx(0.7)
    steps = endings.steps_table(seeds).rows
    refit = stats.ttest_rel(tests[REFIT], tests[AGAIN_LAST]).confidence_interval(0.95)
    assert (steps[-1]["low"], steps[-1]["high"]) == pytest.approx(refit)


def test_ensembles_of_recorded_trials(tmp_path: Path) -> None:
    path = tmp_path / "trials.parquet"
    write_table(path, ABOUT, TRIALS)
    second = [trial for trial in TRIALS if trial["stage"] == 2]
    valid, test = (np.array(ABOUT[split]) for split in ("valid", "test"))
    best = []
    for trial in second:
        scores = np.asarray(trial["scores"])[: len(trial["curve"])]
        errors = np.abs(scores[:, : len(valid)] - valid).mean(axis=1)
        best.append((errors.min(), scores[errors.argmin(), len(valid) :]))
    (whole,) = endings.recorded_endings(path, len(second))
    mean = np.mean([scores for _, scores in best], axis=0)
    # The file keeps scores to 1/64.
    assert whole[ENSEMBLE]["test"] == pytest.approx(np.abs(mean - test).mean(), abs=1 / 64)
    assert whole[ENSEMBLE]["models"] == len(second)
    assert whole[SINGLE]["valid"] == pytest.approx(min(error for error, _ in best), abs=1 / 64)
    groups = endings.recorded_endings(path, 4)
    assert len(groups) == len(second) // 4
    # Every trial is in one group at most.
    assert len({group[SINGLE]["test"] for group in groups}) == len(groups)
    assert list(groups[0]) == [SINGLE, THREE, ENSEMBLE]


@pytest.fixture
def source(tiny_store: DatasetStore, tiny_space: Path, tmp_path: Path) -> Source:
    return Source("tiny", tiny_store.folder, tiny_space, tmp_path)


def test_valid_is_added_to_train(source: Source) -> None:
    splits = source.store.info.splits
    for with_valid, extra in ((False, 0), (True, splits["valid"])):
        features = dataclasses.replace(source, with_valid=with_valid).features
        assert len(features.train) == splits["train"] + extra
        assert len(features.valid) == splits["valid"] + splits["test"]
    assert np.array_equal(features.train.label_N[splits["train"] :], features.valid.label_N[: splits["valid"]])


def test_a_seed(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that was interrupted goes on with what it has trained, to the same figures."""
    place, trained = source.work / "seed-1.json", []
    endings.compare_endings(source, 1, 2, place)
    whole = json.loads(place.read_text())
    assert list(whole) == ENDINGS and not place.with_suffix("").exists()
    assert all(value > 0 for ending in whole.values() for value in ending.values())
    assert whole[THREE] == whole[ENSEMBLE] and whole[REFIT] != whole[AGAIN_LAST]
    assert whole[AGAIN_BEST]["valid"] <= whole[AGAIN_LAST]["valid"]

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    record = Trainings._record

    def note(self: Trainings, loop: Any, target: Path) -> None:
        trained.append(target.name)
        record(self, loop, target)

    place.unlink()
    monkeypatch.setattr(Trainings, "_record", note)
    with monkeypatch.context() as patch:
        patch.setattr(endings, "mixed_endings", stop)
        with pytest.raises(KeyboardInterrupt):
            endings.compare_endings(source, 1, 2, place)
    endings.compare_endings(source, 1, 2, place)
    assert json.loads(place.read_text()) == whole
    assert len(trained) == len(set(trained)) == 1 + 2 + 4


def test_soup_of_a_model_with_itself_scores_like_it(source: Source) -> None:
    trainings = Trainings(source, 1, source.work / "one")
    model = trainings.train(2, 0, {})
    parts: Sequence[Model] = [model, model]
    mixed = endings.mixed_endings(parts, trainings.loop(2, 0, {}))
    for name in (GREEDY, SOUP, ENSEMBLE):
        assert mixed[name]["test"] == pytest.approx(model.ending["test"], rel=1e-5)
