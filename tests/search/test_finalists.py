"""What the finalists make of valid is on record, as Stage 1 measured it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grcf_ray.data.store import DatasetStore
from grcf_ray.metrics import split_metrics
from grcf_ray.report.view import Predictions, RunView
from grcf_ray.search.finalists import keep_finalists
from grcf_ray.search.record import RunRecord
from grcf_ray.search.space import load_space
from grcf_ray.storage import storage_path
from grcf_ray.train.assemble import prepare_features

if TYPE_CHECKING:
    from tests.conftest import Recorded


def test_a_finalists_scores_are_those_of_its_best_epoch(recorded: Recorded) -> None:
    view = RunView.read(RunRecord(storage_path(recorded.folder)))
    finalists = [int(number) for number in view.run["finalists"]]
    assert len(finalists) == 2
    table = DatasetStore.open(recorded.data).read("valid")
    for number in finalists:
        scored = view.finalist_scored(number)
        assert scored is not None
        assert (list(scored.id_N), list(scored.text_N)) == (table["id"].to_pylist(), table["text"].to_pylist())
        assert scored.state_ND.shape == (16, 32)
        best = view.trials[1][number].best
        assert best is not None
        found = split_metrics(scored.score_N, scored.label_N, protocol="own", limit=3.0)
        assert found == pytest.approx(
            {name.removeprefix("valid/"): value for name, value in best.items() if name.startswith("valid/")}, rel=1e-5
        )


def test_what_is_there_stays_and_a_damaged_finalist_is_named(
    recorded: Recorded, tiny_space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(recorded.folder, folder)
    record, store, space = RunRecord(storage_path(folder)), DatasetStore.open(recorded.data), load_space(tiny_space)
    features = prepare_features(store, space.config())
    first, second = (record.finalist_folder(int(number)) for number in record.read_run()["finalists"])
    before = Predictions.read(second / "predictions" / "valid.parquet")
    for finalist in (first, second):
        (finalist / "predictions").delete()
    weights = folder / "finalists" / first.name / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    keep_finalists(record, space, features, store)
    assert f"finalist stage1/{int(first.name)}:" in capsys.readouterr().err
    assert not (first / "predictions").exists()
    place = second / "predictions" / "valid.parquet"
    assert (Predictions.read(place).state_ND == before.state_ND).all()
    written = place.read_bytes()
    keep_finalists(record, space, features, store)
    assert place.read_bytes() == written
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"
