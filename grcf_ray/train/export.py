"""A trained model on its own: a folder that loads in a new process without its run, data or backbone.

model.safetensors     every weight, the text encoder's too
config.json           settings, dims, label range, standardisation, the backbone's configuration
tokenizer/            the backbone's tokenizer
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grcf_ray.config import RunConfig, Task, build_config, flatten
from grcf_ray.data.features import Features, Standardiser, build_split
from grcf_ray.errors import ConfigError, DataError
from grcf_ray.files import file_sha256, replacing, write_json
from grcf_ray.metrics import Protocol
from grcf_ray.model.base import GrcfModel
from grcf_ray.model.build import build_model
from grcf_ray.model.text_encoder import backbone_from_config, load_tokenizer
from grcf_ray.train.stage import predict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SavedModel", "load_model", "save_model"]

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A loaded model with what it takes to feed it."""

    model: GrcfModel
    tokenizer: PreTrainedTokenizerBase
    config: RunConfig
    label_range: tuple[float, float]
    protocol: Protocol
    """Whose metrics its data set uses."""
    standardisers: dict[str, Standardiser]
    lowercase: bool
    task: Task
    word_aligned: bool

    def score(self, rows: pa.Table | Sequence[str]) -> NDArray[np.float64]:
        """[N] scores in the order of the rows: in label units, or logits of the positive class.

        rows: an utterance table, of which neither ids nor labels are read, or texts alone for a model that needs no
        more. DataError names what is missing. Computed where the model is: on the CPU, unless it was moved.
        """
        return self._predict(rows if isinstance(rows, pa.Table) else self._table_of(rows))

    def describe(self, table: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """[N] scores as in `score`, and of the same pass z_final [N, D], the representation before the head."""
        state_ND = np.empty((len(table), self.model.state_width), np.float32)
        return self._predict(table, state_ND), state_ND

    def features_of(self, table: pa.Table) -> Features:
        """The rows as the model takes them, as either split. DataError names what is missing."""
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
        pad = int(self.tokenizer.pad_token_id or 0)
        return Features(split, split, self.standardisers, pad, center, (high - low) / 2, "", "")

    def score_features(self, features: Features, state_ND: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
        """[N] scores, as in `score`, of what `features_of` gave; z_final is written into state_ND where it is given."""
        budget = self.config.pairs.micro_batch_tokens
        device = next(self.model.parameters()).device
        score_N = predict(self.model, features, features.valid, device=device, token_budget=budget, state_ND=state_ND)
        return score_N if self.task == "classification" else score_N + features.center

    def _predict(self, table: pa.Table, state_ND: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
        if not table.num_rows:
            return np.zeros(0)
        return self.score_features(self.features_of(table), state_ND)

    def _table_of(self, texts: Sequence[str]) -> pa.Table:
        """Texts as a table; DataError where they are none, or where the model needs more."""
        if dims := self.model.modality_dims:
            more = " and ".join(f"{name} ({dim} values a row)" for name, dim in dims.items())
            raise DataError(
                f"the model was trained with {more} beside the text: give a pyarrow table with the columns "
                f"{', '.join(['text', *dims])}"
            )
        # A text is a sequence of texts too: its letters. What can be read only once is read here, and not checked away.
        listed = [] if isinstance(texts, str) else list(texts)
        if isinstance(texts, str) or not all(isinstance(text, str) for text in listed):
            raise DataError("score takes a list of texts, or a pyarrow table with a text column")
        return pa.table({"text": pa.array(listed, pa.string())})

    def _needed(self, table: pa.Table) -> pa.Table:
        """The columns that the model reads, as it was trained with them."""
        columns = {}
        for name, dim in {"text": None, **self.model.modality_dims}.items():
            if name not in table.column_names:
                raise DataError(f"the table has no {name} column, and the model was trained with {name}")
            kind = pa.string() if dim is None else pa.list_(pa.list_(pa.float32(), dim))
            try:
                columns[name] = table[name].cast(kind)
            except pa.ArrowException as error:
                needs = "strings" if dim is None else f"lists of rows of {dim} numbers"
                raise DataError(f"the table's {name} column does not hold {needs}, as the model needs") from error
        if "context" in table.column_names:
            columns["context"] = table["context"].cast(pa.list_(pa.string()))
        return pa.table(columns)


def save_model(
    folder: Path,
    model: GrcfModel,
    tokenizer: PreTrainedTokenizerBase,
    features: Features,
    config: RunConfig,
    *,
    label_range: tuple[float, float],
    protocol: Protocol,
    lowercase: bool,
) -> None:
    """Write a model for `load_model`. features: those it was trained on, for their statistics."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    weights = folder / "model.safetensors"
    with replacing(weights) as beside:
        save_file({name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}, beside)
    write_json(
        folder / "config.json",
        {
            "format": FORMAT,
            "settings": flatten(config),
            "backbone": model.text_encoder.backbone.config.to_dict(),  # type: ignore[union-attr,operator]
            "modality_dims": model.modality_dims,
            "task": features.task,
            "word_aligned": features.word_aligned,
            "label_range": list(label_range),
            "protocol": protocol,
            "lowercase": lowercase,
            "standardisers": {
                name: {"mean": s.mean_A.tolist(), "deviation": s.deviation_A.tolist()}
                for name, s in features.standardisers.items()
            },
            "weights_sha256": file_sha256(weights),
        },
    )


def load_model(folder: Path) -> SavedModel:
    """A model that `save_model` wrote, on the CPU in eval mode. DataError where the folder is damaged."""
    try:
        saved: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        version = int(saved["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: no saved model: config.json cannot be read ({error})") from error
    if version > FORMAT:
        raise DataError(f"{folder}: written by a newer grcf_ray; upgrade to read it")
    weights = folder / "model.safetensors"
    if not weights.exists() or file_sha256(weights) != saved["weights_sha256"]:
        raise DataError(f"{weights}: missing, or not the file that was written")
    config = build_config(saved["settings"], source=str(folder / "config.json"))
    low, high = saved["label_range"]
    task: Task = saved.get("task", "regression")
    model = build_model(
        backbone_from_config(saved["backbone"]),
        config.model,
        task=task,
        audio_dim=saved["modality_dims"].get("audio"),
        vision_dim=saved["modality_dims"].get("vision"),
        half_range=(high - low) / 2,
    )
    try:
        state = load_file(weights)
        model.to(state["head.0.weight"].dtype).load_state_dict(state)
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise DataError(f"{weights}: does not fit config.json ({error})") from error
    try:
        tokenizer = load_tokenizer(str(folder / "tokenizer"))
    except ConfigError as error:
        raise DataError(f"{folder / 'tokenizer'}: missing, or damaged") from error
    return SavedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        config=config,
        label_range=(low, high),
        protocol=saved["protocol"],
        standardisers={
            name: Standardiser(np.array(s["mean"], np.float32), np.array(s["deviation"], np.float32))
            for name, s in saved["standardisers"].items()
        },
        lowercase=saved["lowercase"],
        task=task,
        word_aligned=saved.get("word_aligned", False),
    )
