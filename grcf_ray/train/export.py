"""A trained model in a folder that loads in a new process without its run, data or backbone.

model.safetensors     all weights, the text encoder's included
config.json           settings, dims, label range, standardisation, the backbone's configuration
tokenizer/            the backbone's tokenizer, unless the model has no text
manifest.json         a SHA-256 of each file, verified before any of them is used (see `manifest`)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grcf_ray import console
from grcf_ray.config import RunConfig, Task, build_config, flatten, recorded_settings
from grcf_ray.data.features import Features, Standardiser, build_split, pad_token
from grcf_ray.data.tokens import count_cut
from grcf_ray.errors import ConfigError, DataError, GrcfError, faults_message, reason
from grcf_ray.files import atomic_write, file_sha256, write_json
from grcf_ray.metrics import MetricProtocol, finite_metrics, split_metrics
from grcf_ray.model.base import MultimodalModel
from grcf_ray.model.build import build_model
from grcf_ray.model.pretrained import backbone_from_config, load_tokenizer, size_faults, tensor_shapes
from grcf_ray.train.manifest import FIRST_LISTED, MANIFEST, check_manifest, write_manifest
from grcf_ray.train.stage import predict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 2
"""Format of config.json. Format 1 had no manifest, and a checksum of the weights only."""


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A loaded model and everything needed to score rows with it."""

    model: MultimodalModel
    tokenizer: PreTrainedTokenizerBase | None
    """None for a model without text."""
    config: RunConfig
    label_range: tuple[float, float]
    protocol: MetricProtocol
    """Metric protocol of its data set."""
    standardisers: dict[str, Standardiser]
    lowercase: bool
    task: Task
    word_aligned: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that the model requires."""
        return (*(() if self.tokenizer is None else ("text",)), *self.model.modality_dims)

    def score(self, rows: Any) -> NDArray[np.float64]:
        """Return the scores [N] in the order of the rows: in label units, or logits of the positive class.

        rows: a pyarrow table, a pandas DataFrame, or a list of dictionaries, with a column or key for each input; for a
        model of text alone, also a list of texts. Ids and labels are not read. DataError names the missing column, or
        the row at fault. The scores are computed on the model's device, by default the CPU.
        """
        return self._predict(self._table_of(rows))

    def describe(self, table: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Return the scores [N], as in `score`, and z_final [N, D], the representation before the head."""
        state_ND = np.empty((len(table), self.model.width), np.float32)
        return self._predict(table, state_ND), state_ND

    def metrics(
        self,
        score_N: NDArray[np.float64],
        label_N: NDArray[np.float64],
        *,
        protocol: MetricProtocol | None = None,
        label_range: tuple[float, float] | None = None,
    ) -> dict[str, float]:
        """Return the finite metrics of scores, as in `score`, against labels.

        protocol, label_range: of the labels [default: of the model's own data].
        """
        low, high = label_range or self.label_range
        limit, center, ties = (high - low) / 2, (low + high) / 2, self.config.metrics.ties
        protocol = protocol or self.protocol
        return finite_metrics(split_metrics(score_N, label_N, protocol=protocol, limit=limit, center=center, ties=ties))

    def features_of(self, table: pa.Table) -> Features:
        """Return the features of rows, as both splits. DataError names a missing column."""
        low, high = self.label_range
        center = (low + high) / 2
        split = build_split(
            self._needed(table),
            self.tokenizer,
            self.config.features,
            center=center,
            lowercase=self.lowercase,
            standardisers=self.standardisers,
            word_aligned=self.word_aligned,
        )
        pad = pad_token(self.tokenizer)
        return Features(split, split, self.standardisers, pad, center, (high - low) / 2, "", "")

    def score_features(self, features: Features, state_ND: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
        """Return the scores [N], as in `score`, of the result of `features_of`.

        state_ND: an array that receives z_final, if given.
        """
        budget = self.config.pairs.micro_batch_tokens
        device = next(self.model.parameters()).device
        score_N = predict(self.model, features, features.valid, device=device, token_budget=budget, state_ND=state_ND)
        return score_N if self.task == "classification" else score_N + features.center

    def count_cut(self, table: pa.Table) -> int:
        """Return the number of rows whose text is longer than `features.max_tokens`, and so is cut."""
        if self.tokenizer is None:
            return 0
        texts: list[str] = table["text"].to_pylist()
        if self.lowercase:
            texts = [text.lower() for text in texts]
        return count_cut(texts, self.tokenizer, max_tokens=self.config.features.max_tokens)

    def _predict(self, table: pa.Table, state_ND: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
        if not table.num_rows:
            return np.zeros(0)
        return self.score_features(self.features_of(table), state_ND)

    def _table_of(self, rows: Any) -> pa.Table:
        """Return rows in any form that `score` accepts as a table. DataError for other types."""
        if isinstance(rows, pa.Table):
            return rows
        if isinstance(rows, pa.RecordBatch):
            return pa.Table.from_batches([rows])
        pandas = sys.modules.get("pandas")
        if pandas is not None and isinstance(rows, pandas.DataFrame):
            _check_unique(list(rows.columns))
            return self._table_from({name: rows[name].tolist() for name in self._wanted if name in rows.columns})
        # A string is a sequence of its letters, and a dictionary one of its keys; neither is a list of rows.
        if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
            raise DataError(f"{_TAKES}, not {type(rows).__name__}")
        # An iterator can be read only once, so it is read before it is checked.
        listed = list(rows)
        if listed and all(isinstance(row, Mapping) for row in listed):
            present = [name for name in self._wanted if any(name in row for row in listed)]
            return self._table_from({name: [row.get(name) for row in listed] for name in present})
        if dims := self.model.modality_dims:
            more = " and ".join(f"{name} ({dim} values a row)" for name, dim in dims.items())
            beside = "" if self.tokenizer is None else " beside the text"
            raise DataError(
                f"the model was trained with {more}{beside}: use a pyarrow table, a DataFrame or dictionaries with "
                f"the columns {', '.join(self.inputs)}"
            )
        return self._table_from({"text": listed})

    @property
    def _wanted(self) -> list[str]:
        """The columns that the model can use."""
        return [*self.inputs, *([] if self.tokenizer is None else ["context"])]

    def _table_from(self, columns: Mapping[str, list[Any]]) -> pa.Table:
        """Return columns of Python values as a table. DataError names the first row with a wrong type."""
        if missing := [name for name in self.inputs if name not in columns]:
            raise DataError(f"the rows have no {missing[0]} column, and the model was trained with {missing[0]}")
        arrays = {}
        for name, cells in columns.items():
            dim = self.model.modality_dims.get(name)
            if dim is not None:
                kind = pa.list_(pa.list_(pa.float32(), dim))
                arrays[name] = pa.array([_frames(cell, dim, name, row) for row, cell in enumerate(cells, 1)], kind)
            elif name == "context":
                arrays[name] = pa.array(
                    [_strings(cell, row) for row, cell in enumerate(cells, 1)], pa.list_(pa.string())
                )
            else:
                for row, cell in enumerate(cells, 1):
                    if not isinstance(cell, str):
                        raise DataError(f"{_TAKES}; the text of row {row} is {cell!r:.40}")
                arrays[name] = pa.array(cells, pa.string())
        return pa.table(arrays)

    def _needed(self, table: pa.Table) -> pa.Table:
        """Return the columns that the model reads, in the types of its training."""
        columns = {}
        _check_unique(table.column_names)
        for name in self.inputs:
            dim = self.model.modality_dims.get(name)
            if name not in table.column_names:
                raise DataError(f"the table has no {name} column, and the model was trained with {name}")
            kind = pa.string() if dim is None else pa.list_(pa.list_(pa.float32(), dim))
            try:
                columns[name] = table[name].cast(kind)
            except pa.ArrowException as error:
                needs = "strings" if dim is None else f"lists of rows of {dim} numbers"
                raise DataError(f"the table's {name} column does not hold {needs}, as the model needs") from error
        if "text" in columns and columns["text"].null_count:
            raise DataError(f"row {pc.index(columns['text'].is_null(), True).as_py() + 1} of the table has no text")
        if "context" in table.column_names and self.tokenizer is not None:
            columns["context"] = table["context"].cast(pa.list_(pa.string()))
        return pa.table(columns)


_TAKES = "score takes a list of texts, a list of dictionaries, a DataFrame or a pyarrow table"


def _check_unique(names: Sequence[str]) -> None:
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise DataError(f"the table has more than one column named {', '.join(twice)}")


def _is_missing(cell: Any) -> bool:
    """Return whether a cell is None, or the NaN that pandas uses instead."""
    return cell is None or (isinstance(cell, float) and cell != cell)


def _frames(cell: Any, dim: int, name: str, row: int) -> list[list[float]] | None:
    """Return the rows of a modality as lists; None if the sample lacks it."""
    if _is_missing(cell):
        return None
    with contextlib.suppress(TypeError, ValueError):
        values = np.asarray([np.asarray(frame, np.float32) for frame in cell], np.float32)
        if not len(values) or values.shape[1:] == (dim,):
            frames: list[list[float]] = values.tolist()
            return frames
    raise DataError(f"row {row}: {name} is not a list of rows of {dim} numbers")


def _strings(cell: Any, row: int) -> list[str] | None:
    """Return the context as a list; None if there is none."""
    if _is_missing(cell):
        return None
    listed: list[Any] = list(cell) if isinstance(cell, Iterable) and not isinstance(cell, str) else [None]
    if not all(isinstance(sentence, str) for sentence in listed):
        raise DataError(f"row {row}: context is not a list of strings")
    return listed


def save_model(
    folder: Path,
    model: MultimodalModel,
    tokenizer: PreTrainedTokenizerBase | None,
    features: Features,
    config: RunConfig,
    *,
    label_range: tuple[float, float],
    protocol: MetricProtocol,
    lowercase: bool,
) -> None:
    """Write a model for `load_model`.

    features: the features that it was trained on, for their statistics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # An existing model in this folder becomes invalid until all files of the new one are written.
    (folder / MANIFEST).unlink(missing_ok=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "tokenizer")
    encoder = model.text_encoder
    with atomic_write(folder / "model.safetensors") as beside:
        save_file({name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}, beside)
    write_json(
        folder / "config.json",
        {
            "format": FORMAT,
            "settings": flatten(config),
            "backbone": None if encoder is None else encoder.backbone.config.to_dict(),  # type: ignore[union-attr,operator]
            "modality_dims": model.modality_dims,
            "task": features.task,
            "word_aligned": features.word_aligned,
            "label_range": list(label_range),
            "n_train": len(features.train),
            "protocol": protocol,
            "lowercase": lowercase,
            "standardisers": {
                name: {"mean": s.mean_A.tolist(), "deviation": s.deviation_A.tolist()}
                for name, s in features.standardisers.items()
            },
        },
    )
    write_manifest(folder)


def load_model(folder: Path, *, where: str | None = None) -> SavedModel:
    """Return a model that `save_model` wrote, on the CPU in evaluation mode.

    DataError if the folder is damaged: the files are verified, and the sizes in config.json are compared with the
    weights, before anything is built.

    where: name of the folder in messages, if it is a copy.
    """
    where = where or str(folder)
    whole = check_manifest(folder, where)
    try:
        saved: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        version = int(saved["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a saved model: config.json cannot be read ({error})") from error
    if version > FORMAT:
        raise DataError(f"{where}: a newer grcf_ray wrote it. Upgrade grcf_ray")
    weights = folder / "model.safetensors"
    if not whole:
        _check_unlisted(weights, saved, version, where)
    try:
        return _loaded(folder, saved)
    except GrcfError as error:
        raise DataError(f"{where}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{where}: config.json describes no model ({type(error).__name__}: {reason(error)})") from error
    except (SafetensorError, RuntimeError) as error:
        raise DataError(f"{where}: model.safetensors does not fit config.json ({reason(error)})") from error


def _check_unlisted(weights: Path, saved: dict[str, Any], version: int, where: str) -> None:
    """Check a folder without a manifest: an earlier version wrote it, or the copy is incomplete.

    Earlier versions recorded a checksum of the weights only.
    """
    if version >= FIRST_LISTED:
        raise DataError(
            f"{where}: has no {MANIFEST}, so it is incomplete; copy the whole folder again, or run the search "
            "command again"
        )
    if not weights.exists() or file_sha256(weights) != saved.get("weights_sha256"):
        raise DataError(f"{where}: model.safetensors is missing, or not the file that was written")
    console.progress(
        f"note: {where} was saved by an earlier version: its weights are verified, its other files are not"
    )


def _loaded(folder: Path, saved: dict[str, Any]) -> SavedModel:
    """Return the model that a folder's config.json describes. LookupError, TypeError and similar errors if it
    cannot."""
    weights, backbone = folder / "model.safetensors", saved["backbone"]
    shapes = tensor_shapes(weights)
    if backbone is not None and (faults := size_faults(backbone, shapes)):
        raise DataError(faults_message("model.safetensors does not fit config.json", faults))
    config = build_config(recorded_settings(saved["settings"]), source="config.json")
    low, high = (float(bound) for bound in saved["label_range"])
    task: Task = saved.get("task", "regression")
    dims: dict[str, int] = saved["modality_dims"]

    def build() -> MultimodalModel:
        return build_model(
            None if backbone is None else backbone_from_config(backbone),
            config.model,
            task=task,
            audio_dim=dims.get("audio"),
            vision_dim=dims.get("vision"),
            half_range=(high - low) / 2,
            n_train=int(saved.get("n_train", 0)),
        )

    # Compare shapes on the meta device first: it takes no memory, and the model is as large as its weights.
    with torch.device("meta"):
        _check_shapes({name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}, shapes)
    state = load_file(weights)
    model = build()
    first = next(name for name in state if name.startswith("head."))
    model.to(state[first].dtype).load_state_dict(state)
    return SavedModel(
        model=model.eval(),
        tokenizer=None if backbone is None else _load_tokenizer(folder / "tokenizer"),
        config=config,
        label_range=(low, high),
        protocol=saved["protocol"],
        standardisers=_standardisers(saved["standardisers"], dims, needed=config.features.standardise),
        lowercase=bool(saved["lowercase"]),
        task=task,
        word_aligned=bool(saved.get("word_aligned", False)),
    )


def _check_shapes(wanted: dict[str, tuple[int, ...]], saved: dict[str, tuple[int, ...]]) -> None:
    """Raise DataError if the weights do not have the shapes that config.json describes."""
    different = sorted(name for name in wanted.keys() | saved.keys() if wanted.get(name) != saved.get(name))
    if different:
        faults = [
            f"{name}: {saved.get(name, 'missing')} instead of {wanted.get(name, 'nothing')}" for name in different
        ]
        raise DataError(faults_message("model.safetensors does not fit config.json", faults, limit=3))


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(str(folder))
    except ConfigError as error:
        raise DataError(f"tokenizer: missing or damaged ({error})") from error


def _standardisers(
    saved: dict[str, dict[str, list[float]]], dims: dict[str, int], *, needed: bool
) -> dict[str, Standardiser]:
    """Return the statistics of each modality. DataError if their width is wrong, or a deviation is not positive."""
    standardisers = {}
    for name, statistics in saved.items():
        mean_A, deviation_A = (np.array(statistics[key], np.float32) for key in ("mean", "deviation"))
        shape = (dims.get(name, len(mean_A)),)
        if mean_A.shape != shape or deviation_A.shape != shape:
            raise DataError(f"config.json: standardisers.{name} should have {shape[0]} columns")
        if not (np.isfinite(mean_A).all() and np.isfinite(deviation_A).all() and (deviation_A > 0).all()):
            raise DataError(f"config.json: standardisers.{name} has values that are not finite, or a deviation of 0")
        standardisers[name] = Standardiser(mean_A, deviation_A)
    if lacking := sorted(dims.keys() - standardisers.keys()) if needed else []:
        raise DataError(f"config.json: standardisers has no {', '.join(lacking)}")
    return standardisers
