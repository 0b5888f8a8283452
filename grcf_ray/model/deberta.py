"""DeBERTa-v2 and v3 without the relative positions that cannot occur in short texts.

The library multiplies every query and key with all 2 S position vectors (S = 256 buckets in DeBERTa-v3). A text of L
tokens has at most 2 L - 1 relative positions, and the library selects their products afterwards. This module selects
the vectors first. The outputs and gradients are the same: an unused vector has no part in any output, and a gradient of
zero. Dropout of position vectors is independent per element, so leaving out vectors changes the random numbers only.
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
    """Give the layers the middle rows of the position table: distances -span to span - 1."""

    span: int | None = None
    """Rows on each side that the current positions need; None for the whole table."""
    spans: dict[int, int]
    """Spans by length of text, cached."""

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
        """Return a span that exceeds the farthest bucket of a text by at least one, a multiple of 4.

        Devices can round the logarithms of buckets differently, hence the margin. A multiple of 4 gives a multiple of 8
        rows, which suits matrix units.
        """
        if length not in self.spans:
            with torch.device("cpu"):
                first, all_ = torch.empty(1, 1, 0), torch.empty(1, length, 0)
                farthest = int(super().get_rel_pos(all_, first).abs().max())  # type: ignore[no-untyped-call]
            self.spans[length] = (farthest + 2 + 3) // 4 * 4
        return self.spans[length]


class _Attention(DisentangledSelfAttention):
    """Read the span from the size of the position table."""

    def disentangled_attention_bias(
        self, query_layer: Any, key_layer: Any, relative_pos: Any, rel_embeddings: Any, scale_factor: Any
    ) -> Any:
        self.pos_ebd_size = rel_embeddings.size(0) // 2
        return super().disentangled_attention_bias(  # type: ignore[no-untyped-call]
            query_layer, key_layer, relative_pos, rel_embeddings, scale_factor
        )


def cut_positions(backbone: nn.Module) -> nn.Module:
    """Make a DeBERTa-v2 or v3 backbone faster in place, and return it; parameters and their names stay.

    If the adapted module would not give the same outputs and gradients, it stays unchanged, and a warning gives the
    reason.
    """
    config: Any = backbone.config
    if config.model_type != "deberta-v2" or not config.relative_attention:
        return backbone
    try:
        _check(type(backbone.encoder), config)  # type: ignore[arg-type]
        _adapt(backbone.encoder)
    except Exception as error:  # The library can raise anything here; it only costs speed.
        _warn(f"{type(error).__name__}: {error}")
    return backbone


def _adapt(encoder: Any) -> None:
    """Add the classes above to an encoder and its attentions."""
    attentions = list(_attentions(encoder))
    # The encoder comes last: until then it gives attentions the whole table.
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
    """Raise ValueError if a tiny encoder with these settings gives other results, or no fewer rows, when adapted."""
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
            results = (_outcome(encoder, hidden_BLD, mask_BL) for encoder in (stock, adapted))
            difference = max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))
            if not difference < 1e-9:
                raise ValueError(f"its results would differ by {difference:.1g}")
        if buckets >= 16 and any(attention.pos_ebd_size >= buckets for attention in _attentions(adapted)):
            raise ValueError("it would still use every relative position")


def _outcome(encoder: Any, hidden_BLD: Tensor, mask_BL: Tensor) -> list[Tensor]:
    """Return the states of the real positions, and the gradients of a weighted sum of them."""
    states = encoder(hidden_BLD, mask_BL).last_hidden_state[mask_BL.bool()]
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view_as(states)
    gradients = torch.autograd.grad(states, list(encoder.parameters()), weights, materialize_grads=True)
    return [states.detach(), *gradients]


@functools.cache
def _warn(reason: str) -> None:
    """Warn once per process for each reason."""
    import transformers

    warnings.warn(
        f"DeBERTa trains up to twice as slowly: grcf_ray cannot speed up transformers {transformers.__version__} with "
        f"torch {torch.__version__} ({reason})",
        RuntimeWarning,
        stacklevel=3,
    )
