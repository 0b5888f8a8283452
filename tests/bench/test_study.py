from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
from study import run_study

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
