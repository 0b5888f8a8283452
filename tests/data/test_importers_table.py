from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from data.foreign import DOWNLOADS, OWN, VARIANTS, real_file, refusal, spoiled, survivors

from grcf_ray import console
from grcf_ray.cli.data import app
from grcf_ray.data.importers import ImportOptions, find_importer, import_source
from grcf_ray.data.importers import table as table_format
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import ConfigError, DataError

ZEROED = replace(OWN, non_finite="zero")
HEADER = "id,split,text,label\n"
ROWS = 'a,train,"good, or so",1.5\nb,dev,fine,0\nc,test,bad,-3\n'


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def rows_of(n: int, **extra: Any) -> pa.Table:
    """n training utterances and one of test."""
    columns = {
        "id": [f"u{row}" for row in range(n + 1)],
        "split": ["train"] * n + ["test"],
        "text": ["Some words"] * (n + 1),
        "label": [row % 7 - 3.0 for row in range(n + 1)],
        **extra,
    }
    return pa.table(columns)


def test_csv_of_text_alone(tmp_path: Path) -> None:
    table, info = import_source(write(tmp_path / "own.csv", HEADER + ROWS), OWN)
    assert table.schema.names == ["id", "split", "text", "label"]
    assert table.to_pylist()[0] == {"id": "a", "split": "train", "text": "good, or so", "label": 1.5}
    assert table["split"].to_pylist() == ["train", "valid", "test"]
    assert (info.audio_dim, info.vision_dim, info.language) == (None, None, "unknown")
    assert [source.name for source in info.sources] == ["own.csv"]


def test_columns_in_any_order_others_ignored_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufefflabel,mood,text,split,id\n1,x,hi,Train,001\n2,y,NA,VALIDATION,2\n 3 ,z,ho,test,3\n"
    table, _ = import_source(write(tmp_path / "own.csv", text), OWN)
    assert table.to_pydict() == {
        "id": ["001", "2", "3"],
        "split": ["train", "valid", "test"],
        "text": ["hi", "NA", "ho"],
        "label": [1.0, 2.0, 3.0],
    }


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_columns_that_are_not_used_and_utterances_without_a_modality_are_noted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"own.{suffix}"
    columns: dict[str, Any] = {"id": list("abc"), "split": ["train", "dev", "test"], "text": list("xyz")}
    columns |= {"label": ["1", "2", "3"], "audoi": ["1"] * 3, "vision": ["[[1, 2]]", None, ""]}
    rows = pa.table(columns).to_pylist()
    if suffix == "jsonl":
        write(path, "\n".join(map(json.dumps, rows)))
    else:
        (pyarrow.csv.write_csv if suffix == "csv" else pq.write_table)(pa.table(columns), path)
    _, info = import_source(path, OWN)
    assert "columns that are not used: 'audoi'" in info.notes
    assert "vision: 2 of 3 utterances have none" in info.notes


def test_a_column_that_is_ours_but_for_its_letters_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", "id,split,text,label, Audio\na,train,x,1,\n")
    assert refusal(path) == f"{path}: column names are lower case: rename ' Audio' to audio"


