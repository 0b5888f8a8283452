"""Build the features that all trials share, once from the utterance table, without a copy per trial.

A split's sequences are stored end to end in one flat array with offsets. Memory mapping and Ray's object store can then
both return read-only views. N utterances, T subwords, R rows of audio or vision, D and A widths.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from grcf_ray import console
from grcf_ray.cache import cache_entry, locked, making, unreadable
from grcf_ray.config import FeatureConfig, Task
from grcf_ray.data.array_files import load_array, save_array
from grcf_ray.data.frames import Frames
from grcf_ray.data.schema import LABEL_DECIMALS
from grcf_ray.data.tokens import tokenize
from grcf_ray.errors import DamagedError

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from grcf_ray.data.store import DatasetStore

_Length = TypeVar("_Length", int, NDArray[np.int64])

BLOCK = 65_536
"""Rows processed at a time."""
_THREADS = 4
"""Files checked in parallel: hashing releases the interpreter lock."""


@dataclasses.dataclass(frozen=True)
class Ragged:
    """N sequences in one array: `values[offsets[i]:offsets[i + 1]]` is the i-th."""

    values: NDArray[Any]
    """[total] or [total, width]."""
    offsets: NDArray[np.int64]
    """[N + 1]."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the [N] lengths of the sequences."""
        return np.diff(self.offsets)

    def lengths_of(self, index_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the [B] lengths of the chosen sequences, in time proportional to B."""
        chosen: NDArray[np.int64] = self.offsets[index_B + 1] - self.offsets[index_B]
        return chosen

    def padded(
        self, index_B: NDArray[np.int64], fill: float = 0, *, multiple: int = 1
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pad the chosen sequences to [B, L, ...]; the mask [B, L] is true for real values.

        L: the length of the longest, rounded up to a multiple.
        """
        start_B, length_B = self.offsets[index_B], self.lengths_of(index_B)
        step_L = np.arange(rounded_up(max(1, int(length_B.max(initial=0))), multiple))
        mask_BL = step_L < length_B[:, None]
        out = np.full((*mask_BL.shape, *self.values.shape[1:]), fill, dtype=self.values.dtype)
        out[mask_BL] = self.values[(start_B[:, None] + step_L)[mask_BL]]
        return out, mask_BL


def rounded_up(length: _Length, multiple: int) -> _Length:
    """Round lengths up to a multiple."""
    return -(-length // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class SplitFeatures:
    """The features of one split."""

    label_N: NDArray[np.float64]
    """Labels minus the centre of the label range, rounded to 1e-4."""
    tokens: Ragged | None
    """Subword ids, special tokens included: int32. None for models without text."""
    audio: Ragged | None
    vision: Ragged | None
    hidden: Ragged | None = None
    """Output of the frozen layers, [T, D], if some layers of the text encoder are frozen."""
    vector_ND: NDArray[np.float32] | None = None
    """Text vectors, if the whole text encoder is frozen."""

    def __len__(self) -> int:
        return len(self.label_N)

    def lengths_of(self, index_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return [B] lengths for batching: subwords, or without text the rows of the longer modality."""
        if self.tokens is not None:
            return self.tokens.lengths_of(index_B)
        rows = [modality.lengths_of(index_B) for modality in (self.audio, self.vision) if modality is not None]
        longest_B: NDArray[np.int64] = np.max(rows, axis=0)
        return longest_B

    def only(self, modalities: Collection[str]) -> SplitFeatures:
        """Drop the text, audio or vision that `modalities` does not name."""
        text = self if "text" in modalities else dataclasses.replace(self, tokens=None, hidden=None, vector_ND=None)
        return dataclasses.replace(
            text,
            audio=self.audio if "audio" in modalities else None,
            vision=self.vision if "vision" in modalities else None,
        )

    @property
    def nbytes(self) -> int:
        """Return the bytes of all arrays."""
        return sum(array.nbytes for array in _arrays(self).values())


@dataclasses.dataclass(frozen=True)
class Standardiser:
    """Column means and standard deviations of one modality's training rows."""

    mean_A: NDArray[np.float32]
    deviation_A: NDArray[np.float32]

    @classmethod
    def fit(cls, rows_RA: NDArray[np.float32]) -> Standardiser:
        """Compute the statistics of rows; a constant column gets a deviation of 1."""
        if not len(rows_RA):
            width = rows_RA.shape[1]
            return cls(np.zeros(width, np.float32), np.ones(width, np.float32))
        # In blocks: a copy of all rows in float64 would take twice their memory.
        blocks = [rows_RA[start : start + BLOCK] for start in range(0, len(rows_RA), BLOCK)]
        mean = np.sum([block.sum(axis=0, dtype=np.float64) for block in blocks], axis=0) / len(rows_RA)
        squares = [np.square(block - mean).sum(axis=0) for block in blocks]
        deviation = np.sqrt(np.sum(squares, axis=0) / len(rows_RA))
        constant = deviation <= 1e-6 * np.maximum(1.0, np.abs(mean))
        return cls(mean.astype(np.float32), np.where(constant, 1.0, deviation).astype(np.float32))

    def __call__(self, rows_RA: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise rows."""
        return (rows_RA - self.mean_A) / self.deviation_A


@dataclasses.dataclass(frozen=True)
class Features:
    """The splits that a search may read, and the settings to build the test split in the same way later."""

    train: SplitFeatures
    valid: SplitFeatures
    standardisers: Mapping[str, Standardiser]
    pad_token_id: int
    center: float
    """Centre of the label range, subtracted from labels and scores."""
    half_range: float
    """S: labels lie within `center` ± S."""
    key: str
    """Cache key of table, tokenizer and settings."""
    folder: str
    """Folder of the arrays on the node that built them."""
    task: Task = "regression"
    """Kind of label; for classification the centre is between the two classes."""
    word_aligned: bool = False
    """Whether audio and vision have a row for each subword, that of its word; for special tokens see
    `FeatureConfig.special_rows`."""
    length_multiple: int = 1
    """The sequences of a batch are padded to a multiple of this length."""

    @property
    def audio_dim(self) -> int | None:
        """Return the width of the audio rows; None if no training utterance has audio."""
        return _width(self.train.audio)

    @property
    def vision_dim(self) -> int | None:
        """Return the width of the vision rows; None if no training utterance has vision."""
        return _width(self.train.vision)


def build_features(
    store: DatasetStore,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: FeatureConfig,
    *,
    cache: Path | None = None,
) -> Features:
    """Return the features of the train and valid splits, from the cache if it has them undamaged, else built now.

    tokenizer: None leaves the text out. The test split is not opened: `build_split` makes its features after the
    winner is fixed. ClusterError if the cache cannot be read or written.
    """
    digest = _digest(store, tokenizer, settings)
    folder = cache_entry("features", digest)
    folder = folder if cache is None else cache / folder.name
    with locked(folder):
        if folder.exists():
            try:
                return _open(folder, store)
            except DamagedError as error:
                console.progress(f"The cached features are damaged ({error}); building them again")
        _build(store, tokenizer, settings, folder)
        return _open(folder, store)


def _open(folder: Path, store: DatasetStore) -> Features:
    """Open features in the cache; DamagedError if a file changed or is missing."""
    try:
        meta = json.loads((folder / "features.json").read_bytes())
        sha256 = hashlib.sha256(json.dumps(meta["content"]).encode()).hexdigest()
    except PermissionError as error:
        raise unreadable(folder, error) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DamagedError(f"{folder / 'features.json'} cannot be read: {error}") from error
    if sha256 != meta.get("sha256"):
        raise DamagedError(f"{folder / 'features.json'} changed since it was written")
    meta = meta["content"]
    paths = [folder / split / f"{name}.npy" for split in ("train", "valid") for name in meta["arrays"][split]]
    with ThreadPoolExecutor(_THREADS) as pool:
        arrays = dict(zip(paths, pool.map(load_array, paths), strict=True))
    train, valid = (
        _split_of({path.stem: array for path, array in arrays.items() if path.parent.name == split})
        for split in ("train", "valid")
    )
    return Features(
        train=train,
        valid=valid,
        standardisers={
            name: Standardiser(np.array(mean, np.float32), np.array(deviation, np.float32))
            for name, (mean, deviation) in meta["standardisers"].items()
        },
        pad_token_id=meta["pad_token_id"],
        center=store.info.center,
        half_range=store.info.half_range,
        key=folder.name,
        folder=str(folder),
        task=store.info.task,
        word_aligned=store.info.word_aligned,
    )


def build_split(
    table: pa.Table,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: FeatureConfig,
    *,
    center: float,
    lowercase: bool,
    standardisers: Mapping[str, Standardiser],
    word_aligned: bool = False,
) -> SplitFeatures:
    """Build the features of one split's utterance table; without labels, the labels are the centre of the range.

    tokenizer: None leaves the text out; the table then needs no text column. word_aligned: the table's audio and
    vision have a row for each word; with text, the features have a row for each subword.
    """
    tokens = words = None
    if tokenizer is not None:
        tokens, words = _tokens(table, tokenizer, settings, lowercase=lowercase, by_word=word_aligned)
    label_N = table["label"].to_numpy().astype(np.float64) - center if "label" in table.column_names else None

    def rows(name: str) -> Ragged | None:
        modality = _rows(table, name)
        if modality is None:
            return None
        if name in standardisers:
            modality = Ragged(standardisers[name](modality.values), modality.offsets)
        return modality if tokens is None or words is None else _by_subword(modality, tokens, words, settings)

    return SplitFeatures(
        label_N=np.zeros(table.num_rows) if label_N is None else np.round(label_N, LABEL_DECIMALS),
        tokens=tokens,
        audio=rows("audio"),
        vision=rows("vision"),
    )


def _tokens(
    table: pa.Table, tokenizer: PreTrainedTokenizerBase, settings: FeatureConfig, *, lowercase: bool, by_word: bool
) -> tuple[Ragged, NDArray[np.int64] | None]:
    """Tokenize every utterance; by_word: also return [T] the word of each subword, `NO_WORD` for special tokens."""
    text: list[str] = table["text"].to_pylist()
    has_context = settings.context and "context" in table.column_names
    context = [" ".join(said or ()) for said in table["context"].to_pylist()] if has_context else []
    if lowercase:
        text, context = list(map(str.lower, text)), list(map(str.lower, context))
    ids, words = tokenize(text, context, tokenizer, max_tokens=settings.max_tokens, by_word=by_word)
    tokens = Ragged(
        np.fromiter((token for row in ids for token in row), np.int32),
        np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64),
    )
    if words is None:
        return tokens, None
    return tokens, np.fromiter((word for row in words for word in row), np.int64)


def _by_subword(rows: Ragged, tokens: Ragged, words: NDArray[np.int64], settings: FeatureConfig) -> Ragged:
    """Repeat a word's row for each of its subwords; special tokens follow `FeatureConfig.special_rows`.

    A sample without rows gets none.
    """
    kept = np.repeat(rows.lengths > 0, tokens.lengths)
    if settings.special_rows == "none":
        kept &= words >= 0
    utterance_T = np.repeat(np.arange(len(tokens.lengths)), tokens.lengths)
    length_N = np.bincount(utterance_T[kept], minlength=len(tokens.lengths))
    word_R = words[kept]
    index_R = np.repeat(rows.offsets[:-1], length_N) + np.maximum(word_R, 0)
    values = rows.values[index_R] * (word_R >= 0)[:, None].astype(rows.values.dtype)
    return Ragged(values, np.concatenate([[0], np.cumsum(length_N)]).astype(np.int64))


def pad_token(tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return the id that pads texts, which is always masked: 0 if the tokenizer has none (GPT-2)."""
    return int(getattr(tokenizer, "pad_token_id", None) or 0)


def lowercases(store: DatasetStore, settings: FeatureConfig) -> bool:
    """Return whether to lower-case the text, by the setting and by the case of the transcripts."""
    return settings.lowercase == "yes" or (settings.lowercase == "auto" and store.info.transcripts == "upper")


def _rows(table: pa.Table, name: str) -> Ragged | None:
    """Flatten the rows of a modality; None without such a column. A null sample has no rows."""
    if name not in table.column_names:
        return None
    frames = Frames.of(table[name])
    # In a store the column's type has the width, even for a split in which no utterance has the modality.
    width = getattr(table.schema.field(name).type.value_type, "list_size", None) or frames.width()
    if width is None:
        return None
    rows = frames.values.reshape(-1, width)
    return Ragged(rows, np.concatenate([[0], np.cumsum(frames.lengths_N)]))


def _width(rows: Ragged | None) -> int | None:
    return int(rows.values.shape[1]) if rows is not None and len(rows.values) else None


def _digest(store: DatasetStore, tokenizer: PreTrainedTokenizerBase | None, settings: FeatureConfig) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab() if tokenizer else {}
    # Truncation and padding of the last call are not rules of the tokenizer.
    rules = {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}
    parts = [
        store.info.fingerprint,
        type(tokenizer).__name__,
        json.dumps(rules, sort_keys=True),
        json.dumps(dataclasses.asdict(settings)),
        "2",
    ]
    parts += [str(store.info.label_range), str(lowercases(store, settings))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _build(
    store: DatasetStore, tokenizer: PreTrainedTokenizerBase | None, settings: FeatureConfig, folder: Path
) -> None:
    train = store.read("train")
    standardisers = {}
    if settings.standardise:
        for name in ("audio", "vision"):
            if (rows := _rows(train, name)) is not None:
                standardisers[name] = Standardiser.fit(rows.values)
    names: dict[str, list[str]] = {}
    with making(folder) as beside:
        for split, table in (("train", train), ("valid", store.read("valid"))):
            features = build_split(
                table,
                tokenizer,
                settings,
                center=store.info.center,
                lowercase=lowercases(store, settings),
                standardisers=standardisers,
                word_aligned=store.info.word_aligned,
            )
            arrays = _arrays(features)
            (beside / split).mkdir()
            for name, array in arrays.items():
                save_array(beside / split / f"{name}.npy", array)
            names[split] = list(arrays)
        content = {
            "arrays": names,
            "pad_token_id": pad_token(tokenizer),
            "standardisers": {k: (s.mean_A.tolist(), s.deviation_A.tolist()) for k, s in standardisers.items()},
        }
        sha256 = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        (beside / "features.json").write_text(json.dumps({"content": content, "sha256": sha256}))


def _arrays(features: SplitFeatures) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for field in dataclasses.fields(features):
        value = getattr(features, field.name)
        if isinstance(value, Ragged):
            arrays[f"{field.name}.values"] = value.values
            arrays[f"{field.name}.offsets"] = value.offsets
        elif value is not None:
            arrays[field.name] = value
    return arrays


def _split_of(arrays: Mapping[str, NDArray[Any]]) -> SplitFeatures:
    """Build a split from the arrays of `_arrays`."""
    names = [name for name in ("tokens", "audio", "vision") if f"{name}.values" in arrays]
    ragged = {name: Ragged(arrays[f"{name}.values"], arrays[f"{name}.offsets"]) for name in names}
    return SplitFeatures(arrays["label_N"], ragged.get("tokens"), ragged.get("audio"), ragged.get("vision"))
