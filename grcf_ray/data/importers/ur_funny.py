"""UR-FUNNY v2 as its authors publish it: punchlines of talks, humorous or not, each with the sentences before it.

Five pickles, known by their content, dicts by the id of a sample, which is a number or a text: `language_sdk`
{punchline_sentence, context_sentences}, `humor_label_sdk` 0 or 1, `covarep_features_sdk` and `openface_features_sdk`
{punchline_features [rows, values]}; and `data_folds`, the ids of train, dev and test. Either modality may be missing.
Features of the context are not read. Those of a punchline are sequences of their own: their rows are of aligned words,
which need not be those between the spaces of its sentence.

A source is a folder, or one of these files, which stands for the folder that it lies in.
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

from grcf_ray.data.cells import Cells, class_of, id_of, kind_of, shown, text_of
from grcf_ray.data.frames import Frames, Rows, joined
from grcf_ray.data.raw import RAW_SCHEMA, RawTable, SplitTable
from grcf_ray.data.schema import MODALITIES
from grcf_ray.data.sniff import check_kind, files_of, folder_faults, pickle_start
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
_MOVE = "download it again, or move it out of the folder to import without them"
_ORIGIN = "https://github.com/ROC-HCI/UR-FUNNY has them all"


@dataclass(frozen=True)
class _Sequences:
    """The rows of features of a file, and what is wrong with those samples that have none for it."""

    path: Path
    frames: Frames
    width: int
    amiss: Mapping[int, str]


def files(source: Path) -> list[Path]:
    """The pickles of UR-FUNNY that a source consists of; labels alone or folds alone may be anybody's, and are none."""
    return [path for paths in _found(source).values() for path in paths]


def read(source: Path, variant: str = "") -> RawTable:
    """Read the samples of the folds, in their order; DataError with every file that is missing or damaged."""
    found = _found(source)
    problems = _file_faults(source, found)
    language, labels, folds = (found[kind][0] for kind in _NEEDED)
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
    sequences = [collect_error(problems, _read_sequences, path, ids) for path in found["features"]] if ids else []
    roles = {} if problems else collect_error(problems, _roles, sequences) or {}
    if problems:
        raise data_error(source, problems, named=True)
    table = {name: pa.array(values, RAW_SCHEMA.field(name).type) for name, values in columns.items()}
    for name, one in roles.items():
        cells.faults += [Fault(row, name, f"{name} {what}") for row, what in one.amiss.items()]
        table[name] = one.frames.to_arrow()
    return SplitTable(
        table=pa.table(table),
        files=((language, len(ids)), *((path, 0) for path in (labels, folds, *found["features"]))),
        faults=tuple(cells.faults),
        notes=(*_left_out(labelled, ids), *_modality_notes(roles)),
        splits=tuple((SPLIT_ALIASES[fold], len(names[fold])) for fold in names),
    )


def _found(source: Path) -> dict[str, list[Path]]:
    """The files of each kind; nothing where the source is a file of none, or where all are labels, or all are folds."""
    kinds = {path: _kind(path) for path in files_of(_folder(source))}
    present = set(kinds.values()) - {""}
    if present <= {"labels"} or present <= {"folds"} or not (source.is_dir() or kinds.get(source)):
        return {}
    found = {kind: [path for path in kinds if kinds[path] == kind] for kind in _KINDS}
    return {kind: [source] if source in paths and kind != "features" else paths for kind, paths in found.items()}


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _kind(path: Path) -> str:
    """What a file may be of all that UR-FUNNY has, empty for nothing."""
    start = pickle_start(path)
    if len(start) < 3 or start[0] != "dict" or not _is_id(start[1]):
        return ""
    if start[2] == "dict":
        if _LANGUAGE.intersection(start):
            return "language"
        # A language file begins with the words of a sentence where others have numbers.
        numbers = any(token == "float" or token.startswith("numpy.") for token in start)
        return ("features" if numbers else "language") if _FEATURES.intersection(start[3:4]) else ""
    if start[2] == "list":
        # Files of HKT have a sample where this one has an id: a text and an array.
        return "folds" if start[1] in map(json.dumps, _FOLDS) and all(map(_is_id, start[3:5])) else ""
    return "labels" if start[2] in ("int", "float") or start[2].endswith(".scalar") else ""


