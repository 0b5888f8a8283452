"""`predict`: every format of its input, and every fault in it; rows in memory, scored by a saved model."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from cli.models import HOSTILE, changed, model_of, rows_of

import grcf_ray
from grcf_ray.data.importers import table as importer
from grcf_ray.data.schema import TableInfo, conform
from grcf_ray.data.store import DatasetStore, write_store
from grcf_ray.errors import DataError
from grcf_ray.train import scoring
from grcf_ray.train.export import SavedModel

Run = Callable[..., tuple[int, str, str]]


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


def test_faults_are_counted_and_their_ids_are_no_commands_to_the_terminal(
    textual: Path, tmp_path: Path, run: Run
) -> None:
    nulls = pa.nulls(50, pa.string())
    pq.write_table(pa.table({"text": nulls[:2], "id": [HOSTILE, None]}), tmp_path / "hostile.parquet")
    code, _, err = run(textual, "--input", tmp_path / "hostile.parquet", "--output", tmp_path / "o.csv")
    assert code == 3
    assert len(err.splitlines()) == 3 and "\x1b" not in err
    assert err.splitlines()[2] == "  row 2 (id -): text is missing"
    pq.write_table(pa.table({"text": nulls}), tmp_path / "new.parquet")
    code, _, err = run(textual, "--input", tmp_path / "new.parquet", "--output", tmp_path / "o.csv", "--batch", 8)
    assert code == 3
    lines = err.splitlines()
    assert lines[0].endswith(": 50 faults")
    assert lines[1:] == [
        "  50 times: text is missing",
        *(f"    row {row}: text is missing" for row in (1, 2, 3)),
        "    ... and 47 more",
    ]


def test_values_that_are_not_finite(full: Path, textual: Path, tiny_table: pa.Table, tmp_path: Path, run: Run) -> None:
    """They may count as zero; modalities that the model does not read are not checked."""
    audio = tiny_table["audio"].to_pylist()
    scores = []
    for name, value in (("nan", float("nan")), ("zero", 0.0)):
        audio[0] = [[value, 1.0, 2.0, 3.0, 4.0]]
        pq.write_table(changed(tiny_table, audio=audio), tmp_path / f"{name}.parquet")
        words = ["--input", tmp_path / f"{name}.parquet", "--output", tmp_path / f"{name}.csv"]
        assert run(full, *words, "--non-finite", "zero")[0] == 0
        scores.append((tmp_path / f"{name}.csv").read_text())
        assert run(textual, *words)[0] == 0
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
        (b"id,label\nx,1\n", "missing columns text; present: id, label. Name them: --text-column NAME"),
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


@pytest.mark.parametrize(("header", "words"), [("review;id", ()), ("a;id", ("--text-column", "a"))])
def test_texts_under_another_name(textual: Path, tmp_path: Path, run: Run, header: str, words: tuple[str, ...]) -> None:
    (tmp_path / "new.csv").write_text(f"{header}\ngreat film, so;x\n")
    (tmp_path / "same.csv").write_text('text,id\n"great film, so",x\n')
    for name, options in (("new", words), ("same", ())):
        code, _, err = run(
            textual, "--input", tmp_path / f"{name}.csv", "--output", tmp_path / f"{name}.jsonl", *options
        )
        assert code == 0, err
    assert rows_of(tmp_path / "new.jsonl") == rows_of(tmp_path / "same.jsonl")


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


def test_texts_that_are_cut_are_counted(
    tiny_backbone: Path, tiny_store: DatasetStore, tmp_path: Path, run: Run
) -> None:
    settings = {"model__modalities": "text", "features__max_tokens": 8}
    folder = model_of(tmp_path / "best", tiny_backbone, tiny_store, **settings)
    pq.write_table(pa.table({"text": ["good " * 6, "good " * 7, "bad " * 90]}), tmp_path / "new.parquet")
    words = ["--input", tmp_path / "new.parquet", "--output", tmp_path / "o.csv", "--batch", 1]
    assert json.loads(run(folder, *words, "--json")[1])["cut_texts"] == 2
    assert run(folder, *words)[1].splitlines()[1].startswith("2 of 3 texts have more than 8 subwords")


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
    """A table's column names, a dictionary's keys and a text's letters are texts, but not the texts to score."""
    with pytest.raises(DataError):
        grcf_ray.load_model(textual).score(rows)


@pytest.mark.parametrize("audio", [[[1.0, 2.0]], [1.0] * 5, "loud", [[1.0] * 5, [1.0]], 3.0])
def test_rows_of_another_width_are_named(full: Path, audio: Any) -> None:
    rows = [{"text": "bad", "audio": cell, "vision": None} for cell in ([[1.0] * 5], audio)]
    with pytest.raises(DataError, match="row 2: audio is not a list of rows of 5 numbers"):
        grcf_ray.load_model(full).score(rows)


def test_the_package_names_what_it_lacks() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'save_model'"):
        grcf_ray.save_model  # noqa: B018


def test_groups_are_those_of_the_model(tiny_backbone: Path, tiny_store: DatasetStore, tmp_path: Path) -> None:
    """Named by their edges, about the centre of the label range; a score beyond the range is of the outermost."""
    moved = TableInfo.from_json({**tiny_store.info.to_json(), "label_range": [1.0, 5.0]})
    store = dataclasses.replace(tiny_store, info=moved)
    folder = model_of(tmp_path / "best", tiny_backbone, store, model__modalities="text", ranking__groups="strict,5")
    titles = ("[1, 1.8)", "[1.8, 2.6)", "[2.6, 3.4)", "[3.4, 4.2)", "[4.2, 5]")

    class Fixed(SavedModel):
        def score(self, rows: Any) -> Any:
            return np.array([0.4, 1.0, 1.79, 1.8, 3.0, 3.4, 4.3, 5.6])

    saved = Fixed(**{f.name: getattr(grcf_ray.load_model(folder), f.name) for f in dataclasses.fields(SavedModel)})
    table = scoring.scored(pa.table({"id": list("abcdefgh")}), saved)
    assert table["group"].to_pylist() == [titles[k] for k in (0, 0, 0, 1, 2, 3, 4, 4)]
