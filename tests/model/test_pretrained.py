from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import torch
from huggingface_hub import constants

from grcf_ray.errors import ConfigError
from grcf_ray.model import pretrained
from grcf_ray.model.pretrained import (
    backbone_config,
    backbone_from_config,
    load_backbone,
    load_tokenizer,
    resolve_backbone,
    size_faults,
)


def test_backbone_has_no_pooler(tiny_backbone: Path) -> None:
    config = json.loads((tiny_backbone / "config.json").read_text())
    assert not any("pooler" in name for name, _ in backbone_from_config(config).named_parameters())
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", "{"),
        ("config.json", "{}"),
        ("config.json", '"hidden_size": 64'),
        ("model.safetensors", None),
        ("model.safetensors", "half"),
        ("tokenizer.json", None),
    ],
)
def test_damaged_folder(tiny_backbone: Path, tmp_path: Path, name: str, content: str | None) -> None:
    """A file is missing, or is not what it was."""
    folder = Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))
    file = folder / name
    if content is None:
        file.unlink()
    elif content == "half":
        file.write_bytes(file.read_bytes()[:10_000])
    elif "hidden_size" in content:
        add(file, hidden_size=64)
    else:
        file.write_text(content)
    said = {"tokenizer.json": "has no usable tokenizer: "}.get(name, "cannot be loaded: ")
    said = ".*no config.json" if (name, content) == ("config.json", None) else f" {folder} {said}"
    with pytest.raises(ConfigError, match=f"backbone{said}"):
        load_tokenizer(str(folder)) if name == "tokenizer.json" else load_backbone(str(folder))


@pytest.mark.parametrize("name", ["./nosuch", "/nosuch", "~/nosuch", "a/b/c", "my model", "nosuch/"])
def test_name_that_can_be_no_hub_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"backbone {name}: no such folder"):
        resolve_backbone(name)


def test_backbone_that_is_not_here_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection is tried, for a few seconds at most, rather than the hub client's many; offline not even one."""
    tried = []

    def refused(address: tuple[str, int], timeout: float) -> None:
        tried.append((address, timeout))
        raise OSError("unreachable")

    monkeypatch.setattr(pretrained.socket, "create_connection", refused)
    with pytest.raises(ConfigError, match=r"hub cannot be reached.*hf download nosuch/backbone"):
        load_backbone("nosuch/backbone")
    assert tried == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="hub cannot be reached"):
        load_backbone("nosuch/backbone")
    assert tried == [((urlparse(constants.ENDPOINT).hostname, 443), 5)]
    monkeypatch.setattr(pretrained, "_reachable", lambda endpoint: True)
    assert resolve_backbone("nosuch/backbone") == "nosuch/backbone"


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
    custom: dict[str, Any] = {} if known else {"model_type": "own"}
    parts = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": ["code.Tokenizer", None]}
    add(foreign / "config.json", auto_map=parts, custom_pipelines={"own": {"impl": "code.Model"}}, **custom)
    custom = {} if known else {"tokenizer_class": "OwnTokenizer"}
    add(foreign / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", None]}, **custom)
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
        {"num_labels": 10**8},
        {"text_config": {"num_layers": 10**5}},
        {"block_sizes": [1, 10**5]},
    ],
)
def test_sizes_that_the_weights_cannot_have(foreign: Path, sizes: dict[str, Any]) -> None:
    """Refused before anything is built: building these would take minutes, or all memory."""
    add(foreign / "config.json", **sizes)
    for load in (load_backbone, load_tokenizer, backbone_config):
        with pytest.raises(ConfigError, match=r"= \d+ does not fit the weights"):
            load(str(foreign))


def test_real_sizes_fit() -> None:
    assert size_faults(backbone_config("microsoft/deberta-v3-base"), None) == []
    assert size_faults({"num_hidden_layers": True, "rope_theta": 1e9}, {"a": (2, 3)}) == []
    assert size_faults({"hidden_size": 1001}, {"a": (2, 3)}) == [
        "hidden_size = 1001 does not fit the weights; it can be 1000 at most"
    ]
