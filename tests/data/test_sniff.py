"""What a file is, from its first bytes alone."""

from __future__ import annotations

import json
import pickle
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
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


def test_tables_of_other_formats_are_named_and_can_be_made_readable(tmp_path: Path) -> None:
    """The command that the message ends with is run."""
    table = pa.table({"id": ["a", "b"], "split": ["train", "test"], "text": ["x, y", "z"], "label": [1.0, 2.0]})
    feather = tmp_path / "own data.feather"
    pa.feather.write_feather(table, feather)
    command = refusal_command(feather, "Feather")
    subprocess.run(command, check=True, timeout=60)
    assert pq.read_table(command[-1]).equals(table)


@pytest.mark.parametrize("mark", [";", "|"])
def test_another_delimiter_is_named_and_can_be_changed(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "own data.csv"
    lines = [["id", "split", "text", "label"], ["a", "train", "x, y", "1"], ["b", "test", '"z\nz"', "2"]]
    path.write_text("\n".join(mark.join(cells) for cells in lines) + "\n")
    with pytest.raises(DataError) as caught:
        find_importer(path).read(path, "")
    command = shlex.split(str(caught.value).partition("Convert it: ")[2])
    command[0] = sys.executable
    subprocess.run(command, check=True, timeout=60)
    result = find_importer(Path(command[-1])).read(Path(command[-1]), "").table
    assert result["text"].to_pylist() == ["x, y", "z\nz"]


def test_tabs_in_a_csv_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("id\tsplit\ttext\tlabel\na\ttrain\tx\t1\n")
    with pytest.raises(DataError, match=r"tabs.*own\.tsv"):
        find_importer(path).read(path, "")


@pytest.mark.parametrize("names", [["dataset_dict.json", "train/state.json"], ["dataset_info.json", "state.json"]])
def test_a_folder_of_hugging_faces_datasets_is_named(tmp_path: Path, names: list[str]) -> None:
    folder = tmp_path / "own data"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    *_, source, target = refusal_command(folder, "datasets")
    assert (source, target) == (str(folder), f"{folder}-parquet")


def test_folders_without_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no files"):
        find_importer(tmp_path)
    (tmp_path / "inner").mkdir()
    with pytest.raises(DataError, match="inner"):
        find_importer(tmp_path)


def refusal_command(source: Path, word: str) -> list[str]:
    """The command that a refusal ends with, for this machine's Python; its code compiles."""
    with pytest.raises(DataError, match=word) as caught:
        find_importer(source)
    command = shlex.split(str(caught.value)[str(caught.value).index("python -c") :])
    compile(command[2], "command", "exec")
    return [sys.executable, *command[1:]]
