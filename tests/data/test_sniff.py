"""What a file is, from its first bytes alone."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grcf_ray.data.importers import find_importer
from grcf_ray.data.sniff import is_hdf5, pickle_start
from grcf_ray.errors import DataError

ROWS = np.zeros((3, 2), np.float32)
RECONSTRUCT = f"{np.ones(1).__reduce__()[0].__module__}._reconstruct"


def write(folder: Path, content: bytes) -> Path:
    path = folder / "mosi.pkl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        (
            {"train": [((["so", "good"], ROWS, ROWS), 1.5, "v[1]")]},
            ["dict", '"train"', "list", "list", '"so"', '"good"', RECONSTRUCT, "numpy.ndarray"],
        ),
        ({"train": [(("so good", ROWS), 1)]}, ["dict", '"train"', "list", '"so good"', RECONSTRUCT]),
        ({"train": {"raw_text": ROWS}}, ["dict", '"train"', "dict", '"raw_text"', RECONSTRUCT]),
        ({"train": [1, 2.5, None, "文"]}, ["dict", '"train"', "list", "int", "float", "none", json.dumps("文")]),
        ([{}, []], ["list", "dict", "list"]),
    ],
)
def test_the_start_of_a_pickle(value: Any, tokens: list[str], protocol: int, tmp_path: Path) -> None:
    result = list(pickle_start(write(tmp_path, pickle.dumps(value, protocol))))
    if RECONSTRUCT in tokens and protocol == 5:
        # Written by another function, for buffers.
        at = tokens.index(RECONSTRUCT)
        assert (result[:at], result[at].rpartition(".")[2]) == (tokens[:at], "_frombuffer")
    else:
        assert result[: len(tokens)] == tokens


def test_the_start_of_a_large_pickle_is_enough(tmp_path: Path) -> None:
    start = pickle_start(write(tmp_path, pickle.dumps({"train": [np.zeros(10**6)]}, 4)))
    assert start[:4] == ("dict", '"train"', "list", RECONSTRUCT)


def test_what_is_no_pickle_has_no_start(tmp_path: Path) -> None:
    for content in (b"", b"{}", b"id,text\n", b"PAR1", b"\x89HDF\r\n\x1a\n"):
        assert pickle_start(write(tmp_path, content)) == ()
    assert is_hdf5(tmp_path / "mosi.pkl")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 1\n", "a Git LFS pointer, .* git lfs pull"),
        (b"\n<!DOCTYPE html><html>Google Drive - Quota exceeded</html>", "a web page: .* Download the file again"),
        (b"<html>", "a web page"),
        (b"  \n", "the file is empty"),
        (b"PK\x03\x04\x14\0\0\0\0\0\0\0!\0 text.csv", "a zip archive: unpack it"),
        (b"SQLite format 3\0", "an SQLite database"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "a file of PyTorch"),
        (b"\x93NUMPY", "a single NumPy array"),
    ],
)
def test_what_is_no_data_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    for source in (path, tmp_path):
        with pytest.raises(DataError, match=f"mosi.pkl: {says}"):
            find_importer(source)


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("xl/workbook.xml", "an Excel workbook .*CSV in UTF-8"),
        ("audio.npy", "NumPy arrays"),
        ("model/data.pkl", "a file of PyTorch .*numpy"),
        ("data.csv", "a zip archive: unpack it"),
    ],
)
def test_archives_that_are_files_of_programs(member: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"")
    with pytest.raises(DataError, match=f"data: {says}"):
        find_importer(path)


def test_folders_without_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no files"):
        find_importer(tmp_path)
    (tmp_path / "inner").mkdir()
    with pytest.raises(DataError, match="inner"):
        find_importer(tmp_path)
