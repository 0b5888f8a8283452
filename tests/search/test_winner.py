"""The winner's model, figures and predictions, and the finalists' predictions."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from grcf_ray.config import build_config
from grcf_ray.data.datasets import get
from grcf_ray.data.schema import labels_of
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import DataError
from grcf_ray.metrics import split_metrics
from grcf_ray.report.view import RunView
from grcf_ray.search import winner as winner_module
from grcf_ray.search.predictions import Predictions
from grcf_ray.search.record import RunRecord
from grcf_ray.search.space import load_space
from grcf_ray.search.stages import Search
from grcf_ray.search.winner import (
    MEASURED,
    export_winner,
    keep_finalists,
    measure_winner,
    measured,
    printed_results,
)
from grcf_ray.storage import storage_path
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.export import SavedModel, load_model

if TYPE_CHECKING:
    from tests.conftest import Recorded

STORED = Path(__file__).parents[1] / "stored" / "run-1"
SPLITS = ("valid", "test")
MODEL = {"config.json", "model.safetensors", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}


def predictions(folder: Path, split: str) -> Path:
    return folder / "best" / "predictions" / f"{split}.parquet"


def listed(folder: Path) -> set[str]:
    """The files of the manifest."""
    return set(json.loads((folder / "best" / "manifest.json").read_text())["files"])


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "best" / "metrics.json").read_text())
    return metrics


@pytest.mark.parametrize(
    ("name", "task", "model", "printed"),
    [
        ("mosi", "regression", "grcf", True),
        ("mosi", "classification", "grcf", False),
        ("mosi", "regression", "tfn", False),
        ("own", "regression", "grcf", False),
    ],
)
def test_figures_of_grcf_stand_beside_its_own_alone(name: str, task: str, model: str, printed: bool) -> None:
    store: Any = SimpleNamespace(info=SimpleNamespace(name=name, task=task))
    figures = printed_results(build_config({"model.name": model}), store)
    assert figures == (get("mosi").paper_results if printed else {})


@pytest.fixture
def job(recorded: Recorded, tiny_space: Path, tmp_path: Path) -> Search:
    """The recorded search, on a copy of its run."""
    folder, space = Path(shutil.copytree(recorded.folder, tmp_path / "run")), load_space(tiny_space)
    features = prepare_features(DatasetStore.open(recorded.data), space.config())
    return Search(record=RunRecord(storage_path(folder)), space=space, features=features, protocol="own", concurrent=1)


@pytest.mark.parametrize("split", SPLITS)
def test_predictions_have_the_splits_rows_in_their_order(recorded: Recorded, split: str) -> None:
    kept, table = pq.read_table(predictions(recorded.folder, split)), DatasetStore.open(recorded.data).read(split)
    assert kept.schema.names == ["id", "text", "label", "score", "state"]
    assert [kept.schema.field(name).type for name in ("label", "score")] == [pa.float32(), pa.float64()]
    assert kept.schema.field("state").type == pa.list_(pa.float32(), 32)
    for name in ("id", "text", "label"):
        assert kept[name].to_pylist() == table[name].to_pylist()


@pytest.mark.parametrize("split", SPLITS)
def test_figures_on_record_are_those_of_the_predictions(recorded: Recorded, split: str) -> None:
    """To the last bit, as a report reads them."""
    scored = Predictions.read(storage_path(predictions(recorded.folder, split)))
    assert RunRecord(storage_path(recorded.folder)).read_run()["data"]["metrics"] == "own"
    figures = split_metrics(scored.score_N, scored.label_N, protocol="own", limit=3.0)
    assert figures == metrics_of(recorded.folder)[split]


def test_scores_are_the_heads_of_the_states(recorded: Recorded) -> None:
    view = RunView.read(RunRecord(storage_path(recorded.folder)))
    scored = view.scored("test")
    assert (view.shown_split, scored is not None) == ("test", True)
    with torch.no_grad():
        score_N = load_model(recorded.folder / "best").model.decide(torch.from_numpy(scored.state_ND.copy())).numpy()
    np.testing.assert_allclose(score_N, scored.score_N, rtol=1e-5)
    assert len(np.unique(scored.state_ND, axis=0)) > 1


def test_each_model_scores_a_split_once(job: Search, recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The members of the ensemble too; and to keep the predictions changes no figure."""
    passes: list[tuple[Any, ...]] = []
    predict = SavedModel._predict

    def count(*arguments: Any) -> Any:
        passes.append(arguments)
        return predict(*arguments)

    folder, store = Path(str(job.record)), DatasetStore.open(recorded.data)
    shutil.rmtree(folder / "best" / "predictions")
    with monkeypatch.context() as patch:
        patch.setattr(SavedModel, "_predict", count)
        metrics = measure_winner(job, job.record.ranked(2)[:3], store)
    scored = Counter((id(saved), id(table)) for saved, table, *_ in passes)
    assert len(scored) == 3 * len(SPLITS) and set(scored.values()) == {1}
    assert metrics["ensemble"] == metrics_of(recorded.folder)["ensemble"]
    saved = load_model(recorded.folder / "best")
    for split in SPLITS:
        rows = store.read(split)
        assert metrics[split] == saved.metrics(saved.score(rows), labels_of(rows))
        assert pq.read_table(predictions(folder, split)).equals(pq.read_table(predictions(recorded.folder, split)))


