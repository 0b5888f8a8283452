"""Options of an import, and the steps that all formats share after their files are read."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import command
from data.foreign import HEADER, OWN, ROWS, refusal, rows_of, write
from data.formats import FORMATS
from data.fuzz import damaged

from grcf_ray.cli.data import app
from grcf_ray.data.importers import ImportOptions, find_importer, import_source
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import ConfigError, DataError


def test_missing_valid_split_is_drawn_by_video_where_known(tmp_path: Path) -> None:
    video = [f"v{row // 4}" for row in range(200)] + ["t"]
    pq.write_table(rows_of(200, video_id=video), tmp_path / "own.parquet")
    table, info = import_source(tmp_path / "own.parquet", OWN)
    split_of = dict(zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True))
    for row in range(0, 200, 4):
        assert len({split_of[f"u{row + offset}"] for offset in range(4)}) == 1
    assert 20 <= info.splits["valid"] <= 30
    assert "whole videos" in info.notes[0]


def test_upper_case_transcripts_and_missing_texts_are_noted_and_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", f"{HEADER}a,train,IT WAS GOOD,1\nb,valid,,1\nc,test,x,1\n")
    table, info = import_source(path, OWN)
    assert info.transcripts == "upper"
    assert table["text"].to_pylist() == ["IT WAS GOOD", "", "x"]
    assert any("upper case" in note for note in info.notes)
    assert "1 of 3 utterances have no text" in info.notes


def test_other_counts_than_the_fact_sheets_are_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "mosi.csv", HEADER + ROWS)
    _, info = import_source(path, ImportOptions(dataset="mosi"))
    assert info.notes[:1] == (
        "1/1/1 utterances in train/valid/test, but CMU-MOSI usually has 1281/229/685 or 1284/229/686",
    )


def test_options_that_contradict_the_fact_sheet(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mosi is annotated on -3 3"):
        ImportOptions(dataset="mosi", label_range=(-1, 1))
    with pytest.raises(ConfigError, match="the lower one first"):
        ImportOptions(dataset="own", label_range=(1, 1))
    with pytest.raises(ConfigError, match=r"'mossi' is unknown, but nearly mosi: .* own data, .*--label-range A B"):
        ImportOptions(dataset="mossi")
    assert ImportOptions(dataset="mossi", label_range=(1, 5)).facts() is None
    with pytest.raises(ConfigError, match=r"unknown format 'pickle'. Known: auto, .*table"):
        find_importer(tmp_path, "pickle")


def test_sources_that_are_not_there_or_of_no_format(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'} does not exist"
    write(tmp_path / "readme.txt", "hello")
    assert "no data of a known format (" in refusal(tmp_path)
    assert "no data of a known format (" in refusal(tmp_path / "readme.txt")


def test_two_classes_are_made_of_regression_labels(tmp_path: Path) -> None:
    """Above the centre against below; the centre, as it is after rounding, is left out."""
    label_N = [1.0, 3.0, 3.00001, 5.0, 2.9, 3.2, 4.0, 1.5]
    rows = {
        "id": list("abcdefgh"),
        "split": ["train", "train", "test", "test", "train", "valid", "valid", "valid"],
        "text": ["x"] * 8,
        "label": label_N,
    }
    pq.write_table(pa.table(rows), tmp_path / "own.parquet")
    options = ImportOptions(dataset="own", label_range=(1, 5), binarize=True)
    table, info = import_source(tmp_path / "own.parquet", options)
    assert dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True)) == {
        **{"a": 0, "d": 1, "e": 0, "f": 1, "g": 1, "h": 0}
    }
    assert (info.task, info.label_range) == ("classification", (0, 1))
    assert "above and below 3; 2 of 8 utterances labelled 3 are left out" in " ".join(info.notes)
    assert options.command(tmp_path / "own.parquet").endswith("--label-range 1 5 --binarize")


def test_own_classes(tmp_path: Path) -> None:
    rows = {"id": ["a", "b", "c"], "split": ["train", "valid", "test"], "text": ["x"] * 3, "label": [0, 1, 1]}
    pq.write_table(pa.table(rows), tmp_path / "own.parquet")
    _, info = import_source(tmp_path / "own.parquet", ImportOptions(dataset="own", task="classification"))
    assert (info.task, info.label_range) == ("classification", (0, 1))
    rows["label"] = [0, 1, 0.5]  # type: ignore[list-item]
    pq.write_table(pa.table(rows), tmp_path / "own.parquet")
    with pytest.raises(DataError, match=r"\(id c\): label 0.5 is neither 0 nor 1"):
        import_source(tmp_path / "own.parquet", ImportOptions(dataset="own", task="classification"))


OWN_ROWS = {"text": [f"Said {row}" for row in range(300)]}
IN_TURN = np.arange(300) % 5


@pytest.mark.parametrize(
    ("label_N", "expected"),
    [
        (IN_TURN + 1, ("regression", (1, 5))),
        (IN_TURN - 3, ("regression", (-3, 3))),
        (IN_TURN * 0.2 + 0.05, ("regression", (0, 1))),
        (IN_TURN * 0.4 - 0.6, ("regression", (-1, 1))),
        (IN_TURN * 2 + 1, ("regression", (1, 9))),
        (IN_TURN * 23 + 3, ("regression", (0, 100))),
        (IN_TURN * 100, ("regression", (0, 400))),
        # A rounding error is not another whole number.
        (IN_TURN + 1 + 1e-7, ("regression", (1, 5))),
        (IN_TURN % 2, ("classification", (0, 1))),
        (IN_TURN % 3, ("regression", (0, 2))),
    ],
)
def test_labels_tell_their_range(tmp_path: Path, label_N: Any, expected: Any) -> None:
    pq.write_table(pa.table({**OWN_ROWS, "label": label_N}), tmp_path / "own.parquet")
    _, info = import_source(tmp_path / "own.parquet", ImportOptions(dataset="own"))
    assert (info.task, info.label_range) == expected
    assert sum("--label-range" in note for note in info.notes) == 1
    given = ImportOptions(dataset="own", task=info.task, label_range=info.label_range)
    _, same = import_source(tmp_path / "own.parquet", given)
    assert same.fingerprint == info.fingerprint
    assert not any("--label-range" in note for note in same.notes)


@pytest.mark.parametrize(
    ("label", "test", "says"),
    [
        ([1, 5, 3], 6, "own.parquet: row 4 (id 4): label 6 of test does not fit those of train and valid, 1 to 5"),
        ([0, 1, 1], 0.5, "row 4 (id 4): label 0.5 of test does not fit those of train and valid, 0 and 1"),
        ([2, 2, 2], 2, "all labels are 2. Give their range: --label-range A B"),
        ([2, np.inf, 2], 2, "row 2 (id 2): label inf lies outside"),
    ],
)
def test_labels_of_test_decide_nothing(tmp_path: Path, label: list[float], test: float, says: str) -> None:
    columns: dict[str, Any] = {"split": ["train", "train", "valid", "test"], "label": [*map(float, label), test]}
    pq.write_table(pa.table({"text": list("abcd"), **columns}), tmp_path / "own.parquet")
    assert says in refusal(tmp_path / "own.parquet", ImportOptions(dataset="own"))


@pytest.mark.parametrize("named", [False, True])
def test_splits_are_drawn_and_do_not_depend_on_the_order_of_rows(tmp_path: Path, named: bool) -> None:
    """A file whose rows are all named train has no splits."""
    rows = pa.table({**OWN_ROWS, "id": [f"u{row}" for row in range(300)], "label": IN_TURN})
    rows = rows.append_column("split", pa.array(["train"] * 300)) if named else rows
    drawn = []
    for order in (np.arange(300), np.random.default_rng(0).permutation(300)):
        pq.write_table(rows.take(order), tmp_path / "own.parquet")
        table, info = import_source(tmp_path / "own.parquet", ImportOptions(dataset="own"))
        assert info.splits == {"train": 210, "valid": 30, "test": 60}
        assert any(note.startswith("no splits given: 210/30/60 utterances drawn") for note in info.notes)
        drawn.append(dict(zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True)))
    assert drawn[0] == drawn[1]


def test_drawn_splits_keep_groups_whole(tmp_path: Path) -> None:
    rows = pa.table({**OWN_ROWS, "label": IN_TURN, "speaker": np.arange(300) // 6})
    pq.write_table(rows, tmp_path / "own.parquet")
    options = ImportOptions(dataset="own", columns={"group": "speaker"})
    table, info = import_source(tmp_path / "own.parquet", options)
    splits: dict[int, set[str]] = {}
    for row, split in enumerate(table["split"].to_pylist()):
        splits.setdefault(row // 6, set()).add(split)
    assert all(len(names) == 1 for names in splits.values())
    assert info.splits == {"train": 210, "valid": 30, "test": 60}
    assert not any("groups are in more" in note for note in info.notes)
    split = pa.array(["train", "valid", "test"] * 100)
    pq.write_table(rows.append_column("split", split), tmp_path / "own.parquet")
    assert (
        "groups in more than one of train, valid and test: 50"
        in import_source(tmp_path / "own.parquet", options)[1].notes
    )
    rows = rows.set_column(2, "speaker", pa.array([None, *["a", "b"] * 149, "a"]))
    pq.write_table(rows, tmp_path / "own.parquet")
    assert "row 1 (id 1): its group is missing" in refusal(tmp_path / "own.parquet", options)


@pytest.mark.parametrize(
    ("rows", "speakers", "classes", "says"),
    [
        (190, 190, 5, "the 190 utterances are enough to draw 19 for valid, but 20 are needed."),
        (300, 2, 5, "to draw 0 in whole groups of 2 for valid, but 20 are needed."),
        (260, 260, 20, "but 20 are needed, 10 of each class. Give more"),
    ],
)
def test_too_few_rows_to_draw_splits(tmp_path: Path, rows: int, speakers: int, classes: int, says: str) -> None:
    row_N = np.arange(rows)
    label_N = row_N % classes == 0 if classes == 20 else row_N % classes
    columns = {"text": ["x"] * rows, "label": label_N.astype(float), "speaker": row_N % speakers}
    pq.write_table(pa.table(columns), tmp_path / "own.parquet")
    options = ImportOptions(dataset="own", columns={"group": "speaker"} if speakers == 2 else {})
    assert says in refusal(tmp_path / "own.parquet", options)
    assert "--split-column NAME" in refusal(tmp_path / "own.parquet", options)


@pytest.mark.parametrize(
    ("column", "cells", "remedy"),
    [
        ("split", ["0", "1", "2"], "Let the splits be drawn: --split-column ''"),
        ("split", ["train", "dev"], "Let the splits be drawn: --split-column ''"),
        ("id", ["a", "b"], "number the rows: --id-column ''"),
        ("score", ["good", "bad"], "name it: --label-column NAME"),
    ],
)
def test_a_wrong_guess_names_the_option_that_settles_it(
    tmp_path: Path, column: str, cells: list[str], remedy: str
) -> None:
    columns = {**OWN_ROWS, column: (cells * 300)[:300], "quality": IN_TURN}
    columns |= {} if column == "score" else {"label": IN_TURN}
    pq.write_table(pa.table(columns), tmp_path / "own.parquet")
    assert refusal(tmp_path / "own.parquet", ImportOptions(dataset="own")).endswith(remedy)
    settled = {"label": "quality"} if column == "score" else {column: ""}
    _, info = import_source(tmp_path / "own.parquet", ImportOptions(dataset="own", columns=settled))
    assert info.splits == {"train": 210, "valid": 30, "test": 60}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dataset": "own", "columns": {"text": ""}}, "--text-column '': give the name of a column"),
        ({"dataset": "mosi", "task": "classification"}, "mosi is annotated for regression; --binarize makes two"),
        ({"dataset": "mustard", "task": "regression"}, "mustard is annotated for classification$"),
        ({"dataset": "mustard", "binarize": True}, "already has two classes"),
        ({"dataset": "own", "task": "classification", "label_range": (-1, 1)}, "two classes are labelled 0 and 1"),
    ],
)
def test_tasks_that_contradict_the_data(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ImportOptions(**options)


def test_texts_of_several_splits_are_noted(tmp_path: Path) -> None:
    """One text in all three, one twice in train alone, one with another context, and the empty one."""
    rows = {
        "id": [str(number) for number in range(9)],
        "split": ["train", "valid", "test", "train", "train", "train", "test", "train", "test"],
        "text": ["same", "same", "same", "twice", "twice", "said", "said", "", ""],
        "label": [1.0] * 9,
        "context": [None, None, [], None, None, ["a"], ["b"], None, None],
    }
    pq.write_table(pa.table(rows), tmp_path / "own.parquet")
    _, info = import_source(tmp_path / "own.parquet", ImportOptions(dataset="own", label_range=(0, 2)))
    (note,) = [note for note in info.notes if "more than one" in note]
    assert note == "texts in more than one of train, valid and test, with the same context: 1"


def test_a_damaged_file_leaves_a_whole_store_or_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The command: an exit code and one message, whatever the file holds."""
    path, store, run = tmp_path / "own.csv", tmp_path / "store", command(app, capfd)
    codes = []
    for seed in range(30):
        rng = random.Random(seed)
        files, _ = damaged(FORMATS["csv"].files(rng), rng)
        path.write_bytes(files[path.name])
        out = store / str(seed)
        code, _, err = run("import", path, "--dataset", "own", "--label-range", -3, 6, "--out", out)
        codes.append(code)
        assert codes[-1] in (0, 3), err
        assert "Traceback" not in err
        if codes[-1] == 0:
            DatasetStore.open(out)
        else:
            assert not out.exists()
            assert "error: " in err
    assert 0 < codes.count(0) < len(codes)
    assert len(list(store.iterdir())) == codes.count(0)
