from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from data.foreign import HEADER, OWN, ROWS, real_file, refusal, rows_of, write

from grcf_ray.data.importers import ImportOptions, import_source
from grcf_ray.data.importers import table as table_format

ZEROED = replace(OWN, non_finite="zero")


def test_csv_of_text_alone(tmp_path: Path) -> None:
    table, info = import_source(write(tmp_path / "own.csv", HEADER + ROWS), OWN)
    assert table.schema.names == ["id", "split", "text", "label"]
    assert table.to_pylist()[0] == {"id": "a", "split": "train", "text": "good, or so", "label": 1.5}
    assert (info.audio_dim, info.vision_dim, info.language) == (None, None, "unknown")


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


LISTS = [
    pa.list_(pa.list_(pa.float64())),
    pa.large_list(pa.list_(pa.float32(), 2)),
    pa.list_view(pa.list_view(pa.float32())),
    pa.list_view(pa.list_(pa.float32(), 2)),
    pa.large_list_view(pa.list_(pa.float64())),
    pa.list_(pa.list_view(pa.int16())),
]


@pytest.mark.parametrize("kind", LISTS)
def test_parquet_of_any_list_type(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "own.parquet"
    audio = pa.array([[[1, 2]], None, [[3, 4], [5, 6]]], kind)
    said = pa.array([["a", "b"], None, []], pa.list_view(pa.string()))
    columns = {"id": [1, 2, 3], "split": ["train", "val", "test"], "text": list("xyz"), "label": [1, 2, 3]}
    pq.write_table(pa.table(columns | {"audio": audio, "context": said}), path)
    table, _ = import_source(path, OWN)
    assert table["id"].to_pylist() == ["1", "2", "3"]
    assert table["audio"].to_pylist() == audio.to_pylist()
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
    path = write(tmp_path / "train.jsonl", '{"id": 1, "text": "x"}\n')
    assert refusal(path) == f"{path}: missing columns label; present: id, text, split"
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


@pytest.mark.parametrize(("suffix", "content"), [("parquet", b"PAR1 and no more"), ("parquet", b"id,"), ("csv", b"")])
def test_file_that_is_no_table(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"own.{suffix}"
    path.write_bytes(content)
    assert refusal(path).startswith(str(path))
    path.write_bytes(HEADER.encode())
    assert refusal(path).startswith(str(path))


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


def test_real_mosi() -> None:
    path = real_file("mosi/utterances.parquet")
    (table, info), (_, again) = (import_source(path, ImportOptions(dataset="mosi")) for _ in range(2))
    assert info.splits == {"train": 1284, "valid": 229, "test": 686}
    assert (info.audio_dim, info.vision_dim, info.transcripts) == (75, None, "upper")
    assert info.fingerprint == again.fingerprint
    assert info.notes[0] == "columns that are not used: 'start', 'end'"
    assert len(info.notes) == 2
    assert pc.min_max(table["label"]).as_py() == {"min": -3.0, "max": 3.0}
