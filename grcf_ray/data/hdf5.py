"""HDF5 files from the internet: nothing of them leads into other files, and sizes are not believed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]

from grcf_ray.errors import DataError, reason

# Far beyond what deflate can do: where an array is larger than its storage by that, its shape is damaged.
_COMPRESSION = 2000


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file, open for reading; DataError where it is damaged."""
    with reading(path):
        # Nobody writes to it, and some network storage cannot lock.
        file = h5py.File(path, "r", locking=False)
    with file:
        yield file


@contextmanager
def reading(path: Path, what: str = "") -> Iterator[None]:
    """What is read here may be damaged in any way; DataError names the file and, if given, the part of it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {what}{error}") from error
    except Exception as error:
        raise DataError(f"{path}: {what}damaged ({reason(error)}); download it again") from error


def member(group: Any, name: str, kind: Any, *, called: str = "") -> Any:
    """What a group holds under a name, which messages may call otherwise. No link is followed, wherever it leads."""
    called = called or repr(name)
    link = group.get(name, getlink=True)
    if link is None:
        raise DataError(f"{called} is missing")
    if not isinstance(link, h5py.HardLink):
        raise DataError(f"{called} is a link, which is not followed")
    found = group[name]
    if not isinstance(found, kind):
        raise DataError(f"{called} is no {kind.__name__.lower()}")
    if h5py.h5o.get_info(found.id).rc > 1:
        # What is there once would take its memory each time.
        raise DataError(f"{called} has more than one name in the file")
    return found


def dataset(group: Any, name: str, *, called: str = "") -> Any:
    """An array [n] or [n, d] of numbers or texts that the file itself holds; its values are not read yet."""
    found = member(group, name, h5py.Dataset, called=called)
    called = called or repr(name)
    if found.is_virtual or found.external:
        raise DataError(f"{called} is in another file, which is not read")
    if found.dtype.kind not in "fiu" and not is_text(found.dtype):
        raise DataError(f"{called} is of type {found.dtype}, neither numbers nor texts")
    if found.shape is None or len(found.shape) not in (1, 2) or not all(found.shape[1:]):
        raise DataError(f"{called} is of shape {found.shape}, not rows of values")
    if found.nbytes > found.id.get_storage_size() * (1 if found.chunks is None else _COMPRESSION):
        raise DataError(f"{called} is of shape {found.shape}, little of which is in the file")
    return found


def is_text(kind: Any) -> bool:
    """Whether a dtype is that of texts."""
    return h5py.check_string_dtype(kind) is not None
