"""Batches from features on the device, against those collated on the host."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from grcf_ray.data.batches import length_sorted, micro_batches
from grcf_ray.data.features import Features, Ragged, SplitFeatures
from grcf_ray.train.feed import Feed, _packed

CPU = torch.device("cpu")


def with_split(features: Features, kind: str) -> Features:
    split, rng = features.train, np.random.default_rng(0)
    if kind == "hidden":
        hidden_TD = rng.normal(size=(len(split.tokens.values), 6)).astype(np.float32)
        split = dataclasses.replace(split, hidden=Ragged(hidden_TD, split.tokens.offsets))
    elif kind == "vector":
        split = dataclasses.replace(split, vector_ND=rng.normal(size=(len(split), 6)).astype(np.float32))
    elif kind == "missing":
        split = dataclasses.replace(split, audio=without_rows(split))
    else:
        split = split.only(kind)
    return dataclasses.replace(features, train=split, pad_token_id=3)


def without_rows(split: SplitFeatures) -> Ragged:
    """Audio of which no utterance has a row."""
    return Ragged(split.audio.values[:0], np.zeros(len(split) + 1, dtype=np.int64))


@pytest.mark.parametrize("budget", [1, 40, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("kind", ["text+audio+vision", "text", "audio+vision", "hidden", "vector", "missing"])
def test_both_ways_give_the_same_batches(
    tiny_features: Features, kind: str, dtype: torch.dtype, budget: int, multiple: int
) -> None:
    features = dataclasses.replace(with_split(tiny_features, kind), length_multiple=multiple)
    order_U = length_sorted(features.train, np.arange(5, 31))
    expected = [batch.to(CPU, dtype) for batch in micro_batches(features, features.train, order_U, budget)]
    extra = {"a": np.arange(3), "b": np.ones(2)}
    for resident in (False, True):
        batches, arrays = Feed(features, CPU, dtype, resident=resident).send(order_U, budget, extra)
        assert len(batches) == len(expected)
        for actual, wanted in zip(batches, expected, strict=True):
            assert (actual.full, len(actual)) == (wanted.full, len(wanted))
            tensors = actual.tensors()
            assert tensors.keys() == wanted.tensors().keys()
            for name, tensor in wanted.tensors().items():
                assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor), name
        assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in arrays.items()} == {
            "a": (torch.int64, [0, 1, 2]),
            "b": (torch.float64, [1.0, 1.0]),
        }


def test_texts_of_one_length_are_known_to_be_full(tiny_features: Features) -> None:
    split = tiny_features.train
    order_U = length_sorted(split, np.arange(48))
    batches = list(micro_batches(tiny_features, split, order_U, 60))
    full = [batch.full for batch in batches]
    assert set(full) == {True, False}
    assert full == [bool(batch.mask_BL.all()) for batch in batches if batch.mask_BL is not None]


def test_tensors_are_packed_and_unpacked() -> None:
    tensors = [torch.arange(6, dtype=torch.float32).reshape(2, 3), torch.empty(0, 4), torch.tensor(7.0), torch.ones(17)]
    parts = _packed(tensors, torch.float64, CPU)
    for part, tensor in zip(parts, tensors, strict=True):
        assert part.dtype == torch.float64 and torch.equal(part, tensor.double())
        # Vectorised kernels want addresses that are multiples of 16 bytes.
        assert part.data_ptr() % 16 == 0
