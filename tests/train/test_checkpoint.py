from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs as pafs
from safetensors.torch import load_file, save_file
from same_training import assert_same_tensors, save_checkpoint, state_of
from torch import Tensor, nn

from grcf_ray.errors import DamagedError, DataError
from grcf_ray.files import file_sha256
from grcf_ray.storage import RemotePath, StoragePath, storage_path
from grcf_ray.train.checkpoint import (
    export_weights,
    load_weights,
    read_checkpoint,
    read_state,
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checkpoint_continues_as_if_nothing_had_happened(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = made(dtype=dtype)
    train(*whole, range(6))
    network, optimizer = made(dtype=dtype)
    train(network, optimizer, range(3))
    place = storage_path(tmp_path / "a")
    digest = save_checkpoint(place, network, optimizer, STATE)

    again, fresh = made(seed=9, dtype=dtype)
    again.frozen.load_state_dict(network.frozen.state_dict())
    read = read_checkpoint(place, sha256=digest)
    assert (read.state, read.sha256) == ({"format": 1, **STATE}, digest)
    read.restore(again, fresh)
    assert_same_tensors(state_of(again, fresh), state_of(network, optimizer))
    train(again, fresh, range(3, 6))
    assert_same_tensors(state_of(again, fresh), state_of(*whole))


def test_checkpoint_before_the_first_step(tmp_path: Path) -> None:
    network, optimizer = made()
    save_checkpoint(storage_path(tmp_path / "a"), network, optimizer, STATE)
    again, fresh = made(seed=9)
    read_checkpoint(storage_path(tmp_path / "a")).restore(again, fresh)
    assert torch.equal(again.top.weight, network.top.weight)
    assert dict(fresh.state) == {}


def test_saving_leaves_the_model_and_its_memory_alone(tmp_path: Path) -> None:
    network, optimizer = made()
    train(network, optimizer, range(2))
    save_checkpoint(storage_path(tmp_path / "a"), network, optimizer, STATE)
    saved = file_sha256(tmp_path / "a")
    read = read_checkpoint(storage_path(tmp_path / "a"))
    read.restore(network, optimizer)
    train(network, optimizer, range(2, 3))
    assert file_sha256(tmp_path / "a") == saved
    assert not torch.equal(read.tensors["model.top.weight"], network.top.weight)
    assert not torch.equal(read.tensors["optimizer.exp_avg.top.weight"], optimizer.state[network.top.weight]["exp_avg"])


def test_frozen_parameters_are_not_stored(tmp_path: Path) -> None:
    network, optimizer = made()
    train(network, optimizer, range(1))
    save_checkpoint(storage_path(tmp_path / "a"), network, optimizer, {})
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
    read_checkpoint(storage_path(tmp_path / "a")).restore(again, fresh)
    assert torch.equal(again.frozen.weight, before)


def test_exported_weights_are_a_checkpoint_without_an_optimizer(tmp_path: Path) -> None:
    network, optimizer = made()
    train(network, optimizer, range(2))
    save_checkpoint(storage_path(tmp_path / "a"), network, optimizer, STATE)
    copy = storage_path(tmp_path / "deep" / "b")
    digest = export_weights(storage_path(tmp_path / "a"), copy)
    assert digest == read_checkpoint(copy).sha256 != read_checkpoint(storage_path(tmp_path / "a")).sha256
    assert all(name.startswith("model.") for name in load_file(tmp_path / "deep" / "b"))
    again, _ = made(seed=9)
    assert load_weights(copy, again, sha256=digest) == read_state(storage_path(tmp_path / "a"))
    assert read_state(copy) == {"format": 1, **STATE}
    assert_same_tensors(trained_tensors(again), trained_tensors(network))


def test_checkpoint_in_object_storage(tmp_path: Path) -> None:
    """It is read through a copy, which is gone when the weights are put into the model."""
    place = RemotePath(pafs.LocalFileSystem(), str(tmp_path), "mock://bucket", "") / "last.safetensors"
    network, optimizer = made()
    train(network, optimizer, range(2))
    digest = save_checkpoint(place, network, optimizer, STATE)
    read = read_checkpoint(place, sha256=digest)
    again, fresh = made(seed=9)
    again.frozen.load_state_dict(network.frozen.state_dict())
    read.restore(again, fresh)
    assert_same_tensors(state_of(again, fresh), state_of(network, optimizer))
    (tmp_path / "last.safetensors").write_bytes((tmp_path / "last.safetensors").read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"mock://bucket/last.safetensors: "):
        read_checkpoint(place)
    (tmp_path / "last.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"mock://bucket/last.safetensors: no such"):
        read_checkpoint(place)


def loads(path: Path) -> list[Callable[[], Any]]:
    """All that reads the weights; a network or an optimizer that has changed after an error is an error."""
    network, optimizer = made(seed=9)
    train(network, optimizer, range(1))
    place = storage_path(path)
    before = state_of(network, optimizer)

    def untouched(load: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            try:
                load()
            finally:
                assert_same_tensors(state_of(network, optimizer), before)

        return run

    return [
        untouched(lambda: load_weights(place, network)),
        untouched(lambda: read_checkpoint(place).restore(network, optimizer)),
        untouched(lambda: export_weights(place, storage_path(path.with_name("copy")))),
    ]


def load_all(path: Path) -> list[Callable[[], Any]]:
    return [lambda: read_state(storage_path(path)), *loads(path)]


def test_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    """In the length, the names, the state, the checksum, the weights: each byte in turn."""
    path = tmp_path / "last.safetensors"
    network, optimizer = made()
    train(network, optimizer, range(1))
    save_checkpoint(storage_path(path), network, optimizer, STATE)
    content = path.read_bytes()
    for index in range(len(content)):
        damaged = bytearray(content)
        damaged[index] ^= 1 << index % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"last.safetensors: "):
            read_checkpoint(storage_path(path))


@pytest.mark.parametrize(("where", "said"), [("state", "damaged, its content has SHA-256"), ("weights", "damaged")])
def test_damage_reaches_neither_model_nor_optimizer(tmp_path: Path, where: str, said: str) -> None:
    path = tmp_path / "last.safetensors"
    network, optimizer = made()
    train(network, optimizer, range(1))
    save_checkpoint(storage_path(path), network, optimizer, STATE)
    content = path.read_bytes()
    if where == "state":
        # A digit of a loss, which is as good as another one to JSON.
        path.write_bytes(content.replace(b"0.30000000000000004", b"0.30000000000000005"))
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert path.read_bytes() != content
    for load in loads(path):
        with pytest.raises(DamagedError, match=rf"last.safetensors: {said}"):
            load()
    assert not (tmp_path / "copy").exists()


def test_another_whole_checkpoint_than_the_one_on_record(tmp_path: Path) -> None:
    place = storage_path(tmp_path / "best")
    record = save_checkpoint(place, *made(), STATE)
    assert record == save_checkpoint(place, *made(), STATE)
    other = save_checkpoint(place, *made(), {**STATE, "epoch": 3})
    assert len({record, other, save_checkpoint(place, *made(seed=1), STATE)}) == 3
    network, _ = made(seed=9)
    before = network.top.weight.clone()
    for load in (
        lambda: load_weights(place, network, sha256=record),
        lambda: export_weights(place, storage_path(tmp_path / "copy"), sha256=record),
    ):
        with pytest.raises(DamagedError, match=rf"best: not the recorded checkpoint, .* of {record[:12]}"):
            load()
    assert torch.equal(network.top.weight, before)


def test_checksum_is_that_of_the_state_and_of_each_tensors_name_kind_and_bytes(tmp_path: Path) -> None:
    """Written once more from the file alone, for whoever checks one without this package."""
    network, optimizer = made()
    train(network, optimizer, range(1))
    digest = save_checkpoint(storage_path(tmp_path / "a"), network, optimizer, STATE)
    content = (tmp_path / "a").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    kinds = {"F32": "torch.float32", "I64": "torch.int64"}
    meta = header.pop("__metadata__")
    actual = hashlib.sha256(meta["state"].encode())
    for name, tensor in sorted(header.items()):
        actual.update(f"{name} {kinds[tensor['dtype']]} {tuple(tensor['shape'])}".encode())
        start, stop = tensor["data_offsets"]
        actual.update(content[8 + size + start : 8 + size + stop])
    assert actual.hexdigest() == digest == meta["sha256"]
    assert json.loads(meta["state"]) == {"format": 1, **STATE}


def test_state_that_looks_like_a_header_is_kept_as_it_is(tmp_path: Path) -> None:
    """The checksum is put into the header once it is known, and nowhere else."""
    state = {"sha256": 64 * "0", "text": f'"sha256":"{64 * "0"}"'}
    digest = save_checkpoint(storage_path(tmp_path / "a"), *made(), state)
    read = read_checkpoint(storage_path(tmp_path / "a"), sha256=digest)
    assert read.state == {"format": 1, **state}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(storage_path(path), *made(), STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    for load in load_all(path):
        with pytest.raises(DamagedError, match=r"last.safetensors: not a whole checkpoint"):
            load()


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    """None is told from a checkpoint that was damaged in the header."""
    for load in load_all(tmp_path / "last.safetensors"):
        with pytest.raises(DamagedError, match="no such checkpoint"):
            load()
    (tmp_path / "text").write_text("epoch 3\n" * 100)
    for load in load_all(tmp_path / "text"):
        with pytest.raises(DamagedError, match="not a whole checkpoint"):
            load()
    for header in (None, {"state": "{}"}, {"sha256": ""}):
        save_file({"top.weight": torch.zeros(1, 4)}, tmp_path / "weights", header)
        for load in load_all(tmp_path / "weights"):
            with pytest.raises(DamagedError, match=r"no checkpoint"):
                load()
    for state in ("epoch 3", "[]", "{}"):
        save_file({}, tmp_path / "other", {"state": state, "sha256": hashlib.sha256(state.encode()).hexdigest()})
        for load in load_all(tmp_path / "other"):
            with pytest.raises(DamagedError, match=r"no checkpoint"):
                load()


def test_newer_format_is_not_damage(tmp_path: Path) -> None:
    state = json.dumps({"format": 99})
    save_file({}, tmp_path / "a", {"state": state, "sha256": hashlib.sha256(state.encode()).hexdigest()})
    for load in load_all(tmp_path / "a"):
        with pytest.raises(DataError, match=r"newer .*format 99") as caught:
            load()
        assert not isinstance(caught.value, DamagedError)


def test_storage_that_does_not_answer_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may answer later."""

    def broken(_: Any) -> Any:
        raise OSError("timeout")

    place: StoragePath = storage_path(tmp_path / "a")
    save_checkpoint(place, *made(), STATE)
    monkeypatch.setattr(type(place), "reading", broken)
    with pytest.raises(OSError, match="timeout"):
        read_checkpoint(place)


def test_checkpoint_of_another_model_names_a_tensor(tmp_path: Path) -> None:
    place = storage_path(tmp_path / "a")
    save_checkpoint(place, *made(width=5), {})
    network, optimizer = made()
    with pytest.raises(DataError, match=r"norm.weight .*\(5,\).*\(4,\)"):
        read_checkpoint(place).restore(network, optimizer)
    network.frozen.requires_grad_(True)
    with pytest.raises(DataError, match=r"another model; 2 tensors .*frozen.bias"):
        load_weights(place, network)
    assert "frozen.bias" in trained_tensors(network)
