"""How the tests that start clusters and servers wait: for a state, and never for a time; and the ports these get."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable
from typing import Any

__all__ = ["JOB_S", "PATIENCE_S", "free_port", "wait_for"]

PATIENCE_S = 240
"""How long to wait for what takes some seconds on an idle machine."""
JOB_S = 900
"""And for a whole search, which takes a minute or two."""

_PORTS = range(20_000, 32_000)
"""Above those of Ray's workers, and below those that systems give out themselves."""
_given: set[int] = set()


def wait_for(condition: Callable[[], Any], what: str, *, patience: float = PATIENCE_S, every: float = 0.1) -> Any:
    """The condition's value once it holds. patience, every: seconds to wait at most, and between two looks."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(every)
    raise AssertionError(f"waited {patience} s for {what}")


def free_port() -> int:
    """A port that nobody listens on, that nobody is given by chance, and that was not given out before."""
    while True:
        # Not from the seeded generator, which gives two sessions of tests the same ones.
        port = random.SystemRandom().choice(_PORTS)
        if port in _given:
            continue
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port))
            _given.add(port)
            return port
