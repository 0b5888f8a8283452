"""The encoder's part of a gradient without keeping its activations: encode, differentiate the rest, encode again.

The first pass keeps the vectors alone. Once the losses have given the gradient of each, the second pass encodes one
micro-batch after the other under the same dropout masks and carries it on to the weights (gradient caching: Gao, Zhang,
Han and Callan, 2021. Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup. arXiv:2101.06983).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from grcf_ray.data.batches import Batch
from grcf_ray.model.base import GrcfModel


class GradientCache:
    """Vectors of a step's utterances, cut off from the encoder that gave them."""

    vector_UW: Tensor
    """[U, W], a leaf that collects its gradient."""

    def __init__(self, model: GrcfModel, batches: Sequence[Batch]) -> None:
        self._model, self._batches = model, batches
        self._states: list[tuple[Tensor, ...]] = []
        vectors = []
        with torch.no_grad():
            for batch in batches:
                self._states.append(_random_state(model))
                vectors.append(model.encode(batch))
        self._sizes = [len(vector_BW) for vector_BW in vectors]
        self.vector_UW = torch.cat(vectors).requires_grad_()

    def backward(self, autocast: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        """Carry the vectors' gradient on into the encoder; autocast: as the vectors were made under."""
        gradient_UW = self.vector_UW.grad
        assert gradient_UW is not None
        after = _random_state(self._model)
        for batch, state, gradient_BW in zip(
            self._batches, self._states, torch.split(gradient_UW, self._sizes), strict=True
        ):
            _set_random_state(self._model, state)
            with autocast():
                vector_BW = self._model.encode(batch)
            # A frozen encoder without another modality has no weight to carry it to.
            if vector_BW.requires_grad:
                vector_BW.backward(gradient_BW)  # type: ignore[no-untyped-call]
        _set_random_state(self._model, after)


def average_gradients(model: nn.Module) -> None:
    """The mean of all ranks' gradients, on each of them; what DDP does where it sees one forward and one backward."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    waiting = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
    for work in waiting:
        work.wait()
    for gradient in gradients:
        gradient /= dist.get_world_size()


def _random_state(model: GrcfModel) -> tuple[Tensor, ...]:
    device = next(model.parameters()).device
    return (torch.get_rng_state(), *((torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()))


def _set_random_state(model: GrcfModel, state: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], next(model.parameters()).device)
