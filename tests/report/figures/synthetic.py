"""Run views made up for tests of figures: trials of an objective whose importances are known, and a measured model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike
from synthetic_run import run_info

from grcf_ray.metrics import split_metrics
from grcf_ray.report.view import RunView
from grcf_ray.search.predictions import Predictions
from grcf_ray.search.record import RunRecord, TrialRecord, TrialState
from grcf_ray.storage import storage_path

STORED = Path(__file__).parents[2] / "stored" / "run-2"
"""A finished search of the tests' tiny data."""
MOSI = (-3.0, 3.0)
HOSTILE = '<b>bold</b> <a href="https://example.org">here</a> &amp; \x1b[31m' + "long " * 50
WEIGHTS = {"stage1.encoder_lr": 4, "model.modalities": 2, "model.fusion_dropout": 1, "ranking.intra_margin": 0}
"""Stage 1's parameters and what they weigh in its objective."""
CHOICES = ("text", "text+audio", "all")
SPACE: dict[str, Any] = {
    "dataset": "tiny",
    "fixed": {},
    "stage1": {
        "stage1.encoder_lr": {"low": 1e-6, "high": 1e-2, "log": True, "start": 1e-4},
        "model.modalities": {"choices": list(CHOICES), "start": "all"},
        "model.fusion_dropout": {"low": 0.0, "high": 0.5, "log": False, "start": 0.1},
        "ranking.intra_margin": {"low": 0.01, "high": 1.0, "log": True, "start": 0.1},
    },
    "stage2": {
        "stage2.encoder_top_lr": {"low": 1e-6, "high": 1e-2, "log": True, "start": 1e-4},
        "stage2.head_lr": {"low": 1e-6, "high": 1e-2, "log": True, "start": 1e-4},
    },
}
EPOCHS = 6


def view_of(
    trials: dict[int, list[TrialRecord]], *, space: dict[str, Any] = SPACE, epochs: int = EPOCHS, **run: Any
) -> RunView:
    """A view of trials that lie nowhere."""
    settings = {"stage1.epochs": epochs, "stage2.epochs": epochs}
    record = RunRecord(storage_path(Path("nowhere")))
    info = run_info(settings=settings, space=space, **run)
    return RunView(record, info, "running", True, {1: [], 2: []} | trials, metrics=None, provenance=None)


def trial(
    number: int,
    stage: Literal[1, 2],
    params: dict[str, Any],
    values: list[float | None],
    state: TrialState = "complete",
    **more: Any,
) -> TrialRecord:
    """A trial whose objective takes these values by epoch."""
    metric, term = ("valid/pairwise_acc", "loss/reg") if stage == 1 else ("valid/mae", "loss/mae")
    curve = [
        {
            "epoch": epoch,
            metric: value,
            "loss/total": 1.5 / epoch,
            "loss/group": 1 / epoch,
            term: 0.5 / epoch,
            "loss/bound": 0.0,
        }
        for epoch, value in enumerate(values, start=1)
    ]
    figures = {"seconds": 10.0 * len(values), "utterance_passes": 2.25 * len(values)}
    ended = None if state == "running" else f"2026-01-01T{number // 60 % 24:02d}:{number % 60:02d}:00+00:00"
    return TrialRecord(
        **{"number": number, "stage": stage, "attempt": 1, "params": params, "seed": number, "state": state}
        | {"curve": curve, "ended": ended}
        | figures
        | more
    )


