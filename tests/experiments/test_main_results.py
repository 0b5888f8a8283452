"""The table of the main results, of figures that are made up: which rows and columns it has, and what comes first."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from grcf_ray.config import RunConfig, build_config
from grcf_ray.data.datasets import find, get, protocol_of
from grcf_ray.experiments.main import main
from grcf_ray.experiments.paper import TABLES
from grcf_ray.experiments.registry import Options
from tests.experiments.conftest import FakeContext

BASELINES = TABLES["baselines"]
FIGURES = {"mae": 0.8, "corr": 0.7, "f1_positive": 0.8, "f1_weighted": 0.82}
LABELS, SCORES = np.array([2.0, 1.0, 1.0]), np.zeros(3)
"""Ties alone: under eq. 28 as printed a third of the pairs agree, and none with ties dropped."""


def context_of(name: str, figures: list[dict[str, float]], reasons: list[str], task: Any = "regression") -> Any:
    """Return a context in the parts that the experiment uses, with a model of these test figures for each seed."""
    scored = SimpleNamespace(label_N=LABELS, score_N=SCORES)
    models = [
        SimpleNamespace(index=index, metrics={"test": test}, scored=lambda split: scored)
        for index, test in enumerate(figures)
    ]
    return FakeContext(
        models=lambda arms, experiment: {arms[0].name: models},
        config=RunConfig(),
        options=Options(),
        facts=find(name),
        protocol=protocol_of(name, task),
        store=SimpleNamespace(info=SimpleNamespace(name=name, task=task, half_range=3.0, center=0.0)),
        view=SimpleNamespace(metrics={"test": figures[0], "not_comparable": reasons}, scored=lambda split: None),
    )


def test_reasons_come_first_and_ours_last() -> None:
    result = main(context_of("mosi", [{**FIGURES, "mae": mae} for mae in (0.8, 0.9, 1.0)], ["no vision"]))
    assert [table.name for table in result.tables] == ["not comparable", "results"]
    assert [row["reason"] for row in result.tables[0].rows] == ["no vision"]
    rows = {row["title"]: row for row in result.tables[1].rows}
    assert list(rows) == [
        *BASELINES["mosi"],
        *("GRCF, the paper", "the search's winner, one seed", "GRCF here, mean over seeds (3)", "± deviation"),
    ]
    assert rows["GRCF here, mean over seeds (3)"]["mae"] == pytest.approx(0.9)
    assert rows["± deviation"]["mae"] == pytest.approx(0.1)
    # One column of the paper, two definitions.
    assert (rows["MOAC"]["f1_weighted"], rows["MOAC"]["f1_positive"]) == (0.89, None)
    assert (rows["GRCF, the paper"]["f1_weighted"], rows["GRCF, the paper"]["f1_positive"]) == (None, 0.885)
    assert any("few seeds" in note for note in result.tables[1].notes)


def test_both_readings_of_eq_28_stand_side_by_side() -> None:
    (table,) = main(context_of("own", [FIGURES] * 5, [])).tables
    keys = [column.key for column in table.columns]
    start = keys.index("pairwise_acc_drop")
    assert keys[start : start + 2] == ["pairwise_acc_drop", "pairwise_acc_literal"] and "pairwise_acc" not in keys
    rows = {row["title"]: row for row in table.rows}
    here = rows["GRCF here, mean over seeds (5)"]
    assert (here["pairwise_acc_drop"], here["pairwise_acc_literal"]) == (0.0, pytest.approx(1 / 3))
    # The run has no scores of its winner.
    assert rows["the search's winner, one seed"]["pairwise_acc_drop"] is None


def test_sims_figures_stand_beside_both_definitions() -> None:
    figures = {**FIGURES, "acc2_non0": 0.7, "acc2_mmsa": 0.72, "f1_weighted_mmsa": 0.71}
    result = main(context_of("sims_v2", [figures] * 5, []))
    rows = {row["title"]: row for row in result.tables[0].rows}
    names = ("acc2_non0", "f1_weighted", "acc2_mmsa", "f1_weighted_mmsa")
    assert [rows["GRCF, the paper"][name] for name in names] == [0.817, 0.816, 0.817, 0.816]
    assert [rows["GRCF here, mean over seeds (5)"][name] for name in names] == pytest.approx([0.7, 0.82, 0.72, 0.71])
    assert any("C.5" in note for note in result.notes)
    assert not any("positive class" in note for note in result.notes)


def test_tables_1_and_2_are_whole() -> None:
    assert {name: len(rows) for name, rows in BASELINES.items()} == {"mosi": 14, "mosei": 14, "sims_v2": 12}
    assert BASELINES["mosi"].keys() == BASELINES["mosei"].keys()
    mfm = {"acc7": 0.333, "acc2_non0": 0.8, "f1_weighted": 0.801, "mae": 0.948, "corr": 0.664}
    assert BASELINES["mosi"]["MFM"] == pytest.approx(mfm)
    for row in BASELINES["sims_v2"].values():
        assert (row["acc2_non0"], row["f1_weighted"]) == (row["acc2_mmsa"], row["f1_weighted_mmsa"])


@pytest.mark.parametrize(
    ("name", "metric", "best", "value"),
    [
        *(("mosi", "mae", "MOAC", 0.605), ("mosi", "acc2_non0", "CaMIB", 0.898), ("mosei", "acc7", "AtCAF", 0.559)),
        *(("mosei", "mae", "AtCAF", 0.508), ("sims_v2", "acc5", "MFN", 0.554), ("sims_v2", "corr", "KuDA", 0.741)),
    ],
)
def test_the_best_baselines_are_those_that_section_4_2_has(name: str, metric: str, best: str, value: float) -> None:
    choose = min if metric == "mae" else max
    row = choose(BASELINES[name].items(), key=lambda item: item[1][metric])
    assert (row[0], row[1][metric]) == (best, pytest.approx(value))
    # GRCF is ahead of all of them but on CH-SIMS v2, where it is so in Acc2 and F1 alone.
    assert (choose(value, get(name).paper_results[metric]) != value) == (name != "sims_v2")


@pytest.mark.parametrize("name", ["mosi", "mosei", "sims_v2"])
def test_table_3s_changes_are_those_of_its_figures(name: str) -> None:
    rows, changes = TABLES["ablation"][name], TABLES["ablation changes"][name]
    full = rows["full"]
    assert changes.keys() == rows.keys() - {"full"}
    for arm, arm_changes in changes.items():
        assert arm_changes.keys() == full.keys()
        for metric, change in arm_changes.items():
            assert change == pytest.approx(100 * (rows[arm][metric] / full[metric] - 1), abs=0.0051)


@pytest.mark.parametrize(
    ("name", "task", "said"),
    [
        *(("mustard", "classification", "Figure 4"), ("own", "regression", "no figures")),
        # Two classes made of MOSI are not what the paper measures.
        *(("mosi", "classification", "no figures"), ("mosi", "regression", "positive class")),
    ],
)
def test_what_the_paper_lacks_is_said(name: str, task: str, said: str) -> None:
    figures = {"acc2": 0.7, "bce": 0.6} if task == "classification" else FIGURES
    result = main(context_of(name, [figures] * 5, [], task))
    (table,) = result.tables
    assert any(said in note for note in result.notes)
    assert not any("few seeds" in note for note in table.notes)
    assert dataclasses.asdict(table)["rows"][-1]["title"] == "± deviation"


def test_the_run_of_a_rival_has_its_own_name() -> None:
    context = context_of("mosi", [FIGURES] * 2, ["no vision"])
    context.config = build_config({"model.name": "tmson"})
    result = main(context)
    titles = [row["title"] for table in result.tables for row in table.rows if "title" in row]
    assert "TMSON here, mean over seeds (2)" in titles and "TMSON" in titles
    assert not any("GRCF" in title for title in titles)
    assert any("model is TMSON" in note for note in result.notes)


def test_what_is_undefined_for_a_model_has_no_mean() -> None:
    result = main(context_of("own", [FIGURES, {name: FIGURES[name] for name in ("mae", "f1_positive")}], []))
    rows = {row["title"]: row for row in result.tables[0].rows}
    mean = rows["GRCF here, mean over seeds (2)"]
    assert (mean["mae"], mean["corr"]) == (pytest.approx(0.8), None)
