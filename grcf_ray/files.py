"""Temporary files, and atomic writes: beside, fsync, rename.

A reader sees the old file or the new one, never a part.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_scratch: set[Path] = set()
"""The temporary files and folders that this process has now."""


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder, for as long as the context lasts."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    _scratch.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _scratch.discard(folder)


def clear_scratch() -> None:
    """Remove the temporary files and folders of this process, which is about to end without leaving its contexts."""
    for path in list(_scratch):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` at the end, or vanishes on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    _scratch.add(beside)
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        # Makes the rename outlive a power cut, where the file system knows how.
        with suppress(OSError):
            sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)
        _scratch.discard(beside)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` atomically: a second name where the disk allows, else a copy."""
    with atomic_write(target) as beside:
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)


def write_text(path: Path, text: str) -> None:
    """The text as the whole content of `path`."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """The value as readable JSON; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
