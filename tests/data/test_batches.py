from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from grcf_ray.data.batches import Batch, _cuts, collate, length_sorted, micro_batches
from grcf_ray.data.features import Features, Ragged

EVERYONE = np.arange(48)


def shuffled(seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(EVERYONE)


def text_of(ragged: Ragged, index: int) -> list[float]:
    result: list[float] = ragged.values[ragged.offsets[index] : ragged.offsets[index + 1]].tolist()
    return result


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("budget", [1, 12, 40, 10_000])
def test_micro_batches_keep_the_order_and_the_budget(tiny_features: Features, budget: int, multiple: int) -> None:
    tiny_features = dataclasses.replace(tiny_features, length_multiple=multiple)
    split = tiny_features.train
    order_U = length_sorted(split, shuffled())
    rows = []
    for batch in micro_batches(tiny_features, split, order_U, budget):
        assert batch.token_BL is not None and batch.mask_BL is not None
        assert batch.token_BL.shape[1] % multiple == 0
        # A batch of one utterance may exceed the budget: there is no smaller one.
        assert batch.token_BL.numel() <= budget or len(batch.token_BL) == 1
        rows += [row[mask].tolist() for row, mask in zip(batch.token_BL, batch.mask_BL, strict=True)]
    assert rows == [text_of(split.tokens, index) for index in order_U]


@pytest.mark.parametrize("seed", range(20))
def test_padding_and_batches_cost_least_together(seed: int) -> None:
    """Against every way to cut between different lengths."""
    rng = np.random.default_rng(seed)
    length_U = np.sort(rng.choice(rng.integers(1, 60, 7), 40))
    budget, batch_cost = int(rng.choice([1, 50, 150, 10_000])), int(rng.choice([1, 32, 1024]))
    rises = [at for at in range(1, 40) if length_U[at] > length_U[at - 1]]

    def cost(cuts: Sequence[int]) -> float:
        total = 0.0
        for start, stop in itertools.pairwise([0, *cuts, 40]):
            longest = int(length_U[stop - 1])
            total += longest * (stop - start) + batch_cost * math.ceil((stop - start) / max(1, budget // longest))
        return total

    every = [cuts for size in range(len(rises) + 1) for cuts in itertools.combinations(rises, size)]
    least = min(cost(cuts) for cuts in every)
    stops = _cuts(length_U, budget, batch_cost)
    result = sum(length_U[b - 1] * (b - a) + batch_cost for a, b in itertools.pairwise([0, *stops]))
    assert stops[-1] == 40
    assert result <= least


def test_a_gpu_takes_larger_batches(tiny_features: Features) -> None:
    split = tiny_features.train
    order_U = length_sorted(split, EVERYONE)
    counts = [
        sum(1 for _ in micro_batches(tiny_features, split, order_U, 10_000, device=device))
        for device in (None, torch.device("cpu"), torch.device("cuda", 0))
    ]
    assert counts[0] == counts[1] > counts[2] == 1


def test_no_utterances_make_no_batches(tiny_features: Features) -> None:
    assert list(micro_batches(tiny_features, tiny_features.train, EVERYONE[:0], 100)) == []


def test_length_sorted_rises_and_keeps_ties_in_order(tiny_features: Features) -> None:
    order = length_sorted(tiny_features.train, EVERYONE)
    lengths = tiny_features.train.tokens.lengths
    assert order.tolist() == sorted(range(48), key=lambda index: (lengths[index], index))
    assert len(set(lengths.tolist())) < 48


def test_padding_is_masked_and_filled(tiny_features: Features) -> None:
    """With a pad id that is no 0, as RoBERTa's is not."""
    features = dataclasses.replace(tiny_features, pad_token_id=3)
    split = features.train
    index_B = shuffled()[:9]
    batch = collate(features, split, index_B)
    given = ((split.tokens, batch.token_BL, batch.mask_BL, 3),)
    given += ((split.audio, batch.audio_BLA, batch.audio_mask_BL, 0),)  # type: ignore[assignment]
    given += ((split.vision, batch.vision_BLV, batch.vision_mask_BL, 0),)  # type: ignore[assignment]
    for ragged, values, mask, fill in given:
        assert ragged is not None and values is not None and mask is not None
        assert mask.sum(1).tolist() == ragged.lengths[index_B].tolist()
        for row, index in enumerate(index_B):
            assert values[row][mask[row]].tolist() == text_of(ragged, index)
        assert (values[~mask] == fill).all()
        # Real values come first: the first token is [CLS].
        assert (mask[:, :-1] >= mask[:, 1:]).all()
    assert batch.token_BL is not None and batch.token_BL.dtype == torch.int64
    assert batch.audio_BLA is not None and batch.audio_BLA.dtype == torch.float32


def test_absent_modalities_are_none(tiny_features: Features) -> None:
    batch = collate(tiny_features, tiny_features.train.only("text+vision"), EVERYONE[:3])
    assert (batch.audio_BLA, batch.audio_mask_BL) == (None, None)
    assert batch.vision_BLV is not None and batch.token_BL is not None


def test_frozen_outputs_stand_in_for_tokens(tiny_features: Features) -> None:
    split, index_B = tiny_features.train, np.array([4, 2])
    hidden_TD = np.random.default_rng(0).normal(size=(len(split.tokens.values), 6)).astype(np.float32)
    hidden = dataclasses.replace(split, hidden=Ragged(hidden_TD, split.tokens.offsets))
    batch = collate(tiny_features, hidden, index_B)
    assert batch.token_BL is None
    assert batch.hidden_BLD is not None and batch.mask_BL is not None
    for row, index in enumerate(index_B):
        start, stop = split.tokens.offsets[index : index + 2]
        np.testing.assert_array_equal(batch.hidden_BLD[row, : stop - start].numpy(), hidden_TD[start:stop])
        assert batch.mask_BL[row].sum() == stop - start

    vector_ND = np.arange(96, dtype=np.float32).reshape(48, 2)
    batch = collate(tiny_features, dataclasses.replace(split, vector_ND=vector_ND), index_B)
    assert (batch.token_BL, batch.mask_BL, batch.hidden_BLD) == (None, None, None)
    assert batch.vector_BD is not None
    assert batch.vector_BD.tolist() == [[8, 9], [4, 5]]


def test_batches_do_not_share_memory_with_the_features(tiny_features: Features) -> None:
    batch = collate(tiny_features, tiny_features.train, EVERYONE[:2])
    assert batch.audio_BLA is not None and tiny_features.train.audio is not None
    before = tiny_features.train.audio.values[0].tolist()
    batch.audio_BLA.zero_()
    assert tiny_features.train.audio.values[0].tolist() == before != [0] * 5


def test_moving_a_batch_changes_the_type_of_its_floats_alone(tiny_features: Features) -> None:
    batch = collate(tiny_features, tiny_features.train.only("text+audio"), EVERYONE[:3])
    moved = batch.to(torch.device("cpu"), torch.float64)
    kinds = {f.name: getattr(getattr(moved, f.name), "dtype", None) for f in dataclasses.fields(Batch)}
    assert kinds == {
        "token_BL": torch.int64,
        "mask_BL": torch.bool,
        "hidden_BLD": None,
        "vector_BD": None,
        "audio_BLA": torch.float64,
        "audio_mask_BL": torch.bool,
        "vision_BLV": None,
        "vision_mask_BL": None,
        "word_BLD": None,
        "full": None,
    }
    for name, before in batch.tensors().items():
        assert torch.equal(before.double(), moved.tensors()[name].double())
    assert batch.to(torch.device("cpu")).audio_BLA.dtype == torch.float32  # type: ignore[union-attr]
