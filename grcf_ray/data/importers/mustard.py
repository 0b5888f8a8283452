"""Import MUStARD as its authors publish it: utterances of four shows, sarcastic or not, each with its context.

`sarcasm_data.json` is a dict of items {utterance, context, show, sarcasm}. Other files in its folder are recognised by
their content: `split_indices.p`, five pairs of train and test indices of the items; `audio_features.p`, a dict of
arrays; and an HDF5 file of video features, an array [frames, values] for each item. Features of the context are not
read.

A source is a folder, or one of these files, which stands for its folder.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from grcf_ray.data.cells import Cells, class_of, is_unicode, shown, unique_names
from grcf_ray.data.frames import Rows
from grcf_ray.data.hdf5 import dataset, is_text, opened, reading
from grcf_ray.data.raw import RawTable, typed_arrays
from grcf_ray.data.sniff import check_kind, files_by_kind, folder_faults, folder_of, is_hdf5, only_file, pickle_start
from grcf_ray.data.unpickle import read_pickle
from grcf_ray.errors import DataError, collect_error, data_error, faults_message, reason

_FOLDS = 5
_BY_SHOW = "speaker-independent"
VARIANTS: dict[str, str] = {
    **{f"fold-{number}": f"fold {number} of the authors' {_FOLDS}" for number in range(1, _FOLDS + 1)},
    _BY_SHOW: "test is the show FRIENDS, train the others",
}

_TEST_SHOW = "FRIENDS"
_KINDS = {"items": "items", "folds": "folds", "audio": "audio features", "vision": "video features"}
_NO_FOLDS = (
    "no file of folds: copy split_indices.p here from data/ of https://github.com/soujanyaporia/MUStARD, or give "
    f"--variant {_BY_SHOW}, which needs no folds"
)
_MOVE = "download it again, or move it out of the folder to import without these features"
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


def files(source: Path) -> list[Path]:
    """List the JSON file of a source and the files that belong to it; none without such a JSON file."""
    return [path for paths in _recognised(source).values() for path in paths]


def read(source: Path, variant: str = "") -> RawTable:
    """Read the items in their order; DataError names every file that is missing or damaged."""
    variant = variant or next(iter(VARIANTS))
    by_kind = _recognised(source)
    if not by_kind:
        if source.is_file():
            check_kind(source)
        raise DataError(f"{source}: no sarcasm_data.json of MUStARD, a dict of items with utterance and sarcasm")
    missing = " and ".join(_KINDS[kind] for kind in ("audio", "vision") if not by_kind[kind])
    unused = f"not MUStARD's, while no file has {missing}: {_MOVE}" if missing else ""
    problems = folder_faults(folder_of(source), list(itertools.chain(*by_kind.values())), unused=unused)
    if variant == _BY_SHOW:
        del by_kind["folds"]
    paths = {kind: only_file(source, by_kind[kind], f"MUStARD's {_KINDS[kind]}") for kind in by_kind if by_kind[kind]}
    items = _read_items(paths["items"])
    cells = Cells()
    columns = _columns(items, cells)
    shows = [item.get("show") for item in items.values()]
    if variant == _BY_SHOW:
        texts = [cells.read("split", "show", show, _text, "a text") for show in cells.each(shows)]
        columns["split"] = [None if show is None else "test" if show == _TEST_SHOW else "train" for show in texts]
    else:
        folds = collect_error(problems, _read_folds, paths, len(items)) or {}
        columns["split"] = folds.get(variant, [None] * len(items))
    table = typed_arrays(columns)
    notes = _split_notes(variant, columns["split"], shows)
    for name, reader in (("audio", _read_audio), ("vision", _read_vision)):
        if name not in paths:
            notes.append(f"no {name}: the folder has no file of {_KINDS[name]} for these items")
        elif column := collect_error(problems, reader, paths[name], list(items), cells):
            table[name], column_notes = column
            notes += column_notes
    if problems:
        raise data_error(source, problems, named=True)
    rows = tuple((path, len(items) if kind == "items" else 0) for kind, path in paths.items())
    return RawTable(table=pa.table(table), files=rows, faults=tuple(cells.faults), notes=tuple(notes))


def _recognised(source: Path) -> dict[str, list[Path]]:
    """Return the files of each kind; an empty dict if no file has items, or if the source is a file of no kind."""
    by_kind = files_by_kind(source, _kind, _KINDS)
    if not by_kind["items"]:
        return {}
    keys = {key.decode("utf-8", "replace") for path in by_kind["items"] for key in _KEYS.findall(path.read_bytes())}
    for kind, first_keys in (("audio", _texts), ("vision", _members)):
        by_kind[kind] = [path for path in by_kind[kind] if not keys.isdisjoint(first_keys(path, keys))]
    if not (source.is_dir() or any(source in paths for paths in by_kind.values())):
        return {}
    return {kind: [source] if source in paths else paths for kind, paths in by_kind.items()}


def _kind(path: Path) -> str:
    """Return the kind that a file may be, or an empty text; features may be of other data."""
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
    """Return the first names in an HDF5 file; for a damaged file all keys, so that `read` reports it."""
    try:
        with opened(path) as file, reading(path):
            return list(itertools.islice(file, _KEYS_LOOKED_AT))
    except DataError:
        return keys


def _read_items(path: Path) -> dict[str, dict[str, Any]]:
    try:
        items = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); download it again") from error
    return {name: item if isinstance(item, dict) else {} for name, item in items.items()}


def _columns(items: Mapping[str, dict[str, Any]], cells: Cells) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "text", "label", "context")}
    for name, item in cells.each(items.items()):
        columns["id"].append(cells.read("id", "id", name, _text, "a text"))
        columns["text"].append(cells.read("text", "utterance", item.get("utterance"), _text, "a text"))
        columns["label"].append(cells.read("label", "sarcasm", item.get("sarcasm"), class_of, "true or false"))
        columns["context"].append(cells.texts("context", "context", item.get("context"), _text))
    return columns


def _text(value: Any) -> str | None:
    # JSON texts need no decoding.
    return value if isinstance(value, str) and is_unicode(value) else None


def _read_folds(paths: Mapping[str, Path], items: int) -> dict[str, list[str | None]]:
    """Return the splits of the items in each fold; DataError for a fold that does not divide all items in two."""
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
        head = f"{path}: the folds do not fit the {items} items of {paths['items'].name}"
        raise DataError(faults_message(head, problems))
    return folds


def _pair(fold: Any) -> tuple[list[int], list[int]] | None:
    if not isinstance(fold, (list, tuple)) or len(fold) != 2:
        return None
    train, test = (part.tolist() if isinstance(part, np.ndarray) else part for part in fold)
    is_indices = all(isinstance(part, list) and all(type(index) is int for index in part) for part in (train, test))
    return (train, test) if is_indices else None


def _fold_problems(indices: Iterable[int], items: int) -> Iterable[str]:
    count = Counter(indices)
    if beyond := sum(not 0 <= index < items for index in count):
        yield f"{beyond} indices outside the items"
    if twice := sum(times > 1 for times in count.values()):
        yield f"{twice} indices more than once"
    if missing := items - len(count) + beyond:
        yield f"{missing} items in neither train nor test"


def _split_notes(variant: str, splits: Sequence[str | None], shows: Sequence[Any]) -> list[str]:
    count = {split: Counter[str]() for split in ("train", "test")}
    for split, show in zip(splits, shows, strict=True):
        if split and _text(show) is not None:
            count[split][show] += 1
    train, test = count.values()
    if variant == _BY_SHOW:
        return [f"{variant}: test is the {test.total()} utterances of {_TEST_SHOW}, train the {train.total()} others"]
    shared = [show for show, _ in test.most_common() if show in train]
    if not shared:
        return []
    share = "its" if len(shared) == len(test) else f"{len(shared)} of its"
    counts = ", ".join(f"{show} {test[show]}/{train[show]}" for show in shared)
    return [f"{variant}: test shares {share} {len(test)} shows with train (utterances in test/train: {counts})"]


def _read_audio(path: Path, ids: Sequence[str], cells: Cells) -> tuple[pa.Array, list[str]]:
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a dict of arrays")
    arrays = [_array(content.pop(name), cells) if name in content else None for name in cells.each(ids)]
    axis, width = _feature_axis([array.shape for array in arrays if array is not None])
    note = f"audio: features are on the {('first', 'second')[axis]} axis of its arrays, {width} values a row"
    rows = [array if array is None or axis else array.T for array in arrays]
    del arrays
    return _column("audio", rows, len(content), cells, note)


def _array(value: Any, cells: Cells) -> Rows | None:
    """Return the array of an utterance; None if it is empty, None and a fault if it is not an array."""
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind in "fiu":
        return np.asarray(value) if value.size else None
    cells.fault("audio", f"audio {shown(value)} is not an array of features by time")
    return None


def _feature_axis(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Return the axis that has one size in most of the arrays, and that size."""
    if not shapes:
        return 0, 0
    (first, firsts), (second, seconds) = (Counter(sizes).most_common(1)[0] for sizes in zip(*shapes, strict=True))
    # The authors have the features first, which decides if all arrays have one shape.
    return (1, second) if seconds > firsts else (0, first)


