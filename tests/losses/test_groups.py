from __future__ import annotations

import pytest
import torch

from grcf_ray.errors import ConfigError
from grcf_ray.losses.groups import OrdinalGroups

NAMES = ["overlap,3", "overlap,5", "overlap,7", "strict,5"]
LIMITS = [3.0, 1.0, 2.5, 50.0]


def members(groups: OrdinalGroups, label: float) -> list[int]:
    """g(s) from the definition, one comparison at a time."""
    value, held = round(label, 4), []
    for index, (low, high) in enumerate(groups.intervals):
        low, high = round(low, 4), round(high, 4)
        last = index == len(groups.intervals) - 1
        if low <= value < high or (value == high and (last or not groups.half_open)):
            held.append(index)
    return held


def distance(of_i: list[int], of_j: list[int]) -> int:
    """Eq. 6 as its text reads it: 0 where a group is shared, else the maximum."""
    return 0 if set(of_i) & set(of_j) else max(abs(a - b) for a in of_i for b in of_j)


def held_by(groups: OrdinalGroups, label: float, dtype: torch.dtype = torch.float64) -> list[int]:
    return groups.membership(torch.tensor([label], dtype=dtype))[0].nonzero().flatten().tolist()


def between(groups: OrdinalGroups, label_i: float, label_j: float) -> int:
    return int(groups.distance(torch.tensor([label_i]), torch.tensor([label_j])).item())


def test_examples_of_the_paper() -> None:
    groups = OrdinalGroups.named("overlap,5")
    assert groups.intervals == ((-3.0, -1.5), (-2.0, 0.0), (-0.5, 0.5), (0.0, 2.0), (1.5, 3.0))
    assert held_by(groups, 0.2) == [2, 3]
    assert held_by(groups, -1.8) == held_by(groups, -1.6) == [0, 1]
    assert between(groups, -1.8, -1.6) == 0
    assert held_by(groups, 2.5) == [4]
    assert between(groups, 0.2, 2.5) == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", LIMITS)
def test_membership_and_distance_match_a_loop(name: str, limit: float) -> None:
    groups = OrdinalGroups.named(name, limit)
    generator = torch.Generator().manual_seed(0)
    edges = torch.tensor(groups.intervals, dtype=torch.float64).flatten()
    inside = (torch.rand(60, generator=generator, dtype=torch.float64) * 2 - 1) * limit
    label_B = torch.cat([edges, inside])

    expected = [members(groups, value) for value in label_B.tolist()]
    held = [row.nonzero().flatten().tolist() for row in groups.membership(label_B)]
    assert held == expected

    i, j = torch.cartesian_prod(torch.arange(len(label_B)), torch.arange(len(label_B))).unbind(-1)
    distance_P = groups.distance(label_B[i], label_B[j])
    assert distance_P.dtype == torch.int64
    assert distance_P.tolist() == [distance(a, b) for a in expected for b in expected]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", LIMITS)
def test_every_label_of_the_range_is_in_a_group(name: str, limit: float) -> None:
    groups = OrdinalGroups.named(name, limit)
    for dtype in (torch.float32, torch.float64):
        groups.membership(torch.linspace(-limit, limit, 60_001, dtype=dtype))


def test_a_float32_label_lies_on_the_edge_that_it_was_stored_as() -> None:
    for limit in (1.0, 3.0, 7.0):
        for name in NAMES:
            groups = OrdinalGroups.named(name, limit)
            for edge in {edge for interval in groups.intervals for edge in interval}:
                assert held_by(groups, edge, torch.float32) == held_by(groups, edge, torch.float64)


def test_the_limit_scales_the_edges() -> None:
    label_B = torch.linspace(-3, 3, 25, dtype=torch.float64)
    for name in NAMES:
        native, tripled = OrdinalGroups.named(name), OrdinalGroups.named(name, limit=9.0)
        assert torch.equal(native.membership(label_B), tripled.membership(label_B * 3))


def test_no_labels_and_no_pairs() -> None:
    groups, none = OrdinalGroups.named("overlap,5"), torch.empty(0)
    assert groups.membership(none).shape == (0, 5)
    assert groups.distance(none, none).shape == (0,)


@pytest.mark.parametrize(("label", "shown"), [(3.2, "3.2"), (-3.0002, "-3.0002"), (float("nan"), "nan")])
@pytest.mark.parametrize("name", NAMES)
def test_a_label_outside_is_named(label: float, shown: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"label {shown} lies outside the groups '{name}'.*\[-3, 3\]"):
        OrdinalGroups.named(name).membership(torch.tensor([0.0, label], dtype=torch.float64))


def test_an_unknown_name_lists_the_choices_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'overlap,3'.*'strict,5'.*mean 'overlap,5'"):
        OrdinalGroups.named("overlaps,5")


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_no_range_is_refused(limit: float) -> None:
    with pytest.raises(ConfigError, match=f"got {limit}"):
        OrdinalGroups.named("overlap,5", limit)


def named_by(groups: OrdinalGroups, label: float) -> int:
    """What `nearest` says, from its definition, one group at a time."""
    low, high = groups.intervals[0][0], groups.intervals[-1][1]
    value = round(min(max(label, low), high), 4)
    middles = [(round(a, 4) + round(b, 4)) / 2 for a, b in groups.intervals]
    away = {k: (round(abs(value - middles[k]), 5), abs(middles[k])) for k in members(groups, value)}
    return min(away, key=lambda k: away[k])


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", NAMES)
def test_every_score_is_named_after_one_group(name: str, limit: float) -> None:
    groups = OrdinalGroups.named(name, limit)
    scores = torch.linspace(-1.4 * limit, 1.4 * limit, 281, dtype=torch.float64)
    assert groups.nearest(scores).tolist() == [named_by(groups, score) for score in scores.tolist()]


def test_the_group_of_a_score_by_example() -> None:
    """0.5 is as near to the middle of [-0.5, 0.5] as to that of [0, 2]: it is neutral, as -0.5 is."""
    groups = OrdinalGroups.named("overlap,5")
    scores = torch.tensor([-3.4, -1.7, -1.6, -0.5, 0.0, 0.5, 0.51, 1.6, 1.7, 3.4])
    assert groups.nearest(scores).tolist() == [0, 0, 1, 2, 2, 2, 3, 3, 4, 4]
    assert groups.nearest(-scores).tolist() == [4 - k for k in [0, 0, 1, 2, 2, 2, 3, 3, 4, 4]]


def test_groups_are_called_by_their_edges() -> None:
    assert OrdinalGroups.named("overlap,5").titles() == ("[-3, -1.5]", "[-2, 0]", "[-0.5, 0.5]", "[0, 2]", "[1.5, 3]")
    assert OrdinalGroups.named("strict,5", 2.0).titles(center=3.0) == (
        "[1, 1.8)",
        "[1.8, 2.6)",
        "[2.6, 3.4)",
        "[3.4, 4.2)",
        "[4.2, 5]",
    )
