"""Models of one data set on another: what starts from where, and what a repeated call does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from grcf_ray.config import flatten
from grcf_ray.data.features import build_features
from grcf_ray.data.schema import TableInfo, conform
from grcf_ray.data.store import write_store
from grcf_ray.errors import ConfigError
from grcf_ray.experiments.model_pool import Arm, configured
from grcf_ray.experiments.registry import Options
from grcf_ray.experiments.transfer import transfer
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.search.events import Event, TrialStarted
from grcf_ray.search.record import RunRecord
from grcf_ray.search.transfer import measure_on, score_on
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.checkpoint import read_checkpoint
from grcf_ray.train.export import load_model
from grcf_ray.train.stage import predict
from tests.experiments.conftest import StartedTrials

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore
    from grcf_ray.experiments.context import ExperimentContext
    from grcf_ray.experiments.result import ExperimentResult

MakeContext = Callable[..., "ExperimentContext"]
ROWS = [
    "In-domain: both stages here",
    "Zero-shot: both stages there",
    "Transfer v1: Stage 1 there, Stage 2 here",
    "Transfer v2: both stages there, Stage 2 here",
]


@pytest.fixture(scope="module")
def other(tiny_table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> DatasetStore:
    """The tiny data on [-6, 6], other words first, audio two values wider and vision one narrower."""
    columns: dict[str, Any] = {name: tiny_table[name].to_pylist() for name in tiny_table.column_names}
    columns["label"] = [2 * label for label in columns["label"]]
    columns["text"] = [f"the {text}" for text in columns["text"]]
    columns["audio"] = [rows and [[*row, 1.0, 2.0] for row in rows] for rows in columns["audio"]]
    columns["vision"] = [rows and [row[:-1] for row in rows] for rows in columns["vision"]]
    table = conform(pa.table(columns, schema=tiny_table.schema))
    info = TableInfo.describe(table, name="other", label_range=(-6, 6))
    return write_store(tmp_path_factory.mktemp("other") / "other", table, info)


def mae(result: ExperimentResult) -> dict[str, Any]:
    table = next(table for table in result.tables if table.name == "mae")
    return {row["title"]: row for row in table.rows}


@pytest.mark.integration
@pytest.mark.usefixtures("ray_session")
def test_rows_start_where_they_say_and_are_trained_once(
    make_context: MakeContext, fresh: Path, other: DatasetStore
) -> None:
    """An interruption in the middle changes nothing."""
    started = StartedTrials()

    def context(*listeners: Any) -> ExperimentContext:
        options = Options(onto="other", onto_data=other.folder)
        made = make_context(seeds=1, listeners=(started, *listeners), options=options)
        made.config = configured(made.config, Arm("all", "all", {"model.modalities": "all"}))
        return made

    def interrupt(event: Event) -> None:
        # The fourth trial is the first that starts from a model of the other data set.
        if isinstance(event, TrialStarted) and len(started) == 5:
            cut._stop.request()

    cut = context(interrupt)
    with pytest.raises(KeyboardInterrupt):
        transfer(cut)
    result = transfer(context())
    rows = mae(result)
    assert list(rows) == ROWS
    assert len({row["mean"] for row in rows.values()}) == 4
    # Both stages there and here, and Stage 2 alone for each transfer; the interrupted trial starts twice at most.
    assert sorted(started)[:2] == ["1/0", "1/0"] and set(started[2:]) <= {"1/0", "2/0"} and len(started) <= 7
    text = " ".join(result.notes)
    assert "Audio: the last 2 of 7 values are cut off" in text and "Vision: 1 values" in text
    assert "scaled" in text

    started.clear()
    assert mae(transfer(context())) == rows
    assert started == [], "no model is trained twice"

    (there,) = context().models([Arm("there", "there")], "test")["there"]
    model = there.load()
    expected, _ = measure_on(model, other.read("test"), other.info, threads=1, fit=True)
    assert rows[ROWS[1]]["values"] == [expected["mae"]]

    source = context().model_pool(Arm("there", "there")).record
    (below,) = (context().record.place / "reproduce" / "transfer").names()
    records = {}
    for row in ("in-domain", "stage1-there", "both-there"):
        place = context().record.place / "reproduce" / "transfer" / below / row
        (shape,) = place.names()
        records[row] = RunRecord(place / shape)
    for row, stage in (("stage1-there", 1), ("both-there", 2)):
        given = source.trials(stage)[0]
        assert given.checkpoint is not None
        weights_here = read_checkpoint(records[row].finalist_folder(0) / "model.safetensors").tensors
        weights_there = read_checkpoint(source.at(given.checkpoint)).tensors
        weights = {name for name in weights_there if name.startswith("model.")}
        assert weights_here.keys() == weights and all(weights_here[name].equal(weights_there[name]) for name in weights)
    for row, widths in (("in-domain", {"vision": 2, "audio": 7}), ("both-there", model.model.modality_dims)):
        with (records[row].place / "models" / "0000").reading_folder() as folder:
            saved = load_model(folder)
        assert saved.model.modality_dims == widths
        config, expected_config = flatten(saved.config), flatten(context().config)
        assert config["ranking.base_margin"] == pytest.approx(2 * expected_config["ranking.base_margin"])
        assert config["stage1.reg_margin"] == pytest.approx(4 * expected_config["stage1.reg_margin"])
        assert saved.label_range == (-6, 6)
    reads = json.loads((fresh / "best" / "provenance.json").read_text())["test_reads"]
    assert "reproduce transfer --onto other" in {read["command"] for read in reads}


def test_weights_of_there_score_here_as_zero_shot_does(
    make_model: Callable[..., Path], other: DatasetStore, tiny_backbone: Path
) -> None:
    """A model of here with the weights of there scales its scores to the labels of here; text alone needs no fit."""
    saved = load_model(make_model(modalities="text"))
    features = build_features(other, load_tokenizer(str(tiny_backbone)), saved.config.features)
    features = select_modalities(features, "text")
    model = initial_model(saved.config.model, features, seed=1)
    model.load_state_dict(saved.model.state_dict())
    device = torch.device("cpu")
    score_N = predict(model.eval(), features, features.valid, device=device, token_budget=1024)
    expected_N, _ = score_on(saved, other.read("valid"), other.info, fit=True)
    assert np.ptp(expected_N) > 1e-3
    assert score_N == pytest.approx(expected_N, abs=1e-5)


def test_what_cannot_be_transferred_is_refused(
    make_context: MakeContext, tiny_store: DatasetStore, fresh: Path, reproduce: Any
) -> None:
    with pytest.raises(ConfigError, match="--onto NAME"):
        transfer(make_context())
    code, _, err = reproduce("transfer", "--from", fresh, "--onto", "tiny", "--onto-data", tiny_store.folder)
    assert code == 2 and "these very data" in err