def test_features_and_context_in_csv_are_json(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    columns = {
        "id": ["a", "b", "c"],
        "split": ["train", "valid", "test"],
        "text": ["x", "y", "z"],
        "label": ["1", "2", "3"],
        "audio": [json.dumps([[1, 2.5], [3, 4]]), "", json.dumps([[5, 6]])],
        "context": [json.dumps(["before"]), "", ""],
    }
    pyarrow.csv.write_csv(pa.table(columns), path)
    table, info = import_source(path, OWN)
    assert info.audio_dim == 2
    assert table["audio"].to_pylist() == [[[1, 2.5], [3, 4]], None, [[5, 6]]]
    assert table["context"].to_pylist() == [["before"], None, None]


@pytest.mark.parametrize("kind", [pa.list_(pa.list_(pa.float64())), pa.large_list(pa.list_(pa.float32(), 2))])
def test_parquet_of_any_list_type(tmp_path: Path, kind: Any) -> None:
    audio = pa.array([[[1, 2]], None, [[3, 4], [5, 6]]], kind)
    table = pa.table({"id": [1, 2, 3], "split": ["train", "val", "test"], "text": list("xyz"), "label": [1, 2, 3]})
    pq.write_table(table.append_column("audio", audio), tmp_path / "own.parquet")
    got, info = import_source(tmp_path / "own.parquet", OWN)
    assert got["id"].to_pylist() == ["1", "2", "3"]
    assert got["audio"].to_pylist() == audio.to_pylist()
    assert info.audio_dim == 2


VIEWS = [
    pa.list_view(pa.list_view(pa.float32())),
    pa.list_view(pa.list_(pa.float32(), 2)),
    pa.large_list_view(pa.list_(pa.float64())),
    pa.list_(pa.list_view(pa.int16())),
]


@pytest.mark.parametrize("kind", VIEWS)
def test_parquet_of_list_views(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "own.parquet"
    audio = pa.array([[[1, 2]], None, [[3, 4], [5, 6]]], kind)
    said = pa.array([["a", "b"], None, []], pa.list_view(pa.string()))
    columns = {"id": [1, 2, 3], "split": ["train", "val", "test"], "text": list("xyz"), "label": [1, 2, 3]}
    pq.write_table(pa.table(columns | {"audio": audio, "context": said}), path)
    table, _ = import_source(path, OWN)
    assert table["audio"].to_pylist() == [[[1, 2]], None, [[3, 4], [5, 6]]]
    assert table["context"].to_pylist() == [["a", "b"], None, None]
    (part, _), *_ = table_format.stream(path, ["text", "audio"], 3)
    part.validate(full=True)
    assert part["audio"].to_pylist() == audio.to_pylist()


def test_parquet_of_dictionaries_and_views_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    columns: dict[str, Any] = {
        "id": pa.array(["a", "b", "c"]).dictionary_encode(),
        "split": pa.array(["train", "val", "test"]).dictionary_encode(),
        "text": pa.array(["x", "", "x"]).cast(pa.large_string()).dictionary_encode(),
        "label": pa.array(["1", "2.5", "-3"], pa.string_view()),
        "audio": pa.array(["[[1, 2]]", None, "[[3, 4]]"], pa.string_view()),
    }
    pq.write_table(pa.table(columns), path)
    table, _ = import_source(path, OWN)
    assert table["text"].to_pylist() == ["x", "", "x"]
    assert table["label"].to_pylist() == [1, 2.5, -3]
    assert table["audio"].to_pylist() == [[[1, 2]], None, [[3, 4]]]


def test_tsv(tmp_path: Path) -> None:
    text = 'id\tsplit\ttext\tlabel\taudio\n1\ttrain\tgood, or so\t1.5\t[[1, 2]]\n2\tdev\t"a ""b"""\t0\t\n'
    path = write(tmp_path / "own.tsv", f"{text}3\ttest\tc\t-3\t\n")
    table, info = import_source(path, OWN)
    assert table["text"].to_pylist() == ["good, or so", 'a "b"', "c"]
    assert table["audio"].to_pylist() == [[[1, 2]], None, None]
    assert [source.name for source in info.sources] == ["own.tsv"]
    assert [part["text"].to_pylist() for part, _ in table_format.stream(path, ["text"], 2)] == [
        ["good, or so", 'a "b"'],
        ["c"],
    ]


LINES: list[dict[str, Any]] = [
    {"id": 7, "split": "train", "text": "ünï 文", "label": 1.5, "audio": [[1, 2.5]], "context": ["before"], "mood": {}},
    {"text": "so", "label": -3, "split": "dev", "id": "b", "context": []},
    {"id": "c", "split": "test", "text": "", "label": 0, "audio": None, "video_id": 10**30},
]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson"])
@pytest.mark.parametrize("ascii_alone", [True, False])
def test_json_lines(tmp_path: Path, suffix: str, ascii_alone: bool) -> None:
    lines = [json.dumps(line, ensure_ascii=ascii_alone) for line in LINES]
    path = write(tmp_path / f"own.{suffix}", "\ufeff" + "\n\n".join(lines))
    table, _ = import_source(path, OWN)
    assert table.to_pydict() == {
        "id": ["7", "b", "c"],
        "split": ["train", "valid", "test"],
        "text": ["ünï 文", "so", ""],
        "label": [1.5, -3, 0],
        "audio": [[[1, 2.5]], None, None],
        "context": [["before"], None, None],
    }
    parts = [part for part, _ in table_format.stream(path, ["text", "audio"], 2)]
    assert [part["text"].to_pylist() for part in parts] == [["ünï 文", "so"], [""]]
    assert parts[0].column_names == ["text", "audio"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: Expecting"),
        ("[1]", "line 2: not an object"),
        ('{"id": 1, "id": 2}', "line 2: the name 'id' occurs twice"),
        ('{"id": 1.5}', "line 2: id is 1.5, not a text or a whole number"),
        ('{"text": ["a"]}', "line 2: text is (a list of 1), not a text"),
        ('{"text": "\\ud800"}', "line 2: text has an incomplete character"),
        ("[" * 10**5, "line 2: "),
        (
            '{"id": "b", "split": "test", "text": "x", "label": true}',
            "own.jsonl: row 2 (id b): label 'true' is not a number",
        ),
        (
            '{"id": "b", "split": "test", "text": "x", "audio": [1]}',
            "row 2 (id b): audio '[1]' is not a JSON list of rows",
        ),
    ],
)
def test_lines_that_are_no_rows_are_named(tmp_path: Path, line: str, says: str) -> None:
    first = {"id": "a", "split": "train", "text": "x", "label": 1}
    path = write(tmp_path / "own.jsonl", f"{json.dumps(first)}\n{line}\n")
    message = refusal(path)
    assert says in message
    assert "own.jsonl" in message


def test_missing_columns_of_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", '{"id": 1, "text": "x"}\n')
    assert refusal(path) == f"{path}: missing columns label; present: id, text, split"


@pytest.mark.parametrize("name", ["own.csv", "own.tsv", "own.jsonl", "own.parquet"])
@pytest.mark.parametrize("what", DOWNLOADS)
def test_downloads_that_went_wrong(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_bytes(DOWNLOADS[what])
    assert refusal(tmp_path / name).startswith(f"{tmp_path / name}: {what}")


def test_folder_with_a_file_per_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "id,text,label\na,x,1\n")
    write(tmp_path / "dev.csv", "id,text,label\nb,x,1\n")
    pq.write_table(pa.table({"id": ["c"], "text": ["x"], "label": [2.0]}), tmp_path / "test.parquet")
    write(tmp_path / "notes.csv", "nothing,of,ours\n")
    table, info = import_source(tmp_path, OWN)
    assert dict(zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True)) == {
        "a": "train",
        "b": "valid",
        "c": "test",
    }
    assert [source.name for source in info.sources] == ["dev.csv", "test.parquet", "train.csv"]


