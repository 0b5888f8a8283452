from __future__ import annotations

import pytest

from grcf_ray.data import datasets
from grcf_ray.errors import ConfigError

METRICS = {"mae", "corr", "pairwise_acc", "acc7", "acc5", "acc3", "acc2_non0", "acc2_has0", "acc2_mmsa", "acc2"} | {
    "f1_positive",
    "f1_weighted",
    "f1_weighted_mmsa",
    "f1_macro",
}


def test_known_names_are_known_in_any_case() -> None:
    names = ["MOSI", "Sims_V2", "mosi", "Reviews", None]
    assert [datasets.spelled(name) for name in names] == ["mosi", "sims_v2", "mosi", "Reviews", None]


def test_papers_main_tables_are_recorded_as_fractions() -> None:
    assert datasets.get("mosi").paper_results == {
        "acc7": 0.493,
        "acc2_non0": 0.903,
        "f1_positive": 0.885,
        "mae": 0.581,
        "corr": 0.866,
    }
    assert datasets.get("mosei").paper_results["f1_positive"] == 0.915
    assert datasets.get("sims_v2").paper_results["f1_weighted_mmsa"] == 0.816


@pytest.mark.parametrize("name", datasets.names())
def test_fact_sheets_are_consistent(name: str) -> None:
    facts = datasets.get(name)
    assert facts.name == name
    assert facts.label_range[0] < facts.label_range[1]
    assert set(facts.paper_results) <= METRICS
    assert all(list(release) == ["train", "valid", "test"] for release in facts.splits)


def test_widths_are_the_papers() -> None:
    widths = {name: (datasets.get(name).audio_dim, datasets.get(name).vision_dim) for name in datasets.names()}
    assert widths == {"mosi": (74, 47), "mosei": (74, 35), "sims_v2": (25, 177), "demo": (None, None)} | {
        "mustard": (60, 36),
        "ur_funny": (81, 371),
    }


def test_unknown_name_says_the_nearest_and_the_way_for_own_data() -> None:
    with pytest.raises(ConfigError, match=r"'sims-v2'.*Did you mean sims_v2\?.*data import FILE"):
        datasets.get("sims-v2")
    with pytest.raises(ConfigError, match=r"unknown data set 'reviews'\. Known: mosi"):
        datasets.get("reviews")
