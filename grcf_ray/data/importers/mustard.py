"""MUStARD as its authors publish it: utterances of four shows, sarcastic or not, each with what was said before it.

`sarcasm_data.json` is a dict of items {utterance, context, show, sarcasm}. Beside it, known by their content as well:
`split_indices.p`, five pairs of train and test indices of its items; `audio_features.p`, a dict of arrays; and an HDF5
file of video features, an array [frames, values] for each item. Features of the context are not read.

A source is a folder, or one of these files, which stands for the folder that it lies in.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from grcf_ray.data.frames import Frames
from grcf_ray.data.raw import FRAMES, RAW_SCHEMA, RawTable
from grcf_ray.data.sniff import check_kind, is_hdf5, pickle_start
from grcf_ray.data.unpickle import read_pickle
from grcf_ray.data.validation import Fault
from grcf_ray.errors import DataError, faults_message

__all__ = ["VARIANTS", "files", "read"]

_FOLDS = 5
_BY_SHOW = "speaker-independent"
VARIANTS: dict[str, str] = {
    **{f"fold-{number}": f"fold {number} of the authors' {_FOLDS}" for number in range(1, _FOLDS + 1)},
    _BY_SHOW: "test is the show FRIENDS, train the others",
}

_TEST_SHOW = "FRIENDS"
_KINDS = {"items": "items", "folds": "folds", "audio": "audio features", "vision": "video features"}
_NO_FOLDS = (
    "a fold needs split_indices.p of MUStARD's authors (data/ of https://github.com/soujanyaporia/MUStARD), and no "
    f"file begins like it: put it there, or take --variant {_BY_SHOW}, which works without"
)
_HEAD = 1 << 14
_ITEMS = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"[^"]*"\s*:\s*\{')
_KEYS = re.compile(rb'"([^"\\]*)"\s*:\s*\{')
_ARRAYS = {
    f"{core}.{name}"
    for core in ("numpy.core", "numpy._core")
    for name in ("multiarray._reconstruct", "numeric._frombuffer")
}
_INTEGERS = re.compile('"[iu][1248]"')
_KEYS_LOOKED_AT = 100
# Far beyond what deflate can do: where an array is larger than its storage by that, its shape is damaged.
_COMPRESSION = 2000
_TEXT_SHOWN = 40

_T = TypeVar("_T")


def files(source: Path) -> list[Path]:
    """The JSON file of a source, and what belongs to it; none where there is no such JSON file."""
    return [path for paths in _found(source).values() for path in paths]


def read(source: Path, variant: str = "") -> RawTable:
    """Read the items in their order; DataError with every file that is missing or damaged."""
    variant = variant or next(iter(VARIANTS))
    found = _found(source)
    if not found:
        if source.is_file():
            check_kind(source)
        raise DataError(
            f"{source}: no sarcasm_data.json of MUStARD, which is a dict of items with utterance and sarcasm"
        )
    if variant == _BY_SHOW:
        del found["folds"]
    paths = {kind: _only(source, kind, found[kind]) for kind in found if found[kind]}
    items = _read_items(paths["items"])
    faults: list[Fault] = []
    problems: list[str] = []
    columns = _columns(items, faults)
    shows = [item.get("show") for item in items.values()]
    if variant == _BY_SHOW:
        columns["split"] = _splits_by_show(shows, faults)
    else:
        folds = _tried(problems, _read_folds, paths, len(items)) or {}
        columns["split"] = folds.get(variant, [None] * len(items))
    table = {name: pa.array(values, RAW_SCHEMA.field(name).type) for name, values in columns.items()}
    notes = _split_notes(variant, columns["split"], shows)
    for name, reader in (("audio", _read_audio), ("vision", _read_vision)):
        if name not in paths:
            notes.append(f"no {name}: no file of {_KINDS[name]} for its items is there")
        elif answer := _tried(problems, reader, paths[name], list(items), faults):
            table[name], found_notes = answer
            notes += found_notes
    if problems:
        raise DataError(problems[0] if len(problems) == 1 else faults_message(f"{source}:", problems))
    rows = tuple((path, len(items) if kind == "items" else 0) for kind, path in paths.items())
    return RawTable(table=pa.table(table), files=rows, faults=tuple(faults), notes=tuple(notes))


def _found(source: Path) -> dict[str, list[Path]]:
    """The files of each kind; nothing where none has items, or where the source is a file of no kind."""
    folder = source if source.is_dir() else source.parent
    kinds = {path: _kind(path) for path in sorted(folder.iterdir()) if path.is_file()}
    found = {kind: [path for path in kinds if kinds[path] == kind] for kind in _KINDS}
    if not found["items"]:
        return {}
    keys = {key.decode("utf-8", "replace") for path in found["items"] for key in _KEYS.findall(path.read_bytes())}
    for kind, first_keys in (("audio", _texts), ("vision", _members)):
        found[kind] = [path for path in found[kind] if not keys.isdisjoint(first_keys(path, keys))]
    if not (source.is_dir() or any(source in paths for paths in found.values())):
        return {}
    return {kind: [source] if source in paths else paths for kind, paths in found.items()}


def _kind(path: Path) -> str:
    """What a file may be of all that MUStARD has, empty for nothing; whose features these are is not looked at."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if _ITEMS.match(head):
        return "items" if b'"utterance"' in head and b'"sarcasm"' in head else ""
    if is_hdf5(path):
        return "vision"
    start = pickle_start(path)
    if len(start) > 2 and start[0] == "dict" and start[1].startswith('"') and start[2] in _ARRAYS:
        return "audio"
    lists = sum(1 for _ in itertools.takewhile(lambda token: token == "list", start))
    first, *rest = start[lists:] or ("",)
    if (lists > 0 and first in _ARRAYS and any(map(_INTEGERS.fullmatch, rest))) or (lists > 1 and first == "int"):
        return "folds"
    return ""


