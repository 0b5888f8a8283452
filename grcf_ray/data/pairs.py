"""Draw pairs of utterances (appendix C.2) and divide them into groups and optimizer steps.

U distinct utterances of a step; S scored slots of a group, repeats counted; P pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from grcf_ray.config import PairConfig


@dataclasses.dataclass(frozen=True)
class Group:
    """One group of pairs, whose losses are computed together."""

    slot_S: NDArray[np.int64]
    """The utterance in each scored slot, an index into the step's distinct utterances."""
    pairs_P2: NDArray[np.int64]
    """The pairs to compare, indices into the slots."""
    weight: float
    """The group's share of the step's loss: its share of the step's drawn pairs."""


@dataclasses.dataclass(frozen=True)
class Step:
    """The groups of one optimizer step on one rank."""

    utterance_U: NDArray[np.int64]
    """Distinct utterances, rising; a rank without a group has one, with no weight."""
    groups: tuple[Group, ...]


def pairs_per_epoch(config: PairConfig, n_utterances: int) -> int:
    """Return M, the number of pairs drawn an epoch: the configured number, else 39 for each training utterance."""
    return config.pairs_per_epoch or 39 * n_utterances


def draw_pairs(n_utterances: int, n_pairs: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw [M, 2] pairs (i, j), i != j, uniformly over the utterances with replacement (around eq. 27)."""
    first = rng.integers(0, n_utterances, n_pairs)
    second = rng.integers(0, n_utterances - 1, n_pairs)
    second += second >= first
    return np.stack([first, second], axis=1)


def epoch_steps(pairs_M2: NDArray[np.int64], config: PairConfig, *, rank: int = 0, world: int = 1) -> Iterator[Step]:
    """Yield the epoch's optimizer steps for `rank` of `world`; the ranks take groups in turn.

    A step is `groups_per_step` groups for any number of ranks. Weights are multiplied by `world`, so that the
    mean of the ranks' gradients is the gradient of the step's weighted sum over all groups. The last step may be
    short, and its last group too.
    """
    size = config.pairs_per_group
    for start in range(0, len(pairs_M2), size * config.groups_per_step):
        step_pairs = pairs_M2[start : start + size * config.groups_per_step]
        groups = [step_pairs[first : first + size] for first in range(0, len(step_pairs), size)][rank::world]
        utterance_U = np.unique(np.concatenate(groups)) if groups else step_pairs[0, :1]
        yield Step(
            utterance_U,
            tuple(_group(pairs, utterance_U, config, world * len(pairs) / len(step_pairs)) for pairs in groups),
        )


def _group(pairs_P2: NDArray[np.int64], utterance_U: NDArray[np.int64], config: PairConfig, weight: float) -> Group:
    if config.pairing == "all":
        utterance_S = np.unique(pairs_P2)
        compared = np.stack(np.triu_indices(len(utterance_S), k=1), axis=1)
    else:
        utterance_S = pairs_P2.reshape(-1)
        compared = np.arange(len(utterance_S)).reshape(-1, 2)
    return Group(np.searchsorted(utterance_U, utterance_S), compared, weight)
