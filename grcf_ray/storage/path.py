"""`StoragePath`: the interface of a file or folder of a run, on disk or in object storage."""

from __future__ import annotations

import contextlib
import functools
import json
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from grcf_ray.errors import DataError

_T = TypeVar("_T")
_DAMAGED = 3
"""Number of equal reads in a row after which invalid JSON counts as damaged."""


class StoragePath(ABC):
    """A file or folder of a run, existing or not. `place / name` is an entry in it."""

    @property
    @abstractmethod
    def uri(self) -> str:
        """The path or URI that `storage_path` opens again, on any machine with access to it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of the path."""

    @property
    @abstractmethod
    def local(self) -> Path | None:
        """The path on this machine; None in object storage."""

    @abstractmethod
    def __truediv__(self, name: str) -> StoragePath: ...

    def at(self, path: str) -> StoragePath:
        """Return the place of a relative path, whose parts are separated by slashes; this place for an empty one."""
        return functools.reduce(operator.truediv, path.split("/") if path else (), self)

    @abstractmethod
    def beside(self, name: str) -> StoragePath:
        """Return the entry with another name in the same folder."""

    @abstractmethod
    def exists(self) -> bool:
        """Return whether the file or folder exists."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names in a folder, sorted; empty if the folder does not exist. Unfinished files are left out."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """Return the content of a file. FileNotFoundError if it does not exist."""

    @abstractmethod
    def reading(self) -> contextlib.AbstractContextManager[Path]:
        """Provide the file as a path on this machine, until the context ends. FileNotFoundError if it is missing."""

    @abstractmethod
    def writing(self) -> contextlib.AbstractContextManager[Path]:
        """Provide a path on this machine to write to. Its file replaces this one at the end, unless an error occurs."""

    @abstractmethod
    def reading_folder(self) -> contextlib.AbstractContextManager[Path]:
        """Provide the whole folder as a path on this machine, until the context ends.

        FileNotFoundError if it does not exist.
        """

    @abstractmethod
    def writing_folder(self) -> contextlib.AbstractContextManager[Path]:
        """Provide a folder on this machine to write to. Its files are added to this one, unless an error occurs."""

    @abstractmethod
    def delete(self) -> None:
        """Delete the file, or the folder with its content, if it exists."""

    @abstractmethod
    def make_private(self) -> None:
        """Create the folder, readable by its owner only if the storage has owners."""

    @abstractmethod
    def share(self) -> None:
        """Give the folder the permissions of the user's umask, if the storage has owners."""

    @abstractmethod
    def rooted(self) -> StoragePath:
        """Return the same place as a root, which outlasts no outages yet.

        A root can be a link itself, but no write follows a link inside it.
        """

    @abstractmethod
    def check_links(self) -> None:
        """Raise DataError if the folder has a link at any depth: a write through it would leave the run."""

    @abstractmethod
    def outlast_outages(self, confirm: Callable[[], None] | None) -> None:
        """From now on, repeat what fails here and below until the storage answers again, for up to ten minutes.

        confirm: called after a failure, before the next try; it raises an error if this process may write no more.
        None: stop repeating.
        """

    @abstractmethod
    def outlasting(self, call: Callable[[], _T]) -> _T:
        """Return the result of a call, which is repeated as `outlast_outages` says."""

    def write_text(self, text: str) -> None:
        """Write a text as the whole content of the file."""
        with self.writing() as path:
            path.write_text(text, encoding="utf-8")

    def write_json(self, value: Any) -> None:
        """Write a value as readable JSON. ValueError for NaN and infinity, which JSON lacks."""
        self.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def read_json(self) -> Any:
        """Return the content of a JSON file. FileNotFoundError if it is missing, DataError if it is not JSON."""
        content, equal_reads = self.read_bytes(), 1
        while True:
            try:
                return json.loads(content, parse_constant=_refuse_constant)
            except (RecursionError, ValueError) as error:
                # pyarrow asks for the size of an object, then for that many bytes. If another process replaces the
                # object in between, the content is cut short; two alternating writers can cause that twice in a row.
                if equal_reads == _DAMAGED:
                    raise DataError(f"{self} is damaged: not JSON ({error}). Restore it from a copy") from error
                before, content = content, self.read_bytes()
                equal_reads = equal_reads + 1 if content == before else 1

    def read_jsons(self, names: Sequence[str]) -> list[Any]:
        """Return the contents of several JSON files in this folder."""
        return [(self / name).read_json() for name in names]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")
