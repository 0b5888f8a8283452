"""What a file is, told from its first bytes: importers recognise content, since names of downloads mean little."""

from __future__ import annotations

import contextlib
import json
import pickletools
import shlex
import zipfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from grcf_ray.errors import DataError

Start = tuple[str, ...]
"""How a pickle begins, see `pickle_start`."""

_HDF5 = b"\x89HDF\r\n\x1a\n"
# By the protocol from 2 on, before it with a dict or a list.
_PICKLE = (b"\x80", b"(dp", b"(lp", b"}", b"]")
_START = 1 << 16
_TOKENS = 64
_ZIP = "a zip archive: unpack it, and give the folder"
_TORCH = "a file of PyTorch (.pt): load it with PyTorch, make arrays of its tensors with .numpy(), and pickle them"
_WRONG = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull, or download the file"),
    (b"<!doctype html", "a web page, such as a download's error: download the file again, signed in where it asks"),
    (b"<html", "a web page, such as a download's error: download the file again, signed in where it asks"),
    (b"pk\x03\x04", _ZIP),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"bzh", "a bzip2 archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"rar!", "a RAR archive: unpack it first"),
    (b"\xfd7zxz", "an xz archive: unpack it first"),
    (b"\x93numpy", "an array of numpy (.npy): put it into a table or a pickle with ids, splits, texts and labels"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook: save its sheet as CSV in UTF-8"),
    # The number that PyTorch's older files begin with.
    (b"\x80\x02\x8a\nl\xfc\x9cf\xf9 j\xa8p\x19", _TORCH),
    (
        b"arrow1",
        "an Arrow file (Feather): make it Parquet: python -c 'import sys, pyarrow.feather as f, pyarrow.parquet as p; "
        "p.write_table(f.read_table(sys.argv[1]), sys.argv[2])' {path} {path}.parquet",
    ),
    (b"fea1", "a Feather file of version 1: save it as Parquet, with the program that wrote it"),
    (b"sqlite format 3", "an SQLite database: export the table as CSV"),
)
# What archives of a kind hold, by the ends of their files' names.
_ARCHIVES = (
    ("xl/workbook.xml", "an Excel workbook (.xlsx): save its sheet as CSV in UTF-8"),
    (".npy", "an archive of numpy (.npz): put its arrays into a table or a pickle with ids, splits, texts and labels"),
    ("data.pkl", _TORCH),
)
_PROSE = {".txt", ".md", ".rst", ".html", ".htm", ".log"}
_PICKLES = {".pkl", ".pickle", ".p"}
_HDF5S = {".csd", ".h5", ".hdf5", ".hdf"}


def check_kind(path: Path) -> None:
    """DataError where a file is of a kind that downloads go wrong with, saying what it is and what to do."""
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if not head:
        raise DataError(f"{path}: the file is empty: download it again")
    for start, what in _WRONG:
        if head.startswith(start):
            what = _archive(path) if what is _ZIP else what
            raise DataError(f"{path}: {what.replace('{path}', shlex.quote(str(path)))}")


def _archive(path: Path) -> str:
    """What a zip archive is: other programs keep their files in such ones."""
    names: list[str] = []
    # Where it is damaged it is an archive all the same.
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return next((what for end, what in _ARCHIVES if any(name.endswith(end) for name in names)), _ZIP)


def folder_faults(folder: Path, used: Collection[Path], *, unused: str = "") -> list[str]:
    """What is wrong with the files of a recognised folder that its importer does not use, each named.

    Those that cannot be read: downloads that went wrong, and what is not of the kind that its name says. unused: what
    is wrong with HDF5 files and pickles that can be; empty where nothing is. Hidden files and prose are not looked at.
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
                faults.append(f"{path}: not {kind}, as its name says: download it again, or move it out of the folder")
        if unused and (hdf5 or pickled):
            faults.append(f"{path}: {unused}")
    return faults


def check_folder(source: Path) -> None:
    """DataError where a folder holds no files, or is one that Hugging Face's `datasets` saved, with what to do."""
    names = {path.name for path in source.iterdir()}
    if {"dataset_dict.json"} & names or {"dataset_info.json", "state.json"} <= names:
        splits = "d" if "dataset_dict.json" in names else '{"train": d}'
        code = (
            "import os, sys, datasets; d = datasets.load_from_disk(sys.argv[1]); os.makedirs(sys.argv[2]); "
            f'[s.to_parquet(f"{{sys.argv[2]}}/{{n}}.parquet") for n, s in {splits}.items()]'
        )
        raise DataError(
            f"{source}: a folder that Hugging Face's datasets saved. Make it Parquet where datasets is installed, and "
            f"import that folder: {shlex.join(['python', '-c', code, str(source), f'{source}-parquet'])}"
        )
    if not files_of(source):
        inner = sorted(path.name for path in source.iterdir() if path.is_dir())
        only = f", only folders ({', '.join(inner[:3])}): give one of them" if inner else ": give one with the data"
        raise DataError(f"{source}: the folder holds no files{only}")


def files_of(source: Path) -> list[Path]:
    """A file itself, or those of a folder by their names; what lies in folders within it is not looked at."""
    return [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, as `.csd` files are."""
    with path.open("rb") as file:
        return file.read(len(_HDF5)) == _HDF5


def pickle_start(path: Path) -> Start:
    """What a pickle begins with, in the order of its opcodes; nothing where the file is none.

    Tokens: `dict` and `list` where one begins, texts as JSON (`"train"`), names as they are (`numpy.ndarray`),
    `bytes`, `int`, `float`, `none`. What tells tuples and where containers end is left out. Nothing is run, and
    only the first 64 KiB are read.
    """
    with path.open("rb") as file:
        head = file.read(_START)
    if not head.startswith(_PICKLE):
        return ()
    tokens: list[str] = []
    texts: list[str] = []
    # The start of a file is no whole pickle: genops raises where it is cut.
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
                # Its names were pushed as texts, which are no data then.
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
    """The pickles of a source that begin in a certain way."""
    return [path for path in files_of(source) if test(pickle_start(path))]


def only_pickle(source: Path, found: Sequence[Path], name: str) -> Path:
    """The one pickle found, or a file that is to be read as one; DataError where there are several, or is none.

    name: what is looked for, with its article, such as `a MAG-BERT pickle`.
    """
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{source} holds {len(found)} files, each {name} ({names}). Name one")
    if found:
        return found[0]
    if source.is_dir():
        raise DataError(f"{source}: none of its files is {name}")
    check_kind(source)
    if not pickle_start(source):
        raise DataError(f"{source}: not a pickle")
    return source
