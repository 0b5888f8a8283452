from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grcf_ray.data.frames import Frames
from grcf_ray.data.schema import Source, TableInfo, conform, fingerprint, table_schema
from grcf_ray.data.validation import Fault, label_remarks, validate
from grcf_ray.errors import DataError

FRAMES = pa.list_(pa.list_(pa.float64()))


def loose(**changes: Any) -> pa.Table:
    """Three utterances, one in each split, with `changes` to single columns."""
    columns = {
        "id": ["a", "b", "c"],
        "split": ["train", "valid", "test"],
        "text": ["good", "", "bad"],
        "label": [1.5, -3.0, 3.0],
        "audio": pa.array([[[1, 2], [3, 4]], None, []], FRAMES),
        **changes,
    }
    return pa.table(columns)


def fault(**changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        validate(loose(**changes), label_range=(-3, 3), source="mosi.parquet", command="IMPORT")
    assert caught.value.exit_code == 3
    return str(caught.value)


def digest(table: pa.Table) -> str:
    return fingerprint(table, task="regression", label_range=(-3, 3), language="en")


def test_valid_table_passes_and_takes_the_arrow_schema() -> None:
    validate(loose(), label_range=(-3, 3))
    table = conform(loose())
    assert table.schema == table_schema(audio_dim=2)
    assert table["audio"].to_pylist() == [[[1, 2], [3, 4]], None, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ["a", "b", "a"]}, "mosi.parquet: row 3 (id a): row 1 has the same id"),
        ({"id": ["a", None, "c"]}, "mosi.parquet: row 2 (id None): id is missing"),
        ({"split": ["train", "dve", "test"]}, "mosi.parquet: 2 faults\n  row 2 (id b): split is 'dve', not one of "),
        ({"split": ["train", "train", "test"]}, "mosi.parquet: the split valid holds no utterance"),
        ({"text": ["x", None, "y"]}, "mosi.parquet: row 2 (id b): text is missing"),
        ({"label": [1.0, None, 2.0]}, "mosi.parquet: row 2 (id b): label is missing"),
        ({"label": [1.0, float("nan"), 2.0]}, "mosi.parquet: row 2 (id b): label is missing"),
        ({"label": [1.0, 2.0, 3.2]}, "mosi.parquet: row 3 (id c): label 3.2 lies outside [-3, 3]"),
        ({"label": [1.0, 2.0, float("-inf")]}, "mosi.parquet: row 3 (id c): label -inf lies outside [-3, 3]"),
        (
            {"audio": pa.array([[[1, 2], [np.nan, np.inf]], None, [[None, 1]]], FRAMES)},
            "mosi.parquet: 2 faults\n"
            "  row 1 (id a): audio has 2 non-finite values\n"
            "  row 3 (id c): audio has 1 non-finite value\n"
            "Clean it: IMPORT --non-finite zero",
        ),
        (
            {"audio": pa.array([[[1, 2], [3, 4]], [[1, 2], [3]], None], FRAMES)},
            "mosi.parquet: row 2 (id b): audio has rows of 1 values, where most have 2",
        ),
        ({"vision": pa.array([[[]], None, None], FRAMES)}, "mosi.parquet: row 1 (id a): vision has rows of 0 values"),
    ],
)  # fmt: skip
def test_every_fault_is_named_by_row_and_id(changes: dict[str, Any], message: str) -> None:
    assert fault(**changes).startswith(message)


def test_single_non_finite_fault_ends_with_the_command_that_cleans_it() -> None:
    audio = pa.array([[[1, 2], [np.nan, np.inf]], None, None], FRAMES)
    assert fault(audio=audio) == (
        "mosi.parquet: row 1 (id a): audio has 2 non-finite values. Clean it: IMPORT --non-finite zero"
    )


def test_all_faults_of_all_rows_come_together_in_the_order_of_the_rows() -> None:
    message = fault(
        id=["a", "a", "c"],
        split=["train", "valid", "tset"],
        text=[None, "x", "y"],
        label=[9.0, None, -9.0],
        audio=pa.array([[[np.nan, 1]], [[1]], [[1, 2]]], FRAMES),
    )
    lines = message.splitlines()
    assert lines[0] == "mosi.parquet: 9 faults"
    assert [line.split(":")[0].strip() for line in lines[1:9]] == ["row 1 (id a)"] * 3 + ["row 2 (id a)"] * 3 + [
        "row 3 (id c)"
    ] * 2
    assert lines[9:] == ["  the split test holds no utterance", "Clean it: IMPORT --non-finite zero"]


