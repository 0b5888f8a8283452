from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from grcf_ray.bench.searching import Meter, scheduler_table
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from grcf_ray.bench.setup import Setup


def test_costs_of_each_part_exclude_the_first_trial() -> None:
    meter = Meter()
    # The first trial takes 100 s, each further trial a second more than the trial before.
    meter.marks = [(0.0, 0.0, 0.0), (100.0, 10.0, 1e6)]
    for number in range(1, 9):
        wall, cpu, memory = meter.marks[-1]
        meter.marks.append((wall + number, cpu + 0.5, memory + 2000))
    rows = meter.costs(2)
    assert [row["name"] for row in rows] == ["2 to 5", "6 to 9"]
    assert [(row["wall"], row["cpu"], row["memory"]) for row in rows] == [(2.5, 0.5, 2.0), (6.5, 0.5, 2.0)]


@pytest.mark.integration
@pytest.mark.usefixtures("ray_session")
def test_trials_without_work_are_run_and_recorded(setup_of: Callable[..., Setup]) -> None:
    setup = setup_of()
    table = scheduler_table(setup, trials=13)
    assert sum(row["trials"] for row in table.rows) == 12
    assert all(row["wall"] > 0 and row["cpu"] > 0 for row in table.rows)
    recorded = RunRecord(storage_path(setup.folder / "scheduler")).trials(1)
    assert [(trial.number, trial.state, trial.epoch) for trial in recorded] == [(n, "complete", 1) for n in range(13)]
