"""Features in the cache: built once, checked, and built again after damage."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.small_features import built, every_array, store_of
from numpy.typing import NDArray

from grcf_ray import cache
from grcf_ray.config import FeatureConfig
from grcf_ray.data import features as features_module
from grcf_ray.data.array_files import cached_array
from grcf_ray.data.features import build_features, build_split
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import ClusterError
from grcf_ray.model.pretrained import load_tokenizer


def entries(folder: Path) -> list[str]:
    """Cached features and what is left of others, but for locks."""
    result = sorted(path.name for path in (folder / "cache" / "features").iterdir())
    return [name for name in result if not name.startswith(".") or (name.count(".") > 1 and not name.endswith(".lock"))]


def test_second_build_reads_the_cache_alone(
    tiny_store: DatasetStore, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the very tokenizer that built it, and with another object of the same."""
    tokenizer = load_tokenizer(str(tiny_backbone))
    first = build_features(tiny_store, tokenizer, FeatureConfig())
    # Without its Parquet files the store can still be opened, but not read.
    shutil.copyfile(tiny_store.folder / "dataset.json", tmp_path / "dataset.json")
    store = DatasetStore.open(tmp_path)

    def unwanted(*_: Any, **__: Any) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(features_module, "build_split", unwanted)
    for same in (tokenizer, load_tokenizer(str(tiny_backbone))):
        again = build_features(store, same, FeatureConfig())
        assert (again.key, again.folder) == (first.key, first.folder)
        for name, array in every_array(first).items():
            np.testing.assert_array_equal(every_array(again)[name], array)
        for name, standardiser in first.standardisers.items():
            np.testing.assert_array_equal(again.standardisers[name].mean_A, standardiser.mean_A)
            np.testing.assert_array_equal(again.standardisers[name].deviation_A, standardiser.deviation_A)


def test_key_changes_with_all_that_decides_the_features(tmp_path: Path, tiny_backbone: Path) -> None:
    other = tmp_path / "backbone"
    shutil.copytree(tiny_backbone, other)
    rules = json.loads((other / "tokenizer.json").read_text())
    rules["model"]["vocab"]["fine!"] = len(rules["model"]["vocab"])
    (other / "tokenizer.json").write_text(json.dumps(rules))
    store = store_of(tmp_path / "a")
    keys = [
        built(store, tiny_backbone).key,
        built(store, tiny_backbone, max_tokens=64).key,
        built(store, tiny_backbone, standardise=False).key,
        built(store, tiny_backbone, lowercase="yes").key,
        built(store, other).key,
        built(store_of(tmp_path / "b", label=[0.8, -0.8, -0.6, 0.4, -1.2, 1.4]), tiny_backbone).key,
        built(store_of(tmp_path / "c", text=["bad film", *["good"] * 5]), tiny_backbone).key,
        built(store_of(tmp_path / "d", label_range=(-3, 4)), tiny_backbone).key,
    ]
    assert len(set(keys)) == len(keys)
    assert built(store_of(tmp_path / "e"), tiny_backbone).key == keys[0]