def first_stage(count: int, *, seed: int = 0, full: bool = True) -> list[TrialRecord]:
    """Stage 1 trials at random; unless `full`, with early stops, divergence and failures among them."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        unit = rng.random(4)
        choice = int(rng.integers(3))
        goodness = 4 * unit[0] + 2 * choice / 2 + unit[2]
        params = {
            "stage1.encoder_lr": 10 ** (-6 + 4 * unit[0]),
            "model.modalities": CHOICES[choice],
            "model.fusion_dropout": 0.5 * unit[2],
            "ranking.intra_margin": 10 ** (-2 + 2 * unit[3]),
        }
        best = 0.6 + 0.3 * goodness / 7 + 0.002 * rng.normal()
        values: list[float | None] = [best - 0.1 * math.exp(-epoch) for epoch in range(1, EPOCHS)] + [best]
        state: TrialState = "complete"
        more: dict[str, Any] = {}
        if not full and number % 11 == 5:
            state, more = "diverged", {"error": "loss is not finite", "cause": "not finite"}
            values = values[:2]
        elif not full and number % 13 == 6:
            broke = {"attempt": 1, "cause": "process died", "error": "the trial's process died", "time": ""}
            state, more = "failed", {"error": broke["error"], "cause": broke["cause"], "failures": [broke] * 4}
            values = []
        elif not full and number == count - 1:
            state, values = "running", values[:2]
        elif not full and goodness < 3.5 and number > 4:
            state, values = "pruned", values[: 1 if number % 2 else 3]
        trials.append(trial(number, 1, params, values, state, **more))
    return trials


def second_stage(count: int, finalists: list[TrialRecord], *, seed: int = 1) -> list[TrialRecord]:
    """Stage 2 trials from these finalists, in turn; the later a finalist, the worse on the whole."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        start = number % len(finalists)
        unit = rng.random(2)
        params = {
            "stage2.encoder_top_lr": 10 ** (-6 + 4 * unit[0]),
            "stage2.head_lr": 10 ** (-6 + 4 * unit[1]),
            "finalist": str(finalists[start].number),
        }
        best = 0.7 + 0.05 * start + 0.3 * (unit[0] - 0.6) ** 2 + 0.01 * rng.normal()
        values: list[float | None] = [best + 0.5 * math.exp(-epoch) for epoch in range(1, EPOCHS)] + [best]
        state: TrialState = "pruned" if unit[0] < 0.3 and number else "complete"
        trials.append(trial(number, 2, params, values if state == "complete" else values[:2], state))
    return trials


def scored_of(count: int, task: Literal["regression", "classification"] = "regression") -> Predictions:
    """Utterances whose states and scores follow their labels loosely; the first has hostile id and text."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(-3, 3, count)
    label_N = (truth > 0).astype(float) if task == "classification" else truth.round(1)
    ids = [HOSTILE, *(f"video[{index}]" for index in range(1, count))]
    texts = [HOSTILE, *(f"text of {index}" for index in range(1, count))]
    state_ND = truth[:, None] * np.linspace(-1, 1, 8) + rng.normal(size=(count, 8))
    return Predictions(ids, texts, label_N, truth + rng.normal(0, 0.9, count), state_ND.astype(np.float32))


def scored_as(labels: ArrayLike, scores: ArrayLike) -> Predictions:
    """Utterances with these labels and scores."""
    label_N, score_N = np.asarray(labels, float), np.asarray(scores, float)
    return dataclasses.replace(scored_of(len(label_N)), label_N=label_N, score_N=score_N)


def measured_view(
    folder: Path,
    scored: Predictions,
    task: Literal["regression", "classification"] = "regression",
    *,
    label_range: tuple[float, float] | None = None,
    settings: dict[str, Any] | None = None,
    **run: Any,
) -> RunView:
    """A run that has nothing but a measured model."""
    if task == "regression":
        figures = split_metrics(scored.score_N, scored.label_N, protocol="mosi")
    else:
        figures = split_metrics(scored.score_N, scored.label_N > 0.5, protocol="binary")
    path = folder / "best" / "predictions" / "test.parquet"
    path.parent.mkdir(parents=True)
    columns = {
        "id": list(scored.id_N),
        "text": list(scored.text_N),
        "label": pa.array(scored.label_N, pa.float32()),
        "score": scored.score_N,
        "state": pa.array(list(scored.state_ND), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), path)
    ends = label_range or (MOSI if task == "regression" else (0.0, 1.0))
    return RunView(
        record=RunRecord(storage_path(folder)),
        info=run_info(data={"task": task, "label_range": list(ends)}, **run),
        state="finished",
        alive=False,
        trials={1: [], 2: []},
        metrics={
            "trial": "stage2/0",
            "valid": figures,
            "test": figures,
            "paper": {"mae": 0.581},
            "not_comparable": ["backbone <b>x</b>"],
            "baselines": [{"name": "<b>ridge</b>", "test": figures}],
        },
        provenance={
            "trial": "stage2/0",
            "settings": settings or {"ranking.groups": "overlap,5", "ranking.group_edges": "scaled"},
        },
    )