def _texts(path: Path, keys: Iterable[str]) -> Iterable[str]:
    return [json.loads(token) for token in pickle_start(path) if token.startswith('"')]


def _members(path: Path, keys: Iterable[str]) -> Iterable[str]:
    """The first names in an HDF5 file; all that are asked for where it is damaged, so that it is not passed over."""
    try:
        with _open(path) as file, _reading(path):
            return list(itertools.islice(file, _KEYS_LOOKED_AT))
    except DataError:
        return keys


def _only(source: Path, kind: str, paths: Sequence[Path]) -> Path:
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise DataError(f"{source}: several files of MUStARD's {_KINDS[kind]} ({names}). Keep one")
    return paths[0]


def _tried(problems: list[str], function: Callable[..., _T], *arguments: Any) -> _T | None:
    try:
        return function(*arguments)
    except DataError as error:
        problems.append(str(error))
        return None


def _read_items(path: Path) -> dict[str, dict[str, Any]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = Counter(name for name, _ in pairs)
        if twice := [name for name in names if names[name] > 1]:
            raise ValueError(f"{twice[0]!r} stands there twice")
        return dict(pairs)

    try:
        items = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); download it again") from error
    return {name: item if isinstance(item, dict) else {} for name, item in items.items()}


def _columns(items: Mapping[str, dict[str, Any]], faults: list[Fault]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "text", "label", "context")}
    for row, (name, item) in enumerate(items.items()):
        cells = {
            "id": _text("id", name),
            "text": _text("utterance", item.get("utterance")),
            "label": _label(item.get("sarcasm")),
            "context": _context(item.get("context")),
        }
        for column, cell in cells.items():
            if isinstance(cell, _Amiss):
                faults.append(Fault(row, column, cell.what))
            columns[column].append(None if isinstance(cell, _Amiss) else cell)
    return columns


class _Amiss:
    """A cell that is not what it should be."""

    def __init__(self, key: str, value: Any, needs: str) -> None:
        self.what = f"{key} is missing" if value is None else f"{key} {_shown(value)} is not {needs}"


def _text(key: str, value: Any) -> str | _Amiss:
    return value if _is_text(value) else _Amiss(key, value, "a text")


def _label(value: Any) -> float | _Amiss:
    known = isinstance(value, (bool, int, float)) and value in (0, 1)
    return float(value) if known else _Amiss("sarcasm", value, "true or false")


def _context(value: Any) -> list[str] | _Amiss:
    known = isinstance(value, list) and all(map(_is_text, value))
    return value if known else _Amiss("context", value, "a list of texts")


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _splits_by_show(shows: Sequence[Any], faults: list[Fault]) -> list[str | None]:
    splits: list[str | None] = []
    for row, show in enumerate(shows):
        if not _is_text(show):
            faults.append(Fault(row, "split", _Amiss("show", show, "a text").what))
            splits.append(None)
        else:
            splits.append("test" if show == _TEST_SHOW else "train")
    return splits


