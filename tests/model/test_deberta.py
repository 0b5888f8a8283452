"""The library's own DeBERTa-v2 with random weights is what every result is compared with."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ray import cloudpickle
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.models.deberta_v2 import modeling_deberta_v2 as library

from grcf_ray.data.batches import Batch
from grcf_ray.model import deberta
from grcf_ray.model.deberta import cut_positions
from grcf_ray.model.pretrained import backbone_config, backbone_from_config, load_backbone
from grcf_ray.model.text_encoder import TextEncoder
from grcf_ray.train.stage import use_deterministic_torch

V3 = backbone_config("microsoft/deberta-v3-base") | {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
"""DeBERTa-v3 but for its width: 12 layers, 256 buckets, of which the distances below 128 have one each."""

VARIANTS: dict[str, dict[str, Any]] = {
    "c2p": {"pos_att_type": ["c2p"]},
    "p2c": {"pos_att_type": ["p2c"]},
    "own projections": {"share_att_key": False},
    "own projection, c2p": {"share_att_key": False, "pos_att_type": ["c2p"]},
    "own projection, p2c": {"share_att_key": False, "pos_att_type": ["p2c"]},
    "no buckets": {"position_buckets": -1},
    "steep buckets": {"position_buckets": 64, "max_relative_positions": 64},
    "table without norm": {"norm_rel_ebd": "none"},
    "convolution": {"conv_kernel_size": 3, "conv_act": "gelu"},
    "positions at the input": {"position_biased_input": True},
}


@pytest.fixture(autouse=True)
def _every_warning_is_an_error() -> Iterator[None]:
    deberta._warn.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def stock_model(**changes: Any) -> Any:
    settings = {key: value for key, value in (V3 | changes).items() if key != "model_type"}
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model("deberta-v2", **settings)).eval()


def pair(dtype: torch.dtype = torch.float64, **changes: Any) -> tuple[Any, Any]:
    """The library's model, and the same one with its positions cut."""
    stock = stock_model(**changes).to(dtype)
    return stock, cut_positions(copy.deepcopy(stock))