def test_faults_of_one_kind_are_told_once_with_their_number_and_remedy() -> None:
    """Twelve labels outside, six bad numbers, one row without text: 19 faults in three lines."""
    n = 20
    table = pa.table(
        {
            "id": [f"u{row}" for row in range(n)],
            "split": ["train", "valid", *["test"] * (n - 2)],
            "text": pa.array(["x"] * (n - 1) + [None], pa.string()),
            "label": [-3.7, *[1.0] * 7, *[3.5] * 10, 3.85, 0.0],
        }
    )
    bad = [Fault(row, "label", f"label 'x{row}' is not a number") for row in range(1, 7)]

    def told(**options: Any) -> list[str]:
        with pytest.raises(DataError) as caught:
            validate(table, label_range=(-3, 3), parse_faults=bad, source="t.csv", **options)
        return str(caught.value).splitlines()

    lines = told(custom_range=True)
    assert lines[0] == "t.csv: 19 faults"
    assert [line.strip()[:9] for line in lines if line.startswith("  ") and line[2] != " "] == [
        "12 times:",
        "6 times: ",
        "row 20 (i",
    ]
    assert lines[2:6] == [
        "    row 1 (id u0): label -3.7 lies outside [-3, 3]",
        "    row 9 (id u8): label 3.5 lies outside [-3, 3]",
        "    row 10 (id u9): label 3.5 lies outside [-3, 3]",
        "    ... and 9 more",
    ]
    assert lines[-1] == "Labels run from -3.7 to 3.85: --label-range -4 4?"
    assert told() == lines[:-1]


@pytest.mark.parametrize(
    ("labels", "label_range", "remedy"),
    [
        ([1.0, *[5.0] * 6], (0, 4), "--label-range 1 5?"),
        ([-0.5, *[2.5] * 6], (-1, 1), "--label-range -3 3?"),
        ([float("-inf"), 0.5, *[7.0] * 5], (1, 6), "--label-range 0 7?"),
        ([0.0, *[7.0] * 5], (1, 6), "--label-range 0 7?"),
        ([1.0, *[7.0] * 5], (1, 6), "lies outside [1, 6]"),
    ],
)
def test_the_remedy_is_a_range_that_holds_the_labels(
    labels: list[float], label_range: tuple[float, float], remedy: str
) -> None:
    n = len(labels)
    columns = {"id": [str(row) for row in range(n)], "split": ["train"] * n, "text": ["x"] * n, "label": labels}
    with pytest.raises(DataError) as caught:
        validate(pa.table(columns), label_range=label_range, splits=["train"], custom_range=True)
    assert str(caught.value).endswith(remedy)


CLASSES = [0.0] * 30 + [1.0] * 10


@pytest.mark.parametrize(
    ("valid", "task", "label_range", "faults", "notes"),
    [
        (np.linspace(-3, 3, 20), "regression", (-3, 3), [], []),
        ([1.0] * 30, "regression", (-3, 3), ["all labels of the valid split are 1"], []),
        ([], "regression", (-3, 3), ["all labels of the valid split are missing"], []),
        ([-3.0, 3.0], "regression", (-3, 3), ["the valid split has 2 utterances"], []),
        (np.linspace(-3, 3, 19), "regression", (-3, 3), [], ["the valid split has 19 utterances"]),
        (np.linspace(-3, 3, 20), "regression", (-7, 7), [], ["labels run from -3 to 3"]),
        (np.linspace(-3, 3, 20), "regression", (-6, 6), [], []),
        (CLASSES, "classification", (0, 1), [], []),
        (CLASSES[:-1], "classification", (0, 1), [], ["the valid split has 9 utterances of class 1"]),
        (CLASSES[:30], "classification", (0, 1), ["all labels of the valid split are 0"], []),
    ],
)
def test_labels_that_nothing_can_be_learned_from(
    valid: Any, task: Any, label_range: tuple[float, float], faults: list[str], notes: list[str]
) -> None:
    """And those that little can be: the number of rows, of each class, and how much of their range they take."""
    train = np.array(CLASSES) if task == "classification" else np.linspace(-3, 3, 50)
    result = label_remarks({"train": train, "valid": np.array(valid)}, task, label_range, custom_range=True)
    for told, expected in zip(result, (faults, notes), strict=True):
        assert len(told) == len(expected)
        assert all(item.startswith(start) for item, start in zip(told, expected, strict=True))
    swapped = label_remarks({"train": np.array(valid), "valid": train}, task, label_range, custom_range=True)
    assert len(swapped[0]) == len(faults)
    known = label_remarks({"train": train, "valid": np.array(valid)}, task, label_range, custom_range=False)
    assert not any(note.startswith("labels run") for note in known[1])


