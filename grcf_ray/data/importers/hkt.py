"""Import pickles of HKT, the Humor Knowledge Enriched Transformer: MUStARD and UR-FUNNY, split and with features.

A dict of the splits train, dev and test, each a list of samples (punchline, context, id, label). Punchline and context
are (words, visual [n, 91], acoustic [n, 81], hcf): the punchline's words are one text, the context's a text for each
sentence. As in HKT's code, columns 55 to 90 of visual and 0 to 59 of acoustic are used, but only of the punchline.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grcf_ray.data.cells import Cells, alone, items, kind_of, number_of, shown, texts_of
from grcf_ray.data.frames import Rows
from grcf_ray.data.raw import RawTable
from grcf_ray.data.samples import Form, first_sample, is_array, is_array_of, samples_table
from grcf_ray.data.sniff import Start, begins_with, only_pickle
from grcf_ray.data.unpickle import read_pickle

VARIANTS: dict[str, str] = {}

_PART = "({0}_words, {0}_visual, {0}_acoustic, {0}_hcf)"
_PART_MEMBERS = 4
# Width in the file, and the columns that HKT uses.
_USED = {"vision": (91, slice(55, 91)), "audio": (81, slice(0, 60))}
_NOTES = (
    "vision is columns 55 to 90 of the punchline's 91, audio columns 0 to 59 of its 81, as in HKT",
    "the context's features and the humor-centric ones (hcf) are not used",
)


def files(source: Path) -> list[Path]:
    """List the pickles whose first sample begins with a text and an array."""
    return begins_with(source, _begins_as_hkt)


def read(source: Path, variant: str = "") -> RawTable:
    """Read one pickle; DataError names every split and sample of another structure."""
    path = only_pickle(source, files(source), _FORM.name)
    return samples_table(path, read_pickle(path), _FORM, notes=_NOTES)


def _begins_as_hkt(start: Start) -> bool:
    sample = first_sample(start)
    if sample[:1] == ("_codecs.encode",):
        # Python 3 writes bytes for Python 2 as a call with the text and its encoding.
        sample = (*sample[1:2], *(token for token in sample[2:] if token != '"latin1"'))
    if sample and sample[0].endswith("scalar"):
        return is_array_of(sample, "USO")
    has_text = bool(sample) and (sample[0] == "bytes" or sample[0].startswith('"'))
    return has_text and (len(sample) == 1 or sample[1] == "none" or is_array(sample[1]))


def _cells(sample: Sequence[Any], cells: Cells) -> dict[str, Any]:
    punchline, context, name, label = sample
    row: dict[str, Any] = {
        "id": cells.id("id", "id", name),
        "label": cells.read("label", "label", label, _label, "a number"),
    }
    if _is_part(punchline):
        row["text"] = cells.text("text", "p_words", punchline[0])
        row["vision"] = _rows("vision", "p_visual", punchline[1], cells)
        row["audio"] = _rows("audio", "p_acoustic", punchline[2], cells)
    else:
        cells.fault("text", f"{_PART.format('p')} is {kind_of(punchline)}")
    if _is_part(context):
        row["context"] = _context(context[0], cells)
    else:
        cells.fault("context", f"{_PART.format('c')} is {kind_of(context)}")
    return row


def _is_part(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and len(part) == _PART_MEMBERS


def _label(cell: Any) -> float | None:
    label = alone(cell)
    return float(label) if isinstance(label, bool) else number_of(label)


def _rows(column: str, name: str, cell: Any, cells: Cells) -> Rows | None:
    """Return the used columns of a modality without the rows of zeros at its end; None if no row is left."""
    width, used = _USED[column]
    rows = cells.rows(column, name, cell)
    if rows is not None and rows.shape[1] != width:
        cells.fault(column, f"{name} is of shape {rows.shape}, not rows of {width} values")
        rows = None
    if rows is None:
        return None
    filled = np.flatnonzero(rows.any(axis=1))
    stop = int(filled[-1]) + 1 if len(filled) else 0
    cells.counts[f"sequences of {column} with rows of zeros removed from their end"] += stop < len(rows)
    return rows[:stop, used] if stop else None


def _context(content: Any, cells: Cells) -> list[str] | None:
    """Return the sentences before the punchline, each a text or a list of words; None without any."""
    sentences = [content] if isinstance(content, (str, bytes)) else items(() if content is None else content)
    if sentences is None:
        cells.fault("context", f"c_words is {kind_of(content)}, not a list of sentences")
        return None
    texts = [_sentence(sentence) for sentence in sentences]
    for number, (sentence, text) in enumerate(zip(sentences, texts, strict=True), 1):
        if text is None:
            cells.fault("context", f"sentence {number} of c_words, {shown(sentence)}, is not a text")
            return None
    return [text for text in texts if text and text.strip()] or None


def _sentence(sentence: Any) -> str | None:
    words = texts_of([sentence] if isinstance(sentence, (str, bytes)) else items(sentence))
    return None if words is None else " ".join(words)


_FORM = Form(
    name="an HKT pickle",
    sample=f"({_PART.format('p')}, {_PART.format('c')}, id, label)",
    members=4,
    cells=_cells,
)
