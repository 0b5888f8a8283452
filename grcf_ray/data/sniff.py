"""Recognise a file by its first bytes, since the names of downloads are unreliable."""

from __future__ import annotations

import contextlib
import json
import pickletools
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from grcf_ray.errors import DataError

Start = tuple[str, ...]
"""The first tokens of a pickle, see `pickle_start`."""

_HDF5 = b"\x89HDF\r\n\x1a\n"
# Protocols from 2 on begin with their number, protocols 0 and 1 with a dict or a list.
_PICKLE = (b"\x80", b"(dp", b"(lp", b"}", b"]")
_START = 1 << 16
_TOKENS = 64
_ZIP = "a zip archive: unpack it, and give the folder"
_TORCH = "a file of PyTorch (.pt): load it with PyTorch, convert its tensors with .numpy(), and pickle the arrays"
_PAGE = "a web page: the download failed. Download the file again; sign in if the site requires it"
_WRONG = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull, or download the file"),
    (b"<!doctype html", _PAGE),
    (b"<html", _PAGE),
    (b"pk\x03\x04", _ZIP),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"bzh", "a bzip2 archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"rar!", "a RAR archive: unpack it first"),
    (b"\xfd7zxz", "an xz archive: unpack it first"),
    (b"\x93numpy", "a single NumPy array (.npy): add ids, splits, texts and labels, in a table or a pickle"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook: save its sheet as CSV in UTF-8"),
    # The magic number of PyTorch's older files.
    (b"\x80\x02\x8a\nl\xfc\x9cf\xf9 j\xa8p\x19", _TORCH),
    (b"fea1", "a Feather file of version 1: save it as Parquet with the program that wrote it"),
    (b"sqlite format 3", "an SQLite database: export the table as CSV"),
)
# Files of other programs that are zip archives, by the end of a member's name.
_ARCHIVES = (
    ("xl/workbook.xml", "an Excel workbook (.xlsx): save its sheet as CSV in UTF-8"),
    (".npy", "NumPy arrays (.npz): add ids, splits, texts and labels, in a table or a pickle"),
    ("data.pkl", _TORCH),
)
_PROSE = {".txt", ".md", ".rst", ".html", ".htm", ".log"}
_PICKLES = {".pkl", ".pickle", ".p"}
_HDF5S = {".csd", ".h5", ".hdf5", ".hdf"}


def check_kind(path: Path) -> None:
    """Raise DataError with a remedy if a file is not data: a failed download, an archive, another program's file."""
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if not head:
        raise DataError(f"{path}: the file is empty: download it again")
    for start, kind in _WRONG:
        if head.startswith(start):
            kind = _archive(path) if kind is _ZIP else kind
            raise DataError(f"{path}: {kind}")


def _archive(path: Path) -> str:
    """Describe a zip archive, which may be another program's file."""
    names: list[str] = []
    # A damaged archive is still an archive.
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return next((kind for end, kind in _ARCHIVES if any(name.endswith(end) for name in names)), _ZIP)


def folder_faults(folder: Path, used: Collection[Path], *, unused: str = "") -> list[str]:
    """List the faults of a recognised folder's files that its importer does not use.

    A fault is a failed download, or content that contradicts the file's name. unused: the fault of every readable
    HDF5 file and pickle; empty for none. Hidden files and prose are ignored.
    """
    faults = []
    for path in files_of(folder):
        if path in used or path.name.startswith(".") or path.suffix.lower() in _PROSE:
            continue
        try:
            check_kind(path)
        except DataError as error:
            faults.append(f"{error}; or move it out of the folder")
            continue
        suffix, hdf5, pickled = path.suffix.lower(), is_hdf5(path), bool(pickle_start(path))
        for suffixes, kind in ((_HDF5S, "HDF5"), (_PICKLES, "a pickle")):
            if suffix in suffixes and not (hdf5 or pickled):
                faults.append(
                    f"{path}: not {kind}, although its name says so: download it again, or move it out of the folder"
                )
        if unused and (hdf5 or pickled):
            faults.append(f"{path}: {unused}")
    return faults


