from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from grcf_ray.config import FeatureConfig, ModelConfig, RunConfig, build_config, flatten
from grcf_ray.data.batches import collate
from grcf_ray.data.features import Features
from grcf_ray.data.schema import TableInfo
from grcf_ray.data.store import DatasetStore, write_store
from grcf_ray.errors import ConfigError, DataError
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.train import assemble
from grcf_ray.train.assemble import (
    initial_model,
    prepare_features,
    pretrained_backbone,
    select_modalities,
)
from grcf_ray.train.stage import predict


@pytest.fixture
def config(tiny_backbone: Path) -> RunConfig:
    return build_config({"model.backbone": str(tiny_backbone), "model.text_vector": "mean"})


def frozen(config: RunConfig, layers: int | str, **model: Any) -> RunConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, frozen_layers=layers, **model))


@pytest.mark.parametrize("text_vector", ["cls", "mean"])
@pytest.mark.parametrize("layers", [1, 2, "all"])
def test_frozen_features_score_as_the_whole_model(
    tiny_store: DatasetStore, config: RunConfig, layers: int | Literal["all"], text_vector: str
) -> None:
    settings = frozen(config, layers, text_vector=text_vector)
    whole = prepare_features(tiny_store, frozen(config, 0))
    cut = prepare_features(tiny_store, settings)
    assert (cut.train.hidden is None, cut.train.vector_ND is None) == ((True, False) if layers != 1 else (False, True))
    model = initial_model(settings.model, cut, seed=1)
    for split in ("train", "valid"):
        scores = [
            predict(model, features, getattr(features, split), device=torch.device("cpu"), token_budget=100)
            for features in (whole, cut)
        ]
        np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=2e-6)
        assert np.ptp(scores[0]) > 0.01


def test_a_frozen_encoder_gives_states_to_a_model_that_reads_them(tiny_store: DatasetStore, config: RunConfig) -> None:
    scores = []
    for layers in (0, 1, "all"):
        settings = build_config(flatten(frozen(config, layers)) | {"model.name": "ef-lstm"})
        features = prepare_features(tiny_store, settings)
        assert (features.train.hidden is not None, features.train.vector_ND) == (layers != 0, None)
        model = initial_model(settings.model, features, seed=1)
        device = torch.device("cpu")
        scores.append(predict(model, features, features.valid, device=device, token_budget=64))
    for frozen_scores in scores[1:]:
        np.testing.assert_allclose(frozen_scores, scores[0], atol=1e-5)
    assert np.ptp(scores[0]) > 1e-4


