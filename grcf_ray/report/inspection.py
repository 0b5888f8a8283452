"""What an imported data set holds: the figures first, then as text, and as a page that needs nothing else.

The test split stays closed; of it only the number of its utterances is shown, which the store's index has.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike

from grcf_ray.console import print_table, printable, say
from grcf_ray.data.frames import Frames
from grcf_ray.data.schema import MODALITIES, TableInfo
from grcf_ray.data.store import DatasetStore
from grcf_ray.losses.groups import OrdinalGroups

OPEN_SPLITS = ("train", "valid")
_GROUPS = "overlap,5"
_BINS = 13
_BAR = 40
_QUANTILES = {"least": 0.0, "median": 0.5, "95 %": 0.95, "most": 1.0}
_LENGTHS_HEADER = ("split", "of", *_QUANTILES)
_FEATURES_HEADER = ("split", "modality", "values a row", "without it", "zeros", "constant columns")


def read_open(store: DatasetStore) -> dict[str, pa.Table]:
    """The rows of train and valid."""
    return {split: store.read(split) for split in OPEN_SPLITS}


def inspect_store(store: DatasetStore, tables: Mapping[str, pa.Table] | None = None) -> dict[str, Any]:
    """Everything that is shown, as plain data. tables: what `read_open` gave, where it is at hand.

    `splits`: utterances of each. For train and valid: `labels` (lowest, mean, highest, deviation), `histogram` and
    `groups` (each a list of low edge, high edge, utterances), `lengths` (quantiles of words a text, of sentences before
    it and of rows of each modality) and `features` (of each modality: width, share of utterances without it, of zeros
    among its values, and columns that never change).
    """
    info = store.info
    tables = tables or read_open(store)
    return {
        "name": info.name,
        "task": info.task,
        "label_range": list(info.label_range),
        "splits": dict(info.splits),
        "notes": list(info.notes),
        **{split: _inspect_split(table, info) for split, table in tables.items()},
    }


def print_inspection(found: Mapping[str, Any]) -> None:
    """The figures on standard output."""
    for split in OPEN_SPLITS:
        part = found[split]
        most = max((count for *_, count in part["histogram"]), default=0)
        say(f"\nlabels of {split}")
        for low, high, count in part["histogram"]:
            bar = "█" * round(_BAR * count / max(1, most))
            say(f"{_span(low, high):>16}  {count:>6}  {bar}".rstrip())
    say("\nlengths")
    print_table(_LENGTHS_HEADER, _lengths(found))
    if features := _features(found):
        say("\nfeatures")
        print_table(_FEATURES_HEADER, features)
    if found["train"]["groups"]:
        say(f"\nordinal groups ({_GROUPS}), which overlap")
        spans = [_span(low, high) for low, high, _ in found["train"]["groups"]]
        counts = [[str(count) for *_, count in found[split]["groups"]] for split in OPEN_SPLITS]
        print_table(("labels", *OPEN_SPLITS), list(zip(spans, *counts, strict=True)))


def draw_inspection(found: Mapping[str, Any]) -> str:
    """The figures as one HTML page."""
    sizes = ", ".join(f"{count} {split}" for split, count in found["splits"].items())
    notes = "".join(f"<li>{html.escape(printable(note))}</li>" for note in found["notes"])
    charts = []
    for split in OPEN_SPLITS:
        charts.append(_bars(f"Labels of {split}", found[split]["histogram"]))
        if found[split]["groups"]:
            charts.append(_bars(f"Ordinal groups of {split} ({_GROUPS}, which overlap)", found[split]["groups"]))
    body = [
        f"<h1>{html.escape(found['name'])}</h1>",
        f"<p>{found['task']}, labels {_span(*found['label_range'])}; utterances: {sizes}. Test stays closed.</p>",
        f"<ul>{notes}</ul>" if notes else "",
        *charts,
        "<h2>Lengths</h2>",
        _table(_LENGTHS_HEADER, _lengths(found)),
    ]
    if features := _features(found):
        body += ["<h2>Features</h2>", _table(_FEATURES_HEADER, features)]
    return _PAGE.format(title=html.escape(found["name"]), body="\n".join(body))


def _lengths(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (split, what, *(f"{value:g}" for value in quantiles.values()))
        for split in OPEN_SPLITS
        for what, quantiles in found[split]["lengths"].items()
    ]


def _features(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (split, name, str(f["width"]), f"{f['missing']:.1%}", f"{f['zeros']:.1%}", str(f["constant"]))
        for split in OPEN_SPLITS
        for name, f in found[split]["features"].items()
    ]


def _inspect_split(table: pa.Table, info: TableInfo) -> dict[str, Any]:
    label_N = np.round(table["label"].to_numpy().astype(np.float64), 4)
    low, high = info.label_range
    columns = [name for name in MODALITIES if name in table.column_names]
    frames = {name: Frames.of(table[name]) for name in columns}
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
        "histogram": _histogram(label_N, low, high, classes=info.task == "classification"),
        "groups": [] if info.task == "classification" else _occupancy(label_N, low, high),
        "lengths": lengths,
        "features": {name: _inspect_frames(f) for name, f in frames.items()},
    }


def _histogram(label_N: np.ndarray[Any, Any], low: float, high: float, *, classes: bool) -> list[list[Any]]:
    if classes:
        return [[value, value, int((label_N == value).sum())] for value in (low, high)]
    counts, edges = np.histogram(label_N, bins=_BINS, range=(low, high))
    return [
        [float(left), float(right), int(count)]
        for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _occupancy(label_N: np.ndarray[Any, Any], low: float, high: float) -> list[list[Any]]:
    center, limit = (low + high) / 2, (high - low) / 2
    groups = OrdinalGroups.named(_GROUPS, limit)
    counts = groups.membership(torch.from_numpy(np.clip(label_N - center, -limit, limit))).sum(0).tolist()
    return [
        [left + center, right + center, count] for (left, right), count in zip(groups.intervals, counts, strict=True)
    ]


def _inspect_frames(frames: Frames) -> dict[str, Any]:
    width = frames.width() or 0
    rows = frames.values.reshape(-1, width) if width else frames.values.reshape(0, 1)
    constant = int((np.ptp(rows, axis=0) == 0).sum()) if len(rows) else width
    return {
        "width": width,
        "missing": float((frames.lengths_N == 0).mean()),
        "zeros": float((rows == 0).mean()) if len(rows) else 0.0,
        "constant": constant,
    }


def _quantiles(values: ArrayLike) -> dict[str, float]:
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return dict.fromkeys(_QUANTILES, 0.0)
    return {name: float(np.quantile(array, share)) for name, share in _QUANTILES.items()}


def _span(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:.2f} to {high:.2f}"


def _bars(title: str, bins: Sequence[Sequence[float]]) -> str:
    """A bar chart as SVG, of which a screen reader gets the title."""
    most = max((count for *_, count in bins), default=0) or 1
    height, step = 140, 46
    bars = []
    for index, (low, high, count) in enumerate(bins):
        tall = height * count / most
        middle = index * step + step / 2
        bars.append(
            f'<rect x="{index * step + 3}" y="{height - tall + 20:.1f}" width="{step - 6}" height="{tall:.1f}"/>'
            f'<text x="{middle}" y="{height - tall + 14:.1f}">{int(count)}</text>'
            f'<text x="{middle}" y="{height + 36}">{(low + high) / 2:.3g}</text>'
        )
    width = step * len(bins)
    return (
        f"<h2>{html.escape(title)}</h2>"
        f'<div class="chart"><svg role="img" aria-label="{html.escape(title)}" viewBox="0 0 {width} {height + 44}" '
        f'width="{width}">{"".join(bars)}</svg></div>'
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="chart"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: light-dark(#1c1c1c, #e8e8e8); --bar: light-dark(#2f6fab, #7ab3e8); }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 46rem; margin: 2rem auto; }}
body {{ padding: 0 1rem; }}
h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
.chart {{ overflow-x: auto; }}
svg {{ max-width: 100%; height: auto; }}
rect {{ fill: var(--bar); }}
svg text {{ fill: var(--ink); font-size: 11px; text-anchor: middle; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: 0.2rem 0.9rem 0.2rem 0; border-bottom: 1px solid #8884; }}
</style>
<body>
{body}
</body>
</html>
"""
