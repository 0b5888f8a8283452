"""Write synthetic utterances, to measure how costs grow with a data set."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grcf_ray.data.frames import FRAMES, Frames
from grcf_ray.data.importers import ImportOptions, import_source
from grcf_ray.data.store import DatasetStore, write_store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEAN_WORDS, MOST_WORDS, VOCABULARY = 12, 100, 2000
"""Approximate mean of the log-normal text lengths, the longest text, and the number of different words."""
WIDTHS, ROWS_PER_WORD = {"audio": 5, "vision": 20}, 2
VALID_SHARE = 10
"""One utterance in this many is for validation."""
LABEL_RANGE = (-3.0, 3.0)


def write_utterances(path: Path, n: int, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write n utterances of words that the tokenizer knows, as Parquet; the first one is the test split."""
    rng = np.random.default_rng(n)
    words = np.array(known_words(tokenizer))
    length_N = np.clip(rng.lognormal(np.log(MEAN_WORDS), 0.7, n).astype(np.int64), 1, MOST_WORDS)
    word_T = words[rng.integers(len(words), size=length_N.sum())]
    columns: dict[str, Any] = {
        "id": [f"video{i // 10}[{i % 10}]" for i in range(n)],
        "split": ["test", *("valid" if i % VALID_SHARE == VALID_SHARE - 1 else "train" for i in range(1, n))],
        "text": [" ".join(part) for part in np.split(word_T, np.cumsum(length_N)[:-1])],
        "label": np.round(rng.uniform(*LABEL_RANGE, n), 1),
    }
    for name, width in WIDTHS.items():
        rows_N = ROWS_PER_WORD * length_N
        values = rng.standard_normal(rows_N.sum() * width, dtype=np.float32)
        columns[name] = Frames(rows_N, np.full(rows_N.sum(), width), values).to_arrow().cast(FRAMES)
    pq.write_table(pa.table(columns), path)
    return path


def known_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return up to VOCABULARY words that are one subword each, in alphabetical order."""
    plain = sorted(token for token in tokenizer.get_vocab() if token.isascii() and token.isalpha())
    single = (word for word in plain if len(tokenizer.encode(word, add_special_tokens=False)) == 1)
    return list(itertools.islice(single, VOCABULARY)) or ["good", "bad"]


def import_utterances(source: Path) -> DatasetStore:
    """Import the Parquet file into the folder of the same name."""
    options = ImportOptions(dataset="growth", label_range=LABEL_RANGE)
    return write_store(source.with_suffix(""), *import_source(source, options))
