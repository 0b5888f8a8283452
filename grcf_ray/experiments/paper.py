"""The paper's figures, as printed, under this project's metric keys; percentages as fractions.

On MOSI and MOSEI F1 is the positive class's, the only definition that fits. On CH-SIMS v2 Acc2 and F1 appear under two
definitions, since Table 2 does not name its own: appendix C.5 drops zeros, as on MOSI; the code of its baselines (MMSA)
counts zeros as negative. There F1 is the weighted one, which is as near to Acc2 as the printed figures are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Figures = Mapping[str, float]


def _rows(metrics: Sequence[str], rows: Mapping[str, Sequence[float]]) -> dict[str, Figures]:
    """Convert rows as printed, with accuracies and F1 in per cent."""
    return {
        name: {
            metric: value / 100 if metric.startswith(("acc", "f1")) else value
            for metric, value in zip(metrics, values, strict=True)
        }
        for name, values in rows.items()
    }


def _sims_rows(metrics: Sequence[str], rows: Mapping[str, Sequence[float]]) -> dict[str, Figures]:
    """Convert rows of CH-SIMS v2, with Acc2 and F1 under both definitions."""
    both = {"acc2_mmsa": "acc2_non0", "f1_weighted_mmsa": "f1_weighted"}
    return {
        name: {**figures, **{alias: figures[metric] for metric, alias in both.items() if metric in figures}}
        for name, figures in _rows(metrics, rows).items()
    }


ABLATION: Mapping[str, Mapping[str, Figures]] = {
    "mosi": _rows(
        ("acc7", "f1_positive", "corr"),
        {
            "full": (49.3, 88.5, 0.866),
            "no-advantage": (45.0, 84.2, 0.835),
            "static-margin": (46.7, 88.1, 0.849),
            "no-stage1": (43.6, 87.2, 0.852),
            "no-stage2": (37.7, 88.4, 0.855),
        },
    ),
    "mosei": _rows(
        ("acc7", "f1_positive", "corr"),
        {
            "full": (58.7, 91.5, 0.835),
            "no-advantage": (53.9, 89.5, 0.736),
            "static-margin": (53.9, 89.8, 0.749),
            "no-stage1": (52.9, 88.9, 0.729),
            "no-stage2": (42.5, 86.8, 0.695),
        },
    ),
    "sims_v2": _sims_rows(
        ("acc3", "f1_weighted_mmsa", "corr"),
        {
            "full": (74.3, 81.6, 0.691),
            "no-advantage": (74.4, 81.7, 0.705),
            "static-margin": (74.3, 81.7, 0.695),
            "no-stage1": (72.5, 79.7, 0.682),
            "no-stage2": (42.3, 31.7, 0.634),
        },
    ),
}
"""Table 3."""

ABLATION_CHANGES: Mapping[str, Mapping[str, Figures]] = {
    "mosi": {
        "no-advantage": {"acc7": -8.72, "f1_positive": -4.86, "corr": -3.58},
        "static-margin": {"acc7": -5.27, "f1_positive": -0.45, "corr": -1.96},
        "no-stage1": {"acc7": -11.56, "f1_positive": -1.47, "corr": -1.62},
        "no-stage2": {"acc7": -23.53, "f1_positive": -0.11, "corr": -1.27},
    },
    "mosei": {
        "no-advantage": {"acc7": -8.18, "f1_positive": -2.19, "corr": -11.86},
        "static-margin": {"acc7": -8.18, "f1_positive": -1.86, "corr": -10.30},
        "no-stage1": {"acc7": -9.88, "f1_positive": -2.84, "corr": -12.69},
        "no-stage2": {"acc7": -27.60, "f1_positive": -5.14, "corr": -16.77},
    },
    "sims_v2": {
        name: {"acc3": acc3, "f1_weighted": f1, "f1_weighted_mmsa": f1, "corr": corr}
        for name, (acc3, f1, corr) in {
            "no-advantage": (0.13, 0.12, 2.03),
            "static-margin": (0.00, 0.12, 0.58),
            "no-stage1": (-2.42, -2.33, -1.30),
            "no-stage2": (-43.07, -61.15, -8.25),
        }.items()
    },
}
"""Table 3's changes relative to the full model, in per cent, as printed."""

GROUPS: Mapping[str, Mapping[str, Figures]] = {
    "mosi": _rows(
        ("acc7", "acc2_non0", "f1_positive", "mae", "corr"),
        {
            "overlap,5": (49.3, 90.3, 88.5, 0.580, 0.866),
            "overlap,3": (46.1, 88.9, 87.4, 0.623, 0.845),
            "overlap,7": (46.1, 88.7, 87.2, 0.623, 0.847),
            "strict,5": (46.1, 88.4, 86.9, 0.623, 0.848),
        },
    )
}
"""Table 4."""