@pytest.mark.parametrize("layers", [1, "all"])
def test_frozen_features_are_computed_once(
    tiny_store: DatasetStore, config: RunConfig, monkeypatch: pytest.MonkeyPatch, layers: int | str
) -> None:
    first = prepare_features(tiny_store, frozen(config, layers))

    def unwanted(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(assemble, "_frozen_hidden", unwanted)
    monkeypatch.setattr(assemble, "text_vectors", unwanted)
    second = prepare_features(tiny_store, frozen(config, layers))
    array = second.train.hidden.values if second.train.hidden is not None else second.train.vector_ND
    before = first.train.hidden.values if first.train.hidden is not None else first.train.vector_ND
    assert array is not None and before is not None
    np.testing.assert_array_equal(array, before)
    assert type(array) is np.ndarray and not array.flags.writeable
    other = "cls" if layers == "all" else "mean"
    with pytest.raises(AssertionError, match="computed again"):
        prepare_features(tiny_store, frozen(config, 2 if layers == 1 else "all", text_vector=other))


def test_frozen_features_of_other_weights_are_others(
    tiny_store: DatasetStore, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same name may stand for another file of weights by tomorrow."""
    first = prepare_features(tiny_store, frozen(config, "all"))
    changed = pretrained_backbone(config.model.backbone)
    pretrained_backbone.cache_clear()
    with torch.no_grad():
        next(changed.parameters()).add_(0.5)
    monkeypatch.setattr(assemble, "pretrained_backbone", lambda name: changed)
    second = prepare_features(tiny_store, frozen(config, "all"))
    assert second.key == first.key
    assert first.train.vector_ND is not None and second.train.vector_ND is not None
    assert not np.allclose(first.train.vector_ND, second.train.vector_ND)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_split_of_equal_labels_is_refused(
    tiny_store: DatasetStore, config: RunConfig, tmp_path: Path, split: str
) -> None:
    tables = {name: tiny_store.read(name) for name in ("train", "valid", "test")}
    place = tables[split].column_names.index("label")
    label = pa.array([1.0] * len(tables[split]), pa.float32())
    tables[split] = tables[split].set_column(place, tables[split].schema.field(place), label)
    table = pa.concat_tables(tables.values())
    store = write_store(tmp_path / "own", table, TableInfo.describe(table, name="own", label_range=(-3, 3)))
    with pytest.raises(DataError, match=f"all labels of the {split} split are equal"):
        prepare_features(store, config)


def roberta_of(folder: Path, tiny_backbone: Path, *, limit: float) -> Path:
    """RoBERTa of 26 positions, of which texts can have 24, beside a tokenizer that says it takes `limit` subwords."""
    tokenizer = load_tokenizer(str(tiny_backbone))
    tokenizer.model_max_length = limit  # type: ignore[assignment]
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    described = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=26, pad_token_id=1, **sizes)
    RobertaModel(described).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("limit", [26, 1e30])
def test_positions_are_counted_before_anything_is_trained(
    tiny_store: DatasetStore, config: RunConfig, tiny_backbone: Path, tmp_path: Path, limit: float
) -> None:
    folder = str(roberta_of(tmp_path / "roberta", tiny_backbone, limit=limit))
    custom = frozen(config, 0, backbone=folder)
    fits, long = (dataclasses.replace(custom, features=FeatureConfig(max_tokens=tokens)) for tokens in (24, 25))
    prepare_features(tiny_store, fits)
    with pytest.raises(ConfigError, match=r"max_tokens = 25: .*max_tokens=24"):
        prepare_features(tiny_store, long)
    pretrained_backbone.cache_clear()


@pytest.mark.parametrize("text_vector", ["cls", "mean", "last"])
def test_a_tokenizer_without_padding_or_ends(
    tiny_store: DatasetStore,
    config: RunConfig,
    tiny_backbone: Path,
    tmp_path: Path,
    text_vector: Literal["cls", "mean", "last"],
) -> None:
    """GPT-2: the first state is the same for all texts that begin alike, and is refused before any trial."""
    words = sorted(load_tokenizer(str(tiny_backbone)).get_vocab())
    rules = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    rules.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=rules, unk_token="[UNK]").save_pretrained(tmp_path)
    GPT2Model(GPT2Config(vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=128)).save_pretrained(
        tmp_path
    )
    custom = frozen(config, 0, backbone=str(tmp_path), text_vector=text_vector)
    table = tiny_store.read("train")
    place = table.column_names.index("text")
    nothing = pa.array(["", *table["text"].to_pylist()[1:]])
    table = pa.concat_tables([table.set_column(place, table.schema.field("text"), nothing), tiny_store.read("valid")])
    store = write_store(tmp_path / "store", table, TableInfo.describe(table, name="own", label_range=(-3, 3)))
    if text_vector == "cls":
        with pytest.raises(ConfigError, match="use mean or last"):
            prepare_features(store, custom)
    else:
        features = prepare_features(store, custom)
        assert features.train.tokens is not None
        assert features.train.tokens.lengths.min() == 1
        model = initial_model(custom.model, features, seed=1)
        score_N = predict(model, features, features.train, device=torch.device("cpu"), token_budget=100)
        assert np.isfinite(score_N).all()
    pretrained_backbone.cache_clear()


def test_template_is_never_trained(tiny_features: Features, config: RunConfig) -> None:
    backbone = pretrained_backbone(config.model.backbone)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    for layers in (0, 1, "all"):
        model = initial_model(frozen(config, layers).model, tiny_features, seed=1)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1)
    assert pretrained_backbone(config.model.backbone) is backbone
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_initial_weights_are_the_seeds(tiny_features: Features, config: RunConfig) -> None:
    first, same, other = (initial_model(config.model, tiny_features, seed=seed).state_dict() for seed in (1, 1, 2))
    fresh = {name for name in first if not name.startswith("text_encoder.") and "norm" not in name}
    for name, tensor in first.items():
        assert torch.equal(tensor, same[name])
        assert torch.equal(tensor, other[name]) == (name not in fresh), name


@pytest.mark.parametrize(
    ("modalities", "audio", "vision"),
    [
        *(("all", 5, 3), ("text", None, None), ("text+audio", 5, None), ("text+vision", None, 3)),
        *(("audio", 5, None), ("vision", None, 3), ("audio+vision", 5, 3)),
    ],
)
def test_modalities_are_selected(
    tiny_features: Features, config: RunConfig, modalities: Any, audio: int | None, vision: int | None
) -> None:
    features = select_modalities(tiny_features, modalities)
    assert (features.audio_dim, features.vision_dim) == (audio, vision)
    assert (features.valid.audio is None, features.valid.vision is None) == (audio is None, vision is None)
    if modalities != "all":
        with pytest.raises(ConfigError, match=r"modalities = \S+: the data have no \w+"):
            select_modalities(select_modalities(tiny_features, "text"), "text+audio")
    model = initial_model(dataclasses.replace(config.model, modalities=modalities), features, seed=1)
    wanted = {name: dim for name, dim in (("vision", vision), ("audio", audio)) if dim is not None}
    assert model.modality_dims == wanted
    sees_text = modalities == "all" or "text" in modalities
    assert (features.train.tokens is not None, model.text_encoder is not None) == (sees_text, sees_text)
    score_N = predict(model, features, features.valid, device=torch.device("cpu"), token_budget=20)
    assert np.ptp(score_N) > 0.01


def test_a_model_without_text_needs_no_encoder(tiny_store: DatasetStore) -> None:
    """Neither its weights nor its tokenizer; features without text make no model with it."""
    config = build_config({"model.backbone": "no/such", "model.modalities": "audio+vision", "model.textless_width": 24})
    features = prepare_features(tiny_store, config)
    assert features.train.tokens is None
    seen = select_modalities(features, "audio+vision")
    model = initial_model(config.model, seen, seed=1)
    assert (model.width, model.encode(collate(seen, seen.train, np.arange(3))).shape) == (24, (3, 48))
    for modalities in ("all", "text", "text+audio"):
        with pytest.raises(ConfigError, match="have no text"):
            select_modalities(features, modalities)
    two_classes = dataclasses.replace(features, task="classification")
    with pytest.raises(ConfigError, match="classification needs the text"):
        select_modalities(two_classes, "audio")


def test_initial_weights_do_not_depend_on_whether_the_backbone_was_loaded_before(
    tiny_backbone: Path, tiny_features: Features, tmp_path: Path
) -> None:
    """Loading a checkpoint that lacks weights draws random ones, from the generator that the head's come from."""
    folder = tmp_path / "lacking"
    shutil.copytree(tiny_backbone, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    assert any("pooler" in name for name in weights)
    config = ModelConfig(backbone=str(folder))
    pretrained_backbone.cache_clear()
    cold = initial_model(config, tiny_features, seed=1).state_dict()
    warm = initial_model(config, tiny_features, seed=1).state_dict()
    assert all(torch.equal(cold[name], warm[name]) for name in cold)
