"""Where a run lies: a folder on a disk, or in object storage. Writes appear whole or not at all on both.

On a disk a write is a file beside, fsync and rename; in object storage it is one upload.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote

from grcf_ray.errors import ConfigError, DamagedError, DataError
from grcf_ray.files import atomic_write, link_or_copy, scratch_folder

if TYPE_CHECKING:
    from pyarrow import fs as pafs

_DAMAGED = 3
"""Equal readings in a row after which what is no JSON is taken for damaged."""
_READERS = 16
"""Small files of object storage that are fetched at a time: each takes a round trip."""
_KEYS = re.compile(r"[^/@]*:(?!\d+/)[^@]*@")
"""User and password before the host of a URI; a password may have slashes, and a port has none."""
_SECRETS = re.compile(r"(?:^|&)[^=&]*(?:key|password|secret|sig|token)[^=&]*=", re.IGNORECASE)
"""Keys in the query of a URI, such as Azure's `sig` and `client_secret`."""


class StoragePath(ABC):
    """A file or a folder of a run, existing or not. `place / name` lies in it."""

    @property
    @abstractmethod
    def uri(self) -> str:
        """What `storage_path` opens again, on any machine that reaches it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of its path."""

    @property
    @abstractmethod
    def local(self) -> Path | None:
        """Its path on this machine; None in object storage."""

    @abstractmethod
    def __truediv__(self, name: str) -> StoragePath: ...

    @abstractmethod
    def beside(self, name: str) -> StoragePath:
        """What lies in the same folder under another name."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is such a file or folder."""

    @abstractmethod
    def names(self) -> list[str]:
        """What lies in a folder, sorted; nothing where there is none. Files in the making are left out."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """A file's content. FileNotFoundError where there is none."""

    @abstractmethod
    def reading(self) -> contextlib.AbstractContextManager[Path]:
        """The file as a path on this machine, for as long as the context lasts. FileNotFoundError."""

    @abstractmethod
    def writing(self) -> contextlib.AbstractContextManager[Path]:
        """A path on this machine to write to: it takes the file's place at the end, unless there is an error."""

    @abstractmethod
    def reading_folder(self) -> contextlib.AbstractContextManager[Path]:
        """The folder with all that is in it as a path on this machine, for as long as the context lasts.

        FileNotFoundError where there is none.
        """

    @abstractmethod
    def writing_folder(self) -> contextlib.AbstractContextManager[Path]:
        """A folder on this machine to write to: its files are in this one at the end, unless there is an error."""

    @abstractmethod
    def copy_to(self, other: StoragePath) -> None:
        """Make `other`, which lies in the same storage, a copy of this file."""

    @abstractmethod
    def delete(self) -> None:
        """Remove the file, or the folder with all that is in it; nothing where there is none."""

    @abstractmethod
    def make_private(self) -> None:
        """Make the folder, readable by its owner alone where the storage has owners."""

    @abstractmethod
    def share(self) -> None:
        """Open the folder to others as the user's mask has it, where the storage has owners."""

    @abstractmethod
    def rooted(self) -> StoragePath:
        """The same place, which may be a link itself; no write from it on follows a link inside it."""

    @abstractmethod
    def check_links(self) -> None:
        """DataError that names a link in the folder, at any depth: what is written there would lie elsewhere."""

    def write_text(self, text: str) -> None:
        """The text as the whole content of the file."""
        with self.writing() as path:
            path.write_text(text, encoding="utf-8")

    def write_json(self, value: Any) -> None:
        """The value as readable JSON; NaN and infinity are refused, since JSON has none."""
        self.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def read_json(self) -> Any:
        """A JSON file's content. FileNotFoundError where there is none, DataError where it is not JSON."""
        content, same = self.read_bytes(), 1
        while True:
            try:
                return json.loads(content, parse_constant=_no_number)
            except (RecursionError, ValueError) as error:
                # pyarrow asks for an object's size, then for so many bytes: one that grows in between comes cut short,
                # and where two that are written in turn meet two readings so, cut short alike.
                if same == _DAMAGED:
                    raise DataError(f"{self}: not JSON ({error})") from error
                before, content = content, self.read_bytes()
                same = same + 1 if content == before else 1

    def read_jsons(self, names: Sequence[str]) -> list[Any]:
        """The content of several JSON files of this folder."""
        return [(self / name).read_json() for name in names]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")


