"""The study of the driver at scale, small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from scale import proposals_table, scale_table

from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from grcf_ray.bench.setup import Setup


def test_the_driver_at_scale_keeps_a_whole_record(setup_of: Callable[..., Setup], tmp_path: Path) -> None:
    """With results instead of processes, the search is a real one."""
    table = scale_table(setup_of(storage=str(tmp_path / "runs")), at_a_time=(5,), epoch_s=0.2)
    (row,) = table.rows
    assert row["name"] == "5"
    assert all(row[key] > 0 for key in ("epoch", "epoch_cpu", "launch", "end", "process", "behind"))
    run = max((tmp_path / "runs").iterdir())
    trials = RunRecord(storage_path(run)).trials(1)
    assert [trial.number for trial in trials] == list(range(6))
    assert {trial.state for trial in trials} == {"complete", "pruned"}
    # The epochs after which a trial went on.
    assert row["epochs"] == sum(trial.epoch - 1 for trial in trials)
    assert (run / "tensorboard" / "stage1" / "0005").is_dir()
    (memory,) = re.findall(r"needs (\d+) kB", " ".join(table.notes))
    assert int(memory) > 0


def test_proposals_after_few_and_many_trials(setup_of: Callable[..., Setup]) -> None:
    table = proposals_table(setup_of(), recorded=(3, 20))
    assert [row["name"] for row in table.rows] == ["3", "20"]
    assert all(len(row["seconds"]) == 5 and row["median"] > 0 for row in table.rows)