def _read_vision(path: Path, ids: Sequence[str], cells: Cells) -> tuple[pa.Array, list[str]]:
    with opened(path) as file:
        with reading(path):
            members = dict.fromkeys(file)
        rows = [_frames(file, name, cells) if name in members else None for name in cells.each(ids)]
    return _column("vision", rows, len(members.keys() - set(ids)), cells)


def _frames(file: Any, name: str, cells: Cells) -> Rows | None:
    """Return the frames of an utterance; None and a fault if they are damaged in any way."""
    try:
        array = dataset(file, name, called="vision")
        if is_text(array.dtype) or len(array.shape) != 2:
            raise DataError(f"vision is of type {array.dtype} and of shape {array.shape}, not frames of numbers")
        with np.errstate(over="ignore"):
            return np.asarray(array[()], np.float32)
    except DataError as error:
        cells.fault("vision", str(error))
    except Exception as error:
        cells.fault("vision", f"vision is damaged ({reason(error)})")
    return None


def _column(name: str, rows: list[Rows | None], others: int, cells: Cells, *notes: str) -> tuple[pa.Array, list[str]]:
    frames = cells.frames(name, rows)
    left_out = [f"{name}: {others} arrays belong to no utterance and are left out"] if others else []
    return frames.to_arrow(), [*notes, *left_out]
