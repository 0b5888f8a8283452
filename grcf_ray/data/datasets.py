"""Keep a fact sheet for each known data set: the facts that its utterance table does not hold."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
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

_TABLE = "a table (Parquet, CSV, TSV, JSON Lines) with the columns id, split, text, label and optionally audio, vision"
_CONTEXT_TABLE = f"{_TABLE}, context (a list of the preceding sentences)"
_CMU_NEEDS = (
    "{name}.pkl of MAG-BERT, aligned_50.pkl or unaligned_50.pkl of MMSA, the pickles of MISA or MMIM, a folder of .csd "
    f"files with their folds, or {_TABLE}"
)
_CMU_OBTAIN = (
    "MAG-BERT: https://github.com/WasifurRahman/BERT_multimodal_transformer, "
    "MMSA: https://github.com/thuiar/MMSA#2-datasets, or "
    "CMU-MultimodalSDK: https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK"
)

_FACTS = {
    facts.name: facts
    for facts in (
        DatasetFacts(
            name="mosi",
            title="CMU-MOSI",
            task="regression",
            label_range=(-3.0, 3.0),
            language="en",
            splits=(
                {"train": 1281, "valid": 229, "test": 685},
                {"train": 1284, "valid": 229, "test": 686},
            ),
            default_backbone="microsoft/deberta-v3-base",
            audio_dim=74,
            vision_dim=47,
            metrics="mosi",
            paper_results={
                "acc7": 0.493,
                "acc2_non0": 0.903,
                "f1_positive": 0.885,
                "mae": 0.581,
                "corr": 0.866,
            },
            paper_backbone="microsoft/deberta-v3-base",
            citation="Zadeh, Zellers, Pincus and Morency (2016). MOSI: Multimodal Corpus of Sentiment "
            "Intensity and Subjectivity Analysis in Online Opinion Videos. arXiv:1606.06259",
            needs=_CMU_NEEDS.format(name="mosi"),
            obtain=_CMU_OBTAIN,
        ),
        DatasetFacts(
            name="mosei",
            title="CMU-MOSEI",
            task="regression",
            label_range=(-3.0, 3.0),
            language="en",
            splits=(
                {"train": 16265, "valid": 1869, "test": 4643},
                {"train": 16326, "valid": 1871, "test": 4659},
            ),
            default_backbone="microsoft/deberta-v3-base",
            audio_dim=74,
            vision_dim=35,
            metrics="mosi",
            paper_results={
                "acc7": 0.587,
                "acc2_non0": 0.891,
                "f1_positive": 0.915,
                "mae": 0.460,
                "corr": 0.835,
            },
            paper_backbone="microsoft/deberta-v3-base",
            citation="Zadeh, Liang, Poria, Cambria and Morency (2018). Multimodal Language Analysis in the "
            "Wild: CMU-MOSEI Dataset and Interpretable Dynamic Fusion Graph. ACL 2018",
            needs=_CMU_NEEDS.format(name="mosei"),
            obtain=_CMU_OBTAIN,
        ),
        # Acc2 and F1 are listed under both definitions, see TWO_READINGS. Section 4.1 names one backbone for all data
        # sets, although it cannot read Chinese text.
        DatasetFacts(
            name="sims_v2",
            title="CH-SIMS v2",
            task="regression",
            label_range=(-1.0, 1.0),
            language="zh",
            # Published files differ by one training utterance.
            splits=(
                {"train": 2722, "valid": 647, "test": 1034},
                {"train": 2721, "valid": 647, "test": 1034},
            ),
            default_backbone="bert-base-chinese",
            audio_dim=25,
            vision_dim=177,
            metrics="sims",
            paper_results={
                "acc5": 0.544,
                "acc3": 0.743,
                "acc2_non0": 0.817,
                "f1_weighted": 0.816,
                "acc2_mmsa": 0.817,
                "f1_weighted_mmsa": 0.816,
                "mae": 0.305,
                "corr": 0.691,
            },
            paper_backbone="microsoft/deberta-v3-base",
            citation="Liu, Yuan, Mao, Liang, Yang, Qiu, Cheng, Li, Xu and Gao (2022). Make Acoustic and "
            "Visual Cues Matter: CH-SIMS v2.0 Dataset and AV-Mixup Consistent Module. ICMI 2022",
            needs=f"a pickle of CH-SIMS v2, such as unaligned.pkl, or {_TABLE}",
            obtain="https://github.com/thuiar/ch-sims-v2",
        ),
        # Only Figure 4 has results. The paper gives no settings or splits for MUStARD and UR-FUNNY; its figures fit
        # the splits of HKT.
        DatasetFacts(
            name="mustard",
            title="MUStARD",
            task="classification",
            label_range=(0.0, 1.0),
            language="en",
            splits=(
                {"train": 539, "valid": 68, "test": 68},
                {"train": 496, "valid": 56, "test": 138},
                {"train": 300, "valid": 34, "test": 356},
            ),
            default_backbone="microsoft/deberta-v3-base",
            audio_dim=60,
            vision_dim=36,
            metrics="binary",
            paper_results={"acc2": 0.75},
            paper_backbone="microsoft/deberta-v3-base",
            citation="Castro, Hazarika, Pérez-Rosas, Zimmermann, Mihalcea and Poria (2019). Towards Multimodal Sarcasm "
            "Detection (An _Obviously_ Perfect Paper). ACL 2019",
            sha256={
                "sarcasm_data.json": "ec9533032c5f143f197cb5fa5d4b29ab9bf56a20b0dc05d5b31d052f5957d39c",
                "split_indices.p": "2adea94590e2ab49cde5e96543c75ec4006fd1e9cbd556a82382692c8b045306",
            },
            needs="a folder with sarcasm_data.json and split_indices.p (and audio_features.p, video features as HDF5), "
            f"HKT's pickle, or {_CONTEXT_TABLE}",
            obtain="https://github.com/soujanyaporia/MUStARD, or HKT: https://github.com/matalvepu/HKT",
        ),
        DatasetFacts(
            name="ur_funny",
            title="UR-FUNNY v2",
            task="classification",
            label_range=(0.0, 1.0),
            language="en",
            splits=({"train": 7614, "valid": 980, "test": 994},),
            default_backbone="microsoft/deberta-v3-base",
            audio_dim=81,
            vision_dim=371,
            metrics="binary",
            paper_results={"acc2": 0.7364},
            paper_backbone="microsoft/deberta-v3-base",
            citation="Hasan, Rahman, Bagher Zadeh, Zhong, Tanveer, Morency and Hoque (2019). UR-FUNNY: A Multimodal "
            "Language Dataset for Understanding Humor. EMNLP 2019",
            needs="a folder with language_sdk.pkl, humor_label_sdk.pkl, data_folds.pkl (and the pickles of features), "
            f"HKT's pickle, or {_CONTEXT_TABLE}",
            obtain="https://github.com/ROC-HCI/UR-FUNNY, or HKT: https://github.com/matalvepu/HKT",
        ),
        DatasetFacts(
            name="demo",
            title="Rated tweets (demo)",
            task="regression",
            label_range=(-4.0, 4.0),
            language="en",
            splits=({"train": 2940, "valid": 420, "test": 840},),
            default_backbone="sentence-transformers/all-MiniLM-L6-v2",
            audio_dim=None,
            vision_dim=None,
            metrics="own",
            citation="Hutto and Gilbert (2014). VADER: A Parsimonious Rule-based Model for Sentiment "
            "Analysis of Social Media Text. ICWSM 2014",
            sha256={"utterances.csv": "52ea025fd040aeaf78a0012e26862bc577d819da117d9b07018c591a18fdd045"},
            needs="nothing: it comes with grcf_ray",
            obtain="packaged",
        ),
    )
}


def names() -> list[str]:
    """List the data sets that have a fact sheet."""
    return list(_FACTS)


def get(name: str) -> DatasetFacts:
    """Return the fact sheet of a data set; ConfigError for an unknown name."""
    if name not in _FACTS:
        raise ConfigError(unknown_message(name))
    return _FACTS[name]


def spelled(name: str | None) -> str | None:
    """Return a data set's name in the spelling of its fact sheet: `MOSI` is `mosi`."""
    return name.lower() if name is not None and name.lower() in _FACTS else name


def find(name: str) -> DatasetFacts | None:
    """Return the fact sheet of a data set; None for a user's own data."""
    return _FACTS.get(name)


def protocol_of(name: str, task: Literal["regression", "classification"]) -> Literal["mosi", "sims", "own", "binary"]:
    """Return the metric definitions of a data set; for a user's own data, by its task."""
    if task == "classification":
        return "binary"
    facts = find(name)
    return facts.metrics if facts else "own"


def unknown_message(name: str) -> str:
    """Write the error for a data set without a fact sheet: the nearest name, all names, the options for own data."""
    near = difflib.get_close_matches(name, _FACTS, n=1, cutoff=0.5)
    question = f" Did you mean {near[0]}?" if near else ""
    return (
        f"unknown data set {name!r}.{question} Known: {', '.join(_FACTS)}; "
        "for your own data give --data FILE --label-range A B"
    )
