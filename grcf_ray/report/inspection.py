"""Describe an imported data set: as JSON values, as text, and as an HTML page.

The test split stays closed; only its number of utterances is shown, which the store's index has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike

from grcf_ray.console import print_table, say
from grcf_ray.data.frames import Frames
from grcf_ray.data.schema import MODALITIES, TableInfo, labels_of
from grcf_ray.data.store import DatasetStore
from grcf_ray.losses.groups import OrdinalGroups
from grcf_ray.report.html import Table, render, template_source

OPEN_SPLITS = ("train", "valid")
_GROUPS = "overlap,5"
_BINS = 13
_BAR = 40
_QUANTILES = {"least": 0.0, "median": 0.5, "95 %": 0.95, "most": 1.0}
_LENGTHS_HEADER = ("split", "of", *_QUANTILES)
_FEATURES_HEADER = ("split", "modality", "values a row", "without it", "zeros", "constant columns")


def inspect_store(store: DatasetStore, tables: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Return all figures as JSON values. tables: the rows of train and valid.

    `splits`: utterances of each. For train and valid: `labels` (lowest, mean, highest, deviation), `histogram` and
    `groups` (each a list of low edge, high edge, utterances), `lengths` (quantiles of words a text, of sentences before
    it and of rows of each modality) and `features` (of each modality: width, share of utterances without it, of zeros
    among its values, and columns that never change).
    """
    info = store.info
    return {
        "name": info.name,
        "task": info.task,
        "label_range": list(info.label_range),
        "splits": dict(info.splits),
        "notes": list(info.notes),
        **{split: _inspect_split(table, info) for split, table in tables.items()},
    }


def print_inspection(content: Mapping[str, Any]) -> None:
    """Print the figures. content: from `inspect_store`."""
    for split in OPEN_SPLITS:
        part = content[split]
        most = max((count for *_, count in part["histogram"]), default=0)
        say(f"\nlabels of {split}")
        for low, high, count in part["histogram"]:
            bar = "█" * round(_BAR * count / max(1, most))
            say(f"{_span(low, high):>16}  {count:>6}  {bar}".rstrip())
    say("\nlengths")
    print_table(_LENGTHS_HEADER, _lengths(content))
    if features := _features(content):
        say("\nfeatures")
        print_table(_FEATURES_HEADER, features)
    if content["train"]["groups"]:
        say(f"\nordinal groups ({_GROUPS}, overlapping)")
        spans = [_span(low, high) for low, high, _ in content["train"]["groups"]]
        counts = [[str(count) for *_, count in content[split]["groups"]] for split in OPEN_SPLITS]
        print_table(("labels", *OPEN_SPLITS), list(zip(spans, *counts, strict=True)))


def draw_inspection(content: Mapping[str, Any]) -> str:
    """Return the figures as one HTML page. content: from `inspect_store`."""
    charts = []
    for split in OPEN_SPLITS:
        charts.append((f"Labels of {split}", content[split]["histogram"]))
        if content[split]["groups"]:
            charts.append((f"Ordinal groups of {split} ({_GROUPS}, overlapping)", content[split]["groups"]))
    tables = [("Lengths", _LENGTHS_HEADER, _lengths(content)), ("Features", _FEATURES_HEADER, _features(content))]
    return render(
        "inspection.html",
        style=template_source("style.css"),
        labels=_span(*content["label_range"]),
        charts=[(title, bins, max([1, *(count for *_, count in bins)])) for title, bins in charts],
        tables=[
            Table(caption=caption, columns=header, rows=rows, hidden_caption=True)
            for caption, header, rows in tables
            if rows
        ],
        **{key: content[key] for key in ("name", "task", "splits", "notes")},
    )


def _lengths(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (split, name, *(f"{value:g}" for value in quantiles.values()))
        for split in OPEN_SPLITS
        for name, quantiles in content[split]["lengths"].items()
    ]


def _features(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (split, name, str(f["width"]), f"{f['missing']:.1%}", f"{f['zeros']:.1%}", str(f["constant"]))
        for split in OPEN_SPLITS
        for name, f in content[split]["features"].items()
    ]


def _inspect_split(table: pa.Table, info: TableInfo) -> dict[str, Any]:
    label_N = labels_of(table)
    frames = {name: Frames.of(table[name]) for name in MODALITIES if name in table.column_names}
    lengths = {"words a text": _quantiles([len(text.split()) for text in table["text"].to_pylist()])}
    if "context" in table.column_names:
        lengths["sentences before it"] = _quantiles([len(said or ()) for said in table["context"].to_pylist()])
    lengths |= {f"{name} rows": _quantiles(f.lengths_N[f.lengths_N > 0]) for name, f in frames.items()}
    return {
        "labels": {
            "lowest": float(label_N.min()),
            "mean": float(label_N.mean()),
            "highest": float(label_N.max()),
            "deviation": float(label_N.std()),
        },
        "histogram": _histogram(label_N, info),
        "groups": [] if info.task == "classification" else _occupancy(label_N, info),
        "lengths": lengths,
        "features": {name: _inspect_frames(f) for name, f in frames.items()},
    }


def _histogram(label_N: np.ndarray[Any, Any], info: TableInfo) -> list[list[Any]]:
    if info.task == "classification":
        return [[value, value, int((label_N == value).sum())] for value in info.label_range]
    counts, edges = np.histogram(label_N, bins=_BINS, range=info.label_range)
    return list(map(list, zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)))


def _occupancy(label_N: np.ndarray[Any, Any], info: TableInfo) -> list[list[Any]]:
    center, limit = info.center, info.half_range
    groups = OrdinalGroups.named(_GROUPS, limit)
    counts = groups.membership(torch.from_numpy(np.clip(label_N - center, -limit, limit))).sum(0).tolist()
    return [
        [left + center, right + center, count] for (left, right), count in zip(groups.intervals, counts, strict=True)
    ]


def _inspect_frames(frames: Frames) -> dict[str, Any]:
    width = frames.width() or 0
    rows = frames.values.reshape(-1, width or 1)
    return {
        "width": width,
        "missing": float((frames.lengths_N == 0).mean()),
        "zeros": float((rows == 0).mean()) if len(rows) else 0.0,
        "constant": int((np.ptp(rows, axis=0) == 0).sum()) if len(rows) else width,
    }


def _quantiles(values: ArrayLike) -> dict[str, float]:
    array = np.asarray(values, dtype=np.float64)
    quantiles = np.quantile(array if len(array) else [0.0], list(_QUANTILES.values()))
    return dict(zip(_QUANTILES, quantiles.tolist(), strict=True))


def _span(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:.2f} to {high:.2f}"