def texts(length: int) -> tuple[Tensor, Tensor]:
    """Subword ids and mask of three texts, two of them padded."""
    token_BL = torch.randint(5, 40, (3, length), generator=torch.Generator().manual_seed(length))
    mask_BL = (torch.arange(length) < torch.tensor([[length], [length // 2 + 1], [1]])).long()
    return token_BL * mask_BL, mask_BL


def loss(model: Any, length: int) -> Tensor:
    token_BL, mask_BL = texts(length)
    hidden_BLD = model(input_ids=token_BL, attention_mask=mask_BL).last_hidden_state[mask_BL.bool()]
    weight_BLD = torch.linspace(-1, 1, hidden_BLD.numel()).view_as(hidden_BLD)
    return (hidden_BLD * weight_BLD.to(hidden_BLD.dtype)).sum()


def outcome(model: Any, *lengths: int) -> tuple[Tensor, Tensor, Tensor]:
    """Real positions' states of the last text; all gradients in a row; those of the position table."""
    model.zero_grad()
    sum((loss(model, length) for length in lengths), torch.tensor(0.0)).backward()
    token_BL, mask_BL = texts(lengths[-1])
    with torch.no_grad():
        hidden_BLD = model(input_ids=token_BL, attention_mask=mask_BL).last_hidden_state[mask_BL.bool()]
    gradients = [torch.zeros(0) if p.grad is None else p.grad.flatten() for p in model.parameters()]
    return hidden_BLD, torch.cat(gradients), model.encoder.rel_embeddings.weight.grad


def assert_same(stock: Any, cut: Any, *lengths: int, limit: float = 1e-12) -> None:
    """Outputs and gradients differ by less than a part of their norm."""
    for reference, mine in zip(outcome(stock, *lengths), outcome(cut, *lengths), strict=True):
        assert reference.norm() > 0
        assert (reference - mine).norm() / reference.norm() < limit


def spans(model: Any) -> set[int]:
    return {layer.attention.self.pos_ebd_size for layer in model.encoder.layer}


@pytest.mark.parametrize(
    ("length", "dtype", "limit"),
    [
        *((length, torch.float64, 1e-12) for length in (2, 50, 129, 140, 300)),
        *((length, torch.float32, 1e-5) for length in (50, 200)),
    ],
)
def test_outputs_and_gradients_are_the_library_s(length: int, dtype: torch.dtype, limit: float) -> None:
    stock, cut = pair(dtype)
    assert_same(stock, cut, length, limit=limit)
    farthest = int(stock.encoder.get_rel_pos(torch.empty(1, length, 0)).max())
    assert spans(stock) == {256}
    assert spans(cut) == {length} if length <= 129 else farthest + 1 < spans(cut).pop() <= farthest + 5


@pytest.mark.parametrize("length", [16, 200])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_form_of_attention(variant: str, length: int) -> None:
    stock, cut = pair(**VARIANTS[variant], num_hidden_layers=3)
    assert_same(stock, cut, length)
    assert max(spans(cut)) < max(spans(stock)) or length == 200


def test_short_texts_need_no_index_in_the_layers() -> None:
    _, cut = pair(torch.float32, num_hidden_layers=2)
    for length, indexed in ((129, False), (140, True)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            states = cut.encoder(torch.randn(3, length, 16, requires_grad=True), torch.ones(3, length))
            states.last_hidden_state.square().sum().backward()
        kernels = {event.key for event in profile.key_averages()}
        assert any(word in kernel for kernel in kernels for word in ("gather", "scatter", "index")) == indexed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("length", [2, 50, 129])
def test_a_gpu_shifts_as_the_cpu_does_and_repeats_it_bit_for_bit(length: int) -> None:
    """With an error at any kernel that is not deterministic."""
    use_deterministic_torch(1)
    torch.use_deterministic_algorithms(True)
    _, cut = pair()
    outcomes = []
    for device in ("cpu", "cuda", "cuda"):
        encoder = copy.deepcopy(cut.encoder).to(device)
        _, mask_BL = texts(length)
        hidden_BLD = torch.randn(3, length, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        hidden_BLD = hidden_BLD.to(device).requires_grad_()
        states_BLD = encoder(hidden_BLD, mask_BL.to(device)).last_hidden_state
        weight_BLD = torch.linspace(-1, 1, states_BLD.numel(), dtype=torch.float64).view_as(states_BLD)
        (states_BLD * (weight_BLD * mask_BL[:, :, None]).to(device)).sum().backward()
        gradients = [p.grad.flatten() for p in (hidden_BLD, *encoder.parameters())]
        outcomes.append((states_BLD.detach().cpu()[mask_BL.bool()], torch.cat(gradients).cpu()))
        assert {layer.attention.self.pos_ebd_size for layer in encoder.layer} == {length}
    for on_cpu, first, second in zip(*outcomes, strict=True):
        assert torch.equal(first, second)
        assert (first - on_cpu).norm() / on_cpu.norm() < 1e-12


def test_training_without_dropout_and_lengths_in_turn() -> None:
    stock, cut = pair()
    for length in (16, 3, 200, 16):
        assert_same(stock.train(), cut.train(), length)


def test_a_backward_of_two_texts_under_gradient_checkpointing() -> None:
    stock, cut = pair(num_hidden_layers=3)
    cut.gradient_checkpointing_enable()
    assert_same(stock.train(), cut.train(), 140, 16)
    assert cut.encoder.layer[0].gradient_checkpointing


def test_autocast() -> None:
    stock, cut = pair(torch.float32, num_hidden_layers=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(stock, cut, 16, limit=0.05)
        assert cut.encoder.layer[0].attention.self.key_proj(torch.ones(1, 16)).dtype == torch.bfloat16


def test_dropout_takes_the_rows_that_occur_at_the_library_s_rate() -> None:
    _, cut = pair(hidden_dropout_prob=0.25, num_hidden_layers=2)
    seen: list[tuple[Tensor, Tensor]] = []
    for layer in cut.encoder.layer:
        layer.attention.self.pos_dropout.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    torch.manual_seed(1)
    loss(cut.train(), 100)
    table = cut.encoder.get_rel_embedding()
    for given, out in seen:
        torch.testing.assert_close(given, table[256 - 100 : 256 + 100])
        kept = out != 0
        assert 0.7 < kept.double().mean() < 0.8
        torch.testing.assert_close(out[kept], given[kept] / 0.75)
    assert not torch.equal(seen[0][1], seen[1][1])


def test_positions_that_a_caller_gives_have_the_whole_table() -> None:
    stock, cut = pair(num_hidden_layers=2)
    hidden_BLD = torch.randn(2, 9, 16, dtype=torch.float64)
    mask_BL = torch.ones(2, 9, dtype=torch.long)
    far_1LL = 20 * (torch.arange(9)[:, None] - torch.arange(9))[None]
    for more in ({"relative_pos": far_1LL}, {"query_states": hidden_BLD.flip(1)}, {}):
        reference, mine = (model.encoder(hidden_BLD, mask_BL, **more).last_hidden_state for model in (stock, cut))
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)
    assert cut.encoder.get_rel_embedding().size(0) == 512


def test_names_weights_and_random_numbers_stay() -> None:
    stock = stock_model()
    before = torch.random.get_rng_state()
    cut = cut_positions(copy.deepcopy(stock))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert list(cut.state_dict()) == list(stock.state_dict())
    assert [name for name, _ in cut.named_parameters()] == [name for name, _ in stock.named_parameters()]
    assert [name for name, _ in cut.named_modules()] == [name for name, _ in stock.named_modules()]
    for name, weight in stock.state_dict().items():
        assert torch.equal(cut.state_dict()[name], weight)
    assert isinstance(cut.encoder, library.DebertaV2Encoder)


def test_copies_and_pickles_are_as_fast() -> None:
    stock, cut = pair(num_hidden_layers=2)
    for twin in (copy.deepcopy(cut), cloudpickle.loads(cloudpickle.dumps(cut))):
        assert_same(stock, twin, 16)
        assert spans(twin) == {16}


@pytest.mark.parametrize("frozen", [0, 1, "all"])
def test_with_frozen_layers(frozen: Any) -> None:
    stock, cut = (TextEncoder(model, "mean", frozen).eval() for model in pair(num_hidden_layers=3))
    token_BL, mask_BL = texts(16)
    batch = dataclasses.replace(Batch(*[None] * 8), token_BL=token_BL, mask_BL=mask_BL.bool())
    torch.testing.assert_close(cut(batch), stock(batch), rtol=1e-12, atol=1e-12)
    if frozen == 1:
        bottom_BLD, theirs_BLD = (model.frozen_hidden(batch) for model in (cut, stock))
        torch.testing.assert_close(bottom_BLD, theirs_BLD, rtol=1e-12, atol=1e-12)
        top = dataclasses.replace(batch, token_BL=None, hidden_BLD=bottom_BLD)
        torch.testing.assert_close(cut(top), stock(batch), rtol=1e-12, atol=1e-12)
    assert spans(cut.backbone) == {16}


def test_backbones_are_loaded_with_it(tmp_path: Path) -> None:
    stock = stock_model(num_hidden_layers=2)
    stock.save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path))
    assert_same(stock, loaded.eval(), 16, limit=1e-5)
    made = backbone_from_config(V3 | {"num_hidden_layers": 2})
    made.load_state_dict(loaded.state_dict())
    assert_same(loaded, made.eval(), 16, limit=1e-5)
    assert spans(loaded) == spans(made) == {16}
    with torch.device("meta"):
        backbone_from_config(V3)


@pytest.mark.parametrize("changes", [{"model_type": "bert"}, {"relative_attention": False}, {"pos_att_type": []}])
def test_other_backbones_are_left_alone(changes: dict[str, Any]) -> None:
    model = backbone_from_config({k: v for k, v in (V3 | changes).items() if v is not None} | {"type_vocab_size": 2})
    assert all(not type(module).__name__.startswith("Cut") for module in model.modules())


class Odd(library.DisentangledSelfAttention):
    """An attention whose scores grow with the size of the table."""

    def disentangled_attention_bias(self, *given: Any) -> Any:
        return super().disentangled_attention_bias(*given) * self.pos_ebd_size


class Fixed(library.DisentangledSelfAttention):
    """An attention that always wants the whole table."""

    def disentangled_attention_bias(self, *given: Any) -> Any:
        self.pos_ebd_size = 256
        return super().disentangled_attention_bias(*given)


class Without(library.DisentangledSelfAttention):
    """An attention that has no use for that method."""

    def forward(self, hidden_states: Tensor, *given: Any, **named: Any) -> Any:
        return hidden_states, None


class Elsewhere(library.DebertaV2Encoder):
    """An encoder that has its positions from somewhere else."""

    def forward(self, hidden_states: Tensor, *given: Any, **named: Any) -> Any:
        relative_pos = library.build_relative_position(
            hidden_states, hidden_states, self.position_buckets, self.max_relative_positions
        )
        return super().forward(hidden_states, *given, **named, relative_pos=relative_pos)


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("DisentangledSelfAttention", Odd, "its results would differ by"),
        ("DisentangledSelfAttention", Fixed, "RuntimeError: index"),
        ("DisentangledSelfAttention", Without, "every relative position"),
        ("DebertaV2Encoder", Elsewhere, "every relative position"),
    ],
)
def test_a_library_of_another_form_is_left_alone_and_named(
    name: str, kind: type[nn.Module], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, name, kind)
    stock = stock_model(num_hidden_layers=2)
    kept = copy.deepcopy(stock)
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        assert cut_positions(kept) is kept
    assert transformers.__version__ in str(caught[0].message) and torch.__version__ in str(caught[0].message)
    assert [type(module) for module in kept.modules()] == [type(module) for module in stock.modules()]
    cut_positions(kept)  # the same warning a second time would be an error here
