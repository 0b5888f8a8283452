"""Import pickles of MAG-BERT, `mosi.pkl` and `mosei.pkl`, which ITHP and others also use, and of MISA and MMIM.

A dict of the splits train, dev and test, each a list of samples ((words, visual, acoustic), label, segment): L words,
visual [L, d] and acoustic [L, d], a number, and `video[i]`. Audio and vision thus have a row for each word. MAG-BERT
tokenises a word with its row. A word with white space therefore becomes several with the same row, an empty word none.

MISA and MMIM have such a list for each split, in train.pkl, dev.pkl and test.pkl, or in one dict. Their samples begin
with (ids, visual, acoustic, words, ...): ids of a private vocabulary, or an empty list, and the words after the
features. Features of MISA have a row for each word; features of MMIM are not aligned to words.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from grcf_ray.data.cells import Cells, items, kind_of, shown, text_of
from grcf_ray.data.raw import RawTable
from grcf_ray.data.samples import Form, first_sample, is_array, is_array_of, samples_table
from grcf_ray.data.sniff import Start, begins_with, files_of, folder_faults, folder_of, only_pickle, pickle_start
from grcf_ray.data.splits import SPLIT_ALIASES
from grcf_ray.data.unpickle import read_pickle
from grcf_ray.data.validation import alignment_faults
from grcf_ray.errors import DataError, data_error

VARIANTS: dict[str, str] = {}

_MODALITIES = (("vision", "visual"), ("audio", "acoustic"))
_MEMBERS = 3
_UNALIGNED = "audio and vision are not aligned to words: some do not have a row for each word"
_OLD_KEYS = ("facet", "covarep", "glove", "opensmile", "emotient", "output_label")
_SEGMENT = re.compile(r"(.+)\[[^\[\]]*\]", re.DOTALL)
_NEEDED = "Needed is the mosi.pkl or mosei.pkl that MAG-BERT reads, or aligned_50.pkl of MMSA"
_OLD = f"an older file, of features (facet, covarep, glove) without the words. {_NEEDED}"
_COLUMNS = (
    "each split is a dict of arrays, as in files of MMSA, which --format mmsa reads, and in files of MFN and of the "
    f"Multimodal Transformer, which lack the words. {_NEEDED}"
)
_SEVERAL = "words with white space, split into several words with the same rows"
_EMPTY = "empty words, left out with their rows"
_NUMBERED = f"its words are numbers of the word2id.pickle of MAG-BERT's first release. {_NEEDED}"


def files(source: Path) -> list[Path]:
    """List the pickles that begin as MAG-BERT's or MISA's, else older ones, which `read` refuses with a remedy."""
    return _whole_files(source) or list(_split_files(source).values()) or begins_with(source, _begins_as_older)


def read(source: Path, variant: str = "") -> RawTable:
    """Read one pickle, or one for each split; DataError names every split and sample of another structure."""
    split_files = {} if _whole_files(source) else _split_files(source)
    if split_files:
        path = folder_of(source)
        _check_others(path, split_files.values())
        content = {name: read_pickle(file) for name, file in split_files.items()}
    else:
        path = only_pickle(source, files(source), _FORM.name)
        start = pickle_start(path)
        if _begins_as_older(start):
            raise DataError(f"{path}: {_OLD}")
        if start[:3:2] == ("dict", "dict") and _key(start[1]) in SPLIT_ALIASES:
            raise DataError(f"{path}: {_COLUMNS}")
        content = read_pickle(path)
    first = _first_content(content)
    if first is not None and len(first) == _MEMBERS and _are_numbers(first[0]):
        raise DataError(f"{path}: {_NUMBERED}")
    raw = samples_table(path, content, _FORM, files=split_files or None, word_aligned=True)
    if first is None or len(first) <= _MEMBERS or not any(alignment_faults(raw.table)):
        return raw
    return replace(raw, word_aligned=False, notes=(*raw.notes, _UNALIGNED))


def _whole_files(source: Path) -> list[Path]:
    return begins_with(source, lambda start: _begins_as_mag(first_sample(start)))


def _first_content(content: Any) -> Sequence[Any] | None:
    """Return the first sample without its label and segment; None for another structure."""
    if not isinstance(content, dict):
        return None
    lists = [rows for rows in content.values() if isinstance(rows, (list, tuple)) and rows]
    sample = lists[0][0] if lists else None
    first = sample[0] if isinstance(sample, (list, tuple)) and sample else None
    return first if isinstance(first, (list, tuple)) else None


def _are_numbers(words: Any) -> bool:
    if isinstance(words, np.ndarray):
        return words.dtype.kind in "iu"
    return isinstance(words, (list, tuple)) and bool(words) and all(type(word) is int for word in words)


def _split_files(source: Path) -> dict[str, Path]:
    """Return the lists of a folder by the names of their splits; a file that is such a list stands for its folder."""
    lists = {}
    for path in files_of(folder_of(source)):
        start = pickle_start(path) if path.stem.lower() in SPLIT_ALIASES else ()
        if start[:1] == ("list",) and _begins_as_mag(start[1:]):
            lists[path.stem] = path
    return lists if source.is_dir() or source in lists.values() else {}


def _check_others(folder: Path, used: Collection[Path]) -> None:
    """Raise DataError for an unreadable file of the folder, or one of a split that is not a list of samples."""
    problems = folder_faults(folder, used)
    problems += [
        f"{path}: not a list of {_FORM.sample}"
        for path in files_of(folder)
        if path not in used and path.stem.lower() in SPLIT_ALIASES and pickle_start(path)
    ]
    if problems:
        raise data_error(folder, problems, named=True)


def _begins_as_mag(sample: Start) -> bool:
    """Return whether a sample begins with words or numbers: a list and then an array, or an array of them.

    The array may lie beyond the first tokens of the file.
    """
    if sample[:1] != ("list",):
        return is_array_of(sample, "USOiu") and not sample[0].endswith("scalar")
    after = list(itertools.dropwhile(_is_word, sample[1:]))
    return len(sample) == 1 or not after or after[0] == "none" or is_array(after[0])


def _is_word(token: str) -> bool:
    # Python 3 writes bytes for Python 2 as a call with the text and its encoding.
    return token.startswith('"') or token in ("bytes", "int", "_codecs.encode")


def _begins_as_older(start: Start) -> bool:
    if start[:1] != ("dict",):
        return False
    keys = start[1:4:2] if start[2:3] == ("dict",) else start[1:2]
    return any(_key(token).startswith(_OLD_KEYS) for token in keys)


def _key(token: str) -> str:
    return str(json.loads(token)).lower() if token.startswith('"') else ""


def _cells(sample: Sequence[Any], cells: Cells) -> dict[str, Any]:
    content, label, segment = sample
    name = cells.id("id", "segment", segment)
    video = _SEGMENT.fullmatch(name or "")
    row = {"id": name, "label": cells.number("label", "label", label), "video_id": video and video[1]}
    if not isinstance(content, (list, tuple)) or len(content) < _MEMBERS:
        cells.fault("text", f"(words, visual, acoustic) is {kind_of(content)}")
        return row
    # MISA and MMIM have the words after the features, and ids or an empty list in their place.
    aligned = len(content) == _MEMBERS
    if (words := _words(content[0 if aligned else _MEMBERS], cells)) is None:
        return row
    text = " ".join(words)
    # The row of every word, if any word was split or left out.
    places = None if text.split() == words else _places(words, cells)
    row["text"] = text if places is None else " ".join(text.split())
    for (column, name), array in zip(_MODALITIES, content[1:_MEMBERS], strict=True):
        rows = cells.rows(column, name, array)
        if rows is not None and len(rows) != len(words):
            if aligned:
                cells.fault(column, f"{name} has {len(rows)} rows for {len(words)} words")
            else:
                row[column] = rows
        elif rows is not None and places != []:
            row[column] = rows if places is None else rows[places]
    return row


def _words(content: Any, cells: Cells) -> list[str] | None:
    """Return the words; None and a fault if one is not a text."""
    members = items(content)
    if members is None:
        cells.fault("text", f"words is {kind_of(content)}, not a list of texts")
        return None
    words = [text_of(word) for word in members]
    wrong = [place for place, word in enumerate(words) if word is None]
    if wrong:
        more = f" ({len(wrong) - 1} more)" if len(wrong) > 1 else ""
        cells.fault("text", f"word {wrong[0] + 1}, {shown(members[wrong[0]])}, is not a text{more}")
        return None
    return [word for word in words if word is not None]


def _places(words: list[str], cells: Cells) -> list[int]:
    parts = [word.split() for word in words]
    cells.counts[_SEVERAL] += sum(len(part) > 1 for part in parts)
    cells.counts[_EMPTY] += sum(not part for part in parts)
    return [place for place, part in enumerate(parts) for _ in part]


_FORM = Form(name="a MAG-BERT pickle", sample="((words, visual, acoustic), label, segment)", members=3, cells=_cells)
