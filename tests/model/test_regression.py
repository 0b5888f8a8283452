from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grcf_ray.config import ModelConfig, Task
from grcf_ray.data.batches import Batch, collate
from grcf_ray.data.features import Features
from grcf_ray.metrics import split_metrics
from grcf_ray.model.build import build_model, parameter_table
from grcf_ray.model.pretrained import backbone_config, backbone_from_config, load_backbone

TABLE_12 = {
    "mosi": {
        "Text Encoder": 183_831_552,
        "Vision Pooler": 48,
        "Audio Pooler": 75,
        "Vision Norm": 1_536,
        "Audio Norm": 1_536,
        "Vision Projection": 36_864,
        "Audio Projection": 57_600,
        "Fusion Layer": 1_770_240,
        "Unified Encoder": 590_592,
        "Regression Head": 295_681,
    },
    "mosei": {"Vision Pooler": 36, "Vision Projection": 27_648},
}


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Any) -> nn.Module:
    return load_backbone(str(tiny_backbone))


def regressor(
    backbone: nn.Module, features: Features, *, half_range: float = 3.0, task: Task = "regression", **settings: Any
) -> Any:
    torch.manual_seed(0)
    dims: dict[str, Any] = {"audio_dim": features.audio_dim, "vision_dim": features.vision_dim}
    return build_model(copy.deepcopy(backbone), ModelConfig(**settings), task=task, half_range=half_range, **dims)


def some(features: Features, *index: int) -> Batch:
    return collate(features, features.train, np.array(index))


@pytest.mark.parametrize(
    ("name", "audio_dim", "vision_dim", "text", "total"),
    [
        ("mosi", 74, 47, True, 186_585_724),
        ("mosei", 74, 35, True, 186_576_496),
        ("mosi", 74, None, True, None),
        ("mosi", None, None, True, None),
        ("mosi", 74, 47, False, None),
        ("mosi", 74, None, False, None),
    ],
)
def test_parameters_are_table_12s(
    name: str, audio_dim: int | None, vision_dim: int | None, text: bool, total: int | None
) -> None:
    """An absent modality has no branch, and the fusion is narrower by its width."""
    with torch.device("meta"):
        backbone = backbone_from_config(backbone_config("microsoft/deberta-v3-base")) if text else None
        dims: dict[str, Any] = {"audio_dim": audio_dim, "vision_dim": vision_dim}
        model = build_model(backbone, ModelConfig(), task="regression", half_range=3.0, **dims)
    absent = {"Text": not text, "Audio": audio_dim is None, "Vision": vision_dim is None}
    expected = {
        title: count
        for title, count in (TABLE_12["mosi"] | TABLE_12[name]).items()
        if not absent.get(title.partition(" ")[0])
    }
    expected["Fusion Layer"] = (3 - sum(absent.values())) * 768 * 768 + 768
    assert parameter_table(model) == list(expected.items())
    assert sum(p.numel() for p in model.parameters()) == sum(expected.values())
    assert total in (None, sum(expected.values()))


