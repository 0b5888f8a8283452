"""Import UR-FUNNY v2 as its authors publish it: punchlines of talks, humorous or not, each with its context.

Five pickles, recognised by their content, are dicts by the id of a sample, a number or a text: `language_sdk`
{punchline_sentence, context_sentences}, `humor_label_sdk` 0 or 1, `covarep_features_sdk` and `openface_features_sdk`
{punchline_features [rows, values]}; and `data_folds`, the ids of train, dev and test. Either modality may be missing.
Features of the context are not read. Features of a punchline do not count as aligned to words: their rows are of
words that may differ from those between the spaces of its sentence.

A source is a folder, or one of these files, which stands for its folder.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from grcf_ray.console import Progress
from grcf_ray.data.cells import Cells, class_of, id_of, kind_of, shown, text_of, texts_of
from grcf_ray.data.frames import Frames, Rows, joined
from grcf_ray.data.raw import RawTable, typed_arrays
from grcf_ray.data.schema import MODALITIES
from grcf_ray.data.sniff import check_kind, files_by_kind, folder_faults, folder_of, pickle_start
from grcf_ray.data.splits import SPLIT_ALIASES
from grcf_ray.data.unpickle import read_pickle
from grcf_ray.data.validation import Fault
from grcf_ray.errors import DataError, collect_error, data_error

VARIANTS: dict[str, str] = {}

_KINDS = {
    "language": "texts (language_sdk.pkl)",
    "labels": "labels (humor_label_sdk.pkl)",
    "folds": "folds (data_folds.pkl)",
    "features": "features",
}
_NEEDED = ("language", "labels", "folds")
_FOLDS = ("train", "dev", "test")
_PARTS = ("punchline", "context")
_FEATURES = {json.dumps(f"{part}_features") for part in _PARTS}
_LANGUAGE = {json.dumps(f"{part}_{what}") for part in _PARTS for what in ("embedding_indexes", "intervals")}
_LANGUAGE |= {'"punchline_sentence"', '"context_sentences"'}
_AUDIO_WIDTH, _VISION_WIDTH = 81, 371
_MOVE = "download it again, or move it out of the folder to import without these features"
_ORIGIN = "get it from https://github.com/ROC-HCI/UR-FUNNY"


@dataclass(frozen=True)
class _Sequences:
    """The feature rows of a file, and the fault of each malformed sample by row of the table."""

    path: Path
    frames: Frames
    width: int
    problems: Mapping[int, str]


def files(source: Path) -> list[Path]:
    """List the pickles of UR-FUNNY in a source; labels alone or folds alone do not identify the format."""
    return [path for paths in _recognised(source).values() for path in paths]


def read(source: Path, variant: str = "") -> RawTable:
    """Read the samples of the folds, in their order; DataError names every file that is missing or damaged."""
    by_kind = _recognised(source)
    problems = _file_faults(source, by_kind)
    language, labels, folds = (by_kind[kind][0] for kind in _NEEDED)
    cells = Cells()
    names = collect_error(problems, _read_folds, folds) or {}
    ids = [name for fold in names.values() for name in fold]
    columns: dict[str, list[Any]] = {"id": ids}
    columns["split"] = [SPLIT_ALIASES[fold] for fold in names for _ in names[fold]]
    columns |= collect_error(problems, _read_language, language, ids, cells) or {}
    labelled = collect_error(problems, _read_samples, labels) or {}
    columns["label"] = [
        cells.read("label", "label", labelled.get(name), class_of, "0 or 1") for name in cells.each(ids)
    ]
    sequences = [collect_error(problems, _read_sequences, path, ids) for path in by_kind["features"]] if ids else []
    roles = {} if problems else collect_error(problems, _roles, sequences) or {}
    if problems:
        raise data_error(source, problems, named=True)
    table = typed_arrays(columns)
    for name, modality in roles.items():
        cells.faults += [Fault(row, name, f"{name} {problem}") for row, problem in modality.problems.items()]
        table[name] = modality.frames.to_arrow()
    return RawTable(
        table=pa.table(table),
        files=((language, len(ids)), *((path, 0) for path in (labels, folds, *by_kind["features"]))),
        faults=tuple(cells.faults),
        notes=(*_left_out(labelled, ids), *_modality_notes(roles)),
        splits=tuple((SPLIT_ALIASES[fold], len(names[fold])) for fold in names),
    )


def _recognised(source: Path) -> dict[str, list[Path]]:
    """Return the files of each kind; an empty dict for a file of no kind, and for labels or folds alone."""
    by_kind = files_by_kind(source, _kind, _KINDS)
    present = {kind for kind, paths in by_kind.items() if paths}
    if present <= {"labels"} or present <= {"folds"}:
        return {}
    if not (source.is_dir() or any(source in paths for paths in by_kind.values())):
        return {}
    return {kind: [source] if source in paths and kind != "features" else paths for kind, paths in by_kind.items()}


def _kind(path: Path) -> str:
    """Return the kind that a file may be, or an empty text."""
    start = pickle_start(path)
    if len(start) < 3 or start[0] != "dict" or not _is_id(start[1]):
        return ""
    if start[2] == "dict":
        if _LANGUAGE.intersection(start):
            return "language"
        # A language file begins with the words of a sentence, other files with numbers.
        numbers = any(token == "float" or token.startswith("numpy.") for token in start)
        return ("features" if numbers else "language") if _FEATURES.intersection(start[3:4]) else ""
    if start[2] == "list":
        # Files of HKT have a sample, a text and an array, in place of the id.
        return "folds" if start[1] in map(json.dumps, _FOLDS) and all(map(_is_id, start[3:5])) else ""
    return "labels" if start[2] in ("int", "float") or start[2].endswith(".scalar") else ""


def _is_id(token: str) -> bool:
    return token == "int" or token.startswith('"')


def _file_faults(source: Path, by_kind: Mapping[str, Sequence[Path]]) -> list[str]:
    """List the faults of the unused files in the folder; DataError if a kind is missing or has too many files."""
    if not by_kind:
        if source.is_file():
            check_kind(source)
        raise DataError(
            f"{source}: not the pickles of UR-FUNNY, such as {' or '.join(_KINDS[kind] for kind in _NEEDED)}"
        )
    count = len(by_kind["features"])
    unused = f"not UR-FUNNY's, while the folder has {count} of 2 files of features: {_MOVE}" if count < 2 else ""
    problems = folder_faults(folder_of(source), list(itertools.chain(*by_kind.values())), unused=unused)
    missing = [_KINDS[kind] for kind in _NEEDED if not by_kind[kind]]
    if missing:
        names = ", ".join(f"{path.name} ({kind})" for kind, paths in by_kind.items() for path in paths)
        problems.append(f"{source}: no file of UR-FUNNY's {' and '.join(missing)}: {_ORIGIN}. Found: {names}")
    limits = {**dict.fromkeys(_NEEDED, 1), "features": 2}
    if many := next((kind for kind in _KINDS if len(by_kind[kind]) > limits[kind]), None):
        names = ", ".join(path.name for path in by_kind[many])
        problems.append(f"{source}: too many files of UR-FUNNY's {_KINDS[many]} ({names}). Keep {limits[many]}")
    if missing or many:
        raise data_error(source, problems, named=True)
    return problems


def _read_folds(path: Path) -> dict[str, list[str]]:
    content = read_pickle(path)
    if not isinstance(content, dict) or set(content) != set(_FOLDS):
        raise DataError(f"{path}: not folds, a dict of {', '.join(_FOLDS)}")
    folds = {}
    for fold in _FOLDS:
        ids = texts_of(content[fold], _id)
        if ids is None:
            raise DataError(f"{path}: {fold} is not a list of ids, which are whole numbers or texts")
        folds[fold] = ids
    return folds


def _read_samples(path: Path) -> dict[str, Any]:
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: {kind_of(content)}, not a dict by id")
    samples: dict[str, Any] = {}
    for key, value in content.items():
        name = _id(key)
        if name is None or name in samples:
            problem = "occurs twice, as a number and as a text" if name else "is neither a whole number nor a text"
            raise DataError(f"{path}: the id {shown(key)} {problem}")
        samples[name] = value
    return samples


def _id(key: Any) -> str | None:
    return id_of(key) or None


def _read_language(path: Path, ids: Sequence[str], cells: Cells) -> dict[str, list[Any]]:
    samples = _read_samples(path)
    if not any(isinstance(sample, dict) and "punchline_sentence" in sample for sample in samples.values()):
        raise DataError(f"{path}: no punchline_sentence: UR-FUNNY's version 1 has no texts, so download version 2")
    columns: dict[str, list[Any]] = {"text": [], "context": []}
    for name in cells.each(ids):
        text = context = None
        sample = samples.get(name, {})
        if not isinstance(sample, dict):
            cells.fault("text", f"the sample is {kind_of(sample)}, not a dict of sentences")
        elif name not in samples:
            cells.fault("text", f"{path.name} does not have this id")
        else:
            punchline, sentences = map(sample.get, ("punchline_sentence", "context_sentences"))
            text = cells.read("text", "punchline_sentence", punchline, _sentence, "a text")
            context = cells.texts("context", "context_sentences", sentences, _sentence)
        columns["text"].append(text)
        columns["context"].append(context)
    return columns


def _sentence(value: Any) -> str | None:
    """Return a text, given whole or as a list of words, as in the authors' description."""
    if isinstance(value, (list, tuple)):
        words = texts_of(value)
        return None if words is None else " ".join(filter(None, words))
    return text_of(value)


