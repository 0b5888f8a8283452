from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from data.foreign import HEADER, OWN, ROWS, real_file, refusal, rows_of, write, write_pickle
from data.formats import FORMATS, arrow_bytes, mag_content, parquet_bytes

from grcf_ray.data.importers import ImportOptions, import_source
from grcf_ray.data.importers import table as table_format
from grcf_ray.errors import ConfigError

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


@pytest.mark.parametrize(
    ("header", "columns", "chosen"),
    [
        ("stars,review", {}, ("Said 0", "0")),
        ("Star Rating,reviews.text", {}, ("Said 0", "0")),
        # An exact name counts more than other letters, and these more than an alias.
        ("label,text,Text,review,stars", {}, ("Said 0", "0")),
        ("score,TEXT,review", {}, ("Said 0", "0")),
        # An option counts most.
        ("n,words,text,label", {"text": "words", "label": "n"}, ("Said 0", "0")),
        ("label,text,key", {"text": "key", "label": "text"}, None),
    ],
)
def test_columns_by_alias_or_option(
    tmp_path: Path, header: str, columns: dict[str, str], chosen: tuple[str, str] | None
) -> None:
    names = header.split(",")
    cells = {name: [f"{name} {row}" for row in range(300)] for name in names}
    cells |= {names[0]: [str(row % 5) for row in range(300)], names[1]: [f"Said {row}" for row in range(300)]}
    pyarrow.csv.write_csv(pa.table(cells), tmp_path / "own.csv")
    options = ImportOptions(dataset="own", columns=columns)
    if chosen is None:
        assert "label 'Said 0' is not a number" in refusal(tmp_path / "own.csv", options)
        return
    table, info = import_source(tmp_path / "own.csv", options)
    assert (table["text"][0].as_py(), f"{table['label'][0].as_py():g}") == chosen
    assert table["id"].to_pylist() == [str(row) for row in range(1, 301)]
    assert any(note == f"columns: text from {names[1]!r}, label from {names[0]!r}" for note in info.notes) == (
        names[1] != "text"
    )


@pytest.mark.parametrize(
    ("header", "columns", "says"),
    [
        ("review,comment,stars", {}, "several columns may be the text: 'review', 'comment'. Name one: --text-column"),
        (
            "text,stars,rating",
            {},
            "several columns may be the label: 'stars', 'rating'. Name one: --label-column",
        ),
        ("a,b", {}, "missing columns text, label; present: a, b. Name them: --text-column NAME --label-column NAME"),
        ("text,label", {"id": "key"}, "--id-column key: no such column"),
        ("text,text,label", {}, "more than one column named text"),
    ],
)
def test_columns_that_are_not_certain_are_refused(
    tmp_path: Path, header: str, columns: dict[str, str], says: str
) -> None:
    for suffix in ("csv", "jsonl") if len(set(header.split(","))) == len(header.split(",")) else ("csv",):
        row = dict.fromkeys(header.split(","), "1")
        content = f"{header}\n{','.join(row.values())}\n" if suffix == "csv" else json.dumps(row)
        path = write(tmp_path / f"own.{suffix}", content)
        assert f"{path}: {says}" in refusal(path, ImportOptions(dataset="own", columns=columns))


def test_options_for_columns_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--text-column and --label-column name the same column 'x'"):
        ImportOptions(dataset="own", columns={"text": "x", "label": "x"})
    with pytest.raises(ConfigError, match=r"unknown role 'words' \(accepted: text, label, id, split, group"):
        ImportOptions(dataset="own", columns={"words": "x"})
    write_pickle(tmp_path / "mosi.pkl", mag_content(FORMATS["mag"].utterances()))
    with pytest.raises(ConfigError, match=r"is not a table, .* leave out --text-column 'my words'"):
        import_source(tmp_path / "mosi.pkl", ImportOptions(dataset="mosi", columns={"text": "my words"}))


def test_a_known_data_set_has_its_own_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", "text,label\nx,1\n")
    assert "missing columns split" in refusal(path, ImportOptions(dataset="mosi"))


