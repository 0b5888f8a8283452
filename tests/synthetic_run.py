"""Run directories made up for the tests of reports: any number of trials, in any state, with any strings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grcf_ray.config import RunConfig, flatten
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.schema import RunInfo
from grcf_ray.storage import storage_path

__all__ = ["HOSTILE", "Run", "run_info"]

HOSTILE = "</script></style><img src=x onerror=alert(1)><b>bold</b>\"'&amp;<!--\u2028$title {{7*7}} \x1b[31m"
"""What would run, load, or break the page if any of it were taken for markup."""


def run_info(*, settings: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **more: Any) -> RunInfo:
    """A run.json with these entries."""
    return RunInfo.model_validate(
        {
            "schema_version": 2,
            "state": "running",
            "starts": [{"time": "2026-11-01T00:00:00+00:00", "command": "python -m grcf_ray.search"}],
            "space": {"dataset": "tiny", "fixed": {}, "stage1": {}, "stage2": {}},
            "settings": flatten(RunConfig()) | (settings or {}),
            "data": {
                "folder": "data",
                "name": "own",
                "task": "regression",
                "fingerprint": "0",
                "label_range": [-3.0, 3.0],
                **(data or {}),
            },
            "versions": {},
            **more,
        }
    )


class Run:
    """Writes a run directory part by part. text: what stands wherever data or errors have strings."""

    def __init__(self, folder: Path, *, text: str = "plain", settings: dict[str, Any] | None = None) -> None:
        self.record = RunRecord(storage_path(folder))
        self.folder, self.text = folder, text
        self._rng = np.random.default_rng(0)
        self.settings = {**flatten(RunConfig()), "stage1.epochs": 3, "stage2.epochs": 3, **(settings or {})}
        self.settings |= {"model.backbone": text}

    def start(self, state: str = "running", **more: Any) -> Run:
        """run.json."""
        dimension = {"low": 1e-5, "high": 1e-1, "log": True, "start": 1e-3}
        choice = {"choices": [self.text, "other"], "start": "other"}
        self.record.write_run(
            {
                "state": state,
                "starts": [{"time": "2026-11-01T00:00:00+00:00", "command": f"python -m grcf_ray.search {self.text}"}],
                "space": {
                    "dataset": self.text,
                    "fixed": {},
                    "stage1": {"stage1.head_lr": dimension, "stage1.encoder_lr": dimension, "model.modalities": choice},
                    "stage2": {"stage2.head_lr": dimension},
                },
                "settings": self.settings,
                "data": {
                    "folder": self.text,
                    "name": self.text,
                    "task": "regression",
                    "fingerprint": "0f" * 32,
                    "label_range": [-3.0, 3.0],
                },
                "versions": {"grcf_ray": "0.1.0", "commit": self.text},
                **more,
            }
        )
        return self

    def trials(self, stage: Literal[1, 2], states: str, *, epochs: int = 3) -> Run:
        """A trial for each letter: (c)omplete, (p)runed, (r)unning, (d)iverged, (f)ailed."""
        names = {"c": "complete", "p": "pruned", "r": "running", "d": "diverged", "f": "failed"}
        for number, letter in enumerate(states):
            self.record.write_trial(self._trial(stage, number, names[letter], epochs))
        return self

    def finish(self, winner: str = "stage2/0", **more: Any) -> Run:
        """best/: figures, provenance and predictions."""
        figures = {"mae": 0.7123456789012345, "corr": 0.8123456789, "pairwise_acc": 0.8, "acc7": 0.4321}
        best = self.record.place / "best"
        (best / "metrics.json").write_json(
            {
                "trial": winner,
                "valid": {name: value * 0.9 for name, value in figures.items()},
                "test": figures,
                "threads": 1,
                "paper": {"mae": 0.581, "corr": 0.866},
                "not_comparable": [f"backbone {self.text}"],
                "baselines": [{"name": "ridge regression", "alpha": 0.1, "valid": {}, "test": {"mae": 0.6}}],
            }
        )
        read = {"time": "2026-11-01T01:00:00+00:00", "command": "search", "models": [winner], "argv": [self.text]}
        (best / "provenance.json").write_json(
            {
                "trial": winner,
                "params": {},
                "seed": 0,
                "settings": self.settings,
                "data": {"name": self.text, "fingerprint": "0f" * 32, "sources": []},
                "versions": {},
                "test_reads": [read],
            }
        )
        for split in ("valid", "test"):
            self._predict(split)
        self.record.update_run(state="finished", winner=winner, **more)
        return self

    def _trial(self, stage: Literal[1, 2], number: int, state: Any, epochs: int) -> TrialRecord:
        rate = 10 ** self._rng.uniform(-5, -1)
        count = {"complete": epochs, "failed": 0}.get(state, max(1, epochs // 3))
        curve = []
        for epoch in range(1, count + 1):
            goodness = 1 - abs(math.log10(rate) + 3) / 4 + 0.02 * epoch + self._rng.normal(0, 0.01)
            metrics = {"epoch": epoch, "loss/total": 1 / epoch, "loss/group": 0.5 / epoch, "utterance_passes": 1.0}
            curve.append({**metrics, "valid/pairwise_acc": 0.6 + 0.2 * goodness, "valid/mae": 1.5 - 0.5 * goodness})
        if stage == 1:
            choice = self.text if number % 2 else "other"
            params = {"stage1.head_lr": rate, "stage1.encoder_lr": rate / 3, "model.modalities": choice}
        else:
            params = {"stage2.head_lr": rate, "finalist": "0"}
        broken = state in ("diverged", "failed")
        return TrialRecord(
            number=number,
            stage=stage,
            attempt=1,
            params=params,
            seed=number,
            state=state,
            curve=curve,
            error=self.text if broken else None,
            cause=("not finite" if state == "diverged" else "error") if broken else None,
            seconds=1.25 * count,
            utterance_passes=float(count),
            started="2026-11-01T00:00:00+00:00",
            ended=None if state == "running" else f"2026-11-01T00:{number // 60 % 60:02d}:{number % 60:02d}+00:00",
        )

    def _predict(self, split: str) -> None:
        count = 40
        label_N = np.round(self._rng.uniform(-3, 3, count), 1)
        state = self._rng.normal(size=(count, 4)).astype(np.float32)
        columns = {
            "id": [f"{self.text}{index}" for index in range(count)],
            "text": [self.text] * count,
            "label": pa.array(label_N, pa.float32()),
            "score": label_N + self._rng.normal(0, 0.5, count),
            "state": pa.array(list(state), pa.list_(pa.float32())),
        }
        with (self.record.place / "best" / "predictions" / f"{split}.parquet").writing() as path:
            pq.write_table(pa.table(columns), path)
