from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.errors import ConfigError
from grcf_ray.model.pretrained import backbone_from_config
from grcf_ray.model.text_encoder import TextEncoder, layers_of, position_limit

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
    hidden_BLD = encoder.frozen_hidden(given)
    return dataclasses.replace(NOTHING, hidden_BLD=hidden_BLD, mask_BL=given.mask_BL)


def difference(actual: Tensor, reference: Tensor) -> float:
    return ((actual - reference).norm() / reference.norm()).item()


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
    result = []
    for batches in (parts, together):
        encoder.zero_grad()
        vector_BD = torch.cat([encoder(single) for single in batches])
        (vector_BD @ weight_D).square().sum().backward()
        gradients = [p.grad.reshape(-1) for p in encoder.parameters() if p.grad is not None]
        result.append((vector_BD.detach(), torch.cat(gradients)))
    (apart, apart_gradient), (shared, shared_gradient) = result
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


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        # Its layers are one, run several times.
        ("albert", {}, "AlbertModel share their weights"),
        # A convolution beside the first layer, as in DeBERTa-v2-xlarge.
        ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}, "cannot be split"),
        # A projection between embeddings and layers, as in ELECTRA-small.
        ("bert", {"model_type": "electra", "embedding_size": 16}, "cannot be split"),
    ],
)
def test_backbone_that_is_no_plain_stack_can_be_frozen_whole_or_not_at_all(
    kind: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"model.frozen_layers = 1: .*{said}"):
        TextEncoder(backbone(kind, **changes), "cls", 1)
    with pytest.raises(ConfigError, match=r"model.frozen_layers = 4: .*0 to 3"):
        TextEncoder(backbone(kind, **changes), "cls", 4)
    whole = TextEncoder(backbone(kind, **changes), "cls").eval()
    assert all(p.requires_grad for p in whole.parameters())
    for frozen in (3, "all"):
        encoder = TextEncoder(backbone(kind, **changes), "cls", frozen).eval()  # type: ignore[arg-type]
        assert torch.equal(encoder(batch()), whole(batch()))
        assert not any(p.requires_grad for p in encoder.parameters())


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
    "clip": {"text_config": SMALL, "vision_config": SMALL | {"image_size": 8, "patch_size": 4}},
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
    # Of an encoder-decoder the encoder is used.
    assert kind == "opt" or not any("decoder" in name for name, _ in model.named_parameters())
    pad = KINDS[kind].get("pad_token_id", 0)
    encoder = TextEncoder(model, text_vector).eval()
    longest = text_of(LIMITS[kind] or 30)
    if text_vector == "cls" and kind in CAUSAL:
        with pytest.raises(ConfigError, match=r"text_vector = cls: .* use mean or last"):
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
        with pytest.raises(ConfigError, match=f"it fails on a text of {limit + 1} tokens"):
            encoder.probe(text_of(limit + 1), KINDS[kind].get("pad_token_id", 0))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("vit", "fails on a text of 12 tokens"),
        ("whisper", "fails on a text of 12 tokens"),
        ("clip", "no hidden_size"),
        ("fnet", "depend on the padding"),
    ],
)
def test_what_encodes_no_text_is_refused(kind: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot be the text encoder: .*{reason}"):
        TextEncoder(kind_of(kind), "mean", "all").eval().probe(text_of(12))


@pytest.mark.parametrize("frozen", [0, 1, "all"])
@pytest.mark.parametrize("kind", SPLITTABLE)
def test_a_gate_reads_the_layers_below_and_feeds_those_above(kind: str, frozen: int | Literal["all"]) -> None:
    """A gate that exchanges the texts exchanges the result."""
    encoder = TextEncoder(backbone(kind), "mean", frozen).eval()
    token_BL = torch.randint(5, 40, (2, 6), generator=torch.Generator().manual_seed(1))
    given = dataclasses.replace(NOTHING, token_BL=token_BL, mask_BL=torch.ones_like(token_BL).bool())
    if frozen:
        given = dataclasses.replace(given, hidden_BLD=encoder.frozen_hidden(given))
    expected = encoder.states(given)
    whole = encoder.backbone(input_ids=token_BL, output_hidden_states=True)
    seen = []

    def exchange(states: Tensor, _: Batch) -> Tensor:
        seen.append(states)
        return states.flip(0)

    encoder.gate_at(1, exchange)
    torch.testing.assert_close(encoder.states(given), expected.flip(0), rtol=1e-10, atol=1e-10)
    below = whole.hidden_states[3 if frozen == "all" else 1]
    torch.testing.assert_close(seen[0], below, rtol=1e-10, atol=1e-10)
    assert not any(layer._forward_pre_hooks for layer in layers_of(encoder.backbone)[1])


def test_a_gate_that_fails_leaves_no_trace() -> None:
    def failing(states: Tensor, given: Batch) -> Tensor:
        raise ValueError("no rows")

    encoder = TextEncoder(backbone("bert"), "mean")
    encoder.gate_at(0, failing)
    with pytest.raises(ValueError, match="no rows"):
        encoder(batch())
    assert not any(layer._forward_pre_hooks for layer in layers_of(encoder.backbone)[1])


def test_layers_that_share_weights_have_no_gate_between_them() -> None:
    with pytest.raises(ConfigError, match="AlbertModel share their weights"):
        TextEncoder(backbone("albert"), "mean").gate_at(1, lambda states, _: states)
    encoder = TextEncoder(backbone("albert"), "mean", "all").eval()
    before = encoder(given := batch())
    encoder.gate_at(1, lambda states, _: 2 * states)
    torch.testing.assert_close(encoder(given), 2 * before)


@pytest.mark.parametrize("kind", ["xlnet", "longformer"])
def test_backbones_that_change_the_states_have_no_gate(kind: str) -> None:
    """XLNet turns them, Longformer fills them up."""
    config: dict[str, Any] = SIZES | {"model_type": "longformer", "attention_window": 4, "pad_token_id": 1}
    if kind == "xlnet":
        config = {"model_type": kind, "vocab_size": 40, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}
    encoder = TextEncoder(backbone_from_config(config), "mean")
    with pytest.raises(ConfigError, match="no gate fits"):
        encoder.gate_at(1, lambda states, _: states)
