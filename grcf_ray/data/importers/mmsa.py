"""Import pickles of MMSA: MOSI, MOSEI, CH-SIMS and CH-SIMS v2, and features that MMSA-FET extracts.

A dict of the splits train, valid and test, each a dict of columns of N rows: id (`video$_$clip`), raw_text,
regression_labels, audio and vision [N, L, D], and audio_lengths and vision_lengths [N] if the features are not
aligned. Aligned features have a row for each of BERT's subwords, so neither kind has a row for each word. Other
columns are ignored.

Sequences are padded with rows of zeros at their end or, optionally in MMSA-FET, at their start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from grcf_ray.data.cells import Cells, kind_of, number_of, shown
from grcf_ray.data.frames import Frames
from grcf_ray.data.raw import RawTable, typed_arrays
from grcf_ray.data.schema import MODALITIES, SPLITS
from grcf_ray.data.sniff import Start, begins_with, only_pickle
from grcf_ray.data.unpickle import read_pickle
from grcf_ray.errors import DataError, data_error

VARIANTS: dict[str, str] = {}

_T = TypeVar("_T")

_REQUIRED = ("id", "raw_text", "regression_labels")
_USED = (*_REQUIRED, *(f"{name}{part}" for name in MODALITIES for part in ("", "_lengths")))
_LABELS = (f"{task}_labels{part}" for task in ("regression", "classification") for part in ("", "_T", "_A", "_V"))
_UNLABELLED = "train_mix"
_FIRST_SPLITS = {json.dumps(name) for name in (*SPLITS, _UNLABELLED)}
_FIRST_COLUMNS = {json.dumps(name) for name in (*_USED, *_LABELS, "text", "text_bert", "annotations", "mask", "labels")}
_CLIP = "$_$"
_NAME_SHOWN = 40
_NO_TEXTS = (
    "it has no texts (raw_text), only word vectors (text), as in files of MFN and of the Multimodal Transformer. "
    "Needed is aligned_50.pkl or unaligned_50.pkl of MMSA, or the mosi.pkl or mosei.pkl that MAG-BERT reads"
)
_ZEROS = "at both ends"
_MISFIT = f"{{}} sequences do not fit their length; their rows of zeros {_ZEROS} are removed"
_CUT = f"{{}} sequences are shorter than their length; their rows of zeros {_ZEROS} are removed"
_NO_TEXT = "nan"
"""The text that pandas and NumPy make of an empty cell."""
_EMPTY = f"text: {{}} texts that are {_NO_TEXT} count as empty, since files have {_NO_TEXT} for an empty text"


def files(source: Path) -> list[Path]:
    """List the pickles that begin with a split and one of MMSA's columns."""
    return begins_with(source, _begins_as_mmsa)


def read(source: Path, variant: str = "") -> RawTable:
    """Read one pickle, split by split; DataError names every split and column that is missing or malformed."""
    path = only_pickle(source, files(source), "an MMSA pickle")
    content = read_pickle(path)
    columns = _checked_columns(path, content)
    notes = [
        "raw_text is tokenised again: the vectors and ids of BERT (text, text_bert) are not used",
        *_left_out(content),
        *_padding_notes(columns),
    ]
    # Free the unused columns, most of the file.
    content.clear()
    tables: dict[str, pa.Table] = {}
    cells = Cells()
    rows = 0
    for split in list(columns):
        tables[split] = _table(split, columns.pop(split), cells, rows)
        rows += tables[split].num_rows
    return RawTable(
        table=pa.concat_tables(tables.values()),
        files=((path, rows),),
        faults=tuple(cells.faults),
        notes=(*notes, *(note.format(count) for note, count in sorted(cells.counts.items()) if count)),
        splits=tuple((split, table.num_rows) for split, table in tables.items()),
    )


def _begins_as_mmsa(start: Start) -> bool:
    if len(start) < 4 or start[:3:2] != ("dict", "dict"):
        return False
    return start[1] in _FIRST_SPLITS and start[3] in _FIRST_COLUMNS