def test_faults_of_a_folder_name_file_and_row_within_it(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "id,text,label\na,x,1\nb,x,oops\n")
    write(tmp_path / "valid.csv", "id,text,label\nc,x,1\n")
    write(tmp_path / "test.csv", "id,text,label\nd,x,1\na,x,7\n")
    message = refusal(tmp_path)
    assert "test.csv: row 2 (id a): label 7 lies outside [-3, 3]" in message
    assert "train.csv: row 1 (id a): test.csv: row 2 has the same id" in message
    assert "train.csv: row 2 (id b): label 'oops' is not a number" in message


def test_missing_columns_are_listed_together_with_those_present(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", "ID,sentence,label\n1,2,3\n")
    assert refusal(path) == (
        f"{path}: missing columns id, split, text (or files named train, valid and test); present: ID, sentence, label"
    )


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("nice", "label 'nice' is not a number"),
        ("", "label is missing"),
        ("nan", "label is missing"),
        ("4", "label 4 lies outside [-3, 3]"),
    ],
)
def test_bad_label_cells(tmp_path: Path, cell: str, message: str) -> None:
    path = write(tmp_path / "own.csv", f"{HEADER}{ROWS}d,train,x,{cell}\n")
    assert refusal(path) == f"own.csv: row 4 (id d): {message}"


