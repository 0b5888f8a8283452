from __future__ import annotations

from typing import Any

from grcf_ray.report import figure_tables


def tables_of(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(table.caption, table.columns, table.rows) for table in figure_tables.tables_of(data)]


def test_lists_side_by_side_are_the_columns_of_a_table() -> None:
    assert tables_of({"trial": [0, 1], "objective": [0.5, None], "of three": ["a", "b", "c"]}) == [
        ("", ("trial", "objective"), [(0, 0.5), (1, None)]),
        ("", ("of three",), [("a",), ("b",), ("c",)]),
    ]


def test_mappings_are_rows() -> None:
    assert tables_of({"trials": [{"number": 0, "state": "complete"}, {"number": 1, "error": "x"}]}) == [
        ("trials", ["number", "state", "error"], [[0, "complete", None], [1, None, "x"]])
    ]


def test_plain_values_are_a_table_of_two_columns() -> None:
    assert tables_of({"stage": 1, "metric": "mae"}) == [("", ("", "Value"), [("stage", 1), ("metric", "mae")])]


def test_what_lies_deeper_is_named_by_its_path() -> None:
    data = {"curves": [{"trial": 7, "mae": [0.5, 0.4]}], "inner": {"x": [1, 2]}}
    assert tables_of(data) == [
        ("curves", ["trial"], [[7]]),
        ("curves 1", ("mae",), [(0.5,), (0.4,)]),
        ("inner", ("x",), [(1,), (2,)]),
    ]


def test_rows_of_one_length_are_a_table() -> None:
    assert tables_of({"counts": [[1, 2], [3, 4]], "ragged": [[1], [2, 3]]}) == [
        ("counts", ["1", "2"], [[1, 2], [3, 4]])
    ]


def test_the_open_table_and_what_is_empty_are_left_out() -> None:
    assert tables_of({"table": {"columns": ["a"], "rows": [[1]]}, "none": [], "nothing": {}}) == []
