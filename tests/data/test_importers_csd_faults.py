"""Folders of the CMU-MultimodalSDK: missing files, folds, links and damage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data.csd_files import AUDIO, LABELS, VISION, WORDS, aligned, made_up, write, write_all, write_folds
from data.foreign import OWN, faults, refusal

from grcf_ray.data.importers import csd, find_importer, import_source

FORCED = dataclasses.replace(OWN, format="csd")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "own", made_up())


def test_a_small_file_cannot_become_a_large_table(folder: Path) -> None:
    def overlap(root: Any) -> None:
        for part, values in (("features", np.zeros((9000, 1))), ("intervals", np.tile([0.0, 99.0], (9000, 1)))):
            del root[f"data/v0/{part}"]
            root.create_dataset(f"data/v0/{part}", data=values, compression="gzip")

    def share(root: Any) -> None:
        del root["data/v1"]
        root["data/v1"] = root["data/v0"]

    replace(folder, LABELS, overlap)
    assert refusal(folder).startswith("video 'v0': the intervals of its labels overlap")
    replace(folder, LABELS, share)
    assert "has more than one name in the file" in refusal(folder)


def test_sequences_that_the_sdk_has_aligned_are_refused(tmp_path: Path) -> None:
    files = {
        name: (root, {f"{video}[{place}]": entry for video, entry in entries.items() for place in range(2)})
        for name, (root, entries) in made_up().items()
    }
    message = refusal(write_all(tmp_path / "own", files))
    assert message.endswith("own: the labels belong to utterances, not to videos; give the files as downloaded")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"train": ["v0"], "test": ["v0"]}', "1 video ('v0') in more than one fold"),
        ('{"train": ["v0"], "valid": ["v1"]}', "no list of videos for test"),
        ('{"train": ["v0"], "test": "v1"}', "not readable as folds"),
        ('{"train": ["v0"], "test": [1]}', "not readable as folds"),
        ('{"train": ["v0"], "test": ["\\ud800"]}', "not readable as folds"),
        ('{"train": ["v0"], "dev": ["v1"], "valid": ["v2"], "test": ["v3"]}', "not readable as folds"),
        ('{"train": ["v0"', "not readable as folds"),
        ('{"train": [' + "[" * 100_000, "not readable as folds"),
        ("standard_train_fold = [v0]\nstandard_test_fold = []", "no list of videos for train"),
        ("standard_train_fold = ['v0']\nstandard_test_fold = list('v1')", "no list of videos for test"),
        ("standard_train_fold = [" + "-" * 100_000 + "1]\nstandard_test_fold = []", "no list of videos for train"),
        ("standard_train_fold = ['v0' # ]\n", "no list of videos for train and test"),
        ("standard_train_fold = ['v0']\nstandard_test_fold = ['v1'", "no list of videos for test"),
    ],
)
def test_folds_that_cannot_be_used(folder: Path, text: str, says: str) -> None:
    (folder / "folds.json").write_text(text)
    message = refusal(folder)
    assert message.startswith(f"{folder / 'folds.json'}: "), message
    assert says in message


def test_folds_must_be_there_once(folder: Path) -> None:
    (folder / "std_folds.py").write_text("standard_train_fold = ['v0']\nstandard_test_fold = ['v1']\n")
    assert refusal(folder) == f"{folder}: several files of folds (folds.json, std_folds.py). Keep one"
    for name in ("folds.json", "std_folds.py"):
        (folder / name).unlink()
    (folder / "readme.txt").write_text("see standard_train_fold = [...]")
    message = refusal(folder)
    assert message.startswith(f"{folder}: no file lists the videos of each split")
    assert "cmu_mosi_std_folds.py" in message and '{"train": ["a video", ...]' in message


def test_all_that_lacks_is_named_at_once(folder: Path) -> None:
    for name in (WORDS, LABELS, "folds.json"):
        (folder / name).unlink()
    result = faults(refusal(folder))
    assert result[:2] == [
        "no sequence of labels, such as CMU_MOSI_Opinion_Labels.csd",
        "no sequence of words (features of text), such as CMU_MOSI_TimestampedWords.csd",
    ]
    assert result[2].startswith("no file lists the videos")
    write_folds(folder)
    assert len(faults(refusal(folder))) == 2


def other_hdf5(folder: Path) -> None:
    """What is HDF5 and no computational sequence: MUStARD's video features, and two more."""
    with h5py.File(folder / "features.csd", "w") as file:
        for number in range(3):
            file.create_dataset(f"1_{number}", data=np.ones((2, 2048), np.float32))
    with h5py.File(folder / "item.csd", "w") as file:
        file.create_dataset("1_1", data=np.ones((2, 2048), np.float32))
    with h5py.File(folder / "group.csd", "w") as file:
        file.create_group("words").create_dataset("v0", data=np.ones(2))


