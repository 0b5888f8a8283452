from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats
from study import paired_interval, run_study

from grcf_ray.tables import Column, Table

if TYPE_CHECKING:
    from pathlib import Path

    from grcf_ray.data.store import DatasetStore


def test_a_study_writes_its_tables(
    tiny_space: Path, tiny_store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--dataset", "tiny", "--space", tiny_space, "--data", tiny_store.folder]
    words += ["--trials", "16", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/speed.py", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_study(
            "speed",
            "/checkout/benchmarks/speed.py",
            lambda setup: [Table("t", "A table", (Column("n", "trials"),), [{"n": setup.trials}])],
        )
    assert ended.value.code == 0
    written = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert written["command"].startswith("python benchmarks/speed.py --dataset tiny")
    assert "--data DIR " in written["command"]
    assert written["tables"][0]["rows"] == [{"n": 16}]
    assert "A table" in (tmp_path / "out" / "speed.md").read_text()


def test_paired_interval_is_that_of_the_differences() -> None:
    values, reference = [1.0, 2.0, 4.0, 3.0], [0.5, 2.5, 3.0, 2.0]
    gain_S = np.subtract(values, reference)
    low, high = stats.t.interval(0.95, 3, gain_S.mean(), stats.sem(gain_S))
    expected = {"difference": gain_S.mean(), "low": low, "high": high}
    assert paired_interval(values, reference) == pytest.approx(expected)