class _Root:
    """The folder that places were opened at. It may be a link; nothing inside it is written or deleted through one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = False

    def check(self, path: Path, kind: Callable[[int], bool] | None) -> None:
        """DataError where `path` cannot be written or deleted as a file or folder of this root.

        kind: what `path` itself may be where it exists, such as `stat.S_ISDIR`; None for anything but a link. The
        folders between are folders or not there yet.
        """
        self.note()
        inside = path
        while inside != self.path:
            # A path of another root, such as `beside`'s of the root itself, has been opened by its user.
            if inside == inside.parent:
                return
            allowed = stat.S_ISDIR if inside != path else kind
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                mode = inside.lstat().st_mode
                if stat.S_ISLNK(mode):
                    raise _linked(inside)
                if allowed is not None and not allowed(mode):
                    raise _another_kind(inside, folder=allowed is stat.S_ISDIR)
            inside = inside.parent

    def forget(self) -> None:
        """Let the folder be deleted, and made anew."""
        self._seen = False

    def note(self) -> None:
        """DataError where the folder was there and is gone: to make it anew would divide what was moved with it."""
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError as error:
            if self._seen:
                raise DataError(
                    f"{self.path} was moved or deleted while this process was writing to it. Give it its name back, "
                    "or go on where it lies now"
                ) from error
            return
        if stat.S_ISDIR(mode):
            self._seen = True


def _linked(path: Path) -> DataError:
    return DataError(
        f"{path} is a link to {path.readlink()}, and links in a run are not followed for writing or deleting. "
        "Put the file or folder itself in its place, or remove the link"
    )


def _another_kind(path: Path, *, folder: bool) -> DamagedError:
    what = "a file where a folder" if folder else "a folder where a file"
    return DamagedError(f"{path}: {what} should be; bring the run back from a copy, or move this away")


class LocalPath(StoragePath):
    """A path on this machine, or on a disk that several share.

    The path that it was opened at is its root. What lies below is written and deleted only where no link leads, and
    only while the root, once it was there, is there: DataError otherwise.
    """

    def __init__(self, path: Path, root: _Root | None = None) -> None:
        self._path = path
        self._root = root or _Root(path)

    def __str__(self) -> str:
        return str(self._path)

    @property
    def uri(self) -> str:
        """The absolute path."""
        return str(self._path)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self._path.name

    @property
    def local(self) -> Path:
        """The path."""
        return self._path

    def __truediv__(self, name: str) -> LocalPath:
        return LocalPath(self._path / name, self._root)

    def beside(self, name: str) -> LocalPath:
        """As in `StoragePath`."""
        path = self._path.with_name(name)
        return LocalPath(path, None if self._path == self._root.path else self._root)

    def exists(self) -> bool:
        """As in `StoragePath`."""
        return self._path.exists()

    def names(self) -> list[str]:
        """As in `StoragePath`."""
        try:
            found = sorted(self._path.iterdir())
        except FileNotFoundError as error:
            if self._path.is_symlink():
                raise _dangling(self._path) from error
            return []
        except NotADirectoryError as error:
            raise _another_kind(self._path, folder=True) from error
        return [path.name for path in found if not path.name.startswith(".")]

    def read_bytes(self) -> bytes:
        """As in `StoragePath`."""
        with self.reading() as path:
            return path.read_bytes()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Path]:
        """The path itself. DamagedError where it is no file."""
        self._root.note()
        try:
            mode = self._path.stat().st_mode
        except NotADirectoryError as error:
            raise _another_kind(self._path.parent, folder=True) from error
        except OSError as error:
            if error.errno == errno.ELOOP or self._path.is_symlink():
                raise _dangling(self._path) from error
            raise
        if not stat.S_ISREG(mode):
            raise _another_kind(self._path, folder=False)
        yield self._path

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """A path beside."""
        self._root.check(self._path, stat.S_ISREG)
        with atomic_write(self._path) as beside:
            yield beside
        self._root.note()

    @contextlib.contextmanager
    def reading_folder(self) -> Iterator[Path]:
        """The path itself."""
        if not self._path.is_dir():
            raise FileNotFoundError(self._path)
        yield self._path

    @contextlib.contextmanager
    def writing_folder(self) -> Iterator[Path]:
        """The path itself: what is written to it has to be whole file by file."""
        self._root.check(self._path, stat.S_ISDIR)
        self._path.mkdir(parents=True, exist_ok=True)
        self._root.note()
        yield self._path

    def copy_to(self, other: StoragePath) -> None:
        """A second name where the disk allows: files are replaced, never changed, so it stays what it is."""
        assert isinstance(other, LocalPath)
        with self.reading() as path:
            other._root.check(other._path, stat.S_ISREG)
            link_or_copy(path, other._path)

    def delete(self) -> None:
        """As in `StoragePath`."""
        if self._path == self._root.path:
            self._root.forget()
        self._root.check(self._path, None)
        if self._path.is_dir():
            shutil.rmtree(self._path, ignore_errors=True)
        else:
            self._path.unlink(missing_ok=True)

    def make_private(self) -> None:
        """Folders above are made as the user's mask has it."""
        self._root.check(self._path, stat.S_ISDIR)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self._path.mkdir(mode=0o700)
        self._root.note()

    def share(self) -> None:
        """As in `StoragePath`."""
        # A process can read its mask only by setting it, for all of its threads; a new folder follows it.
        like = self._path / f".{uuid.uuid4().hex}"
        like.mkdir()
        mode = like.stat().st_mode
        like.rmdir()
        self._path.chmod(mode)

    def rooted(self) -> LocalPath:
        """As in `StoragePath`."""
        return LocalPath(self._path)

    def check_links(self) -> None:
        """As in `StoragePath`."""
        folders = [self._path]
        while folders:
            with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_symlink():
                        raise _linked(Path(entry.path))
                    if entry.is_dir():
                        folders.append(Path(entry.path))


