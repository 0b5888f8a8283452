"""What a search costs beyond the training of its trials. The test split is not read."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from grcf_ray.bench.measure import Column, Table
from grcf_ray.config import RunConfig, flatten
from grcf_ray.data.datasets import protocol_of
from grcf_ray.data.store import Store
from grcf_ray.search.events import EpochFinished, Event, StageStarted, TrialEnded, TrialStarted
from grcf_ray.search.preflight import connect, find_room
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.space import Space
from grcf_ray.search.stages import Search, cluster_nodes
from grcf_ray.storage import place_at
from grcf_ray.train.assemble import prepare_features

__all__ = ["search_table"]


class _Clock:
    """Notes how long a process waits from trial to trial, and how long it trains."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._freed: list[float] = []
        self._waiting: dict[int, float] = {}
        self.trained = 0.0
        self.turnarounds: list[float] = []

    def __call__(self, event: Event) -> None:
        now = time.perf_counter()
        if isinstance(event, StageStarted):
            self._freed, self._waiting = [], {}
        elif isinstance(event, TrialStarted) and self._freed:
            self._waiting[event.trial.number] = self._freed.pop(0)
        elif isinstance(event, (EpochFinished, TrialEnded)):
            trial = event.trial
            if (freed := self._waiting.pop(trial.number, None)) is not None and trial.curve:
                self.turnarounds.append(now - freed - trial.curve[0]["seconds"])
            if isinstance(event, TrialEnded):
                self._freed.append(now)
                self.trained += trial.seconds
                self._say(f"trial {trial.number} of stage {trial.stage} has ended")


class _TimedRecord(RunRecord):
    """Counts the time that writing trials takes."""

    seconds = 0.0

    def write_trial(self, trial: TrialRecord) -> None:
        before = time.perf_counter()
        super().write_trial(trial)
        self.seconds += time.perf_counter() - before

    def export_trials(self, stage: int) -> None:
        before = time.perf_counter()
        super().export_trials(stage)
        self.seconds += time.perf_counter() - before


def search_table(
    store: Store, config: RunConfig, space: Space, say: Callable[[str], None], folder: Path, trials: int
) -> Table:
    """A search of `trials` trials: where the time of its slots went.

    A slot is the room of one trial at a time; the first trial of each stage in a slot starts a process.
    """
    begun = time.perf_counter()
    space = space.with_settings({"search.stage1_trials": trials // 2, "search.stage2_trials": trials - trials // 2})
    connect()
    room = find_room(cluster_nodes(), config, [trials // 2])
    features = prepare_features(store, config)
    record = _TimedRecord(place_at(folder / "bench"))
    record.write_run({"state": "running", "settings": flatten(config)})
    clock = _Clock(say)
    ready = time.perf_counter()
    job = Search(
        record=record,
        space=space,
        features=features,
        protocol=protocol_of(store.info.name, store.info.task),
        concurrent=room.concurrent,
        listeners=(clock,),
    )
    job.run()
    wall = time.perf_counter() - ready
    slots = room.concurrent * wall
    outside = slots - clock.trained
    return Table(
        "search",
        f"A search of {trials} trials, {room.concurrent} at a time",
        (
            Column("name", "part"),
            Column("seconds", "seconds", "{:.2f}"),
            Column("share", "of its slots", "{:.1%}"),
        ),
        [
            {"name": "before the first trial: imports, cluster, features", "seconds": ready - begun, "share": None},
            {"name": "wall-clock time of both stages", "seconds": wall, "share": None},
            {"name": "its slots, together", "seconds": slots, "share": 1.0},
            {"name": "training and validation", "seconds": clock.trained, "share": clock.trained / slots},
            {"name": "writing the record of its trials", "seconds": record.seconds, "share": record.seconds / slots},
            {"name": "all but training and validation", "seconds": outside, "share": outside / slots},
            *(
                {"name": f"from trial to trial, {what}", "seconds": of(clock.turnarounds), "share": None}
                for what, of in (("median", statistics.median), ("longest", max))
                # There is none where every process had one trial alone.
                if clock.turnarounds
            ),
        ],
        (
            "from trial to trial: from the report of a trial's last epoch to that of the next one's first, less the "
            "time of that epoch; a process's first trial in a stage, for which it is started, is not among them",
        ),
    )
