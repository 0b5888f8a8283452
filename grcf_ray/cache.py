"""The cache: folders that can be created again, each named by a hash of its inputs.

An entry is `KIND/KEY`. It is private to its user, and complete or absent. Processes that need the same entry create it
one at a time. An entry in use by a process is never cleared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from grcf_ray.errors import ClusterError
from grcf_ray.files import atomic_write, replace_folder

KINDS = ("tables", "features")
"""Imports of foreign files, and features of data sets."""

_KEY_LENGTH = 24
_ENTRY = re.compile(rf"[0-9a-f]{{{_KEY_LENGTH}}}|\.[0-9a-f]{{{_KEY_LENGTH}}}\..+")
"""Names of entries, of their locks, and of remains of killed processes."""
_IN_USE = ".in-use"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_held: dict[Path, IO[bytes]] = {}
"""The shared locks of this process, held until it ends."""


class Usage(NamedTuple):
    """Size of one kind of entries."""

    kind: str
    folder: Path
    entries: int
    nbytes: int


def cache_folder() -> Path:
    """Return the folder of the cache: `$GRCF_CACHE`, else `~/.cache/grcf_ray`."""
    return Path(os.environ.get("GRCF_CACHE") or Path.home() / ".cache" / "grcf_ray").absolute()


def cache_entry(kind: str, digest: str) -> Path:
    """Return the folder of an entry, existing or not.

    kind: one of `KINDS`. digest: a hexadecimal hash of all inputs.
    """
    return cache_folder() / kind / digest[:_KEY_LENGTH]


@contextlib.contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Keep other processes from creating or replacing an entry until the context ends.

    While this process lives, its kind of entries cannot be cleared. If the cache is read-only, or its file system has
    no locks, nothing is locked.
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
    """Provide a folder to fill, private to its user. At the end it replaces `entry`; on an error it is removed.

    Its files are flushed to disk first. ClusterError if the cache cannot be written.
    """
    try:
        _make_private(entry.parent)
        with replace_folder(entry, equivalent=True) as beside:
            beside.chmod(0o700)
            yield beside
            for path in beside.rglob("*"):
                path.chmod(0o700 if path.is_dir() else 0o600)
    except OSError as error:
        raise _unwritable(entry, error) from error


@contextlib.contextmanager
def adding(path: Path) -> Iterator[Path]:
    """Provide a path for one file of an entry. At the end it is flushed and replaces `path`; on an error it is removed.

    ClusterError if the cache cannot be written.
    """
    try:
        with atomic_write(path) as beside:
            yield beside
            beside.chmod(0o600)
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def usage() -> list[Usage]:
    """Return the size of each kind of entries; files of other programs are not counted."""
    parts = []
    for kind in KINDS:
        folder = cache_folder() / kind
        paths = _entries(folder)
        nbytes = sum(_size(path) for path in paths)
        parts.append(Usage(kind, folder, sum(not path.name.startswith(".") for path in paths), nbytes))
    return parts


def clear_cache() -> list[Usage]:
    """Remove all entries and return their former sizes.

    ClusterError, with nothing removed, while a process uses one.
    """
    with contextlib.ExitStack() as stack:
        before = usage()
        for part in before:
            if part.folder.is_dir():
                try:
                    stack.enter_context(_lock(part.folder / _IN_USE, fcntl.LOCK_EX | fcntl.LOCK_NB))
                except BlockingIOError as error:
                    raise ClusterError(
                        f"{part.folder} is in use by another process. Nothing was removed; clear the cache after that "
                        "process has ended"
                    ) from error
                except OSError as error:
                    raise _unwritable(part.folder, error) from error
        for part in before:
            for path in _entries(part.folder):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        left = {part.kind: part for part in usage()}
    if failed := [str(part.folder) for part in left.values() if part.entries]:
        raise ClusterError(f"{', '.join(failed)}: some entries could not be removed; check who owns them")
    return before


def unreadable(entry: Path, error: OSError) -> ClusterError:
    """Return the error for an entry that this process may not read, such as another user's."""
    return ClusterError(
        f"{entry} cannot be read ({error.strerror or error}). Use a cache of your own: GRCF_CACHE=FOLDER"
    )


def _unwritable(entry: Path, error: OSError) -> ClusterError:
    free_space = "Free disk space (python -m grcf_ray.data cache --clear), or u" if error.errno in _FULL else "U"
    return ClusterError(
        f"the cache {entry.parent} cannot be written ({error.strerror or error}). {free_space}se another folder: "
        "GRCF_CACHE=FOLDER"
    )


def _make_private(folder: Path) -> None:
    """Create a folder and its missing parents for their user only."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)


def _lock(path: Path, operation: int) -> IO[bytes]:
    """Return an open file that holds the lock until it is closed. OSError if the lock is not available."""
    file = path.open("ab")
    try:
        fcntl.flock(file, operation)
    except BaseException:
        file.close()
        raise
    return file


def _entries(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if _ENTRY.fullmatch(path.name)] if folder.is_dir() else []


def _size(path: Path) -> int:
    paths = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    return sum(file.lstat().st_size for file in paths)