def _checked_columns(path: Path, content: Any) -> dict[str, dict[str, Any]]:
    """Return the used columns of each split, well-formed and of equal length; the split valid may be missing."""
    if not isinstance(content, dict) or not any(isinstance(content.get(split), dict) for split in SPLITS):
        raise DataError(
            f"{path}: not an MMSA pickle, which is a dict of the splits {', '.join(SPLITS)}, each a dict of columns"
        )
    problems = []
    columns: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        if split == "valid" and split not in content:
            continue
        if not isinstance(content.get(split), dict):
            problems.append(f"the split {split} is " + ("not a dict of columns" if split in content else "missing"))
            continue
        columns[split] = {name: content[split][name] for name in _USED if name in content[split]}
    vectors = [content[split].get("text") for split in columns if "raw_text" not in columns[split]]
    if len(vectors) == len(columns) and all(isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in vectors):
        raise DataError(f"{path}: {_NO_TEXTS}")
    # A modality that no split has was not extracted.
    expected = [*_REQUIRED, *(name for name in MODALITIES if any(name in split for split in columns.values()))]
    for split, present in columns.items():
        if missing := [name for name in expected if name not in present]:
            problems.append(f"{split}: missing {', '.join(missing)}; present: {_listed(content[split])}")
        problems += [f"{split}: {problem}" for problem in _column_problems(present)]
    problems += _width_problems(columns)
    if problems:
        raise data_error(path, problems)
    return columns


def _column_problems(columns: dict[str, Any]) -> Iterable[str]:
    rows = len(columns["id"]) if "id" in columns and not _form_problem("id", columns["id"]) else None
    for name, values in columns.items():
        if problem := _form_problem(name, values):
            yield f"{name} {problem}"
        elif rows is not None and len(values) != rows:
            yield f"{name} has {len(values)} rows, where id has {rows}"


def _form_problem(name: str, values: Any) -> str:
    """Describe the fault of a column as a whole; empty for one value, or one sequence of vectors, for each row."""
    array = isinstance(values, np.ndarray)
    if name in MODALITIES:
        if not array or values.dtype.kind not in "fiu":
            return f"is {kind_of(values)}, not an array of numbers"
        if values.ndim != 3 or not all(values.shape[1:]):
            return f"is of shape {values.shape}, not utterances x rows x values"
    elif array and values.ndim:
        if values.size != len(values):
            return f"is of shape {values.shape}, not one value for each row"
    elif array or not isinstance(values, (list, tuple)):
        return f"is {kind_of(values)}, not one value for each row"
    return ""


def _width_problems(columns: dict[str, dict[str, Any]]) -> Iterable[str]:
    for name in MODALITIES:
        arrays = {split: present[name] for split, present in columns.items() if name in present}
        widths = {split: a.shape[2] for split, a in arrays.items() if not _form_problem(name, a)}
        if len(set(widths.values())) > 1:
            yield f"{name} differs in width: " + ", ".join(f"{width} in {split}" for split, width in widths.items())


def _left_out(content: dict[Any, Any]) -> list[str]:
    notes = []
    for name in sorted(name for name in content if isinstance(name, str) and name not in SPLITS):
        ids: Any = content[name].get("id") if isinstance(content[name], dict) else None
        rows = "" if _form_problem("id", ids) else f" with its {len(ids)} rows"
        reason = ": it is train plus rows without labels" if name == _UNLABELLED else ""
        notes.append(f"{shown(name)}{rows} is left out{reason}")
    return notes


def _table(split: str, columns: dict[str, Any], cells: Cells, start: int) -> pa.Table:
    """Make the rows of one split, from the table's row `start` on; count sequences that do not fit their lengths."""

    def read(parse: Callable[[str, str, Any], _T], column: str, key: str) -> list[_T]:
        return [parse(column, key, cell) for cell in cells.each(_values(columns.pop(key)), start)]

    def text(column: str, key: str, cell: Any) -> str | None:
        number = number_of(cell)
        is_nan = number is not None and np.isnan(number)
        if not is_nan and (value := cells.text(column, key, cell)) != _NO_TEXT:
            return value
        cells.counts[_EMPTY] += 1
        return ""

    ids = read(cells.id, "id", "id")
    table: dict[str, list[Any]] = {
        "id": ids,
        "split": [split] * len(ids),
        "text": read(text, "text", "raw_text"),
        "label": read(cells.number, "label", "regression_labels"),
        "video_id": [name.partition(_CLIP)[0] if name and _CLIP in name else None for name in ids],
    }
    arrays = typed_arrays(table)
    for name in [name for name in MODALITIES if name in columns]:
        key = f"{name}_lengths"
        lengths = read(cells.number, name, key) if key in columns else None
        length_N = None if lengths is None else _whole(name, lengths, columns[name].shape[1], cells, start)
        arrays[name], count = _unpadded(columns.pop(name), length_N)
        cells.counts[f"{name}: {_MISFIT}"] += count
    return pa.table(arrays)


