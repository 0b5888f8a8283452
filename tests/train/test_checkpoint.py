from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grcf_ray.errors import DataError
from grcf_ray.files import file_sha256
from grcf_ray.train import checkpoint
from grcf_ray.train.checkpoint import (
    export_weights,
    link_or_copy,
    load_checkpoint,
    load_weights,
    read_state,
    save_checkpoint,
    trained_tensors,
)

STATE: dict[str, Any] = {"epoch": 2, "curve": [{"loss/total": 0.1 + 0.2, "valid/corr": None}], "name": "ß"}


class Network(nn.Module):
    """Two layers, the first one frozen, with a buffer."""

    def __init__(self, width: int = 4, *, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Linear(3, width).requires_grad_(False)
        self.norm = nn.BatchNorm1d(width)
        self.top = nn.Linear(width, 1)

    def forward(self, row_B3: Tensor) -> Tensor:
        out: Tensor = self.top(torch.tanh(self.norm(self.frozen(row_B3))))
        return out


def made(seed: int = 0, *, width: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Network, torch.optim.AdamW]:
    network = Network(width, seed=seed).to(dtype)
    return network, torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1, fused=True)


def train(network: Network, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(step)).to(network.top.weight.dtype)
        optimizer.zero_grad()
        network(rows).square().sum().backward()
        optimizer.step()


