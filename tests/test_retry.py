from __future__ import annotations

from grcf_ray.retry import pause


def test_pauses_double_up_to_the_longest_and_jitter_takes_half_at_most() -> None:
    longest, shortest = (
        [pause(failures, first=2.0, most=30.0, draw=lambda draw=draw: draw) for failures in range(1, 7)]
        for draw in (1.0, 0.0)
    )
    assert longest == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert shortest == [seconds / 2 for seconds in longest]
    assert pause(10**6, first=1.0, most=60.0, draw=lambda: 1.0) == 60.0


def test_callers_that_failed_together_part() -> None:
    pauses = {pause(3, first=1.0, most=60.0) for _ in range(8)}
    assert len(pauses) > 1 and min(pauses) >= 2.0 and max(pauses) <= 4.0
