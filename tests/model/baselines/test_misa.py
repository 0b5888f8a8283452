from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features
from grcf_ray.errors import ConfigError

NAMES = ("text", "vision", "audio")
WEIGHTS = {"similarity_weight": 0.7, "difference_weight": 0.2, "reconstruction_weight": 0.4}


def norm(layer: Any, value: Tensor) -> Tensor:
    mean = sum(value) / len(value)
    variance = sum((value - mean) ** 2) / len(value)
    return (value - mean) / torch.sqrt(variance + layer.eps) * layer.weight + layer.bias


def stacked(network: Any, row_LA: Tensor) -> Tensor:
    """The end states of both directions of both layers."""
    ends = []
    for lstms in (network.first, network.second):
        forth, back = rivals.lstm(lstms[0], row_LA), rivals.lstm(lstms[1], row_LA.flip(0))
        ends += [forth[-1], back[-1]]
        row_LA = torch.stack(
            [norm(network.norm, torch.cat(states)) for states in zip(forth, back.flip(0), strict=True)]
        )
    return torch.cat(ends)


def spaces(model: Any, token_L: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """u, c and p of each modality that the utterance has."""
    features = {"text": rivals.mean(rivals.states_of(model, token_L))}
    for name, row_LX in (("vision", vision_LV), ("audio", audio_LA)):
        if len(row_LX):
            features[name] = stacked(model.networks[name].summary, row_LX)
    found = {}
    for name, feature in features.items():
        linear, _, layer_norm = model.networks[name].layers
        u = norm(layer_norm, rivals.linear(linear, feature).clamp_min(0))
        shared, private = (torch.sigmoid(rivals.linear(w, u)) for w in (model.shared, model.private[name]))
        found[name] = u, shared, private
    return found


def transformed(layer: Any, token_TD: list[Tensor]) -> list[Tensor]:
    """One Transformer layer, with the norms after the sums."""
    attention = layer.self_attn
    width, heads = attention.embed_dim, attention.num_heads
    parts = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    queries, keys, values = ([w @ token + b for token in token_TD] for w, b in parts)
    results = []
    for token, query in zip(token_TD, queries, strict=True):
        read = []
        for head in range(heads):
            at = slice(head * width // heads, (head + 1) * width // heads)
            weights = [torch.exp(query[at] @ key[at] / math.sqrt(width / heads)) for key in keys]
            read.append(sum(w * value[at] for w, value in zip(weights, values, strict=True)) / sum(weights))
        state = norm(layer.norm1, token + rivals.linear(attention.out_proj, torch.cat(read)))
        between = (layer.linear1.weight @ state + layer.linear1.bias).clamp_min(0)
        results.append(norm(layer.norm2, state + layer.linear2.weight @ between + layer.linear2.bias))
    return results


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("misa", backbone, width=4)

    def score(utterance: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        found = spaces(model, *utterance)
        places = [(name, which) for which in (2, 1) for name in NAMES if name in found]
        states = dict(zip(places, transformed(model.transformer, [found[n][w] for n, w in places]), strict=True))
        missing = torch.zeros(4, dtype=torch.float64)
        h = torch.cat([states.get((name, which), missing) for which in (2, 1) for name in NAMES])
        return rivals.linear(model.head, rivals.linear(model.fusion[0], h).clamp_min(0))[0]

    batch = rivals.some(tiny_features, *range(6))
    by_hand = torch.stack([score(rivals.one_of(batch, index)) for index in range(6)])
    rivals.check_same(model, model([batch], torch.arange(6)), by_hand)


def test_loss_terms_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("misa", backbone, width=4, **WEIGHTS)

    def moments(values: list[Tensor]) -> list[Tensor]:
        mean = sum(values) / len(values)
        return [mean, *(sum((value - mean) ** k for value in values) / len(values) for k in range(2, 6))]

    def unit(values: dict[int, Tensor]) -> dict[int, Tensor]:
        mean = sum(values.values()) / len(values)
        return {index: (v - mean) / torch.sqrt(((v - mean) ** 2).sum()) for index, v in values.items()}

    def overlap(first: dict[int, Tensor], second: dict[int, Tensor]) -> Tensor:
        both = first.keys() & second.keys()
        products = [sum(first[n][i] * second[n][j] for n in both) ** 2 for i in range(4) for j in range(4)]
        return sum(products) / 16

    def by_hand(utterances: list[tuple[Tensor, Tensor, Tensor]], label_U: Tensor) -> dict[str, Tensor]:
        found = [spaces(model, *utterance) for utterance in utterances]
        u, shared, private = (
            {name: {n: each[name][k] for n, each in enumerate(found) if name in each} for name in NAMES}
            for k in range(3)
        )
        pairs = list(itertools.combinations(NAMES, 2))
        similarity = difference = reconstruction = torch.zeros(())
        for first, second in pairs:
            apart = zip(*(moments(list(shared[name].values())) for name in (first, second)), strict=True)
            similarity = similarity + sum(torch.sqrt(((x - y) ** 2).sum()) for x, y in apart) / 3
            difference = difference + overlap(unit(private[first]), unit(private[second]))
        for name in NAMES:
            difference = difference + overlap(unit(shared[name]), unit(private[name]))
            errors = [
                ((vector - rivals.linear(model.decoders[name], shared[name][n] + private[name][n])) ** 2).sum() / 4
                for n, vector in u[name].items()
            ]
            reconstruction = reconstruction + sum(errors) / len(errors) / 3
        return {
            "similarity": 0.7 * similarity,
            "difference": 0.2 * difference,
            "reconstruction": 0.4 * reconstruction,
        }

    rivals.check_terms(model, tiny_features, by_hand)


def test_spaces_that_no_modality_shares_cost_nothing_more(backbone: nn.Module, tiny_features: Features) -> None:
    """One modality has nothing to be similar to; one whose rows no utterance of the group has is left out."""
    batch, label_U = rivals.some(tiny_features, 0, 1), torch.zeros(2).double()
    alone = rivals.built("misa", backbone, width=4, dims={"audio_dim": None, "vision_dim": None})
    terms = alone.auxiliary(alone.encode(batch), label_U, torch.arange(2))
    assert terms["similarity"] == 0 < terms["difference"]
    model = rivals.built("misa", backbone, width=4)
    vector_UW = model.encode(batch).detach()
    vector_UW[:, 8:12] = vector_UW[:, 14] = 0
    without = rivals.built("misa", backbone, width=4, dims={"audio_dim": None, "vision_dim": 3})
    without.load_state_dict(
        {key: value for key, value in model.state_dict().items() if key in without.state_dict()}
        | {key: value for key, value in without.state_dict().items() if key.startswith(("fusion", "head"))}
    )
    ours = model.auxiliary(vector_UW, label_U, torch.arange(2))
    theirs = without.auxiliary(without.encode(batch), label_U, torch.arange(2))
    torch.testing.assert_close(3 * ours["similarity"], theirs["similarity"])
    torch.testing.assert_close(ours["difference"], theirs["difference"])
    torch.testing.assert_close(3 * ours["reconstruction"], 2 * theirs["reconstruction"])


def test_parameters_are_those_of_the_layers(backbone: nn.Module) -> None:
    model, width = rivals.built("misa", backbone), 128
    sequences = sum(8 * dim * (2 * dim + 2) + 4 * dim + 8 * dim * (3 * dim + 2) for dim in (5, 3))
    projections = sum((dim + 1) * width + 2 * width for dim in (32, 20, 12))
    layers = 7 * (width + 1) * width
    transformer = 4 * (width + 1) * width + 2 * 2048 * width + 2048 + width + 4 * width
    fusion = (6 * width + 1) * 3 * width + 3 * width + 1
    own = rivals.own_parameters(model)
    assert own == sequences + projections + layers + transformer + fusion


def test_an_odd_width_is_refused(backbone: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"misa\.width = 5"):
        rivals.built("misa", backbone, width=5)
