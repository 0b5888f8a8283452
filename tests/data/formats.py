"""The same utterances in the files of every format that an importer reads, as others write them."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from data.foreign import SPLITS, dumped

from grcf_ray.data.importers import ImportOptions, import_source
from grcf_ray.data.schema import TableInfo

COUNTS = {"train": 4, "dev": 2, "test": 2}
FILLERS = 272
"""Further items of MUStARD, without features: a valid split is drawn from at least 200 rows."""

Files = dict[str, bytes]
Content = Callable[[list["Utterance"]], Any]
Writer = Callable[[random.Random, list["Utterance"]], Files]


@dataclass(frozen=True)
class Utterance:
    """One utterance, with a row of audio and vision for each word."""

    split: str
    id: str
    words: list[str]
    label: float | None
    audio: Any
    vision: Any

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def row(self, *, context: bool) -> dict[str, Any]:
        """The row of an utterance table."""
        features = {name: None if rows is None else rows.tolist() for name, rows in self._modalities()}
        row = {"id": self.id, "split": SPLITS[self.split], "text": self.text, "label": self.label, **features}
        return {**row, "context": [self.text]} if context else row

    def _modalities(self) -> tuple[tuple[str, Any], tuple[str, Any]]:
        return ("audio", self.audio), ("vision", self.vision)


@dataclass(frozen=True)
class Format:
    """A format: its importer, a function that writes utterances in it, and the options to import them."""

    importer: str
    write: Writer
    """The content of the files by name, in any of the ways to write them."""
    options: ImportOptions
    widths: tuple[int, int] = (5, 3)
    """Of audio and vision."""
    context: bool = False

    def utterances(self, counts: dict[str, int] = COUNTS) -> list[Utterance]:
        rng = np.random.default_rng(1)
        classes = self.options.task == "classification"
        utterances = []
        for split, count in counts.items():
            for row in range(count):
                words = ["so", "it", "was", "good"][: 2 + row % 3]
                audio, vision = (_rows(rng, len(words), width) for width in self.widths)
                label = float(row % 2) if classes else row % 6 - 1.0
                utterances.append(Utterance(split, f"{split}{row}[0]", words, label, audio, vision))
        return utterances

    def files(self, rng: random.Random) -> Files:
        return self.write(rng, self.utterances())


def put_files(folder: Path, files: Files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def imported(source: Path, kind: Format, **options: Any) -> tuple[pa.Table, TableInfo]:
    """The table without MUStARD's fillers, and its metadata."""
    table, info = import_source(source, replace(kind.options, **options))
    return table.slice(0, table.num_rows - FILLERS * (kind.importer == "mustard")), info


def check(table: pa.Table, kind: Format, utterances: list[Utterance]) -> None:
    """The table holds exactly these utterances."""
    expected = [utterance.row(context=kind.context) for utterance in utterances]
    rows = table.to_pylist()
    if kind.importer == "mustard":
        # The valid split is drawn from train.
        for row in [*expected, *rows]:
            row["split"] = row["split"].replace("valid", "train")
    assert rows == [{name: row[name] for name in table.column_names} for row in expected]
    assert ("context" in table.column_names) == kind.context


def _rows(rng: np.random.Generator, count: int, width: int) -> Any:
    return rng.normal(size=(count, width)).astype(np.float32)


def _by_split(utterances: Iterable[Utterance], sample: Callable[[Utterance], Any]) -> dict[str, list[Any]]:
    content: dict[str, list[Any]] = {}
    for utterance in utterances:
        content.setdefault(utterance.split, []).append(sample(utterance))
    return content


def _array(label: float | None) -> Any:
    return None if label is None else np.array([[label]], np.float32)


def mag_content(utterances: list[Utterance]) -> dict[str, list[Any]]:
    return _by_split(utterances, lambda item: ((item.words, item.vision, item.audio), _array(item.label), item.id))


def misa_content(utterances: list[Utterance], *, mmim: bool = False) -> dict[str, list[Any]]:
    """Lists of MISA, or of MMIM, whose features have rows of their own."""

    def sample(item: Utterance) -> Any:
        if mmim:
            return ([], item.vision, item.audio[:1], item.words, np.int64(9)), _array(item.label), item.id
        return (np.arange(len(item.words)), item.vision, item.audio, item.words), _array(item.label), item.id

    return _by_split(utterances, sample)


def _misa(rng: random.Random, utterances: list[Utterance]) -> Files:
    content = misa_content(utterances)
    return {f"{split}.pkl": dumped(rows, rng.choice([2, 4, 5])) for split, rows in content.items()}


