"""The study of search policies: its noise, its race, and that every policy delivers a model for its cost."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import search_policy
from search_policy import POLICIES, Contender, Policy, SeenTable, averaged, drop_worst, over_three_epochs, play

from grcf_ray.search.table_file import write_table
from tests.search.made_trials import ABOUT, TRIALS

if TYPE_CHECKING:
    from grcf_ray.search.trial_table import TrialTable


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("table") / "trials.parquet"
    write_table(place, ABOUT, TRIALS)
    return place


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_every_policy_delivers_a_model(path: Path, policy: Policy) -> None:
    first, again, other = (play(path, policy, 6, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert 0.2 < first.valid < 2.0 and 0.2 < first.test < 2.0
    whole = 6 * (3 + 4) + 7 * policy.rounds * (policy.contenders + 1)
    assert 6 * 2 <= first.passes <= whole


def test_what_a_search_sees_of_a_trial(path: Path) -> None:
    known = search_policy.opened(path).recorded(2)[0]
    values = known.objective["valid"]
    means = over_three_epochs(known).objective["valid"]
    assert means[:4].tolist() == pytest.approx(
        [values[0], values[:2].mean(), values[:3].mean(), values[1:4].mean()], abs=1e-12
    )
    seen = averaged(known)
    assert seen.objective["test"].tolist() == [*known.objective["test"][:3], *[known.objective["test"][4]] * 2]
    np.testing.assert_array_equal(seen.error["valid"][3], known.error["valid"][4])


def test_the_race_drops_the_worst_when_it_is_sure(path: Path) -> None:
    table = SeenTable(search_policy.opened(path), search_policy.as_recorded)
    rng = np.random.default_rng(0)
    make = functools.partial(Contender, {"stage1.head_lr": 1e-3})
    good, equal, bad = (make({"stage2.head_lr": rate, "stage2.fusion_dropout": 0.2}) for rate in (1e-3, 1e-3, 1e-2))
    for contender in (good, equal, bad):
        for _ in range(4):
            contender.add(table, rng)
    racing = [good, bad, equal]
    drop_worst(racing, rng)
    assert racing == [good, equal]
    racing = [good, good]
    drop_worst(racing, rng)
    assert racing == [good, good]


def test_the_variance_is_taken_apart(path: Path) -> None:
    table: TrialTable = search_policy.opened(path)
    rows = {row["stage"]: row for row in search_policy.variance_table(table).rows}
    figures = table.by_configuration(2)["test"]
    assert figures.shape == (40, 2)
    # One-way analysis of variance, by hand.
    within = np.mean([(a - b) ** 2 / 2 for a, b in figures])
    between = figures.mean(axis=1).var(ddof=1) - within / 2
    row = rows["2: MAE, test"]
    assert row["seed"] ** 2 == pytest.approx(within)
    assert row["share"] == pytest.approx(between / (between + within))
    assert row["share"] > 0.5