NOISE: Mapping[str, Mapping[str, Figures]] = {
    name: {sigma: {"mae": mae, "corr": corr} for sigma, (mae, corr) in rows.items()}
    for name, rows in {
        "mosi": {
            "0": (0.581, 0.866),
            "0.01": (0.581, 0.866),
            "0.05": (0.581, 0.866),
            "0.1": (0.582, 0.866),
            "0.15": (0.581, 0.865),
            "0.2": (0.583, 0.866),
            "0.3": (0.577, 0.867),
        },
        "mosei": dict.fromkeys(("0", "0.01", "0.05", "0.1", "0.15", "0.2", "0.3"), (0.461, 0.835)),
        "sims_v2": {
            "0": (0.305, 0.691),
            "0.01": (0.305, 0.691),
            "0.05": (0.306, 0.691),
            "0.1": (0.305, 0.691),
            "0.15": (0.305, 0.692),
            "0.2": (0.305, 0.692),
            "0.3": (0.305, 0.691),
        },
    }.items()
}
"""Table 5."""

TRANSFER: Mapping[str, Mapping[str, Figures]] = {
    "mosi": _rows(
        ("acc7", "acc2_non0", "f1_positive", "mae", "corr"),
        {
            "in-domain": (49.3, 90.3, 88.5, 0.581, 0.866),
            "zero-shot": (40.0, 85.8, 82.9, 0.739, 0.816),
            "stage1-there": (49.6, 88.6, 86.5, 0.596, 0.865),
            "both-there": (49.6, 89.0, 87.0, 0.594, 0.862),
        },
    )
}
"""Table 9: CMU-MOSEI to CMU-MOSI."""

MODALITIES: Mapping[str, Mapping[str, Figures]] = {
    "sims_v2": _sims_rows(
        ("acc5", "acc3", "acc2_mmsa", "f1_weighted_mmsa", "mae", "corr"),
        {
            "text+vision+audio": (54.4, 74.3, 81.7, 81.6, 0.305, 0.691),
            "text+vision": (50.6, 73.2, 80.5, 80.5, 0.335, 0.657),
            "text+audio": (48.7, 68.1, 74.9, 74.7, 0.386, 0.545),
            "text": (41.2, 68.3, 75.1, 75.0, 0.415, 0.530),
        },
    )
}
"""Table 10."""

BACKBONES: Mapping[str, Mapping[str, Figures]] = {
    "mosi": _rows(
        ("acc7", "acc2_non0", "f1_positive", "mae", "corr"),
        {
            "microsoft/deberta-v3-base": (49.3, 90.3, 88.5, 0.581, 0.866),
            "albert/albert-base-v2": (43.8, 87.5, 85.1, 0.708, 0.797),
            "google-bert/bert-base-uncased": (45.6, 84.1, 81.2, 0.736, 0.793),
        },
    )
}
"""Table 11; the paper names ALBERT and BERT without their versions."""

COMPLEXITY: Mapping[str, Mapping[str, int]] = {
    "mosi": {
        "Text Encoder": 183_831_552,
        "Vision Pooler": 48,
        "Audio Pooler": 75,
        "Vision Norm": 1_536,
        "Audio Norm": 1_536,
        "Vision Projection": 36_864,
        "Audio Projection": 57_600,
        "Fusion Layer": 1_770_240,
        "Unified Encoder": 590_592,
        "Regression Head": 295_681,
        "GRCF (total)": 186_585_724,
        "ITHP (total)": 184_883_706,
        "CaMIB (total)": 189_246_280,
    }
}
"""Table 12."""

CLUSTERS: Mapping[str, Mapping[str, str]] = {
    "mosi": {
        "full": "compact, more so than (e)",
        "no-advantage": "mixed with neutral and positive",
        "static-margin": "mixed with neutral and positive",
        "no-stage1": "scattered everywhere",
        "no-stage2": "distinct, well separated",
    }
}
"""Figure 5: the remarks of section 4.5 on the case-study samples, in short."""

IMPORTANCE: Mapping[str, Mapping[int, tuple[str, str]]] = {
    "mosi": {
        1: ("stage1.encoder_lr", "most critical"),
        2: ("stage2.boundary_weight", "significant"),
    }
}
"""Figure 9: the parameter that appendix C.3 names in each stage, and its remark."""

CURVES: Mapping[str, Mapping[tuple[int, str], str]] = {
    "mosi": {
        (1, "group"): "decreases steadily",
        (1, "reg"): "active early",
        (1, "bound"): "activates later",
        (2, "mae"): "trends downward",
        (2, "group"): "remains stable",
        (2, "bound"): "minimal",
    }
}
"""Figure 3: the remarks of section 4.1 on each term by stage."""

STABILITY: Mapping[str, Mapping[tuple[str, float], Mapping[str, float]]] = {
    "sims_v2": {
        ("stage1.group_weight", 1.3): {"acc2_mmsa": 0.826, "acc2_non0": 0.826},
        ("stage1.reg_weight", 0.04): {"acc5": 0.551, "acc3": 0.744},
    }
}
"""Figure 8: the three points whose values appendix B.2 gives."""