def _dangling(path: Path) -> DamagedError:
    return DamagedError(
        f"{path}: a link to {path.readlink()}, which is not there; bring the file back, or remove the link"
    )


class RemotePath(StoragePath):
    """An object, or a prefix of objects, in storage that pyarrow opens: s3://, gs:// and so on."""

    def __init__(self, filesystem: pafs.FileSystem, path: str, address: str, query: str) -> None:
        """path: as the filesystem has it. address, query: the URI that it was opened by, in two parts."""
        self._filesystem, self._path, self._address, self._query = filesystem, path, address, query

    def __str__(self) -> str:
        return self._address

    @property
    def uri(self) -> str:
        """With the query, which may name an endpoint."""
        return f"{self._address}?{self._query}" if self._query else self._address

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self._path.rpartition("/")[2]

    @property
    def local(self) -> None:
        """None: there is no path to it."""
        return None

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(
            self._filesystem, f"{self._path}/{name}", f"{self._address}/{quote(name, safe='')}", self._query
        )

    def beside(self, name: str) -> RemotePath:
        """As in `StoragePath`."""
        path, address = (text.rpartition("/")[0] for text in (self._path, self._address))
        return RemotePath(self._filesystem, path, address, self._query) / name

    def exists(self) -> bool:
        """As in `StoragePath`."""
        from pyarrow import fs as pafs

        return bool(self._filesystem.get_file_info(self._path).type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """As in `StoragePath`."""
        from pyarrow import fs as pafs

        found = self._filesystem.get_file_info(pafs.FileSelector(self._path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def read_bytes(self) -> bytes:
        """As in `StoragePath`."""
        with self._filesystem.open_input_stream(self._path) as stream:
            content: bytes = stream.read()
        return content

    def read_jsons(self, names: Sequence[str]) -> list[Any]:
        """As in `StoragePath`, several at a time."""
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(lambda name: (self / name).read_json(), names))

    @contextlib.contextmanager
    def reading(self) -> Iterator[Path]:
        """A copy, which goes at the end."""
        with scratch_folder("grcf-") as folder:
            path = folder / self.name
            self._transfer(self._path, None, str(path), self._filesystem)
            yield path

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """A path in a folder of temporary files; uploaded at the end."""
        with scratch_folder("grcf-") as folder:
            path = folder / self.name
            yield path
            self._transfer(str(path), self._filesystem, self._path, None)

    @contextlib.contextmanager
    def reading_folder(self) -> Iterator[Path]:
        """A copy, which goes at the end."""
        with scratch_folder("grcf-") as folder:
            self._transfer(self._path, None, str(folder), self._filesystem)
            yield folder

    @contextlib.contextmanager
    def writing_folder(self) -> Iterator[Path]:
        """A folder of temporary files; uploaded at the end."""
        with scratch_folder("grcf-") as folder:
            yield folder
            self._transfer(str(folder), self._filesystem, self._path, None)

    def copy_to(self, other: StoragePath) -> None:
        """Within the storage: nothing passes through this machine."""
        assert isinstance(other, RemotePath)
        self._filesystem.copy_file(self._path, other._path)

    def delete(self) -> None:
        """As in `StoragePath`."""
        from pyarrow import fs as pafs

        kind = self._filesystem.get_file_info(self._path).type
        # Another process may be deleting the same.
        with contextlib.suppress(FileNotFoundError):
            if kind == pafs.FileType.Directory:
                self._filesystem.delete_dir(self._path)
            elif kind == pafs.FileType.File:
                self._filesystem.delete_file(self._path)

    def make_private(self) -> None:
        """Nothing: there are no folders, and who reads a bucket is said there."""

    def share(self) -> None:
        """Nothing: who reads a bucket is said there."""

    def rooted(self) -> RemotePath:
        """As it is: object storage has no links."""
        return self

    def check_links(self) -> None:
        """Nothing: object storage has no links."""

    @staticmethod
    def _transfer(source: str, to: Any, target: str, of: Any) -> None:
        """A whole file or folder from one filesystem to another; None is this machine's."""
        from pyarrow import fs as pafs

        here = pafs.LocalFileSystem()
        pafs.copy_files(source, target, source_filesystem=of or here, destination_filesystem=to or here)


def storage_path(where: str | Path, *, check: bool = False) -> StoragePath:
    """The place of a path or a URI. ConfigError where no storage answers to the URI.

    check: knock, for a place that the user named: ConfigError instead of OSError where nobody answers, in seconds.
    S3 itself is found by the bucket; another server by `?endpoint_override=HOST:PORT&scheme=http` after the path, or by
    AWS_ENDPOINT_URL in the environment of every machine. Keys are read from the environment or from ~/.aws.
    """
    scheme, colon, rest = str(where).partition("://")
    try:
        if not colon or isinstance(where, Path):
            place: StoragePath = LocalPath(Path(where).expanduser().absolute())
        elif scheme == "file":
            if not rest.startswith("/"):
                raise ConfigError(f"{where}: names no absolute path; write file:///FOLDER, or the folder alone")
            place = LocalPath(Path(unquote(rest)).absolute())
        else:
            place = _remote(scheme, rest)
        if check:
            place.exists()
    except OSError as error:
        if not check:
            raise
        raise ConfigError(f"{where} cannot be reached ({_first_line(error)})") from error
    return place


def without_keys(where: str) -> str:
    """A URI without the keys that `storage_path` would refuse; anything else as it is."""
    scheme, colon, rest = where.partition("://")
    if not colon:
        return where
    path, mark, query = rest.partition("?")
    if user := _KEYS.match(path):
        path = path[user.end() :]
    kept = [part for part in query.split("&") if part and not _SECRETS.search(part)]
    return f"{scheme}://{path}{mark if kept else ''}{'&'.join(kept)}"


def _remote(scheme: str, rest: str) -> RemotePath:
    from pyarrow import ArrowInvalid, ArrowNotImplementedError
    from pyarrow import fs as pafs

    path, _, query = rest.partition("?")
    endpoints = (value for key, value in parse_qsl(query) if key == "endpoint_override")
    if _KEYS.match(rest) or _SECRETS.search(query) or any("@" in endpoint for endpoint in endpoints):
        raise ConfigError(
            f"{scheme}://...: keys in a URI would be on record with the run; give them in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or in ~/.aws/credentials, on every machine"
        )
    # What is encoded already stays; spaces and letters beyond ASCII are as people type them.
    address = f"{scheme}://" + quote(path.rstrip("/"), safe="/%:@~!$&'()*+,;=")
    try:
        filesystem, inner = pafs.FileSystem.from_uri(f"{address}?{query}" if query else address)
    except (ArrowInvalid, ArrowNotImplementedError) as error:
        raise ConfigError(
            f"{scheme}://{rest}: no such storage ({_first_line(error)}); give a folder, or a URI such as "
            "s3://bucket/runs or gs://bucket/runs"
        ) from error
    if not inner:
        raise ConfigError(f"{scheme}://{rest}: names no bucket; give a URI such as s3://bucket/runs")
    return RemotePath(filesystem, inner, address, query)


def _first_line(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]