def mmsa_content(
    utterances: list[Utterance], *, lengths: bool = True, front: bool = False
) -> dict[str, dict[str, Any]]:
    """Columns of arrays, padded at the end or in front to two rows more than the longest has."""
    rows = 2 + max(len(array) for item in utterances for array in (item.audio, item.vision) if array is not None)
    content: dict[str, dict[str, Any]] = {}
    for split, part in _by_split(utterances, lambda utterance: utterance).items():
        columns = content[SPLITS[split]] = {
            "raw_text": [utterance.text for utterance in part],
            "id": [utterance.id for utterance in part],
            "regression_labels": np.array([utterance.label for utterance in part]),
        }
        for name in ("audio", "vision"):
            arrays = [getattr(utterance, name) for utterance in part]
            width = next((array.shape[1] for array in arrays if array is not None), 0)
            if width:
                arrays = [np.zeros((0, width), np.float32) if array is None else array for array in arrays]
                columns[name] = np.zeros((len(part), rows, width), np.float32)
                for padded, array in zip(columns[name], arrays, strict=True):
                    padded[rows - len(array) if front else 0 :][: len(array)] = array
                columns |= {f"{name}_lengths": [len(array) for array in arrays]} if lengths else {}
    return content


def _mmsa(rng: random.Random, utterances: list[Utterance]) -> Files:
    content = mmsa_content(utterances, lengths=rng.random() < 0.7)
    return {"unaligned_50.pkl": dumped(content, rng.choice([2, 4, 5]))}


def hkt_content(utterances: list[Utterance]) -> dict[str, list[Any]]:
    def sample(utterance: Utterance) -> Any:
        unused = np.ones((len(utterance.words), 55))
        visual = None if utterance.vision is None else np.concatenate([unused, utterance.vision], axis=1)
        acoustic = None if utterance.audio is None else np.concatenate([utterance.audio, unused[:, :21]], axis=1)
        context = ([utterance.text], np.ones((3, 91)), np.ones((3, 81)), np.ones((3, 4)))
        return (utterance.text, visual, acoustic, unused[:, :4]), context, utterance.id, utterance.label

    return _by_split(utterances, sample)


def _pickled(name: str, content: Content, protocols: list[Any]) -> Writer:
    return lambda rng, utterances: {name: dumped(content(utterances), rng.choice(protocols))}


def ur_funny_content(utterances: list[Utterance], form: Callable[[str], Any] = str) -> dict[str, Any]:
    """The content of each file. form: makes the ids."""
    named = {form(item.id): item for item in utterances}
    ids = _by_split(utterances, lambda item: form(item.id))
    content: dict[str, Any] = {
        "language_sdk.pkl": {
            name: {"punchline_sentence": item.text, "context_sentences": [item.text]} for name, item in named.items()
        },
        "humor_label_sdk.pkl": {
            name: item.label if item.label is None else int(item.label) for name, item in named.items()
        },
        "data_folds.pkl": {split: ids.get(split, []) for split in COUNTS},
    }
    for modality, file in (("audio", "covarep_features_sdk.pkl"), ("vision", "openface_features_sdk.pkl")):
        arrays = {name: getattr(item, modality) for name, item in named.items()}
        if features := {name: {"punchline_features": rows} for name, rows in arrays.items() if rows is not None}:
            content[file] = features
    return content


def _ur_funny(rng: random.Random, utterances: list[Utterance]) -> Files:
    return {name: dumped(value, rng.choice([0, 2, 4])) for name, value in ur_funny_content(utterances).items()}


def mustard_items(utterances: list[Utterance]) -> dict[str, dict[str, Any]]:
    return {
        item.id: {
            "utterance": item.text,
            "context": [item.text],
            "show": "FRIENDS" if item.split == "test" else "BBT",
            "sarcasm": bool(item.label) if item.label in (0, 1) else item.label,
        }
        for item in utterances
    }


def mustard_folds(utterances: list[Utterance]) -> list[tuple[Any, Any]]:
    """Five folds; the test split of the first has the utterances of the test split."""
    every = np.arange(len(utterances))
    is_test = np.array([item.split == "test" for item in utterances])
    return [(np.setdiff1d(every, test), test) for test in (every[is_test], *np.array_split(every[~is_test], 4))]


def _mustard(rng: random.Random, utterances: list[Utterance]) -> Files:
    fillers = [
        Utterance("train", f"{row % 3}_{row}", ["it", "was", "so", "good"], row % 2, None, None)
        for row in range(FILLERS)
    ]
    files = {
        "sarcasm_data.json": json.dumps(mustard_items([*utterances, *fillers])).encode(),
        "split_indices.p": dumped(mustard_folds([*utterances, *fillers]), rng.choice([2, 4])),
    }
    if audio := {utterance.id: utterance.audio.T for utterance in utterances if utterance.audio is not None}:
        files["audio_features.p"] = dumped(audio, 2)
    if vision := {utterance.id: utterance.vision for utterance in utterances if utterance.vision is not None}:
        files["resnet.hdf5"] = hdf5(vision)
    return files


