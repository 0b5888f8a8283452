"""Which utterances the figures of a model show, and what a caption says of them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

MOST_SHOWN = 3000
"""Utterances that a figure has points, or pairs, for."""


def spread_rows(label_N: NDArray[np.float64], most: int = MOST_SHOWN) -> NDArray[np.int64]:
    """[min(N, most)] rows in ascending order, drawn without chance: evenly spaced in the order of their labels.

    So every label keeps its share, as nearly as whole numbers allow.
    """
    count = len(label_N)
    if count <= most:
        return np.arange(count)
    places = np.linspace(0, count - 1, most).round().astype(np.int64)
    return np.sort(np.argsort(label_N, kind="stable")[places])


def of_split(split: Literal["valid", "test"], rows: int, total: int) -> str:
    """The sentence of a caption that says which utterances are shown."""
    which = f"{total} utterances" if rows == total else f"{rows} of {total} utterances, evenly spaced by label,"
    if split == "test":
        return f"{which} of the test split, which was read after the model had been chosen."
    return f"{which} of the validation split, which the model was chosen on: optimistic."
