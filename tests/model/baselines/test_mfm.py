from __future__ import annotations

from typing import Any

import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features
from grcf_ray.model.baselines.mfm import _distance

NAMES = ("text", "vision", "audio")
OPTIONS = {
    "text_width": 4,
    "vision_width": 3,
    "audio_width": 2,
    "memory_width": 5,
    "hidden_width": 4,
    "latent_width": 3,
    "factor_width": 8,
    "text_weight": 0.3,
    "vision_weight": 0.4,
    "audio_weight": 0.2,
    "prior_weight": 2.0,
}


def rows_of(model: Any, utterance: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    return {"text": rivals.states_of(model, utterance[0]), "vision": utterance[2], "audio": utterance[1]}


def label_latent(model: Any, rows: dict[str, Tensor]) -> Tensor:
    """Z_y by the equations of MFN, step by step."""
    steps, states = len(rows["text"]), {}
    for name in NAMES:
        size = OPTIONS[f"{name}_width"]
        states[name] = torch.zeros(steps, size).double(), torch.zeros(steps, size).double()
        if len(rows[name]):
            states[name] = rivals.lstm_cell(model.network.lstms.cells[name], rivals.shares(rows[name], steps))
    memory = torch.zeros(5, dtype=torch.float64)
    for t in range(steps):
        pairs = [(c[t - 1] if t else 0 * c[0], c[t]) for _, c in states.values()]
        both = torch.cat([part for pair in pairs for part in pair])
        scores = torch.exp(rivals.mapping(model.network.attention, both))
        memory = rivals.gated_memory(model.network.memory, both * scores / scores.sum(), memory)
    return rivals.linear(model.label_encoder, torch.cat([*(h[-1] for h, _ in states.values()), memory]))


def latent(model: Any, name: str, row_LX: Tensor) -> Tensor:
    network = model.encoders[name]
    return rivals.linear(network.layers, rivals.lstm(network.summary.lstm, row_LX)[-1])


def factor(network: Any, z: Tensor) -> Tensor:
    return rivals.dense(network, z)


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model, batch = rivals.built("mfm", backbone, **OPTIONS), rivals.some(tiny_features, *range(6))

    def score(index: int) -> Tensor:
        z = label_latent(model, rows_of(model, rivals.one_of(batch, index)))
        return rivals.linear(model.head, rivals.dense(model.inference, factor(model.label_factor, z)))[0]

    by_hand = torch.stack([score(index) for index in range(6)])
    rivals.check_same(model, model([batch], torch.arange(6)), by_hand)


def test_loss_terms_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    """The decoder reads the factors, then its own output, with the weights of the authors' decoder."""
    model = rivals.built("mfm", backbone, **OPTIONS)

    def generated(name: str, factors: Tensor, length: int) -> Tensor:
        lstm = model.decoders[name]
        hidden = cell = torch.zeros(16, dtype=torch.float64)
        rows = []
        for t in range(length):
            own = lstm.weight_hh_l0 - lstm.weight_ih_l0
            gates = lstm.weight_ih_l0 @ (hidden if t else factors) + own @ hidden + lstm.bias_ih_l0 + lstm.bias_hh_l0
            enter, forget, new, leave = gates.chunk(4)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
            hidden = torch.sigmoid(leave) * torch.tanh(cell)
            rows.append(rivals.linear(model.outputs[name], hidden))
        return torch.stack(rows)

    def distance(values: list[Tensor]) -> Tensor:
        """Of width 3: k = exp(-|u - v|^2 / 9)."""
        count = len(values)
        among = sum(torch.exp(-((u - v) ** 2).sum() / 9) for u in values for v in values) / count**2
        to_prior = sum((9 / 11) ** 1.5 * torch.exp(-(u**2).sum() / 11) for u in values) / count
        return among - 2 * to_prior + (9 / 13) ** 1.5

    def by_hand(utterances: list[tuple[Tensor, Tensor, Tensor]], label_U: Tensor) -> dict[str, Tensor]:
        found = [rows_of(model, utterance) for utterance in utterances]
        shared = [label_latent(model, rows) for rows in found]
        generation, prior = torch.zeros(()), distance(shared)
        for name in NAMES:
            having = [(rows[name], z) for rows, z in zip(found, shared, strict=True) if len(rows[name])]
            own = [latent(model, name, row_LX) for row_LX, _ in having]
            prior = prior + distance(own)
            for (row_LX, z), z_own in zip(having, own, strict=True):
                factors = torch.cat([factor(model.label_factor, z), factor(model.factors[name], z_own)])
                error = ((row_LX.detach() - generated(name, factors, len(row_LX))) ** 2).sum() / row_LX.numel()
                generation = generation + OPTIONS[f"{name}_weight"] * error / len(having)
        return {"generation": generation, "prior": 2.0 * prior}

    rivals.check_terms(model, tiny_features, by_hand)


def test_the_distance_to_the_prior_is_the_mean_over_its_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    z, sample, other = (torch.randn(n, 2, generator=generator).double() for n in (5, 200_000, 200_000))
    present = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]).double()

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return torch.exp(-((u - v) ** 2).sum(-1) / 4)

    real = z[present > 0] + 1
    among = kernel(real[:, None], real).mean()
    to_prior = torch.stack([kernel(value, sample).mean() for value in real]).mean()
    estimate = among - 2 * to_prior + kernel(sample, other).mean()
    torch.testing.assert_close(_distance(z + 1, present), estimate, rtol=0, atol=3e-3)
    assert _distance(z, 0 * present) == 0


def test_a_distribution_like_the_prior_is_near_to_it() -> None:
    latents = torch.randn(400, 4, generator=torch.Generator().manual_seed(2)).double()
    near, far = (_distance(value, torch.ones(400).double()) for value in (latents, latents / 3 + 1))
    assert 0 < near < 0.05 * far


def test_the_text_states_are_a_target_without_gradient(backbone: nn.Module, tiny_features: Features) -> None:
    model, batch = rivals.built("mfm", backbone, **OPTIONS), rivals.some(tiny_features, 0, 1)
    state_BLD = model.text_encoder.states(batch).detach().requires_grad_()

    def gradient() -> Tensor:
        error = model._gather(state_BLD, batch)[:, 12].sum()
        return torch.autograd.grad(error, state_BLD)[0]

    assert gradient().any()
    with torch.no_grad():
        for network in (model.encoders["text"].layers, model.label_encoder):
            network.weight.zero_()
    assert not gradient().any()


def test_parameters_are_those_of_the_layers(backbone: nn.Module) -> None:
    model = rivals.built("mfm", backbone)
    dims, widths = (32, 5, 3), (128, 32, 128)
    lstms = sum(4 * width * (dim + width + 2) for dim, width in zip(dims, widths, strict=True))
    attention = 577 * 64 + 65 * 576
    memory = 3 * (577 * 64 + 65 * 64)
    encoders = sum(4 * 80 * (dim + 80 + 2) + 81 * 80 for dim in dims) + (288 + 64 + 1) * 80
    factors = 4 * (81 * 64 + 65 * 64)
    decoders = sum(4 * 128 * (128 + 128 + 2) + 129 * dim for dim in dims)
    own = rivals.own_parameters(model)
    assert own == lstms + attention + memory + encoders + factors + decoders + 65 * 64 + 65
