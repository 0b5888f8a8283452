"""An experiment's result in the forms that people ask for."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from grcf_ray.experiments.plotting import draw_lines
from grcf_ray.experiments.result import ExperimentResult, Picture, write_result
from grcf_ray.storage import storage_path
from grcf_ray.tables import P_VALUE, Column, Table

LINE = {"name": "a < b", "x": [0, 1], "y": [0.5, 1.0], "error": [0.1, 0.0]}
RESULT = ExperimentResult(
    name="margins",
    title="Margins of <mine> & others",
    paper="Table 4",
    tables=[
        Table(
            "mae",
            "MAE | <lower>",
            (Column("title", "row"), Column("mean", "mean", "{:.4f}"), Column("p", "p", P_VALUE)),
            [
                {"title": "<script>alert(1)</script>", "mean": 0.61234567, "p": None},
                {"title": "a|b", "mean": 2.0, "p": 4e-9},
            ],
            ["few < many"],
        )
    ],
    pictures=[
        Picture(
            name="lines",
            caption="Mean & bars",
            data={"panels": [{"title": "t", "x_title": "x", "y_title": "y", "lines": [LINE]}]},
            draw=draw_lines,
        )
    ],
    notes=["One <note>."],
    about={"command": "python -m x --data 'a & b'", "versions": {"torch": "2"}},
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("result")
    write_result(RESULT, storage_path(folder))
    return {path.name: path for path in folder.iterdir()}


def test_all_forms_are_there_and_the_same_twice(files: dict[str, Path], tmp_path: Path) -> None:
    texts, figures = ("result.json", "result.md", "result.tex", "index.html"), ("figure-lines.png", "figure-lines.pdf")
    assert set(files) == {*texts, *figures}
    write_result(RESULT, storage_path(tmp_path))
    assert all((tmp_path / name).read_bytes() == path.read_bytes() for name, path in files.items())


def test_the_page_stands_alone_and_takes_no_text_for_html(files: dict[str, Path]) -> None:
    page = files["index.html"].read_text()
    assert "<script" not in page and "<mine" not in page
    words = html.unescape(page)
    for shown in ("Margins of <mine> & others", "<script>alert(1)</script>", "0.6123", "One <note>.", "Few < many."):
        assert shown in words
    (link,) = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert link.startswith("data:image/png;base64,")


def test_numbers_are_whole_in_json_and_cells_are_cells_in_markdown(files: dict[str, Path]) -> None:
    answer = json.loads(files["result.json"].read_text())
    assert answer["tables"][0]["rows"][0]["mean"] == 0.61234567
    assert answer["versions"] == {"torch": "2"} and answer["pictures"]["lines"]["panels"][0]["lines"] == [LINE]
    lines = files["result.md"].read_text().splitlines()
    assert "| a\\|b | 2.0000 | <0.001 |" in lines and "![Mean & bars](figure-lines.png)" in lines
    assert lines[-1] == "- One <note>."
    assert "0.6123" in files["result.tex"].read_text() and r"\toprule" in files["result.tex"].read_text()