@pytest.mark.parametrize("cell", ['"[1, 2]"', '"[[1, ""x""]]"', "nothing", "5", '"{""a"": 1}"', '"[[1, 2]"'])
def test_bad_feature_cells(tmp_path: Path, cell: str) -> None:
    path = write(tmp_path / "own.csv", f"id,split,text,label,audio\na,train,x,1,{cell}\nb,valid,x,1,\nc,test,x,1,\n")
    message = refusal(path)
    assert message.startswith("own.csv: row 1 (id a): audio '")
    assert message.endswith("is not a JSON list of rows of numbers")


def test_non_finite_features_name_the_whole_command(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.csv",
        'id,split,text,label,audio\na,train,x,1,"[[NaN, Infinity, 1]]"\nb,valid,x,1,\nc,test,x,1,\n',
    )
    assert refusal(path) == (
        "own.csv: row 1 (id a): audio has 2 non-finite values. Clean it: "
        f"python -m grcf_ray.data import {path} --dataset own --label-range -3 3 --non-finite zero"
    )
    table, info = import_source(path, ZEROED)
    assert table["audio"].to_pylist()[0] == [[0, 0, 1]]
    assert info.notes[:1] == ("audio: 2 non-finite values set to 0",)


def test_rows_that_do_not_fit_the_header_are_all_named(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", f"{HEADER}a,train,x,1\nb,train\nc,test,y,1,1\n")
    message = refusal(path)
    assert "row 2 has 2 cells, not 4" in message
    assert "row 3 has 5 cells, not 4" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.parquet", b"PAR1 and no more"),
        ("own.parquet", b"id,split"),
        ("own.csv", b""),
        ("own.csv", HEADER.encode()),
    ],
)
def test_file_that_is_no_table(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(str(tmp_path / name))


@pytest.mark.parametrize("row", [b"a,train,\xff\xfe,1\n", b"a,train\xff\n", b"a,train,\xc3,1"])
def test_csv_of_another_encoding_names_the_line(tmp_path: Path, row: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes(HEADER.encode() + "b,train,ü,1\n".encode() + row)
    assert refusal(path).startswith(f"{path}: line 3 is not UTF-8 (")
    path.write_bytes(HEADER.encode("utf-16") + row)
    assert refusal(path).startswith(f"{path}: line 1 is not UTF-8 (")
    assert capfd.readouterr() == ("", "")


def test_parquet_with_texts_of_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    pq.write_table(rows_of(2), path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"Some words", b"Some w\xffrds"))
    assert refusal(path).startswith(f"{path}: not a readable Parquet file (Column ")


def test_column_of_a_wrong_type_is_refused(tmp_path: Path) -> None:
    pq.write_table(rows_of(2, audio=[[1.0], [1.0], [1.0]]), tmp_path / "own.parquet")
    assert "column audio is of type list" in refusal(tmp_path / "own.parquet")


@pytest.mark.parametrize("split", ["train", "test"])
def test_split_other_than_valid_must_be_there(tmp_path: Path, split: str) -> None:
    other = "test" if split == "train" else "train"
    path = write(tmp_path / "own.csv", f"{HEADER}a,{other},x,1\nb,valid,x,1\n")
    assert refusal(path) == f"own.csv: the split {split} holds no utterance"


def test_missing_valid_split_is_drawn_and_noted(tmp_path: Path) -> None:
    pq.write_table(rows_of(200), tmp_path / "own.parquet")
    table, info = import_source(tmp_path / "own.parquet", OWN)
    assert info.splits == {"train": 180, "valid": 20, "test": 1}
    assert info.notes[:1] == (
        "no valid split given: 20 of 200 training utterances drawn, stratified by label on a hash of the id",
    )
    assert table.num_rows == 201


def test_missing_valid_split_is_drawn_by_video_where_known(tmp_path: Path) -> None:
    video = [f"v{row // 4}" for row in range(200)] + ["t"]
    pq.write_table(rows_of(200, video_id=video), tmp_path / "own.parquet")
    table, info = import_source(tmp_path / "own.parquet", OWN)
    split_of = dict(zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True))
    for row in range(0, 200, 4):
        assert len({split_of[f"u{row + offset}"] for offset in range(4)}) == 1
    assert 20 <= info.splits["valid"] <= 30
    assert "whole videos" in info.notes[0]


