from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from synthetic_run import HOSTILE

from grcf_ray.console import printable
from grcf_ray.report import html
from grcf_ray.report.html import Table, code, figure, interval, spread
from grcf_ray.search.schema import Estimate

TABLE = '{% from "macros.html" import table %}{{ table(content) }}'


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


def rendered(source: str, **context: object) -> str:
    return html._ENVIRONMENT.from_string(source).render(context)


def test_strings_are_text_in_content_and_in_attributes() -> None:
    read = Read(rendered('<p title="{{ text }}">{{ text }}{{ code }}</p>', text=HOSTILE, code=code(HOSTILE)))
    assert read.elements == [("p", {"title": printable(HOSTILE)}), ("code", {})]
    assert read.text == printable(HOSTILE) * 2
    assert rendered("{{ nothing }}{{ zero }}", nothing=None, zero=0) == "0"
    with pytest.raises(UndefinedError):
        rendered("{{ missing }}")


def test_only_what_was_made_here_is_markup() -> None:
    # Markup joined with a string escapes the string.
    assert rendered("{{ a }}{{ b }}", a="<b>", b=Markup("<b>") + "<i>") == "&lt;b&gt;<b>&lt;i&gt;"


def test_figures_keep_all_their_digits() -> None:
    value = 0.12345678901234568
    read = Read(str(figure(value)))
    assert read.elements == [("data", {"value": repr(value), "title": repr(value)})]
    assert read.text == "0.1235"
    assert Read(str(figure(-0.5, "+.4f"))).text == "-0.5000"
    assert [figure(None), figure(7), figure("<a>"), figure(True)] == ["–", 7, "<a>", True]
    estimate = Estimate(mean=0.5, deviation=0.25, half_width=0.125)
    assert Read(str(spread(estimate))).text == "0.5000 ± 0.2500"
    assert Read(str(interval(estimate))).text == "+0.5000 [+0.3750, +0.6250]"
    single = Estimate(mean=0.5, deviation=None, half_width=None)
    assert [Read(str(spread(single))).text, interval(single), spread(None)] == ["0.5000", "–", "–"]


def test_a_table_escapes_and_puts_columns_of_numbers_to_the_right() -> None:
    content = Table(caption=HOSTILE, columns=(HOSTILE, "n", "mixed"), rows=[(HOSTILE, 1.5, "x"), ("b", None, 2)])
    read = Read(rendered(TABLE, content=content))
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
    assert read.text.split("\n", 1)[1].strip().startswith(printable(HOSTILE))


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        rendered(TABLE, content=Table(caption="", columns=("a", "b"), rows=[("only one",)]))
    assert "<tr>" in rendered(TABLE, content=Table(caption="", columns=("a", "b"), rows=[]))


def test_a_block_of_json_cannot_be_left() -> None:
    value = {HOSTILE: [HOSTILE, 0.1, None, True]}
    content = rendered("{{ value | tojson }}", value=value)
    assert not set("<>&\u2028\u2029") & set(content)
    assert json.loads(content) == value
    with pytest.raises(ValueError, match="Out of range"):
        rendered("{{ value | tojson }}", value=float("nan"))
