"""Temporary files, and atomic writes: a file beside the target, fsync, rename.

A reader sees the old file or the new one, never a part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from grcf_ray.console import Progress
from grcf_ray.console import size as bytes_text

_HASHED = 1 << 20
"""Bytes hashed at a time."""
_scratch: set[Path] = set()
"""Temporary files and folders that this process has created and not yet removed."""


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Provide a temporary folder; it is removed when the context ends."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    _scratch.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _scratch.discard(folder)


def clear_scratch() -> None:
    """Remove all temporary files and folders of this process, before it exits without ending its contexts."""
    for path in list(_scratch):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Provide a path beside `path` to write to. At the end it replaces `path`; on an error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    _scratch.add(beside)
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        _sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)
        _scratch.discard(beside)


@contextmanager
def replace_folder(folder: Path, *, equivalent: bool = False) -> Iterator[Path]:
    """Provide a new folder beside `folder` to fill. At the end it replaces `folder`; on an error nothing changes.

    equivalent: a folder that another process creates meanwhile has the same content, and is kept.
    """
    replaces = folder.exists()
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    aside = beside.with_name(f"{beside.name}.old")
    try:
        beside.mkdir(parents=True)
        yield beside
        for inner, _, names in os.walk(beside, topdown=False):
            for name in names:
                sync(Path(inner, name))
            _sync_folder(Path(inner))
        if replaces:
            folder.rename(aside)
        try:
            beside.rename(folder)
        except BaseException as error:
            if replaces:
                aside.rename(folder)
            if replaces or not (equivalent and isinstance(error, OSError) and folder.is_dir()):
                raise
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Flush the entries of a folder, so that a rename in it survives a power cut. Not every file system can."""
    with suppress(OSError):
        sync(folder)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it to another disk, or if the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_text(path: Path, text: str) -> None:
    """Write a text atomically as the whole content of `path`."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value atomically as readable JSON. ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def file_sha256(path: Path, size: int = sys.maxsize) -> str:
    """Return the SHA-256 of a file's content, or of its first `size` bytes, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        progress = Progress(f"hashing {path.name}", min(size, path.stat().st_size), show=bytes_text)
        while block := file.read(min(_HASHED, size)):
            digest.update(block)
            size -= len(block)
            progress.add(len(block))
    return digest.hexdigest()