def _read_folds(paths: Mapping[str, Path], items: int) -> dict[str, list[str | None]]:
    """The splits of the items in each fold; DataError where a fold does not divide all items in two."""
    if "folds" not in paths:
        raise DataError(f"{paths['items'].parent}: {_NO_FOLDS}")
    path = paths["folds"]
    content = read_pickle(path)
    pairs = [_pair(fold) for fold in content] if isinstance(content, (list, tuple)) else []
    if len(pairs) != _FOLDS or None in pairs:
        raise DataError(f"{path}: not {_FOLDS} folds, each a pair of train and test indices")
    folds: dict[str, list[str | None]] = {}
    problems = []
    for number, (train, test) in enumerate(filter(None, pairs), start=1):
        problems += [f"fold {number}: {problem}" for problem in _fold_problems([*train, *test], items)]
        tested = set(test)
        folds[f"fold-{number}"] = ["test" if index in tested else "train" for index in range(items)]
    if problems:
        head = f"{path}: it does not fit the {items} items of {paths['items'].name}"
        raise DataError(faults_message(head, problems))
    return folds


def _pair(fold: Any) -> tuple[list[int], list[int]] | None:
    if not isinstance(fold, (list, tuple)) or len(fold) != 2:
        return None
    train, test = (part.tolist() if isinstance(part, np.ndarray) else part for part in fold)
    known = all(isinstance(part, list) and all(type(index) is int for index in part) for part in (train, test))
    return (train, test) if known else None


def _fold_problems(indices: Iterable[int], items: int) -> Iterable[str]:
    count = Counter(indices)
    if beyond := sum(not 0 <= index < items for index in count):
        yield f"{beyond} indices of no item"
    if twice := sum(times > 1 for times in count.values()):
        yield f"{twice} indices more than once"
    if missing := items - len(count) + beyond:
        yield f"{missing} items in neither train nor test"


def _split_notes(variant: str, splits: Sequence[str | None], shows: Sequence[Any]) -> list[str]:
    count = {split: Counter[str]() for split in ("train", "test")}
    for split, show in zip(splits, shows, strict=True):
        if split and _is_text(show):
            count[split][show] += 1
    train, test = count.values()
    if variant == _BY_SHOW:
        return [f"{variant}: test is the {test.total()} utterances of {_TEST_SHOW}, train the {train.total()} others"]
    shared = [show for show, _ in test.most_common() if show in train]
    if not shared:
        return []
    of_all = "its" if len(shared) == len(test) else f"{len(shared)} of its"
    counts = ", ".join(f"{show} {test[show]}/{train[show]}" for show in shared)
    return [f"{variant}: test shares {of_all} {len(test)} shows with train (utterances in test/train: {counts})"]


def _read_audio(path: Path, ids: Sequence[str], faults: list[Fault]) -> tuple[pa.Array, list[str]]:
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a dict of arrays")
    arrays = _arrays(content, ids, faults)
    axis, width = _feature_axis([array.shape for array in arrays.values()])
    which = ("first", "second")[axis]
    for row in [row for row, array in arrays.items() if array.shape[axis] != width]:
        what = f"audio is of shape {arrays.pop(row).shape}, where most have {width} features in the {which} axis"
        faults.append(Fault(row, "audio", what))
    lengths_N = np.array([arrays[row].shape[1 - axis] if row in arrays else 0 for row in range(len(ids))], np.int64)
    values = [array if axis else array.T for array in arrays.values()]
    with np.errstate(over="ignore"):
        joined = np.concatenate(values or [np.empty((0, width))]).astype(np.float32)
    notes = [f"audio: the {which} axis of its arrays has the features, {width} values a row"]
    notes += _coverage_notes("audio", lengths_N, len(content.keys() - set(ids)))
    return _column(lengths_N, joined), notes


def _arrays(content: Mapping[Any, Any], ids: Sequence[str], faults: list[Fault]) -> dict[int, npt.NDArray[Any]]:
    """Those of the utterances that have any values, by row and in order."""
    arrays = {}
    for row, name in enumerate(ids):
        array = content.get(name)
        if isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind in "fiu":
            if array.size:
                arrays[row] = np.asarray(array)
        elif name in content:
            faults.append(Fault(row, "audio", f"audio {_shown(array)} is not an array of features and time"))
    return arrays