def forward_by_hand(model: Any, text_D: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> Tensor:
    """Eqs. 1-5 for one utterance whose modalities are all there."""
    parts = [text_D]
    for name, row_LX in (("vision", vision_LV), ("audio", audio_LA)):
        pooler, projection, norm = (model.get_submodule(f"{name}_{part}") for part in ("pooler", "projection", "norm"))
        strength_L = torch.exp(row_LX @ pooler.projection.weight[0])  # type: ignore[operator,union-attr]
        pooled_X = sum(s / strength_L.sum() * row for s, row in zip(strength_L, row_LX, strict=True))
        projected_D = projection.weight @ pooled_X + projection.bias  # type: ignore[operator]
        centred_D = projected_D - projected_D.mean()
        deviation = (centred_D.square().mean() + norm.eps).sqrt()  # type: ignore[operator]
        parts.append(centred_D / deviation * norm.weight + norm.bias)
    hidden = torch.cat(parts)
    for layer in (model.fusion, model.unified, model.head[0]):
        hidden = torch.relu(layer.weight @ hidden + layer.bias)  # type: ignore[operator,assignment]
    last = model.head[2]
    return 3.5 * torch.tanh(last.weight[0] @ hidden + last.bias[0])  # type: ignore[index,operator]


def test_forward_matches_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    """One padded batch against one utterance after another, whose rows are taken from the features."""
    split = tiny_features.train
    assert split.audio is not None and split.vision is not None
    whole = [i for i in range(48) if split.audio.lengths[i] and split.vision.lengths[i]][:6]
    model = regressor(backbone, tiny_features).eval().double()
    scores = model([some(tiny_features, *whole).to(torch.device("cpu"), torch.float64)], torch.arange(6))
    for score, index in zip(scores, whole, strict=True):
        token_L, audio_LA, vision_LV = (
            torch.from_numpy(ragged.values[ragged.offsets[index] : ragged.offsets[index + 1]].copy())
            for ragged in (split.tokens, split.audio, split.vision)
        )
        text_D = model.text_encoder.backbone(input_ids=token_L[None].long()).last_hidden_state[0, 0]
        by_hand = forward_by_hand(model, text_D, audio_LA.double(), vision_LV.double())
        torch.testing.assert_close(score, by_hand, rtol=1e-12, atol=1e-12)
    assert scores.std() > 1e-3


def test_slots_take_the_utterances_they_name(backbone: nn.Module, tiny_features: Features) -> None:
    """Counted through the batches, with repeats, in any order; the slots of one utterance score alike."""
    model = regressor(backbone, tiny_features).eval()
    batches = [some(tiny_features, 5, 6), some(tiny_features, 7)]
    each = torch.cat([model([batch], torch.arange(len(batch.token_BL))) for batch in batches])  # type: ignore[arg-type]
    slot_S = torch.tensor([2, 0, 2, 1])
    torch.testing.assert_close(model(batches, slot_S), each[slot_S])


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_slots_of_one_utterance_have_dropout_of_their_own(
    backbone: nn.Module, tiny_features: Features, task: Task
) -> None:
    model = regressor(backbone, tiny_features, task=task, fusion_dropout=0.5).train()
    scores = model([some(tiny_features, 5)], torch.zeros(4, dtype=torch.int64))
    assert len(set(scores.tolist())) == 4


def test_missing_sample_gives_a_zero_block(backbone: nn.Module, tiny_features: Features) -> None:
    """Train's utterance 2 has neither, 13 no audio, 3 all: vision lies before audio, as in Table 12."""
    split = tiny_features.train
    assert split.audio is not None and split.vision is not None
    lengths = [(bool(split.vision.lengths[i]), bool(split.audio.lengths[i])) for i in (2, 13, 3)]
    assert lengths == [(False, False), (True, False), (True, True)]
    model = regressor(backbone, tiny_features).eval()
    vector_BW = model.encode(some(tiny_features, 2, 13, 3))
    assert vector_BW.shape == (3, 96)
    filled = [[bool((block != 0).any()) for block in vector.split(32)] for vector in vector_BW]
    assert filled == [[True, False, False], [True, True, False], [True, True, True]]
    model.score(vector_BW).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()
    model.score(model.encode(some(tiny_features, 2))).sum().backward()
    assert all((p.grad == 0).all() for name, p in model.named_parameters() if name.startswith("audio"))


def test_batches_with_fewer_or_more_modalities_than_the_model(backbone: nn.Module, tiny_features: Features) -> None:
    seen = dataclasses.replace(tiny_features, train=tiny_features.train.only("text+vision"))
    with pytest.raises(ValueError, match="the batch has no audio"):
        regressor(backbone, tiny_features).encode(some(seen, 0, 1))
    model = regressor(backbone, seen).eval()
    assert torch.equal(model.encode(some(tiny_features, 3)), model.encode(some(seen, 3)))


def test_modality_dropout_drops_audio_and_vision_slot_by_slot(backbone: nn.Module, tiny_features: Features) -> None:
    model = regressor(backbone, tiny_features, modality_dropout=0.25)
    vector_SW = torch.ones(4000, 96)
    torch.manual_seed(0)
    kept = model._drop_modalities(vector_SW)
    assert set(kept.unique().tolist()) == {0, 1}
    text, vision, audio = kept.split(32, dim=1)
    assert bool(text.all())
    for block in (vision, audio):
        assert torch.equal(block.amin(1), block.amax(1)), "a modality goes as a whole"
        # Four standard deviations of 4,000 draws.
        assert block[:, 0].mean().item() == pytest.approx(0.75, abs=4 * (0.25 * 0.75 / 4000) ** 0.5)
    both = (vision[:, 0] * audio[:, 0]).mean().item()
    assert both == pytest.approx(0.75**2, abs=4 * (0.75**2 * (1 - 0.75**2) / 4000) ** 0.5)


def test_modality_dropout_acts_in_training_alone(backbone: nn.Module, tiny_features: Features) -> None:
    model = regressor(backbone, tiny_features, modality_dropout=0.9, fusion_dropout=0.0, unified_dropout=0.0)
    vector_SW = model.encode(some(tiny_features, 3)).detach().repeat(50, 1)
    assert len(set(model.eval().score(vector_SW).tolist())) == 1
    assert len(set(model.train().score(vector_SW).tolist())) > 1


@pytest.mark.parametrize(("half_range", "reach"), [(3.0, 3.5), (1.0, 3.5 / 3), (2.0, 7 / 3)])
def test_scores_stay_within_the_scaled_tanh(
    backbone: nn.Module, tiny_features: Features, half_range: float, reach: float
) -> None:
    model = regressor(backbone, tiny_features, half_range=half_range).eval()
    vector_SW = torch.randn(200, 96) * 1e4
    scores = model.score(vector_SW)
    assert scores.abs().max().item() == pytest.approx(reach, rel=1e-6)
    assert scores.abs().max().item() <= reach * (1 + 1e-6)
    assert regressor(backbone, tiny_features, output_scale=7.0).output_scale == 7.0


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_autocast_gives_equal_scores_to_no_two_utterances(
    backbone: nn.Module, tiny_features: Features, task: Task
) -> None:
    """It covers the text encoder alone: a bfloat16 score near 2 moves in steps of 1/64, wider than small margins."""
    model = regressor(backbone, tiny_features, task=task, text_vector="mean").eval()
    given, slot_S = [some(tiny_features, *range(48))], torch.arange(48)
    exact = model(given, slot_S)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(given, slot_S)
        vector_SW = model.encode(given[0])
        assert torch.equal(model.score(vector_SW), scores)
    assert scores.dtype == vector_SW.dtype == torch.float32
    assert torch.equal(model.score(vector_SW), scores)
    assert not torch.equal(scores, exact)
    assert len(scores.unique()) == len(exact.unique()) == 48
    result, expected = (
        split_metrics(scored.detach().double().numpy(), tiny_features.train.label_N, protocol="mosi", limit=3.0)
        for scored in (scores, exact)
    )
    assert result["pairwise_acc"] == pytest.approx(expected["pairwise_acc"], abs=0.01)
