"""The gated cross-attention of appendix A.1 against the same sums written out, and what it does without rows."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grcf_ray.config import ModelConfig
from grcf_ray.data.batches import Batch
from grcf_ray.errors import ConfigError
from grcf_ray.model.build import build_model, parameter_table
from grcf_ray.model.pretrained import load_backbone

AUDIO, VISION, HEADS = 5, 3, 4


def build(backbone: Path, *, audio: int | None = AUDIO, vision: int | None = VISION, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = ModelConfig(**{"text_vector": "mean", "attention_heads": HEADS, **settings})
    dims: dict[str, Any] = {"audio_dim": audio, "vision_dim": vision}
    return build_model(load_backbone(str(backbone)), config, task="classification", half_range=1.0, **dims).double()


def batch(seed: int = 0) -> Batch:
    """Four utterances: both modalities, audio alone, vision alone, neither. Their padding is not zero."""
    generator = torch.Generator().manual_seed(seed)
    mask_BL = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    audio_mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0]]).bool()
    vision_mask = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 0]]).bool()

    def rows(mask: Tensor, width: int) -> Tensor:
        value = torch.randn(*mask.shape, width, generator=generator, dtype=torch.float64)
        return torch.where(mask.unsqueeze(-1), value, 9.0)

    return Batch(
        torch.randint(5, 20, (4, 4), generator=generator) * mask_BL,
        mask_BL,
        None,
        None,
        rows(audio_mask, AUDIO),
        audio_mask,
        rows(vision_mask, VISION),
        vision_mask,
    )


def loop(model: Any, given: Batch) -> Tensor:
    """Eqs. 14-16 for one utterance after the other, over its real rows alone, without padding or mask."""
    text_BD = model.text_encoder(given)
    logits = []
    for row, text_D in enumerate(text_BD):
        keys = []
        for kind, name in enumerate(("audio", "vision")):
            values, mask = model.rows(given, name)
            for value in values[row][mask[row]]:
                projected = model.get_submodule(f"{name}_projection")(value)
                keys.append(model.get_submodule(f"{name}_norm")(projected) + model.type_embedding.weight[kind])
        final_D = text_D
        if keys:
            attention, width = model.attention, len(text_D)
            key_LD = torch.stack(keys)
            weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
            query_D, k_LD, v_LD = (
                x @ weight.T + bias for x, weight, bias in zip((text_D, key_LD, key_LD), weights, biases, strict=True)
            )
            size = width // HEADS
            heads = []
            for head in range(HEADS):
                part = slice(head * size, (head + 1) * size)
                share_L = torch.softmax(k_LD[:, part] @ query_D[part] / math.sqrt(size), dim=0)
                heads.append(share_L @ v_LD[:, part])
            fused_D = attention.out_proj(torch.cat(heads))
            gate = torch.sigmoid(model.gate(torch.cat([text_D, fused_D])))
            final_D = gate * text_D + (1 - gate) * fused_D
        logits.append(model.head(final_D).squeeze())
    return torch.stack(logits)


@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_logits_and_gradients_are_those_of_the_equations(tiny_backbone: Path, gate: str) -> None:
    model = build(tiny_backbone, gate=gate).eval()
    given = batch()
    actual, reference = model.score(model.encode(given)), loop(model, given)
    torch.testing.assert_close(actual, reference, rtol=1e-10, atol=1e-12)
    weight_B = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    parameters = [p for p in model.parameters() if p.requires_grad]
    first, second = (
        torch.autograd.grad((x * weight_B).sum(), parameters, allow_unused=True, retain_graph=True)
        for x in (actual, reference)
    )
    for mine, other, parameter in zip(first, second, parameters, strict=True):
        zero = torch.zeros_like(parameter)
        torch.testing.assert_close(zero if mine is None else mine, zero if other is None else other)


def test_the_text_may_attend_to_pooled_vectors(tiny_backbone: Path) -> None:
    """Two keys, audio's and vision's rows pooled by eqs. 1-2, give what rows of those very values give."""
    pooled = build(tiny_backbone, non_text="pooled").eval()
    by_row = build(tiny_backbone).eval()
    shared = pooled.state_dict()
    by_row.load_state_dict({name: shared[name] for name in by_row.state_dict()})
    assert {name for name in shared if name not in by_row.state_dict()} == {
        f"{name}_pooler.projection.{kind}" for name in ("audio", "vision") for kind in ("weight", "bias")
    }
    given = batch()
    single = {}
    for name, letter in (("audio", "A"), ("vision", "V")):
        rows, mask = pooled.rows(given, name)
        projection = pooled.get_submodule(f"{name}_pooler").projection
        means = []
        for row, real in zip(rows, mask, strict=True):
            weight_L = torch.softmax(projection(row[real]).squeeze(-1), dim=0)
            means.append((weight_L[:, None] * row[real]).sum(0))
        single |= {f"{name}_BL{letter}": torch.stack(means).unsqueeze(1), f"{name}_mask_BL": mask.any(1, keepdim=True)}
    slot_S = torch.arange(4)
    torch.testing.assert_close(pooled([given], slot_S), by_row([dataclasses.replace(given, **single)], slot_S))
    # The last utterance has neither, and is scored by its text.
    vector_BW = pooled.encode(given)
    assert vector_BW[-1, -1] == 0
    assert torch.equal(pooled.represent(vector_BW)[-1], vector_BW[-1, : pooled.width])


def test_text_alone_has_no_attention(tiny_backbone: Path) -> None:
    model, given = build(tiny_backbone, audio=None, vision=None).eval(), batch()
    assert not hasattr(model, "attention")
    torch.testing.assert_close(model.score(model.encode(given)), model.head(model.text_encoder(given)).squeeze(-1))
    assert [title for title, _ in parameter_table(model)] == ["Text Encoder", "Classification Head"]


def test_dropping_modalities_leaves_the_text(tiny_backbone: Path) -> None:
    """Of every slot by itself."""
    model = build(tiny_backbone, modality_dropout=0.5, fusion_dropout=0.0, unified_dropout=0.0)
    given = batch()
    model.text_encoder.eval()
    vector_BW = model.encode(given)
    slot_S = torch.zeros(400, dtype=torch.int64)
    logit_S = model.score(vector_BW[slot_S])
    text, fused = model.head(model.text_encoder(given)[0]).squeeze(), loop(model, given)[0]
    dropped_S = torch.isclose(logit_S, text)
    assert torch.isclose(logit_S, torch.where(dropped_S, text, fused)).all()
    assert 140 < int(dropped_S.sum()) < 260


def test_parameters_by_component(tiny_backbone: Path) -> None:
    width = 32
    named = dict(parameter_table(build(tiny_backbone)))
    assert named["Cross-Attention"] == 4 * width * (width + 1)
    assert named["Gate"] == 2 * width * width + width + width + 1
    assert named["Type Embedding"] == 2 * width
    assert dict(parameter_table(build(tiny_backbone, gate="vector")))["Gate"] == 2 * width**2 + width + width**2 + width


def test_networks_that_cannot_be_built_are_refused(tiny_backbone: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.attention_heads = 5 .* 32"):
        build(tiny_backbone, attention_heads=5)
    dims: dict[str, Any] = {"audio_dim": AUDIO, "vision_dim": None}
    with pytest.raises(ConfigError, match="needs the text"):
        build_model(None, ModelConfig(modalities="audio"), task="classification", half_range=1.0, **dims)
