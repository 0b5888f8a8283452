"""DeBERTa-v2 and v3 without the relative positions that a text is too short to have.

The library multiplies every query and key with all 2 S position vectors (S = 256 buckets in DeBERTa-v3), then picks the
few that occur: for L subwords at most 2 L - 1. Here they are picked first, and nothing else changes: what is left out
has no part in any output and a gradient of zero. Dropout of position vectors is independent by element, so leaving out
rows does not alter that of the others, though it draws other random numbers.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, DisentangledSelfAttention
else:  # The library is imported where a backbone is loaded; `_adapt` mixes these with the classes that it finds there.
    DebertaV2Encoder = DisentangledSelfAttention = object


class _Encoder(DebertaV2Encoder):
    """Gives its layers the middle rows of the position table: distances -span to span - 1."""

    span: int | None = None
    """What the positions just made need of the table; None for the whole of it."""
    spans: dict[int, int]
    """By length of text, filled as lengths come."""

    def get_rel_pos(self, hidden_states: Any, query_states: Any = None, relative_pos: Any = None) -> Any:
        self.span = self._span(hidden_states.size(-2)) if query_states is None and relative_pos is None else None
        return super().get_rel_pos(hidden_states, query_states, relative_pos)  # type: ignore[no-untyped-call]

    def get_rel_embedding(self) -> Any:
        table = super().get_rel_embedding()  # type: ignore[no-untyped-call]
        span, self.span = self.span, None
        if span is None:
            return table
        middle = table.size(0) // 2
        span = min(span, middle)
        return table[middle - span : middle + span]

    def _span(self, length: int) -> int:
        """More than the farthest bucket of a text, by one or more: devices may round buckets' logarithms differently.

        A multiple of 4, so that the rows are one of 8, which suits matrix units.
        """
        if length not in self.spans:
            with torch.device("cpu"):
                first, all_ = torch.empty(1, 1, 0), torch.empty(1, length, 0)
                farthest = int(super().get_rel_pos(all_, first).abs().max())  # type: ignore[no-untyped-call]
            self.spans[length] = (farthest + 2 + 3) // 4 * 4
        return self.spans[length]


class _Attention(DisentangledSelfAttention):
    """Takes the span from the position table that it is given."""

    def disentangled_attention_bias(
        self, query_layer: Any, key_layer: Any, relative_pos: Any, rel_embeddings: Any, scale_factor: Any
    ) -> Any:
        self.pos_ebd_size = rel_embeddings.size(0) // 2
        return super().disentangled_attention_bias(  # type: ignore[no-untyped-call]
            query_layer, key_layer, relative_pos, rel_embeddings, scale_factor
        )


def cut_positions(backbone: nn.Module) -> nn.Module:
    """The backbone, made faster in place if it is DeBERTa-v2 or v3; parameters and their names stay.

    Where the library's module does not compute the same with it, down to the gradients, it stays as it is and a warning
    tells why.
    """
    config: Any = backbone.config
    if config.model_type != "deberta-v2" or not config.relative_attention:
        return backbone
    try:
        _check(type(backbone.encoder), config)  # type: ignore[arg-type]
        _adapt(backbone.encoder)
    except Exception as error:  # Whatever fails, in a library of unknown form, only costs speed.
        _warn(f"{type(error).__name__}: {error}")
    return backbone


def _adapt(encoder: Any) -> None:
    """Mix the classes of an encoder and of its attentions with those above."""
    attentions = list(_attentions(encoder))
    # The encoder comes last: attentions that are given the whole table use it.
    for module, mixin in (*((attention, _Attention) for attention in attentions), (encoder, _Encoder)):
        module.__class__ = _mixed(mixin, module.__class__)
    encoder.spans = {}


@functools.cache
def _mixed(mixin: Any, base: Any) -> type:
    return type(f"Cut{base.__name__}", (mixin, base), {"__module__": mixin.__module__, "__doc__": mixin.__doc__})


def _attentions(encoder: Any) -> Iterator[Any]:
    for layer in encoder.layer:
        yield layer.attention.self


def _check(kind: type[nn.Module], config: Any) -> None:
    """ValueError where a tiny encoder of these settings computes something else, or no less, once it is adapted."""
    tiny = copy.deepcopy(config)
    tiny.update(
        {
            "hidden_size": 8,
            "num_attention_heads": 2,
            "attention_head_size": 4,
            "intermediate_size": 8,
            "num_hidden_layers": 2,
            "conv_groups": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():
        torch.manual_seed(0)
        stock: Any = kind(tiny).double()
        adapted = copy.deepcopy(stock)
        _adapt(adapted)
        buckets = stock.rel_embeddings.num_embeddings // 2
        # The longer text has distances that share a bucket, if any do.
        for length in (buckets // 2 + 9, 5):
            hidden_BLD = torch.randn(2, length, 8, dtype=torch.float64)
            mask_BL = (torch.arange(length) < torch.tensor([[length], [3]])).long()
            theirs, ours = _outcome(stock, hidden_BLD, mask_BL), _outcome(adapted, hidden_BLD, mask_BL)
            difference = max(float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True))
            if not difference < 1e-9:
                raise ValueError(f"its results would differ by {difference:.1g}")
        if buckets >= 16 and any(attention.pos_ebd_size >= buckets for attention in _attentions(adapted)):
            raise ValueError("it would take every relative position still")


def _outcome(encoder: Any, hidden_BLD: Tensor, mask_BL: Tensor) -> list[Tensor]:
    """The states of the real positions, and the gradients of a weighted sum of them."""
    states = encoder(hidden_BLD, mask_BL).last_hidden_state[mask_BL.bool()]
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view_as(states)
    gradients = torch.autograd.grad(states, list(encoder.parameters()), weights, materialize_grads=True)
    return [states.detach(), *gradients]


@functools.cache
def _warn(reason: str) -> None:
    """Once a process for each reason."""
    import transformers

    warnings.warn(
        f"DeBERTa is trained as the library has it, up to twice as slow: transformers {transformers.__version__} with "
        f"torch {torch.__version__} cannot be made faster, {reason}",
        RuntimeWarning,
        stacklevel=3,
    )
