"""Define the utterance table: its Arrow schema and its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from grcf_ray.config import Task
from grcf_ray.data.frames import Frames
from grcf_ray.errors import DataError
from grcf_ray.files import file_sha256

SPLITS = ("train", "valid", "test")
MODALITIES = ("audio", "vision")
SCHEMA_VERSION = 1
LABEL_DECIMALS = 4
"""Labels are compared after rounding to 1e-4: a float32 1.8 is below 1.8."""
# Share of upper-case letters from which transcripts count as upper case.
_UPPER_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file's name and hash."""

    name: str
    """File name, without its folder."""
    sha256: str
    """SHA-256 of its bytes, in hex."""

    @classmethod
    def of(cls, path: Path) -> Source:
        """Hash a file."""
        return cls(name=path.name, sha256=file_sha256(path))


@dataclass(frozen=True, kw_only=True)
class TableInfo:
    """The metadata of an utterance table."""

    name: str
    """Name of the data set, as in `--dataset`."""
    task: Task
    """Kind of label."""
    label_range: tuple[float, float]
    """Lowest and highest label of the annotation scheme; (0, 1) for classification."""
    language: str
    """Two-letter language code of the transcripts, or `unknown`."""
    transcripts: Literal["upper", "mixed"]
    """`upper` if nearly all letters of the training split are upper case."""
    audio_dim: int | None
    """Values in an audio row; None if no utterance has audio."""
    vision_dim: int | None
    """Values in a vision row; None if no utterance has vision."""
    splits: Mapping[str, int]
    """Utterances in train, valid and test."""
    sources: tuple[Source, ...]
    """The imported files."""
    notes: tuple[str, ...]
    """Remarks on the import for readers of results."""
    fingerprint: str
    """SHA-256 of the content, see `fingerprint`."""
    word_aligned: bool = False
    """Whether audio and vision have one row for each word of the text; single spaces separate words."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The columns of a table that options named, by role."""
    schema_version: int = SCHEMA_VERSION
    """Version of the table's layout."""

    @classmethod
    def describe(
        cls,
        table: pa.Table,
        *,
        name: str,
        task: Task = "regression",
        label_range: tuple[float, float],
        language: str = "unknown",
        word_aligned: bool = False,
        sources: Sequence[Source] = (),
        notes: Sequence[str] = (),
    ) -> TableInfo:
        """Derive the metadata of a table that has the Arrow schema."""
        low, high = label_range
        return cls(
            name=name,
            task=task,
            label_range=(float(low), float(high)),
            language=language,
            transcripts=_transcripts(table),
            audio_dim=_dim(table, "audio"),
            vision_dim=_dim(table, "vision"),
            splits={split: pc.sum(pc.equal(table["split"], split)).as_py() or 0 for split in SPLITS},
            sources=tuple(sources),
            notes=tuple(notes),
            fingerprint=fingerprint(
                table, task=task, label_range=label_range, language=language, word_aligned=word_aligned
            ),
            word_aligned=word_aligned,
        )

    @property
    def center(self) -> float:
        """The middle of the label range."""
        return sum(self.label_range) / 2

    @property
    def half_range(self) -> float:
        """Half the width of the label range."""
        low, high = self.label_range
        return (high - low) / 2

    @property
    def dims(self) -> dict[str, int]:
        """The width of each modality that the data have."""
        dims = {"audio": self.audio_dim, "vision": self.vision_dim}
        return {name: dim for name, dim in dims.items() if dim is not None}

    def to_json(self) -> dict[str, Any]:
        """Convert to a mapping for `json`."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TableInfo:
        """Convert from the mapping of `to_json`; DataError for another layout."""
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(
                f"utterance table of layout {version}, but this grcf_ray reads layout {SCHEMA_VERSION}. "
                "Import the data set again"
            )
        low, high = values["label_range"]
        changed = {
            "label_range": (float(low), float(high)),
            "sources": tuple(Source(**source) for source in values["sources"]),
            "notes": tuple(values["notes"]),
        }
        return cls(**{**values, **changed})


def labels_of(table: pa.Table) -> NDArray[np.float64]:
    """Return the [N] labels of a table, rounded to `LABEL_DECIMALS`."""
    label_N: NDArray[np.float64] = table["label"].to_numpy().astype(np.float64)
    return np.round(label_N, LABEL_DECIMALS)


def split_sizes(splits: Mapping[str, int]) -> str:
    """Format the utterances in train, valid and test: `1284/229/686`."""
    return "/".join(str(splits[split]) for split in SPLITS)


def table_schema(*, audio_dim: int | None = None, vision_dim: int | None = None, context: bool = False) -> pa.Schema:
    """Return the Arrow schema; a modality without a width has no column."""
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("label", pa.float32(), nullable=False),
    ]
    for name, dim in (("audio", audio_dim), ("vision", vision_dim)):
        if dim is not None:
            fields.append(pa.field(name, pa.list_(pa.list_(pa.float32(), dim))))
    if context:
        fields.append(pa.field("context", pa.list_(pa.string())))
    return pa.schema(fields)


def conform(table: pa.Table, *, zero_non_finite: bool = False) -> pa.Table:
    """Convert a valid table of looser types to the Arrow schema; a modality without rows loses its column."""
    columns = {name: table[name].cast(pa.string()) for name in ("id", "split", "text")}
    columns["label"] = table["label"].cast(pa.float32(), safe=False)
    dims: dict[str, int] = {}
    for name in MODALITIES:
        frames = Frames.of(table[name]) if name in table.column_names else None
        if frames is not None and (width := frames.width()):
            columns[name] = frames.to_arrow(zero_non_finite=zero_non_finite)
            dims[f"{name}_dim"] = width
    if "context" in table.column_names:
        filled = pc.greater(pc.list_value_length(table["context"]), 0)
        if pc.any(filled).as_py():
            columns["context"] = pc.if_else(filled, table["context"].cast(pa.list_(pa.string())), None)
    schema = table_schema(**dims, context="context" in columns)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def fingerprint(
    table: pa.Table,
    *,
    task: Task,
    label_range: tuple[float, float],
    language: str,
    word_aligned: bool = False,
) -> str:
    """Hash the content of a table that has the Arrow schema.

    The order of the rows in a split counts, since a seed draws pairs by it. Columns are hashed one by one, so that
    Parquet's writer and the chunks of a table do not count.
    """
    digest = hashlib.sha256()

    def add(value: object) -> None:
        digest.update(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")

    add([SCHEMA_VERSION, task, [float(edge) for edge in label_range], language, *(["words"] * word_aligned)])
    for split in SPLITS:
        rows = table.filter(pc.equal(table["split"], split))
        add([split, rows.num_rows])
        for name in ("id", "text", "context"):
            add(rows[name].to_pylist() if name in rows.column_names else None)
        digest.update(rows["label"].to_numpy().astype("<f4").tobytes())
        for name in MODALITIES:
            dim = _dim(table, name)
            add([name, dim])
            if dim is not None:
                frames = Frames.of(rows[name])
                digest.update(frames.lengths_N.astype("<i8").tobytes())
                digest.update(np.ascontiguousarray(frames.values, "<f4").data)
    return digest.hexdigest()


def _dim(table: pa.Table, name: str) -> int | None:
    return table.schema.field(name).type.value_type.list_size if name in table.column_names else None


def _transcripts(table: pa.Table) -> Literal["upper", "mixed"]:
    text = "".join(table.filter(pc.equal(table["split"], "train"))["text"].to_pylist())
    letters = sum(map(str.isalpha, text))
    # Letters of scripts without case count as not upper.
    return "upper" if letters and sum(map(str.isupper, text)) > _UPPER_SHARE * letters else "mixed"
