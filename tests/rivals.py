"""Models of every kind on the tiny data set, and plain loops that the tests of several models need."""

from __future__ import annotations

import copy
import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grcf_ray.config import ModelConfig
from grcf_ray.data.batches import Batch, collate
from grcf_ray.data.features import Features
from grcf_ray.model.build import build_model
from grcf_ray.model.card import card_of


def built(name: str, backbone: nn.Module | None, *, dims: dict[str, int | None] | None = None, **changes: Any) -> Any:
    """A network in double precision, in evaluation mode.

    dims: `audio_dim` and `vision_dim`, by default those of the tiny data. changes: options, `task`, `frozen_layers`.
    """
    torch.manual_seed(0)
    task = changes.pop("task", "regression")
    frozen = changes.pop("frozen_layers", 0)
    config = ModelConfig(
        name=name,
        text_vector="mean",
        frozen_layers=frozen,
        textless_width=32,
        modalities="all" if backbone is not None else "audio+vision",
        options=card_of(name).options(**changes),
    )
    widths: dict[str, Any] = {"audio_dim": 5, "vision_dim": 3} if dims is None else dims
    model = build_model(copy.deepcopy(backbone), config, task=task, half_range=3.0, **widths)
    return model.double().eval()


def two_classes(features: Features) -> Features:
    """The data set with the side of each label in its place."""
    splits = {
        name: dataclasses.replace(split, label_N=np.where(split.label_N > 0, 0.5, -0.5))
        for name, split in (("train", features.train), ("valid", features.valid))
    }
    return dataclasses.replace(features, task="classification", half_range=0.5, **splits)


def some(features: Features, *index: int) -> Batch:
    """The training utterances with these places, in double precision."""
    return collate(features, features.train, np.array(index)).to(torch.device("cpu"), torch.float64)


def batch_of(token_BL: Tensor | None, audio_BLA: Tensor | None, vision_BLV: Tensor | None) -> Batch:
    """A batch without padding."""
    masks = [
        None if rows is None else torch.ones(rows.shape[:2], dtype=torch.bool)
        for rows in (token_BL, audio_BLA, vision_BLV)
    ]
    return Batch(token_BL, masks[0], None, None, audio_BLA, masks[1], vision_BLV, masks[2])


