"""Folders of the CMU-MultimodalSDK, and their alignment by a plain loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

FOLDS = {"train": ["v0", "v1"], "valid": ["v2"], "test": ["v3"]}
WORDS, LABELS, AUDIO, VISION = "words.csd", "labels.csd", "audio.csd", "vision.csd"
SPEECH = ["so", "it", "sp", "was", "good", "sp", "not", "at", "all", "sp", "then", "end"]
Array = npt.NDArray[Any]
Entries = dict[str, tuple[Array, Array]]


def write(path: Path, root: str, entries: Mapping[str, tuple[Any, Any]], *, plain: bool = False) -> Path:
    """A computational sequence as the SDK writes it, or `plain`: not compressed, in HDF5's newest layout."""
    with h5py.File(path, "w", libver="latest" if plain else None) as file:
        group = file.create_group(root)
        data = group.create_group("data")
        how = {} if plain else {"compression": "gzip", "compression_opts": 9}
        for video, (features, intervals) in entries.items():
            entry = data.create_group(video)
            entry.create_dataset("features", data=features, **how)
            entry.create_dataset("intervals", data=intervals, **how)
        metadata = group.create_group("metadata")
        for key in ("root name", "computational sequence description", "uuid"):
            metadata.create_dataset(key, (1,), dtype=h5py.special_dtype(vlen=str))[0] = json.dumps(root)
    return path


def write_folds(folder: Path, folds: Mapping[str, list[str]] = FOLDS) -> Path:
    path = folder / "folds.json"
    path.write_text(json.dumps(folds))
    return path


def spans(start: float, count: int, seconds: float) -> Array:
    edges = start + seconds * np.arange(count + 1)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def made_up() -> dict[str, tuple[str, Entries]]:
    """Four videos of three labels each, the last one without vision; words last half a second, a third are pauses."""
    rng = np.random.default_rng(5)
    words, labels, audio, vision = ({} for _ in range(4))
    for number in range(4):
        video, start = f"v{number}", 0.25 * number
        words[video] = (np.array([[word.encode()] for word in SPEECH]), spans(start, 12, 0.5))
        labels[video] = (rng.integers(-6, 7, (3, 1)) / 2, spans(start, 3, 2))
        # Eighths, whose sums are exact. Longer than the words, and 10 rows a second.
        audio[video] = (rng.integers(-80, 80, (70, 5)) / 8, spans(start - 0.5, 70, 0.1))
        if number < 3:
            vision[video] = ((rng.integers(-80, 80, (21, 3)) / 8).astype(np.float32), spans(start + 0.1, 21, 0.3))
    return {
        WORDS: ("words", words),
        LABELS: ("Opinion Segment Labels", labels),
        AUDIO: ("COVAREP", audio),
        VISION: ("FACET_4.1", vision),
    }


def write_all(folder: Path, files: Mapping[str, tuple[str, Entries]], *, plain: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for name, (root, entries) in files.items():
        write(folder / name, root, entries, plain=plain)
    write_folds(folder)
    return folder


def aligned(files: Mapping[str, tuple[str, Entries]], folds: Mapping[str, list[str]] = FOLDS) -> list[dict[str, Any]]:
    """What the table should hold, by a plain loop."""
    words, labels = files[WORDS][1], files[LABELS][1]
    rows = []
    for split, video in ((split, video) for split, videos in folds.items() for video in videos):
        values, times = labels[video]
        for place in sorted(range(len(times)), key=lambda place: times[place][0]):
            low, high = times[place]
            said = [
                (word, start, end)
                for (word,), (start, end) in zip(*words[video], strict=True)
                if low <= (start + end) / 2 < high and word != b"sp"
            ]
            rows.append(
                {
                    "id": f"{video}[{place}]",
                    "split": split,
                    "text": " ".join(word.decode() for word, _, _ in said),
                    "label": float(np.float32(values[place][0])),
                    "audio": means(files[AUDIO][1].get(video), said),
                    "vision": means(files[VISION][1].get(video), said),
                }
            )
    return rows


def means(entry: tuple[Array, Array] | None, said: list[tuple[bytes, float, float]]) -> list[list[float]] | None:
    if entry is None or not said:
        return None
    rows = []
    for _, start, end in said:
        over = [row for row, (low, high) in zip(*entry, strict=True) if min(high, end) - max(low, start) > 1e-5]
        rows.append([float(np.float32(sum(column) / len(column))) for column in zip(*over, strict=True)])
    return rows
