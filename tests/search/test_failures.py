from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from grcf_ray.search.failures import HUNG, cause_of_error, cause_of_result, failures_by_cause, last_line
from grcf_ray.search.record import TrialRecord


def trial(number: int, cause: str | None, state: Any = "failed") -> TrialRecord:
    return TrialRecord(number=number, stage=1, attempt=1, params={}, seed=0, state=state, cause=cause)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out of memory"),
        ("MemoryError", "out of memory"),
        ("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.", "out of memory"),
        ("OSError: [Errno 28] No space left on device: '/runs/a'", "disk full"),
        ("OSError: [Errno 122] Disk quota exceeded", "disk full"),
        ("OSError: [Errno 30] Read-only file system: '/runs'", "storage"),
        ("PermissionError: [Errno 13] Permission denied: '/runs/a'", "storage"),
        ("OSError: When uploading part for key 'a' in bucket 'b': AWS Error SLOW_DOWN", "storage"),
        ("OSError: [Errno 5] Input/output error", "storage"),
        ("ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.", "process died"),
        ("ray.exceptions.ActorUnavailableError: The actor is temporarily unavailable", "process died"),
        ("ValueError: odd", "error"),
        ("The actor died because of an error raised in its creation task, ValueError: odd", "error"),
        # Both words stand in Ray's text.
        ("ActorDiedError: killed since the node was running low on memory", "out of memory"),
    ],
)
def test_causes_of_what_ended_a_process(text: str, cause: str) -> None:
    assert cause_of_error(f"Traceback (most recent call last):\n  File ...\n{text}\n") == cause
    assert cause_of_error("") == cause_of_error(" \n") == "process died"


@pytest.mark.parametrize("error", [ActorDiedError(), ActorUnavailableError("no answer", b"0" * 16)])
def test_rays_own_errors_are_known_by_what_they_say(error: Exception) -> None:
    """Tune writes an exception's words, not its name."""
    text = f"Failure # 1 (occurred at 2026-01-01_00-00-00)\n{error}\n"
    assert type(error).__name__ not in text
    assert cause_of_error(text) == "process died"


@pytest.mark.parametrize(
    ("state", "error", "cause"),
    [
        ("diverged", "DivergedError", "not finite"),
        ("failed", "DamagedError", "damaged file"),
        ("failed", "ClusterError", "refused"),
        ("failed", "ConfigError", "refused"),
    ],
)
def test_causes_of_what_a_trial_reports(state: str, error: str, cause: str) -> None:
    assert cause_of_result(state, error) == cause


def test_what_a_traceback_says_in_the_end() -> None:
    assert last_line("Traceback:\n  File a\nValueError: odd\n\n  \n") == "ValueError: odd"
    assert last_line("") == ""
    assert last_line(" \n") == " \n"


def test_failures_are_grouped_in_the_order_of_their_first() -> None:
    trials = [trial(0, HUNG), trial(1, None, "complete"), trial(2, "error"), trial(3, HUNG)]
    grouped = failures_by_cause([*trials, trial(4, "not finite", "diverged")])
    assert [(cause, [t.number for t in failed]) for cause, failed in grouped.items()] == [
        (HUNG, [0, 3]),
        ("error", [2]),
        ("not finite", [4]),
    ]
    assert failures_by_cause([trial(1, None, "complete")]) == {}
