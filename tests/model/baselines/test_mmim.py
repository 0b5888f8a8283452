from __future__ import annotations

import math
from typing import Any

import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features

NAMES = ("text", "vision", "audio")
OPTIONS = {"width": 8, "fusion_width": 6, "memory": 12, "contrast_weight": 0.3, "information_weight": 0.2}


def vectors(model: Any, utterance: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """x of each modality that the utterance has."""
    token_L, audio_LA, vision_LV = utterance
    found = {"text": rivals.mean(rivals.states_of(model, token_L))}
    for name, row_LX in (("vision", vision_LV), ("audio", audio_LA)):
        if len(row_LX):
            network = model.networks[name]
            found[name] = rivals.linear(network.layers[1], rivals.lstm(network.summary.lstm, row_LX)[-1])
    return found


def fused(model: Any, found: dict[str, Tensor]) -> Tensor:
    missing = torch.zeros(8, dtype=torch.float64)
    joined = torch.cat([found.get(name, missing) for name in NAMES])
    return torch.tanh(rivals.linear(model.fusion[3], torch.tanh(rivals.linear(model.fusion[1], joined))))


def log_density(bound: Any, text: Tensor, vector: Tensor) -> Tensor:
    mean, spread = (rivals.mapping(network, text) for network in (bound.mean, bound.log_variance))
    variance = torch.exp(torch.tanh(spread))
    return sum(-((x - m) ** 2) / (2 * v) - torch.log(v) / 2 for x, m, v in zip(vector, mean, variance, strict=True))


def projected(model: Any, name: str, vector: Tensor) -> Tensor:
    return torch.tanh(rivals.linear(model.projections[name], vector))


def cosine(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum() / torch.sqrt((first**2).sum() * (second**2).sum())


def log_determinant(values: list[Tensor]) -> Tensor:
    """Of the covariance of two coordinates."""
    means = [sum(value[i] for value in values) / len(values) for i in range(2)]
    covariance = [
        [sum((v[i] - means[i]) * (v[j] - means[j]) for v in values) / len(values) + 1e-6 * (i == j) for j in range(2)]
        for i in range(2)
    ]
    return torch.log(covariance[0][0] * covariance[1][1] - covariance[0][1] * covariance[1][0])


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model, batch = rivals.built("mmim", backbone, **OPTIONS), rivals.some(tiny_features, *range(6))
    found = [vectors(model, rivals.one_of(batch, index)) for index in range(6)]
    by_hand = torch.stack([rivals.linear(model.head, fused(model, each))[0] for each in found])
    rivals.check_same(model, model([batch], torch.arange(6)), by_hand)


def test_loss_terms_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    """The memory has utterances of both sides, of neither, and one without vision."""
    model = rivals.built("mmim", backbone, **OPTIONS)
    model.memory_KMP.uniform_(-1, 1)
    model.polarity_KM[:] = torch.tensor([0, 1, -1] * 4)[:, None]
    model.polarity_KM[1, 0] = 0

    def by_hand(utterances: list[tuple[Tensor, Tensor, Tensor]], label_U: Tensor) -> dict[str, Tensor]:
        found = [vectors(model, utterance) for utterance in utterances]
        contrast = likelihood = entropy = torch.zeros(())
        for name in NAMES:
            having = [each for each in found if name in each]
            for each in having:
                guess = rivals.linear(model.predictors[name], fused(model, each))
                scores = [torch.exp(cosine(guess, other[name])) for other in having]
                own = torch.exp(cosine(guess, each[name]))
                contrast = contrast - torch.log(own / sum(scores)) / len(having)
        for place, name in enumerate(("vision", "audio")):
            bound, having = model.bounds[name], [each for each in found if name in each]
            likelihood = likelihood + sum(log_density(bound, x["text"], x[name]) for x in having) / len(having)
            for sign in (1, -1):
                values = [
                    m[place] for m, p in zip(model.memory_KMP, model.polarity_KM, strict=True) if p[place] == sign
                ]
                new = [x for x, label in zip(found, label_U, strict=True) if sign * label > 0 and name in x]
                entropy = entropy + log_determinant([*values, *(projected(model, name, x[name]) for x in new)]) / 4
        return {"contrast": 0.3 * contrast, "likelihood": -0.2 * likelihood, "entropy": -0.2 * entropy}

    rivals.check_terms(model, tiny_features, by_hand)


def test_the_second_phase_fits_q_alone(backbone: nn.Module, tiny_features: Features) -> None:
    model, batch = rivals.built("mmim", backbone, **OPTIONS), rivals.some(tiny_features, *range(6))
    loss = model.after_step(model.encode(batch).detach(), torch.ones(6).double(), torch.arange(6))
    found = [vectors(model, rivals.one_of(batch, index)) for index in range(6)]
    expected = torch.zeros(())
    for name in ("vision", "audio"):
        values = [log_density(model.bounds[name], x["text"].detach(), x[name].detach()) for x in found if name in x]
        expected = expected - sum(values) / len(values)
    torch.testing.assert_close(loss, expected)
    trained = {id(parameter) for parameter in model.separate_parameters()}
    loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    separate = {name for name, parameter in model.named_parameters() if id(parameter) in trained}
    assert separate == {name for name, _ in model.named_parameters() if name.startswith(("bounds.", "projections."))}
    assert with_gradient == {name for name in separate if "projection" not in name}


def test_the_memory_has_the_latest_utterances(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("mmim", backbone, **OPTIONS)
    labels = torch.tensor([-2.0, 0.0, 1.0, 3.0, -1.0, 2.0, -3.0, 1.0]).double()
    seen: list[tuple[dict[str, Tensor], float]] = []
    for first in (0, 8):
        batch = rivals.some(tiny_features, *range(first, first + 8))
        model.after_step(model.encode(batch).detach(), labels, torch.arange(8))
        for place in range(8):
            seen.append((vectors(model, rivals.one_of(batch, place)), math.copysign(1, labels[place])))
            if labels[place] == 0:
                seen[-1] = (seen[-1][0], 0.0)
        kept = seen[-12:]
        memory, polarity = model.memory_KMP[-len(kept) :], model.polarity_KM[-len(kept) :]
        for place, name in enumerate(("vision", "audio")):
            for number, (found, sign) in enumerate(kept):
                assert polarity[number, place] == (sign if name in found else 0)
                if name in found:
                    torch.testing.assert_close(memory[number, place], projected(model, name, found[name]))
        assert not model.polarity_KM[: -len(kept)].any()
    assert any("vision" not in found for found, _ in seen)


def test_classes_are_the_sides_in_classification(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("mmim", backbone, task="classification", **OPTIONS)
    vector_UW = model.encode(rivals.some(tiny_features, 0, 1)).detach()
    model.after_step(vector_UW, torch.tensor([0.0, 1.0]).double(), torch.arange(2))
    assert model.polarity_KM[-2:].tolist() == [[-1.0, -1.0], [1.0, 1.0]]


def test_text_alone_has_no_second_phase(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("mmim", backbone, dims={"audio_dim": None, "vision_dim": None}, **OPTIONS)
    vector_UW, label_U = model.encode(rivals.some(tiny_features, 0, 1)).detach(), torch.zeros(2).double()
    assert model.after_step(vector_UW, label_U, torch.arange(2)) is None
    terms = model.auxiliary(vector_UW, label_U, torch.arange(2))
    assert terms["likelihood"] == terms["entropy"] == 0 < terms["contrast"]


def test_parameters_are_those_of_the_layers(backbone: nn.Module) -> None:
    model = rivals.built("mmim", backbone)
    sequences = sum(4 * 16 * (dim + 16 + 2) + 16 * 17 for dim in (5, 3))
    bounds = 2 * (2 * (33 * 16 + 17 * 16) + 17 * 4)
    predictors = 129 * (32 + 16 + 16)
    own = rivals.own_parameters(model)
    assert own == sequences + bounds + predictors + (64 + 1) * 128 + 129 * 128 + 129
