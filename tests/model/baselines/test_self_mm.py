from __future__ import annotations

import math
from typing import Any

import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features

NAMES = ("text", "vision", "audio")
WIDTHS = {"fusion_width": 6, "text_width": 5, "vision_width": 4, "audio_width": 3}


def built(backbone: nn.Module, features: Features) -> Any:
    return rivals.built(
        "self-mm", backbone, dims={"audio_dim": 5, "vision_dim": 3, "n_train": len(features.train)}, **WIDTHS
    )


def vectors(model: Any, utterance: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """F of each modality; zeros for one that the utterance lacks."""
    token_L, audio_LA, vision_LV = utterance
    found = {"text": rivals.mean(rivals.states_of(model, token_L))}
    for name, row_LX in (("vision", vision_LV), ("audio", audio_LA)):
        network = model.networks[name]
        found[name] = torch.zeros(WIDTHS[f"{name}_width"], dtype=torch.float64)
        if len(row_LX):
            found[name] = rivals.linear(network.layers, rivals.lstm(network.summary.lstm, row_LX)[-1])
    return found


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model, batch = built(backbone, tiny_features), rivals.some(tiny_features, *range(6))

    def score(index: int) -> Tensor:
        joined = torch.cat(list(vectors(model, rivals.one_of(batch, index)).values()))
        return rivals.linear(model.head, rivals.dense(model.fusion, joined))[0]

    by_hand = torch.stack([score(index) for index in range(6)])
    rivals.check_same(model, model([batch], torch.arange(6)), by_hand)


def test_the_loss_is_that_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model = built(backbone, tiny_features)
    model.shift_NI[:, 1:] = torch.randn(len(tiny_features.train), 3)

    def by_hand(utterances: list[tuple[Tensor, Tensor, Tensor]], label_U: Tensor) -> dict[str, Tensor]:
        total = torch.zeros(())
        for index, (utterance, label) in enumerate(zip(utterances, label_U, strict=True)):
            found, present = vectors(model, utterance), (True, len(utterance[2]) > 0, len(utterance[1]) > 0)
            for number, name in enumerate(NAMES):
                star = rivals.dense(model.unimodal[name], found[name])
                score = rivals.linear(model.unimodal_heads[name], star)[0]
                own = label + model.shift_NI[index, 1 + number]
                total = total + present[number] * torch.tanh((own - label).abs()) * (score - own).abs() / 6
        return {"unimodal": total}

    rivals.check_terms(model, tiny_features, by_hand)


def test_labels_move_as_the_equations_say(backbone: nn.Module, tiny_features: Features) -> None:
    """In steps of eight utterances, through three epochs and a half; a step may have an utterance of another again."""
    model, count = built(backbone, tiny_features), len(tiny_features.train)
    generator = torch.Generator().manual_seed(3)
    annotated = torch.from_numpy(tiny_features.train.label_N.copy())
    stars: dict[int, list[Tensor]] = {}
    labels: dict[int, list[Tensor]] = {}
    lacking: dict[int, list[int]] = {}
    passed, clamped = 0, 0
    while passed < 3.5 * count:
        index = torch.randperm(count, generator=generator)[:8].sort().values
        batch = rivals.some(tiny_features, *index.tolist())
        epoch = 1 + passed // count
        new_stars, new_labels = {}, {}
        for place, utterance in enumerate(index.tolist()):
            one = rivals.one_of(batch, place)
            found = vectors(model, one)
            star = [rivals.dense(model.fusion, torch.cat(list(found.values())))]
            star += [rivals.dense(model.unimodal[name], found[name]) for name in NAMES]
            lacking[utterance] = [number for number, rows in ((2, one[2]), (3, one[1])) if not len(rows)]
            y = annotated[utterance]
            own = labels.get(utterance, [y] * 4)
            if epoch > 1:
                ratios = []
                for i in range(4):
                    distance = {}
                    for sign in (1, -1):
                        side = [stars[j][i] for j in stars if i not in lacking[j] and sign * labels[j][i] > 0]
                        centre = sum(side) / len(side)
                        distance[sign] = ((star[i] - centre) ** 2).sum() / math.sqrt(len(centre))
                    ratios.append((distance[-1] - distance[1]) / (distance[1] + 1e-8))
                for s in (1, 2, 3):
                    new = y * ratios[s] / (2 * (ratios[0] + 1e-8)) + (y + ratios[s] - ratios[0]) / 2
                    clamped += int(abs(new) > 3)
                    new = new.clamp(-3, 3)
                    if s not in lacking[utterance]:
                        moved = (epoch - 1) / (epoch + 1) * own[s] + 2 / (epoch + 1) * new
                        own = [*own[:s], moved, *own[s + 1 :]]
            new_stars[utterance], new_labels[utterance] = star, own
        stars |= new_stars
        labels |= new_labels
        passed += 8
        assert model.after_step(model.encode(batch).detach(), annotated[index], index) is None
        for utterance, own in labels.items():
            torch.testing.assert_close(annotated[utterance] + model.shift_NI[utterance], torch.stack(own))
        if passed <= count:
            assert not model.shift_NI.any()
    assert 0 < clamped < passed
    assert model.shift_NI[:, 1:].any(0).all() and not model.shift_NI[:, 0].any()
    assert any(lacking.values())


def test_parameters_are_those_of_the_layers(backbone: nn.Module) -> None:
    model = rivals.built("self-mm", backbone)
    sequences = sum(4 * width * (dim + width + 2) + width * (width + 1) for dim, width in ((5, 16), (3, 32)))
    unimodal = sum((dim + 1) * width + width + 1 for dim, width in ((32, 32), (32, 32), (16, 16)))
    own = rivals.own_parameters(model)
    assert own == sequences + unimodal + (32 + 32 + 16 + 1) * 128 + 129
