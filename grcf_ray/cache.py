"""The cache: folders that can be made again, each named by what it was made from.

An entry is `KIND/KEY`, private to its user, and appears whole or not at all. Processes that want the same entry make it
one at a time; an entry that a process may still read is never cleared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from grcf_ray.errors import ClusterError
from grcf_ray.files import atomic_write, sync

KINDS = ("tables", "features")
"""Imports of foreign files, and features of stores."""

_KEY_LENGTH = 24
_OURS = re.compile(rf"[0-9a-f]{{{_KEY_LENGTH}}}|\.[0-9a-f]{{{_KEY_LENGTH}}}\..+")
"""Entries, and beside them their locks and what a killed process left of them."""
_IN_USE = ".in-use"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_held: dict[Path, IO[bytes]] = {}
"""The shared locks of this process, which last as long as it."""


class Usage(NamedTuple):
    """What a part of the cache takes."""

    kind: str
    folder: Path
    entries: int
    nbytes: int


def cache_folder() -> Path:
    """What can be made again lies here: `$GRCF_CACHE`, else `~/.cache/grcf_ray`."""
    return Path(os.environ.get("GRCF_CACHE") or Path.home() / ".cache" / "grcf_ray").absolute()


def cache_entry(kind: str, digest: str) -> Path:
    """The folder of an entry, existing or not. kind: one of `KINDS`; digest: hexadecimal, of all that it is made of."""
    return cache_folder() / kind / digest[:_KEY_LENGTH]


@contextlib.contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Keep other processes from making or replacing an entry while the context lasts, and its kind from being cleared
    while this process lives.

    Where the cache cannot be written, or its file system knows no locks, there is none.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            _make_private(entry.parent)
            if entry.parent not in _held:
                _held[entry.parent] = _lock(entry.parent / _IN_USE, fcntl.LOCK_SH)
            stack.enter_context(_lock(entry.with_name(f".{entry.name}.lock"), fcntl.LOCK_EX))
            for left in entry.parent.glob(f".{entry.name}.*"):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
        yield


@contextlib.contextmanager
def making(entry: Path) -> Iterator[Path]:
    """Give a folder to fill, private to its user; it takes the place of `entry` whole, or vanishes on an error.

    Its files are flushed to the disk first. ClusterError where the cache cannot be written.
    """
    replaces = entry.exists()
    beside, aside = (entry.with_name(f".{entry.name}.{uuid.uuid4().hex[:8]}") for _ in range(2))
    try:
        _make_private(beside)
        yield beside
        for folder, _, names in os.walk(beside, topdown=False):
            for name in names:
                path = Path(folder, name)
                path.chmod(0o600)
                sync(path)
            Path(folder).chmod(0o700)
            sync(Path(folder))
        if replaces:
            entry.rename(aside)
        try:
            beside.rename(entry)
        except OSError:
            # Without locks another process may have made the same meanwhile: theirs is as good.
            if not entry.is_dir():
                raise
        sync(entry.parent)
    except OSError as error:
        raise _unwritable(entry, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def adding(path: Path) -> Iterator[Path]:
    """Give a path to write a file of an entry to; flushed, it takes the place of `path`, or vanishes on an error.

    ClusterError where the cache cannot be written.
    """
    try:
        with atomic_write(path) as beside:
            yield beside
            beside.chmod(0o600)
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def usage() -> list[Usage]:
    """What each part of the cache takes; the files of other programs are not counted."""
    found = []
    for kind in KINDS:
        folder = cache_folder() / kind
        entries = _ours(folder)
        nbytes = sum(_size(path) for path in entries)
        found.append(Usage(kind, folder, sum(not path.name.startswith(".") for path in entries), nbytes))
    return found


def clear_cache() -> list[Usage]:
    """Remove every entry and say what was removed. ClusterError, with nothing removed, while a process uses one."""
    with contextlib.ExitStack() as stack:
        before = usage()
        for part in before:
            if part.folder.is_dir():
                try:
                    stack.enter_context(_lock(part.folder / _IN_USE, fcntl.LOCK_EX | fcntl.LOCK_NB))
                except BlockingIOError as error:
                    raise ClusterError(
                        f"{part.folder} is in use by another process; clear it when that has ended. Nothing was removed"
                    ) from error
                except OSError as error:
                    raise _unwritable(part.folder, error) from error
        for part in before:
            for path in _ours(part.folder):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        left = {part.kind: part for part in usage()}
    if failed := [str(part.folder) for part in left.values() if part.entries]:
        raise ClusterError(f"{', '.join(failed)}: some of it could not be removed; look at who owns its folders")
    return before


def unreadable(entry: Path, error: OSError) -> ClusterError:
    """The error for an entry that the system keeps this process from reading, as it does another user's."""
    return ClusterError(
        f"{entry} cannot be read ({error.strerror or error}). Give a cache of your own: GRCF_CACHE=FOLDER"
    )


def _unwritable(entry: Path, error: OSError) -> ClusterError:
    remedy = "Free some room: python -m grcf_ray.data cache --clear, or g" if error.errno in _FULL else "G"
    return ClusterError(
        f"the cache {entry.parent} cannot be written ({error.strerror or error}). {remedy}ive another folder: "
        "GRCF_CACHE=FOLDER"
    )


def _make_private(folder: Path) -> None:
    """Make a folder, and those above that are missing, for their user alone."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)


def _lock(path: Path, how: int) -> IO[bytes]:
    """An open file that has the lock until it is closed. OSError where it cannot be had."""
    file = path.open("ab")
    try:
        fcntl.flock(file, how)
    except BaseException:
        file.close()
        raise
    return file


def _ours(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if _OURS.fullmatch(path.name)] if folder.is_dir() else []


def _size(path: Path) -> int:
    paths = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    return sum(one.lstat().st_size for one in paths)
