from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from synthetic_run import HOSTILE

from grcf_ray.console import printable
from grcf_ray.report.markup import Markup, element, figure, joined, script_json, table


class Read(HTMLParser):
    """Elements with their attributes, and the text, as a browser understands them."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_strings_are_text_in_content_and_in_attributes() -> None:
    read = Read(element("p", HOSTILE, element("b", HOSTILE), title=HOSTILE))
    assert read.elements == [("p", {"title": printable(HOSTILE)}), ("b", {})]
    assert read.text == printable(HOSTILE) * 2


def test_attributes() -> None:
    assert element("th", "x", class_="a", aria_sort="none", hidden=True, title=None, open=False) == (
        '<th class="a" aria-sort="none" hidden>x</th>'
    )
    assert element("input", type="search") == '<input type="search">'
    assert element("p", "a", None, 0) == "<p>a0</p>"


def test_only_what_was_made_here_is_markup() -> None:
    assert joined(["<b>", Markup("<b>")]) == "&lt;b&gt;<b>"
    # What is done with markup outside gives plain strings, which are escaped again.
    assert joined([Markup("<b>") + "<i>"]) == "&lt;b&gt;&lt;i&gt;"


def test_figures_keep_all_their_digits() -> None:
    value = 0.12345678901234568
    (entry,) = Read(figure(value)).elements
    assert entry == ("data", {"value": repr(value), "title": repr(value)})
    assert Read(figure(value)).text == "0.1235"
    assert Read(figure(-0.5, "+.4f")).text == "-0.5000"
    assert [figure(None), figure(7), figure("<a>"), figure(True)] == ["–", "7", "&lt;a&gt;", "True"]


def test_a_table_escapes_and_puts_columns_of_numbers_to_the_right() -> None:
    made = table((HOSTILE, "n", "mixed"), [(HOSTILE, 1.5, "x"), ("b", None, 2)], caption=HOSTILE)
    read = Read(made)
    names = [name for name, _ in read.elements]
    assert {"img", "script", "style", "b"}.isdisjoint(names)
    assert [attributes.get("class") for name, attributes in read.elements if name == "td"] == ["number", None] * 2
    assert [attributes for name, attributes in read.elements if name == "th"] == [
        {"scope": "col"},
        {"scope": "col", "class": "number"},
        {"scope": "col"},
        {"scope": "row"},
        {"scope": "row"},
    ]
    assert read.elements[0][1]["aria-label"] == printable(HOSTILE)
    assert read.text.startswith(printable(HOSTILE) * 2)


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        table(("a", "b"), [("only one",)], caption="")
    assert "<tbody></tbody>" in table(("a", "b"), [], caption="")


def test_a_block_of_json_cannot_be_left() -> None:
    value = {HOSTILE: [HOSTILE, 0.1, None, True]}
    block = script_json(value, data_figure=HOSTILE)
    start, content, end = block.partition(">")[0], block.partition(">")[2].rpartition("<")[0], block.rpartition("<")[2]
    assert start.startswith('<script type="application/json" data-figure="')
    assert end == "/script>"
    assert not set("<>&\u2028\u2029") & set(content)
    assert json.loads(content) == value
    with pytest.raises(ValueError, match="Out of range"):
        script_json(float("nan"))
