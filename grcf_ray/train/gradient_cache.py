"""Gradient caching: compute the encoder's gradient without keeping its activations.

The first pass keeps only the vectors. The losses give the gradient of each vector. The second pass encodes one
micro-batch after the other with the same dropout masks, and propagates the gradient to the weights (Gao, Zhang, Han and
Callan, 2021. Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup. arXiv:2101.06983).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from grcf_ray.data.batches import Batch
from grcf_ray.model.base import MultimodalModel
from grcf_ray.train.checkpoint import trained_tensors

_BUCKET_BYTES = 25 * 2**20
"""Bytes of gradients that are exchanged at a time, as in DDP: many small exchanges would each cost a round trip."""


class GradientCache:
    """The vectors of a step's utterances, detached from the encoder."""

    vector_UW: Tensor
    """[U, W], a leaf tensor that accumulates its gradient."""

    def __init__(self, model: MultimodalModel, batches: Sequence[Batch]) -> None:
        self._model, self._batches = model, batches
        self._states: list[tuple[Tensor, ...]] = []
        vectors = []
        with torch.no_grad():
            for batch in batches:
                self._states.append(random_state(model))
                vectors.append(model.encode(batch))
        self._sizes = [len(vector_BW) for vector_BW in vectors]
        self.vector_UW = torch.cat(vectors).requires_grad_()

    def backward(self, autocast: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        """Propagate the gradient of the vectors into the encoder.

        autocast: the context in which the vectors were computed.
        """
        gradient_UW = self.vector_UW.grad
        assert gradient_UW is not None
        after = random_state(self._model)
        for batch, state, gradient_BW in zip(
            self._batches, self._states, torch.split(gradient_UW, self._sizes), strict=True
        ):
            set_random_state(self._model, state)
            with autocast():
                vector_BW = self._model.encode(batch)
            # A frozen encoder without other modalities has no weight to train.
            if vector_BW.requires_grad:
                vector_BW.backward(gradient_BW)  # type: ignore[no-untyped-call]
        set_random_state(self._model, after)


def average_gradients(model: nn.Module) -> None:
    """Average the gradients over all ranks.

    Unlike DDP, which exchanges gradients within the backward pass, this lets each rank compute its part of a step in
    its own way, and again if its memory did not suffice: the others only wait here.
    """
    waiting = []
    for bucket in _buckets([p.grad for p in model.parameters() if p.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        waiting.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in waiting:
        work.wait()
        flat /= dist.get_world_size()
        for gradient, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the gradients in order, as many of one type at a time as fit a bucket, at least one."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > _BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


def share_weights(model: nn.Module) -> None:
    """Copy rank 0's trained weights to all ranks: processors of other types can draw other initial weights."""
    for tensor in trained_tensors(model).values():
        dist.broadcast(tensor, 0)


def random_state(model: MultimodalModel) -> tuple[Tensor, ...]:
    """Return the state of torch's generators: the CPU's, and that of the model's GPU."""
    device = next(model.parameters()).device
    return (torch.get_rng_state(), *((torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()))


def set_random_state(model: MultimodalModel, state: tuple[Tensor, ...]) -> None:
    """Set torch's generators to a result of `random_state`."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], next(model.parameters()).device)