BASELINES: Mapping[str, Mapping[str, Figures]] = {
    "mosi": _rows(
        ("acc7", "acc2_non0", "f1_weighted", "mae", "corr"),
        {
            "MFM": (33.3, 80.0, 80.1, 0.948, 0.664),
            "Self-MM": (45.8, 84.9, 84.8, 0.731, 0.785),
            "AtCAF": (46.5, 88.6, 88.5, 0.650, 0.831),
            "DLF": (47.1, 85.1, 85.0, 0.731, 0.781),
            "KuDA": (47.1, 86.4, 86.5, 0.705, 0.795),
            "DEVA": (46.3, 86.3, 86.3, 0.730, 0.787),
            "C-MIB": (47.7, 87.8, 87.8, 0.662, 0.835),
            "ITHP": (47.7, 88.5, 88.5, 0.663, 0.856),
            "Multimodal Boosting": (49.1, 88.5, 88.4, 0.634, 0.855),
            "CaMIB": (48.0, 89.8, 89.8, 0.616, 0.857),
            "DMD": (44.9, 84.3, 84.3, 0.726, 0.788),
            "EMOE": (45.2, 84.8, 84.8, 0.723, 0.790),
            "TMSON": (47.4, 87.2, 87.2, 0.687, 0.809),
            "MOAC": (48.6, 89.0, 89.0, 0.605, 0.857),
        },
    ),
    "mosei": _rows(
        ("acc7", "acc2_non0", "f1_weighted", "mae", "corr"),
        {
            "MFM": (50.8, 83.4, 83.4, 0.580, 0.722),
            "Self-MM": (53.0, 85.2, 85.2, 0.540, 0.763),
            "AtCAF": (55.9, 87.0, 86.8, 0.508, 0.785),
            "DLF": (53.9, 85.4, 85.3, 0.536, 0.764),
            "KuDA": (52.9, 86.5, 86.6, 0.529, 0.776),
            "DEVA": (52.3, 86.1, 86.2, 0.541, 0.769),
            "C-MIB": (52.7, 86.9, 86.8, 0.542, 0.784),
            "ITHP": (52.2, 87.1, 87.1, 0.550, 0.792),
            "Multimodal Boosting": (54.0, 86.5, 86.5, 0.523, 0.779),
            "CaMIB": (53.5, 87.3, 87.2, 0.517, 0.788),
            "DMD": (52.8, 84.6, 84.6, 0.538, 0.768),
            "EMOE": (52.5, 85.0, 85.0, 0.542, 0.760),
            "TMSON": (55.6, 86.4, 86.2, 0.526, 0.766),
            "MOAC": (54.3, 87.6, 87.6, 0.512, 0.793),
        },
    ),
    "sims_v2": _sims_rows(
        ("acc5", "acc3", "acc2_mmsa", "f1_weighted_mmsa", "mae", "corr"),
        {
            "EF-LSTM": (53.7, 73.5, 80.1, 80.0, 0.309, 0.700),
            "LF-DNN": (51.8, 71.2, 77.8, 77.9, 0.322, 0.668),
            "TFN": (53.3, 70.9, 78.1, 78.1, 0.322, 0.662),
            "LMF": (51.6, 70.0, 77.8, 77.8, 0.327, 0.651),
            "MFN": (55.4, 72.7, 79.4, 79.4, 0.301, 0.712),
            "Graph-MFN": (48.9, 68.6, 76.6, 76.6, 0.334, 0.644),
            "MISA": (47.5, 68.9, 78.2, 78.3, 0.342, 0.671),
            "MAG-BERT": (49.2, 70.6, 77.1, 77.1, 0.346, 0.641),
            "Self-MM": (53.5, 72.7, 78.7, 78.6, 0.315, 0.691),
            "MMIM": (50.5, 70.4, 77.8, 77.8, 0.339, 0.641),
            "AV-MC": (52.1, 73.2, 80.6, 80.7, 0.301, 0.721),
            "KuDA": (53.1, 74.3, 80.2, 80.1, 0.289, 0.741),
        },
    ),
}
"""Tables 1 and 2 without GRCF, whose rows are in `data.datasets`. The F1 of these rows fits the weighted F1, that of
GRCF on MOSI and MOSEI the positive class's, though one column has both."""

CONFLICTS: Mapping[str, Any] = {
    "mosi": {
        "coefficient": {"const": 1.8443, "proximity": 1.743e-08, "conflict": 0.0040},
        "error": {"const": 0.007, "proximity": 7.43e-09, "conflict": 0.004},
        "t": {"const": 278.811, "proximity": 2.345, "conflict": 0.913},
        "p": {"const": 0.0, "proximity": 0.019, "conflict": 0.361},
        "r2": 0.002,
        "n": 3125,
        "spearman": 0.0104,
        "shares": {"none": 0.1446, "vision": 0.1619},
    },
    "mustard": {
        "weight": {0: 0.0085, 1: 0.0190, 2: 0.0500, 3: 0.4445},
        "count": {0: 2522, 1: 1591, 2: 197, 3: 2},
        "modalities": {
            ("vision", False): 0.0112,
            ("vision", True): 0.0210,
            ("audio", False): 0.0110,
            ("audio", True): 0.0356,
        },
        "spearman": 0.1659,
    },
}
"""Tables 6 to 8 and Figure 6; a p of 0 is printed as below 0.001."""
