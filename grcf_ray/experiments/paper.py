"""The paper's printed figures: `paper.yaml`, under this project's metric keys, percentages as fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def _read(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a data set's table; rows under `columns` become figures by metric."""
    if "columns" not in table:
        return table
    return {name: _figures(table["columns"], values) for name, values in table.items() if name != "columns"}


def _figures(metrics: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Return a row's figures. A figure under MMSA's definition also stands under that of appendix C.5."""
    row = {
        metric: value / 100 if metric.startswith(("acc", "f1")) else value
        for metric, value in zip(metrics, values, strict=True)
    }
    both = {"acc2_mmsa": "acc2_non0", "f1_weighted_mmsa": "f1_weighted"}
    return row | {alias: row[metric] for metric, alias in both.items() if metric in row}


TABLES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    name: {dataset: _read(table) for dataset, table in tables.items()}
    for name, tables in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).items()
}
"""The paper's tables by name and data set."""