def test_every_file_of_the_folder_is_accounted_for(folder: Path, tmp_path: Path) -> None:
    other_hdf5(folder)
    (folder / "readme.csd").write_text("no HDF5")
    for name in ("readme.md", ".hidden.csd", "notes.txt", "run.sh"):
        (folder / name).write_text("see the paper")
    assert [path.name for path in csd.files(folder)] == [AUDIO, LABELS, VISION, WORDS]
    result = faults(refusal(folder))
    assert [line.partition(": ")[0] for line in result] == [
        str(folder / name) for name in ("features.csd", "group.csd", "item.csd", "readme.csd")
    ]
    known = dataclasses.replace(OWN, variant="known")
    assert refusal(folder, known) == (
        f"{folder / 'readme.csd'}: not HDF5, although its name says so: download it again, or move it out of the folder"
    )
    (folder / "readme.csd").unlink()
    assert import_source(folder, known)[0].to_pylist() == aligned(made_up())
    (tmp_path / "other").mkdir()
    other_hdf5(tmp_path / "other")
    assert csd.files(tmp_path / "other") == []
    for name in ("features.csd", "item.csd", "group.csd"):
        path = tmp_path / "other" / name
        assert csd.files(path) == []
        assert "no computational sequence" in refusal(path, FORCED)
    assert "no computational sequence" in refusal(tmp_path / "other", FORCED)
    (tmp_path / "some.zip").write_bytes(b"PK\x03\x04")
    assert "a zip archive" in refusal(tmp_path / "some.zip", FORCED)


def test_a_sequence_alone_asks_for_its_folder(folder: Path) -> None:
    assert find_importer(folder / WORDS) is csd
    assert refusal(folder / WORDS) == (
        f"{folder / WORDS}: a single sequence: give the folder with the other sequences and the folds"
    )