def everything(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    moments = {
        f"{name}.{key}": torch.as_tensor(value)
        for name, p in network.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
    }
    return dict(network.state_dict()) | moments


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checkpoint_continues_as_if_nothing_had_happened(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = made(dtype=dtype)
    train(*whole, range(6))
    network, optimizer = made(dtype=dtype)
    train(network, optimizer, range(3))
    save_checkpoint(tmp_path / "a", network, optimizer, STATE)

    again, fresh = made(seed=9, dtype=dtype)
    again.frozen.load_state_dict(network.frozen.state_dict())
    state = load_checkpoint(tmp_path / "a", again, fresh)
    assert {name: state[name] for name in STATE} == STATE
    assert_equal(everything(again, fresh), everything(network, optimizer))
    train(again, fresh, range(3, 6))
    assert_equal(everything(again, fresh), everything(*whole))


def test_checkpoint_before_the_first_step(tmp_path: Path) -> None:
    network, optimizer = made()
    save_checkpoint(tmp_path / "a", network, optimizer, STATE)
    again, fresh = made(seed=9)
    load_checkpoint(tmp_path / "a", again, fresh)
    assert torch.equal(again.top.weight, network.top.weight)
    assert dict(fresh.state) == {}


def test_saving_leaves_the_model_and_its_memory_alone(tmp_path: Path) -> None:
    network, optimizer = made()
    train(network, optimizer, range(2))
    save_checkpoint(tmp_path / "a", network, optimizer, STATE)
    saved = file_sha256(tmp_path / "a")
    train(network, optimizer, range(2, 3))
    assert file_sha256(tmp_path / "a") == saved


def test_frozen_parameters_are_not_stored(tmp_path: Path) -> None:
    network, optimizer = made()
    train(network, optimizer, range(1))
    save_checkpoint(tmp_path / "a", network, optimizer, {})
    names = set(load_file(tmp_path / "a"))
    assert {name for name in names if name.startswith("model.")} == {
        f"model.{name}" for name in network.state_dict() if not name.startswith("frozen")
    }
    assert {name for name in names if not name.startswith("model.")} == {
        f"optimizer.{key}.{name}"
        for key in ("step", "exp_avg", "exp_avg_sq")
        for name in ("norm.weight", "norm.bias", "top.weight", "top.bias")
    }
    assert set(trained_tensors(network)) == {name.removeprefix("model.") for name in names if "model." in name}
    again, fresh = made(seed=9)
    before = again.frozen.weight.clone()
    load_checkpoint(tmp_path / "a", again, fresh)
    assert torch.equal(again.frozen.weight, before)


def test_weights_alone(tmp_path: Path) -> None:
    network, optimizer = made()
    train(network, optimizer, range(2))
    save_checkpoint(tmp_path / "a", network, optimizer, STATE)
    again, _ = made(seed=9)
    assert load_weights(tmp_path / "a", again)["epoch"] == 2
    assert_equal(trained_tensors(again), trained_tensors(network))
    assert read_state(tmp_path / "a")["curve"] == STATE["curve"]


def test_exported_weights_are_a_checkpoint_without_an_optimizer(tmp_path: Path) -> None:
    network, optimizer = made()
    train(network, optimizer, range(2))
    save_checkpoint(tmp_path / "a", network, optimizer, STATE)
    digest = export_weights(tmp_path / "a", tmp_path / "deep" / "b")
    assert digest == file_sha256(tmp_path / "deep" / "b")
    assert all(name.startswith("model.") for name in load_file(tmp_path / "deep" / "b"))
    again, _ = made(seed=9)
    assert load_weights(tmp_path / "deep" / "b", again) == read_state(tmp_path / "a")
    assert_equal(trained_tensors(again), trained_tensors(network))


def load_all(path: Path) -> list[Callable[[], Any]]:
    network, optimizer = made()
    return [
        lambda: read_state(path),
        lambda: load_weights(path, network),
        lambda: load_checkpoint(path, network, optimizer),
        lambda: export_weights(path, path.with_name("copy")),
    ]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, *made(), STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    for load in load_all(path):
        with pytest.raises(DataError, match=r"last.safetensors: not a whole checkpoint"):
            load()


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    for load in load_all(tmp_path / "last.safetensors"):
        with pytest.raises(DataError, match="no such checkpoint"):
            load()
    (tmp_path / "text").write_text("epoch 3\n" * 100)
    for load in load_all(tmp_path / "text"):
        with pytest.raises(DataError, match="not a whole checkpoint"):
            load()
    save_file({"top.weight": torch.zeros(1, 4)}, tmp_path / "weights")
    for load in load_all(tmp_path / "weights"):
        with pytest.raises(DataError, match=r"a safetensors file, but no checkpoint of grcf_ray"):
            load()
    for state in ("epoch 3", "[]", "{}"):
        save_file({"top.weight": torch.zeros(1, 4)}, tmp_path / "other", {"state": state})
        for load in load_all(tmp_path / "other"):
            with pytest.raises(DataError, match=r"a safetensors file, but no checkpoint of grcf_ray"):
                load()


def test_newer_format(tmp_path: Path) -> None:
    save_file({}, tmp_path / "a", {"state": json.dumps({"format": 99})})
    for load in load_all(tmp_path / "a"):
        with pytest.raises(DataError, match=r"written by a newer grcf_ray \(format 99\); upgrade"):
            load()


def test_checkpoint_of_another_model_names_a_tensor(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", *made(width=5), {})
    network, optimizer = made()
    with pytest.raises(DataError, match=r"norm.weight is \(5,\), but the model's is \(4,\)"):
        load_checkpoint(tmp_path / "a", network, optimizer)
    network.frozen.requires_grad_(True)
    with pytest.raises(DataError, match=r"made for another model; 2 tensors differ, the first is frozen.bias"):
        load_weights(tmp_path / "a", network)
    assert "frozen.bias" in trained_tensors(network)


def test_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    save_checkpoint(path, *made(), STATE)
    before = path.read_bytes()

    def half(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, *made(seed=1), STATE)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("links", [True, False])
def test_best_does_not_follow_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """They may share a file; writing the one anew leaves the other as it was."""

    def refused(*_: Any) -> None:
        raise OSError("no links on this disk")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    last, best = tmp_path / "last", tmp_path / "best"
    save_checkpoint(last, *made(seed=0), {"epoch": 1})
    link_or_copy(last, best)
    assert last.samefile(best) == links
    first = best.read_bytes()
    save_checkpoint(last, *made(seed=1), {"epoch": 2})
    assert best.read_bytes() == first
    assert (read_state(last)["epoch"], read_state(best)["epoch"]) == (2, 1)
    link_or_copy(last, best)
    assert read_state(best)["epoch"] == 2
    # Once more: two names of one file, which a rename leaves both.
    link_or_copy(last, best)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last"]


def test_failed_copy_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best").write_text("old")
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "missing", tmp_path / "best")
    assert (tmp_path / "best").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_file_is_readable_by_anyone(tmp_path: Path) -> None:
    """With safetensors alone: names, and the state as JSON."""
    save_checkpoint(tmp_path / "a", *made(), STATE)
    with safe_open(tmp_path / "a", framework="np") as file:
        assert json.loads(file.metadata()["state"]) == {"format": 1, **STATE}
        assert file.get_tensor("model.top.bias").shape == (1,)