def _is_id(token: str) -> bool:
    return token == "int" or token.startswith('"')


def _file_faults(source: Path, found: Mapping[str, Sequence[Path]]) -> list[str]:
    """What is wrong with the other files of the folder; DataError where one is missing, or there are too many."""
    if not found:
        if source.is_file():
            check_kind(source)
        raise DataError(
            f"{source}: not the pickles of UR-FUNNY, such as {' or '.join(_KINDS[kind] for kind in _NEEDED)}"
        )
    count = len(found["features"])
    unused = f"not UR-FUNNY's, and there are {count} files of features of 2: {_MOVE}" if count < 2 else ""
    problems = folder_faults(_folder(source), list(itertools.chain(*found.values())), unused=unused)
    lacking = [_KINDS[kind] for kind in _NEEDED if not found[kind]]
    if lacking:
        names = ", ".join(f"{path.name} ({kind})" for kind, paths in found.items() for path in paths)
        problems.append(
            f"{source}: no file begins as UR-FUNNY's {' and '.join(lacking)} should; {_ORIGIN}. Found: {names}"
        )
    mosts = {**dict.fromkeys(_NEEDED, 1), "features": 2}
    if many := next((kind for kind in _KINDS if len(found[kind]) > mosts[kind]), None):
        names = ", ".join(path.name for path in found[many])
        problems.append(
            f"{source}: several files begin as UR-FUNNY's {_KINDS[many]} should: {names}. Keep {mosts[many]}"
        )
    if lacking or many:
        raise data_error(source, problems, named=True)
    return problems


def _read_folds(path: Path) -> dict[str, list[str]]:
    """The ids of each fold."""
    content = read_pickle(path)
    if not isinstance(content, dict) or set(content) != set(_FOLDS):
        raise DataError(f"{path}: not folds, a dict of {', '.join(_FOLDS)}")
    folds = {}
    for fold in _FOLDS:
        ids = [_id(name) for name in content[fold]] if isinstance(content[fold], (list, tuple)) else [None]
        if None in ids:
            raise DataError(f"{path}: {fold} is not a list of ids, which are numbers or texts")
        folds[fold] = [name for name in ids if name is not None]
    return folds


def _read_samples(path: Path) -> dict[str, Any]:
    """What a file has for each id."""
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: {kind_of(content)}, not a dict by id")
    samples: dict[str, Any] = {}
    for key, value in content.items():
        name = _id(key)
        if name is None or name in samples:
            what = "there twice, as a number and as a text" if name else "neither a number nor a text"
            raise DataError(f"{path}: the id {shown(key)} is {what}")
        samples[name] = value
    return samples


def _id(key: Any) -> str | None:
    return id_of(key) or None


def _read_language(path: Path, ids: Sequence[str], cells: Cells) -> dict[str, list[Any]]:
    """Texts and contexts."""
    samples = _read_samples(path)
    if not any(isinstance(sample, dict) and "punchline_sentence" in sample for sample in samples.values()):
        raise DataError(
            f"{path}: no punchline_sentence; the files of UR-FUNNY's version 1 have no texts, take version 2"
        )
    columns: dict[str, list[Any]] = {"text": [], "context": []}
    for name in cells.each(ids):
        text = context = None
        sample = samples.get(name, {})
        if not isinstance(sample, dict):
            cells.fault("text", f"its sentences are {kind_of(sample)}, not in a dict")
        elif name not in samples:
            cells.fault("text", f"{path.name} does not have it")
        else:
            said, before = map(sample.get, ("punchline_sentence", "context_sentences"))
            text = cells.read("text", "punchline_sentence", said, _sentence, "a text")
            context = cells.read("context", "context_sentences", before, _sentences, "a list of texts")
        columns["text"].append(text)
        columns["context"].append(context)
    return columns


