"""Memory of a process: garbage collection, and returning freed memory to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Stop garbage collection until the context ends.

    Importing libraries and building a model create many objects and little garbage. Without collection, the imports of
    a trial's process take a fifth less time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def tidy() -> None:
    """Collect garbage, and return freed memory to the system."""
    gc.collect()
    # Objects that outlive a job are permanent. Without them, the next collection takes milliseconds.
    gc.freeze()
    return_memory()


def return_memory() -> None:
    """Return freed memory to the system: glibc keeps it in pieces, more after every job."""
    # Other C libraries have no such function.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
