from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.errors import ConfigError
from grcf_ray.model import text_encoder
from grcf_ray.model.text_encoder import (
    TextEncoder,
    backbone_config,
    backbone_from_config,
    layers_of,
    load_backbone,
    load_tokenizer,
    position_limit,
    resolve_backbone,
    size_faults,
)

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
DEBERTA = SIZES | {
    "model_type": "deberta-v2",
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "layer_norm_eps": 1e-7,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": SIZES | {"model_type": "bert"},
    "deberta-v2": DEBERTA,
    "roberta": SIZES | {"model_type": "roberta", "pad_token_id": 1},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 40,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 2,
        "hidden_dim": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    },
    "albert": SIZES | {"model_type": "albert", "embedding_size": 16},
}
SPLITTABLE = ["bert", "deberta-v2", "roberta", "distilbert"]
NOTHING = Batch(None, None, None, None, None, None, None, None)


def backbone(kind: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return backbone_from_config(CONFIGS[kind] | changes).double()


def batch(pad: int | None = 0) -> Batch:
    """Texts of 7, 4 and 1 subwords."""
    token_BL = torch.randint(5, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    mask_BL = torch.arange(7) < torch.tensor([[7], [4], [1]])
    return dataclasses.replace(NOTHING, token_BL=token_BL.where(mask_BL, pad or 0), mask_BL=mask_BL)


def frozen_batch(encoder: TextEncoder, given: Batch) -> Batch:
    """The batch as a run with frozen layers has it, computed once and without dropout."""
    assert given.token_BL is not None and given.mask_BL is not None
    if encoder.n_frozen == encoder.n_layers:
        with torch.no_grad():
            return dataclasses.replace(NOTHING, vector_BD=TextEncoder.forward(encoder, given))
    hidden_BLD = encoder.frozen_hidden(given.token_BL, given.mask_BL)
    return dataclasses.replace(NOTHING, hidden_BLD=hidden_BLD, mask_BL=given.mask_BL)


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("kind", SPLITTABLE)
def test_text_vectors_are_the_first_state_and_the_masked_mean(kind: str) -> None:
    model = backbone(kind).eval()
    given = batch(model.config.pad_token_id)  # type: ignore[union-attr,arg-type]
    assert given.token_BL is not None and given.mask_BL is not None
    hidden_BLD = model(input_ids=given.token_BL, attention_mask=given.mask_BL.long()).last_hidden_state
    torch.testing.assert_close(TextEncoder(model, "cls")(given), hidden_BLD[:, 0], rtol=0, atol=0)
    means = [hidden[mask].mean(0) for hidden, mask in zip(hidden_BLD, given.mask_BL, strict=True)]
    torch.testing.assert_close(TextEncoder(model, "mean")(given), torch.stack(means))


@pytest.mark.parametrize("kind", CONFIGS)
def test_subwords_looked_up_together_give_the_same_vectors_and_gradients(kind: str) -> None:
    """Also where positions follow from the ids, as RoBERTa's do; the table's own call is as it was afterwards."""
    encoder = TextEncoder(backbone(kind), "mean").eval()
    given = batch(encoder.backbone.config.pad_token_id)  # type: ignore[union-attr,arg-type]
    assert given.token_BL is not None and given.mask_BL is not None
    parts = [
        dataclasses.replace(NOTHING, token_BL=given.token_BL[rows], mask_BL=given.mask_BL[rows])
        for rows in (slice(0, 1), slice(1, 3))
    ]
    together = encoder.looked_up(parts)
    assert all(part.word_BLD is not None for part in together)
    weight_D = torch.linspace(-1, 1, encoder.width, dtype=torch.float64)
    found = []
    for batches in (parts, together):
        encoder.zero_grad()
        vector_BD = torch.cat([encoder(one) for one in batches])
        (vector_BD @ weight_D).square().sum().backward()
        gradients = [p.grad.reshape(-1) for p in encoder.parameters() if p.grad is not None]
        found.append((vector_BD.detach(), torch.cat(gradients)))
    (apart, apart_gradient), (shared, shared_gradient) = found
    torch.testing.assert_close(shared, apart, rtol=0, atol=0)
    assert difference(shared_gradient, apart_gradient) < 1e-14
    torch.testing.assert_close(encoder(parts[0]), apart[:1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["xlnet", "longformer"])
def test_backbones_that_change_the_ids_look_them_up_themselves(kind: str) -> None:
    """XLNet turns them, Longformer fills them up; the texts of 3 by 3 subwords hide a turn from a look at the shape."""
    config: dict[str, Any] = SIZES | {"model_type": "longformer", "attention_window": 4, "pad_token_id": 1}
    if kind == "xlnet":
        config = {"model_type": kind, "vocab_size": 40, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}
    torch.manual_seed(0)
    encoder = TextEncoder(backbone_from_config(config).double(), "mean").eval()
    token_BL = torch.randint(5, 40, (6, 3), generator=torch.Generator().manual_seed(1))
    parts = [
        dataclasses.replace(NOTHING, token_BL=part, mask_BL=torch.ones_like(part, dtype=torch.bool))
        for part in (token_BL[:3], token_BL[3:])
    ]
    for apart, together in zip(parts, encoder.looked_up(parts), strict=True):
        torch.testing.assert_close(encoder(together), encoder(apart), rtol=0, atol=0)


def test_subwords_are_looked_up_apart_where_nothing_is_gained() -> None:
    encoder, given = TextEncoder(backbone("bert"), "mean"), batch()
    assert encoder.looked_up([given])[0] is given
    with torch.no_grad():
        assert encoder.looked_up([given, given])[0] is given
    frozen = TextEncoder(backbone("bert"), "mean", 1)
    assert frozen.looked_up([given, given])[0] is given
    hidden = frozen_batch(frozen, given)
    assert frozen.looked_up([hidden, hidden])[0] is hidden


@pytest.mark.parametrize("text_vector", ["cls", "mean"])
@pytest.mark.parametrize("kind", SPLITTABLE)
def test_padding_does_not_matter(kind: str, text_vector: Literal["cls", "mean"]) -> None:
    encoder = TextEncoder(backbone(kind), text_vector).eval()
    given = batch(encoder.backbone.config.pad_token_id)  # type: ignore[union-attr,arg-type]
    together = encoder(given)
    for row, length in enumerate((7, 4, 1)):
        assert given.token_BL is not None and given.mask_BL is not None
        alone = dataclasses.replace(
            NOTHING, token_BL=given.token_BL[row : row + 1, :length], mask_BL=given.mask_BL[row : row + 1, :length]
        )
        assert difference(together[row], encoder(alone)[0]) < 1e-12


@pytest.mark.parametrize("text_vector", ["cls", "mean"])
@pytest.mark.parametrize("frozen", [1, 2, "all"])
@pytest.mark.parametrize("kind", SPLITTABLE)
def test_frozen_layers_run_once_give_what_the_whole_encoder_gives(
    kind: str, frozen: int | Literal["all"], text_vector: Literal["cls", "mean"]
) -> None:
    model = backbone(kind)
    whole = TextEncoder(model, text_vector).eval()
    given = batch(model.config.pad_token_id)  # type: ignore[union-attr,arg-type]
    vectors = whole(given)
    encoder = TextEncoder(model, text_vector, frozen).eval()
    assert difference(encoder(frozen_batch(encoder, given)), vectors) < 1e-12
    assert difference(encoder(given), vectors) < 1e-12


@pytest.mark.parametrize("frozen", [0, 1, "all"])
@pytest.mark.parametrize("kind", SPLITTABLE)
def test_only_what_is_not_frozen_has_a_gradient(kind: str, frozen: int | Literal["all"]) -> None:
    encoder = TextEncoder(backbone(kind), "mean", frozen).train()
    path, _ = layers_of(encoder.backbone)
    trained = {
        name
        for name, _ in encoder.backbone.named_parameters()
        if frozen == 0 or (frozen == 1 and name.startswith((f"{path}.1.", f"{path}.2.")))
    }
    assert {name for name, p in encoder.backbone.named_parameters() if p.requires_grad} == trained
    given = batch(encoder.backbone.config.pad_token_id)  # type: ignore[union-attr,arg-type]
    if frozen == "all":
        assert not encoder(frozen_batch(encoder, given)).requires_grad
        return
    encoder(frozen_batch(encoder, given) if frozen else given).pow(2).sum().backward()
    assert {name for name, p in encoder.backbone.named_parameters() if p.grad is not None} == trained


@pytest.mark.parametrize("kind", SPLITTABLE)
def test_frozen_part_has_no_dropout_while_training(kind: str) -> None:
    rates = {"dropout": 0.5} if kind == "distilbert" else {"hidden_dropout_prob": 0.5}
    encoder = TextEncoder(backbone(kind, **rates), "cls", 1).train()
    given = batch(encoder.backbone.config.pad_token_id)  # type: ignore[union-attr,arg-type]
    first, second = frozen_batch(encoder, given), frozen_batch(encoder, given)
    assert first.hidden_BLD is not None and second.hidden_BLD is not None
    assert torch.equal(first.hidden_BLD, second.hidden_BLD)
    assert not torch.equal(encoder(first), encoder(first)), "the layers above have dropout"
    assert torch.equal(encoder.eval()(first), encoder(first))
    _, layers = layers_of(encoder.train().backbone)
    assert [layer.training for layer in layers] == [False, True, True]
    whole = TextEncoder(backbone(kind, **rates), "cls").train()
    assert all(module.training for module in whole.modules())


def test_frozen_layers_share_their_parameters_with_the_model() -> None:
    """The halves are views: what the optimizer changes, the next batch sees."""
    encoder = TextEncoder(backbone("bert"), "cls", 1).eval()
    given = frozen_batch(encoder, batch())
    before = encoder(given)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.1 if p.requires_grad else 0.0)
    assert difference(encoder(given), before) > 1e-3
    assert len(layers_of(encoder.backbone)[1]) == 3


def test_albert_can_be_frozen_whole_or_not_at_all() -> None:
    """Its layers are one, run several times."""
    with pytest.raises(ConfigError, match=r"model.frozen_layers = 1: AlbertModel has no layers of their own"):
        TextEncoder(backbone("albert"), "cls", 1)
    free = TextEncoder(backbone("albert"), "cls", 0).eval()
    frozen = TextEncoder(backbone("albert"), "cls", "all").eval()
    assert all(p.requires_grad for p in free.parameters())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert torch.equal(free(batch()), frozen(batch()))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        # A convolution beside the first layer, as in DeBERTa-v2-xlarge.
        ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}),
        # A projection between embeddings and layers, as in ELECTRA-small.
        ("bert", {"model_type": "electra", "embedding_size": 16}),
    ],
)
def test_backbone_that_is_no_plain_stack_can_be_frozen_whole_or_not_at_all(kind: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model.frozen_layers = 1: \w+ cannot be split between layers exactly"):
        TextEncoder(backbone(kind, **changes), "cls", 1)
    whole = TextEncoder(backbone(kind, **changes), "cls").eval()(batch())
    for frozen in (3, "all"):
        encoder = TextEncoder(backbone(kind, **changes), "cls", frozen).eval()  # type: ignore[arg-type]
        assert torch.equal(encoder(batch()), whole)


def test_more_frozen_layers_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"model.frozen_layers = 4: the backbone has 3 layers; give 0 to 3, or all"):
        TextEncoder(backbone("bert"), "cls", 4)


