from __future__ import annotations

import pytest

from grcf_ray.errors import ConfigError
from grcf_ray.report.selection import Row, column_named, columns_of, select, sorted_by

ROWS: list[Row] = [
    {"number": 0, "state": "complete", "stage1.head_lr": 1e-4, "model.modalities": "text", "flag": True},
    {"number": 1, "state": "pruned", "stage1.head_lr": 2e-4, "model.modalities": "all", "cause": "not finite"},
    {"number": 10, "state": "pruned", "stage1.head_lr": None, "model.modalities": "text", "flag": False},
]


def numbers(rows: list[Row]) -> list[int]:
    return [row["number"] for row in rows]


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ([], [0, 1, 10]),
        (["state=pruned"], [1, 10]),
        (["state != pruned"], [0]),
        (["number<10"], [0, 1]),
        (["number>=1", "number<=1"], [1]),
        (["number>1"], [10]),
        # As numbers, whatever way they are written.
        (["head_lr=0.0001"], [0]),
        (["stage1.head_lr<1.5e-4"], [0]),
        # No value is neither smaller nor larger, and is not what it is compared with.
        (["head_lr!=1e-4"], [1, 10]),
        (["head_lr=-"], [10]),
        (["head_lr!=-"], [0, 1]),
        (["cause=not finite"], [1]),
        (["cause=-"], [0, 10]),
        (["flag=true"], [0]),
        (["modalities=text", "state=pruned"], [10]),
    ],
)
def test_filters(filters: list[str], left: list[int]) -> None:
    assert numbers(select(ROWS, filters)) == left


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("state", "should be COLUMN=VALUE"),
        ("=3", "should be COLUMN=VALUE"),
        ("stat=pruned", "did you mean state"),
        ("number<many", "should be a number"),
    ],
)
def test_what_is_no_filter_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        select(ROWS, [text])


def test_of_nothing_nothing_is_left() -> None:
    assert select([], ["state=pruned"]) == []


def test_a_column_may_be_named_by_its_end_if_only_one_ends_so() -> None:
    columns = ["trial", "stage1.head_lr", "stage2.head_lr", "best/valid/mae", "head"]
    assert column_named("mae", columns) == "best/valid/mae"
    assert column_named("valid/mae", columns) == "best/valid/mae"
    assert column_named("head", columns) == "head"
    with pytest.raises(ConfigError, match=r"stage1\.head_lr, stage2\.head_lr"):
        column_named("head_lr", columns)
    with pytest.raises(ConfigError, match="no such column"):
        column_named("lr", columns)


def test_sorting_leaves_what_has_no_value_last() -> None:
    assert numbers(sorted_by(ROWS, "stage1.head_lr")) == [0, 1, 10]
    assert numbers(sorted_by(ROWS, "stage1.head_lr", reverse=True)) == [1, 0, 10]
    assert numbers(sorted_by(ROWS, "number", reverse=True)) == [10, 1, 0]
    assert numbers(sorted_by(ROWS, "model.modalities")) == [1, 0, 10]


def test_columns_of_all_rows() -> None:
    assert columns_of(ROWS) == ["number", "state", "stage1.head_lr", "model.modalities", "flag", "cause"]
