"""DeBERTa-v2 and v3 without the relative positions that cannot occur in a text, and without gathers.

The library multiplies every query and key with all 2 S position vectors (S = 256 buckets in DeBERTa-v3), then gathers
the products of the positions that occur. This module selects the vectors first: a text of L tokens has at most 2 L - 1
relative positions. In texts of up to S / 2 + 1 tokens these positions are consecutive, and a shift of each row replaces
the gather. The backward of a shift needs no index and is deterministic. The outputs and gradients are the same: an
unused vector has no part in any output, and a gradient of zero. Dropout of position vectors is independent per element,
so leaving out vectors changes the random numbers only.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
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
    spans: dict[int, tuple[int, bool]]
    """By length of text, cached: the span, and whether the positions are consecutive."""

    def get_rel_pos(self, hidden_states: Any, query_states: Any = None, relative_pos: Any = None) -> Any:
        """Return the positions of the library; None if they are consecutive."""
        self.span = None
        if query_states is None and relative_pos is None:
            self.span, consecutive = self._span(hidden_states.size(-2))
            if consecutive:
                return None
        return super().get_rel_pos(hidden_states, query_states, relative_pos)  # type: ignore[no-untyped-call]

    def get_rel_embedding(self) -> Any:
        table = super().get_rel_embedding()  # type: ignore[no-untyped-call]
        span, self.span = self.span, None
        if span is None:
            return table
        middle = table.size(0) // 2
        span = min(span, middle)
        return table[middle - span : middle + span]

    def _span(self, length: int) -> tuple[int, bool]:
        """Return the span, and whether the positions are consecutive.

        The span of consecutive positions is the length. Other spans exceed the farthest bucket by at least one, since
        devices can round the logarithms of buckets differently. They are multiples of 4, which gives multiples of 8
        rows, as suits matrix units.
        """
        if length not in self.spans:
            with torch.device("cpu"):
                place_L = torch.arange(length)
                position_LL = super().get_rel_pos(torch.empty(1, length, 0))[0]  # type: ignore[no-untyped-call]
                consecutive = torch.equal(position_LL, place_L[:, None] - place_L)
                fits = length <= self.rel_embeddings.num_embeddings // 2
                farthest = int(position_LL.abs().max())
            self.spans[length] = (length, True) if consecutive and fits else ((farthest + 2 + 3) // 4 * 4, False)
        return self.spans[length]


class _Attention(DisentangledSelfAttention):
    """Shift the products of consecutive positions; read the span of others from the size of the position table."""

    def disentangled_attention_bias(
        self, query_layer: Any, key_layer: Any, relative_pos: Any, rel_embeddings: Any, scale_factor: Any
    ) -> Any:
        """Return the bias [B * heads, L, L] of texts of L tokens."""
        self.pos_ebd_size = rel_embeddings.size(0) // 2
        if relative_pos is not None or self.pos_ebd_size != query_layer.size(1):
            return super().disentangled_attention_bias(  # type: ignore[no-untyped-call]
                query_layer, key_layer, relative_pos, rel_embeddings, scale_factor
            )
        # The library rounds the root to float32.
        scale = float(np.sqrt(np.float32(query_layer.size(-1) * scale_factor)))
        bias_HBLL: Any = 0
        if "c2p" in self.pos_att_type:
            project = self.key_proj if self.share_att_key else self.pos_key_proj
            # The farthest distance first: then the column grows with the place of the key.
            positions_RD = (project(rel_embeddings) / scale).flip(0)
            bias_HBLL = self._products(query_layer, positions_RD, self.pos_ebd_size - 1)
        if "p2c" in self.pos_att_type:
            project = self.query_proj if self.share_att_key else self.pos_query_proj
            bias_HBLL = bias_HBLL + self._products(key_layer, project(rel_embeddings) / scale, self.pos_ebd_size).mT
        return bias_HBLL.transpose(0, 1).reshape(query_layer.size(0), query_layer.size(1), -1)

    def _products(self, state_NLE: Tensor, position_RD: Tensor, zero: int) -> Tensor:
        """Return [H, B, L, L]: the product of state i and the position vector of row `zero` - i + j.

        H heads, B texts, N = B H, E the width of a head, R = 2 L.
        """
        heads, (_, length, width), rows = self.num_attention_heads, state_NLE.shape, position_RD.size(0)
        # Heads come first: all texts share the position vectors of a head, which are then multiplied without copies.
        state_HME = state_NLE.view(-1, heads, length, width).transpose(0, 1).reshape(heads, -1, width)
        product_HMR = torch.bmm(state_HME, position_RD.view(rows, heads, width).permute(1, 2, 0))
        product_HBLR = product_HMR.view(heads, -1, length, rows)
        head, text, row, column = product_HBLR.stride()
        # Each row starts one column earlier than the row before it.
        return product_HBLR.as_strided(
            (*product_HBLR.shape[:3], length),
            (head, text, row - column, column),
            product_HBLR.storage_offset() + zero * column,
        )


def cut_positions(backbone: nn.Module) -> nn.Module:
    """Make a DeBERTa-v2 or v3 backbone faster in place, and return it; parameters and their names stay.

    If the adapted module would not give the same outputs and gradients, it stays unchanged, and a warning gives the
    reason.
    """
    config: Any = backbone.config
    if config.model_type != "deberta-v2" or not config.relative_attention or not config.pos_att_type:
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