def _sentences(value: Any) -> list[str] | None:
    sentences = [_sentence(one) for one in value] if isinstance(value, (list, tuple)) else [None]
    known = [one for one in sentences if one is not None]
    return known if len(known) == len(sentences) else None


def _sentence(value: Any) -> str | None:
    """A text, or one in parts, as the authors' description has it."""
    if isinstance(value, (list, tuple)):
        parts = [text_of(part) for part in value]
        return None if None in parts else " ".join(filter(None, parts))
    return text_of(value)


def _read_sequences(path: Path, ids: Sequence[str]) -> _Sequences:
    samples = _read_samples(path)
    if samples.keys().isdisjoint(ids):
        raise DataError(f"{path}: none of its {len(samples)} ids is in the folds")
    arrays: list[Rows | None] = [None] * len(ids)
    amiss: dict[int, str] = {}
    for row, name in enumerate(ids):
        try:
            # Taken out, so that the features of its context are freed.
            arrays[row] = _rows(samples.pop(name, None))
        except (LookupError, TypeError, ValueError, OverflowError):
            amiss[row] = "is not rows of numbers of one length (punchline_features)"
    del samples
    frames, odd = joined(arrays)
    width = frames.width()
    if not width:
        raise DataError(f"{path}: no sample in the folds has rows of punchline_features")
    return _Sequences(path, frames, width, amiss | odd)


def _rows(sample: Any) -> npt.NDArray[np.float32] | None:
    """[rows, values] of a punchline, None where there are none; ValueError or the like where they are amiss."""
    if sample is None:
        return None
    value = sample["punchline_features"]
    if not _is_numbers(value):
        rows = [np.asarray(one) if _is_numbers(one) else _row(one) for one in _listed(value)]
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
    """Audio and vision by their widths: those that are known, else the wider one is vision."""
    known = {_AUDIO_WIDTH: "audio", _VISION_WIDTH: "vision"}
    if len(sequences) == 1:
        (one,) = sequences
        if one.width not in known:
            raise DataError(
                f"{one.path}: rows of {one.width} values, neither audio's {_AUDIO_WIDTH} nor vision's {_VISION_WIDTH}: "
                "alone it cannot be told which it is"
            )
        return {known[one.width]: one}
    ranked = sorted(sequences, key=lambda one: (one.width != _AUDIO_WIDTH, one.width == _VISION_WIDTH, one.width))
    if len({one.width for one in sequences}) < len(sequences):
        names = " and ".join(one.path.name for one in sequences)
        raise DataError(f"{names} both have rows of {ranked[0].width} values: they cannot be audio and vision")
    return dict(zip(MODALITIES, ranked, strict=False))


def _left_out(labelled: Mapping[str, Any], ids: Iterable[str]) -> Iterable[str]:
    if others := len(labelled.keys() - set(ids)):
        yield f"{others} of {len(labelled)} labelled samples are in no fold, and left out"


def _modality_notes(roles: Mapping[str, _Sequences]) -> Iterable[str]:
    if len(roles) > 1 and [one.width for one in roles.values()] != [_AUDIO_WIDTH, _VISION_WIDTH]:
        yield (
            f"the rows of audio and vision are not of UR-FUNNY's {_AUDIO_WIDTH} and {_VISION_WIDTH} values: one of "
            "these widths tells which is which, else the wider is taken as vision"
        )
    for name, file in zip(MODALITIES, ("covarep_features_sdk", "openface_features_sdk"), strict=True):
        if name not in roles:
            yield f"no {name}: none of the files begins as {file}.pkl does"
            continue
        one = roles[name]
        yield f"{name} from {one.path.name}, rows of {one.width} values"
