"""Noise and modalities that are taken away: what is left as it was is the clean result, bit for bit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from grcf_ray import console
from grcf_ray.data.frames import Frames

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore
    from grcf_ray.experiments.context import ExperimentContext
    from grcf_ray.tables import Table

pytestmark = pytest.mark.slow

SIGMAS, DRAWS = (0.0, 0.1, 0.3), 2

MakeContext = Callable[..., "ExperimentContext"]


def row(table: Table, title: str) -> Any:
    return next(row for row in table.rows if row["title"] == title)


def clean(context: ExperimentContext, metric: str) -> list[float]:
    """What the full model with all modalities was measured with when it was trained."""
    from grcf_ray.experiments.robustness import _full_model

    arm, _ = _full_model(context)
    return [model.metrics["test"][metric] for model in context.models([arm], "test")[arm.name]]


def of_text_alone(context: ExperimentContext) -> ExperimentContext:
    """The context as if its data had neither audio nor vision."""
    from grcf_ray.experiments.model_pool import Arm, configured

    # Stage 2 alone, to save time.
    settings = {"model.modalities": "text", "stage1.epochs": 0}
    context.config = configured(context.config, Arm("text", "text", settings))
    context.store = dataclasses.replace(
        context.store, info=dataclasses.replace(context.store.info, audio_dim=None, vision_dim=None)
    )
    return context


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score less noise than Table 5 has, to save time."""
    monkeypatch.setattr("grcf_ray.experiments.robustness.SIGMAS", SIGMAS)
    monkeypatch.setattr("grcf_ray.experiments.robustness.DRAWS", DRAWS)


def test_no_noise_is_the_clean_result_and_noise_is_not(make_context: MakeContext) -> None:
    from grcf_ray.experiments.robustness import noise

    context = make_context()
    result = noise(context)
    assert [table.name for table in result.tables] == ["standardised", "raw"]
    for table in result.tables:
        assert [row["sigma"] for row in table.rows] == list(SIGMAS)
        for metric in ("mae", "corr"):
            assert row(table, "0")[metric] == float(np.mean(clean(context, metric)))
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
    from grcf_ray.experiments.robustness import _noisy

    table = tiny_store.read("train")
    scales = {"audio": np.array([1, 10, 100, 0.1, 0], np.float32), "vision": np.ones(3, np.float32)}
    columns = _noisy(table, scales, 0.5, np.random.default_rng(0))
    for name, scale_A in scales.items():
        assert columns[name].is_null().equals(table[name].combine_chunks().is_null())
        before, after = (Frames.of(column) for column in (table[name], _chunked(columns[name])))
        assert after.lengths_N.tolist() == before.lengths_N.tolist()
        gain_RA = (after.values - before.values).reshape(-1, len(scale_A))
        assert gain_RA.std(axis=0) == pytest.approx(0.5 * scale_A, rel=0.25)
    again = _noisy(table, scales, 0.5, np.random.default_rng(0))
    assert again["audio"].equals(columns["audio"])
    assert _noisy(table, scales, 0.0, np.random.default_rng(0))["audio"].equals(table["audio"].combine_chunks())


def test_modalities_that_are_taken_away_are_missing(make_context: MakeContext) -> None:
    """The model that sees all is the clean one; the others are what plain scoring makes of tables without them."""
    import pyarrow as pa

    from grcf_ray.experiments.robustness import _full_model, modalities
    from grcf_ray.train.export import load_model

    context = make_context()
    mae = next(table for table in modalities(context).tables if table.name == "mae")
    assert [row["title"] for row in mae.rows] == ["T + V + A", "T + V", "T + A", "T"]
    assert row(mae, "T + V + A")["values"] == clean(context, "mae")
    arm, _ = _full_model(context)
    table = context.store.read("test")
    label_N = table["label"].to_numpy().astype(np.float64)
    for title, hidden in (("T + V", ["audio"]), ("T + A", ["vision"]), ("T", ["audio", "vision"])):
        bare = table
        for name in hidden:
            kind = table.schema.field(name).type
            bare = bare.set_column(bare.column_names.index(name), name, pa.nulls(len(table), kind))
        expected = []
        for model in context.models([arm], "test")[arm.name]:
            with model.place.reading_folder() as folder:
                expected.append(float(np.abs(load_model(folder).score(bare) - label_N).mean()))
        assert row(mae, title)["values"] == pytest.approx(expected, abs=1e-6)
        assert row(mae, title)["values"] != row(mae, "T + V + A")["values"]
        assert row(mae, title)["difference"] == pytest.approx(row(mae, title)["mean"] - row(mae, "T + V + A")["mean"])


def test_without_audio_and_vision_the_clean_result_is_left(make_context: MakeContext) -> None:
    from grcf_ray.experiments.robustness import modalities, noise

    context = of_text_alone(make_context(seeds=1))
    result = noise(context)
    (table,) = result.tables
    assert any("text alone" in note for note in result.notes)
    assert row(table, "0")["mae"] == float(np.mean(clean(context, "mae")))
    assert all(row.get("mae") is None for row in table.rows if row["sigma"])
    result = modalities(context)
    mae = next(table for table in result.tables if table.name == "mae")
    assert row(mae, "T")["values"] == clean(context, "mae")
    assert [cells[1:] for cells in mae.cells()[:3]] == [("-",) * (len(mae.columns) - 1)] * 3
    assert any("T + A" in note and "audio" in note for note in result.notes)


def test_the_commands(
    make_context: MakeContext, copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from grcf_ray.cli.reproduce import app

    for name in ("noise", "modalities"):
        with pytest.raises(SystemExit) as ended:
            console.run(app, [name, "--from", str(copied), "--seeds", "2", "--json"])
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        answer = json.loads(out)
        assert answer["name"] == name
        written = json.loads((copied / "reproduce" / name / "result.json").read_text())
        assert written["tables"] == answer["tables"]
    assert (copied / "reproduce" / "noise" / "figure-noise.png").stat().st_size > 0
    reads = json.loads((copied / "best" / "provenance.json").read_text())["test_reads"]
    assert {"reproduce noise", "reproduce modalities"} <= {read["command"] for read in reads}


def _chunked(array: Any) -> Any:
    import pyarrow as pa

    return pa.chunked_array([array])
