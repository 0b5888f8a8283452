from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grcf_ray import files
from grcf_ray.files import (
    atomic_write,
    clear_scratch,
    file_sha256,
    link_or_copy,
    replace_folder,
    scratch_folder,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_and_json_come_back(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "er" / "a.txt", "Grüße\n")
    assert (tmp_path / "deep" / "er" / "a.txt").read_bytes() == "Grüße\n".encode()
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": "ß"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"b": [1, 2.5, None], "a": "ß"}
    assert text.endswith("}\n") and "ß" in text
    assert names(tmp_path) == ["a.json", "deep"]


def test_the_new_file_takes_the_old_ones_place_at_the_end_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with atomic_write(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
        assert beside.parent == path.parent
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def half_written() -> None:
        with atomic_write(path) as beside:
            beside.write_text("ne")
            raise error

    with pytest.raises(type(error)):
        half_written()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_failure_to_flush_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not on the disk does not take the place of what is."""
    path = tmp_path / "a"
    path.write_text("old")

    def broken(_: int) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(OSError, match="input/output"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_rename_is_flushed_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    real = os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda handle: (flushed.append(os.fstat(handle).st_ino), real(handle)))
    write_text(tmp_path / "a", "new")
    assert flushed == [(tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino]


def write_folder(folder: Path, text: str) -> None:
    with replace_folder(folder) as filled:
        write_text(filled / "a", text)


@pytest.mark.parametrize("write", [write_text, write_folder])
def test_folder_that_cannot_be_opened_or_flushed_fails_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, str], None]
) -> None:
    """On some systems a folder is no file; the rename itself has been made."""
    real_open, real_fsync = os.open, os.fsync

    def opened(path: Any, *rest: Any, **more: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError("a folder")
        return real_open(path, *rest, **more)

    def flushed(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError("invalid argument")
        real_fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "open", opened)
        write(tmp_path / "one", "one")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", flushed)
        write(tmp_path / "two", "two")
    files_of = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert [path.read_text() for path in files_of] == ["one", "two"]


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_takes_no_room_if_the_disk_has_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refused(*_: Any) -> None:
        raise OSError("no links on this disk")

    if not links:
        monkeypatch.setattr(files.os, "link", refused)
    (tmp_path / "a").write_text("x")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "x"
    assert (tmp_path / "a").samefile(tmp_path / "b") == links
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "missing", tmp_path / "c")


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}, {1, 2}])
def test_json_refuses_what_it_has_no_word_for(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == 1
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 3])
def test_sha256(tmp_path: Path, size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_temporary_files_go_with_their_context_or_when_the_process_is_about_to_end(tmp_path: Path) -> None:
    with scratch_folder("grcf-test-") as folder:
        (folder / "file").write_text("x")
    assert not folder.exists()
    with scratch_folder("grcf-test-") as folder, contextlib.suppress(FileNotFoundError):
        with atomic_write(tmp_path / "a") as beside:
            beside.write_text("part")
            clear_scratch()
            assert not folder.exists()
            assert names(tmp_path) == []
        pytest.fail("what was removed cannot take a file's place")