@pytest.mark.parametrize("mark", [",", ";", "|", "\t"])
def test_the_delimiter_is_the_one_of_the_header(tmp_path: Path, mark: str) -> None:
    lines = [["id", "split", "text", "label"], ["a", "train", '"x; y|z, w"', "1"], ["b", "test", '"z\nz"', "2"]]
    path = write(tmp_path / "own.csv", "\n" + "\n".join(mark.join(cells) for cells in lines) + "\n")
    assert table_format.read(path).table["text"].to_pylist() == ["x; y|z, w", "z\nz"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(("no", "yes"), [("negative", "Positive "), ("False", "true"), (False, True)])
def test_words_and_truth_values_are_two_classes(tmp_path: Path, suffix: str, no: Any, yes: Any) -> None:
    rows = [{"text": f"Said {row}", "sentiment": (no, yes)[row % 3 == 0]} for row in range(300)]
    path = tmp_path / f"own.{suffix}"
    if suffix == "jsonl":
        write(path, "\n".join(map(json.dumps, rows)))
    else:
        (pyarrow.csv.write_csv if suffix == "csv" else pq.write_table)(pa.Table.from_pylist(rows), path)
    table, info = import_source(path, ImportOptions(dataset="own"))
    assert (info.task, info.label_range) == ("classification", (0, 1))
    assert table["label"].to_pylist() == [float(row % 3 == 0) for row in range(300)]
    if suffix != "parquet" or isinstance(no, str):
        words = f"labels {str(no).lower()!r} and {str(yes).strip().lower()!r} are read as 0 and 1"
        assert words in info.notes
    scores = import_source(path, ImportOptions(dataset="own", label_range=(0, 1)))[1]
    assert scores.task == "regression"


def test_words_beside_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_format, "_ROWS_AT_A_TIME", 2)
    path = write(tmp_path / "own.csv", "text,label\na,yes\nb,no\nc,3\nd,4\n")
    assert "some labels are words" in refusal(path)


FEATURES = {"text": {"_type": "Value"}, "label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}


def saved(rows: range) -> pa.Table:
    """A table as Hugging Face's datasets writes it, with the names of its classes."""
    columns = {"text": [f"Said {row}" for row in rows], "label": [row % 2 for row in rows]}
    about = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    return pa.table(columns).replace_schema_metadata(about)


def put_saved(folder: Path, layout: str) -> Path:
    """A data set of 200 training rows and 50 others, in two parts, as `datasets` or its hub lays it out."""
    parts = {"train": [saved(range(120)), saved(range(120, 200))], "test": [saved(range(200, 250))]}
    if layout == "save_to_disk":
        write(folder / "dataset_dict.json", '{"splits": ["train", "test"]}')
    for split, tables in parts.items():
        place = folder / (split if layout == "save_to_disk" else "data")
        place.mkdir(exist_ok=True)
        for number, table in enumerate(tables):
            name = f"{number:05}-of-{len(tables):05}"
            if layout == "save_to_disk":
                (place / f"data-{name}.arrow").write_bytes(arrow_bytes(table))
                write(place / "state.json", "{}")
                write(place / "cache-0123456789abcdef.arrow", "an intermediate result")
            else:
                (place / f"{split}-{name}.parquet").write_bytes(parquet_bytes(table))
    write(folder / "README.md", "A data set")
    return folder


@pytest.mark.parametrize("layout", ["save_to_disk", "hub"])
def test_folders_of_hugging_face(tmp_path: Path, layout: str) -> None:
    folder = put_saved(tmp_path, layout)
    table, info = import_source(folder, ImportOptions(dataset="own"))
    assert (info.splits, info.task) == ({"train": 180, "valid": 20, "test": 50}, "classification")
    assert sorted(table["text"].to_pylist()) == sorted(f"Said {row}" for row in range(250))
    assert "labels 0 to 1 are 'neg', 'pos'" in info.notes
    assert len(info.sources) == 3
    # Rows without a label, or of a split of another name.
    (folder / "unsupervised").mkdir()
    (folder / "unsupervised" / "data-00000-of-00001.arrow").write_bytes(arrow_bytes(saved(range(3))))
    _, info = import_source(folder, ImportOptions(dataset="own"))
    assert "tables that are not used: unsupervised/data-00000-of-00001.arrow" in info.notes
    # One split of the data set, and one without its first part.
    if layout == "save_to_disk":
        _, info = import_source(folder / "train", ImportOptions(dataset="own", label_range=(0, 1)))
        assert info.splits == {"train": 140, "valid": 20, "test": 40}
    (path,) = [path for path in table_format.files(folder) if "00000-of-00001" in path.name]
    content = path.read_bytes()
    bad = pa.table({"text": ["x"], "label": [7]})
    path.write_bytes((arrow_bytes if layout == "save_to_disk" else parquet_bytes)(bad))
    assert "test" in refusal(folder, ImportOptions(dataset="own", task="classification")).partition("row 1")[0]
    path.write_bytes(content)
    first = next(path for path in table_format.files(folder) if "00000-of-00002" in path.name)
    first.unlink()
    assert refusal(folder) == f"{first}: a part of the table is missing: download it again"


def test_arrow_files_of_either_layout(tmp_path: Path) -> None:
    pa.feather.write_feather(rows_of(200), tmp_path / "own.feather")
    (tmp_path / "own.arrow").write_bytes(arrow_bytes(rows_of(200)))
    (one, _), (other, _) = (import_source(tmp_path / name, OWN) for name in ("own.feather", "own.arrow"))
    assert one.equals(other)


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
