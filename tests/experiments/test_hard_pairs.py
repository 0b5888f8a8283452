"""Weights, conflicts and their statistics on constructed scores; the experiment on models of both tasks."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from grcf_ray.data.datasets import find
from grcf_ray.errors import ConfigError
from grcf_ray.experiments.hard_pairs import hard_pairs
from grcf_ray.experiments.pair_statistics import ALL, TOP, WeightedPairs, differing_pairs, unimodal_scores
from grcf_ray.train.export import load_model
from tests.experiments.conftest import FakeContext

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore

MakeModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def _few_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grcf_ray.experiments.hard_pair_tables.PERMUTATIONS", 19)


def pairs_of(label: Sequence[float], score: Sequence[float], task: Any = "regression", **alone: Any) -> WeightedPairs:
    label_N = np.array(label, np.float64)
    pairs_P2, _ = differing_pairs(label_N, 10_000, seed=0)
    scores = {name: np.array(values, np.float64) for name, values in alone.items()}
    return WeightedPairs(label_N, np.array(score, np.float64), scores, pairs_P2, task)


def test_weights_are_equation_7_and_equation_19() -> None:
    label, score = [0.0, 1.0, 2.0, 2.0], [0.3, -0.2, 1.5, 0.1]
    pairs = pairs_of(label, score)
    rewards = [1 / (1 + math.exp(score[low] - score[high])) for high, low in pairs.pairs_P2]
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    expected = [max(0.0, -(reward - mean) / (deviation + 1e-8)) for reward in rewards]
    assert len(rewards) == 5
    assert pairs.weight_P == pytest.approx(expected)
    two = pairs_of([0.0, 1.0, 1.0], [0.3, -0.2, 1.5], "classification")
    assert two.weight_P == pytest.approx(
        [1 - 1 / (1 + math.exp(score_low - score_high)) for score_high, score_low in ((-0.2, 0.3), (1.5, 0.3))]
    )


def test_conflicts_are_orders_against_the_labels() -> None:
    """Of labels 0 < 1 < 2: the text orders all, the audio has the first two the wrong way, the vision all three."""
    pairs = pairs_of([0, 1, 2], [0, 1, 2], text=[0, 1, 2], vision=[2, 1, 0], audio=[1, 0, 1])
    assert pairs.pairs_P2.tolist() == [[1, 0], [2, 0], [2, 1]]
    assert pairs.conflict["text"].tolist() == [False, False, False]
    assert pairs.conflict["vision"].tolist() == [True, True, True]
    # Equal scores are no order, and no conflict.
    assert pairs.conflict["audio"].tolist() == [True, False, False]
    assert pairs.count_P.tolist() == [2, 1, 1]
    assert pairs.disagree("text", "vision").tolist() == [True, True, True]
    assert pairs.disagree("text", "audio").tolist() == [True, False, False]
    assert pairs.disagree("vision", "audio").tolist() == [False, False, True]
    shares = {names: pairs.conflict_share(ALL, names) for names in pairs.conflict_sets}
    assert {names: share for names, share in shares.items() if share} == {
        ("vision",): pytest.approx(2 / 3),
        ("vision", "audio"): pytest.approx(1 / 3),
    }
    assert len(shares) == 8 and sum(shares.values()) == pytest.approx(1)
    # Of three pairs, the top is the heaviest one.
    (heaviest,) = pairs.subsets[TOP]
    conflicts = ("vision", "audio") if heaviest == 0 else ("vision",)
    assert all(pairs.conflict_share(TOP, names) == (names == conflicts) for names in shares)


def test_predictors_are_the_same_in_either_order_and_leave_equal_labels_out() -> None:
    pairs = pairs_of([0, 1, 2, 2], [0, 1, 2, 3], text=[0, 1, 2, 2], audio=[1, 0, 3, 3])
    both = np.concatenate([pairs.pairs_P2, pairs.pairs_P2[:, ::-1], [[2, 3]]])
    predictors, ordered_P = pairs.predictors(both, "minus distance")
    assert ordered_P.tolist() == [True] * 10 + [False]
    expected = [-abs(pairs.label_N[i] - pairs.label_N[j]) for i, j in pairs.pairs_P2]
    assert predictors["proximity"].tolist() == expected * 2
    assert predictors["conflict"].tolist() == pairs.count_P.tolist() * 2 == [1, 0, 0, 0, 0] * 2
    inverse, _ = pairs.predictors(both, "inverse distance")
    assert inverse["proximity"] == pytest.approx([-1 / value for value in expected] * 2)


def test_the_top_is_the_heaviest_twentieth() -> None:
    rng = np.random.default_rng(0)
    pairs = pairs_of(np.arange(20).tolist(), rng.normal(size=20).tolist())
    top = pairs.subsets[TOP]
    assert len(top) == round(0.05 * 190)
    assert sorted(pairs.weight_P[top], reverse=True) == sorted(pairs.weight_P, reverse=True)[: len(top)]


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_a_modality_is_scored_by_nothing_but_itself(make_model: MakeModel, tiny_store: DatasetStore, task: str) -> None:
    saved = load_model(make_model(task))
    table = tiny_store.read("train")
    table = table.filter(
        pa.array([row["audio"] is not None and row["vision"] is not None for row in table.to_pylist()])
    )
    whole = saved.score(table)
    scores = unimodal_scores(saved, table)
    assert set(scores) == {"text", "audio", "vision"}
    backwards = pa.array(range(len(table) - 1, -1, -1))
    for changed in scores:
        other = table.set_column(table.column_names.index(changed), changed, table[changed].take(backwards))
        again = unimodal_scores(saved, other)
        for name in scores:
            same = np.allclose(scores[name], again[name], atol=1e-6)
            assert same == (name != changed), f"{name} where {changed} is another's"
        assert np.ptp(scores[changed]) > 1e-4
    np.testing.assert_array_equal(saved.score(table), whole, "the text is no longer masked")
    assert not np.allclose(whole, scores["text"], atol=1e-4)


def context_of(
    tiny_store: DatasetStore, folders: Sequence[Path], *, name: str, task: str, rows: slice = slice(None)
) -> Any:
    """Return a context with trained models, in the parts that the experiment uses."""
    from grcf_ray.experiments.context import Model
    from grcf_ray.storage import storage_path

    table = tiny_store.read("train")[rows]
    if task == "classification":
        label = pa.array([float(value > 0) for value in table["label"].to_pylist()], pa.float32())
        table = table.set_column(table.column_names.index("label"), "label", label)
    models = {"full": [Model(index, storage_path(folder)) for index, folder in enumerate(folders)]}
    return FakeContext(
        facts=find(name),
        models=lambda arms, experiment: models,
        config=SimpleNamespace(stage2=SimpleNamespace(epochs=1), model=SimpleNamespace(name="grcf", sees_text=True)),
        store=SimpleNamespace(
            info=dataclasses.replace(tiny_store.info, name=name, task=task), read=lambda split: {"train": table}[split]
        ),
    )


def rows_of(result: Any, name: str) -> dict[Any, dict[str, Any]]:
    (table,) = [table for table in result.tables if table.name == name]
    return {row["title"]: dict(row) for row in table.rows}


def test_regression_beside_table_6(make_model: MakeModel, tiny_store: DatasetStore) -> None:
    result = hard_pairs(context_of(tiny_store, [make_model(seed=s) for s in (0, 1)], name="mosi", task="regression"))
    fits = rows_of(result, "ols minus distance")
    row = fits["top 5 %: score proximity"]
    assert (row["paper coefficient"], row["paper p"]) == (1.743e-08, 0.019)
    assert (row["paper error"], row["paper n"], fits["top 5 %: R²"]["paper coefficient"]) == (7.43e-09, 3125, 0.002)
    (table,) = [table for table in result.tables if table.name == "ols minus distance"]
    assert {"paper std. err.", "paper pairs"} <= {column.title for column in table.columns}
    assert row["coefficient"] == pytest.approx(np.mean([fit["coefficient"] for fit in row["by seed"]]))
    assert row["seeds"] == 2 and 1 / 20 <= row["permuted"] <= 1
    assert "permuted" not in fits["all: const"] and fits["all: R²"]["paper coefficient"] is None
    shares = rows_of(result, "shares")
    assert shares["no conflict"]["paper"] == 0.1446 and shares["vision"]["paper"] == 0.1619
    for subset in ("top 5 %", "all"):
        assert sum(share[f"{subset} mean"] for share in shares.values()) == pytest.approx(1)
    counts = rows_of(result, "counts")
    pairs = rows_of(result, "weights")["pairs"]["all mean"]
    assert sum(counts[count]["all pairs"] for count in range(4)) == pytest.approx(pairs)
    assert {picture.name for picture in result.pictures} == {"proximity", "conflicts"}
    assert any("few seeds" in note for note in result.notes)
    for picture in result.pictures:
        picture.draw(json.loads(json.dumps(picture.data)))


def test_classification_beside_tables_7_and_8(make_model: MakeModel, tiny_store: DatasetStore) -> None:
    result = hard_pairs(context_of(tiny_store, [make_model("classification")], name="mustard", task="classification"))
    counts, odds = rows_of(result, "counts"), rows_of(result, "modalities")
    assert [counts[count]["paper"] for count in range(4)] == [0.0085, 0.0190, 0.0500, 0.4445]
    assert [odds[f"T-{letter}, conflict"]["paper"] for letter in "VA"] == [0.0210, 0.0356]
    pairs = rows_of(result, "weights")["pairs"]["all mean"]
    for letter in "VA":
        parts = [odds[f"T-{letter}, {status}"] for status in ("no conflict", "conflict")]
        assert sum(part["pairs"] for part in parts) == pairs
        mean = sum(part["mean"] * part["pairs"] for part in parts if part["pairs"]) / pairs
        assert mean == pytest.approx(rows_of(result, "weights")["mean"]["all mean"])
    assert rows_of(result, "spearman")["all"]["paper"] == 0.1659
    assert not [table for table in result.tables if table.name.startswith("ols")], "two classes have one distance"
    (picture,) = result.pictures
    assert [panel["title"] for panel in picture.data["panels"]] == ["T-V", "T-A"]
    picture.draw(json.loads(json.dumps(picture.data)))


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_text_alone_says_what_needs_features(make_model: MakeModel, tiny_store: DatasetStore, task: str) -> None:
    folder = make_model(task, "text")
    result = hard_pairs(context_of(tiny_store, [folder], name="mustard", task=task))
    assert any(note.startswith("Cells with -") for note in result.notes)
    assert rows_of(result, "weights")["mean"]["all mean"] > 0
    assert rows_of(result, "counts")[1].get("all mean") is None
    assert rows_of(result, "modalities")["T-V, conflict"].get("mean") is None
    if task == "regression":
        fits = rows_of(result, "ols inverse distance")
        assert fits["all: score proximity"]["seeds"] == 1 and fits["all: conflict count"]["seeds"] == 0
    assert all(len(cells) == len(table.columns) for table in result.tables for cells in table.cells())


def test_nothing_to_compare_is_refused(make_model: MakeModel, tiny_store: DatasetStore) -> None:
    with pytest.raises(ConfigError, match="no pair is left"):
        hard_pairs(context_of(tiny_store, [make_model()], name="mosi", task="regression", rows=slice(0, 1)))
