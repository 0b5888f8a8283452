from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from report.predictions import HOSTILE
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from grcf_ray.report.projector import cell, metadata_tsv, write_projector
from grcf_ray.report.view import Predictions
from grcf_ray.storage import storage_path

TEXTS = [HOSTILE, "", '"quoted', "\x85\u2028\u2029\x0b\x0c\x1c", "plain", "long " * 1000]


@pytest.fixture
def scored() -> Predictions:
    count = len(TEXTS)
    return Predictions(
        id_N=[f"id\t{index}" for index in range(count)],
        text_N=TEXTS,
        label_N=np.linspace(-3, 3, count),
        score_N=np.linspace(-2, 2, count),
        state_ND=np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32),
    )


def test_every_utterance_is_one_line_of_four_cells(scored: Predictions) -> None:
    lines = metadata_tsv(scored).splitlines()
    assert lines[0].split("\t") == ["text", "label", "score", "id"]
    rows = [line.split("\t") for line in lines[1:]]
    assert {len(row) for row in rows} == {4} and len(rows) == len(TEXTS)
    assert [row[3] for row in rows] == [f"id {index}" for index in range(len(TEXTS))]
    assert np.allclose([float(row[1]) for row in rows], scored.label_N, atol=1e-3)
    assert rows[4][0] == "plain"


@pytest.mark.parametrize("text", TEXTS)
def test_a_cell_holds_nothing_that_controls(text: str) -> None:
    found = cell(text)
    assert found.isprintable()
    assert len(found) <= 300
    assert next(csv.reader([f"{found}\tx"], delimiter="\t", quoting=csv.QUOTE_NONE))[1] == "x"


def test_the_configuration_names_files_that_are_there(scored: Predictions, tmp_path: Path) -> None:
    write_projector(
        storage_path(tmp_path), {"valid": ("z_final of valid", scored), "finalist-0002": ("finalist 2", scored)}
    )
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert [embedding.tensor_name for embedding in config.embeddings] == ["z_final of valid", "finalist 2"]
    assert len({embedding.tensor_path for embedding in config.embeddings}) == 2
    for embedding in config.embeddings:
        state_ND = np.loadtxt(tmp_path / embedding.tensor_path, delimiter="\t")
        np.testing.assert_allclose(state_ND, scored.state_ND, rtol=1e-4)
        assert (tmp_path / embedding.metadata_path).read_text(encoding="utf-8") == metadata_tsv(scored)