def test_parse_fault_stands_for_its_cell() -> None:
    with pytest.raises(DataError) as caught:
        validate(
            loose(label=[None, 1.0, 2.0]),
            label_range=(-3, 3),
            parse_faults=[Fault(0, "label", "label 'x' is not a number")],
            source="t.csv",
        )
    assert str(caught.value) == "t.csv: row 1 (id a): label 'x' is not a number"


def test_label_that_float32_rounds_just_out_of_the_range_passes() -> None:
    validate(loose(label=np.array([-3.0000002, 3.0000002, 0], np.float64)), label_range=(-3, 3))


def test_frames_read_slices_nulls_and_fixed_sizes_alike() -> None:
    rows = [[[1, 2]], None, [], [[3, 4], [5, 6]]]
    for kind in (FRAMES, pa.list_(pa.list_(pa.float32(), 2)), pa.large_list(pa.large_list(pa.int64()))):
        column = pa.chunked_array([pa.array(rows, kind).slice(1), pa.array(rows[:1], kind)])
        frames = Frames.of(column)
        assert frames.lengths_N.tolist() == [0, 0, 2, 1]
        assert frames.values.tolist() == [3, 4, 5, 6, 1, 2]


@pytest.mark.parametrize(
    "relayout",
    [
        lambda table: pa.concat_tables([table.slice(2), table.slice(0, 2)]),
        lambda table: pa.Table.from_batches(table.to_batches(max_chunksize=1)),
        lambda table: through_parquet(table, compression="gzip", row_group_size=1, version="1.0"),
        lambda table: table.replace_schema_metadata({"other": "writer"}),
    ],
)
def test_fingerprint_ignores_the_layout(relayout: Callable[[pa.Table], pa.Table]) -> None:
    table = conform(loose())
    assert digest(relayout(table)) == digest(table)


@pytest.mark.parametrize(
    "changes",
    [
        {"text": ["good", "", "bad "]},
        {"label": [1.5, -3.0, 2.9]},
        {"id": ["a", "b", "d"]},
        {"audio": pa.array([[[1, 2]], [[3, 4]], None], FRAMES)},
        {"context": [["x"], None, None]},
    ],
)
def test_fingerprint_sees_the_content(changes: dict[str, Any]) -> None:
    assert digest(conform(loose(**changes))) != digest(conform(loose()))


def test_fingerprint_sees_the_order_of_rows_within_a_split() -> None:
    table = conform(loose(split=["train"] * 3))
    assert digest(table.take([1, 0, 2])) != digest(table)


def test_info_survives_json() -> None:
    info = TableInfo.describe(
        conform(loose()),
        name="mosi",
        label_range=(-3, 3),
        language="en",
        sources=[Source(name="mosi.parquet", sha256="00")],
        notes=["a note"],
    )
    assert info.audio_dim == 2
    assert info.vision_dim is None
    assert info.splits == {"train": 1, "valid": 1, "test": 1}
    assert TableInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


@pytest.mark.parametrize(
    ("text", "transcripts"),
    [("IT WAS GOOD", "upper"), ("It was GOOD", "mixed"), ("我不想嫁给李茶 OK", "mixed"), ("123 ?", "mixed")],
)
def test_transcripts_without_case_are_detected(text: str, transcripts: str) -> None:
    table = conform(loose(text=[text, "IGNORED", "IGNORED"]))
    assert TableInfo.describe(table, name="x", label_range=(-3, 3)).transcripts == transcripts


def through_parquet(table: pa.Table, **options: Any) -> pa.Table:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return pq.read_table(buffer)
