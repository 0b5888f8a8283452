"""Draw a split by a fixed rule: the same rows on every machine and for any order of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from grcf_ray.data.validation import FEWEST_OF_A_CLASS, FEWEST_ROWS
from grcf_ray.errors import DataError

SPLIT_ALIASES = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
"""The field's names of the splits, in lower case, and the name of each in an utterance table."""

_SHARE = 1 / 10
_LARGEST_SHARE = 0.12


def stratified(ids: Sequence[str], label_N: npt.NDArray[np.float64], *, block: int) -> npt.NDArray[np.int64]:
    """Number the rows: each block of neighbours in label gets 0..block-1, in the order of a hash of the ids."""
    hashes = [_hash(name) for name in ids]
    by_label = sorted(range(len(ids)), key=lambda row: (label_N[row], hashes[row]))
    part_N = np.empty(len(ids), np.int64)
    for start in range(0, len(ids), block):
        rows = sorted(by_label[start : start + block], key=lambda row: hashes[row])
        part_N[rows] = np.arange(len(rows))
    return part_N


def grouped(groups: Sequence[str], *, share: float, largest: float) -> npt.NDArray[np.bool_]:
    """Return an [N] mask of whole groups, taken in the order of a hash: `share` of the rows, at most `largest`."""
    names, member_N, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    taken: list[int] = []
    rows = 0
    for group in sorted(range(len(names)), key=lambda group: _hash(str(names[group]))):
        if rows >= share * len(groups):
            break
        if rows + sizes[group] <= largest * len(groups):
            taken.append(group)
            rows += int(sizes[group])
    return np.isin(member_N, taken)


def draw_valid(
    ids: Sequence[str],
    label_N: npt.NDArray[np.float64],
    groups: Sequence[str] | None,
    *,
    classes: bool = False,
) -> tuple[npt.NDArray[np.bool_], str]:
    """Return an [N] mask of the training rows for the valid split, about a tenth, and a note on the rule.

    With `groups`, whole groups are drawn, so that no video is in both splits; otherwise rows, stratified by label.
    DataError if the split would have too few rows or, with `classes`, too few of either class.
    """
    if groups is not None:
        valid_N = grouped(groups, share=_SHARE, largest=_LARGEST_SHARE)
    else:
        valid_N = stratified(ids, label_N, block=round(1 / _SHARE)) == 0
    drawn = f"the split valid is missing, and the {len(ids)} training utterances are enough to draw"
    remedy = "Mark more utterances with split valid: early stopping and selection use them"
    _check_enough(label_N[valid_N], f"{drawn} {valid_N.sum()} for it", remedy, classes=classes)
    return valid_N, f"no valid split given: {valid_N.sum()} of {len(ids)} training utterances drawn, {_rule(groups)}"


def draw_splits(
    ids: Sequence[str],
    label_N: npt.NDArray[np.float64],
    groups: Sequence[str] | None,
    *,
    classes: bool = False,
) -> tuple[list[str], str]:
    """Return the split of each row, about 70 % train, 10 % valid and 20 % test, and a note on the rule.

    The rule, and the errors, are those of `draw_valid`; each split keeps its groups whole.
    """
    if groups is not None:
        test_N = grouped(groups, share=2 * _SHARE, largest=2 * _LARGEST_SHARE)
        valid_N, left = np.zeros(len(ids), bool), 1 - 2 * _SHARE
        rest = [group for group, test in zip(groups, test_N, strict=True) if not test]
        valid_N[~test_N] = grouped(rest, share=_SHARE / left, largest=_LARGEST_SHARE / left)
    else:
        part_N = stratified(ids, label_N, block=round(1 / _SHARE))
        valid_N, test_N = part_N == 0, (part_N == 1) | (part_N == 2)
    names_N = np.select([valid_N, test_N], ["valid", "test"], "train")
    whole = f" in whole groups of {len(set(groups))}" if groups is not None else ""
    remedy = "Give more utterances, or a column with the values train, valid and test: --split-column NAME"
    for split in ("valid", "test"):
        label_M = label_N[names_N == split]
        drawn = f"no splits given, and the {len(ids)} utterances are enough to draw {len(label_M)}{whole} for {split}"
        _check_enough(label_M, drawn, remedy, classes=classes)
    sizes = "/".join(str(int((names_N == split).sum())) for split in ("train", "valid", "test"))
    return names_N.tolist(), f"no splits given: {sizes} utterances drawn for train/valid/test, {_rule(groups)}"


def _rule(groups: Sequence[str] | None) -> str:
    if groups is None:
        return "stratified by label on a hash of the id"
    return "whole videos or groups in the order of a hash of their names"


def _check_enough(label_M: npt.NDArray[np.float64], drawn: str, remedy: str, *, classes: bool) -> None:
    """Raise DataError if a drawn split has too few rows or, with `classes`, too few of either class."""
    few = classes and min(int((label_M == value).sum()) for value in (0, 1)) < FEWEST_OF_A_CLASS
    if few or len(label_M) < FEWEST_ROWS:
        each = f", {FEWEST_OF_A_CLASS} of each class" if classes else ""
        raise DataError(f"{drawn}, but {FEWEST_ROWS} are needed{each}. {remedy}")


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
