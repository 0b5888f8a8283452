"""What RecordCallback does about nodes on which trials fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grcf_ray.search.callback import RecordCallback
from grcf_ray.search.events import NodeExcluded
from grcf_ray.search.nodes import Node
from grcf_ray.search.record import RunRecord
from grcf_ray.train.location import Location
from tests.search.callbacks import DEATH, NODES, OWN_ERROR, answers, keep, nodes, record, result, started, tunes

__all__ = ["answers", "nodes", "record"]


def fail_on(kept: RecordCallback, number: int, node: str, error: str, folder: Path) -> dict[str, Any]:
    """Launch a trial and have its process die on a node; return its configuration."""
    config = kept.launch(number, {})
    kept.on_trial_start(0, [], started(number, node, "3"))
    kept.on_trial_error(0, [], tunes(number, error, folder))
    return config


def test_a_failure_is_recorded_with_its_node_and_gpu(record: RunRecord, nodes: list[Node], tmp_path: Path) -> None:
    kept, _, _ = keep(record)
    fail_on(kept, 0, "b", DEATH, tmp_path)
    # This process was lost before it started to train, so only its error names the node.
    kept.launch(0, {})
    kept.on_trial_error(0, [], tunes(0, "Traceback\nValueError: in setup (pid=3, ip=10.0.0.0)\n", tmp_path))
    kept.launch(0, {})
    kept.on_trial_error(0, [], tunes(0, OWN_ERROR, tmp_path))
    places = [{key: failure.get(key) for key in ("node", "host", "gpu")} for failure in record.trial(1, 0).failures]
    assert places == [
        {"node": "b", "host": "host-b", "gpu": "3"},
        {"node": "a", "host": "host-a (10.0.0.0)", "gpu": None},
        {"node": None, "host": None, "gpu": None},
    ]


def test_a_node_that_kills_processes_is_avoided_while_another_can_take_the_trials(
    record: RunRecord, nodes: list[Node], tmp_path: Path
) -> None:
    kept, events, _ = keep(record)
    assert kept.room() == 4
    assert fail_on(kept, 0, "a", DEATH, tmp_path)["avoid"] == []
    assert fail_on(kept, 1, "a", DEATH, tmp_path)["avoid"] == []
    assert kept.launch(2, {})["avoid"] == ["a"]
    assert kept.room() == 2
    assert [event for event in events if isinstance(event, NodeExcluded)] == [NodeExcluded("host-a")]
    assert record.info().excluded == ["host-a"]
    fail_on(kept, 3, "a", DEATH, tmp_path)
    assert sum(isinstance(event, NodeExcluded) for event in events) == 1
    # The other node is lost: the bad one is better than none.
    del nodes[1]
    assert (kept.launch(4, {})["avoid"], kept.room()) == ([], 4)
    nodes.append(NODES[1])
    assert kept.launch(5, {})["avoid"] == ["a"]
    # Both are bad, so none is.
    for number in (6, 7):
        fail_on(kept, number, "b", DEATH, tmp_path)
    assert (kept.launch(8, {})["avoid"], kept.room()) == ([], 4)


def test_a_node_that_trains_but_cannot_save_is_avoided(record: RunRecord, nodes: list[Node], tmp_path: Path) -> None:
    """Weights are written in the background, so a trial can report an epoch before its node fails to write them."""
    kept, _, _ = keep(record)
    for number in (0, 1):
        kept.launch(number, {})
        kept.on_trial_start(0, [], started(number, "a" if number else "b"))
        kept.on_trial_result(0, [], tunes(number), result(0.5, checkpoint=None if number == 0 else "best-00001"))
    read_only = "OSError: [Errno 30] Read-only file system: 'best-00001.safetensors'\n"
    kept.on_trial_error(0, [], tunes(0, read_only, tmp_path))
    kept.on_trial_result(0, [], tunes(1), result(0.5, 0.6))
    kept.launch(0, {})
    kept.on_trial_start(0, [], started(0, "b"))
    kept.on_trial_result(0, [], tunes(0), result(0.5, 0.6, checkpoint=None))
    kept.on_trial_error(0, [], tunes(0, read_only, tmp_path))
    assert kept.launch(0, {})["avoid"] == ["b"]


def test_a_node_that_kills_a_worker_of_a_trial_is_avoided_too(
    record: RunRecord, nodes: list[Node], tmp_path: Path
) -> None:
    """Such a trial has the resources of two workers, and its error names the node of the one that failed."""
    kept, _, _ = keep(record, workers=2)
    died = f"WorkersDiedError: worker 1: ActorDiedError: ({Location('a', 'host-a', '0')})\n"
    for number in range(2):
        assert kept.launch(number, {})["avoid"] == []
        kept.on_trial_error(0, [], tunes(number, died, tmp_path))
    (failure,) = record.trial(1, 0).failures
    assert (failure["node"], failure["host"], failure["gpu"]) == ("a", "host-a (10.0.0.0)", "0")
    assert (kept.launch(2, {})["avoid"], kept.room()) == (["a"], 1)
    # Another worker fails where a service does not answer, while trials go on elsewhere.
    denied = f"WorkersDiedError: worker 0: OSError: Read-only file system ({Location('b', 'host-b', None)})\n"
    kept.on_trial_error(0, [], tunes(2, denied, tmp_path))
    kept.on_trial_result(0, [], tunes(0), result(0.5, nodes=["a"]))
    kept.launch(2, {})
    kept.on_trial_error(0, [], tunes(2, denied, tmp_path))
    assert kept._health.bad == {"a", "b"}


@pytest.mark.parametrize("second", ["a", "b"])
def test_failures_in_a_row_must_be_on_two_nodes_where_there_are_two(
    record: RunRecord, nodes: list[Node], second: str
) -> None:
    """Those of one node exclude it first."""
    kept, events, _ = keep(record, failures_in_a_row=3)
    bad = result(done=True, failure="why", state="failed", error="ConfigError")

    def fail(number: int, node: str) -> None:
        kept.launch(number, {})
        kept.on_trial_start(0, [], started(number, node))
        kept.on_trial_result(0, [], tunes(number), bad)

    for number, node in enumerate(("a", second, "a")):
        assert not kept.hopeless
        fail(number, node)
    assert kept.hopeless == (second == "b")
    if second == "a":
        assert NodeExcluded("host-a") in events
        assert kept.launch(3, {})["avoid"] == ["a"]
        fail(3, "b")
        assert kept.hopeless and kept.failing == 4


def test_failures_outside_trials_are_no_failures_in_a_row(record: RunRecord, nodes: list[Node], tmp_path: Path) -> None:
    kept, _, _ = keep(record, failures_in_a_row=1)
    for number, node in enumerate("abab"):
        fail_on(kept, number, node, DEATH, tmp_path)
    assert (kept.failing, kept.hopeless) == (0, False)
    del nodes[1]
    kept.launch(9, {})
    kept.on_trial_start(0, [], started(9))
    kept.on_trial_result(0, [], tunes(9), result(done=True, failure="why", state="failed", error="ConfigError"))
    assert kept.hopeless, "one node is all that there is"
