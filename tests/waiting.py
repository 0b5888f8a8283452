"""How the tests that start clusters wait: for a state, and never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["PATIENCE_S", "wait_for"]

PATIENCE_S = 240
"""How long to wait for what takes some seconds on an idle machine."""


def wait_for(condition: Callable[[], Any], what: str, *, patience: float = PATIENCE_S, every: float = 0.1) -> Any:
    """The condition's value once it holds. patience, every: seconds to wait at most, and between two looks."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(every)
    raise AssertionError(f"waited {patience} s for {what}")