def one_of(batch: Batch, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """The subword ids, audio rows and vision rows of an utterance, without padding."""
    fields = (
        (batch.token_BL, batch.mask_BL),
        (batch.audio_BLA, batch.audio_mask_BL),
        (batch.vision_BLV, batch.vision_mask_BL),
    )
    first, second, third = (values[index][mask[index]] for values, mask in fields)  # type: ignore[index]
    return first, second, third


def states_of(model: Any, token_L: Tensor) -> Tensor:
    """The states [L, D] of an utterance's subwords."""
    states: Tensor = model.text_encoder.backbone(input_ids=token_L[None]).last_hidden_state[0]
    return states


def linear(layer: Any, value: Tensor) -> Tensor:
    """W x + b, entry by entry."""
    rows = [sum(w * x for w, x in zip(row, value, strict=True)) for row in layer.weight]
    return torch.stack([row + b for row, b in zip(rows, layer.bias, strict=True)])  # type: ignore[arg-type]


def dense(layers: Any, value: Tensor) -> Tensor:
    """The ReLU layers of a sequence, without dropout."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            value = linear(layer, value).clamp_min(0)
    return value


def mean(row_LA: Tensor) -> Tensor:
    """The mean of the rows; zeros without rows."""
    return sum(row_LA, torch.zeros(row_LA.shape[1], dtype=row_LA.dtype)) / max(1, len(row_LA))


def shares(row_LA: Tensor, steps: int) -> Tensor:
    """Rows brought to steps, by the exact overlap of each row with each step."""
    brought = torch.zeros(steps, row_LA.shape[1], dtype=row_LA.dtype)
    for t in range(steps):
        for r, row in enumerate(row_LA):
            begin = max(Fraction(t, steps), Fraction(r, len(row_LA)))
            end = min(Fraction(t + 1, steps), Fraction(r + 1, len(row_LA)))
            brought[t] += float(max(Fraction(0), end - begin) * steps) * row
    return brought


def lstm(layer: Any, row_LA: Tensor, number: int = 0) -> Tensor:
    """The outputs [L, H] of one layer of an LSTM, step by step."""
    names = (f"{kind}_{gate}_l{number}" for kind in ("weight", "bias") for gate in ("ih", "hh"))
    return _lstm_steps(*(getattr(layer, name) for name in names), row_LA)[0]


def lstm_cell(cell: Any, row_LA: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs and the memories, [L, H] each, of an LSTM cell, step by step."""
    return _lstm_steps(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh, row_LA)


def _lstm_steps(
    from_input: Tensor, from_state: Tensor, input_bias: Tensor, state_bias: Tensor, row_LA: Tensor
) -> tuple[Tensor, Tensor]:
    hidden = cell = torch.zeros(from_state.shape[1], dtype=row_LA.dtype)
    outputs, memories = [], []
    for row in row_LA:
        gates = from_input @ row + input_bias + from_state @ hidden + state_bias
        enter, forget, new, leave = gates.chunk(4)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
        hidden = torch.sigmoid(leave) * torch.tanh(cell)
        outputs.append(hidden)
        memories.append(cell)
    return torch.stack(outputs), torch.stack(memories)


def mapping(network: Any, value: Tensor) -> Tensor:
    """A network of one hidden layer, without dropout."""
    return linear(network[-1], dense(network[:-1], value))


def gated_memory(gates: Any, value: Tensor, memory: Tensor) -> Tensor:
    """The next state of a multi-view gated memory."""
    retain, update = (torch.sigmoid(mapping(network, value)) for network in (gates.retain, gates.update))
    return retain * memory + update * torch.tanh(mapping(gates.propose, value))


def check_equations(model: Any, features: Features, by_hand: Any) -> None:
    """Compare scores and gradients of a padded batch with a loop over its utterances.

    by_hand: the score of one utterance from its subword ids, audio rows and vision rows.
    """
    batch = some(features, *range(6))
    scores = model([batch], torch.arange(6))
    alone = torch.stack([by_hand(*one_of(batch, index)) for index in range(6)])
    torch.testing.assert_close(scores, alone, rtol=1e-10, atol=1e-10)
    assert scores.std() > 1e-6
    weights = torch.linspace(-1, 1, 6, dtype=torch.float64)
    check_gradients(model, (scores * weights).sum(), (alone * weights).sum())


def check_same(model: Any, ours: Tensor, theirs: Tensor) -> None:
    """Compare values, and the gradients of their weighted sum in the parameters outside the text encoder."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert ours.numel() == 1 or ours.std() > 1e-6
    weights = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64)
    check_gradients(model, (ours.flatten() * weights).sum(), (theirs.flatten() * weights).sum())


def check_terms(model: Any, features: Features, by_hand: Any) -> None:
    """Compare the own loss terms of a padded batch, and their gradients, with a plain loop.

    by_hand: the terms by name, from the utterances' subword ids, audio rows and vision rows, and their labels [U].
    """
    index, label_U = torch.arange(6), torch.tensor(features.train.label_N[:6], dtype=torch.float64)
    if model.task == "classification":
        label_U = (label_U > 0).double()
    batch = some(features, *range(6))
    ours = model.auxiliary(model.encode(batch), label_U, index)
    theirs = by_hand([one_of(batch, number) for number in range(6)], label_U)
    assert ours.keys() == theirs.keys()
    for name, term in ours.items():
        check_same(model, term, theirs[name])
        assert term != 0
    alone = model.auxiliary(model.encode(some(features, 0)), label_U[:1], index[:1])
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(sum(alone.values()), trained, materialize_grads=True)
    assert all(value.isfinite().all() for value in (*alone.values(), *gradients))


def check_gradients(model: Any, ours: Tensor, theirs: Tensor) -> None:
    """Compare the gradients of two scalars in all parameters outside the text encoder."""
    own = [p for name, p in model.named_parameters() if not name.startswith("text_encoder.")]
    pairs = [torch.autograd.grad(value, own, retain_graph=True, materialize_grads=True) for value in (ours, theirs)]
    assert any(gradient.any() for gradient in pairs[0])
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def own_parameters(model: Any) -> int:
    """The number of parameters outside the text encoder."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("text_encoder."))
