"""An experiment's result in the forms that people ask for."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

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


class Reader(HTMLParser):
    """The elements of a page, the words in them, and what they point to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def written(tmp_path: Path) -> dict[str, Any]:
    write_result(RESULT, storage_path(tmp_path / "margins"))
    return {path.name: path for path in (tmp_path / "margins").iterdir()}


def test_all_forms_are_there_and_the_same_twice(tmp_path: Path) -> None:
    files = written(tmp_path / "one")
    assert set(files) == {
        *("result.json", "result.md", "result.tex", "index.html"),
        *("figure-lines.png", "figure-lines.pdf"),
    }
    again = written(tmp_path / "two")
    assert {name: path.read_bytes() for name, path in files.items()} == {
        name: path.read_bytes() for name, path in again.items()
    }


def test_the_page_stands_alone_and_takes_no_text_for_html(tmp_path: Path) -> None:
    reader = Reader()
    reader.feed(written(tmp_path)["index.html"].read_text())
    assert reader.open == [] and "script" not in reader.tags and "mine" not in reader.tags
    words = " ".join(reader.words)
    for shown in ("Margins of <mine> & others", "<script>alert(1)</script>", "0.6123", "One <note>.", "Few < many."):
        assert shown in words
    assert len(reader.links) == 1 and reader.links[0].startswith("data:image/png;base64,")


def test_numbers_are_whole_in_json_and_cells_are_cells_in_markdown(tmp_path: Path) -> None:
    files = written(tmp_path)
    answer = json.loads(files["result.json"].read_text())
    assert answer["tables"][0]["rows"][0]["mean"] == 0.61234567
    assert answer["versions"] == {"torch": "2"} and answer["pictures"]["lines"]["panels"][0]["lines"] == [LINE]
    lines = files["result.md"].read_text().splitlines()
    assert "| a\\|b | 2.0000 | <0.001 |" in lines and "![Mean & bars](figure-lines.png)" in lines
    assert lines[-1] == "- One <note>."
    assert "0.6123" in files["result.tex"].read_text() and r"\toprule" in files["result.tex"].read_text()
