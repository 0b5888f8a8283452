"""A finished run's best model, loaded again and measured."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli.models import model_of
from commands import Run, command
from report.stored import change, restore

from grcf_ray.cli.evaluate import app
from grcf_ray.data.importers import ImportOptions, import_source
from grcf_ray.data.schema import labels_of
from grcf_ray.data.store import DatasetStore, find_data, write_store
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.train.export import SavedModel, load_model
from grcf_ray.train.manifest import write_manifest
from grcf_ray.train.stage import use_deterministic_torch

if TYPE_CHECKING:
    from tests.conftest import Recorded


@pytest.fixture(scope="module")
def measured(tiny_store: DatasetStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without anything that its model does not need, and without its backbone; measured here."""
    folder = restore(
        tmp_path_factory.mktemp("measured") / "run", backbone="/nowhere/at/all", data=str(tiny_store.folder)
    )
    for part in ("stage1", "stage2", "finalists"):
        shutil.rmtree(folder / part)
    write_manifest(folder / "best")
    model = load_model(folder / "best")
    use_deterministic_torch(1)
    splits = {}
    for split in ("valid", "test"):
        rows = tiny_store.read(split)
        splits[split] = model.metrics(model.score(rows), labels_of(rows))
    change(folder / "best" / "metrics.json", threads=1, **splits)
    write_manifest(folder / "best")
    return folder