def test_interrupted_build_leaves_nothing(
    tiny_store: DatasetStore, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []

    def interrupted(*args: Any, **named: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return build_split(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(features_module, "build_split", interrupted)
        with pytest.raises(KeyboardInterrupt):
            built(tiny_store, tiny_backbone)
    assert entries(tmp_path) == []
    assert len(built(tiny_store, tiny_backbone).valid) == 16


def test_another_process_may_build_the_same_meanwhile(
    tiny_store: DatasetStore, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both find nothing, and one waits for the other's; without locks both build, and either's will do."""
    tokenizer = load_tokenizer(str(tiny_backbone))
    builds = []

    def counted(*args: Any, **named: Any) -> Any:
        builds.append(args)
        return build_split(*args, **named)

    def both() -> set[str]:
        with ThreadPoolExecutor(2) as pool:
            result = pool.map(lambda _: build_features(tiny_store, tokenizer, FeatureConfig()), range(2))
        return {features.folder for features in result}

    monkeypatch.setattr(features_module, "build_split", counted)
    folders = both()
    assert len(builds) == 2
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(cache, "_lock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    assert both() == folders
    assert entries(tmp_path) == [Path(*folders).name]


DAMAGES: dict[str, Callable[[Path], None]] = {
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "one bit": lambda path: path.write_bytes(
        path.read_bytes()[:-33] + bytes([path.read_bytes()[-33] ^ 1, *path.read_bytes()[-32:]])
    ),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", list(DAMAGES))
@pytest.mark.parametrize(
    "name", ["train/tokens.values.npy", "valid/audio.values.npy", "train/label_N.npy", "features.json"]
)
def test_damaged_cache_is_built_again_and_said(
    tmp_path: Path, tiny_backbone: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_of(tmp_path / "own")
    first = {name: array.copy() for name, array in every_array(built(store, tiny_backbone)).items()}
    assert capsys.readouterr().err == ""
    path = Path(built(store, tiny_backbone).folder, name)
    DAMAGES[how](path)
    again = built(store, tiny_backbone)
    assert name in capsys.readouterr().err
    assert every_array(again).keys() == first.keys()
    for name, array in every_array(again).items():
        np.testing.assert_array_equal(array, first[name])
    assert entries(tmp_path) == [again.key]
    built(store, tiny_backbone)
    assert capsys.readouterr().err == ""


def test_cache_on_a_full_disk_leaves_nothing_and_says_how_to_go_on(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(tmp_path / "own")
    save = np.save

    def full(file: Any, array: Any) -> None:
        save(file, array[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(ClusterError, match="GRCF_CACHE"):
            built(store, tiny_backbone)
        with pytest.raises(ClusterError, match="cache --clear"):
            cached_array(tmp_path / "cache" / "features" / "key" / "train", "x", lambda: np.arange(3))
    assert entries(tmp_path) == ["key"]
    assert list((tmp_path / "cache" / "features" / "key" / "train").iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path, tiny_backbone: Path) -> None:
    store = store_of(tmp_path / "own")
    key = built(store, tiny_backbone).key
    left = tmp_path / "cache" / "features" / f".{key}.0123abcd" / "train"
    left.mkdir(parents=True)
    built(store, tiny_backbone)
    assert not left.parent.exists()


def test_cache_is_its_users_alone(tmp_path: Path, tiny_backbone: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = Path(built(store_of(tmp_path / "own"), tiny_backbone).folder)
        cached_array(folder / "train", "x", lambda: np.arange(3))
    finally:
        os.umask(before)
    for path in (tmp_path / "cache", *folder.parents[:1], folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_cached_array_is_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> NDArray[np.float32]:
        calls.append(1)
        return np.arange(6, dtype=np.float32)

    folder = tmp_path / "key" / "train"
    first, second = (cached_array(folder, "x", compute) for _ in range(2))
    np.testing.assert_array_equal(first, np.arange(6))
    np.testing.assert_array_equal(first, second)
    assert len(calls) == 1
    assert type(second) is np.ndarray and not second.flags.writeable
    assert [path.name for path in folder.iterdir()] == ["x.npy"]


def test_damaged_cached_array_is_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "key" / "train"
    cached_array(folder, "x", lambda: np.arange(6))
    (folder / "x.npy").write_bytes(bytes(200))
    np.testing.assert_array_equal(cached_array(folder, "x", lambda: np.arange(6)), np.arange(6))
    assert "x.npy" in capsys.readouterr().err
    np.testing.assert_array_equal(cached_array(folder, "x", lambda: np.zeros(6)), np.arange(6))


def test_cached_array_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        cached_array(tmp_path / "key" / "train", "x", lambda: (_ for _ in ()).throw(MemoryError))
    assert not (tmp_path / "key").exists()