def _feature_axis(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """The axis that has one size in most of the arrays, and that size."""
    if not shapes:
        return 0, 0
    (first, firsts), (second, seconds) = (Counter(sizes).most_common(1)[0] for sizes in zip(*shapes, strict=True))
    # The authors have the features first, which decides where all arrays are of one shape.
    return (1, second) if seconds > firsts else (0, first)


def _read_vision(path: Path, ids: Sequence[str], faults: list[Fault]) -> tuple[pa.Array, list[str]]:
    with _open(path) as file:
        with _reading(path):
            members = dict.fromkeys(file)
        datasets = _datasets(file, [name if name in members else None for name in ids], faults)
        width = Counter(dataset.shape[1] for dataset in datasets.values()).most_common(1)[0][0] if datasets else 0
        for row in [row for row, dataset in datasets.items() if dataset.shape[1] != width]:
            found = datasets.pop(row).shape[1]
            faults.append(Fault(row, "vision", f"vision has rows of {found} values, where most have {width}"))
        lengths_N = np.array([len(datasets[row]) if row in datasets else 0 for row in range(len(ids))], np.int64)
        with _reading(path):
            values = np.zeros((lengths_N.sum(), width), np.float32)
        stops_N = np.cumsum(lengths_N)
        for row, dataset in datasets.items():
            with _faulty(faults, row), np.errstate(over="ignore"):
                values[stops_N[row] - lengths_N[row] : stops_N[row]] = dataset[()]
    return _column(lengths_N, values), list(_coverage_notes("vision", lengths_N, len(members.keys() - set(ids))))


def _datasets(file: Any, names: Iterable[str | None], faults: list[Fault]) -> dict[int, Any]:
    datasets = {}
    for row, name in enumerate(names):
        if name is not None:
            with _faulty(faults, row):
                datasets[row] = _dataset(file, name)
    return datasets


def _dataset(file: Any, name: str) -> Any:
    """An array of numbers that the file itself holds; its values are not read yet."""
    # Links may lead into other files, so none is followed.
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise DataError("a link, which is not followed")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiu":
        raise DataError("not an array of numbers")
    if dataset.is_virtual or dataset.external:
        raise DataError("in another file, which is not read")
    if dataset.shape is None or len(dataset.shape) != 2 or not dataset.shape[1]:
        raise DataError(f"of shape {dataset.shape}, not frames of values")
    if dataset.nbytes > dataset.id.get_storage_size() * (1 if dataset.chunks is None else _COMPRESSION):
        raise DataError(f"of shape {dataset.shape}, little of which is in the file")
    return dataset


@contextmanager
def _faulty(faults: list[Fault], row: int) -> Iterator[None]:
    """What is read here may be damaged in any way, which makes a fault of the row."""
    try:
        yield
    except DataError as error:
        faults.append(Fault(row, "vision", f"vision is {error}"))
    except Exception as error:
        faults.append(Fault(row, "vision", f"vision is damaged ({_first_line(error)})"))


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    with _reading(path):
        # Nobody writes to it, and some network storage cannot lock.
        file = h5py.File(path, "r", locking=False)
    with file:
        yield file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """The same for a file as a whole."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{path}: damaged ({_first_line(error)}); download it again") from error


def _column(lengths_N: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> pa.Array:
    if not len(values):
        return pa.nulls(len(lengths_N), FRAMES)
    return Frames(lengths_N, np.full(len(values), values.shape[1]), values.reshape(-1)).to_arrow()


def _coverage_notes(name: str, lengths_N: npt.NDArray[np.int64], others: int) -> Iterable[str]:
    if empty := int((lengths_N == 0).sum()):
        yield f"{name}: {empty} of {len(lengths_N)} utterances have none"
    if others:
        yield f"{name}: {others} arrays are not of an utterance, and left out"


def _shown(value: Any) -> str:
    """A short text for a value of any kind."""
    if isinstance(value, str):
        return repr(value[:_TEXT_SHOWN])
    return f"of shape {value.shape}" if isinstance(value, np.ndarray) else f"of type {type(value).__name__}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
