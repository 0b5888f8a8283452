"""A finished run that a search has recorded, and what its tests share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from grcf_ray.data import datasets
from grcf_ray.report.summary import RunSummary
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path

__all__ = ["EVIL", "change", "measured_as_mosi", "narrow", "record_of", "restore", "seeds_content"]

EVIL = "\x1b[31m=cmd|' /C calc'!A0<script>\u202e\nline"
"""A text that would command a terminal, a spreadsheet or a page."""
_STORED = Path(__file__).parents[1] / "stored" / "run-2"


def restore(folder: Path, *, backbone: str = "models/tiny-bert", data: str = "data") -> Path:
    """Copy the run of 6 and 5 trials that tests/stored holds, with paths in place of its placeholders."""
    shutil.copytree(_STORED, folder)
    for path in folder.rglob("*.json"):
        text = path.read_text(encoding="utf-8").replace("{backbone}", backbone).replace("{data}", data)
        path.write_text(text, encoding="utf-8")
    return folder


def record_of(folder: Path) -> RunRecord:
    """The record of a run directory."""
    return RunRecord(storage_path(folder))


def change(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def narrow(out: str, width: int = 80) -> list[str]:
    """The lines, all of them narrow and plain."""
    lines = out.splitlines()
    assert max(map(len, lines)) <= width, max(lines, key=len)
    assert all(line.isprintable() for line in lines)
    return lines


def measured_as_mosi(summary: RunSummary) -> dict[str, Any]:
    """A summary's values, with the metrics of a run on MOSI."""
    metrics = {
        "valid": {"mae": 0.71, "acc7": 0.45, "corr": 0.8},
        "test": {"mae": 0.72, "acc7": 0.44, "corr": 0.79, "acc2_non0": 0.85},
        "paper": dict(datasets.get("mosi").paper_results),
        "not_comparable": ["backbone tiny-bert", "no vision"],
        "baselines": [{"name": "ridge regression", "alpha": 0.1, "valid": {}, "test": {"mae": 0.9}}],
    }
    return summary.as_json() | metrics


def seeds_content(winner: str, *, trained: int = 3) -> dict[str, Any]:
    """seeds/metrics.json with estimates of the test MAE."""
    estimate = {"mean": 0.7, "deviation": 0.02, "half_width": 0.05}
    arms = {
        arm: {"trained": trained, "valid": {}, "test": {"mae": {**estimate, "mean": mean}}}
        for arm, mean in (("winner", 0.7), ("start", 0.75))
    }
    gain = {"mae": {"mean": -0.05, "deviation": 0.01, "half_width": 0.02}}
    whole = {"schema_version": 2, "winner": winner, "seeds": trained, "complete": True, "models": []}
    return {**whole, "arms": arms, "gain": gain}
