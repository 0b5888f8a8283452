"""Read untrusted HDF5 files: follow no link into another file, and check every size against the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]

from grcf_ray.errors import DataError, reason

# Far beyond the ratio that deflate reaches: a larger array has a damaged shape.
_COMPRESSION = 2000


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file for reading; DataError if it is damaged."""
    with reading(path):
        # No process writes to the file, and some network file systems cannot lock.
        file = h5py.File(path, "r", locking=False)
    with file:
        yield file


@contextmanager
def reading(path: Path, part: str = "") -> Iterator[None]:
    """Turn any exception of a read into a DataError that names the file and `part`, the part of it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {part}{error}") from error
    except Exception as error:
        raise DataError(f"{path}: {part}damaged ({reason(error)}); download it again") from error


def member(group: Any, name: str, kind: Any, *, called: str = "") -> Any:
    """Return the member of a group, without following links; called: its name in messages."""
    called = called or repr(name)
    link = group.get(name, getlink=True)
    if link is None:
        raise DataError(f"{called} is missing")
    if not isinstance(link, h5py.HardLink):
        raise DataError(f"{called} is a link, which is not followed")
    value = group[name]
    if not isinstance(value, kind):
        raise DataError(f"{called} is not a {kind.__name__.lower()}")
    if h5py.h5o.get_info(value.id).rc > 1:
        # A small file could become a large table if it named one array many times.
        raise DataError(f"{called} has more than one name in the file")
    return value


def dataset(group: Any, name: str, *, called: str = "") -> Any:
    """Return an array [n] or [n, d] of numbers or texts, stored in the file itself, without reading its values."""
    array = member(group, name, h5py.Dataset, called=called)
    called = called or repr(name)
    if array.is_virtual or array.external:
        raise DataError(f"{called} is stored in another file, which is not read")
    if array.dtype.kind not in "fiu" and not is_text(array.dtype):
        raise DataError(f"{called} is of type {array.dtype}, not numbers or texts")
    if array.shape is None or len(array.shape) not in (1, 2) or not all(array.shape[1:]):
        raise DataError(f"{called} is of shape {array.shape}, not rows of values")
    if array.nbytes > array.id.get_storage_size() * (1 if array.chunks is None else _COMPRESSION):
        raise DataError(f"{called} is of shape {array.shape}, but the file holds little of it")
    return array


def is_text(kind: Any) -> bool:
    """Return whether a dtype holds texts."""
    return h5py.check_string_dtype(kind) is not None
