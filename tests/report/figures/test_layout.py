from __future__ import annotations

import html

import pytest

from grcf_ray.report.figures.layout import count_axis, log_axis, log_ticks, shown


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 19, 60, 61, 1234, 10**6])
def test_counts_tick_at_a_few_whole_numbers(most: int) -> None:
    step = count_axis(most)["dtick"]
    assert isinstance(step, int)
    assert most / step <= 6
    assert most < 6 or most / step >= 2


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e-6, 1e-2, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]),
        (2e-5, 3e-3, [1e-4, 1e-3]),
        (2e-5, 9e-5, [2e-5, 5e-5]),
        (0.5, 30.0, [1.0, 10.0]),
        # No two round numbers lie between.
        (3e-5, 4e-5, [3e-5, 4e-5]),
    ],
)
def test_a_logarithmic_axis_has_two_ticks_or_more(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == ticks


@pytest.mark.parametrize(("low", "high"), [(1e-3, 1e-3), (2.5e-5, 2.6e-5), (1e-9, 1e5)])
def test_the_axis_shows_its_values_and_names_its_ticks(low: float, high: float) -> None:
    axis = log_axis(low, high)
    first, last = (10**end for end in axis["range"])
    assert first < low <= high < last
    assert len(set(axis["ticktext"])) == len(axis["tickvals"]) >= 2
    assert len(axis["tickvals"]) <= 7
    assert all(first * 0.999 <= tick <= last * 1.001 for tick in axis["tickvals"])


def test_markup_and_control_codes_are_shown_literally() -> None:
    assert shown("a <b>&amp;</b>") == "a &lt;b&gt;&amp;amp;&lt;/b&gt;"
    assert shown("one\ntwo\x1b[0m\u202e") == "one two [0m "
    assert shown(3) == "3"


def test_what_is_cut_is_cut_before_it_is_escaped() -> None:
    """Never in the middle of an entity."""
    cut = shown("<" * 100, 10)
    assert html.unescape(cut) == "<" * 9 + "…"
