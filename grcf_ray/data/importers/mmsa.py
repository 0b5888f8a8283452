"""Pickles of MMSA: MOSI, MOSEI, CH-SIMS and CH-SIMS v2, and what MMSA-FET extracts from other videos.

A dict of the splits train, valid and test, each a dict of columns of N rows: id (`video$_$clip`), raw_text,
regression_labels, audio and vision [N, L, D], and audio_lengths and vision_lengths [N] where the features are not
aligned. Aligned features follow BERT's subwords, so neither kind has a row for each word. Other columns are ignored.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from grcf_ray.data.frames import Frames
from grcf_ray.data.raw import RAW_SCHEMA, RawTable
from grcf_ray.data.schema import MODALITIES, SPLITS
from grcf_ray.data.sniff import check_kind, pickle_start
from grcf_ray.data.unpickle import read_pickle, repaired_text
from grcf_ray.data.validation import Fault
from grcf_ray.errors import DataError, faults_message

__all__ = ["VARIANTS", "files", "read"]

VARIANTS: dict[str, str] = {}

_REQUIRED = ("id", "raw_text", "regression_labels")
_USED = (*_REQUIRED, *(f"{name}{part}" for name in MODALITIES for part in ("", "_lengths")))
_LABELS = (f"{task}_labels{part}" for task in ("regression", "classification") for part in ("", "_T", "_A", "_V"))
_UNLABELLED = "train_mix"
_FIRST_SPLITS = {json.dumps(name) for name in (*SPLITS, _UNLABELLED)}
_FIRST_COLUMNS = {json.dumps(name) for name in (*_USED, *_LABELS, "text", "text_bert", "annotations", "mask", "labels")}
_CLIP = "$_$"
_TEXT_SHOWN = 40
_ZEROS = "at the end, or at the front of what does not end in zeros"
_MISFIT = f"are not zero beyond their length; zeros are taken off them {_ZEROS}"


@dataclass(frozen=True, kw_only=True)
class _Splits(RawTable):
    """Rows whose place is their number in their split."""

    splits: tuple[tuple[str, int], ...]

    def place(self, row: int) -> str:
        for split, rows in self.splits:
            if row < rows:
                return f"{split} row {row + 1}"
            row -= rows
        raise IndexError(row)


def files(source: Path) -> list[Path]:
    """The pickles that begin with a split and one of MMSA's columns."""
    paths = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    return [path for path in paths if _begins_as_mmsa(path)]


def read(source: Path, variant: str = "") -> RawTable:
    """Read one pickle, split by split; DataError names every split and column that is missing or of a wrong form."""
    path = _only_file(source)
    content = read_pickle(path)
    columns = _checked_columns(path, content)
    notes = [
        "raw_text is tokenised anew: text and text_bert, BERT's vectors and ids, are not used",
        *_left_out(content),
        *_padding_notes(columns),
    ]
    # Frees what is not used, most of the file.
    content.clear()
    tables: list[pa.Table] = []
    faults: list[Fault] = []
    misfits: Counter[str] = Counter()
    start = 0
    for split in SPLITS:
        table, found = _table(split, columns.pop(split), misfits)
        faults += [fault._replace(row=start + fault.row) for fault in found]
        start += table.num_rows
        tables.append(table)
    return _Splits(
        table=pa.concat_tables(tables),
        files=((path, start),),
        faults=tuple(faults),
        notes=(*notes, *(f"{name}: {count} sequences {_MISFIT}" for name, count in sorted(misfits.items()) if count)),
        splits=tuple((split, table.num_rows) for split, table in zip(SPLITS, tables, strict=True)),
    )


def _begins_as_mmsa(path: Path) -> bool:
    start = pickle_start(path)[:4]
    return (
        len(start) == 4 and start[::2] == ("dict", "dict") and start[1] in _FIRST_SPLITS and start[3] in _FIRST_COLUMNS
    )


