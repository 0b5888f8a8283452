from __future__ import annotations

import math
from typing import Any

import pytest
import rivals
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from grcf_ray.data.features import Features
from grcf_ray.model.subnetworks import gaussian_divergence, gaussian_sample

SIZES: dict[str, Any] = {"heads": 2, "head_width": 3, "layers": 2, "hidden_width": 7}


def convolved(convolution: nn.Conv1d, row_LA: Tensor) -> Tensor:
    """Three rows at a time, with zeros around the sequence."""
    around = torch.cat([row_LA.new_zeros(1, row_LA.shape[1]), row_LA, row_LA.new_zeros(1, row_LA.shape[1])])
    return torch.stack([(convolution.weight * around[t : t + 3].T).sum((1, 2)) for t in range(len(row_LA))])


def normalised(norm: nn.LayerNorm, row_LD: Tensor) -> Tensor:
    deviation = (row_LD.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    return (row_LD - row_LD.mean(1, keepdim=True)) / deviation * norm.weight + norm.bias


def attended(attention: Any, row_LD: Tensor) -> Tensor:
    """Two heads of width 3."""
    query, key, value = (row_LD @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        weight = torch.softmax(query[:, head] @ key[:, head].T / math.sqrt(3), dim=1)
        heads.append(weight @ value[:, head])
    return torch.stack([rivals.linear(attention.out_proj, row) for row in torch.cat(heads, dim=1)])


def transformed(network: Any, row_LA: Tensor) -> Tensor:
    """The last state of the Transformer; zeros without rows."""
    if not len(row_LA):
        return torch.zeros(6, dtype=torch.float64)
    row_LD = convolved(network.convolved.convolution, row_LA) * math.sqrt(6)
    position = [
        [(math.cos if d % 2 else math.sin)(t / 10_000 ** (d // 2 * 2 / 6)) for d in range(6)]
        for t in range(len(row_LA))
    ]
    row_LD = row_LD + torch.tensor(position, dtype=torch.float64)
    for layer in network.transformer.layers:
        row_LD = row_LD + attended(layer.attention, normalised(layer.norm, row_LD))
        row_LD = row_LD + torch.stack([rivals.mapping(layer.network, r) for r in normalised(layer.last_norm, row_LD)])
    return normalised(network.transformer.norm, row_LD)[-1]


def compressed(bottleneck: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, which is z without noise, and the mean divergence."""
    mean, raw = rivals.mapping(bottleneck.layers, x).chunk(2)
    deviation = torch.log(1 + torch.exp(raw - 5))
    return mean, kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).mean()


def latents(model: Any, token_L: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """z and divergence of each modality, and of the fusion."""
    inputs = {"text": convolved(model.networks["text"].convolved.convolution, rivals.states_of(model, token_L))[-1]}
    inputs |= {
        "vision": transformed(model.networks["vision"], vision_LV),
        "audio": transformed(model.networks["audio"], audio_LA),
    }
    found = {name: compressed(model.bottlenecks[name], x) for name, x in inputs.items()}
    fused = rivals.linear(model.fusion, torch.cat([z for z, _ in found.values()])).clamp_min(0)
    return found | {"all": compressed(model.bottleneck, fused)}


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("c-mib", backbone, **SIZES)

    def by_hand(*utterance: Tensor) -> Tensor:
        return rivals.linear(model.head, latents(model, *utterance)["all"][0])[0]

    rivals.check_equations(model, tiny_features, by_hand)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_own_terms_are_those_of_the_equations(task: str, backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("c-mib", backbone, task=task, divergence_weight=0.5, **SIZES)

    def by_hand(utterances: list[tuple[Tensor, Tensor, Tensor]], label_U: Tensor) -> dict[str, Tensor]:
        unimodal: Any = 0.0
        divergence: Any = 0.0
        for utterance, label in zip(utterances, label_U, strict=True):
            for name, (z, own) in latents(model, *utterance).items():
                divergence = divergence + 0.5 * own / len(label_U)
                if name == "all":
                    continue
                score = rivals.linear(model.heads[name], z)[0]
                if task == "regression":
                    error = (score - label).abs()
                else:
                    chance = 1 / (1 + torch.exp(-score))
                    error = -label * chance.log() - (1 - label) * (1 - chance).log()
                unimodal = unimodal + error / len(label_U)
        return {"unimodal": unimodal, "divergence": divergence}

    rivals.check_terms(model, tiny_features, by_hand)


def test_a_gaussian_is_sampled_with_noise_alone() -> None:
    torch.manual_seed(0)
    mean, deviation = torch.full((20_000,), 2.0), torch.full((20_000,), 0.5)
    assert gaussian_sample(mean, deviation, False) is mean
    sample = gaussian_sample(mean, deviation, True)
    assert abs(sample.mean() - 2.0) < 0.02
    assert abs(sample.std() - 0.5) < 0.02


def test_the_divergence_is_that_of_torch() -> None:
    mean, deviation = torch.tensor([0.0, -1.5, 3.0]).double(), torch.tensor([1.0, 0.2, 4.0]).double()
    expected = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_divergence(mean, deviation), expected)
    assert gaussian_divergence(mean, deviation)[0] == 0


def test_each_slot_of_an_utterance_has_its_own_noise(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("c-mib", backbone, dropout=0.0).train()
    first, second = model([rivals.some(tiny_features, 0)], torch.tensor([0, 0]))
    assert first != second


def own(text: int, audio: int, vision: int) -> int:
    """The parameters outside the text encoder, with the published widths."""
    layer = 4 * (50 * 50 + 50) + (50 * 200 + 200) + (200 * 50 + 50) + 4 * 50
    rows = 3 * 50 * (text + audio + vision) + 2 * (3 * layer + 2 * 50) + 150 * 50 + 50 + 51
    return rows + bottlenecks()


def bottlenecks() -> int:
    return 4 * (50 * 1024 + 1024 + 2 * (1024 * 50 + 50)) + 3 * 51


def test_parameters_are_those_that_the_paper_counts(backbone: nn.Module) -> None:
    assert rivals.own_parameters(rivals.built("c-mib", backbone)) == own(32, 5, 3)
    # Table XI counts the bottlenecks and the whole, with BERT-base without its pooler.
    assert bottlenecks() == 109_835_748 - 109_216_699
    assert 108_891_648 + own(768, 74, 47) == 109_835_748
