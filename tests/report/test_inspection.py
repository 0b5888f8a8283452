"""The figures of a data set against plain sums over its rows, and what is drawn of them."""

from __future__ import annotations

import dataclasses
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grcf_ray.data.importers import ImportOptions, import_source
from grcf_ray.data.store import DatasetStore, write_store
from grcf_ray.report.inspection import OPEN_SPLITS, draw_inspection, inspect_store, print_inspection


@pytest.fixture(scope="module")
def content(tiny_store: DatasetStore) -> dict[str, Any]:
    return inspect_store(tiny_store, {split: tiny_store.read(split) for split in OPEN_SPLITS})


def test_figures_are_those_of_the_rows(content: dict[str, Any], tiny_store: DatasetStore) -> None:
    assert content["splits"] == {"train": 48, "valid": 16, "test": 16}
    for split in ("train", "valid"):
        rows = tiny_store.read(split).to_pylist()
        labels = [round(row["label"], 4) for row in rows]
        part = content[split]
        assert part["labels"]["mean"] == pytest.approx(sum(labels) / len(labels))
        assert sum(count for *_, count in part["histogram"]) == len(rows)
        for low, high, count in part["histogram"][:-1]:
            assert count == sum(low <= label < high for label in labels)
        spans = [[-3.0, -1.5], [-2.0, 0.0], [-0.5, 0.5], [0.0, 2.0], [1.5, 3.0]]
        assert part["groups"] == [[low, high, sum(low <= label <= high for label in labels)] for low, high in spans]
        words = sorted(len(row["text"].split()) for row in rows)
        assert (part["lengths"]["words a text"]["least"], part["lengths"]["words a text"]["most"]) == (
            words[0],
            words[-1],
        )
        for name in ("audio", "vision"):
            have = [row[name] for row in rows if row[name] is not None]
            values = [value for sample in have for frame in sample for value in frame]
            features = part["features"][name]
            assert features["width"] == len(have[0][0])
            assert features["missing"] == pytest.approx(1 - len(have) / len(rows))
            assert features["zeros"] == pytest.approx(sum(value == 0 for value in values) / len(values))
            assert part["lengths"][f"{name} rows"]["most"] == max(len(sample) for sample in have)


def test_the_test_split_stays_closed(tiny_store: DatasetStore, content: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(tiny_store.folder, tmp_path / "tiny")
    (tmp_path / "tiny" / "test.parquet").unlink()
    store = DatasetStore.open(tmp_path / "tiny")
    assert inspect_store(store, {split: store.read(split) for split in OPEN_SPLITS}) == content


def test_two_classes_without_features_and_with_context(tmp_path: Path) -> None:
    rows = {
        "id": list("abcd"),
        "split": ["train", "train", "valid", "test"],
        "text": ["one", "two words", "", "x"],
        "label": [0.0, 1.0, 1.0, 0.0],
        "context": [["a", "b"], None, [], None],
    }
    pq.write_table(pa.table(rows), tmp_path / "own.parquet")
    imported = import_source(tmp_path / "own.parquet", ImportOptions(dataset="own", task="classification"))
    store = write_store(tmp_path / "own", *imported)
    content = inspect_store(store, {split: store.read(split) for split in OPEN_SPLITS})
    train = content["train"]
    assert train["histogram"] == [[0.0, 0.0, 1], [1.0, 1.0, 1]]
    assert train["groups"] == [] and train["features"] == {}
    assert train["lengths"]["sentences before it"]["most"] == 2
    assert "Ordinal groups" not in draw_inspection(content)


def test_text_fits_the_terminal(content: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    print_inspection(content)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"-3\.00 to -2\.54 +\d+", out)
    assert "ordinal groups (overlap,5" in out


class Page(HTMLParser):
    """Collects the tags and what they load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href") and value]


def test_the_page_stands_alone_and_escapes(content: dict[str, Any], tiny_store: DatasetStore) -> None:
    evil = {**content, "name": "<script>alert(1)</script>", "notes": ["<img src=x onerror=alert(1)>"]}
    for each in (content, evil):
        page = Page()
        page.feed(draw_inspection(each))
        assert page.loads == []
        assert "script" not in page.tags and "img" not in page.tags
        assert page.tags.count("svg") == 4
    assert dataclasses.asdict(tiny_store.info)["name"] in draw_inspection(content)
