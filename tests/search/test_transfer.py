"""What differs between a model's data and another data set is refused, or done and said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from grcf_ray.config import build_config
from grcf_ray.data.features import build_features
from grcf_ray.data.schema import TableInfo, conform, labels_of
from grcf_ray.data.store import DatasetStore, write_store
from grcf_ray.errors import DataError
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.search.transfer import fit_features, measure_on
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.export import load_model, save_model
from grcf_ray.train.scoring import Labelled, scored

TEXT = ["good quickly film", "bad plot", "fine", "awful plot", "great music", "poor actor"]
MODEL_FOLLOWS = "other does not align rows of audio to words"
DATA_FOLLOW = "other aligns rows of audio to words"


def store_of(folder: Path, *, word_aligned: bool, width: int = 2, audio: bool = True) -> DatasetStore:
    """Six utterances with a row of audio for each word, by one of which they can be told from any other rows."""
    rows = [[[float(len(word) + place) for place in range(width)] for word in text.split()] for text in TEXT]
    loose: dict[str, Any] = {
        "id": list("abcdef"),
        "split": ["train", "valid", "test", "test", "train", "train"],
        "text": TEXT,
        "label": [0.8, -0.8, 0.4, -1.2, 1.2, -0.6],
    }
    table = conform(pa.table(loose | ({"audio": pa.array(rows)} if audio else {})))
    info = TableInfo.describe(table, name="other", label_range=(-3, 3), word_aligned=word_aligned)
    return write_store(folder, table, info)


def model_of(folder: Path, backbone: Path, store: DatasetStore, **settings: Any) -> Path:
    """An untrained model for the store's features, saved."""
    paths = {"model.backbone": str(backbone), "model.text_vector": "mean", **settings}
    config = build_config({path.replace("__", "."): value for path, value in paths.items()})
    tokenizer = load_tokenizer(str(backbone))
    features = build_features(store, tokenizer, config.features)
    model = initial_model(config.model, select_modalities(features, config.model.modalities), seed=1)
    save_model(folder, model, tokenizer, features, config, label_range=(-3.0, 3.0), protocol="mosi", lowercase=False)
    return folder


@pytest.mark.parametrize("standardise", [True, False])
def test_what_narrow_rows_are_filled_with(tmp_path: Path, tiny_backbone: Path, standardise: bool) -> None:
    """Means where the model knows them, else zeros; the note says which."""
    store, other = (store_of(tmp_path / str(width), word_aligned=False, width=width) for width in (3, 2))
    saved = load_model(model_of(tmp_path / "best", tiny_backbone, store, features__standardise=standardise))
    table, notes = fit_features(other.read("test"), other.info, saved, asked=True)
    means = np.mean([len(word) + 2 for text in (TEXT[0], TEXT[4], TEXT[5]) for word in text.split()])
    fill = np.float32(means if standardise else 0)
    assert table["audio"].to_pylist() == [
        [[*row, fill] for row in rows] for rows in other.read("test")["audio"].to_pylist()
    ]
    filling = "the means of the model's training rows" if standardise else "zeros, because"
    assert notes[0].startswith(f"audio: 1 values, {filling}")


@pytest.mark.parametrize("follows", [True, False], ids=["the model's rows follow words", "the data's do"])
def test_rows_that_follow_words_where_the_others_do_not(tmp_path: Path, tiny_backbone: Path, follows: bool) -> None:
    store, other = (store_of(tmp_path / str(aligned), word_aligned=aligned) for aligned in (follows, not follows))
    model = load_model(model_of(tmp_path / "best", tiny_backbone, store))
    table = other.read("test")
    with pytest.raises(DataError) as caught:
        measure_on(model, table, other.info, threads=1, fit=False)
    assert str(caught.value).startswith(MODEL_FOLLOWS if follows else DATA_FOLLOW)
    assert "--fit-features" in str(caught.value)
    metrics, notes = measure_on(model, table, other.info, threads=1, fit=True)
    (note,) = notes
    assert note.startswith("rows of audio stay unchanged" if follows else "each subword gets the rows of audio")
    saved = dataclasses.replace(model, word_aligned=not follows)
    assert metrics["mae"] == pytest.approx(np.abs(saved.score(table) - [0.4, -1.2]).mean(), abs=1e-4)


def test_rows_alike_or_that_nobody_reads_are_no_difference(tmp_path: Path, tiny_backbone: Path) -> None:
    """Of a model of text alone; and of data without audio, which are refused for that alone."""
    store, other = (store_of(tmp_path / str(aligned), word_aligned=aligned) for aligned in (True, False))
    textual = load_model(model_of(tmp_path / "textual", tiny_backbone, store, model__modalities="text"))
    assert measure_on(textual, other.read("test"), other.info, threads=1, fit=False)[1] == []
    bare = store_of(tmp_path / "bare", word_aligned=False, audio=False)
    saved = load_model(model_of(tmp_path / "best", tiny_backbone, store))
    assert measure_on(saved, store.read("test"), store.info, threads=1, fit=False)[1] == []
    _, notes = fit_features(bare.read("test"), bare.info, saved, asked=True)
    assert notes == ["no audio: taken as missing in every utterance"]


def test_all_that_differs_is_said_at_once(tmp_path: Path, tiny_backbone: Path) -> None:
    store = store_of(tmp_path / "own", word_aligned=True, width=3)
    other = store_of(tmp_path / "other", word_aligned=False, width=4)
    saved = load_model(model_of(tmp_path / "best", tiny_backbone, store))
    with pytest.raises(DataError) as caught:
        fit_features(other.read("test"), other.info, saved, asked=False)
    assert str(caught.value).startswith(f"audio has rows of 4 values, and the model takes 3; {MODEL_FOLLOWS}")
    assert "With --fit-features: audio: the last 1 of 4 values are cut off; rows of audio stay unchanged" in str(
        caught.value
    )


@pytest.mark.parametrize(("ties", "expected"), [("drop", 1.0), ("literal", 2 / 3)])
def test_a_model_is_measured_by_its_runs_reading_of_ties(
    tmp_path: Path, tiny_backbone: Path, ties: str, expected: float
) -> None:
    """Scores in descending order, of which the first two have one label: eq. 28 as printed takes that for an error."""
    store = store_of(tmp_path / "own", word_aligned=False)
    folder = model_of(tmp_path / "best", tiny_backbone, store, metrics__ties=ties)
    table = store.read("train")
    table = table.take(np.argsort(-load_model(folder).score(table)))
    table = table.set_column(table.column_names.index("label"), "label", pa.array([1.0, 1.0, 0.0], pa.float32()))
    saved = load_model(folder)
    labelled = Labelled(saved)
    labelled.add(scored(table, saved))
    (predicted,) = labelled.metrics()[0].values()
    for metrics in (
        saved.metrics(saved.score(table), labels_of(table)),
        measure_on(saved, table, store.info, threads=1, fit=False)[0],
        predicted,
    ):
        assert metrics["pairwise_acc"] == pytest.approx(expected)
