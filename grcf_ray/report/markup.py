"""HTML from data, of which every string is taken for text: it is escaped, unless it was made here."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from grcf_ray.console import printable

_EMPTY = frozenset({"img", "input", "meta"})
"""Elements that have no content and no end."""
_NUMBER = re.compile(r"<data|–")
_UNSAFE = {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


class Markup(str):
    """HTML that is safe as it stands: made of escaped text."""

    __slots__ = ()


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """`<tag attributes>content</tag>`: what is not Markup is escaped, and None is left out.

    Underscores in the names of attributes are hyphens, and one at the end is dropped (`class_`). An attribute that is
    True stands alone, one that is None or False is left out.
    """
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_escaped(value)}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in _EMPTY:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{joined(content)}</{tag}>")


def joined(parts: Iterable[object]) -> Markup:
    """The parts one after the other, with what is not Markup escaped, and None left out."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts if part is not None))


def _escaped(text: object) -> str:
    # A browser obeys overrides of direction as a terminal does.
    return html.escape(printable(str(text)))


def figure(value: object, format: str = ".4f") -> Markup:
    """A number as people read it, with all its digits in the title; a dash where there is none, text as it is."""
    if value is None:
        return joined(["–"])
    if not isinstance(value, float):
        return joined([value])
    return element("data", f"{value:{format}}", value=repr(value), title=repr(value))


def table(
    columns: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str, hidden_caption: bool = False
) -> Markup:
    """A table in a box of its own, which scrolls sideways where the screen is narrow; the first cell heads its row.

    Plain numbers are shown with four digits; a column of nothing else stands to the right.
    """
    listed = [list(row) for row in rows]
    numeric = [all(map(_is_number, values)) for values in zip(*listed, strict=True)] or [False] * len(columns)
    classes = ["number" if is_number else None for is_number in numeric]
    heads = (element("th", name, scope="col", class_=of) for name, of in zip(columns, classes, strict=True))
    body = (
        element(
            "tr",
            element("th", _shown(row[0]), scope="row"),
            *(element("td", _shown(value), class_=of) for value, of in zip(row[1:], classes[1:], strict=True)),
        )
        for row in listed
    )
    content = element(
        "table",
        element("caption", caption, class_="unseen" if hidden_caption else None),
        element("thead", element("tr", *heads)),
        element("tbody", *body),
    )
    return element("div", content, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _shown(value: object) -> Markup:
    return value if isinstance(value, Markup) else figure(value, ".4g")


def _is_number(value: object) -> bool:
    return (
        value is None
        or isinstance(value, (int, float))
        or (isinstance(value, Markup) and _NUMBER.match(value) is not None)
    )


def section(name: str, title: str, *content: Markup) -> Markup:
    """A part of the page under its heading; its anchor is `section-NAME`, so that figures may have any."""
    heading = element("h2", title, id=f"section-{name}-title")
    return element("section", heading, *content, id=f"section-{name}", aria_labelledby=f"section-{name}-title")


def script_json(value: Any, **attributes: object) -> Markup:
    """A block of JSON that scripts read; nothing in it can end the block. NaN is refused, since JSON has none."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, written in _UNSAFE.items():
        text = text.replace(character, written)
    return element("script", Markup(text), type="application/json", **attributes)