@pytest.fixture
def copy(measured: Path, tmp_path: Path) -> Path:
    """The finished run, in another place, to write to."""
    return Path(shutil.copytree(measured, tmp_path / "moved" / "run"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return command(app, capsys)


def recorded_metrics(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "best" / "metrics.json").read_text())
    return metrics


def reads_of(folder: Path) -> list[str]:
    reads = json.loads((folder / "best" / "provenance.json").read_text())["test_reads"]
    return [read["command"] for read in reads]


@pytest.mark.integration
def test_a_new_process_gives_the_figures_of_the_search_exactly(recorded: Recorded, tmp_path: Path) -> None:
    """Without the backbone, Ray or the place where the run was."""
    copy = shutil.copytree(recorded.folder, tmp_path / "moved" / "run")
    ran = subprocess.run(
        [sys.executable, "-m", "grcf_ray.evaluate", str(copy)],
        capture_output=True,
        text=True,
        env={**os.environ, "GRCF_CACHE": str(tmp_path / "cache")},
        cwd=tmp_path,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.endswith("Exactly as recorded.\n")


def test_each_metric_stands_beside_the_recorded_and_each_test_read_is_appended(copy: Path, run: Run) -> None:
    test = recorded_metrics(copy)["test"]
    code, out, err = run(copy)
    assert (code, err) == (0, "")
    *table, verdict = out.splitlines()
    assert verdict == "Exactly as recorded."
    assert table[0].split() == ["metric", "test", "recorded"]
    shown = [(title, f"{test[name]:.4f}") for name, title in METRIC_TITLES.items() if name in test]
    assert [line.split() for line in table[1:]] == [[*title.split(), figure, figure] for title, figure in shown]
    assert reads_of(copy) == ["search", "evaluate"]
    code, out, err = run(copy, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"split": "test", "metrics": test, "as_recorded": True}
    assert reads_of(copy) == ["search", "evaluate", "evaluate"]


def test_the_ensemble_is_measured_too(
    copy: Path, tiny_backbone: Path, tiny_store: DatasetStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean score of its members, each of which scores once; if its models are deleted, the winner alone."""
    place = model_of(copy / "ensemble" / "stage2-1", tiny_backbone, tiny_store, model__modalities="text")
    models = [load_model(copy / "best"), load_model(place)]
    means = {}
    for split in ("valid", "test"):
        rows = tiny_store.read(split)
        score_N = np.mean([model.score(rows) for model in models], axis=0)
        means[split] = models[0].metrics(score_N, labels_of(rows))
    change(copy / "best" / "metrics.json", ensemble={"members": ["stage2/4", "stage2/1"], **means})
    write_manifest(copy / "best")
    scored = []
    score = SavedModel.score

    def count(saved: SavedModel, rows: Any) -> Any:
        scored.append(saved)
        return score(saved, rows)

    with monkeypatch.context() as patch:
        patch.setattr(SavedModel, "score", count)
        code, out, err = run(copy)
    assert (code, err) == (0, "")
    assert len(scored) == len(set(map(id, scored))) == 2
    header, *_, verdict = out.splitlines()
    assert verdict == "Exactly as recorded."
    assert header.split() == ["metric", "test", "recorded", *["ensemble", "of", "2", "ensemble,", "recorded"]]
    answer = json.loads(run(copy, "--split", "valid", "--json")[1])
    assert answer["ensemble"] == means["valid"] and answer["as_recorded"] is True
    reads = json.loads((copy / "best" / "provenance.json").read_text())["test_reads"]
    assert reads[-1]["models"] == ["stage2/4", "stage2/1"]

    means["test"]["mae"] += 1e-12
    change(copy / "best" / "metrics.json", ensemble={"members": ["stage2/4", "stage2/1"], **means})
    write_manifest(copy / "best")
    assert json.loads(run(copy, "--json")[1])["as_recorded"] is False
    shutil.rmtree(copy / "ensemble")
    assert json.loads(run(copy, "--json")[1])["as_recorded"] is True


def test_other_splits_are_no_test_read(copy: Path, run: Run) -> None:
    code, out, _ = run(copy, "--split", "valid", "--json")
    assert code == 0
    assert json.loads(out)["as_recorded"] is True
    assert json.loads(out)["metrics"] == recorded_metrics(copy)["valid"]
    code, out, _ = run(copy, "--split", "train", "--json")
    assert (code, json.loads(out)["as_recorded"]) == (0, None)
    assert json.loads(out)["metrics"]["mae"] != recorded_metrics(copy)["valid"]["mae"]
    assert reads_of(copy) == ["search"]


def test_moved_data_are_given(
    copy: Path, tiny_store: DatasetStore, tiny_parquet: Path, tmp_path: Path, run: Run
) -> None:
    """As the imported store, or as the file that it came from; without --data the message names it."""
    data = json.loads((copy / "run.json").read_text())["data"]
    change(copy / "run.json", data=data | {"folder": str(tmp_path / "gone")})
    code, out, err = run(copy)
    assert (code, out) == (3, "")
    assert str(tmp_path / "gone") in err and "--data" in err
    assert reads_of(copy) == ["search"]
    for data in (tiny_store.folder, tiny_parquet):
        code, out, err = run(copy, "--data", data)
        assert (code, err) == (0, "")
        assert out.endswith("Exactly as recorded.\n")


def test_other_data_are_refused(copy: Path, tiny_csv: Path, tmp_path: Path, run: Run) -> None:
    other = tmp_path / "other.csv"
    other.write_text(tiny_csv.read_text().replace("great", "good"))
    code, out, err = run(copy, "--data", other)
    assert (code, out) == (3, "")
    assert err.startswith("error: ")
    assert "fingerprints differ" in err
    assert reads_of(copy) == ["search"]


def test_an_unfinished_run_says_so(copy: Path, run: Run) -> None:
    shutil.rmtree(copy / "best")
    code, out, err = run(copy)
    assert (code, out) == (3, "")
    assert json.loads((copy / "run.json").read_text())["starts"][-1]["command"] in err
    change(copy / "run.json", state="interrupted")
    code, out, err = run(copy)
    assert (code, out) == (3, "")
    assert str(copy) in err and "interrupted" in err
    code, _, err = run(copy.parent)
    assert code == 3
    assert str(copy.parent) in err and "run.json" in err


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_tampered_weights_are_refused(copy: Path, damage: str, run: Run) -> None:
    weights = copy / "best" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flipped":
        content[-5] ^= 1
    weights.unlink()
    if damage != "gone":
        weights.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    code, out, err = run(copy)
    assert (code, out) == (3, "")
    assert err.startswith(f"error: {weights.parent} is damaged") and err.count("model.safetensors") == 1
    assert reads_of(copy) == ["search"], "a damaged model reads nothing"


def test_changed_figures_are_called_so(copy: Path, run: Run) -> None:
    test = recorded_metrics(copy)["test"]
    change(copy / "best" / "metrics.json", test=test | {"mae": test["mae"] + 1e-12})
    write_manifest(copy / "best")
    code, out, _ = run(copy)
    assert code == 0
    assert out.splitlines()[-1].startswith("Not as recorded")


def test_options_that_do_not_fit_are_refused(copy: Path, run: Run) -> None:
    code, _, err = run(copy, "--split", "dev")
    assert code == 2
    assert "--split dev" in err and "train, valid, test" in err
    code, _, err = run(copy, "--fit-features")
    assert code == 2
    assert "--on NAME" in err


@pytest.mark.parametrize("more", [2, -1])
def test_another_data_set(copy: Path, tiny_table: pa.Table, more: int, tmp_path: Path, run: Run) -> None:
    """Widths that differ are refused, and fitted when asked, which is said; scores go to the other label range."""
    saved = load_model(copy / "best")
    width = saved.model.modality_dims["audio"]
    audio = np.random.default_rng(3).normal(size=(tiny_table.num_rows, 2, width + more)).tolist()
    columns = {name: tiny_table[name] for name in ("id", "split", "text")}
    labels = pa.array((tiny_table["label"].to_numpy() + 3) * 4 / 6)
    data = tmp_path / "other.parquet"
    pq.write_table(pa.table({**columns, "label": labels, "audio": pa.array(audio)}), data)
    words = (copy, "--on", "own", "--data", data, "--label-range", 0, 4)
    code, out, err = run(*words)
    assert (code, out) == (3, "")
    assert all(part in err for part in ("audio", str(width + more), str(width), "--fit-features"))
    code, out, err = run(*words, "--fit-features", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["as_recorded"] is None
    fitted, scaled = answer["notes"]
    assert fitted.startswith(f"audio: the last 2 of {width + 2}" if more > 0 else "audio: 1 values, the means")
    assert "[-3, 3] to [0, 4]" in scaled
    table = find_data("own", data, (0, 4)).read("test")
    mean = float(saved.standardisers["audio"].mean_A[-1])
    rows = [[[*row, mean][:width] for row in cell] for cell in table["audio"].to_pylist()]
    table = table.set_column(table.column_names.index("audio"), "audio", pa.array(rows))
    scores = (saved.score(table) + 3) * 4 / 6
    assert answer["metrics"]["mae"] == pytest.approx(
        np.abs(scores - np.round(table["label"].to_numpy(), 4)).mean(), abs=1e-6
    )
    assert reads_of(copy)[-1] == "evaluate --on own"
    code, out, _ = run(*words, "--fit-features")
    assert out.splitlines()[0].split() == ["metric", "own,", "test"]
    assert "[-3, 3] to [0, 4]" in out.splitlines()[-1]


def test_another_data_set_without_a_modality(copy: Path, tiny_csv: Path, tmp_path: Path, run: Run) -> None:
    """As one that every utterance lacks; a table of another task is refused."""
    bare = tmp_path / "bare.csv"
    with tiny_csv.open() as file, bare.open("w") as beside:
        rows = list(csv.DictReader(file))
        writer = csv.DictWriter(beside, ["id", "split", "text", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    words = (copy, "--on", "own", "--data", bare, "--label-range", -3, 3)
    code, _, err = run(*words)
    assert code == 3
    assert "no audio" in err and "--fit-features" in err
    code, out, _ = run(*words, "--fit-features", "--json")
    assert code == 0
    assert [note.partition(":")[0] for note in json.loads(out)["notes"]] == ["no audio"]
    # An imported data set says its name.
    options = ImportOptions(dataset="own", label_range=(-3, 3))
    write_store(tmp_path / "imported", *import_source(bare, options))
    assert run(copy, "--on", tmp_path / "imported", "--fit-features", "--json")[:2] == (0, out)
    write_store(tmp_path / "classes", *import_source(bare, dataclasses.replace(options, binarize=True)))
    code, _, err = run(copy, "--on", tmp_path / "classes")
    assert code == 2
    assert "regression" in err and "classification" in err