def replace(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    with h5py.File(folder / name, "a") as file:
        change(file[next(iter(file))])


@pytest.mark.parametrize("link", [h5py.ExternalLink("links/other.h5", "/x"), h5py.SoftLink("/COVAREP/data/v1")])
@pytest.mark.parametrize("at", ["data", "data/v0", "data/v0/features", "data/v1/intervals"])
def test_links_are_refused(folder: Path, link: Any, at: str) -> None:
    (folder / "links").mkdir()
    with h5py.File(folder / "links" / "other.h5", "w") as file:
        file.create_dataset("x/y", data=np.ones((70, 5)))

    def relink(root: Any) -> None:
        del root[at]
        root[at] = link

    replace(folder, AUDIO, relink)
    message = refusal(folder)
    assert message.startswith(f"{folder / AUDIO}: ")
    assert message.endswith(f"'{at.rpartition('/')[2]}' is a link, which is not followed")


def test_a_root_that_is_a_link_is_refused(folder: Path) -> None:
    with h5py.File(folder / AUDIO, "r+") as file:
        file.move("COVAREP", "other")
        file.create_group("rest")
        del file["other"], file["rest"]
        file["COVAREP"] = h5py.ExternalLink("words.csd", "/words")
    assert refusal(folder) == f"{folder / AUDIO}: 'COVAREP' is a link, which is not followed"


def test_arrays_that_lie_in_other_files_are_refused(folder: Path) -> None:
    (folder / "raw").write_bytes(bytes(70 * 5 * 8))
    layout = h5py.VirtualLayout((70, 5), np.float64)
    layout[:] = h5py.VirtualSource(folder / AUDIO, "COVAREP/data/v0/features", (70, 5))

    def change(root: Any) -> None:
        del root["data/v1/features"], root["data/v2/features"]
        root.create_virtual_dataset("data/v1/features", layout)
        root.create_dataset("data/v2/features", (70, 5), np.float64, external=[(folder / "raw", 0, 2800)])

    replace(folder, AUDIO, change)
    assert faults(refusal(folder)) == [
        f"{folder / AUDIO}: video 'v{number}': 'features' is stored in another file, which is not read"
        for number in (1, 2)
    ]


def test_sizes_that_the_file_cannot_hold_are_refused(folder: Path) -> None:
    def change(root: Any) -> None:
        del root["data/v1"]
        for name in ("features", "intervals"):
            width = 5 if name == "features" else 2
            root.create_dataset(f"data/v1/{name}", (2**40, width), np.float64, chunks=(4096, width))

    replace(folder, AUDIO, change)
    assert "video 'v1': 'features' is of shape (1099511627776, 5), but the file holds little of it" in refusal(folder)


def wrong(name: str, value: Any) -> Callable[[Any], None]:
    def change(root: Any) -> None:
        del root[name]
        if value is not None:
            root[name] = value

    return change


FEATURES, INTERVALS = "data/v1/features", "data/v1/intervals"
UNLIKE = "unlike those of other videos"


@pytest.mark.parametrize(
    ("file", "at", "value", "says"),
    [
        (AUDIO, FEATURES, None, "video 'v1': 'features' is missing"),
        (AUDIO, INTERVALS, None, "video 'v1': 'intervals' is missing"),
        (AUDIO, "data/v1", np.ones(3), "video 'v1': 'v1' is not a group"),
        (AUDIO, "data", np.ones(3), "'data' is not a group"),
        (AUDIO, FEATURES, np.ones((69, 5)), "intervals of shape (70, 2) for features of shape (69, 5)"),
        (AUDIO, FEATURES, np.ones((5, 70)), "features of shape (5, 70), where others have 5 columns"),
        (AUDIO, FEATURES, np.ones((70, 1, 5)), "'features' is of shape (70, 1, 5), not rows of values"),
        (AUDIO, FEATURES, np.ones(()), "'features' is of shape (), not rows of values"),
        (AUDIO, FEATURES, h5py.Empty("f8"), "'features' is of shape None, not rows of values"),
        (AUDIO, FEATURES, np.full((70, 5), b"x"), f"features of type |S1, {UNLIKE}"),
        (AUDIO, FEATURES, np.ones((70, 5), bool), "not numbers or texts"),
        (AUDIO, FEATURES, np.ones((70, 5), "c16"), "not numbers or texts"),
        (AUDIO, FEATURES, np.zeros(70, "f8,i4"), "not numbers or texts"),
        (AUDIO, INTERVALS, np.ones((2, 70)), "intervals of shape (2, 70) for features of shape (70, 5)"),
        (AUDIO, INTERVALS, np.full((70, 2), b"x"), "video 'v1': intervals of texts"),
        (AUDIO, INTERVALS, np.full((70, 2), np.nan), "intervals that are not finite"),
        (WORDS, FEATURES, np.ones((12, 1)), f"features of type float64, {UNLIKE}"),
        (LABELS, FEATURES, np.full((3, 1), b"x"), f"features of type |S1, {UNLIKE}"),
    ],
)
def test_a_wrong_structure_is_named(folder: Path, file: str, at: str, value: Any, says: str) -> None:
    replace(folder, file, wrong(at, value))
    message = refusal(folder)
    assert message.startswith(f"{folder / file}: "), message
    assert message.endswith(says) and "\n" not in message, message


def test_all_that_is_wrong_is_named_at_once(folder: Path) -> None:
    replace(folder, AUDIO, wrong("data/v1/features", np.ones((70, 4))))
    replace(folder, AUDIO, wrong("data/v3/intervals", None))
    replace(folder, WORDS, wrong("data/v1/features", np.ones((12, 1))))
    replace(folder, LABELS, wrong("data/v2/intervals", np.ones((3, 3))))
    assert faults(refusal(folder)) == [
        f"{folder / WORDS}: video 'v1': features of type float64, unlike those of other videos",
        f"{folder / AUDIO}: video 'v1': features of shape (70, 4), where others have 5 columns",
        f"{folder / LABELS}: video 'v2': intervals of shape (3, 3) for features of shape (3, 1)",
        f"{folder / AUDIO}: video 'v3': 'intervals' is missing",
    ]


def test_a_damaged_file_of_a_folder_is_named_and_not_ignored(folder: Path) -> None:
    for name in (AUDIO, VISION):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    result = faults(refusal(folder))
    assert len(result) == 2
    for line, name in zip(result, (AUDIO, VISION), strict=True):
        assert line.startswith(f"{folder / name}: damaged (")
        assert line.endswith("; download it again")
    assert "damaged" in refusal(folder / AUDIO)


def test_an_empty_sequence_is_refused(folder: Path) -> None:
    write(folder / AUDIO, "COVAREP", {})
    assert refusal(folder) == f"{folder / AUDIO}: it has no videos"
