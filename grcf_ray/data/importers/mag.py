"""Pickles of MAG-BERT, `mosi.pkl` and `mosei.pkl`, which ITHP and others use too.

A dict of the splits train, dev and test, each a list of samples ((words, visual, acoustic), label, segment): L words,
visual [L, d] and acoustic [L, d], a number, and `video[i]`. Audio and vision thus have a row for each word. As MAG-BERT
tokenises a word with its row, a word with white space in it becomes several with the same row, and an empty one none.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grcf_ray.data.cells import Cells, items, kind_of, shown, text_of
from grcf_ray.data.raw import RawTable
from grcf_ray.data.samples import Form, first_sample, is_array, is_text_array, read_samples
from grcf_ray.data.sniff import Start, begins_with, only_pickle, pickle_start
from grcf_ray.data.splits import SPLIT_ALIASES
from grcf_ray.errors import DataError

__all__ = ["VARIANTS", "files", "read"]

VARIANTS: dict[str, str] = {}

_MODALITIES = (("vision", "visual"), ("audio", "acoustic"))
_OLD_KEYS = ("facet", "covarep", "glove", "opensmile", "emotient", "output_label")
_SEGMENT = re.compile(r"(.+)\[[^\[\]]*\]", re.DOTALL)
_NEEDED = "Needed is the mosi.pkl or mosei.pkl that MAG-BERT reads, or aligned_50.pkl of MMSA"
_OLD = f"an older file, of features (facet, covarep, glove) without the words. {_NEEDED}"
_COLUMNS = (
    "each split is a dict of arrays, as in files of MMSA, which --format mmsa reads, and in those of MFN and of the "
    f"Multimodal Transformer, which lack the words. {_NEEDED}"
)
_SEVERAL = "words with white space in them, each of which is several with the same rows"
_EMPTY = "words with nothing in them, which are left out with their rows"
_NUMBERED = f"its words are numbers, to be looked up in the word2id.pickle of MAG-BERT's first release. {_NEEDED}"


def files(source: Path) -> list[Path]:
    """The pickles that begin as MAG-BERT's; where there are none, older ones of the same name, for `read` to refuse."""
    return begins_with(source, _begins_as_mag) or begins_with(source, _begins_as_older)


def read(source: Path, variant: str = "") -> RawTable:
    """Read one pickle; DataError names every split and sample of another form, and says what an older file is."""
    path = only_pickle(source, files(source), _FORM.name)
    start = pickle_start(path)
    if _begins_as_older(start):
        raise DataError(f"{path}: {_OLD}")
    if _begins_as_mag(start) and first_sample(start)[:2] == ("list", "int"):
        raise DataError(f"{path}: {_NUMBERED}")
    if start[:3:2] == ("dict", "dict") and _key(start[1]) in SPLIT_ALIASES:
        raise DataError(f"{path}: {_COLUMNS}")
    return read_samples(path, _FORM, word_aligned=True)


def _begins_as_mag(start: Start) -> bool:
    """A sample that begins with a list of words and, if the start goes so far, an array; or with an array of texts."""
    sample = first_sample(start)
    if sample[:1] != ("list",):
        return is_text_array(sample) and not sample[0].endswith("scalar")
    after = list(itertools.dropwhile(_is_word, sample[1:]))
    if len(after) == len(sample) - 1:
        return is_text_array(sample[1:])
    return not after or after[0] == "none" or is_array(after[0])


def _is_word(token: str) -> bool:
    # Bytes that Python 3 wrote for Python 2 are a call with the text and its encoding.
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
    name = cells.text("id", "segment", segment)
    video = _SEGMENT.fullmatch(name or "")
    row = {"id": name, "label": cells.number("label", "label", label), "video_id": video and video[1]}
    if not isinstance(content, (list, tuple)) or len(content) != 3:
        cells.fault("text", f"(words, visual, acoustic) is {kind_of(content)}")
        return row
    if (words := _words(content[0], cells)) is None:
        return row
    text = " ".join(words)
    # The place in the file of every word, where that is not its own.
    places = None if text.split() == words else _places(words, cells)
    row["text"] = text if places is None else " ".join(text.split())
    for (column, name), array in zip(_MODALITIES, content[1:], strict=True):
        rows = cells.rows(column, name, array)
        if rows is not None and len(rows) != len(words):
            cells.fault(column, f"{name} has {len(rows)} rows for {len(words)} words")
        elif rows is not None and places != []:
            row[column] = rows if places is None else rows[places]
    return row


def _words(content: Any, cells: Cells) -> list[str] | None:
    """The words, None with a fault where one is no text."""
    found = items(content)
    if found is None:
        cells.fault("text", f"words is {kind_of(content)}, not a list of texts")
        return None
    words = [text_of(word) for word in found]
    wrong = [place for place, word in enumerate(words) if word is None]
    if wrong:
        more = f", nor are {len(wrong) - 1} more" if len(wrong) > 1 else ""
        cells.fault("text", f"word {wrong[0] + 1}, {shown(found[wrong[0]])}, is not a text{more}")
        return None
    return [word for word in words if word is not None]


def _places(words: list[str], cells: Cells) -> list[int]:
    parts = [word.split() for word in words]
    cells.counts[_SEVERAL] += sum(len(found) > 1 for found in parts)
    cells.counts[_EMPTY] += sum(not found for found in parts)
    return [place for place, found in enumerate(parts) for _ in found]


_FORM = Form(name="a MAG-BERT pickle", sample="((words, visual, acoustic), label, segment)", members=3, cells=_cells)