def check_folder(source: Path) -> None:
    """Raise DataError with a remedy for a folder without files."""
    if not files_of(source):
        inner = sorted(path.name for path in source.iterdir() if path.is_dir())
        remedy = (
            f", only folders ({', '.join(inner[:3])}): give one of them" if inner else ": give the folder with the data"
        )
        raise DataError(f"{source}: the folder holds no files{remedy}")


def files_of(source: Path) -> list[Path]:
    """List a file itself, or the files of a folder by name, without those of inner folders."""
    return [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())


def folder_of(source: Path) -> Path:
    """Return a folder itself, or the folder of a file."""
    return source if source.is_dir() else source.parent


def files_by_kind(source: Path, kind_of: Callable[[Path], str], kinds: Iterable[str]) -> dict[str, list[Path]]:
    """Group the files in a source's folder by kind, in the order of `kinds`; leave out files of other kinds."""
    paths: dict[str, list[Path]] = {kind: [] for kind in kinds}
    for path in files_of(folder_of(source)):
        if (kind := kind_of(path)) in paths:
            paths[kind].append(path)
    return paths


def only_file(source: Path, paths: Sequence[Path], name: str) -> Path:
    """Return the only file of a kind; DataError for several. name: the kind, such as `folds`."""
    if len(paths) > 1:
        raise DataError(f"{source}: several files of {name} ({', '.join(path.name for path in paths)}). Keep one")
    return paths[0]


def is_hdf5(path: Path) -> bool:
    """Return whether a file is HDF5, as `.csd` files are."""
    with path.open("rb") as file:
        return file.read(len(_HDF5)) == _HDF5


def pickle_start(path: Path) -> Start:
    """Return the first tokens of a pickle, in the order of its opcodes; no tokens for other files.

    Tokens: `dict` and `list` at their starts, texts as JSON (`"train"`), global names (`numpy.ndarray`), `bytes`,
    `int`, `float`, `none`. Tuples and the ends of containers have no token. No code of the pickle runs, and only the
    first 64 KiB are read.
    """
    with path.open("rb") as file:
        head = file.read(_START)
    if not head.startswith(_PICKLE):
        return ()
    tokens: list[str] = []
    texts: list[str] = []
    # genops raises at the cut end of the first 64 KiB.
    with contextlib.suppress(Exception):
        for opcode, argument, _ in pickletools.genops(head):
            name = opcode.name
            if name in ("EMPTY_DICT", "DICT"):
                tokens.append("dict")
            elif name in ("EMPTY_LIST", "LIST"):
                tokens.append("list")
            elif name in ("GLOBAL", "INST"):
                tokens.append(str(argument).replace(" ", "."))
            elif name == "STACK_GLOBAL":
                # Module and name were pushed as texts, which are not data here.
                if tokens[-2:] == [json.dumps(text) for text in texts[-2:]]:
                    del tokens[-2:]
                tokens.append(".".join(texts[-2:]))
            elif "UNICODE" in name or "STRING" in name:
                text = argument.decode("latin-1") if isinstance(argument, bytes) else str(argument)
                texts.append(text)
                tokens.append(json.dumps(text))
            elif "BYTES" in name or name == "BYTEARRAY8":
                tokens.append("bytes")
            elif "INT" in name or "LONG" in name or name in ("NEWTRUE", "NEWFALSE"):
                tokens.append("int")
            elif "FLOAT" in name:
                tokens.append("float")
            elif name == "NONE":
                tokens.append("none")
            if len(tokens) >= _TOKENS:
                break
    return tuple(tokens)


def begins_with(source: Path, test: Callable[[Start], bool]) -> list[Path]:
    """List the pickles of a source whose first tokens pass a test."""
    return [path for path in files_of(source) if test(pickle_start(path))]


def only_pickle(source: Path, paths: Sequence[Path], name: str) -> Path:
    """Return the only pickle of a kind, or a source that is another pickle; DataError for several or none.

    name: the expected kind of pickle, with its article, such as `a MAG-BERT pickle`.
    """
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise DataError(f"{source} holds {len(paths)} files, each {name} ({names}). Name one")
    if paths:
        return paths[0]
    if source.is_dir():
        raise DataError(f"{source}: none of its files is {name}")
    check_kind(source)
    if not pickle_start(source):
        raise DataError(f"{source}: not a pickle")
    return source
