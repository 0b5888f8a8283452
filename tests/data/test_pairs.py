from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chisquare

from grcf_ray.config import PairConfig
from grcf_ray.data.pairs import Step, draw_pairs, epoch_steps, pairs_per_epoch


def drawn(n_pairs: int, n_utterances: int = 30, seed: int = 0) -> NDArray[np.int64]:
    return draw_pairs(n_utterances, n_pairs, np.random.default_rng(seed))


def compared(step: Step) -> list[list[tuple[int, int]]]:
    """The pairs of each group, as utterances."""
    return [[tuple(step.utterance_U[group.slot_S[pair]].tolist()) for pair in group.pairs_P2] for group in step.groups]


def uniformity(pairs_M2: NDArray[np.int64]) -> float:
    """The p-value of a uniform draw from the ordered pairs of ten utterances."""
    counts = np.zeros((10, 10))
    np.add.at(counts, tuple(pairs_M2.T), 1)
    return float(chisquare(counts[~np.eye(10, dtype=bool)]).pvalue)


def test_pairs_an_epoch() -> None:
    assert pairs_per_epoch(PairConfig(), 1281) == 39 * 1281
    assert pairs_per_epoch(PairConfig(pairs_per_epoch=50_000), 1281) == 50_000


@pytest.mark.parametrize("n_utterances", [2, 3, 50])
def test_no_utterance_meets_itself(n_utterances: int) -> None:
    pairs_M2 = drawn(2000, n_utterances)
    assert pairs_M2.shape == (2000, 2)
    assert (pairs_M2[:, 0] != pairs_M2[:, 1]).all()
    assert set(pairs_M2.reshape(-1).tolist()) == set(range(n_utterances))


def test_ordered_pairs_are_equally_likely() -> None:
    """Chi-square over all 90 ordered pairs of 10 utterances; the seed is fixed, so the outcome is too."""
    pairs_M2 = drawn(45_000, n_utterances=10, seed=1)
    assert uniformity(pairs_M2) > 0.05
    # What the test is there to find: an utterance that met itself is given its neighbour instead.
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 10, (2, 45_000))
    assert uniformity(np.stack([first, (second + (second == first)) % 10], axis=1)) < 1e-6


def test_draw_is_the_generators() -> None:
    np.testing.assert_array_equal(drawn(100, seed=3), drawn(100, seed=3))
    assert not np.array_equal(drawn(100, seed=3), drawn(100, seed=4))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("n_pairs", [1, 7, 40, 47, 80])
def test_ranks_share_the_groups_of_a_step(n_pairs: int, world: int) -> None:
    """Steps of 4 groups of 5: every pair is compared once, in its group, dealt round-robin."""
    config = PairConfig(pairs_per_group=5, groups_per_step=4)
    pairs_M2 = drawn(n_pairs)
    ranks = [list(epoch_steps(pairs_M2, config, rank=rank, world=world)) for rank in range(world)]
    n_steps = -(-n_pairs // 20)
    assert [len(steps) for steps in ranks] == [n_steps] * world
    for index in range(n_steps):
        wanted = pairs_M2[index * 20 : (index + 1) * 20].tolist()
        groups = [[tuple(pair) for pair in wanted[at : at + 5]] for at in range(0, len(wanted), 5)]
        assert [compared(steps[index]) for steps in ranks] == [groups[rank::world] for rank in range(world)]


@pytest.mark.parametrize("pairing", ["sampled", "all"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_weights_of_a_step_are_shares_of_its_pairs(world: int, pairing: str) -> None:
    """DDP takes the mean over ranks: it is the sum over groups of their share of the drawn pairs."""
    config = PairConfig(pairs_per_group=5, groups_per_step=4, pairing=pairing)  # type: ignore[arg-type]
    steps = itertools.zip_longest(*(epoch_steps(drawn(47), config, rank=rank, world=world) for rank in range(world)))
    shares = []
    for ranks in steps:
        weights = [[group.weight / world for group in step.groups] for step in ranks]
        dealt = [weight for place in itertools.zip_longest(*weights) for weight in place if weight is not None]
        assert sum(dealt) == pytest.approx(1, abs=1e-15)
        shares.append(dealt)
    assert shares == [pytest.approx([0.25] * 4), pytest.approx([0.25] * 4), pytest.approx([5 / 7, 2 / 7])]


def test_rank_without_a_group_still_has_an_utterance() -> None:
    config = PairConfig(pairs_per_group=5, groups_per_step=4)
    pairs_M2 = drawn(22)
    ranks = [list(epoch_steps(pairs_M2, config, rank=rank, world=3)) for rank in range(3)]
    assert [[len(step.groups) for step in steps] for steps in ranks] == [[2, 1], [1, 0], [1, 0]]
    for steps in ranks[1:]:
        assert steps[1].utterance_U.tolist() == [pairs_M2[20, 0]]


def test_sampled_pairs_fill_two_slots_each() -> None:
    config = PairConfig(pairs_per_group=6, groups_per_step=2)
    (step,) = epoch_steps(drawn(12, n_utterances=5), config)
    np.testing.assert_array_equal(step.utterance_U, np.arange(5))
    for group in step.groups:
        assert len(group.slot_S) == 12
        assert group.pairs_P2.tolist() == [[2 * pair, 2 * pair + 1] for pair in range(6)]


def test_all_pairs_of_a_groups_distinct_utterances() -> None:
    config = PairConfig(pairs_per_group=4, groups_per_step=2, pairing="all")
    pairs_M2 = np.array([[7, 2], [2, 9], [2, 7], [9, 7], [0, 9], [5, 0], [0, 5], [9, 0]])
    (step,) = epoch_steps(pairs_M2, config)
    assert step.utterance_U.tolist() == [0, 2, 5, 7, 9]
    assert [step.utterance_U[group.slot_S].tolist() for group in step.groups] == [[2, 7, 9], [0, 5, 9]]
    assert compared(step) == [[(2, 7), (2, 9), (7, 9)], [(0, 5), (0, 9), (5, 9)]]
    assert [group.weight for group in step.groups] == [0.5, 0.5]


def test_each_ranks_utterances_are_its_groups_own() -> None:
    config = PairConfig(pairs_per_group=3, groups_per_step=4)
    pairs_M2 = drawn(12, n_utterances=100)
    for rank in range(2):
        (step,) = epoch_steps(pairs_M2, config, rank=rank, world=2)
        mine = np.concatenate([pairs_M2[:3], pairs_M2[6:9]] if rank == 0 else [pairs_M2[3:6], pairs_M2[9:]])
        np.testing.assert_array_equal(step.utterance_U, np.unique(mine))
