from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch

from grcf_ray.config import RunConfig, build_config
from grcf_ray.model.base import MultimodalModel
from grcf_ray.model.build import build_model
from grcf_ray.model.pretrained import backbone_from_config
from grcf_ray.train.optimizer import build_optimizer, learning_rate_factor, parameter_groups

DEBERTA: dict[str, Any] = {
    "model_type": "deberta-v2",
    "vocab_size": 40,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
LAYER = "text_encoder.backbone.encoder.layer."
BASE = ("text_encoder.backbone.embeddings.", "text_encoder.backbone.encoder.rel_embeddings.")
BASE_NORM = "text_encoder.backbone.encoder.LayerNorm."
HEAD = ("audio_", "vision_", "fusion.", "unified.", "head.")
SETTINGS = {
    "stage1.head_lr": 1e-1,
    "stage1.encoder_lr": 1e-2,
    "stage1.weight_decay": 0.5,
    "stage2.head_lr": 1e-3,
    "stage2.encoder_top_lr": 1e-4,
    "stage2.encoder_base_lr": 1e-5,
    "stage2.weight_decay": 0.25,
}


def config(**changes: Any) -> RunConfig:
    return build_config(SETTINGS | {path.replace("__", "."): value for path, value in changes.items()})


def network(settings: RunConfig, layers: int = 4) -> MultimodalModel:
    backbone = backbone_from_config(DEBERTA | {"num_hidden_layers": layers})
    return build_model(backbone, settings.model, task="regression", audio_dim=5, vision_dim=3, half_range=3.0)


def groups_by_name(model: MultimodalModel, settings: RunConfig, stage: Literal[1, 2]) -> dict[str, set[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        group: {names[id(p)] for p in parameters}
        for group, (_, parameters) in parameter_groups(model, settings, stage).items()
    }


def starting(model: MultimodalModel, *starts: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(starts)}


def test_stage_1_has_encoder_and_head() -> None:
    model = network(config())
    groups = groups_by_name(model, config(), 1)
    assert groups == {"encoder": starting(model, "text_encoder."), "head": starting(model, *HEAD)}
    assert all(groups.values())
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    rates = {name: rate for name, (rate, _) in parameter_groups(model, config(), 1).items()}
    assert rates == {"encoder": 1e-2, "head": 1e-1}


@pytest.mark.parametrize(
    ("layers", "top_layers", "top"),
    [
        (4, None, [2, 3]),
        (3, None, [1, 2]),
        (4, 1, [3]),
        (4, 4, [0, 1, 2, 3]),
        (4, 9, [0, 1, 2, 3]),
        (4, 0, []),
    ],
)
def test_stage_2_divides_the_encoder(layers: int, top_layers: int | None, top: list[int]) -> None:
    """The base holds embeddings, relative embeddings with their norm, and the lower layers."""
    settings = config(stage2__top_layers=top_layers)
    model = network(settings, layers)
    base = [f"{LAYER}{layer}." for layer in range(layers) if layer not in top]
    expected = {
        "encoder_top": starting(model, *(f"{LAYER}{layer}." for layer in top)) if top else set(),
        "encoder_base": starting(model, *BASE, BASE_NORM, *base),
        "head": starting(model, *HEAD),
    }
    groups = groups_by_name(model, settings, 2)
    assert groups == {name: members for name, members in expected.items() if members}
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    rates = {name: rate for name, (rate, _) in parameter_groups(model, settings, 2).items()}
    assert rates == {name: {"encoder_top": 1e-4, "encoder_base": 1e-5, "head": 1e-3}[name] for name in groups}


def test_shared_layers_are_upper_but_for_the_embeddings() -> None:
    """ALBERT's layers are one: there is no telling its upper half."""
    albert = {name: DEBERTA[name] for name in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")}
    backbone = backbone_from_config(albert | {"model_type": "albert", "num_hidden_layers": 4, "embedding_size": 4})
    model = build_model(backbone, config().model, task="regression", audio_dim=5, vision_dim=3, half_range=3.0)
    top = starting(model, "text_encoder.backbone.encoder.")
    base = starting(model, "text_encoder.backbone.embeddings.")
    assert groups_by_name(model, config(), 2) == {
        "encoder_top": top,
        "encoder_base": base,
        "head": starting(model, *HEAD),
    }
    assert top and base and len(top | base) == len(list(backbone.parameters()))


@pytest.mark.parametrize(
    ("frozen", "stage", "groups"),
    [
        (3, 1, {"encoder": [f"{LAYER}3."]}),
        (3, 2, {"encoder_top": [f"{LAYER}3."]}),
        (1, 2, {"encoder_top": [f"{LAYER}2.", f"{LAYER}3."], "encoder_base": [f"{LAYER}1."]}),
        ("all", 1, {}),
        ("all", 2, {}),
    ],
)
def test_frozen_parameters_are_in_no_group(
    frozen: int | Literal["all"], stage: Literal[1, 2], groups: dict[str, list[str]]
) -> None:
    settings = config(model__frozen_layers=frozen)
    model = network(settings)
    expected = {name: starting(model, *starts) for name, starts in groups.items()} | {"head": starting(model, *HEAD)}
    assert groups_by_name(model, settings, stage) == expected
    optimizer = build_optimizer(model, settings, stage)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(held) == len({id(p) for p in held})


@pytest.mark.parametrize(("stage", "decay"), [(1, 0.5), (2, 0.25)])
def test_biases_and_norms_have_no_decay(stage: Literal[1, 2], decay: float) -> None:
    model = network(config())
    optimizer = build_optimizer(model, config(), stage)
    assert isinstance(optimizer, torch.optim.AdamW)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        rate, members = parameter_groups(model, config(), stage)[group["name"]]
        assert (group["lr"], group["initial_lr"]) == (rate, rate)
        assert {id(p) for p in group["params"]} <= {id(p) for p in members}
        for p in group["params"]:
            vector = names[id(p)].endswith(".bias") or "norm" in names[id(p)].lower()
            assert group["weight_decay"] == (0 if vector else decay), names[id(p)]


@pytest.mark.parametrize(("warmup_fraction", "rise"), [(0.0, []), (0.25, [0.25, 0.5, 0.75])])
def test_cosine_falls_from_1_to_0_after_the_warm_up(warmup_fraction: float, rise: list[float]) -> None:
    fall = 12 - len(rise)
    expected = [*rise, *((1 + math.cos(math.pi * step / fall)) / 2 for step in range(fall + 1))]
    assert [learning_rate_factor(step, 12, warmup_fraction) for step in range(13)] == pytest.approx(expected)
    assert expected[12] == pytest.approx(0)
    # A single step has a rate.
    assert learning_rate_factor(0, 1, warmup_fraction) == learning_rate_factor(0, 1, 0.99) == 1
