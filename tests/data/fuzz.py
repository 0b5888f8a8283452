"""Damage to the files of every importer, at random but seeded, and what each import makes of it.

An import must end with a table or a DataError, in little time and memory, and a table must have the modalities that
the whole files have, unless a note tells what became of them. Imports run in processes of their own, whose memory and
processor time are limited. By hand, for more of them: `python -m data.fuzz COUNT [FORMAT ...]` in `tests`.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from data.foreign import DOWNLOADS, STRANGE, dumped

from grcf_ray.data.importers import ImportOptions, import_source
from grcf_ray.errors import DataError

SPLITS = {"train": 4, "dev": 2, "test": 2}
MOST_SECONDS = 60
"""Of processor time for one import; the slowest take a tenth of one."""
MOST_BYTES = 1 << 30
"""Of address space beyond what the process has when it begins."""

Files = dict[str, bytes]


@dataclass(frozen=True)
class Format:
    """The files of a format, as others write them."""

    files: Callable[[random.Random], Files]
    """By name; whole ones, of any of the ways to write them."""
    options: ImportOptions


def _rows(rng: np.random.Generator, count: int, width: int) -> Any:
    return rng.normal(size=(count, width)).astype(np.float32)


def _samples() -> Iterator[tuple[str, str, list[str], Any, Any, float]]:
    """Split, id, words, audio and vision with a row for each word, label."""
    rng = np.random.default_rng(1)
    for split, count in SPLITS.items():
        for row in range(count):
            words = ["so", "it", "was", "good"][: 2 + row % 3]
            yield split, f"{split}[{row}]", words, _rows(rng, len(words), 5), _rows(rng, len(words), 3), row - 1.0


def _mag(rng: random.Random) -> Files:
    content: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for split, name, words, audio, vision, label in _samples():
        content[split].append(((words, vision, audio), np.array([[label]], np.float32), name))
    return {"mosi.pkl": dumped(content, rng.choice([0, 2, 4, 5, "Python 2"]))}


def _misa(rng: random.Random) -> Files:
    content: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for split, name, words, audio, vision, label in _samples():
        content[split].append(((np.arange(len(words)), vision, audio, words), np.array([[label]], np.float32), name))
    return {f"{split}.pkl": dumped(rows, rng.choice([2, 4, 5])) for split, rows in content.items()}


def _mmsa(rng: random.Random) -> Files:
    content: dict[str, Any] = {}
    for split, name, words, audio, vision, label in _samples():
        columns = content.setdefault({"dev": "valid"}.get(split, split), {})
        for key, value in (("raw_text", " ".join(words)), ("id", name), ("regression_labels", label)):
            columns.setdefault(key, []).append(value)
        for key, rows in (("audio", audio), ("vision", vision)):
            columns.setdefault(key, []).append(np.pad(rows, ((0, 6 - len(rows)), (0, 0))))
            columns.setdefault(f"{key}_lengths", []).append(len(rows))
    for columns in content.values():
        columns |= {key: np.stack(columns[key]) for key in ("audio", "vision")}
        columns["regression_labels"] = np.array(columns["regression_labels"])
        if rng.random() < 0.3:
            del columns["audio_lengths"], columns["vision_lengths"]
    return {"unaligned_50.pkl": dumped(content, rng.choice([2, 4, 5]))}


def _hkt(rng: random.Random) -> Files:
    made = np.random.default_rng(2)
    content: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for split, name, words, _, _, label in _samples():
        part = (" ".join(words), _rows(made, 3, 91), _rows(made, 3, 81), _rows(made, 3, 4))
        content[split].append((part, ([part[0]], *part[1:]), name, int(label > 0)))
    return {"mustard.pkl": dumped(content, rng.choice([2, 4, 5]))}


def _ur_funny(rng: random.Random) -> Files:
    made = np.random.default_rng(3)
    files: dict[str, dict[Any, Any]] = {
        name: {} for name in ("language_sdk", "humor_label_sdk", "covarep_features_sdk", "openface_features_sdk")
    }
    folds: dict[str, list[int]] = {split: [] for split in SPLITS}
    for number, (split, _, words, _, _, label) in enumerate(_samples()):
        folds[split].append(number)
        sentence = " ".join(words)
        files["language_sdk"][number] = {"punchline_sentence": sentence, "context_sentences": [sentence]}
        files["humor_label_sdk"][number] = int(label > 0)
        for name, width in (("covarep_features_sdk", 81), ("openface_features_sdk", 371)):
            features = {f"{part}_features": _rows(made, 2, width) for part in ("punchline", "context")}
            files[name][number] = features
    return {
        f"{name}.pkl": dumped(value, rng.choice([0, 2, 4])) for name, value in (files | {"data_folds": folds}).items()
    }


def _mustard(rng: random.Random) -> Files:
    # As many as a draw of a valid split needs.
    items = {
        f"{row % 3}_{row}": {
            "utterance": "it was so good",
            "context": ["so", "it was"],
            "show": "FRIENDS" if row % 10 == 0 else "BBT",
            "sarcasm": row % 2 == 0,
        }
        for row in range(280)
    }
    made = np.random.default_rng(4)
    few = list(items)[:8]
    folds = [(np.r_[: 28 * k, 28 * k + 28 : 280], np.arange(28 * k, 28 * k + 28)) for k in range(5)]
    video = io.BytesIO()
    with h5py.File(video, "w") as file:
        for name in few:
            file.create_dataset(name, data=_rows(made, 2, 4))
    return {
        "sarcasm_data.json": json.dumps(items).encode(),
        "split_indices.p": dumped(folds, rng.choice([2, 4])),
        "audio_features.p": dumped({name: _rows(made, 7, 3 + row % 2) for row, name in enumerate(few)}, 2),
        "resnet.hdf5": video.getvalue(),
    }


def _csd(rng: random.Random) -> Files:
    made = np.random.default_rng(5)
    kinds: dict[str, tuple[str, Callable[[], Any], int]] = {
        "words.csd": ("words", lambda: np.array([[b"so"], [b"sp"], [b"it"], [b"was"]] * 2), 8),
        "labels.csd": ("Opinion Segment Labels", lambda: made.integers(-3, 4, (2, 1)).astype(float), 2),
        "audio.csd": (rng.choice(["COVAREP", "COAVAREP"]), lambda: _rows(made, 16, 74), 16),
        "vision.csd": (rng.choice(["FACET_4.1", "renamed"]), lambda: _rows(made, 16, 35), 16),
    }
    files: Files = {"folds.json": b'{"train": ["v0", "v1"], "valid": ["v2"], "test": ["v3"]}'}
    for name, (root, features, count) in kinds.items():
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            how = {"compression": "gzip"} if rng.random() < 0.5 else {}
            for video in range(4):
                edges = np.linspace(0, 4, count + 1)
                spans = np.stack([edges[:-1], edges[1:]], axis=1)
                for part, data in (("features", features()), ("intervals", spans)):
                    file.create_dataset(f"{root}/data/v{video}/{part}", data=data, **how)
        files[name] = buffer.getvalue()
    return files


def _columns() -> dict[str, Any]:
    found: dict[str, list[Any]] = {name: [] for name in ("id", "split", "text", "label", "audio", "vision", "context")}
    for split, name, words, audio, vision, label in _samples():
        row = (name, split, " ".join(words), label, audio.tolist(), vision.tolist(), words)
        for cells, cell in zip(found.values(), row, strict=True):
            cells.append(cell)
    return found


def _parquet(rng: random.Random) -> Files:
    file = io.BytesIO()
    how = {"compression": rng.choice(["none", "snappy"]), "use_dictionary": rng.random() < 0.5}
    pq.write_table(pa.table(_columns()), file, **how)
    return {"own.parquet": file.getvalue()}


def _csv(delimiter: str, name: str) -> Callable[[random.Random], Files]:
    def write(rng: random.Random) -> Files:
        written = {
            key: [json.dumps(c) if isinstance(c, list) else c for c in cells] for key, cells in _columns().items()
        }
        file = io.BytesIO()
        pyarrow.csv.write_csv(pa.table(written), file, pyarrow.csv.WriteOptions(delimiter=delimiter))
        return {name: file.getvalue()}

    return write


def _json_lines(rng: random.Random) -> Files:
    return {"own.jsonl": "\n".join(map(json.dumps, pa.table(_columns()).to_pylist())).encode()}


def _options(*, classes: bool = False, variant: str = "") -> ImportOptions:
    return ImportOptions(
        dataset="own",
        label_range=(0, 1) if classes else (-3, 3),
        task="classification" if classes else None,
        non_finite="zero",
        variant=variant,
    )


FORMATS = {
    "mag": Format(_mag, _options()),
    "misa": Format(_misa, _options()),
    "mmsa": Format(_mmsa, _options()),
    "hkt": Format(_hkt, _options(classes=True)),
    "ur_funny": Format(_ur_funny, _options(classes=True)),
    "mustard": Format(_mustard, _options(classes=True)),
    "csd": Format(_csd, _options()),
    "parquet": Format(_parquet, _options()),
    "csv": Format(_csv(",", "own.csv"), _options()),
    "tsv": Format(_csv("\t", "own.tsv"), _options()),
    "jsonl": Format(_json_lines, _options()),
}


def damaged(files: Files, rng: random.Random) -> tuple[Files, str]:
    """The files, one of them with something wrong, and what that is."""
    name = rng.choice(list(files))
    content = bytearray(files[name])
    ways = ["flip", "flip", "letters", "cut", "hole", "insert", "twice", "zeros", "download", "empty", "join", "swap"]
    way = rng.choice([*ways, "value", "value", "value", "value"])
    head = min(len(content), rng.choice([300, 2000, 10**9]))
    at = rng.randrange(head)
    size = rng.choice([1, 2, 8, 64])
    if way == "flip":
        for _ in range(rng.choice([1, 4, 40])):
            content[rng.randrange(head)] ^= 1 << rng.randrange(8)
    elif way == "letters":
        # Names and numbers stand in letters, and other bytes seldom make another name.
        places = [place for place, byte in enumerate(content) if chr(byte).isascii() and chr(byte).isalnum()]
        for place in rng.sample(places, min(len(places), rng.choice([1, 4]))):
            content[place] = ord(rng.choice("aeosxR019"))
    elif way == "cut":
        del content[at:]
    elif way == "hole":
        del content[at : at + size]
    elif way == "insert":
        content[at:at] = rng.randbytes(size)
    elif way == "twice":
        content[at:at] = content[at : at + size]
    elif way == "zeros":
        content[at : at + size] = bytes(len(content[at : at + size]))
    elif way == "download":
        content[:] = rng.choice([*DOWNLOADS.values(), b"not found", b"{}", b"\x80\x04N.", b"[]"])
    elif way == "empty":
        content[:] = b"\n" * rng.randrange(2)
    elif way == "join":
        content += files[rng.choice(list(files))]
    elif way == "swap":
        content[:] = files[rng.choice(list(files))]
    else:
        changed = _with_another_value(name, bytes(content), rng)
        content[:] = changed
    return {**files, name: bytes(content)}, f"{way} {name}"


def _with_another_value(name: str, content: bytes, rng: random.Random) -> bytes:
    """A file that holds something else in one place, left out or there twice, written as its own kind."""
    if content.startswith(b"\x89HDF"):
        return _other_hdf5(content, rng)
    if name.endswith(".parquet"):
        table = pa.Table.from_pydict(_columns())
        return _other_parquet(table, rng)
    if name.endswith((".json", ".jsonl")):
        lines = [content] if name.endswith(".json") else content.splitlines()
        row = rng.randrange(len(lines))
        value = json.loads(lines[row])
        _change(value, [None, "x", 7, 1.5, True, [], {}, [[]], [[None]], {"a": 1}, 10**30, float("nan"), "\ud800"], rng)
        return b"\n".join([*lines[:row], json.dumps(value).encode(), *lines[row + 1 :]])
    if name.endswith((".csv", ".tsv")):
        lines = content.splitlines()
        row = rng.randrange(len(lines))
        cells = lines[row].split(b"," if name.endswith("csv") else b"\t")
        cells[rng.randrange(len(cells))] = rng.choice(
            [b"", b"x", b"nan", b"1e999", b'""', b'"', b"[[1]]", b"\xff", b"\x00"]
        )
        return b"\n".join([*lines[:row], b",".join(cells), *lines[row + 1 :]])
    value = pickle.loads(content, encoding="latin-1")
    _change(value, STRANGE, rng)
    return dumped(value, rng.choice([0, 2, 4, 5]))


def _change(value: Any, strange: list[Any], rng: random.Random) -> None:
    """Put something strange in a place within lists and dicts and in what tuples and arrays these hold."""
    while True:
        if isinstance(value, dict):
            keys: list[Any] = list(value)
        else:
            keys = list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = value[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.7:
            value = inner
            continue
        if isinstance(inner, tuple) and inner and rng.random() < 0.8:
            inner = list(inner)
            _change(inner, strange, rng)
            value[key] = tuple(inner)
            return
        way = rng.choice(["other", "other", "out", "array"])
        if way == "out":
            del value[key]
        elif way == "array" and isinstance(inner, np.ndarray) and inner.size:
            shapes = [inner[:1], inner[:0], inner.T, inner * 0, inner.astype(str), inner.astype(object), inner[..., :1]]
            value[key] = rng.choice(shapes)
        else:
            value[key] = rng.choice(strange)
        return


def _other_hdf5(content: bytes, rng: random.Random) -> bytes:
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        way = rng.choice(["out", "move", "data", "group", "link", "twice"])
        if way == "move":
            file.move(name, rng.choice([f"{name}x", f"{name.rpartition('/')[0]}/renamed".strip("/"), "other"]))
        elif way == "twice":
            file[f"{name}x"] = file[name]
        else:
            del file[name]
            if way == "data":
                kinds = [np.ones(3), np.ones((3, 2)), np.ones((0, 74)), b"x", np.full((3, 1), np.nan), np.arange(9)]
                file.create_dataset(name, data=rng.choice(kinds))
            elif way == "group":
                file.create_group(name)
            elif way == "link":
                file[name] = rng.choice([h5py.SoftLink("/"), h5py.ExternalLink("audio.csd", "/")])
    return buffer.getvalue()


def _other_parquet(table: pa.Table, rng: random.Random) -> bytes:
    at = rng.randrange(table.num_columns)
    name = table.column_names[at]
    strange: list[Any] = [
        pa.array(cells * table.num_rows, kind)
        for cells, kind in (
            ([None], pa.null()),
            (["x"], pa.string()),
            ([7], pa.int8()),
            ([[]], pa.list_(pa.list_(pa.float32()))),
            ([[[]]], pa.list_view(pa.list_(pa.float16()))),
            ([[[1, 2]]], pa.list_view(pa.list_view(pa.float64()))),
            ([{"a": 1}], pa.struct({"a": pa.int8()})),
            ([b"\xff"], pa.binary()),
            ([True], pa.bool_()),
        )
    ]
    way = rng.choice(["other", "other", "out", "name", "twice"])
    # Without one of the columns that need not be there it is a whole table of other data.
    if way == "out" and name not in ("audio", "vision", "context"):
        table = table.drop_columns([name])
    elif way == "name":
        table = table.rename_columns([f"{one}x" if one == name else one for one in table.column_names])
    elif way == "twice":
        table = table.append_column(name, table[name])
    else:
        table = table.set_column(at, name, rng.choice(strange))
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def outcome(name: str, seed: int, folder: Path) -> tuple[str, str]:
    """What becomes of one import, and more of it: `imported` or `refused`, else what is wrong."""
    rng = random.Random(f"{name} {seed}")
    kind = FORMATS[name]
    whole = kind.files(rng)
    files, told = damaged(whole, rng)
    try:
        found, notes = imported(folder / "damaged", files, kind.options)
    except DataError as error:
        text = str(error)
        text.encode()
        # Its own bounds name a file; what Python or a library says of memory means that there was no bound.
        return ("memory" if "MemoryError" in text or "nable to allocate" in text else "refused"), f"{told}: {text}"
    except Exception as error:
        return "traceback", f"{told}: {type(error).__name__}: {error}"
    before, said = imported(folder / "whole", whole, kind.options)
    news = [note for note in notes if note not in said]
    for modality, count in before.items():
        if modality == "rows":
            continue
        if found.get(modality, 0) < count and not any(modality in note or "not used" in note for note in news):
            rows = "rows lost" if found.get(modality, 0) else "lost"
            # A sample that is left out as a whole takes its modalities with it.
            if rows == "lost" or found.get("rows") == before["rows"]:
                return rows, f"{told}: {modality} {count} -> {found.get(modality, 0)}; {notes}"
    return "imported", told


def imported(folder: Path, files: Files, options: ImportOptions) -> tuple[dict[str, int], tuple[str, ...]]:
    """How many utterances have each modality, and how many there are; and the notes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    table, info = import_source(folder, options)
    table.validate(full=True)
    names = ("audio", "vision")
    counts = {name: len(table) - table[name].null_count for name in names if name in table.column_names}
    return {**counts, "rows": len(table)}, info.notes