def test_valid_split_that_would_be_too_small_is_refused(tmp_path: Path) -> None:
    pq.write_table(rows_of(100), tmp_path / "own.parquet")
    assert "Mark more utterances" in refusal(tmp_path / "own.parquet")


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
    with pytest.raises(ConfigError, match="unknown data set 'own'"):
        ImportOptions(dataset="own")
    with pytest.raises(ConfigError, match=r"unknown format 'pickle'. Known: auto, .*table"):
        find_importer(tmp_path, "pickle")


def test_sources_that_are_not_there_or_of_no_format(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'} does not exist"
    write(tmp_path / "readme.txt", "hello")
    assert "no data of a known format (" in refusal(tmp_path)
    assert "no data of a known format (" in refusal(tmp_path / "readme.txt")


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    pq.write_table(rows_of(200), tmp_path / "mosi.data")
    assert import_source(tmp_path / "mosi.data", OWN)[1].splits["test"] == 1


def test_real_mosi() -> None:
    path = real_file("mosi/utterances.parquet")
    (table, info), (_, again) = (import_source(path, ImportOptions(dataset="mosi")) for _ in range(2))
    assert info.splits == {"train": 1284, "valid": 229, "test": 686}
    assert (info.audio_dim, info.vision_dim, info.transcripts) == (75, None, "upper")
    assert info.fingerprint == again.fingerprint
    assert info.notes[0] == "columns that are not used: 'start', 'end'"
    assert len(info.notes) == 2
    assert pc.min_max(table["label"]).as_py() == {"min": -3.0, "max": 3.0}


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


@pytest.mark.parametrize(
    ("options", "says"),
    [
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
    assert note == "1 texts are in more than one of train, valid and test, with the same context"


def made_up() -> dict[str, Any]:
    """Columns of eight utterances, one without audio."""
    return {
        "id": [f"u{row}" for row in range(8)],
        "split": ["train"] * 4 + ["valid"] * 2 + ["test"] * 2,
        "text": ["so good", 'ünï, "文"', "", "two\nlines"] * 2,
        "label": [row % 7 - 3.0 for row in range(8)],
        "audio": [None, *([[row, place, 0.25, -1.5] for place in range(1 + row % 3)] for row in range(1, 8))],
        "vision": [[[row + 0.5, 1.0, 2.0]] * 2 for row in range(8)],
        "context": [["said", "x"][: row % 3] or None for row in range(8)],
        "video_id": [f"v{row // 2}" for row in range(8)],
    }


def as_parquet(columns: dict[str, Any], rng: random.Random) -> bytes:
    file = io.BytesIO()
    how: Any = rng.choice([{}, {"compression": "none"}, {"compression": "zstd", "use_dictionary": False}])
    pq.write_table(pa.table(columns), file, **how)
    return file.getvalue()


def as_csv(columns: dict[str, Any], rng: random.Random) -> bytes:
    file = io.BytesIO()
    written = {
        name: [None if cell is None else json.dumps(cell) for cell in cells]
        if name in ("audio", "vision", "context")
        else cells
        for name, cells in columns.items()
    }
    pyarrow.csv.write_csv(pa.table(written), file)
    return file.getvalue()


STRANGE: list[list[Any]] = [
    [None] * 8,
    ["x"] * 8,
    [b"\xff"] * 8,
    [7] * 8,
    [True] * 8,
    [10**15] * 8,
    [[]] * 8,
    [[[]]] * 8,
]
STRANGE += [[[None]] * 8, [[[None]]] * 8, [["a"]] * 8, [[["a"]]] * 8, [[1.5]] * 8, [[[[1.5]]]] * 8, [{"a": 1}] * 8]
STRANGE += [["\x00"] * 8, ["[[1, 2, 3"] * 8, ["[" * 10**5] * 8, ["[[1e999, 1, 1]]"] * 8, ['["\\ud800"]'] * 8]


def changed(column: str, rng: random.Random, kind: str) -> dict[str, Any]:
    """The columns, one of them of another type, with its rows turned, missing, or there twice."""
    columns = made_up()
    if kind == "type":
        columns[column] = rng.choice(STRANGE)
    elif kind == "cell":
        columns[column][rng.randrange(8)] = None
    elif kind == "swap":
        name, row = rng.choice(["audio", "vision"]), rng.randrange(1, 8)
        columns[name][row] = [list(values) for values in zip(*columns[name][row], strict=True)]
    elif kind == "drop":
        del columns[column]
    return columns


@pytest.mark.parametrize(("write_as", "suffix"), [(as_parquet, "parquet"), (as_csv, "csv")])
def test_damaged_files_are_refused_or_read_correctly(
    tmp_path: Path,
    write_as: Callable[[dict[str, Any], random.Random], bytes],
    suffix: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / f"own.{suffix}"
    path.write_bytes(write_as(made_up(), random.Random(0)))
    whole = import_source(path, ZEROED)[0].to_pydict()

    def damage(rng: random.Random) -> tuple[str, str]:
        kind = rng.choice(["cut", "flip", "flip", "type", "type", "cell", "swap", "drop"])
        column = rng.choice(list(made_up()))
        try:
            content = write_as(changed(column, rng, kind), rng)
        # Some of what is strange neither format can hold.
        except (pa.ArrowException, TypeError, UnicodeError):
            content = write_as(changed(column, rng, "drop"), rng)
        path.write_bytes(spoiled(content, kind, rng))
        return kind, column

    found = survivors(path, damage, ZEROED)
    for (kind, column), table, _ in found:
        assert kind != "swap"
        read = table.to_pydict()
        if kind == "cut":
            # A file of lines may end within a row whose last cell is then a shorter one.
            assert suffix == "csv"
            assert all(cells[:-1] == whole[name][: table.num_rows - 1] for name, cells in read.items())
        elif kind != "flip":
            assert {name: read.get(name) for name in whole if name != column} == {
                name: cells for name, cells in whole.items() if name != column
            }
    assert 0 < len(found) < VARIANTS / 2
    assert capfd.readouterr() == ("", "")


def test_a_damaged_file_leaves_a_whole_store_or_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The command: an exit code and one message, whatever the file holds."""
    path, store = tmp_path / "own.csv", tmp_path / "store"
    codes = []
    for seed in range(VARIANTS):
        rng = random.Random(seed)
        path.write_bytes(spoiled(as_csv(made_up(), rng), rng.choice(["cut", "flip"]), rng, head=60))
        words = ["import", str(path), "--dataset", "own", "--label-range", "-3", "3", "--out", str(store / str(seed))]
        with pytest.raises(SystemExit) as ended:
            console.run(app, words)
        codes.append(ended.value.code)
        err = capfd.readouterr().err
        assert codes[-1] in (0, 3), err
        assert "Traceback" not in err
        if codes[-1] == 0:
            DatasetStore.open(store / str(seed))
        else:
            assert not (store / str(seed)).exists()
            assert "error: " in err
    assert 0 < codes.count(0) < VARIANTS
    assert len(list(store.iterdir())) == codes.count(0)
