"""How much of a step is computed at once: from the memory of a GPU, and less after it ran out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from grcf_ray.config import RunConfig
from grcf_ray.data.batches import Batch
from grcf_ray.model.base import MultimodalModel
from grcf_ray.train.gradient_cache import random_state, set_random_state

_CONTEXT_BYTES = 600e6
"""Memory of a GPU that the CUDA context of a process takes, which torch does not count: about half a GB."""
_USABLE = 0.8
"""Share of the free memory of a GPU that activations may fill; kernels need some of the rest."""


class StepLimits:
    """The largest parts of a step: `activation_tokens` whose activations are kept, `micro_batch_tokens` in one pass.

    Both are in padded tokens. `activation_tokens` is None until it has been measured on the GPU.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        pairs = config.pairs
        self.micro_batch_tokens = pairs.micro_batch_tokens
        self.activation_tokens = pairs.activation_tokens
        if self.activation_tokens is None and device.type != "cuda":
            self.activation_tokens = 4 * pairs.pairs_per_group * config.features.max_tokens

    def keeps(self, batches: Sequence[Batch]) -> bool:
        """Return whether a step of these micro-batches keeps its activations; otherwise it computes them twice."""
        return self.activation_tokens is not None and _tokens(batches) <= self.activation_tokens

    def lower(self, batches: Sequence[Batch]) -> str | None:
        """Lower the limit that made a step of these micro-batches too large.

        Return a note, or None if no smaller step is left: its micro-batches have one utterance each.
        """
        if self.keeps(batches):
            # Below 0 for a model without text, which has no token.
            self.activation_tokens = (_tokens(batches) - 1) // 2
            return "the activations of steps this large are computed twice from now on"
        if all(len(batch) == 1 for batch in batches):
            return None
        # Models without a text encoder have no tokens; their batches are cut by rows.
        largest = max(batch.tokens for batch in batches) or self.micro_batch_tokens
        self.micro_batch_tokens = max(1, min(self.micro_batch_tokens, largest) // 2)
        return f"micro-batches have at most {self.micro_batch_tokens} tokens from now on"

    def measure(
        self,
        model: MultimodalModel,
        batch: Batch,
        optimizer: torch.optim.Optimizer,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        """Set `activation_tokens` from the free memory of the model's GPU and from one pass over a micro-batch."""
        device = next(model.parameters()).device
        state, before = random_state(model), torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        with autocast():
            kept = model.encode(batch)
        bytes_per_token = (torch.cuda.max_memory_allocated(device) - before) / max(1, batch.tokens)
        del kept
        set_random_state(model, state)
        trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        # Gradients, and the two moments of AdamW before its first step.
        room = free_bytes(device) - trained * (1 if optimizer.state else 3)
        self.activation_tokens = affordable_tokens(room, bytes_per_token)


def affordable_tokens(room: float, bytes_per_token: float) -> int:
    """Return how many tokens' activations fit into the free bytes of a GPU; at least 0."""
    return max(0, int(_USABLE * room / max(1.0, bytes_per_token)))


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on a GPU: within its share, and beside other processes."""
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total - reserved
    return int(min(free, allowed)) + reserved - torch.cuda.memory_allocated(device)


def limit_memory(share: float) -> None:
    """Limit this process to a share of its GPU's memory, less what CUDA itself takes."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(max(0.0, share - _CONTEXT_BYTES / total), 0)


def _tokens(batches: Sequence[Batch]) -> int:
    return sum(batch.tokens for batch in batches)
