from __future__ import annotations

from typing import Any

import pytest
import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features

SIZES: dict[str, Any] = {
    "audio_width": 4,
    "vision_width": 3,
    "hidden_width": 6,
    "audio_weight": 2.0,
    "vision_weight": 5.0,
}


def layers(sequence: Any, value: Tensor) -> Tensor:
    """The hidden ReLU layer, and the linear layer behind it."""
    first, second = (layer for layer in sequence if isinstance(layer, nn.Linear))
    return rivals.linear(second, rivals.linear(first, value).clamp_min(0))


def spread(row_RA: Tensor, steps: int, width: int) -> Tensor:
    """Rows brought to steps, by the overlap of each row with each step."""
    brought = torch.zeros(steps, width, dtype=torch.float64)
    for t in range(steps):
        for r, row in enumerate(row_RA):
            overlap = min((t + 1) / steps, (r + 1) / len(row_RA)) - max(t / steps, r / len(row_RA))
            brought[t] += max(0.0, overlap) * steps * row
    return brought


def perceived(model: Any, token_L: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> tuple[Tensor, Tensor]:
    """The vector z of an utterance, and L_0 + lambda L_1, subword by subword."""
    states, losses = rivals.states_of(model, token_L), []
    fused = []
    audio_TA, vision_TV = spread(audio_LA, len(states), 5), spread(vision_LV, len(states), 3)
    for step, text in enumerate(states):
        state, loss = text, torch.zeros((), dtype=torch.float64)
        for part, row, has, beta, share in (
            (model.audio, audio_TA[step], len(audio_LA) > 0, 2.0, 1.0),
            (model.vision, vision_TV[step], len(vision_LV) > 0, 5.0, 0.3),
        ):
            mean, log_variance = layers(part.encoder, state).chunk(2)
            divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).mean()
            seen = 1 / (1 + torch.exp(-layers(part.detector, mean)))
            error = ((seen - 1 / (1 + torch.exp(-row))) ** 2).mean() if has else 0.0
            loss = loss + share * (divergence + beta * error)
            state = mean
        losses.append(loss)
        value = text + rivals.linear(model.expand, state)
        scaled = (value - value.mean()) / (value.var(correction=0) + 1e-5).sqrt()
        fused.append(scaled * model.norm.weight + model.norm.bias)
    return rivals.mean(torch.stack(fused)), torch.stack(losses).mean()


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("ithp", backbone, **SIZES)

    def by_hand(*utterance: Tensor) -> Tensor:
        vector, _ = perceived(model, *utterance)
        return rivals.linear(model.head, torch.tanh(rivals.linear(model.pooler, vector)))[0]

    rivals.check_equations(model, tiny_features, by_hand)


def test_the_loss_of_the_bottlenecks_is_that_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("ithp", backbone, **SIZES)

    def by_hand(utterances: list[tuple[Tensor, Tensor, Tensor]], label_U: Tensor) -> dict[str, Tensor]:
        losses = [perceived(model, *utterance)[1] for utterance in utterances]
        return {"bottleneck": 2 / (2.0 + 5.0) * torch.stack(losses).mean()}

    rivals.check_terms(model, tiny_features, by_hand)


def test_the_rows_reach_the_loss_and_not_the_score(backbone: nn.Module, tiny_features: Features) -> None:
    model, batch = rivals.built("ithp", backbone), rivals.some(tiny_features, 0, 1)
    before = model.encode(batch)
    batch.audio_BLA.add_(1.0)  # type: ignore[union-attr]
    after = model.encode(batch)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert (before[:, -1] != after[:, -1]).all()


def test_noise_is_drawn_in_training_alone(backbone: nn.Module, tiny_features: Features) -> None:
    model, batch = rivals.built("ithp", backbone, hidden_dropout=0.0), rivals.some(tiny_features, 0, 1)
    assert torch.equal(model.encode(batch), model.encode(batch))
    model.audio.train()
    assert (model.encode(batch) != model.encode(batch)).any(1).all()


def test_without_audio_vision_is_the_first_bottleneck(backbone: nn.Module, tiny_features: Features) -> None:
    """Its loss has no factor lambda then."""
    dims = {"audio_dim": None, "vision_dim": 3}
    small, large = (rivals.built("ithp", backbone, dims=dims, second_weight=weight) for weight in (0.1, 1.0))
    batch = rivals.some(tiny_features, 0, 1)
    assert torch.equal(small.encode(batch), large.encode(batch))


def own(width: int, audio: int, vision: int) -> int:
    """The parameters outside the text encoder, with the published widths."""
    first = width * 256 + 256 + 256 * 256 + 256 + 128 * 256 + 256 + 256 * audio + audio
    second = 128 * 256 + 256 + 256 * 128 + 128 + 64 * 256 + 256 + 256 * vision + vision
    return first + second + 64 * width + width + 2 * width + width * width + width + width + 1


@pytest.mark.parametrize("dims", [(5, 3), (7, 2)])
def test_parameters_are_those_of_the_papers_layers(dims: tuple[int, int], backbone: nn.Module) -> None:
    model = rivals.built("ithp", backbone, dims={"audio_dim": dims[0], "vision_dim": dims[1]})
    assert rivals.own_parameters(model) == own(32, *dims)
    # DeBERTa-v3-base has 183,831,552; GRCF's Table 12 counts the sum.
    assert 183_831_552 + own(768, 74, 47) == 184_883_706
