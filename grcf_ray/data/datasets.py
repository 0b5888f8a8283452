"""Keep a fact sheet for each known data set: the facts that its utterance table does not hold."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from grcf_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """The fact sheet of a data set, known before its files are read."""

    name: str
    """The name that `--dataset` takes."""
    title: str
    """The name that papers use."""
    task: Literal["regression", "classification"]
    """Kind of label."""
    label_range: tuple[float, float]
    """Lowest and highest label of the annotation scheme."""
    language: str
    """Two-letter language code of the transcripts."""
    splits: tuple[Mapping[str, int], ...]
    """Utterances per split, one mapping for each release in use; first the release that fits the paper."""
    default_backbone: str
    """Text encoder of a run without `--backbone`."""
    audio_dim: int | None
    """Width of the paper's audio features; None without audio."""
    vision_dim: int | None
    """Width of the paper's vision features; None without vision."""
    metrics: Literal["mosi", "sims", "own", "binary"]
    """Definition of accuracy and F1: MOSI's bins, SIMS's right-closed bins on [-1, 1], one bin for each whole label,
    or two classes."""
    paper_results: Mapping[str, float] = field(default_factory=dict)
    """The paper's test figures (its Tables 1 and 2) by metric key, percentages as fractions."""
    paper_backbone: str | None = None
    """Text encoder of `paper_results`."""
    citation: str
    """Citation of the people who collected and annotated the data."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of published files by name, if known."""
    needs: str
    """Files that an importer can read."""
    obtain: str
    """Where people get these files."""


TWO_READINGS = (
    "The paper's Acc2 and F1 are shown under both definitions: its appendix C.5 drops zeros, as on MOSI; the code of "
    "its baselines (MMSA) counts zeros as negative. The paper does not say which one Table 2 uses."
)
"""Remark on CH-SIMS v2, for every comparison with the paper."""

_SHEETS = Path(__file__).with_name("datasets.yaml")
_TABLE = "a table (Parquet, CSV, TSV, JSON Lines) with the columns id, split, text, label and optionally audio, vision"


@functools.cache
def _facts() -> dict[str, DatasetFacts]:
    """Read the fact sheets, by name."""
    # `--help` must be quick, and does not need them.
    from grcf_ray.plain_yaml import read_yaml

    content = read_yaml(_SHEETS.read_text(encoding="utf-8"), str(_SHEETS)).content
    tables = {"table": _TABLE, "context_table": f"{_TABLE}, context (a list of the preceding sentences)"}
    facts = {}
    for name, values in content.items():
        values["needs"] = values["needs"].format_map(tables)
        values |= {"label_range": tuple(values["label_range"]), "splits": tuple(values["splits"])}
        facts[name] = DatasetFacts(name=name, **values)
    return facts


def names() -> list[str]:
    """List the data sets that have a fact sheet."""
    return list(_facts())


def get(name: str) -> DatasetFacts:
    """Return the fact sheet of a data set; ConfigError for an unknown name."""
    if name not in _facts():
        near = difflib.get_close_matches(name, _facts(), n=1, cutoff=0.5)
        question = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"unknown data set {name!r}.{question} Known: {', '.join(_facts())}; "
            "to import your own data: python -m grcf_ray.data import FILE"
        )
    return _facts()[name]


def check_other(name: str) -> None:
    """Raise ConfigError if the name of a user's own data is nearly that of a known data set, a likely typing error."""
    if near := difflib.get_close_matches(name, _facts(), n=1, cutoff=0.8):
        raise ConfigError(
            f"data set {name!r} is unknown, but nearly {near[0]}: use --dataset {near[0]}. If this is your own data, "
            "give its label range: --label-range A B"
        )


def spelled(name: str | None) -> str | None:
    """Return a data set's name in the spelling of its fact sheet: `MOSI` is `mosi`."""
    return name.lower() if name is not None and name.lower() in _facts() else name


def find(name: str) -> DatasetFacts | None:
    """Return the fact sheet of a data set; None for a user's own data."""
    return _facts().get(name)


def protocol_of(name: str, task: Literal["regression", "classification"]) -> Literal["mosi", "sims", "own", "binary"]:
    """Return the metric definitions of a data set; for a user's own data, by its task."""
    if task == "classification":
        return "binary"
    facts = find(name)
    return facts.metrics if facts else "own"
