"""Runs on a disk, local or shared. A write goes to a file beside the target, then fsync, then rename."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from typing_extensions import override

from grcf_ray.errors import DamagedError, DataError
from grcf_ray.files import atomic_write
from grcf_ray.storage.path import StoragePath

_T = TypeVar("_T")


class _Root:
    """The folder at which places were opened. It can be a link; no write or delete follows a link inside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = False

    def check(self, path: Path, kind: Callable[[int], bool] | None) -> None:
        """Raise DataError if `path` cannot be written or deleted as a file or folder of this root.

        kind: the accepted type of an existing `path`, such as `stat.S_ISDIR`; None accepts all types but links. The
        folders between root and path must be folders, or not exist yet.
        """
        self.check_present()
        inside = path
        while inside != self.path:
            # A path outside this root was opened by the user, and has a root of its own.
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
        """Allow the folder to be deleted and created again."""
        self._seen = False

    def check_present(self) -> None:
        """Raise DataError if the folder existed and is gone: creating it again would split a run that was moved."""
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError as error:
            if self._seen:
                raise DataError(
                    f"{self.path} was moved or deleted while this process was writing to it. Move it back, or run the "
                    "command again with its new path"
                ) from error
            return
        if stat.S_ISDIR(mode):
            self._seen = True


def _linked(path: Path) -> DataError:
    return DataError(
        f"{path} is a link to {path.readlink()}; writing and deleting do not follow links in a run. Replace the link "
        "with the file or folder itself, or remove it"
    )


def _another_kind(path: Path, *, folder: bool) -> DamagedError:
    kinds = "a file, but the run needs a folder" if folder else "a folder, but the run needs a file"
    return DamagedError(f"{path} is {kinds} there. Restore the run from a copy, or move {path} away")


class LocalPath(StoragePath):
    """A path on a disk of this machine, or on a shared disk.

    The path at which it was opened is its root. Writing and deleting below it raises DataError if a link leads there,
    or if the root has disappeared.
    """

    def __init__(self, path: Path, root: _Root | None = None) -> None:
        self._path = path
        self._root = root or _Root(path)

    def __str__(self) -> str:
        return str(self._path)

    @property
    @override
    def uri(self) -> str:
        return str(self._path)

    @property
    @override
    def name(self) -> str:
        return self._path.name

    @property
    @override
    def local(self) -> Path:
        return self._path

    @override
    def __truediv__(self, name: str) -> LocalPath:
        return LocalPath(self._path / name, self._root)

    @override
    def beside(self, name: str) -> LocalPath:
        path = self._path.with_name(name)
        return LocalPath(path, None if self._path == self._root.path else self._root)

    @override
    def exists(self) -> bool:
        return self._path.exists()

    @override
    def names(self) -> list[str]:
        try:
            paths = sorted(self._path.iterdir())
        except FileNotFoundError as error:
            if self._path.is_symlink():
                raise _dangling(self._path) from error
            return []
        except NotADirectoryError as error:
            raise _another_kind(self._path, folder=True) from error
        return [path.name for path in paths if not path.name.startswith(".")]

    @override
    def read_bytes(self) -> bytes:
        with self.reading() as path:
            return path.read_bytes()

    @contextlib.contextmanager
    @override
    def reading(self) -> Iterator[Path]:
        self._root.check_present()
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
    @override
    def writing(self) -> Iterator[Path]:
        self._root.check(self._path, stat.S_ISREG)
        with atomic_write(self._path) as beside:
            yield beside
        self._root.check_present()

    @contextlib.contextmanager
    @override
    def reading_folder(self) -> Iterator[Path]:
        if not self._path.is_dir():
            raise FileNotFoundError(self._path)
        yield self._path

    @contextlib.contextmanager
    @override
    def writing_folder(self) -> Iterator[Path]:
        """Provide the folder itself: the writer must write each file atomically."""
        self._root.check(self._path, stat.S_ISDIR)
        self._path.mkdir(parents=True, exist_ok=True)
        self._root.check_present()
        yield self._path

    @override
    def delete(self) -> None:
        if self._path == self._root.path:
            self._root.forget()
        self._root.check(self._path, None)
        if self._path.is_dir():
            shutil.rmtree(self._path, ignore_errors=True)
        else:
            self._path.unlink(missing_ok=True)

    @override
    def make_private(self) -> None:
        """Create the folder for its owner only; missing parents follow the umask."""
        self._root.check(self._path, stat.S_ISDIR)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self._path.mkdir(mode=0o700)
        self._root.check_present()

    @override
    def share(self) -> None:
        # A process can read its umask only by setting it for all of its threads. A new folder shows it instead.
        probe = self._path / f".{uuid.uuid4().hex}"
        probe.mkdir()
        mode = probe.stat().st_mode
        probe.rmdir()
        self._path.chmod(mode)

    @override
    def rooted(self) -> LocalPath:
        return LocalPath(self._path)

    @override
    def check_links(self) -> None:
        folders = [self._path]
        while folders:
            with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_symlink():
                        raise _linked(Path(entry.path))
                    if entry.is_dir():
                        folders.append(Path(entry.path))

    @override
    def outlast_outages(self, confirm: Callable[[], None] | None) -> None:
        """Do nothing: errors of a disk are raised at once."""

    @override
    def outlasting(self, call: Callable[[], _T]) -> _T:
        return call()


def _dangling(path: Path) -> DamagedError:
    return DamagedError(
        f"{path} is a link to {path.readlink()}, which does not exist; restore that file, or remove the link"
    )