def _read_sequences(path: Path, ids: Sequence[str]) -> _Sequences:
    samples = _read_samples(path)
    if samples.keys().isdisjoint(ids):
        raise DataError(f"{path}: none of its {len(samples)} ids is in the folds")
    arrays: list[Rows | None] = [None] * len(ids)
    problems: dict[int, str] = {}
    progress = Progress(f"parsing samples of {path.name}", len(ids))
    for row, name in enumerate(ids):
        try:
            # pop frees the features of the context.
            arrays[row] = _rows(samples.pop(name, None))
        except (LookupError, TypeError, ValueError, OverflowError):
            problems[row] = "is not rows of numbers of one length (punchline_features)"
        progress.add(1)
    del samples
    frames, odd = joined(arrays)
    width = frames.width()
    if not width:
        raise DataError(f"{path}: no sample in the folds has rows of punchline_features")
    return _Sequences(path, frames, width, problems | odd)


def _rows(sample: Any) -> npt.NDArray[np.float32] | None:
    """Return [rows, values] of a punchline, None without any; ValueError, TypeError or the like if malformed."""
    if sample is None:
        return None
    value = sample["punchline_features"]
    if not _is_numbers(value):
        rows = [np.asarray(row) if _is_numbers(row) else _row(row) for row in _listed(value)]
        value = np.stack(rows) if rows else np.empty((0, 0))
    if not value.size:
        return None
    if value.ndim != 2:
        raise ValueError(value.shape)
    with np.errstate(over="ignore"):
        return np.asarray(value, np.float32)


