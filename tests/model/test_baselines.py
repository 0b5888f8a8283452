"""Tests that every model must pass. A new model is included without a change here."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import rivals
import torch
from torch import Tensor, nn

from grcf_ray.config import NoOptions, build_config, flatten
from grcf_ray.data.batches import Batch
from grcf_ray.data.features import Features
from grcf_ray.model import baselines
from grcf_ray.model.card import card_of, search_entries
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.plugins import model_names
from grcf_ray.search.space import dimension_of
from grcf_ray.storage import storage_path
from grcf_ray.train.checkpoint import checkpoint_tensors, read_checkpoint, write_checkpoint
from grcf_ray.train.export import load_model, save_model

NAMES = model_names()
TEXTLESS = [name for name in NAMES if not card_of(name).needs_text]
LEARNERS = [(name, task) for name in NAMES for task in card_of(name).networks]
_EVERY = pytest.mark.parametrize("name", NAMES)


def scores_of(model: Any, batch: Batch) -> Tensor:
    scores: Tensor = model([batch], torch.arange(len(batch)))
    return scores


@_EVERY
def test_a_card_is_complete(name: str) -> None:
    card = card_of(name)
    assert all((card.title, card.paper, card.year, card.venue, card.networks))
    assert set(card.networks) <= {"regression", "classification"}
    assert set(card.search) <= {field.name for field in dataclasses.fields(card.options)}
    assert len(card.search) <= 6
    # The published defaults are where a search starts.
    starts = {path: dimension_of(path, entry).start for path, entry in search_entries(name).items()}
    assert starts == {f"{name}.{option}": getattr(card.options(), option) for option in card.search}
    assert (card.options is NoOptions) == (not flatten(card.options()))


@_EVERY
def test_a_model_is_chosen_by_its_name(name: str) -> None:
    config = build_config({"model.name": name})
    assert isinstance(config.model.options, card_of(name).options)
    assert build_config(flatten(config)) == config


@_EVERY
def test_what_the_mask_leaves_out_changes_nothing(name: str, backbone: nn.Module, tiny_features: Features) -> None:
    """Utterances 2 and 3 lack a modality; the padding has other values than zero."""
    model, batch = rivals.built(name, backbone), rivals.some(tiny_features, *range(8))
    assert not batch.audio_mask_BL.any(1).all() or not batch.vision_mask_BL.any(1).all()  # type: ignore[union-attr]
    noisy = dataclasses.replace(
        batch,
        audio_BLA=batch.audio_BLA + 9 * ~batch.audio_mask_BL[..., None],  # type: ignore[index]
        vision_BLV=batch.vision_BLV - 9 * ~batch.vision_mask_BL[..., None],  # type: ignore[index]
    )
    scores = scores_of(model, batch)
    torch.testing.assert_close(scores_of(model, noisy), scores, rtol=1e-12, atol=1e-12)
    scores.sum().backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@_EVERY
def test_padding_and_order_change_nothing(name: str, backbone: nn.Module, tiny_features: Features) -> None:
    model, order = rivals.built(name, backbone), torch.randperm(8).tolist()
    together = scores_of(model, rivals.some(tiny_features, *range(8)))
    alone = torch.cat([scores_of(model, rivals.some(tiny_features, index)) for index in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
    wider = dataclasses.replace(tiny_features, length_multiple=16)
    torch.testing.assert_close(scores_of(model, rivals.some(wider, *order)), together[order], rtol=1e-10, atol=1e-10)


@_EVERY
def test_sequences_of_length_1(name: str, backbone: nn.Module) -> None:
    rows = torch.randn(2, 1, 5).double(), torch.randn(2, 1, 3).double()
    scores = scores_of(rivals.built(name, backbone), rivals.batch_of(torch.tensor([[7], [8]]), *rows))
    assert scores.isfinite().all()
    assert scores[0] != scores[1]


@_EVERY
@pytest.mark.parametrize("dims", [(None, None), (5, None), (None, 3)])
def test_a_modality_that_the_data_lack_has_no_branch(
    name: str, dims: tuple[int | None, int | None], backbone: nn.Module, tiny_features: Features
) -> None:
    model = rivals.built(name, backbone, dims={"audio_dim": dims[0], "vision_dim": dims[1]})
    absent = {name for name, dim in zip(("audio", "vision"), dims, strict=True) if dim is None}
    assert not [key for key, _ in model.named_parameters() if absent & {*re.split(r"\W|_", key)}]
    assert scores_of(model, rivals.some(tiny_features, *range(4))).std() > 0


@pytest.mark.parametrize("name", TEXTLESS)
def test_a_model_without_text(name: str, tiny_features: Features) -> None:
    model = rivals.built(name, None)
    batch = dataclasses.replace(rivals.some(tiny_features, *range(8)), token_BL=None, mask_BL=None)
    assert scores_of(model, batch).std() > 0


@pytest.mark.parametrize(("name", "task"), LEARNERS)
def test_sixteen_utterances_are_learnt(name: str, task: Any, backbone: nn.Module, tiny_features: Features) -> None:
    """To the label in regression, to the right side in classification. The text encoder does not learn."""
    batch = rivals.some(tiny_features, *range(16)).to(torch.device("cpu"), torch.float32)
    label_B = torch.from_numpy(tiny_features.train.label_N[:16].astype("float32"))
    dropouts = {field: 0.0 for field in ("dropout",) if hasattr(card_of(name).options(), field)}
    model = rivals.built(name, backbone, task=task, frozen_layers="all", **dropouts).float().train()
    batch = dataclasses.replace(batch, hidden_BLD=model.text_encoder.frozen_hidden(batch), token_BL=None)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    enough = 0.15 if task == "regression" else 0.01
    error = torch.tensor(torch.inf)
    for _ in range(400):
        scores = scores_of(model, batch)
        if task == "regression":
            loss = error = (scores - label_B).abs().mean()
        else:
            loss = nn.functional.binary_cross_entropy_with_logits(scores, (label_B > 0).float())
            error = ((scores > 0) != (label_B > 0)).float().mean()
        if error < enough:
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert error < enough


@_EVERY
def test_checkpoints_hold_the_model(name: str, backbone: nn.Module, tiny_features: Features, tmp_path: Path) -> None:
    model, other = (rivals.built(name, backbone, frozen_layers=layers) for layers in (1, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    optimizer = torch.optim.AdamW(model.parameters())
    tensors = {key: value.clone() for key, value in checkpoint_tensors(model, optimizer).items()}
    write_checkpoint(tmp_path / "one.safetensors", tensors, {"epoch": 1})
    for parameter, same in zip(other.parameters(), model.parameters(), strict=True):
        if not parameter.requires_grad:
            parameter.data.copy_(same.data)
    read_checkpoint(storage_path(tmp_path / "one.safetensors")).load_into(other)
    batch = rivals.some(tiny_features, *range(4))
    assert torch.equal(scores_of(model, batch), scores_of(other, batch))


@_EVERY
def test_a_saved_model_gives_the_same_scores(
    name: str, backbone: nn.Module, tiny_backbone: Path, tiny_features: Features, tmp_path: Path
) -> None:
    config = build_config({"model.name": name, "model.backbone": str(tiny_backbone), "model.text_vector": "mean"})
    dims = {"audio_dim": 5, "vision_dim": 3, "n_train": len(tiny_features.train)}
    model = rivals.built(name, backbone, dims=dims).float()
    save_model(
        tmp_path / "saved",
        model,
        load_tokenizer(str(tiny_backbone)),
        tiny_features,
        config,
        label_range=(-3.0, 3.0),
        protocol="mosi",
        lowercase=False,
    )
    saved = load_model(tmp_path / "saved")
    assert type(saved.model) is type(model)
    batch = rivals.some(tiny_features, *range(4)).to(torch.device("cpu"), torch.float32)
    assert torch.equal(scores_of(saved.model, batch), scores_of(model, batch))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ithp"])
def test_a_label_of_two_modalities_needs_both(name: str, backbone: nn.Module) -> None:
    """The label is the product of a sign in the text and a sign in the audio: neither says anything alone.

    ITHP scores the text alone; audio and vision only train it.
    """
    generator = torch.Generator().manual_seed(1)
    sign_N2 = torch.randint(0, 2, (256, 2), generator=generator) * 2.0 - 1
    label_N = 2 * sign_N2.prod(1)
    hidden = torch.randn(256, 3, 32, generator=generator) + 2 * sign_N2[:, :1, None]
    audio = torch.randn(256, 3, 5, generator=generator) + 2 * sign_N2[:, 1:, None]
    real = torch.ones(256, 3, dtype=torch.bool)
    small = {"text_width": 16, "other_width": 8, "fusion_width": 16} if name == "tfn" else {}
    if hasattr(card_of(name).options(), "dropout"):
        small["dropout"] = 0
    errors = {}
    for dim in (5, None):
        dims: dict[str, int | None] = {"audio_dim": dim, "vision_dim": None}
        model = rivals.built(name, backbone, dims=dims, frozen_layers="all", **small).float().train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
        seen = slice(0, 192)
        for _ in range(120):
            batch = Batch(None, real[seen], hidden[seen], None, audio[seen], real[seen], None, None)
            loss = (scores_of(model, batch) - label_N[seen]).abs().mean()
            if loss < 0.3:
                break
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        new = slice(192, 256)
        batch = Batch(None, real[new], hidden[new], None, audio[new], real[new], None, None)
        errors[dim] = (scores_of(model.eval(), batch) - label_N[new]).abs().mean().item()
    assert errors[5] < 0.5 * errors[None]


def test_the_example_of_the_documentation_is_a_model(
    backbone: nn.Module, tiny_features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python model\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mean_rows.py").write_text(example, encoding="utf-8")
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    model_names.cache_clear()
    try:
        assert model_names() == (NAMES[0], *sorted([*NAMES[1:], "mean-rows"]))
        config = build_config({"model.name": "mean-rows", "mean-rows.width": 8})
        assert flatten(config)["mean-rows.width"] == 8
        test_a_card_is_complete("mean-rows")
        test_what_the_mask_leaves_out_changes_nothing("mean-rows", backbone, tiny_features)
        test_padding_and_order_change_nothing("mean-rows", backbone, tiny_features)
        test_sixteen_utterances_are_learnt("mean-rows", "regression", backbone, tiny_features)
    finally:
        sys.modules.pop("grcf_ray.model.baselines.mean_rows", None)
        model_names.cache_clear()
