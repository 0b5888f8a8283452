"""Why trials fail: causes that failures are grouped by, and which of them may pass if the trial runs again."""

from __future__ import annotations

import re
from collections.abc import Sequence

from grcf_ray.search.record import TrialRecord

HUNG = "hung"

_CAUSES = (
    (
        "out of memory",
        re.compile(r"OutOfMemoryError|CUDA out of memory|MemoryError|running low on memory"),
    ),
    ("disk full", re.compile(r"No space left on device|Disk quota exceeded|Errno 28|Errno 122")),
    ("storage", re.compile(r"Read-only file system|Errno 30|PermissionError|AWS Error|Input/output error")),
    (
        "process died",
        # By name where it is part of a traceback; by what it says where it is the exception itself.
        re.compile(
            r"ActorDiedError|ActorUnavailableError|RayActorError|WorkerCrashedError|NodeDied"
            r"|The actor died unexpectedly|The actor \w+ is unavailable"
        ),
    ),
)


def cause_of_error(text: str) -> str:
    """The cause of an exception that ended a trial's process, by its text. All of these may pass.

    A process without last words has died.
    """
    if not text.strip():
        return "process died"
    return next((cause for cause, pattern in _CAUSES if pattern.search(text)), "error")


def cause_of_result(state: str, error: str) -> str:
    """The cause of a failure that the trial reported itself, which its settings or its input would bring about again.

    error: the exception's type.
    """
    if state == "diverged":
        return "not finite"
    return "damaged file" if error == "DamagedError" else "refused"


def last_line(text: str) -> str:
    """What a traceback says in the end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else text


def failures_by_cause(trials: Sequence[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """The trials that failed or diverged, by cause."""
    found: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        if trial.cause is not None:
            found.setdefault(trial.cause, []).append(trial)
    return found
