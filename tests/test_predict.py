"""Scores of new rows, by a saved model: every format, every fault, whatever the size of a part."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import grcf_ray
from grcf_ray import console
from grcf_ray.cli.predict import app
from grcf_ray.config import build_config
from grcf_ray.data.features import build_features
from grcf_ray.data.importers import ImportOptions, import_source
from grcf_ray.data.importers import table as importer
from grcf_ray.data.schema import TableInfo, conform
from grcf_ray.data.store import DatasetStore, write_store
from grcf_ray.errors import DataError
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.winner import measure
from grcf_ray.storage import storage_path
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.export import SavedModel, load_model, save_model
from grcf_ray.train.manifest import write_manifest
from tests.waiting import wait_for

if TYPE_CHECKING:
    pass

Run = Callable[..., tuple[int, str, str]]

STORED = Path(__file__).parent / "stored" / "run-1"
HOSTILE = '=cmd|"x"!A1\n<script>alert(1)</script>\x1b[31m, "quoted"'


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process; exit code, standard output and error. However long it takes, it is quick."""
    monkeypatch.setattr("grcf_ray.console._QUIET_S", float("inf"))

    def run_command(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            console.run(app, [str(word) for word in argv])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run_command


def model_of(folder: Path, backbone: Path, store: DatasetStore, *, seed: int = 1, **settings: Any) -> Path:
    """An untrained model for the store's features, saved."""
    paths = {"model.backbone": str(backbone), "model.text_vector": "mean", **settings}
    config = build_config({path.replace("__", "."): value for path, value in paths.items()})
    tokenizer = load_tokenizer(str(backbone)) if config.model.sees_text else None
    features = build_features(store, tokenizer, config.features)
    model = initial_model(config.model, select_modalities(features, config.model.modalities), seed=seed)
    protocol: Any = "binary" if store.info.task == "classification" else "mosi"
    save_model(
        folder,
        model,
        tokenizer,
        features,
        config,
        label_range=store.info.label_range,
        protocol=protocol,
        lowercase=False,
    )
    return folder


@pytest.fixture(scope="module")
def full(tiny_backbone: Path, tiny_store: DatasetStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of text, audio and vision."""
    return model_of(tmp_path_factory.mktemp("full") / "best", tiny_backbone, tiny_store)


@pytest.fixture(scope="module")
def textual(tiny_backbone: Path, tiny_store: DatasetStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of text alone."""
    return model_of(tmp_path_factory.mktemp("textual") / "best", tiny_backbone, tiny_store, model__modalities="text")


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        numbers = ("label", "score", "logit")
        return [
            {name: (float(cell) if cell else None) if name in numbers else cell for name, cell in row.items()}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("batch", [1, 7, 2048])
def test_rows_in_their_order_whatever_the_part(
    full: Path, tiny_parquet: Path, tiny_table: pa.Table, tmp_path: Path, run: Run, batch: int, suffix: str
) -> None:
    output = tmp_path / f"scores{suffix}"
    code, out, err = run(full, "--input", tiny_parquet, "--output", output, "--batch", batch)
    assert (code, err) == (0, "")
    assert out.startswith("80 rows scored (") and out.splitlines()[0].endswith(f": {output}")
    rows = rows_of(output)
    assert list(rows[0]) == ["id", "split", "label", "score", "group"]
    assert [row["id"] for row in rows] == tiny_table["id"].to_pylist()
    assert [row["split"] for row in rows] == tiny_table["split"].to_pylist()
    np.testing.assert_allclose([row["label"] for row in rows], tiny_table["label"].to_numpy(), atol=1e-6)
    expected = grcf_ray.load_model(full).score(conform(tiny_table))
    np.testing.assert_allclose([row["score"] for row in rows], expected, atol=1e-5)
    if batch == 2048:
        assert [row["score"] for row in rows] == expected.tolist()
    assert np.ptp(expected) > 0.01


def test_the_input_may_be_csv(full: Path, tiny_csv: Path, tiny_parquet: Path, tmp_path: Path, run: Run) -> None:
    for name, source in (("a", tiny_csv), ("b", tiny_parquet)):
        assert run(full, "--input", source, "--output", tmp_path / f"{name}.jsonl")[0] == 0
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()


def test_text_alone_is_enough(textual: Path, tmp_path: Path, run: Run) -> None:
    """Ids are the rows' numbers over all files; the score is that of the list of texts."""
    texts = ["the film was great", "bad", "", HOSTILE, "awful plot"]
    folder = tmp_path / "new"
    folder.mkdir()
    pq.write_table(pa.table({"text": texts[:3]}), folder / "a.parquet")
    pq.write_table(pa.table({"text": texts[3:], "id": ["x", None], "label": [0.5, None]}), folder / "b.parquet")
    code, _, err = run(textual, "--input", folder, "--output", tmp_path / "scores.jsonl", "--batch", 2)
    assert (code, err) == (0, "")
    rows = rows_of(tmp_path / "scores.jsonl")
    assert [row["id"] for row in rows] == ["1", "2", "3", "x", "5"]
    assert [row["label"] for row in rows] == [None, None, None, 0.5, None]
    np.testing.assert_allclose(
        [row["score"] for row in rows], grcf_ray.load_model(textual).score(texts), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_model_without_text_scores_rows_without_text(
    tiny_backbone: Path,
    tiny_store: DatasetStore,
    tiny_table: pa.Table,
    tiny_csv: Path,
    tmp_path: Path,
    run: Run,
    suffix: str,
) -> None:
    model = model_of(tmp_path / "best", tiny_backbone, tiny_store, model__modalities="audio+vision")
    rows = tmp_path / f"rows{suffix}"
    bare = tiny_table if suffix == ".parquet" else pyarrow.csv.read_csv(tiny_csv)
    bare = bare.drop_columns(["text"])
    pq.write_table(bare, rows) if suffix == ".parquet" else pyarrow.csv.write_csv(bare, rows)
    code, _, err = run(model, "--input", rows, "--output", tmp_path / "out.parquet")
    assert code == 0, err
    scored = rows_of(tmp_path / "out.parquet")
    assert len(scored) == len(tiny_table)
    expected = load_model(model).score(tiny_table)
    assert [row["score"] for row in scored] == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_what_is_written_is_read(textual: Path, tiny_table: pa.Table, tmp_path: Path, run: Run, suffix: str) -> None:
    """With its texts, by the same command: the same again."""
    pq.write_table(changed(tiny_table, text=[HOSTILE, *tiny_table["text"].to_pylist()[1:]]), tmp_path / "new.parquet")
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    assert run(textual, "--input", tmp_path / "new.parquet", "--output", first, "--with-text")[0] == 0
    code, _, err = run(textual, "--input", first, "--output", second, "--with-text")
    assert (code, err) == (0, "")
    assert second.read_bytes() == first.read_bytes()
    assert rows_of(second)[0]["text"] == HOSTILE
    assert run(textual, "--input", first, "--output", second)[0] == 0
    assert "text" not in rows_of(second)[0]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"text": "good"}\n{"text": ', "line 2: Expecting value"),
        ('["good"]', "line 1: not an object"),
        ('{"text": "good"}\n\n{"text": 3}\n', "line 3: text is 3"),
        ('{"words": "good"}', "missing columns text"),
        ("\n", "empty"),
    ],
)
def test_json_lines_with_a_fault(textual: Path, tmp_path: Path, run: Run, content: str, what: str) -> None:
    (tmp_path / "new.jsonl").write_text(content)
    code, _, err = run(textual, "--input", tmp_path / "new.jsonl", "--output", tmp_path / "o.csv")
    assert code == 3
    assert "new.jsonl" in err and what in err
    assert not (tmp_path / "o.csv").exists()


def test_json_lines_are_the_table_that_they_are(
    full: Path, tiny_table: pa.Table, tiny_parquet: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_table.to_pylist()))
    for name, source in (("a", tmp_path / "new.jsonl"), ("b", tiny_parquet)):
        assert run(full, "--input", source, "--output", tmp_path / f"{name}.csv", "--batch", 9)[0] == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    (raw,) = {importer.read(path).table.num_rows for path in (tmp_path / "new.jsonl", tiny_parquet)}
    assert raw == 80


@pytest.mark.parametrize("label", [["positive"] * 80, [[1]] * 80, [None] * 80])
def test_labels_that_are_none_are_left_out(
    textual: Path, tiny_table: pa.Table, tmp_path: Path, run: Run, label: list[Any]
) -> None:
    """No score hangs on them."""
    place = tiny_table.column_names.index("label")
    pq.write_table(tiny_table.set_column(place, "label", pa.array(label)), tmp_path / "new.parquet")
    code, out, err = run(textual, "--input", tmp_path / "new.parquet", "--output", tmp_path / "o.jsonl", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["metrics"] == {}
    assert {row["label"] for row in rows_of(tmp_path / "o.jsonl")} == {None}


def test_metrics_where_there_are_labels(
    textual: Path, tiny_store: DatasetStore, tiny_parquet: Path, tiny_table: pa.Table, tmp_path: Path, run: Run
) -> None:
    """Those that the same model is measured by, each split apart; of what has no split together."""
    saved = grcf_ray.load_model(textual)
    words = ["--input", tiny_parquet, "--output", tmp_path / "o.csv", "--batch", 7]
    code, out, _ = run(textual, *words, "--json")
    assert code == 0
    scored = json.loads(out)["metrics"]
    assert list(scored) == ["train", "valid", "test"]
    for split, metrics in scored.items():
        assert metrics == pytest.approx(measure(saved, tiny_store.read(split), threads=1), abs=1e-4)
    lines = run(textual, *words)[1].splitlines()
    assert lines[1].split() == ["metric", "train", "valid", "test"]

    label = [*tiny_table["label"].to_pylist()[:78], None, None]
    pq.write_table(changed(tiny_table.drop_columns(["split"]), label=label), tmp_path / "new.parquet")
    words = ["--input", tmp_path / "new.parquet", "--output", tmp_path / "o.csv", "--json"]
    code, out, _ = run(textual, *words)
    answer = json.loads(out)
    assert (code, list(answer["metrics"])) == (0, ["all"])
    (note,) = answer["notes"]
    assert "78 rows of 80" in note
    rows = rows_of(tmp_path / "o.csv")[:78]
    expected = np.mean([abs(row["score"] - row["label"]) for row in rows])
    assert answer["metrics"]["all"]["mae"] == pytest.approx(expected, abs=1e-4)

    pq.write_table(changed(tiny_table, label=[5.0, *label[1:]]), tmp_path / "new.parquet")
    answer = json.loads(run(textual, *words)[1])
    assert answer["metrics"] == {}
    lowest = min(value for value in label if value is not None)
    (note,) = answer["notes"]
    assert f"[{lowest:g}, 5]" in note and "[-3, 3]" in note


def test_texts_that_are_cut_are_counted(
    tiny_backbone: Path, tiny_store: DatasetStore, tmp_path: Path, run: Run
) -> None:
    settings = {"model__modalities": "text", "features__max_tokens": 8}
    folder = model_of(tmp_path / "best", tiny_backbone, tiny_store, **settings)
    pq.write_table(pa.table({"text": ["good " * 6, "good " * 7, "bad " * 90]}), tmp_path / "new.parquet")
    words = ["--input", tmp_path / "new.parquet", "--output", tmp_path / "o.csv", "--batch", 1]
    assert json.loads(run(folder, *words, "--json")[1])["cut_texts"] == 2
    assert run(folder, *words)[1].splitlines()[1].startswith("2 of 3 texts have more than 8 subwords")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_hostile_texts_come_back_as_they_are(textual: Path, tmp_path: Path, run: Run, suffix: str) -> None:
    pq.write_table(pa.table({"text": [HOSTILE], "id": [HOSTILE], "split": [HOSTILE]}), tmp_path / "new.parquet")
    code, out, err = run(textual, "--input", tmp_path / "new.parquet", "--output", tmp_path / f"scores{suffix}")
    assert code == 0, err
    (row,) = rows_of(tmp_path / f"scores{suffix}")
    assert (row["id"], row["split"]) == (HOSTILE, HOSTILE)
    assert "\x1b" not in out + err


def test_groups_are_those_of_the_model(tiny_backbone: Path, tiny_store: DatasetStore, tmp_path: Path, run: Run) -> None:
    """Named by their edges, about the centre of the label range; a score beyond the range is of the outermost."""
    moved = TableInfo.from_json({**tiny_store.info.to_json(), "label_range": [1.0, 5.0]})
    store = dataclasses.replace(tiny_store, info=moved)
    folder = model_of(tmp_path / "best", tiny_backbone, store, model__modalities="text", ranking__groups="strict,5")
    titles = ("[1, 1.8)", "[1.8, 2.6)", "[2.6, 3.4)", "[3.4, 4.2)", "[4.2, 5]")
    from grcf_ray.train import scoring

    class Fixed(SavedModel):
        def score(self, rows: Any) -> Any:
            return np.array([0.4, 1.0, 1.79, 1.8, 3.0, 3.4, 4.3, 5.6])

    saved = Fixed(**{f.name: getattr(grcf_ray.load_model(folder), f.name) for f in dataclasses.fields(SavedModel)})
    table = scoring.scored(pa.table({"id": list("abcdefgh")}), saved)
    assert table["group"].to_pylist() == [titles[k] for k in (0, 0, 0, 1, 2, 3, 4, 4)]


def test_two_classes(tiny_backbone: Path, tiny_table: pa.Table, tmp_path: Path, run: Run) -> None:
    """Probability and logit, and the class that is the likelier."""
    label_N = (tiny_table["label"].to_numpy() > 0).astype(np.float64)
    table = tiny_table.set_column(tiny_table.column_names.index("label"), "label", pa.array(label_N))
    pq.write_table(table, tmp_path / "classes.parquet")
    options = ImportOptions(dataset="classes", task="classification")
    store = write_store(tmp_path / "store", *import_source(tmp_path / "classes.parquet", options))
    folder = model_of(tmp_path / "best", tiny_backbone, store)
    code, _, err = run(folder, "--input", tmp_path / "classes.parquet", "--output", tmp_path / "scores.parquet")
    assert (code, err) == (0, "")
    scored = pq.read_table(tmp_path / "scores.parquet")
    assert scored.column_names == ["id", "split", "label", "score", "logit", "group"]
    logit_N = grcf_ray.load_model(folder).score(conform(table))
    np.testing.assert_array_equal(scored["logit"].to_numpy(), logit_N)
    np.testing.assert_allclose(scored["score"].to_numpy(), 1 / (1 + np.exp(-logit_N)), rtol=1e-12)
    assert scored["group"].to_pylist() == [str(int(logit > 0)) for logit in logit_N]


def changed(table: pa.Table, **columns: Any) -> pa.Table:
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(column, table.schema.field(name).type))
    return table


def test_every_bad_row_is_named_before_anything_is_written(
    full: Path, tiny_table: pa.Table, tmp_path: Path, run: Run
) -> None:
    """The last rows' faults are known before the first is scored; an output that was there stays."""
    text, audio, vision = (tiny_table[name].to_pylist() for name in ("text", "audio", "vision"))
    text[1] = None
    audio[70] = [[1.0, float("nan"), float("inf"), 0.0, 0.0]]
    vision[79] = [[1.0, 2.0]]
    pq.write_table(changed(tiny_table, text=text, audio=audio, vision=vision), tmp_path / "new.parquet")
    (tmp_path / "scores.csv").write_text("before")
    code, out, err = run(full, "--input", tmp_path / "new.parquet", "--output", tmp_path / "scores.csv", "--batch", 10)
    assert (code, out) == (3, "")
    head, *faults, remedy = err.splitlines()
    assert head.endswith("new.parquet: 3 faults")
    assert [" ".join(fault.replace(":", "").split()[:5]) for fault in faults] == [
        "row 2 (id video0[1]) text",
        "row 71 (id video17[2]) audio",
        "row 80 (id video19[3]) vision",
    ]
    assert remedy.endswith("--non-finite zero")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["new.parquet", "scores.csv"]
    assert (tmp_path / "scores.csv").read_text() == "before"


def test_a_faults_id_is_no_command_to_the_terminal(textual: Path, tmp_path: Path, run: Run) -> None:
    pq.write_table(pa.table({"text": pa.nulls(2, pa.string()), "id": [HOSTILE, None]}), tmp_path / "new.parquet")
    code, _, err = run(textual, "--input", tmp_path / "new.parquet", "--output", tmp_path / "o.csv")
    assert code == 3
    assert len(err.splitlines()) == 3 and "\x1b" not in err
    assert err.splitlines()[2] == "  row 2 (id -): text is missing"


def test_many_faults_are_counted(textual: Path, tmp_path: Path, run: Run) -> None:
    pq.write_table(pa.table({"text": pa.nulls(50, pa.string())}), tmp_path / "new.parquet")
    code, _, err = run(textual, "--input", tmp_path / "new.parquet", "--output", tmp_path / "o.csv", "--batch", 8)
    assert code == 3
    lines = err.splitlines()
    assert lines[0].endswith(": 50 faults")
    assert lines[1:] == [
        "  50 times: text is missing",
        *(f"    row {row}: text is missing" for row in (1, 2, 3)),
        "    ... and 47 more",
    ]


def test_non_finite_values_may_count_as_zero(full: Path, tiny_table: pa.Table, tmp_path: Path, run: Run) -> None:
    audio = tiny_table["audio"].to_pylist()
    scores = []
    for name, value in (("nan", float("nan")), ("zero", 0.0)):
        audio[0] = [[value, 1.0, 2.0, 3.0, 4.0]]
        pq.write_table(changed(tiny_table, audio=audio), tmp_path / f"{name}.parquet")
        words = ["--input", tmp_path / f"{name}.parquet", "--output", tmp_path / f"{name}.csv", "--non-finite", "zero"]
        assert run(full, *words)[0] == 0
        scores.append((tmp_path / f"{name}.csv").read_text())
    assert scores[0] == scores[1]


def test_rows_of_another_width_are_fitted_when_asked(
    full: Path, tiny_table: pa.Table, tmp_path: Path, run: Run
) -> None:
    """As `evaluate --on` does: vision cut off, audio missing; without the option both are named, and the way out."""
    vision = [cell and [[*row, 9.0, 9.0] for row in cell] for cell in tiny_table["vision"].to_pylist()]
    table = changed(tiny_table.drop_columns(["audio", "label", "split"]), vision=vision)
    pq.write_table(table, tmp_path / "new.parquet")
    words = [full, "--input", tmp_path / "new.parquet", "--output", tmp_path / "scores.parquet"]
    code, out, err = run(*words)
    assert (code, out) == (3, "")
    assert "vision has rows of 5 values" in err and "no audio" in err and "--fit-features" in err
    assert not (tmp_path / "scores.parquet").exists()
    code, out, err = run(*words, "--fit-features", "--batch", 9)
    assert (code, err) == (0, "")
    assert [line.partition(":")[0] for line in out.splitlines()[1:]] == ["Vision", "No audio"]
    nobody = conform(tiny_table)
    place = nobody.column_names.index("audio")
    nobody = nobody.set_column(place, nobody.schema.field("audio"), pa.nulls(80, nobody.schema.field("audio").type))
    scored = pq.read_table(tmp_path / "scores.parquet")
    np.testing.assert_allclose(scored["score"].to_numpy(), grcf_ray.load_model(full).score(nobody), atol=1e-5)


def test_what_the_model_does_not_read_is_not_looked_at(
    textual: Path, tiny_table: pa.Table, tmp_path: Path, run: Run
) -> None:
    audio = [[[float("nan")]]] * 80
    pq.write_table(changed(tiny_table, audio=audio), tmp_path / "new.parquet")
    assert run(textual, "--input", tmp_path / "new.parquet", "--output", tmp_path / "scores.csv")[0] == 0


def test_rows_that_follow_words_have_one_for_each(
    tiny_backbone: Path, tiny_table: pa.Table, tmp_path: Path, run: Run
) -> None:
    """A table cannot say so itself: it is held to what the model was trained on."""
    counts = [len(text.split(" ")) for text in tiny_table["text"].to_pylist()]
    audio = [[[float(n)] * 5] * n for n in counts]
    table = changed(tiny_table.drop_columns(["vision"]), audio=audio)
    info = TableInfo.describe(conform(table), name="words", label_range=(-3, 3), word_aligned=True)
    store = write_store(tmp_path / "store", conform(table), info)
    folder = model_of(tmp_path / "best", tiny_backbone, store)
    expected = grcf_ray.load_model(folder).score(conform(table))
    pq.write_table(table, tmp_path / "new.parquet")
    for source in (tmp_path / "new.parquet", store.folder):
        code, _, err = run(folder, "--input", source, "--output", tmp_path / "scores.parquet")
        assert (code, err) == (0, "")
        rows = {row["id"]: row["score"] for row in rows_of(tmp_path / "scores.parquet")}
        np.testing.assert_allclose([rows[name] for name in table["id"].to_pylist()], expected, atol=1e-5)
    audio[5] = audio[5] + audio[5]
    pq.write_table(changed(table, audio=audio), tmp_path / "new.parquet")
    code, _, err = run(folder, "--input", tmp_path / "new.parquet", "--output", tmp_path / "scores.parquet")
    assert code == 3
    assert err.endswith(f"row 6 (id video1[1]): audio has {2 * counts[5]} rows for {counts[5]} words\n")


def test_other_formats_are_read_whole_and_said_so(textual: Path, tmp_path: Path, run: Run) -> None:
    import pickle

    arrays = (np.array(["the", "film"]), np.zeros((2, 47)), np.zeros((2, 74)))
    content = {split: [(arrays, np.array([[1.0]]), f"{split}[0]")] for split in ("train", "dev", "test")}
    (tmp_path / "mosi.pkl").write_bytes(pickle.dumps(content))
    code, out, err = run(textual, "--input", tmp_path / "mosi.pkl", "--output", tmp_path / "o.csv", "--json")
    assert code == 0, err
    assert err.startswith(f"{tmp_path / 'mosi.pkl'} ") and len(err.splitlines()) == 1
    assert json.loads(out)["rows"] == 3
    assert [row["id"] for row in rows_of(tmp_path / "o.csv")] == ["train[0]", "dev[0]", "test[0]"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,label\nx,1\n", "missing columns text; present: id, label"),
        (b"text,text\nx,1\n", "more than one column named text"),
        (b"text\n", "no rows"),
        (b"text\n\xff\n", "line 2 is not UTF-8"),
        (b"text,id\na,b\na\n", "1 rows do not fit the header\n  row 2 has 1 cells, not 2"),
    ],
)
def test_tables_that_cannot_be_scored(textual: Path, tmp_path: Path, run: Run, content: bytes, message: str) -> None:
    (tmp_path / "new.csv").write_bytes(content)
    code, _, err = run(textual, "--input", tmp_path / "new.csv", "--output", tmp_path / "o.csv")
    assert code == 3
    assert message in err
    assert not (tmp_path / "o.csv").exists()


