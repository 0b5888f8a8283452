"""Noise and removed modalities, on models with random weights: an unchanged input has the clean result, bit for bit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from grcf_ray.data.frames import Frames
from grcf_ray.experiments.arms import figures
from grcf_ray.experiments.context import Model
from grcf_ray.experiments.robustness import _noisy, modalities, noise
from grcf_ray.search.predictions import Predictions
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore
    from grcf_ray.experiments.context import ExperimentContext
    from grcf_ray.tables import Table

SIGMAS, DRAWS = (0.0, 0.1, 0.3), 2
Untrained = Callable[..., "ExperimentContext"]


def row(table: Table, title: str) -> Any:
    return next(row for row in table.rows if row["title"] == title)


@pytest.fixture
def untrained(make_context: Any, make_model: Any, few_draws: None, monkeypatch: pytest.MonkeyPatch) -> Untrained:
    """Return a maker of contexts whose models have random weights; `clean` has their MAE and Corr on test."""
    monkeypatch.setattr("grcf_ray.experiments.robustness.SIGMAS", SIGMAS)
    monkeypatch.setattr("grcf_ray.experiments.robustness.DRAWS", DRAWS)

    def make(seen: str = "all", seeds: int = 2) -> ExperimentContext:
        context = make_context(seeds=seeds)
        test = context.store.read("test")
        label_N, names = test["label"].to_numpy().astype(np.float64), test["id"].to_pylist()
        models, context.clean = [], {"mae": [], "corr": []}
        for index in range(seeds):
            model = Model(index, storage_path(make_model(modalities=seen, seed=index)))
            score_N = model.load().score(test)
            scored = Predictions(names, names, label_N, score_N, np.zeros((len(names), 0), np.float32))
            read = functools.partial(lambda scored, split: scored, scored)
            models.append(SimpleNamespace(index=index, place=model.place, load=model.load, scored=read))
            metrics = figures(context, score_N, label_N)
            for name, values in context.clean.items():
                values.append(metrics[name])
        context.models = lambda arms, experiment: {arms[0].name: models}
        return context

    return make


def test_no_noise_is_the_clean_result_and_noise_is_not(untrained: Untrained) -> None:
    context = untrained()
    result = noise(context)
    assert [table.name for table in result.tables] == ["standardised", "raw"]
    for table in result.tables:
        assert [row["sigma"] for row in table.rows] == list(SIGMAS)
        for metric in ("mae", "corr"):
            assert row(table, "0")[metric] == float(np.mean(context.clean[metric]))
            assert row(table, "0.3")[metric] != row(table, "0")[metric]
        assert {row["seeds"] for row in table.rows} == {2}
        by_sigma = {entry["sigma"]: entry["seeds"] for entry in result.data[table.name]}
        assert {sigma: {len(draws) for draws in seeds} for sigma, seeds in by_sigma.items()} == {
            sigma: {DRAWS if sigma else 1} for sigma in SIGMAS
        }
        means = [np.mean([draw["mae"] for draw in draws]) for draws in by_sigma[0.3]]
        assert row(table, "0.3")["mae"] == pytest.approx(np.mean(means))
        assert row(table, "0.3")["deviation mae"] == pytest.approx(np.std(means, ddof=1))
    standardised, raw = result.tables
    # The tiny data's audio has a deviation of about ten, so that the same noise is less on its raw values.
    assert row(standardised, "0.3")["mae"] != row(raw, "0.3")["mae"]
    panels = result.pictures[0].data["panels"]
    assert [line["y"] for line in panels[0]["lines"]] == [[r["mae"] for r in table.rows] for table in result.tables]
    assert any("few seeds" in note.lower() for note in result.notes)


def test_noise_is_on_the_rows_that_are_there_in_each_columns_unit(tiny_store: DatasetStore) -> None:
    table = tiny_store.read("train")
    scales = {"audio": np.array([1, 10, 100, 0.1, 0], np.float32), "vision": np.ones(3, np.float32)}
    columns = _noisy(table, scales, 0.5, np.random.default_rng(0))
    for name, scale_A in scales.items():
        assert columns[name].is_null().equals(table[name].combine_chunks().is_null())
        before, after = (Frames.of(column) for column in (table[name], pa.chunked_array([columns[name]])))
        assert after.lengths_N.tolist() == before.lengths_N.tolist()
        gain_RA = (after.values - before.values).reshape(-1, len(scale_A))
        assert gain_RA.std(axis=0) == pytest.approx(0.5 * scale_A, rel=0.25)
    again = _noisy(table, scales, 0.5, np.random.default_rng(0))
    assert again["audio"].equals(columns["audio"])
    assert _noisy(table, scales, 0.0, np.random.default_rng(0))["audio"].equals(table["audio"].combine_chunks())


def test_modalities_that_are_taken_away_are_missing(untrained: Untrained) -> None:
    """The model that sees all is the clean one; the others are what plain scoring makes of tables without them."""
    context = untrained()
    mae = next(table for table in modalities(context).tables if table.name == "mae")
    assert [row["title"] for row in mae.rows] == ["T + V + A", "T + V", "T + A", "T"]
    assert row(mae, "T + V + A")["values"] == context.clean["mae"]
    table = context.store.read("test")
    label_N = table["label"].to_numpy().astype(np.float64)
    for title, hidden in (("T + V", ["audio"]), ("T + A", ["vision"]), ("T", ["audio", "vision"])):
        bare = table
        for name in hidden:
            kind = table.schema.field(name).type
            bare = bare.set_column(bare.column_names.index(name), name, pa.nulls(len(table), kind))
        models = context.models([SimpleNamespace(name="full")], "test")["full"]
        expected = [float(np.abs(model.load().score(bare) - label_N).mean()) for model in models]
        assert row(mae, title)["values"] == pytest.approx(expected, abs=1e-6)
        assert row(mae, title)["values"] != row(mae, "T + V + A")["values"]
        assert row(mae, title)["difference"] == pytest.approx(row(mae, title)["mean"] - row(mae, "T + V + A")["mean"])


def test_without_audio_and_vision_the_clean_result_is_left(untrained: Untrained) -> None:
    context = untrained("text", seeds=1)
    info = dataclasses.replace(context.store.info, audio_dim=None, vision_dim=None)
    context.store = dataclasses.replace(context.store, info=info)
    result = noise(context)
    (table,) = result.tables
    assert any("text alone" in note for note in result.notes)
    assert row(table, "0")["mae"] == context.clean["mae"][0]
    assert all(row.get("mae") is None for row in table.rows if row["sigma"])
    result = modalities(context)
    mae = next(table for table in result.tables if table.name == "mae")
    assert row(mae, "T")["values"] == context.clean["mae"]
    assert [cells[1:] for cells in mae.cells()[:3]] == [("-",) * (len(mae.columns) - 1)] * 3
    assert any("T + A" in note and "audio" in note for note in result.notes)