def run(count: int, names: list[str]) -> Iterator[tuple[str, int, str, str]]:
    """Format, seed, outcome and more of it for `count` damaged sets of files of each format."""
    for name in names:
        seed = 0
        while seed < count:
            child = subprocess.run(
                [sys.executable, "-m", "data.fuzz", "--child", name, str(seed), str(count)],
                cwd=Path(__file__).parents[1],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parents[1], *sys.path)))},
            )
            for line in child.stdout.splitlines():
                told = json.loads(line)
                yield name, seed, told[0], told[1]
                seed += 1
            if child.returncode:
                yield name, seed, "died", f"{child.returncode}: {child.stderr[-500:]}"
                seed += 1


def _child(name: str, start: int, stop: int) -> None:
    """Tell the outcome of each seed in a line; a limit that is passed ends the process."""
    with tempfile.TemporaryDirectory() as folder:
        # Whatever libraries load when they are first used counts to the process, not to a file.
        outcome(name, 0, Path(folder))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        for seed in range(start, stop):
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            print(json.dumps(outcome(name, seed, Path(folder))), flush=True)


def main(arguments: list[str]) -> None:
    """Tell what came of all, and each that should not have."""
    if arguments[0] == "--child":
        _child(arguments[1], int(arguments[2]), int(arguments[3]))
        return
    table: dict[str, Counter[str]] = {}
    for name, seed, what, more in run(int(arguments[0]), arguments[1:] or list(FORMATS)):
        table.setdefault(name, Counter())[what] += 1
        if what not in ("imported", "refused"):
            print(f"{name} {seed} {what}: {more[:600]}", flush=True)
    for name, counts in table.items():
        print(name, dict(counts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