def test_csv_is_streamed(textual: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells with line breaks lie across the ends of blocks; a row that does not fit the header has its number."""
    monkeypatch.setattr(importer, "_STREAMED_BLOCK", 512)
    texts = [f'the film {n}\nwas, "good"' for n in range(200)]
    path = tmp_path / "new.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    parts = [part for part, _ in importer.stream(path, ("text",), 50)]
    assert [text for part in parts for text in part["text"].to_pylist()] == texts
    assert len(parts) > 10
    with path.open("a") as file:
        file.write("a,b\n")
    code, _, err = run(textual, "--input", path, "--output", tmp_path / "o.csv")
    assert code == 3
    assert err.endswith("1 rows do not fit the header\n  row 201 has 2 cells, not 1\n")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--output", "o.txt"), 2, ".parquet, .csv, .jsonl"),
        (("--output", "{input}"), 2, "--output"),
        (("--output", "o.csv", "--data-format", "word"), 2, "unknown format 'word'"),
        (("--output", "o.csv", "--data-format", "mag"), 3, "not a pickle"),
        (("--output", "o.csv", "--batch", "0"), 2, ""),
    ],
)
def test_usage(textual: Path, tiny_csv: Path, run: Run, words: tuple[str, ...], code: int, message: str) -> None:
    before = tiny_csv.read_bytes()
    ended, _, err = run(textual, "--input", tiny_csv, *(word.format(input=tiny_csv) for word in words))
    assert ended == code
    assert message in err
    assert tiny_csv.read_bytes() == before


def test_a_run_and_its_best_are_the_same_model(tiny_parquet: Path, tmp_path: Path, run: Run) -> None:
    """As a path, a URI, or best/ copied to elsewhere."""
    shutil.copytree(STORED / "best", tmp_path / "moved")
    for number, where in enumerate((STORED, STORED / "best", tmp_path / "moved", STORED.as_uri())):
        code, _, err = run(where, "--input", tiny_parquet, "--output", tmp_path / f"{number}.csv")
        assert code == 0 and len(err.splitlines()) == 1 and "was saved by an earlier version" in err
        assert (tmp_path / f"{number}.csv").read_text() == (tmp_path / "0.csv").read_text()


def test_where_there_is_no_model(tiny_csv: Path, tmp_path: Path, run: Run) -> None:
    words = ["--input", tiny_csv, "--output", tmp_path / "o.csv"]
    code, _, err = run(tmp_path / "nowhere", *words)
    assert (code, "run.json" in err) == (3, True)
    (tmp_path / "begun").mkdir()
    RunRecord(storage_path(tmp_path / "begun")).write_run({"state": "interrupted"})
    code, _, err = run(tmp_path / "begun", *words)
    assert code == 3
    assert str(tmp_path / "begun") in err and "interrupted" in err


@pytest.fixture
def retrained(tiny_backbone: Path, tiny_store: DatasetStore, tmp_path: Path) -> Path:
    """A run whose winner has been retrained: 0000, 0002 and 0004 are the winner's, the others the starting point's."""
    folder = Path(shutil.copytree(STORED, tmp_path / "run"))
    record = RunRecord(storage_path(folder / "seeds" / "stage2-4"))
    for number in range(6):
        settings = {"model__modalities": "text+audio", "seed": 10 + number}
        place = Path(str(record.place)) / "models" / f"{number:04d}"
        model_of(place, tiny_backbone, tiny_store, **settings)
        (place / "metrics.json").write_text("{}")
        write_manifest(place)
        # Trials of Stage 2 are numbered in the order in which those of Stage 1 came through.
        params = {"finalist": str(number)}
        record.write_trial(TrialRecord(number=number, stage=2, attempt=1, params=params, seed=number, state="complete"))
    (folder / "seeds" / "metrics.json").write_text(
        json.dumps({"winner": "stage2/4", "seeds": 3, "complete": True, "models": [], "arms": {}, "gain": {}})
    )
    return folder


def test_spread_over_the_seeds(
    retrained: Path, tiny_parquet: Path, tiny_table: pa.Table, tmp_path: Path, run: Run
) -> None:
    code, out, err = run(retrained, "--input", tiny_parquet, "--output", tmp_path / "s.parquet", "--json")
    assert code == 0, err
    earlier, progress = err.splitlines()
    assert earlier.startswith("note: ") and "3 retrained models" in progress
    assert json.loads(out)["seeds"] == 3
    scored = pq.read_table(tmp_path / "s.parquet")
    assert scored.column_names[-4:] == ["score", "group", "seeds_mean", "seeds_deviation"]
    models = retrained / "seeds" / "stage2-4" / "models"
    expected = np.stack(
        [grcf_ray.load_model(models / name).score(conform(tiny_table)) for name in ("0000", "0002", "0004")]
    )
    np.testing.assert_allclose(scored["seeds_mean"].to_numpy(), expected.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(scored["seeds_deviation"].to_numpy(), expected.std(axis=0, ddof=1), atol=1e-5)
    np.testing.assert_array_equal(scored["score"].to_numpy(), grcf_ray.load_model(retrained).score(conform(tiny_table)))
    assert run(retrained, "--input", tiny_parquet, "--output", tmp_path / "n.parquet", "--no-seeds")[2].endswith(
        f"{earlier}\n"
    )
    assert "seeds_mean" not in pq.read_table(tmp_path / "n.parquet").column_names


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_leaves_what_was_there(textual: Path, tmp_path: Path, how: signal.Signals) -> None:
    """Where the process is told, it clears away what it has begun."""
    pq.write_table(pa.table({"text": ["the film was great and bad"] * 5_000}), tmp_path / "new.parquet")
    (tmp_path / "o.csv").write_text("before")
    words = ["--input", tmp_path / "new.parquet", "--output", tmp_path / "o.csv", "--batch", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "grcf_ray.predict", *map(str, [textual, *words])],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        wait_for(lambda: any(path.stat().st_size > 0 for path in tmp_path.glob(".o.csv.*")), "part of the output")
    finally:
        process.send_signal(how)
        process.wait()
    assert (tmp_path / "o.csv").read_text() == "before"
    assert process.returncode == (130 if how == signal.SIGTERM else -how)
    assert bool(list(tmp_path.glob(".o.csv.*"))) == (how == signal.SIGKILL)


def test_a_fault_in_the_middle_leaves_what_was_there(
    textual: Path, tiny_csv: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grcf_ray.train import scoring

    calls = 0
    real = scoring.scored

    def fails(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(scoring, "scored", fails)
    (tmp_path / "o.parquet").write_text("before")
    code, _, _ = run(textual, "--input", tiny_csv, "--output", tmp_path / "o.parquet", "--batch", 10)
    assert (code, calls) == (130, 3)
    assert [path.name for path in tmp_path.glob("*o.parquet*")] + [path.name for path in tmp_path.glob(".o*")] == [
        "o.parquet"
    ]
    assert (tmp_path / "o.parquet").read_text() == "before"


def test_progress_says_what_is_left(
    textual: Path, tiny_csv: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grcf_ray.console._QUIET_S", 5.0)
    clock = iter(float(10 * second) for second in range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    code, _, err = run(textual, "--input", tiny_csv, "--output", tmp_path / "o.csv", "--batch", 40)
    assert code == 0
    (line,) = err.splitlines()
    assert line[line.index("scoring") :] == "scoring rows 40/80  ETA 10 s"


def test_lists_of_texts(textual: Path, full: Path) -> None:
    model = grcf_ray.load_model(str(textual))
    assert model.score(["the film was great", "bad"]).shape == (2,)
    assert model.score([]).shape == (0,)
    np.testing.assert_array_equal(model.score(("bad",)), model.score(pa.table({"text": ["bad"]})))
    assert model.score(text for text in ("bad", "great")).shape == (2,)
    message = r"trained with vision \(3 values a row\) and audio \(5 values a row\) beside the text"
    with pytest.raises(DataError, match=message):
        grcf_ray.load_model(full).score(["bad"])


@pytest.mark.parametrize("form", ["frame", "frame of arrays", "dictionaries", "batch"])
def test_rows_by_their_columns(full: Path, tiny_table: pa.Table, form: str) -> None:
    """Whatever holds them, in whatever order their columns are; ids and labels are not read."""
    rows: Any = tiny_table.slice(0, 20).to_pylist()
    if form.startswith("frame"):
        rows = pandas.DataFrame(rows)[["label", "vision", "text", "id", "audio"]]
        if form == "frame of arrays":
            rows["audio"] = [None if cell is None else np.array(cell) for cell in rows["audio"]]
    elif form == "batch":
        (rows,) = tiny_table.slice(0, 20).combine_chunks().to_batches()
    model = grcf_ray.load_model(full)
    np.testing.assert_array_equal(model.score(rows), model.score(tiny_table.slice(0, 20)))


@pytest.mark.parametrize(
    "rows",
    [
        "bad",
        b"bad",
        7,
        None,
        {"text": ["bad", "good"]},
        pandas.Series([1.0, 2.0]),
        np.array([1, 2]),
        ["bad", None],
        ["bad", {"text": "good"}],
        [["bad"], ["good"]],
        [{"text": "bad"}, {"text": 3}],
        [{"text": "bad"}, {"label": 3}],
        [{"words": "bad"}],
        pandas.DataFrame({"words": ["bad"]}),
        pandas.DataFrame({"text": ["bad", None]}),
        pandas.DataFrame([["bad", "good"]], columns=["text", "text"]),
        pa.table({"words": ["bad"]}),
        pa.table({"text": ["bad", None]}),
        pa.table({"text": [1, 2]}).append_column("text", pa.array([1, 2])),
    ],
    ids=lambda rows: f"{type(rows).__name__}",
)
def test_what_holds_no_texts_is_refused(textual: Path, rows: Any) -> None:
    """A table's column names, a dictionary's keys and a text's letters are texts, but not those that are meant."""
    with pytest.raises(DataError):
        grcf_ray.load_model(textual).score(rows)


@pytest.mark.parametrize("audio", [[[1.0, 2.0]], [1.0] * 5, "loud", [[1.0] * 5, [1.0]], 3.0])
def test_rows_of_another_width_are_named(full: Path, audio: Any) -> None:
    rows = [{"text": "bad", "audio": cell, "vision": None} for cell in ([[1.0] * 5], audio)]
    with pytest.raises(DataError, match="row 2: audio is not a list of rows of 5 numbers"):
        grcf_ray.load_model(full).score(rows)


def test_the_package_itself_imports_nothing() -> None:
    code = "import sys, grcf_ray; print(sorted({'torch', 'ray', 'pyarrow', 'numpy'} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert ran.stdout == "[]\n"
    with pytest.raises(AttributeError, match="has no attribute 'save_model'"):
        grcf_ray.save_model  # noqa: B018
