from __future__ import annotations

import html

from grcf_ray.report.figures.text import shown


def test_markup_and_control_codes_are_shown_literally() -> None:
    assert shown("a <b>&amp;</b>") == "a &lt;b&gt;&amp;amp;&lt;/b&gt;"
    assert shown("one\ntwo\x1b[0m\u202e") == "one two [0m "
    assert shown(3) == "3"


def test_what_is_cut_is_cut_before_it_is_escaped() -> None:
    """Never in the middle of an entity."""
    cut = shown("<" * 100, 10)
    assert html.unescape(cut) == "<" * 9 + "…"
