from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path

import pytest

from grcf_ray.cache import cache_entry, cache_folder, clear_cache, locked, making, usage
from grcf_ray.errors import ClusterError

DIGEST = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRCF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(kind: str, size: int = 10) -> Path:
    entry = cache_entry(kind, DIGEST)
    with making(entry) as beside:
        (beside / "deep").mkdir()
        (beside / "deep" / "file").write_bytes(bytes(size))
    return entry


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRCF_CACHE", "relative")
    assert cache_folder() == tmp_path / "relative"
    monkeypatch.delenv("GRCF_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "grcf_ray"


def test_an_entry_appears_whole_or_not_at_all() -> None:
    entry = cache_entry("tables", DIGEST)
    with contextlib.suppress(KeyboardInterrupt), making(entry) as beside:
        (beside / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(entry.parent.iterdir()) == []
    fill("tables", 1)
    with contextlib.suppress(KeyboardInterrupt), making(entry):
        raise KeyboardInterrupt
    assert (entry / "deep" / "file").stat().st_size == 1
    fill("tables", 2)
    assert (entry / "deep" / "file").stat().st_size == 2
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]


def test_usage_and_clearing_leave_what_is_not_ours(folder: Path, tmp_path: Path) -> None:
    assert [(part.entries, part.nbytes) for part in usage()] == [(0, 0), (0, 0)]
    assert [part.entries for part in clear_cache()] == [0, 0]
    fill("tables", 10), fill("features", 20)
    (folder / "features" / f".{DIGEST[:24]}.lock").touch()
    (folder / "features" / f".{DIGEST[:24]}.00ff00ff").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (folder / "tables" / ("f" * 24)).symlink_to(elsewhere)
    foreign = [folder / "mine", folder / "tables" / "mine.csv", folder / "features" / "notes"]
    for path in foreign:
        path.write_text("mine")
    assert [(part.kind, part.nbytes) for part in usage()] == [("tables", 10), ("features", 20)]
    assert [(part.kind, part.entries, part.nbytes) for part in clear_cache()] == [
        ("tables", 2, 10),
        ("features", 1, 20),
    ]
    assert all(path.read_text() == "mine" for path in foreign)
    assert (elsewhere / "file").exists()
    left = {path.name for path in folder.rglob("*")}
    assert left == {"mine", "tables", "mine.csv", "features", "notes", ".in-use"}


def test_a_cache_in_use_is_not_cleared(folder: Path) -> None:
    """Nothing goes, of the other kind either; what is made while it is cleared waits."""
    entries = [fill("tables"), fill("features")]
    with (folder / "features" / ".in-use").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(ClusterError, match="in use") as caught:
            clear_cache()
        assert caught.value.exit_code == 5
        assert all(entry.is_dir() for entry in entries)
    clear_cache()
    assert not any(entry.exists() for entry in entries)
    fill("features")
    with locked(entries[1]):
        pass
    with pytest.raises(ClusterError, match="in use"):
        clear_cache()


def test_a_cache_that_cannot_be_written_is_named(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(ClusterError, match="GRCF_CACHE") as caught:
        fill("tables")
    assert str(folder) in str(caught.value)
    with locked(cache_entry("tables", DIGEST)):
        pass
