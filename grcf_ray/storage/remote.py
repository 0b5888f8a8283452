"""Runs in object storage: s3://, gs:// and the other schemes of pyarrow.

One upload per write, so that a reader sees the old object or the new one.
"""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import parse_qsl, quote

from typing_extensions import override

from grcf_ray import console
from grcf_ray.errors import ConfigError
from grcf_ray.files import scratch_folder
from grcf_ray.retry import pause
from grcf_ray.storage.path import StoragePath

if TYPE_CHECKING:
    from pyarrow import fs as pafs

_T = TypeVar("_T")
_P = ParamSpec("_P")

OUTAGE_S = 600.0
"""Time for storage to answer again, in seconds."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_LASTING = re.compile(r"NO_SUCH|NOT_FOUND|ACCESS_DENIED|INVALID|does not exist|PERMISSION_DENIED")
"""Errors of object storage that another try does not change."""
_READERS = 16
"""Number of small objects to fetch in parallel; each takes a round trip."""
_KEYS = re.compile(r"[^/@]*:(?!\d+/)[^@]*@")
"""User and password before the host of a URI. A password can contain slashes; digits and a slash are a port."""
_SECRETS = re.compile(r"(?:^|&)[^=&]*(?:key|password|secret|sig|token)[^=&]*=", re.IGNORECASE)
"""Secret keys in the query of a URI, such as Azure's `sig` and `client_secret`."""


class _Outages:
    """How the paths below a root meet an outage of their storage."""

    def __init__(self) -> None:
        self.confirm: Callable[[], None] | None = None
        """As for `outlast_outages`."""
        self._ongoing = False

    def outlast(self, call: Callable[[], _T]) -> _T:
        """Return the result of a call. OSError if the storage does not answer within `OUTAGE_S`."""
        start, failures = time.monotonic(), 0
        while True:
            try:
                if failures and self.confirm is not None:
                    self.confirm()
                result = call()
            except OSError as error:
                if self.confirm is None or not _passes(error) or time.monotonic() - start > OUTAGE_S:
                    raise
                failures += 1
                self._note(f"The storage does not answer ({first_line(error)}); waiting up to {OUTAGE_S / 60:g} min")
                time.sleep(pause(failures, first=_FIRST_PAUSE_S, most=_LONGEST_PAUSE_S))
            else:
                if failures:
                    self._note("The storage answers again", ongoing=False)
                return result

    def _note(self, message: str, *, ongoing: bool = True) -> None:
        # Several threads can wait for the same storage.
        if self._ongoing != ongoing:
            self._ongoing = ongoing
            console.progress(message)


def _passes(error: OSError) -> bool:
    """Return whether an error may be gone at the next try. Errors of object storage have no number."""
    return error.errno is None and not isinstance(error, FileNotFoundError) and not _LASTING.search(str(error))


