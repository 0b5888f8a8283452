from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from grcf_ray.search.failures import (
    HUNG,
    OUTSIDE,
    NodeHealth,
    cause_of_error,
    cause_of_result,
    failures_by_cause,
    last_line,
    node_of_error,
)
from grcf_ray.search.record import TrialRecord
from grcf_ray.train.location import Location


def trial(number: int, cause: str | None, state: Any = "failed") -> TrialRecord:
    return TrialRecord(number=number, stage=1, attempt=1, params={}, seed=0, state=state, cause=cause)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out of memory"),
        ("MemoryError", "out of memory"),
        (
            "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
            "node out of memory",
        ),
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
        ("ActorDiedError: killed since the node was running low on memory", "node out of memory"),
        ("The actor died because its node has died. Node Id: 25c968", "node lost"),
        ("ray.exceptions.ActorDiedError: the node 25c968 has been marked dead", "node lost"),
        ("OSError: [Errno 116] Stale file handle", "storage"),
        ("OSError: google::cloud::Status(UNAVAILABLE: ...)", "storage"),
        ("OSError: When reading key 'a': AWS Error UNKNOWN (HTTP status 503): Service Unavailable", "storage"),
        ("grcf_ray.errors.HubError: backbone a/b cannot be loaded", "hub"),
        ("httpx.HTTPStatusError: Client error '429 Too Many Requests' for url 'https://huggingface.co'", "hub"),
        ("requests.exceptions.HTTPError: 503 Server Error: Service Unavailable for url", "hub"),
        ("requests.exceptions.HTTPError: 404 Client Error: Not Found for url", "error"),
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


def test_what_lies_outside_a_trial() -> None:
    assert {"process died", "node lost", "node out of memory", "storage", "disk full", "hub"} == OUTSIDE
    assert OUTSIDE.isdisjoint({HUNG, "error", "out of memory", "refused", "not finite", "damaged file"})


def test_the_node_that_an_error_names() -> None:
    nodes = {"n1": "10.0.0.1", "n2": "10.0.0.2"}
    died = "The actor died unexpectedly.\n\tactor_id: 5dceb9\n\tpid: 1\n\tip: {}\nThe actor is dead"
    assert node_of_error(died.format("10.0.0.2"), nodes) == "n2"
    assert node_of_error("ray::Trainable.train() (pid=3, ip=10.0.0.1, actor_id=5)\nValueError: odd", nodes) == "n1"
    assert node_of_error("The actor died because its node has died. Node Id: 77ab", nodes) == "77ab"
    assert node_of_error(died.format("10.0.0.3"), nodes) is None
    assert node_of_error(died.format("10.0.0.1"), {"n1": "10.0.0.1", "n2": "10.0.0.1"}) is None
    assert node_of_error("ValueError: odd", {"n1": "10.0.0.1"}) is None


A, B = (Location(name, f"host-{name} (10.0.0.1)", None) for name in "ab")


def test_a_node_is_bad_after_two_dead_processes() -> None:
    health = NodeHealth()
    health.failed(A, "process died")
    health.failed(B, "process died")
    assert health.bad == frozenset()
    health.failed(A, "node out of memory")
    assert health.bad == {"a"} and health.hosts["a"] == "host-a (10.0.0.1)"


@pytest.mark.parametrize("cause", ["storage", "disk full", "hub"])
def test_a_service_that_fails_everywhere_makes_no_node_bad(cause: str) -> None:
    """Only an epoch of another node between two failures, and none of its own, proves that the node is at fault."""
    health = NodeHealth()
    for _ in range(2):
        health.epoch_saved("a")
        health.epoch_saved("b")
        for location in (A, B, A, B):
            health.failed(location, cause)
    assert health.bad == frozenset()
    health.epoch_saved("b")
    health.failed(B, cause)
    assert health.bad == frozenset()
    health.failed(A, cause)
    assert health.bad == {"a"}


def test_a_node_where_trials_fail_by_themselves_can_be_condemned() -> None:
    health = NodeHealth()
    health.condemn(B)
    assert health.bad == {"b"} and health.hosts == {"b": B.host}


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