def _only_file(source: Path) -> Path:
    found = files(source)
    if len(found) > 1:
        raise DataError(f"{source} holds {len(found)} MMSA pickles ({_listed(path.name for path in found)}). Name one")
    if not found and source.is_dir():
        raise DataError(f"{source}: none of its files is an MMSA pickle")
    if not found:
        check_kind(source)
        if not pickle_start(source):
            raise DataError(f"{source}: not a pickle")
    return found[0] if found else source


def _checked_columns(path: Path, content: Any) -> dict[str, dict[str, Any]]:
    """The columns in use of each split, all of the right form and as many rows."""
    if not isinstance(content, dict) or not any(isinstance(content.get(split), dict) for split in SPLITS):
        raise DataError(
            f"{path}: not an MMSA pickle, which is a dict of the splits {', '.join(SPLITS)}, each a dict of columns"
        )
    problems = []
    columns: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        if not isinstance(content.get(split), dict):
            problems.append(f"the split {split} is " + ("no dict of columns" if split in content else "missing"))
            continue
        columns[split] = {name: content[split][name] for name in _USED if name in content[split]}
    # A modality that no split has was not extracted.
    expected = [*_REQUIRED, *(name for name in MODALITIES if any(name in split for split in columns.values()))]
    for split, present in columns.items():
        if missing := [name for name in expected if name not in present]:
            problems.append(f"{split}: missing {', '.join(missing)}; present: {_listed(content[split])}")
        problems += [f"{split}: {problem}" for problem in _column_problems(present)]
    problems += _width_problems(columns)
    if problems:
        raise DataError(f"{path}: {problems[0]}" if len(problems) == 1 else faults_message(f"{path}:", problems))
    return columns


def _column_problems(columns: dict[str, Any]) -> Iterable[str]:
    rows = len(columns["id"]) if "id" in columns and not _form_problem("id", columns["id"]) else None
    for name, values in columns.items():
        if problem := _form_problem(name, values):
            yield f"{name} {problem}"
        elif rows is not None and len(values) != rows:
            yield f"{name} has {len(values)} rows, where id has {rows}"


def _form_problem(name: str, values: Any) -> str:
    """What is wrong with a column as a whole, empty where it is a value for each row, or a sequence of vectors."""
    array = isinstance(values, np.ndarray)
    if name in MODALITIES:
        if not array or values.dtype.kind not in "fiu":
            return f"is {_kind(values)}, not an array of numbers"
        if values.ndim != 3 or not all(values.shape[1:]):
            return f"is of shape {values.shape}, not utterances x rows x values"
    elif array and values.ndim:
        if values.size != len(values):
            return f"is of shape {values.shape}, not one value for each row"
    elif array or not isinstance(values, (list, tuple)):
        return f"is {_kind(values)}, not one value for each row"
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
        why = ": it is train with rows added that have no label" if name == _UNLABELLED else ""
        notes.append(f"{_shown(name)}{rows} is left out{why}")
    return notes


def _table(split: str, columns: dict[str, Any], misfits: Counter[str]) -> tuple[pa.Table, list[Fault]]:
    """The rows of one split and their faults; misfits counts the sequences that do not fit their lengths."""
    faults: list[Fault] = []
    ids = _texts("id", "id", columns.pop("id"), faults)
    table = {
        "id": ids,
        "split": [split] * len(ids),
        "text": _texts("text", "raw_text", columns.pop("raw_text"), faults),
        "label": _numbers("label", "regression_labels", columns.pop("regression_labels"), faults),
        "video_id": [name.partition(_CLIP)[0] if name and _CLIP in name else None for name in ids],
    }
    arrays = {name: pa.array(values, RAW_SCHEMA.field(name).type) for name, values in table.items()}
    for name in [name for name in MODALITIES if name in columns]:
        length_N = _lengths(name, columns, faults)
        arrays[name], count = _unpadded(columns.pop(name), length_N)
        misfits[name] += count
    return pa.table(arrays), faults


