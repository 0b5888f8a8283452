"""Compare transformers' DeBERTa-v3 with one that computes only the relative positions that a text can have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from grcf_ray.bench.measure import TIMES, Variant, timed_rows
from grcf_ray.bench.setup import Setup
from grcf_ray.model.deberta import cut_positions
from grcf_ray.model.pretrained import backbone_config
from grcf_ray.tables import Column, Table

_NAME = "microsoft/deberta-v3-base"
_LAYERS, _TOKENS, _LENGTHS, _VOCABULARY = 3, 1024, (16, 50), 1000


def positions_table(setup: Setup) -> Table:
    """Time a few layers with random weights, forward and backward, at MOSI's mean length and the paper's padded one."""
    device = setup.device
    from transformers import AutoConfig, AutoModel

    settings = {k: v for k, v in backbone_config(_NAME).items() if k != "model_type"}
    # Fewer layers and words change the time but not the ratio.
    config = AutoConfig.for_model("deberta-v2", **settings)
    config.update({"num_hidden_layers": _LAYERS, "vocab_size": _VOCABULARY})
    torch.manual_seed(0)
    stock: Any = AutoModel.from_config(config, trust_remote_code=False).to(device).train()  # type: ignore[no-untyped-call]
    cut: Any = cut_positions(copy.deepcopy(stock))
    rows = []
    for length in _LENGTHS:
        token_BL = torch.randint(5, _VOCABULARY, (_TOKENS // length, length), device=device)
        variants = [
            Variant(f"length {length}, transformers' own", _pass(stock, token_BL)),
            Variant(f"length {length}, cut", _pass(cut, token_BL)),
        ]
        rows += timed_rows(setup, variants, difference=(None, _difference(stock, cut, token_BL)))
    columns = (
        Column("name", f"{_LAYERS} layers, {_TOKENS} subwords"),
        *TIMES,
        Column("difference", "gradient, rel. L2", "{:.1e}"),
    )
    note = f"{_NAME}'s settings with {_LAYERS} layers and {_VOCABULARY} words, random weights, forward and backward"
    return Table("positions", "DeBERTa-v3's relative positions", columns, rows, (note,))


def _pass(backbone: Any, token_BL: torch.Tensor) -> Callable[[], None]:
    """Return a forward and backward pass. The loss weights the states: the plain sum of a LayerNorm has no gradient."""
    weight_D = torch.linspace(-1, 1, backbone.config.hidden_size, device=token_BL.device)

    def run() -> None:
        backbone.zero_grad(set_to_none=True)
        states_BLD = backbone(input_ids=token_BL, attention_mask=torch.ones_like(token_BL)).last_hidden_state
        (states_BLD @ weight_D).square().mean().backward()

    return run


def _difference(stock: Any, cut: Any, token_BL: torch.Tensor) -> float:
    """Return the relative difference of the gradients, without dropout."""
    gradients = []
    for backbone in (stock, cut):
        backbone.eval()
        _pass(backbone, token_BL)()
        backbone.train()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in backbone.parameters() if p.grad is not None]))
    stock_gradient, cut_gradient = gradients
    return float((cut_gradient - stock_gradient).norm() / stock_gradient.norm())
