"""Pauses between retries: each twice as long, with jitter, so that callers that failed together part."""

from __future__ import annotations

import random
from collections.abc import Callable


def pause(failures: int, *, first: float, most: float, draw: Callable[[], float] = random.random) -> float:
    """Return the seconds to wait after `failures` failures in a row: half to all of first * 2^(failures - 1).

    most: upper bound in seconds. draw: returns uniform random numbers in [0, 1).
    """
    # A float has no room for larger powers.
    return min(most, first * 2.0 ** min(failures - 1, 1000)) * (1 + draw()) / 2