def hdf5(arrays: dict[str, Any], **how: Any) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **how)
    return buffer.getvalue()


def _csd(rng: random.Random, utterances: list[Utterance]) -> Files:
    """A video for each utterance: a word each half a second, then a pause."""
    roots = {"words": "words", "labels": "Opinion Segment Labels", "vision": "FACET_4.1"}
    roots["audio"] = rng.choice(["COVAREP", "COAVAREP"])
    arrays: dict[str, dict[str, Any]] = {name: {} for name in roots}
    for utterance in utterances:
        starts = np.arange(len(utterance.words) + 1) / 2
        spans = np.stack([starts, starts + 0.5], axis=1)
        label = np.nan if utterance.label is None else utterance.label
        data = {
            "words": (np.array([[word.encode()] for word in [*utterance.words, "sp"]]), spans),
            "labels": (np.array([[label]], np.float64), np.array([[0.0, max(9.0, len(starts))]])),
            "audio": (utterance.audio, spans[:-1]),
            "vision": (utterance.vision, spans[:-1]),
        }
        for name, (features, intervals) in data.items():
            if features is not None:
                at = f"{roots[name]}/data/{utterance.id.partition('[')[0]}"
                arrays[name] |= {f"{at}/features": features, f"{at}/intervals": intervals}
    how = {"compression": "gzip"} if rng.random() < 0.5 else {}
    folds = _by_split(utterances, lambda utterance: utterance.id.partition("[")[0])
    files = {f"{name}.csd": hdf5(content, **how) for name, content in arrays.items() if content}
    return {"folds.json": json.dumps(folds).encode(), **files}


def _columns(utterances: list[Utterance]) -> dict[str, list[Any]]:
    rows = [utterance.row(context=True) for utterance in utterances]
    return {name: [row[name] for row in rows] for name in rows[0]}


def parquet_bytes(table: pa.Table, **how: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **how)
    return file.getvalue()


def arrow_bytes(table: pa.Table, **how: Any) -> bytes:
    """A stream, as Hugging Face's datasets writes it."""
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema, **how) as writer:
        writer.write_table(table)
    return file.getvalue()


def _parquet(rng: random.Random, utterances: list[Utterance]) -> Files:
    how: Any = {"compression": rng.choice(["none", "snappy"]), "use_dictionary": rng.random() < 0.5}
    return {"own.parquet": parquet_bytes(pa.table(_columns(utterances)), **how)}


def _arrow(rng: random.Random, utterances: list[Utterance]) -> Files:
    how = pa.ipc.IpcWriteOptions(compression=rng.choice([None, "lz4", "zstd"]))
    return {"own.arrow": arrow_bytes(pa.table(_columns(utterances)), options=how)}


def _csv(delimiter: str, name: str) -> Writer:
    def write(rng: random.Random, utterances: list[Utterance]) -> Files:
        columns = {
            key: [json.dumps(cell) if isinstance(cell, list) else cell for cell in cells]
            for key, cells in _columns(utterances).items()
        }
        file = io.BytesIO()
        pyarrow.csv.write_csv(pa.table(columns), file, pyarrow.csv.WriteOptions(delimiter=delimiter))
        return {name: file.getvalue()}

    return write


def _json_lines(rng: random.Random, utterances: list[Utterance]) -> Files:
    return {"own.jsonl": "\n".join(json.dumps(utterance.row(context=True)) for utterance in utterances).encode()}


_SCORES = ImportOptions(dataset="own", label_range=(-3, 6), non_finite="zero")
_CLASSES = ImportOptions(dataset="own", task="classification", non_finite="zero")

FORMATS = {
    "mag": Format("mag", _pickled("mosi.pkl", mag_content, [0, 2, 4, 5, "Python 2"]), _SCORES),
    "misa": Format("mag", _misa, _SCORES),
    "mmsa": Format("mmsa", _mmsa, _SCORES),
    "hkt": Format("hkt", _pickled("mustard.pkl", hkt_content, [2, 4, 5]), _CLASSES, (60, 36), context=True),
    "ur_funny": Format("ur_funny", _ur_funny, _CLASSES, (81, 371), context=True),
    "mustard": Format("mustard", _mustard, _CLASSES, context=True),
    "csd": Format("csd", _csd, _SCORES),
    "parquet": Format("table", _parquet, _SCORES, context=True),
    "arrow": Format("table", _arrow, _SCORES, context=True),
    "csv": Format("table", _csv(",", "own.csv"), _SCORES, context=True),
    "semicolons": Format("table", _csv(";", "own.csv"), _SCORES, context=True),
    "tsv": Format("table", _csv("\t", "own.tsv"), _SCORES, context=True),
    "jsonl": Format("table", _json_lines, _SCORES, context=True),
}