def _texts(column: str, key: str, values: Any, faults: list[Fault]) -> list[str | None]:
    texts: list[str | None] = []
    for row, cell in enumerate(_cells(values)):
        text = repaired_text(cell) if isinstance(cell, (str, bytes)) else None
        if text is None or not _is_unicode(text):
            faults.append(Fault(row, column, f"{key} {_shown(cell)} is not a text"))
            text = None
        texts.append(text)
    return texts


def _numbers(column: str, key: str, values: Any, faults: list[Fault]) -> list[float | None]:
    numbers: list[float | None] = []
    for row, cell in enumerate(_cells(values)):
        number = _number(cell)
        if number is None:
            faults.append(Fault(row, column, f"{key} {_shown(cell)} is not a number"))
        numbers.append(number)
    return numbers


def _lengths(name: str, columns: dict[str, Any], faults: list[Fault]) -> npt.NDArray[np.int64] | None:
    """[N] rows of each sequence, None where the file does not say."""
    key = f"{name}_lengths"
    if key not in columns:
        return None
    most = columns[name].shape[1]
    lengths = _numbers(name, key, columns.pop(key), faults)
    for row, length in enumerate(lengths):
        if length is not None and not (0 <= length <= most and length.is_integer()):
            faults.append(Fault(row, name, f"{key} is {length:g}, where a sequence has {most} rows"))
            lengths[row] = None
    return np.array([length or 0 for length in lengths], np.int64)


def _unpadded(array: npt.NDArray[Any], length_N: npt.NDArray[np.int64] | None) -> tuple[pa.Array, int]:
    """Sequences without their padding, null where nothing is left, and how many did not fit their lengths.

    A length counts from the front. Without one, or where the very last row lies beyond it and is not zero, rows of
    zeros are taken off: those at the end, or those at the front where there are none at the end. A sequence of
    nothing but zeros is null.
    """
    filled_NL = np.asarray(array.any(axis=2))
    most = filled_NL.shape[1]
    ends_filled_N = filled_NL[:, -1]
    start_N = np.where(ends_filled_N, filled_NL.argmax(axis=1), 0)
    stop_N = most - filled_NL[:, ::-1].argmax(axis=1)
    misfit_N = np.zeros(len(array), bool)
    if length_N is not None:
        misfit_N = ends_filled_N & (length_N < most)
        start_N, stop_N = np.where(misfit_N, start_N, 0), np.where(misfit_N, stop_N, length_N)
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
        how = f"by {name}_lengths" if f"{name}_lengths" in columns["train"] else f"where it is zero, {_ZEROS}"
        yield f"{name}: padding is taken off {how}"


def _cells(values: Any) -> list[Any]:
    """A value for each row of a column that holds them as [N], as [N, 1] or as a list."""
    if isinstance(values, np.ndarray):
        flat = np.asarray(values).reshape(-1)
        return (flat.astype(np.float64) if flat.dtype.kind == "f" else flat).tolist()
    return [_alone(cell) for cell in values]


def _alone(cell: Any) -> Any:
    if isinstance(cell, np.ndarray):
        return cell.item() if cell.size == 1 else cell
    return cell[0] if isinstance(cell, (list, tuple)) and len(cell) == 1 else cell


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, (int, float)):
        return None
    try:
        return float(cell)
    except OverflowError:
        return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(cell: Any) -> str:
    """A short text for a value of any kind."""
    if isinstance(cell, (str, bytes)):
        return repr(cell[:_TEXT_SHOWN])
    return _kind(cell)


def _kind(values: Any) -> str:
    if isinstance(values, np.ndarray):
        kinds = {"f": "numbers", "i": "numbers", "u": "numbers", "b": "truth values", "O": "objects"}
        return f"an array of {kinds.get(values.dtype.kind, 'texts')}"
    return f"of type {type(values).__name__}"


def _listed(names: Iterable[Any]) -> str:
    texts = [name for name in names if isinstance(name, str)]
    return ", ".join(name if name.isprintable() else repr(name) for name in (text[:_TEXT_SHOWN] for text in texts[:20]))
