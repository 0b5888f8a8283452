from __future__ import annotations

from typing import Any

import pytest
import rivals
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from grcf_ray.data.features import Features
from grcf_ray.model.baselines.tmson import ordinal_loss

SIZES: dict[str, Any] = {
    "vision_width": 3,
    "audio_width": 2,
    "text_width": 5,
    "hidden_width": 6,
    "latent_width": 4,
    "fusion_width": 5,
}


def normalised(sequence: Any, value: Tensor) -> Tensor:
    """tanh(LayerNorm(W x + b))."""
    linear, norm, _ = sequence
    value = rivals.linear(linear, value)
    scaled = (value - value.mean()) / (value.var(correction=0) + 1e-5).sqrt()
    return torch.tanh(scaled * norm.weight + norm.bias)


def sigmoid(value: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-value))


def gaussians(model: Any, token_L: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """x, f, mean and variance of each modality that the utterance has."""
    inputs = {"text": rivals.mean(rivals.states_of(model, token_L))}
    for name, row_LX in (("vision", vision_LV), ("audio", audio_LA)):
        if len(row_LX):
            inputs[name] = rivals.lstm(model.networks[name].lstm, row_LX)[-1]
    found: dict[str, tuple[Tensor, ...]] = {}
    for name, x in inputs.items():
        part = model.uncertainties[name]
        feature = torch.tanh(rivals.linear(part.projection, x))
        hidden = normalised(part.encoder, feature)
        mean, variance = sigmoid(rivals.linear(part.gaussian, hidden)).chunk(2)
        found[name] = x, feature, mean, variance
    return found


def fused(found: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    """The product of two Gaussians at a time."""
    (*_, mean, variance), *others = found.values()
    for *_, other_mean, other_variance in others:
        mean = (mean * other_variance + other_mean * variance) / (variance + other_variance)
        variance = variance * other_variance / (variance + other_variance)
    return mean, variance


def triplets(mean_UK: Tensor, variance_UK: Tensor, label_U: Tensor, shift: int) -> Tensor:
    """The mean of the violated triplets, one utterance at a time."""

    def gap(i: int, j: int) -> float:
        return round(abs(float(label_U[i]) - float(label_U[j])), 4)

    def distance(i: int, j: int) -> Tensor:
        square = (mean_UK[i] - mean_UK[j]) ** 2 + (variance_UK[i].sqrt() - variance_UK[j].sqrt()) ** 2
        return square.sum().sqrt()

    losses = []
    for a in range(len(label_U)):
        r = (a + shift) % len(label_U)
        others = [k for k in range(len(label_U)) if k != a and gap(a, k) != gap(a, r)]
        if not others:
            continue
        h = min(others, key=lambda k: abs(gap(a, k) - gap(a, r)))
        nearer, farther = (h, r) if gap(a, h) < gap(a, r) else (r, h)
        hinge = 1 + distance(a, nearer) - distance(a, farther)
        if hinge > 0:
            losses.append(hinge)
    return torch.stack(losses).mean() if losses else torch.zeros((), dtype=torch.float64)


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("tmson", backbone, **SIZES)

    def by_hand(*utterance: Tensor) -> Tensor:
        found = gaussians(model, *utterance)
        widths = model.vector_widths
        x = [found[name][0] if name in found else torch.zeros(width).double() for name, width in widths.items()]
        return rivals.linear(model.head, rivals.dense(model.fusion, torch.cat([*x, fused(found)[0]])))[0]

    rivals.check_equations(model, tiny_features, by_hand)


def test_own_terms_are_those_of_the_equations(
    backbone: nn.Module, tiny_features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rivals.built("tmson", backbone, **SIZES)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([2]))

    def by_hand(utterances: list[tuple[Tensor, Tensor, Tensor]], label_U: Tensor) -> dict[str, Tensor]:
        unimodal: Any = 0.0
        divergence: Any = 0.0
        reconstruction: Any = 0.0
        products = []
        for utterance, label in zip(utterances, label_U, strict=True):
            found = gaussians(model, *utterance)
            products.append(fused(found))
            for name, (x, feature, mean, variance) in found.items():
                part = model.uncertainties[name]
                first, last = part.prediction
                score = rivals.linear(last, rivals.dense(first, x))[0]
                decoded = normalised(part.decoder[1], normalised(part.decoder[0], mean))
                own = kl_divergence(Normal(mean, variance.sqrt()), Normal(0.0, 1.0)).sum()
                unimodal = unimodal + {"text": 0.8, "vision": 0.1, "audio": 0.1}[name] * (score - label).abs() / 6
                divergence = divergence + 0.01 * own / (3 * 6)
                reconstruction = reconstruction + 0.1 * ((decoded - feature) ** 2).mean() / (3 * 6)
        means, variances = (torch.stack(values) for values in zip(*products, strict=True))
        return {
            "unimodal": unimodal,
            "ordinal": 0.5 * triplets(means, variances, label_U, 2),
            "divergence": divergence,
            "reconstruction": reconstruction,
        }

    rivals.check_terms(model, tiny_features, by_hand)


@pytest.mark.parametrize("shift", [1, 4, 11])
def test_triplets_are_those_of_a_loop(shift: int) -> None:
    """Among tenths, many differences are equal, though not as floating-point numbers."""
    generator = torch.Generator().manual_seed(shift)
    label_U = torch.randint(-4, 5, (12,), generator=generator).double() / 10
    mean_UK = torch.rand(12, 3, generator=generator).double().requires_grad_()
    variance_UK = torch.rand(12, 3, generator=generator).double().requires_grad_()
    ours = ordinal_loss(mean_UK, variance_UK, label_U, torch.arange(12).roll(-shift))
    theirs = triplets(mean_UK, variance_UK, label_U, shift)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(value, (mean_UK, variance_UK), retain_graph=True) for value in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_ordered_gaussians_far_enough_apart_have_no_loss() -> None:
    label_U = torch.tensor([-3.0, -1.0, 0.0, 2.0]).double()
    mean_UK, variance_UK = 2 * label_U.unsqueeze(1), torch.ones(4, 1).double()
    other_U = torch.arange(4).roll(-1)
    assert ordinal_loss(mean_UK, variance_UK, label_U, other_U) == 0
    assert ordinal_loss(-mean_UK / 20, variance_UK, label_U, other_U) > 0


@pytest.mark.parametrize("labels", [[1.0], [1.0, 2.0], [1.0, 1.0, 1.0]])
def test_a_group_without_triplets_has_no_loss_and_no_gradient(labels: list[float]) -> None:
    mean_UK = torch.zeros(len(labels), 2).double().requires_grad_()
    other_U = torch.arange(len(labels)).roll(-1)
    loss = ordinal_loss(mean_UK, torch.ones_like(mean_UK), torch.tensor(labels).double(), other_U)
    assert loss == 0
    loss.backward()  # type: ignore[no-untyped-call]
    assert mean_UK.grad is not None
    assert (mean_UK.grad == 0).all()


def test_terms_of_a_single_utterance_are_finite(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("tmson", backbone).train()
    label = torch.tensor([1.0]).double()
    terms = model.auxiliary(model.encode(rivals.some(tiny_features, 2)), label, torch.tensor([2]))
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert terms["ordinal"] == 0


def test_each_slot_of_an_utterance_has_its_own_noise(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("tmson", backbone).train()
    first, second = model([rivals.some(tiny_features, 0)], torch.tensor([0, 0]))
    assert first != second


def test_parameters_are_those_of_the_papers_layers(backbone: nn.Module) -> None:
    lstm = sum(4 * width * (dim + width + 2) for dim, width in ((5, 16), (3, 32)))
    around = (128 * 128 + 128 + 256) + 2 * (128 * 64 + 64) + (64 * 128 + 128 + 256) + (128 * 128 + 128 + 256)
    parts = sum(width * 128 + 128 + around + (width * width + width) + width + 1 for width in (32, 16, 32))
    fusion = (32 + 16 + 32 + 64) * 128 + 128 + (128 * 128 + 128) + 129
    assert rivals.own_parameters(rivals.built("tmson", backbone)) == lstm + parts + fusion