def test_predictions_of_a_former_winner_go_and_new_ones_come_before_the_figures(
    recorded: Recorded, job: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that goes on finds another winner; one that ends between its files measures again."""
    folder, record, store = tmp_path / "run", job.record, DatasetStore.open(recorded.data)
    best, other = record.ranked(2)[:2]
    export_winner(job, best, store)
    assert not (folder / "best" / "predictions").exists()
    assert listed(folder) == MODEL

    with monkeypatch.context() as patch:
        patch.setattr(winner_module, "comparability", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure_winner(job, [best], store)
    assert measured(record) == []
    assert RunView.read(record).shown_split == "valid"
    for split in SPLITS:
        assert pq.read_table(predictions(folder, split)).equals(pq.read_table(predictions(recorded.folder, split)))

    figures = measure_winner(job, [best], store)
    assert [figures[split] for split in SPLITS] == [metrics_of(recorded.folder)[split] for split in SPLITS]
    assert listed(folder) == MODEL | set(MEASURED)
    assert measured(record) == [best.name]
    # The copied run has the models of its ensemble.
    assert measure_winner(job, [best, other], store)["ensemble"]["members"] == measured(record)
    assert measured(record) == [best.name, other.name]


def test_a_winner_that_is_not_whole_is_not_measured(recorded: Recorded, tmp_path: Path) -> None:
    """Predictions may be left out: they hold texts. A first release's run has no manifest."""
    folder = Path(shutil.copytree(recorded.folder, tmp_path / "run"))
    record, best = RunRecord(storage_path(folder)), folder / "best"
    winner = record.read_run()["winner"]
    shutil.rmtree(best / "predictions")
    for name in ("manifest.json", "metrics.json", "provenance.json", "tokenizer/tokenizer.json"):
        assert measured(record)[0] == winner
        content = (best / name).read_bytes()
        (best / name).unlink()
        assert measured(record) == []
        (best / name).write_bytes(content)
    # A search that was killed before the manifest was complete measures the winner again.
    manifest = json.loads((best / "manifest.json").read_text())
    del manifest["files"]["metrics.json"]
    (best / "manifest.json").write_text(json.dumps(manifest))
    assert measured(record) == []
    assert measured(RunRecord(storage_path(STORED))) == ["stage2/4"]


def test_without_its_checkpoint_nothing_of_the_winner_is_touched(
    recorded: Recorded, job: Search, tmp_path: Path
) -> None:
    folder, best = tmp_path / "run", job.record.ranked(2)[0]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    path = folder / str(best.checkpoint)
    path.unlink()
    with pytest.raises(DataError, match="no such checkpoint"):
        export_winner(job, best, DatasetStore.open(recorded.data))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == {
        name: content for name, content in before.items() if name != path
    }


def test_a_finalists_scores_are_those_of_its_best_epoch(recorded: Recorded) -> None:
    view = RunView.read(RunRecord(storage_path(recorded.folder)))
    finalists = [int(number) for number in view.info.finalists]
    assert len(finalists) == 2
    table = DatasetStore.open(recorded.data).read("valid")
    for number in finalists:
        scored = view.finalist_scored(number)
        assert scored is not None
        assert (list(scored.id_N), list(scored.text_N)) == (table["id"].to_pylist(), table["text"].to_pylist())
        assert scored.state_ND.shape == (16, 32)
        best = view.trials[1][number].best
        assert best is not None
        figures = split_metrics(scored.score_N, scored.label_N, protocol="own", limit=3.0)
        assert figures == pytest.approx(
            {name.removeprefix("valid/"): value for name, value in best.items() if name.startswith("valid/")}, rel=1e-5
        )


def test_what_is_there_stays_and_a_damaged_finalist_is_named(
    recorded: Recorded, job: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record, store = tmp_path / "run", job.record, DatasetStore.open(recorded.data)
    first, second = (record.finalist_folder(int(number)) for number in record.read_run()["finalists"])
    before = Predictions.read(second / "predictions" / "valid.parquet")
    for finalist in (first, second):
        (finalist / "predictions").delete()
    weights = folder / "finalists" / first.name / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    keep_finalists(job, store)
    assert f"finalist stage1/{int(first.name)}:" in capsys.readouterr().err
    assert not (first / "predictions").exists()
    place = second / "predictions" / "valid.parquet"
    assert (Predictions.read(place).state_ND == before.state_ND).all()
    written = place.read_bytes()
    keep_finalists(job, store)
    assert place.read_bytes() == written
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"
