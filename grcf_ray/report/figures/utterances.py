"""Choose the utterances that the figures of a model show, and describe them in captions."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

MOST_SHOWN = 3000
"""Most utterances of a figure."""


def spread_rows(label_N: NDArray[np.float64], most: int = MOST_SHOWN) -> NDArray[np.int64]:
    """Return [min(N, most)] row numbers in ascending order, evenly spaced in the order of the labels.

    Every label keeps its share, up to rounding.
    """
    count = len(label_N)
    if count <= most:
        return np.arange(count)
    places = np.linspace(0, count - 1, most).round().astype(np.int64)
    return np.sort(np.argsort(label_N, kind="stable")[places])


def of_split(split: Literal["valid", "test"], rows: int, total: int) -> str:
    """Return the sentence of a caption that tells which utterances are shown."""
    which = f"{total} utterances" if rows == total else f"{rows} of {total} utterances, evenly spaced by label,"
    if split == "test":
        return f"{which} of the test split, which was read after the model was chosen."
    return f"{which} of the validation split, which chose the model: optimistic."
