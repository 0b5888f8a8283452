"""Import folders of the CMU-MultimodalSDK: `.csd` files, each a sequence of features of many videos, and the folds.

A file is HDF5 with one group, named after the sequence, with `data/<video>/features` [n, d] and
`data/<video>/intervals` [n, 2], in seconds. An import needs the words (features of text), the labels, and a file of
folds: JSON such as {"train": ["a video", ...], "valid": [...], "test": [...]}, or the SDK's own
`cmu_mosi_std_folds.py`.

The interval of a label is one utterance, `video[i]` by the interval's place in the file, as the SDK numbers them. It
has the words with their middle in the interval. Audio and vision get a row for each word: the mean of the rows that
overlap it.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from grcf_ray.console import Progress
from grcf_ray.data.frames import joined
from grcf_ray.data.hdf5 import dataset, is_text, member, opened, reading
from grcf_ray.data.raw import RawTable, typed_arrays
from grcf_ray.data.schema import MODALITIES, SPLITS
from grcf_ray.data.sniff import check_kind, files_of, folder_faults, is_hdf5, only_file
from grcf_ray.data.splits import SPLIT_ALIASES
from grcf_ray.data.unpickle import repaired_text
from grcf_ray.errors import DataError, collect_error, data_error

_KNOWN = "known"
VARIANTS: dict[str, str] = {
    "whole": "every sequence of the folder is used or of a kind that is not needed",
    _KNOWN: "sequences of unknown kinds are left out",
}

# Parts of a name without punctuation, and the role of each; the first part that a name has counts. The features of the
# paper come before others; "coavarep" is the spelling in MOSEI's file; None marks a sequence that is not needed.
_PARTS = (
    ("covarep", "audio"),
    ("coavarep", "audio"),
    ("opensmile", "audio"),
    ("facet41", "vision"),
    ("facet", "vision"),
    ("openface2", "vision"),
    ("openface", "vision"),
    ("phon", None),
    ("glove", None),
    ("vector", None),
    ("emotion", None),
    ("opinionsegmentlabel", "labels"),
    ("sentimentlabel", "labels"),
    ("alllabel", "labels"),
    ("label", "labels"),
    ("acoustic", "audio"),
    ("audio", "audio"),
    ("visual", "vision"),
    ("vision", "vision"),
    ("word", "words"),
)
_WIDTHS = {74: "audio", 35: "vision", 47: "vision", 713: "vision"}
"""Widths of COVAREP, FACET 4.2, FACET 4.1 and OpenFace 2."""
_ROLES = ("labels", "words", *MODALITIES)
_NEEDED = {
    "labels": "labels, such as CMU_MOSI_Opinion_Labels.csd",
    "words": "words (features of text), such as CMU_MOSI_TimestampedWords.csd",
}
_NO_FOLDS = (
    "no file lists the videos of each split; put folds.json beside the sequences, "
    '{"train": ["a video", ...], "valid": [...], "test": [...]}, or the SDK\'s own, such as cmu_mosi_std_folds.py'
)
_LEAVE_OUT = f"move it out of the folder, or give --variant {_KNOWN}"
_RENAME = "name its file after its kind (covarep, opensmile, facet, openface, labels)"
_MOST_LABELS = 7
_NO_WORDS = {"sp", "NW"}
"""Marks of aligners for a pause and for no word."""
# Shortest overlap, as in the SDK.
_SECONDS = 1e-5
_LARGEST_OVERLAP = 50
"""Most utterances for each word of a video, on average."""
_HEAD = 1 << 16
_JSON_FOLDS = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:train|valid|validation|val|dev|test)"\s*:\s*\[')
_SDK_FOLDS = re.compile(
    r"""^standard_(train|valid|test)_fold\s*=\s*(\[(?:[\s,]|#[^\n]*\n|'[^'\\\n]*'|"[^"\\\n]*")*\])""", re.MULTILINE
)
_SDK_FOLDS_START = re.compile(rb"^standard_(train|valid|test)_fold\s*=\s*\[", re.MULTILINE)
_VIDEOS_SHOWN = 5

Spans = npt.NDArray[np.float64]
"""[n, 2] intervals in seconds."""


def files(source: Path) -> list[Path]:
    """List the sequences of a source, and the damaged HDF5 files of a folder that has sequences."""
    answers = {path: _is_sequence(path) for path in files_of(source) if is_hdf5(path)}
    sequences = [path for path, answer in answers.items() if answer is not False]
    return sequences if source.is_file() or True in answers.values() else []


def read(source: Path, variant: str = "") -> RawTable:
    """Align the sequences of a folder to its labels; DataError names everything that is missing or damaged."""
    paths = files(source)
    if not paths:
        if source.is_file():
            check_kind(source)
        raise DataError(f"{source}: no computational sequence (an HDF5 file with one group that has data)")
    lists = [path for path in files_of(source) if source.is_dir() and _has_folds(path)]
    folds_path = only_file(source, lists, "folds") if lists else None
    problems: list[str] = []
    if source.is_dir():
        unused = "" if variant == _KNOWN else f"not a computational sequence: {_LEAVE_OUT}"
        problems = folder_faults(source, [*paths, *([folds_path] if folds_path else [])], unused=unused)
    with ExitStack() as stack:
        sequences = _opened(source, paths, stack, problems)
        if source.is_file():
            raise DataError(f"{source}: a single sequence: give the folder with the other sequences and the folds")
        chosen, notes, unknown = _roles(sequences)
        problems = [f"no sequence of {kind}" for role, kind in _NEEDED.items() if role not in chosen]
        problems += unknown if variant != _KNOWN else []
        if "labels" in chosen and any("[" in video for video in chosen["labels"].videos):
            problems.append("the labels belong to utterances, not to videos; give the files as downloaded")
        if folds_path is None:
            raise data_error(source, [*problems, _NO_FOLDS])
        if problems:
            raise data_error(source, problems)
        folds = _read_folds(folds_path)
        notes += _fold_notes(folds, chosen["labels"])
        table, missing = _aligned(source, chosen, folds)
    labels, *others = (chosen[role].path for role in _ROLES if role in chosen)
    notes += [f"{kind}: {count}" for kind, count in missing.items() if count]
    return RawTable(
        table=table,
        files=((labels, table.num_rows), *((path, 0) for path in (*others, folds_path))),
        word_aligned=True,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Place:
    """The role of a sequence, None if it is not needed, and its rank among sequences of that role."""

    role: str | None
    rank: int
    named: bool
    """Whether a name gives the role, not only the content."""


@dataclass(frozen=True)
class _Sequence:
    """An open file: the name of its root group, and its videos."""

    path: Path
    name: str
    data: Any
    videos: Mapping[str, None]
    is_text: bool
    width: int

    @classmethod
    def of(cls, path: Path, file: Any) -> _Sequence:
        """Read the names in a file and its first video; DataError without any."""
        with reading(path):
            roots = list(itertools.islice(file, 2))
            if len(roots) != 1:
                raise DataError("its root does not hold exactly one group")
            data = member(member(file, roots[0], h5py.Group), "data", h5py.Group)
            videos = dict.fromkeys(data)
            if not videos:
                raise DataError("it has no videos")
            features = dataset(member(data, next(iter(videos)), h5py.Group), "features")
            name = roots[0].encode("utf-8", "replace").decode()
            return cls(path, name, data, videos, is_text(features.dtype), _width(features))

    def place(self) -> _Place | None:
        """Return the role by the root's name, else by the file's name, else by the width; None if unknown."""
        named = [place for place in (_named(self.name, 0), _named(self.path.stem, len(_PARTS))) if place]
        if self.is_text:
            # Texts are words, unless their name or width is that of something else.
            other = self.width > 1 or any(place.role != "words" for place in named[:1])
            return _Place(None if other else "words", named[0].rank if named else 2 * len(_PARTS), True)
        named = [place for place in named if place.role != "words"]
        if named:
            return named[0]
        role = _WIDTHS.get(self.width, "labels" if self.width <= _MOST_LABELS else None)
        return _Place(role, 2 * len(_PARTS), False) if role else None

    def read(self, video: str) -> tuple[npt.NDArray[Any], Spans] | None:
        """Read features [n, d] and intervals of a video; None without a row, DataError if they are malformed."""
        if video not in self.videos:
            return None
        with reading(self.path, f"video {video!r}: "):
            group = member(self.data, video, h5py.Group)
            features, spans = dataset(group, "features"), dataset(group, "intervals")
            if is_text(features.dtype) != self.is_text:
                raise DataError(f"features of type {features.dtype}, unlike those of other videos")
            if _width(features) != self.width:
                raise DataError(f"features of shape {features.shape}, where others have {self.width} columns")
            if is_text(spans.dtype):
                raise DataError("intervals of texts")
            if spans.shape != (len(features), 2):
                raise DataError(f"intervals of shape {spans.shape} for features of shape {features.shape}")
            features_ND, spans_N2 = features[()].reshape(-1, self.width), spans[()].astype(np.float64)
            if not np.isfinite(spans_N2).all():
                raise DataError("intervals that are not finite")
        return (features_ND, spans_N2) if len(features_ND) else None


def _is_sequence(path: Path) -> bool | None:
    """Return whether an HDF5 file has one root group with data, or a link at its root; None for a damaged file."""
    try:
        with opened(path) as file, reading(path):
            roots = list(itertools.islice(file, 2))
            if len(roots) != 1:
                return False
            if not isinstance(file.get(roots[0], getlink=True), h5py.HardLink):
                return True
            root = file[roots[0]]
            return isinstance(root, h5py.Group) and "data" in root
    except DataError:
        return None


def _opened(source: Path, paths: Iterable[Path], stack: ExitStack, problems: list[str]) -> list[_Sequence]:
    sequences = [
        collect_error(problems, lambda path: _Sequence.of(path, stack.enter_context(opened(path))), path)
        for path in paths
    ]
    if problems:
        raise data_error(source, problems, named=True)
    return [sequence for sequence in sequences if sequence]


def _width(dataset: Any) -> int:
    return int(dataset.shape[1]) if len(dataset.shape) > 1 else 1


def _named(name: str, rank: int) -> _Place | None:
    """Return the role that a name gives; rank: the rank of the first part."""
    plain = re.sub("[^a-z0-9]", "", name.lower())
    matches = (_Place(role, rank + place, True) for place, (part, role) in enumerate(_PARTS) if part in plain)
    return next(matches, None)


def _roles(sequences: Sequence[_Sequence]) -> tuple[dict[str, _Sequence], list[str], list[str]]:
    """Return the best sequence of each role, notes, and a fault for each sequence of unknown role."""
    places = [sequence.place() for sequence in sequences]
    chosen: dict[str, _Sequence] = {}
    for role in _ROLES:
        ranked = [(place.rank, index) for index, place in enumerate(places) if place and place.role == role]
        if ranked:
            chosen[role] = sequences[min(ranked)[1]]
    unused = [
        (sequence, place) for sequence, place in zip(sequences, places, strict=True) if sequence not in chosen.values()
    ]
    notes = ["an utterance has the words with their middle in its label's interval"]
    notes.append(", ".join(f"{role} from {sequence.name} ({sequence.path.name})" for role, sequence in chosen.items()))
    if unused:
        notes.append("not used: " + ", ".join(f"{sequence.name} ({sequence.path.name})" for sequence, _ in unused))
    if "labels" in chosen and (width := chosen["labels"].width) > 1:
        notes.append(f"the label is the first of {width} columns of {chosen['labels'].name}")
    unknown = [
        f"{sequence.path.name}: {sequence.name!r}, rows of {sequence.width} values, is of unknown kind: {_RENAME}, "
        f"{_LEAVE_OUT}"
        for sequence, place in unused
        if not place or not place.named
    ]
    return chosen, notes, unknown


def _has_folds(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return bool(_JSON_FOLDS.match(head) or _SDK_FOLDS_START.search(head))


def _read_folds(path: Path) -> dict[str, list[str]]:
    """Read the videos of each split; DataError if a split is missing, or a video is in two."""
    folds: dict[str, list[str]] = {}
    try:
        text = path.read_text("utf-8-sig")
        if text.lstrip().startswith("{"):
            lists = json.loads(text)
        else:
            lists = {match[1]: ast.literal_eval(match[2]) for match in _SDK_FOLDS.finditer(text)}
        for name, videos in lists.items():
            if (split := SPLIT_ALIASES.get(name)) is None:
                continue
            if split in folds or not isinstance(videos, list):
                raise ValueError(f"{name} is not a list, or not the only one of its split")
            "".join(videos).encode()
            folds[split] = list(dict.fromkeys(videos))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise DataError(f"{path}: not readable as folds, lists of videos ({error})") from error
    if missing := [split for split in ("train", "test") if split not in folds]:
        raise DataError(f"{path}: no list of videos for {' and '.join(missing)}")
    count = Counter(itertools.chain.from_iterable(folds.values()))
    if twice := [video for video in count if count[video] > 1]:
        raise DataError(f"{path}: {_some(twice)} in more than one fold")
    return {split: folds[split] for split in SPLITS if split in folds}


def _fold_notes(folds: Mapping[str, list[str]], labels: _Sequence) -> Iterable[str]:
    videos = dict.fromkeys(itertools.chain.from_iterable(folds.values()))
    if left_out := [video for video in labels.videos if video not in videos]:
        yield f"{_some(left_out)} with labels in no fold, left out"
    if unlabelled := [video for video in videos if video not in labels.videos]:
        yield f"{_some(unlabelled)} of the folds without labels"


def _some(videos: Sequence[str]) -> str:
    """Count videos, and name the first few."""
    shown = ", ".join(repr(video) for video in videos[:_VIDEOS_SHOWN])
    more = ", ..." if len(videos) > _VIDEOS_SHOWN else ""
    return f"{len(videos)} video{'s' * (len(videos) > 1)} ({shown}{more})"


def _aligned(
    source: Path, chosen: Mapping[str, _Sequence], folds: Mapping[str, list[str]]
) -> tuple[pa.Table, Counter[str]]:
    """Make an utterance of each label; count videos and words without data of a role."""
    tables: list[pa.Table] = []
    problems: list[str] = []
    missing: Counter[str] = Counter()
    progress = Progress("aligning videos", sum(map(len, folds.values())))
    for split, videos in folds.items():
        columns: dict[str, list[Any]] = {name: [] for name in ("id", "text", "label", "video_id")}
        columns |= {role: [] for role in MODALITIES if role in chosen}
        for video in videos:
            answers = {role: collect_error(problems, sequence.read, video) for role, sequence in chosen.items()}
            data = {role: answer for role, answer in answers.items() if answer is not None}
            if "labels" in data:
                missing.update(f"videos without {role}" for role in chosen if role not in data)
                missing.update(collect_error(problems, _add_utterances, columns, video, data) or {})
            progress.add(1)
        columns["split"] = [split] * len(columns["id"])
        arrays = typed_arrays({name: cells for name, cells in columns.items() if name not in MODALITIES})
        for name in [name for name in MODALITIES if name in columns]:
            arrays[name] = joined(columns[name])[0].to_arrow(width=chosen[name].width)
        tables.append(pa.table(arrays))
    if problems:
        raise data_error(source, problems, named=True)
    return pa.concat_tables(tables), missing


def _add_utterances(
    columns: dict[str, list[Any]], video: str, data: Mapping[str, tuple[npt.NDArray[Any], Spans]]
) -> Counter[str]:
    """Append the utterances of one video in order of time; count the words without a row of each modality.

    DataError if the utterances have far more words than the video, since the text of a small file would be endless.
    """
    label_ND, label_N2 = data["labels"]
    words, word_W2 = _words(*data["words"]) if "words" in data else ([], np.empty((0, 2)))
    rows = {role: _word_rows(*data[role], word_W2) for role in MODALITIES if role in data}
    missing: Counter[str] = Counter()
    middle_W = word_W2.mean(axis=1)
    remaining = _LARGEST_OVERLAP * (len(words) + _LARGEST_OVERLAP)
    for place in np.argsort(label_N2[:, 0], kind="stable").tolist():
        start, end = label_N2[place]
        inside = np.flatnonzero((middle_W >= start) & (middle_W < end))
        remaining -= len(inside)
        if remaining < 0:
            raise DataError(
                f"video {video!r}: the intervals of its labels overlap so much that each has most of its words"
            )
        columns["id"].append(f"{video}[{place}]")
        columns["text"].append(" ".join(words[word] for word in inside))
        columns["label"].append(float(label_ND[place, 0]))
        columns["video_id"].append(video)
        for role in MODALITIES:
            if role in rows:
                means_WD, bare_W = rows[role]
                columns[role].append(means_WD[inside])
                missing[f"words without a row of {role}, which get zeros"] += int(bare_W[inside].sum())
            elif role in columns:
                columns[role].append(None)
    return missing


def _words(features_N1: npt.NDArray[Any], spans_N2: Spans) -> tuple[list[str], Spans]:
    """Return the words without pauses in order of time; a text with a space becomes several words of one interval."""
    words, places = [], []
    for place in np.argsort(spans_N2[:, 0], kind="stable").tolist():
        text = repaired_text(features_N1[place, 0])
        parts = [part for part in text.split() if part not in _NO_WORDS]
        words += parts
        places += [place] * len(parts)
    return words, spans_N2[places]


def _word_rows(
    features_ND: npt.NDArray[Any], spans_N2: Spans, word_W2: Spans
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return [W, D] means of the rows that overlap each word, zeros without any, and the [W] mask of such words."""
    order_N = np.argsort(spans_N2[:, 0], kind="stable")
    start_N, end_N = spans_N2[order_N].T
    # Rows may overlap, so their ends need not be in order.
    latest_N = np.maximum.accumulate(end_N)
    first_W = np.searchsorted(latest_N, word_W2[:, 0] + _SECONDS, side="right")
    stop_W = np.searchsorted(start_N, word_W2[:, 1] - _SECONDS, side="left")
    means_WD = np.zeros((len(word_W2), features_ND.shape[1]), np.float32)
    bare_W = np.ones(len(word_W2), np.bool_)
    with np.errstate(over="ignore", invalid="ignore"):
        for word, (first, stop) in enumerate(zip(first_W, stop_W, strict=True)):
            rows = order_N[first:stop][end_N[first:stop] > word_W2[word, 0] + _SECONDS]
            if len(rows):
                means_WD[word] = features_ND[rows].mean(axis=0, dtype=np.float64)
                bare_W[word] = False
    return means_WD, bare_W
