from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from matplotlib.image import imread
from report.predictions import HOSTILE
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from grcf_ray.report.best_model_events import metadata_tsv, png_values, write_projector
from grcf_ray.search.predictions import Predictions
from grcf_ray.storage import storage_path

TEXTS = [HOSTILE, "", '"quoted', "\x85\u2028\u2029\x0b\x0c\x1c", "plain", "long " * 1000]


def scored(label: list[float], score: list[float], texts: list[str] | None = None) -> Predictions:
    names = [f"id\t{index}" for index in range(len(label))]
    state_ND = np.random.default_rng(0).normal(size=(len(label), 4)).astype(np.float32)
    return Predictions(names, texts or names, np.array(label, float), np.array(score, float), state_ND)


@pytest.fixture
def spread() -> Predictions:
    ends = np.linspace(-3, 3, len(TEXTS)).tolist()
    return scored(ends, ends, TEXTS)


@pytest.mark.parametrize(
    ("protocol", "label_range"), [("binary", (0, 1)), ("mosi", (-3, 3)), ("sims", (-1, 1)), ("own", (-2, 5))]
)
def test_images_are_as_large_as_they_say(protocol: Any, label_range: tuple[float, float]) -> None:
    values = png_values(scored([0, 1, 1], [-2, 1, 5]), "valid", protocol=protocol, label_range=label_range)
    assert [value.tag for value in values] == ["predictions/valid", "confusion/valid"]
    for value in values:
        pixels = imread(io.BytesIO(value.image.encoded_image_string))
        assert pixels.shape[:2] == (value.image.height, value.image.width)
        # It is not blank.
        assert np.ptp(pixels) > 0


def test_labels_without_classes_have_no_confusion() -> None:
    values = png_values(scored([0, 50, 100], [-2, 51, 120]), "test", protocol="own", label_range=(0, 100))
    assert [value.tag for value in values] == ["predictions/test"]


def test_every_utterance_is_one_line_of_four_cells_that_control_nothing(spread: Predictions) -> None:
    lines = metadata_tsv(spread).splitlines()
    assert lines[0].split("\t") == ["text", "label", "score", "id"]
    rows = [line.split("\t") for line in lines[1:]]
    assert {len(row) for row in rows} == {4} and len(rows) == len(TEXTS)
    assert [row[3] for row in rows] == [f"id {index}" for index in range(len(TEXTS))]
    assert np.allclose([float(row[1]) for row in rows], spread.label_N, atol=1e-3)
    assert all(row[0].isprintable() and len(row[0]) <= 300 for row in rows)
    assert rows[4][0] == "plain"


def test_the_configuration_names_files_that_are_there(spread: Predictions, tmp_path: Path) -> None:
    write_projector(
        storage_path(tmp_path), {"valid": ("z_final of valid", spread), "finalist-0002": ("finalist 2", spread)}
    )
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert [embedding.tensor_name for embedding in config.embeddings] == ["z_final of valid", "finalist 2"]
    assert len({embedding.tensor_path for embedding in config.embeddings}) == 2
    for embedding in config.embeddings:
        state_ND = np.loadtxt(tmp_path / embedding.tensor_path, delimiter="\t")
        np.testing.assert_allclose(state_ND, spread.state_ND, rtol=1e-4)
        assert (tmp_path / embedding.metadata_path).read_text(encoding="utf-8") == metadata_tsv(spread)
