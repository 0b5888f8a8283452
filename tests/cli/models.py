"""Untrained models, saved, and the rows that they are given and return."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from grcf_ray.config import build_config
from grcf_ray.data.features import build_features
from grcf_ray.data.store import DatasetStore
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.export import save_model

__all__ = ["HOSTILE", "changed", "model_of", "rows_of"]

HOSTILE = '=cmd|"x"!A1\n<script>alert(1)</script>\x1b[31m, "quoted"'


def model_of(folder: Path, backbone: Path, store: DatasetStore, *, seed: int = 1, **settings: Any) -> Path:
    """An untrained model for the store's features, saved."""
    paths = {"model.backbone": str(backbone), "model.text_vector": "mean", **settings}
    config = build_config({path.replace("__", "."): value for path, value in paths.items()})
    tokenizer = load_tokenizer(str(backbone)) if config.model.sees_text else None
    features = build_features(store, tokenizer, config.features)
    model = initial_model(config.model, select_modalities(features, config.model.modalities), seed=seed)
    protocol: Any = "binary" if store.info.task == "classification" else "mosi"
    save_model(
        folder,
        model,
        tokenizer,
        features,
        config,
        label_range=store.info.label_range,
        protocol=protocol,
        lowercase=False,
    )
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        numbers = ("label", "score", "logit")
        return [
            {name: (float(cell) if cell else None) if name in numbers else cell for name, cell in row.items()}
            for row in csv.DictReader(file)
        ]


def changed(table: pa.Table, **columns: Any) -> pa.Table:
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(column, table.schema.field(name).type))
    return table
