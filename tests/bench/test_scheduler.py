from __future__ import annotations

from pathlib import Path

import pytest
import torch

from grcf_ray.bench.scheduler import Meter, scheduler_tables
from grcf_ray.bench.setup import Setup
from grcf_ray.data.store import DatasetStore
from grcf_ray.search.record import RunRecord
from grcf_ray.search.space import load_space
from grcf_ray.storage import storage_path


def test_costs_are_those_of_each_part_less_the_first_trial() -> None:
    meter = Meter()
    # The first trial took 100 s, each of the others a second more than the one before.
    meter.marks = [(0.0, 0.0, 0.0), (100.0, 10.0, 1e6)]
    for number in range(1, 9):
        wall, cpu, memory = meter.marks[-1]
        meter.marks.append((wall + number, cpu + 0.5, memory + 2000))
    rows = meter.costs(2)
    assert [row["name"] for row in rows] == ["2 to 5", "6 to 9"]
    assert [row["wall"] for row in rows] == [2.5, 6.5]
    assert [row["cpu"] for row in rows] == [0.5, 0.5]
    assert {row["memory"] for row in rows} <= {2.0, None}


@pytest.mark.usefixtures("ray_session")
def test_trials_that_do_nothing_are_run_and_recorded(
    tiny_store: DatasetStore, tiny_space: Path, tmp_path: Path
) -> None:
    space = load_space(tiny_space)
    setup = Setup(
        store=tiny_store,
        config=space.config(),
        space=space,
        device=torch.device("cpu"),
        repetitions=1,
        trials=4,
        processes=1,
        folder=tmp_path,
        say=lambda what: None,
    )
    (table,) = scheduler_tables(setup, trials=13)
    assert sum(row["trials"] for row in table.rows) == 12
    assert all(row["wall"] > 0 and row["cpu"] > 0 for row in table.rows)
    recorded = RunRecord(storage_path(tmp_path / "scheduler")).trials(1)
    assert [(trial.number, trial.state, trial.epoch) for trial in recorded] == [(n, "complete", 1) for n in range(13)]
