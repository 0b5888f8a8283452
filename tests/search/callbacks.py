"""What the tests of RecordCallback share: a callback without Ray, Tune's trials, and nodes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from ray.exceptions import RayActorError

from grcf_ray.config import RunConfig, SearchConfig
from grcf_ray.search import callback
from grcf_ray.search.callback import RecordCallback
from grcf_ray.search.events import Event
from grcf_ray.search.failures import NodeHealth
from grcf_ray.search.nodes import Node
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.storage import storage_path
from grcf_ray.train.location import Location

__all__ = ["DEATH", "NODES", "OWN_ERROR", "Process", "answers", "keep", "nodes", "record", "result", "started", "tunes"]


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    record = RunRecord(storage_path(tmp_path / "run"))
    record.write_run({"state": "running"})
    return record


DEATH = "Traceback\nray.exceptions.ActorDiedError: The actor died unexpectedly\n"
OWN_ERROR = "Traceback\nValueError: odd\n"


def keep(
    record: RunRecord, *trials: TrialRecord, stage: Literal[1, 2] = 1, choices: int = 1, **search: Any
) -> tuple[RecordCallback, list[Event], list[tuple[int, str, float]]]:
    """A keeper, the events that it tells, and what it decides about trials whose processes died."""
    events: list[Event] = []
    settled: list[tuple[int, str, float]] = []
    config = RunConfig(search=SearchConfig(**search))
    job: Any = SimpleNamespace(
        record=record,
        config=config,
        protocol="mosi",
        seed=lambda stage, params, number: 100 + number,
        epochs=lambda stage: 3,
        config_of=lambda trial: config,
        tell=events.append,
        health=NodeHealth(),
        room=lambda: 4,
        worker_resources=config.search.worker_resources,
    )
    kept = RecordCallback(job, stage, list(trials), choices=choices)
    kept.settle = lambda number, fate, seconds: settled.append((number, fate, seconds))
    return kept, events, settled


class Process:
    """A trial's process: where it runs, and what it answers when it is to end a pruned trial."""

    def __init__(self, where: Location | None = None, *, dies: bool = False) -> None:
        self.asked: list[bool] = []
        answer = {"checkpoint": "best-00007.safetensors", "checkpoint_sha256": "cd" * 32}
        self.__ray_call__ = SimpleNamespace(remote=lambda ask: where)
        self.finish = SimpleNamespace(
            remote=lambda keep: self.asked.append(keep) or (RayActorError() if dies else answer)
        )


def tunes(number: int, error: str | None = None, folder: Path | None = None) -> Any:
    """A trial as Tune has it."""
    state = SimpleNamespace(ray_actor=Process())
    trial = SimpleNamespace(config={"number": number}, error_file=None, status="RUNNING", temporary_state=state)
    if error is not None:
        assert folder is not None
        path = folder / "error.txt"
        path.write_text(error)
        trial.error_file = str(path)
    return trial


def result(*values: float, done: bool = False, **more: Any) -> dict[str, Any]:
    curve = [
        {"epoch": epoch, "valid/pairwise_acc": value, "seconds": 2.0, "utterance_passes": 3.0}
        for epoch, value in enumerate(values, 1)
    ]
    checkpoint = {"checkpoint": "best-00001.safetensors", "checkpoint_sha256": "ab" * 32}
    return {"curve": curve, "notes": [], **checkpoint, "done": done, **more}


NODES = [Node(name, f"host-{name}", f"10.0.0.{number}", {"CPU": 2.0}) for number, name in enumerate("ab")]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """The nodes that are alive, two; a process answers with the name of the node on which `started` starts it."""
    nodes = list(NODES)
    monkeypatch.setattr(callback, "cluster_nodes", lambda: nodes)
    return nodes


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give what a process answered, or raise it."""

    def get(answer: Any, timeout: float | None = None) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(callback.ray, "get", get)


def started(number: int, node: str = "a", gpu: str | None = None) -> Any:
    """A trial of Tune whose process has started on a node."""
    where = Location(node, f"host-{node}", gpu)
    trial = tunes(number)
    trial.temporary_state = SimpleNamespace(ray_actor=Process(where))
    return trial
