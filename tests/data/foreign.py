"""Helpers for tests of importers: refusals, pickles of every protocol, strange values, and real data."""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from grcf_ray.data.importers import ImportOptions, import_source
from grcf_ray.errors import DataError

HEADER = "id,split,text,label\n"
ROWS = 'a,train,"good, or so",1.5\nb,dev,fine,0\nc,test,bad,-3\n'
OWN = ImportOptions(dataset="own", label_range=(-3, 3))
SPLITS = {"train": "train", "dev": "valid", "test": "test"}
"""The splits of pickles that are lists of samples, and our names."""

ITSELF: list[Any] = []
ITSELF.append(ITSELF)
STRANGE: list[Any] = [None, "x", b"", 7, 1.5, True, [], [[]], {}, (), [None] * 4, {"a": [1]}, "\ud800", ["\ud800"] * 4]
STRANGE += [10**400, [10**4000] * 4, np.ones(3), np.full(4, 99.0), np.ones((4, 4, 6)), np.ones((3, 0)), np.array(1.0)]
STRANGE += [np.array(["a"] * 5), np.array([b"x"]), np.array([None] * 4), [np.ones((2, 2))] * 4, ITSELF]
STRANGE += [((), None, None), (None,) * 4, ("x", None, None, None)]
"""Values of unexpected types."""

DOWNLOADS = {
    "a web page": b"<!DOCTYPE html><html>Quota exceeded</html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "the file is empty": b"",
    "a zip archive": b"PK\x03\x04",
    "a gzip archive": b"\x1f\x8b\x08",
}
"""Content of failed downloads, by a part of the message about each."""


def refusal(source: Path, options: ImportOptions = OWN) -> str:
    """The message of an import that fails."""
    with pytest.raises(DataError) as caught:
        import_source(source, options)
    assert caught.value.exit_code == 3
    return str(caught.value)


def faults(message: str) -> list[str]:
    """The faults in a message that has several."""
    return [line.strip() for line in message.splitlines()[1:]]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def rows_of(n: int, **extra: Any) -> pa.Table:
    """n training utterances and one of test."""
    columns = {
        "id": [f"u{row}" for row in range(n + 1)],
        "split": ["train"] * n + ["test"],
        "text": ["Some words"] * (n + 1),
        "label": [row % 7 - 3.0 for row in range(n + 1)],
        **extra,
    }
    return pa.table(columns)


class Python2(pickle._Pickler):
    """Writes bytes, and texts as those of UTF-8, as Python 2 wrote its str."""

    def save_str(self, text: str | bytes) -> None:
        content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch: ClassVar[dict[Any, Any]] = {**pickle._Pickler.dispatch, str: save_str, bytes: save_str}


def dumped(content: Any, protocol: int | str) -> bytes:
    """A pickle of a protocol, or of `Python 2`."""
    if protocol != "Python 2":
        return pickle.dumps(content, protocol)
    file = io.BytesIO()
    Python2(file, 2).dump(content)
    return file.getvalue()


def write_pickle(path: Path, content: Any, protocol: int | str = 4) -> Path:
    path.write_bytes(dumped(content, protocol))
    return path


def changed(value: Any, place: tuple[int, ...], new: Any) -> Any:
    """Nested tuples with one member replaced, or given to a function."""
    if not place:
        return new(value) if callable(new) else new
    return tuple(changed(part, place[1:], new) if at == place[0] else part for at, part in enumerate(value))


def real_file(name: str) -> Path:
    """A file of real data, or skip the test."""
    root = os.environ.get("GRCF_TEST_DATA")
    path = Path(root or "") / name
    if not root or not path.is_file():
        pytest.skip(f"GRCF_TEST_DATA names no folder with {name}")
    return path
