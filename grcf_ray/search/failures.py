"""Classify trial failures by cause, so that messages can group them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from grcf_ray.search.record import TrialRecord

HUNG = "hung"

_CAUSES = {
    "out of memory": r"OutOfMemoryError|CUDA out of memory|MemoryError|running low on memory",
    "disk full": r"No space left on device|Disk quota exceeded|Errno 28|Errno 122",
    "storage": r"Read-only file system|Errno 30|PermissionError|AWS Error|Input/output error",
    # A traceback contains the exception's name; the exception itself contains only its message.
    "process died": r"ActorDiedError|ActorUnavailableError|RayActorError|WorkerCrashedError|NodeDied"
    r"|The actor died unexpectedly|The actor \w+ is unavailable",
}
"""Patterns by cause; the first one that fits applies."""


def cause_of_error(text: str) -> str:
    """Return the cause of an exception that ended a trial's process; "process died" for an empty text.

    All of these causes are temporary: the trial may succeed if it runs again.
    """
    if not text.strip():
        return "process died"
    return next((cause for cause, pattern in _CAUSES.items() if re.search(pattern, text)), "error")


def cause_of_result(state: str, error: str) -> str:
    """Return the cause of a failure that the trial reported itself, and that would repeat with the same settings.

    error: name of the exception's type.
    """
    if state == "diverged":
        return "not finite"
    return "damaged file" if error == "DamagedError" else "refused"


def last_line(text: str) -> str:
    """Return the last line of a traceback that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else text


def failures_by_cause(trials: Sequence[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """Return the trials that failed or diverged, by cause."""
    by_cause: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        if trial.cause is not None:
            by_cause.setdefault(trial.cause, []).append(trial)
    return by_cause