def _outlasting(method: Callable[Concatenate[RemotePath, _P], _T]) -> Callable[Concatenate[RemotePath, _P], _T]:
    """Have a method outlast outages of the storage."""

    @functools.wraps(method)
    def outlasting(self: RemotePath, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self.outlasting(lambda: method(self, *args, **kwargs))

    return outlasting


class RemotePath(StoragePath):
    """An object, or a prefix of objects, in storage that pyarrow opens."""

    def __init__(
        self, filesystem: pafs.FileSystem, path: str, address: str, query: str, outages: _Outages | None = None
    ) -> None:
        """path: in the filesystem. address, query: the two parts of its URI. outages: of the root, None for a root."""
        self._filesystem, self._path, self._address, self._query = filesystem, path, address, query
        self._outages = outages or _Outages()

    def __str__(self) -> str:
        return self._address

    @property
    @override
    def uri(self) -> str:
        # The query can name an endpoint.
        return f"{self._address}?{self._query}" if self._query else self._address

    @property
    @override
    def name(self) -> str:
        return self._path.rpartition("/")[2]

    @property
    @override
    def local(self) -> None:
        return None

    @override
    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(
            self._filesystem,
            f"{self._path}/{name}",
            f"{self._address}/{quote(name, safe='')}",
            self._query,
            self._outages,
        )

    @override
    def beside(self, name: str) -> RemotePath:
        path, address = (text.rpartition("/")[0] for text in (self._path, self._address))
        return RemotePath(self._filesystem, path, address, self._query, self._outages) / name

    @override
    @_outlasting
    def exists(self) -> bool:
        from pyarrow import fs as pafs

        return bool(self._filesystem.get_file_info(self._path).type != pafs.FileType.NotFound)

    @override
    @_outlasting
    def names(self) -> list[str]:
        from pyarrow import fs as pafs

        entries = self._filesystem.get_file_info(pafs.FileSelector(self._path, allow_not_found=True))
        return sorted(entry.base_name for entry in entries)

    @override
    @_outlasting
    def read_bytes(self) -> bytes:
        with self._filesystem.open_input_stream(self._path) as stream:
            content: bytes = stream.read()
        return content

    @override
    @_outlasting
    def write_text(self, text: str) -> None:
        # Without a file on this machine, which would cost as much as the upload.
        with self._filesystem.open_output_stream(self._path) as stream:
            stream.write(text.encode())

    @override
    def read_jsons(self, names: Sequence[str]) -> list[Any]:
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(lambda name: (self / name).read_json(), names))

    @contextlib.contextmanager
    @override
    def reading(self) -> Iterator[Path]:
        with scratch_folder("grcf-") as folder:
            self._copy(folder / self.name, upload=False)
            yield folder / self.name

    @contextlib.contextmanager
    @override
    def writing(self) -> Iterator[Path]:
        with scratch_folder("grcf-") as folder:
            yield folder / self.name
            self._copy(folder / self.name, upload=True)

    @contextlib.contextmanager
    @override
    def reading_folder(self) -> Iterator[Path]:
        with scratch_folder("grcf-") as folder:
            self._copy(folder, upload=False)
            yield folder

    @contextlib.contextmanager
    @override
    def writing_folder(self) -> Iterator[Path]:
        with scratch_folder("grcf-") as folder:
            yield folder
            self._copy(folder, upload=True)

    @override
    @_outlasting
    def delete(self) -> None:
        from pyarrow import fs as pafs

        kind = self._filesystem.get_file_info(self._path).type
        # Another process can delete the same object at the same time.
        with contextlib.suppress(FileNotFoundError):
            if kind == pafs.FileType.Directory:
                self._filesystem.delete_dir(self._path)
            elif kind == pafs.FileType.File:
                self._filesystem.delete_file(self._path)

    @override
    def make_private(self) -> None:
        """Do nothing: object storage has no folders, and access is set on the bucket."""

    @override
    def share(self) -> None:
        """Do nothing: access is set on the bucket."""

    @override
    def rooted(self) -> RemotePath:
        return RemotePath(self._filesystem, self._path, self._address, self._query)

    @override
    def outlast_outages(self, confirm: Callable[[], None] | None) -> None:
        self._outages.confirm = confirm

    @override
    def outlasting(self, call: Callable[[], _T]) -> _T:
        return self._outages.outlast(call)

    @override
    def check_links(self) -> None:
        """Do nothing: object storage has no links."""

    @_outlasting
    def _copy(self, local: Path, *, upload: bool) -> None:
        """Upload the local file or folder to this place, or download this place to it."""
        from pyarrow import fs as pafs

        ends = [(str(local), pafs.LocalFileSystem()), (self._path, self._filesystem)]
        (source, source_filesystem), (target, target_filesystem) = ends if upload else reversed(ends)
        pafs.copy_files(source, target, source_filesystem, target_filesystem)


def open_remote(scheme: str, rest: str) -> RemotePath:
    """Return the place of the URI `scheme://rest`. ConfigError if no storage serves it, or if it contains secrets."""
    from pyarrow import ArrowInvalid, ArrowNotImplementedError
    from pyarrow import fs as pafs

    path, _, query = rest.partition("?")
    endpoints = (value for key, value in parse_qsl(query) if key == "endpoint_override")
    if _KEYS.match(rest) or _SECRETS.search(query) or any("@" in endpoint for endpoint in endpoints):
        raise ConfigError(
            f"{scheme}://...: the URI contains secret keys, which would be recorded with the run. Set them in the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or in ~/.aws/credentials, on every machine"
        )
    # Encoded characters stay; spaces and non-ASCII letters are encoded here.
    address = f"{scheme}://" + quote(path.rstrip("/"), safe="/%:@~!$&'()*+,;=")
    try:
        filesystem, inner = pafs.FileSystem.from_uri(f"{address}?{query}" if query else address)
    except (ArrowInvalid, ArrowNotImplementedError) as error:
        raise ConfigError(
            f"{scheme}://{rest}: no such storage ({first_line(error)}); use a folder, or a URI such as "
            "s3://bucket/runs or gs://bucket/runs"
        ) from error
    if not inner:
        raise ConfigError(f"{scheme}://{rest}: the bucket is missing; use a URI such as s3://bucket/runs")
    return RemotePath(filesystem, inner, address, query)


def without_keys(where: str) -> str:
    """Return a URI without the secret keys that `storage_path` refuses; any other text is returned unchanged."""
    scheme, colon, rest = where.partition("://")
    if not colon:
        return where
    path, mark, query = rest.partition("?")
    if user := _KEYS.match(path):
        path = path[user.end() :]
    kept = [part for part in query.split("&") if part and not _SECRETS.search(part)]
    return f"{scheme}://{path}{mark if kept else ''}{'&'.join(kept)}"


def first_line(error: Exception) -> str:
    """Return the system's message of an error, or else its first line."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]
