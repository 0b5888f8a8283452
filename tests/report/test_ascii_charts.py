from __future__ import annotations

import math

from grcf_ray.report.ascii_charts import bar, history, sparkline


def test_sparkline_goes_from_lowest_to_highest_with_gaps() -> None:
    assert sparkline([0.0, 1.0, 2.0, 7.0], width=10) == "▁▂▃█"
    assert sparkline([1.0, None, math.nan, 2.0], width=10) == "▁  █"
    assert sparkline([0.5, 0.5], width=10) == "▅▅"
    assert sparkline([None, math.inf], width=10) == ""
    assert sparkline([], width=10) == ""


def test_sparkline_of_many_ends_with_the_last() -> None:
    line = sparkline([float(value) for value in range(1000)], width=8)
    assert line == "▁▂▃▄▅▆▇█"
    assert sparkline([0.0] * 999 + [1.0], width=5)[-1] == "█"


def test_bar_is_as_long_as_the_share() -> None:
    assert bar(0.25, width=8) == "██░░░░░░"
    assert bar(0, width=3) == "░░░"
    # A budget that was made smaller has more done than asked for.
    assert bar(1.5, width=3) == "███"


def test_history_has_a_dot_a_trial_and_the_best_so_far() -> None:
    assert history([1.0, 3.0, None, 2.0, 0.0], "min", width=80, height=4) == [
        "  3.0000 │   •",
        "         │         •",
        "         │•───────────",
        "  0.0000 │            •──",
        "         └───────────────",
    ]
    rising = history([1.0, 3.0, 2.0], "max", width=80, height=2)
    assert rising == ["  3.0000 │   •──•──", "  1.0000 │•──", "         └─────────"]


def test_history_of_many_trials_is_no_wider_than_asked() -> None:
    lines = history([math.sin(index) for index in range(1000)], "max", width=80)
    assert max(map(len, lines)) <= 80
    # Every column has a trial.
    columns = zip(*(f"{line[10:]:<70}" for line in lines[:-1]), strict=True)
    assert all("•" in column for column in columns)
    assert history([1.0], "max", width=80) == []
    assert history([None, math.nan], "max", width=80) == []