def _whole(name: str, lengths: Sequence[float | None], most: int, cells: Cells, start: int) -> npt.NDArray[np.int64]:
    """Return [N] rows of each sequence, -1 for one that was cut; a fault for anything but a number of rows."""
    length_N = np.zeros(len(lengths), np.int64)
    for row, length in enumerate(cells.each(lengths, start)):
        if length is None:
            continue
        if not (length >= 0 and length.is_integer()):
            cells.fault(name, f"{name}_lengths is {length:g}, not a number of rows")
        elif length <= most:
            length_N[row] = length
        else:
            length_N[row] = -1
            cells.counts[f"{name}: {_CUT}"] += 1
    return length_N


def _unpadded(array: npt.NDArray[Any], length_N: npt.NDArray[np.int64] | None) -> tuple[pa.Array, int]:
    """Remove the padding of sequences, and count those that do not fit their lengths.

    The padding is at the side where all rows beyond the length are zero; if both sides are, at that of most sequences.
    A sequence that starts with a row and ends in zeros may have more rows than its length: they are left out. Any
    other sequence, and one without a length (None or -1), loses the rows of zeros at both ends. So do features aligned
    to subwords, whose first and last token have no row. A sequence of zeros alone is null.
    """
    filled_NL = np.asarray(array.any(axis=2))
    most = filled_NL.shape[1]
    start_N, stop_N = filled_NL.argmax(axis=1), most - filled_NL[:, ::-1].argmax(axis=1)
    misfit_N = np.zeros(len(array), bool)
    if length_N is not None:
        told_N = (length_N >= 0) & filled_NL.any(axis=1)
        ends_N, starts_N = told_N & (stop_N <= length_N), told_N & (start_N >= most - length_N)
        mostly_starts = int((starts_N & ~ends_N).sum()) > int((ends_N & ~starts_N).sum())
        at_start_N = starts_N & (mostly_starts | ~ends_N)
        longer_N = told_N & ~ends_N & ~starts_N & (length_N > 0) & filled_NL[:, 0] & ~filled_NL[:, -1]
        at_end_N = (ends_N & ~at_start_N) | longer_N
        misfit_N = told_N & ~at_start_N & ~at_end_N
        start_N = np.where(at_start_N, most - length_N, np.where(at_end_N, 0, start_N))
        stop_N = np.where(at_end_N, length_N, np.where(at_start_N, most, stop_N))
    stop_N[~filled_NL.any(axis=1)] = 0
    position_L = np.arange(most)
    kept_NL = (position_L >= start_N[:, None]) & (position_L < stop_N[:, None])
    rows_N = kept_NL.sum(axis=1)
    with np.errstate(over="ignore"):
        values = np.asarray(array)[kept_NL].astype(np.float32, copy=False)
    width = array.shape[2]
    frames = Frames(rows_N, np.full(len(values), width), values.reshape(-1))
    return frames.to_arrow(width=width), int(misfit_N.sum())


def _padding_notes(columns: dict[str, dict[str, Any]]) -> Iterable[str]:
    for name in [name for name in MODALITIES if name in columns["train"]]:
        rule = f"by {name}_lengths" if f"{name}_lengths" in columns["train"] else f"where it is zero, {_ZEROS}"
        yield f"{name}: padding is removed {rule}"


def _values(column: Any) -> list[Any]:
    """Return the values of a column, which is an array [N] or [N, 1] or a list."""
    if isinstance(column, np.ndarray):
        flat = np.asarray(column).reshape(-1)
        return (flat.astype(np.float64) if flat.dtype.kind == "f" else flat).tolist()
    return list(column)


def _listed(names: Iterable[Any]) -> str:
    texts = [name for name in names if isinstance(name, str)]
    return ", ".join(name if name.isprintable() else repr(name) for name in (text[:_NAME_SHOWN] for text in texts[:20]))
