"""Keep arrays in files that end in a checksum and are read by memory mapping."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grcf_ray import console
from grcf_ray.cache import adding, locked, unreadable
from grcf_ray.errors import DamagedError
from grcf_ray.files import file_sha256

# numpy reads a file's header with `ast`, of which Python before 3.13 does one call at a time: SystemError "recursion
# depth mismatch" in a thread that is interrupted by another's.
_headers = threading.Lock()


def cached_array(folder: Path, name: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """Return an array of a split's folder, memory-mapped.

    It is computed and stored on first use, and again if its file is damaged.
    """
    path = folder / f"{name}.npy"
    with locked(folder.parent):
        if path.exists():
            try:
                return load_array(path)
            except DamagedError as error:
                console.progress(f"The cached features are damaged ({error}); computing them again")
        array = compute()
        with adding(path) as beside:
            save_array(beside, array)
        return load_array(path)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array followed by its SHA-256, which numpy ignores."""
    with path.open("wb") as file:
        np.save(file, array)
    digest = file_sha256(path)
    with path.open("ab") as file:
        file.write(bytes.fromhex(digest))


def load_array(path: Path) -> NDArray[Any]:
    """Memory-map the array of a file, which the processes of a machine then share.

    DamagedError if `save_array` wrote other bytes.
    """
    length = hashlib.sha256().digest_size
    try:
        size = path.stat().st_size - length
        with path.open("rb") as file:
            file.seek(max(0, size))
            written = file.read()
        if size < 0 or file_sha256(path, size) != written.hex():
            raise DamagedError(f"{path} changed since it was written")
        # A plain view: Ray's object store copies a subclass of ndarray into every process.
        with _headers:
            return np.load(path, mmap_mode="r").view(np.ndarray)  # type: ignore[no-any-return]
    except PermissionError as error:
        raise unreadable(path, error) from error
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}") from error