def test_backbone_has_no_pooler(tiny_backbone: Path) -> None:
    assert not any("pooler" in name for name, _ in backbone("bert").named_parameters())
    assert not any("pooler" in name for name, _ in load_backbone(str(tiny_backbone)).named_parameters())


def test_local_folder_is_loaded(tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_backbone(str(tiny_backbone))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    monkeypatch.chdir(tiny_backbone.parent)
    again = load_backbone("./tiny-bert").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    monkeypatch.setenv("HOME", str(tiny_backbone.parent))
    assert resolve_backbone("~/tiny-bert") == str(tiny_backbone)
    assert load_tokenizer("~/tiny-bert").pad_token_id == 0


def test_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the folder has no config.json, so it is no Hugging Face model"):
        load_backbone(str(tmp_path))


def test_folder_without_weights_or_tokenizer(tiny_backbone: Path, tmp_path: Path) -> None:
    shutil.copyfile(tiny_backbone / "config.json", tmp_path / "config.json")
    with pytest.raises(ConfigError, match=f"backbone {tmp_path} cannot be loaded: "):
        load_backbone(str(tmp_path))
    with pytest.raises(ConfigError, match=f"backbone {tmp_path} has no usable tokenizer: "):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("damage", ["truncated weights", "not JSON", "no model_type", "other sizes"])
def test_damaged_folder(tiny_backbone: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "backbone"
    shutil.copytree(tiny_backbone, folder)
    config = json.loads((folder / "config.json").read_text())
    if damage == "truncated weights":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif damage == "not JSON":
        (folder / "config.json").write_text("{")
    elif damage == "no model_type":
        (folder / "config.json").write_text("{}")
    else:
        (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(ConfigError, match=f"backbone {folder} cannot be loaded: "):
        load_backbone(str(folder))


@pytest.mark.parametrize("name", ["./nosuch", "/nosuch", "~/nosuch", "a/b/c", "my model", "nosuch/"])
def test_name_that_can_be_no_hub_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"backbone {name}: no such folder"):
        resolve_backbone(name)


def test_backbone_that_is_not_here_while_offline() -> None:
    """HF_HUB_OFFLINE is set for all tests: no connection is tried."""
    with pytest.raises(ConfigError, match="not on this machine, and the model hub cannot be reached") as caught:
        load_backbone("nosuch/backbone")
    assert "hf download nosuch/backbone" in str(caught.value)


def test_backbone_that_is_not_here_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection is tried, for a few seconds at most, rather than the hub client's many."""
    tried = []

    def refused(address: tuple[str, int], timeout: float) -> None:
        tried.append((address, timeout))
        raise OSError("unreachable")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(text_encoder.socket, "create_connection", refused)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="the model hub cannot be reached"):
        load_backbone("nosuch/backbone")
    assert tried == [((urlparse(constants.ENDPOINT).hostname, 443), 5)]


def test_backbone_is_left_to_the_hub_where_it_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(text_encoder, "_reachable", lambda endpoint: True)
    assert resolve_backbone("nosuch/backbone") == "nosuch/backbone"


def test_shipped_configuration_is_deberta_v3_bases() -> None:
    config = backbone_config("microsoft/deberta-v3-base")
    with torch.device("meta"):
        model = backbone_from_config(config)
    assert sum(p.numel() for p in model.parameters()) == 183_831_552
    assert len(layers_of(model)[1]) == 12


def test_a_folders_own_configuration_comes_before_the_shipped_one(tiny_backbone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deberta-v3-base"
    shutil.copytree(tiny_backbone, folder)
    assert backbone_config(str(folder))["model_type"] == "bert"


CODE = """
from pathlib import Path

Path({trace!r}).write_text("run")
from transformers import BertConfig as Config, BertModel as Model, BertTokenizerFast as Tokenizer
"""


@pytest.fixture
def foreign(tiny_backbone: Path, tmp_path: Path) -> Path:
    """The tiny backbone as somebody hands it on, with a module that leaves `trace` beside it when it is imported."""
    folder = Path(shutil.copytree(tiny_backbone, tmp_path / "foreign"))
    (folder / "code.py").write_text(CODE.format(trace=str(tmp_path / "trace")))
    return folder


def add(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize("known", [True, False])
def test_code_that_comes_with_a_backbone_is_never_run(
    foreign: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked either. Where transformers has a class for it, that one is taken; else it is refused."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    own: dict[str, Any] = {} if known else {"model_type": "own"}
    parts = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": ["code.Tokenizer", None]}
    add(foreign / "config.json", auto_map=parts, custom_pipelines={"own": {"impl": "code.Model"}}, **own)
    own = {} if known else {"tokenizer_class": "OwnTokenizer"}
    add(foreign / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", None]}, **own)
    for load in (load_backbone, load_tokenizer, backbone_config):
        if known:
            load(str(foreign))
        else:
            with pytest.raises(ConfigError, match=f"backbone {foreign} "):
                load(str(foreign))
    assert not (foreign.parent / "trace").exists()


def test_a_configuration_names_no_code(tiny_backbone: Path) -> None:
    """What chooses kernels, which are code from a hub, goes too, however deep."""
    config = json.loads((tiny_backbone / "config.json").read_text())
    hostile = {
        "auto_map": {"AutoModel": "code.Model"},
        "attn_implementation": "somebody/kernel",
        "_attn_implementation": "somebody/kernel",
        "quantization_config": {"quant_method": "own"},
        "_name_or_path": "somebody/model",
    }
    # Labels have numbers for keys, once transformers has read them.
    config = {**config, **hostile, "task_specific_params": hostile, "id2label": {0: "bad", 1: "good"}}
    model = backbone_from_config(config)
    kept: Any = model.config
    assert hostile.keys() & kept.to_dict().keys() <= {"_name_or_path"}
    assert kept._attn_implementation in ("sdpa", "eager")
    assert "somebody" not in json.dumps(kept.to_dict())


def test_pickled_weights_of_a_folder_are_refused(foreign: Path) -> None:
    """Before they are opened: these would leave a trace."""
    (foreign / "model.safetensors").unlink()
    (foreign / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ConfigError, match=r"its weights are pickled \(pytorch_model.bin\)"):
        load_backbone(str(foreign))


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 10**6},
        {"num_hidden_layers": 10**5},
        {"vocab_size": 10**9},
        {"max_position_embeddings": 10**9},
        {"num_labels": 10**8},
        {"text_config": {"num_layers": 10**5}},
        {"block_sizes": [1, 10**5]},
    ],
)
def test_sizes_that_the_weights_cannot_have(foreign: Path, sizes: dict[str, Any]) -> None:
    """Refused before anything is built: building these would take minutes, or all memory."""
    add(foreign / "config.json", **sizes)
    for load in (load_backbone, load_tokenizer, backbone_config):
        with pytest.raises(ConfigError, match=r"= .* does not fit the weights; it can be \d+ at most"):
            load(str(foreign))


def test_real_sizes_fit() -> None:
    assert size_faults(backbone_config("microsoft/deberta-v3-base"), None) == []
    assert size_faults({"num_hidden_layers": True, "rope_theta": 1e9}, {"a": (2, 3)}) == []
    assert size_faults({"hidden_size": 1001}, {"a": (2, 3)}) == [
        "hidden_size = 1001 does not fit the weights; it can be 1000 at most"
    ]


SMALL = SIZES | {"num_hidden_layers": 2, "max_position_embeddings": 20}
PAIR = {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
PAIR |= {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 40, "max_position_embeddings": 20}
KINDS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bert", "deberta", "big_bird", "llama", "clip_text_model", "fnet", "vit"), SMALL),
    **{kind: SMALL | {"pad_token_id": 1} for kind in ("roberta", "mpnet", "xlm-roberta")},
    **{kind: SMALL | {"embedding_size": 16} for kind in ("electra", "albert")},
    **dict.fromkeys(("bart", "mbart", "whisper"), PAIR | {"pad_token_id": 0}),
    "longformer": SMALL | {"attention_window": 4, "pad_token_id": 1},
    "distilbert": CONFIGS["distilbert"] | {"max_position_embeddings": 20},
    "t5": {"vocab_size": 40, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    "gpt2": {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 20, "initializer_range": 0.2},
    "opt": SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "xlnet": {"vocab_size": 40, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
    "mamba": {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "clip": {},
}
LIMITS = {
    **dict.fromkeys(("bert", "deberta", "big_bird", "clip_text_model", "electra", "albert", "distilbert"), 20),
    **dict.fromkeys(("bart", "mbart", "gpt2", "opt"), 20),
    **dict.fromkeys(("roberta", "mpnet", "xlm-roberta", "longformer"), 18),
    **dict.fromkeys(("t5", "llama", "xlnet", "mamba")),
}
"""Positions that a text may have; None where they have no table."""
CAUSAL = ("gpt2", "opt", "llama", "clip_text_model", "mamba")


def kind_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return backbone_from_config(KINDS[kind] | {"model_type": kind})


def text_of(length: int) -> Tensor:
    """[L] subwords, none of them a padding token."""
    return torch.arange(length) % 37 + 3


@pytest.mark.parametrize("text_vector", ["cls", "mean", "last"])
@pytest.mark.parametrize("kind", LIMITS)
def test_every_kind_encodes_or_is_refused(kind: str, text_vector: Literal["cls", "mean", "last"]) -> None:
    """Texts that differ in one subword differ in their vectors, whatever pads them, also once reloaded."""
    model = kind_of(kind)
    pad = KINDS[kind].get("pad_token_id", 0)
    encoder = TextEncoder(model, text_vector).eval()
    longest = text_of(LIMITS[kind] or 30)
    if text_vector == "cls" and kind in CAUSAL:
        with pytest.raises(ConfigError, match=r"text_vector = cls: .* give mean or last"):
            encoder.probe(longest, pad)
        return
    encoder.probe(longest, pad)
    token_BL = torch.stack([text_of(8), text_of(8)])
    token_BL[1, 1], token_BL[1, 6:] = 39, pad
    mask_BL = torch.ones(2, 8, dtype=torch.bool)
    mask_BL[1, 6:] = False
    given = dataclasses.replace(NOTHING, token_BL=token_BL, mask_BL=mask_BL)
    vector_BD = encoder(given)
    alone = dataclasses.replace(NOTHING, token_BL=token_BL[1:, :6], mask_BL=mask_BL[1:, :6])
    torch.testing.assert_close(encoder(alone)[0], vector_BD[1], rtol=1e-3, atol=1e-4)
    assert difference(vector_BD[1], vector_BD[0]) > 1e-3
    again = backbone_from_config(model.config.to_dict())  # type: ignore[union-attr,operator]
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(TextEncoder(again, text_vector).eval()(given), vector_BD)


@pytest.mark.parametrize("kind", LIMITS)
def test_positions_are_the_tables_less_what_no_subword_can_have(kind: str) -> None:
    model, limit = kind_of(kind), LIMITS[kind]
    assert position_limit(model) == limit
    if limit is not None:
        encoder = TextEncoder(model, "mean").eval()
        with pytest.raises(ConfigError, match=f"it fails on a text of {limit + 1} subwords"):
            encoder.probe(text_of(limit + 1), KINDS[kind].get("pad_token_id", 0))


@pytest.mark.parametrize("kind", ["t5", "bart", "mbart"])
def test_of_an_encoder_decoder_the_encoder_is_used(kind: str) -> None:
    model = kind_of(kind)
    assert type(model).__name__.endswith(("Encoder", "Stack"))
    assert not any("decoder" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("vit", "fails on a text of 12 subwords"),
        ("whisper", "fails on a text of 12 subwords"),
        ("clip", "no hidden_size"),
        ("fnet", "depend on the padding"),
    ],
)
@pytest.mark.parametrize("frozen", [0, "all"])
def test_what_encodes_no_text_is_refused(kind: str, reason: str, frozen: int | Literal["all"]) -> None:
    with pytest.raises(ConfigError, match=f"cannot be the text encoder: .*{reason}") as caught:
        TextEncoder(kind_of(kind), "mean", frozen).eval().probe(text_of(12))
    assert caught.value.exit_code == 2