def _row(value: Any) -> npt.NDArray[np.float64]:
    numbers = _listed(value)
    if not set(map(type, numbers)) <= {int, float}:
        raise TypeError(value)
    return np.array(numbers, np.float64)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu"


def _listed(value: Any) -> list[Any] | tuple[Any, ...]:
    if isinstance(value, np.ndarray) and value.dtype.hasobject and value.ndim:
        return list(value)
    if not isinstance(value, (list, tuple)):
        raise TypeError(value)
    return value


def _roles(sequences: Sequence[_Sequences]) -> dict[str, _Sequences]:
    """Tell audio from vision by width: a known width decides, otherwise the wider file is vision."""
    known = {_AUDIO_WIDTH: "audio", _VISION_WIDTH: "vision"}
    if len(sequences) == 1:
        (file,) = sequences
        if file.width not in known:
            raise DataError(
                f"{file.path}: rows of {file.width} values, but audio has {_AUDIO_WIDTH} and vision {_VISION_WIDTH}: "
                "add the file of the other modality"
            )
        return {known[file.width]: file}
    ranked = sorted(sequences, key=lambda file: (file.width != _AUDIO_WIDTH, file.width == _VISION_WIDTH, file.width))
    if len({file.width for file in sequences}) < len(sequences):
        names = " and ".join(file.path.name for file in sequences)
        raise DataError(f"{names} both have rows of {ranked[0].width} values: keep one file of audio and one of vision")
    return dict(zip(MODALITIES, ranked, strict=False))


def _left_out(labelled: Mapping[str, Any], ids: Iterable[str]) -> Iterable[str]:
    if others := len(labelled.keys() - set(ids)):
        yield f"{others} of {len(labelled)} labelled samples are in no fold and are left out"


def _modality_notes(roles: Mapping[str, _Sequences]) -> Iterable[str]:
    if len(roles) > 1 and [file.width for file in roles.values()] != [_AUDIO_WIDTH, _VISION_WIDTH]:
        yield (
            f"audio and vision do not have UR-FUNNY's {_AUDIO_WIDTH} and {_VISION_WIDTH} values a row: one of these "
            "widths identifies its file, otherwise the wider file is vision"
        )
    for name, usual in zip(MODALITIES, ("covarep_features_sdk.pkl", "openface_features_sdk.pkl"), strict=True):
        if name in roles:
            yield f"{name} from {roles[name].path.name}, rows of {roles[name].width} values"
        else:
            yield f"no {name}: the folder has no file such as {usual}"
