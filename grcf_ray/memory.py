"""What a warm process does about memory between jobs, and while it starts."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """No search for garbage meanwhile: to import libraries and build a model makes many objects and little garbage.

    A fifth of the time that the imports of a trial's process take.
    """
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.enable()


def tidy() -> None:
    """Collect garbage, and give what was freed back to the system: glibc keeps it in pieces, more after every job."""
    gc.collect()
    # What outlives a job stays: without it, the search for what does not is a matter of milliseconds.
    gc.freeze()
    # Other C libraries have no such call.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
