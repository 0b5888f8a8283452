"""MAG-BERT's pickles: words and rows that fit each other, lists of MISA and MMIM, older files, and real utterances."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.foreign import changed, refusal, write_pickle
from data.formats import FORMATS, check, imported, mag_content, misa_content

from grcf_ray.data.importers import find_importer, mag

MAG = FORMATS["mag"]


def write(folder: Path, content: Any, protocol: int | str = 4, name: str = "mosi.pkl") -> Path:
    return write_pickle(folder / name, content, protocol)


def test_places_videos_and_notes(tmp_path: Path) -> None:
    content = mag_content(MAG.utterances())
    for row, name in enumerate(("no video", "a[b][3]")):
        content["test"][row] = changed(content["test"][row], (2,), name)
    path = write(tmp_path, content)
    raw = mag.read(path)
    assert (raw.files, raw.notes) == (((path, 8),), ())
    assert [raw.place(row) for row in (0, 4, 7)] == ["train row 1", "dev row 1", "test row 2"]
    assert raw.table["video_id"].to_pylist()[4:] == ["dev0", "dev1", None, "a[b]"]
    with pytest.raises(IndexError):
        raw.place(8)


def test_integer_features_and_other_names_of_splits(tmp_path: Path) -> None:
    utterances = [replace(item, vision=np.arange(3 * len(item.words)).reshape(-1, 3)) for item in MAG.utterances()]
    content = mag_content(utterances)
    # Lists for tuples, and splits in the order of a dict of Python 2.
    listed = {
        "Test": content["test"],
        "valid": tuple(content["dev"]),
        "train": [list(item) for item in content["train"]],
    }
    path = write(tmp_path, listed | {"info": "x", 3: None})
    check(imported(path, MAG)[0], MAG, utterances)
    assert mag.read(path).notes == ("'info', of type str, is left out", "3, of type NoneType, is left out")


def test_a_word_with_white_space_is_several_and_an_empty_one_none(tmp_path: Path) -> None:
    utterances = MAG.utterances()
    rows = np.arange(18, dtype=np.float32).reshape(6, 3)
    utterances[0] = replace(utterances[0], words=["all", " right\n", "", "New York\tCity", "\xa0", "x"], vision=rows)
    utterances[0] = replace(utterances[0], audio=None)
    utterances[1] = replace(utterances[1], words=[" "], vision=rows[:1], audio=rows[:1, :0])
    # A row of zeros is a word without features, no padding.
    utterances[2].vision[-1] = 0
    path = write(tmp_path, mag_content(utterances))
    words = ["all", "right", "New", "York", "City", "x"]
    utterances[0] = replace(utterances[0], words=words, vision=rows[[0, 1, 3, 3, 3, 5]])
    utterances[1] = replace(utterances[1], words=[""], vision=None, audio=None)
    table, info = imported(path, MAG)
    check(table, MAG, utterances)
    assert info.notes[:5] == (
        "empty words, left out with their rows: 3",
        "words with white space, split into several words with the same rows: 1",
        "audio: 2 of 8 utterances have none",
        "vision: 1 of 8 utterances have none",
        "1 of 8 utterances have no text",
    )


def test_each_modality_needs_a_row_for_each_word(tmp_path: Path) -> None:
    content = mag_content(MAG.utterances())
    content["test"][1] = changed(content["test"][1], (0, 0), ["a"])
    assert refusal(write(tmp_path, content), MAG.options).splitlines() == [
        "mosi.pkl: 2 faults",
        "  test row 2 (id test1[0]): visual has 3 rows for 1 words",
        "  test row 2 (id test1[0]): acoustic has 3 rows for 1 words",
    ]


def test_a_long_first_sentence_is_known_too(tmp_path: Path) -> None:
    words = [f"word{place}" for place in range(200)]
    content = {"train": [((words, np.ones((200, 3)), np.ones((200, 2))), 1.0, "v[1]")], "dev": [], "test": []}
    assert mag.files(write(tmp_path, content))


OLDER: list[Any] = [
    {"facet": np.ones(3), "covarep": np.ones(3), "glove": np.ones(3), "label": np.ones(3)},
    {"covarep": {"v1": np.ones(3)}},
    {"train": {"glove": np.ones(3), "facet": np.ones(3)}, "valid": {}, "test": {}},
    {"2WGyTLYerpo": {"FACET_4.1": np.ones(3)}},
]


@pytest.mark.parametrize("content", OLDER)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_an_older_file_of_the_name_says_which_is_needed(tmp_path: Path, content: Any, protocol: int) -> None:
    path = write(tmp_path, content, protocol)
    for source in (path, tmp_path):
        assert refusal(source) == (
            f"{path}: an older file, of features (facet, covarep, glove) without the words. Needed is the mosi.pkl or "
            "mosei.pkl that MAG-BERT reads, or aligned_50.pkl of MMSA"
        )
    # The right one beside it is read.
    write(tmp_path, mag_content(MAG.utterances()), name="later.pkl")
    check(imported(tmp_path, MAG)[0], MAG, MAG.utterances())


@pytest.mark.parametrize("numbers", [[7, 8], np.arange(2)])
def test_the_first_release_has_numbers_for_words(tmp_path: Path, numbers: Any) -> None:
    path = write(tmp_path, mag_content([replace(item, words=numbers) for item in MAG.utterances()]))
    assert refusal(path).startswith(f"{path}: its words are numbers of the word2id.pickle")


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ({"raw_text": ["a"]}, "each split is a dict of arrays, as in files of MMSA, which --format mmsa reads"),
        ({"vision": np.ones(3)}, "in files of MFN and of the Multimodal Transformer, which lack the words"),
    ],
)
def test_columns_of_arrays_are_of_other_formats(tmp_path: Path, split: Any, says: str) -> None:
    assert says in refusal(write(tmp_path, {"train": split}), replace(MAG.options, format="mag"))


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("mmim", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_lists_of_misa_and_mmim(tmp_path: Path, whole: bool, mmim: bool, protocol: int) -> None:
    utterances = MAG.utterances()
    content = misa_content(utterances, mmim=mmim)
    for split, rows in ({"mosi": content} if whole else content).items():
        write(tmp_path, rows, protocol, f"{split}.pkl")
    assert find_importer(tmp_path) is mag
    table, info = imported(tmp_path, MAG)
    check(table, MAG, [replace(item, audio=item.audio[:1]) for item in utterances] if mmim else utterances)
    assert info.word_aligned != mmim
    assert any("not aligned to words" in note for note in info.notes) == mmim
    assert [source.name for source in info.sources] == (["mosi.pkl"] if whole else ["train.pkl", "dev.pkl", "test.pkl"])


def test_a_list_of_misa_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for split, rows in misa_content(MAG.utterances()).items():
        write(tmp_path, rows, name=f"{split}.pkl")
    for bad in (b"no pickle", pickle.dumps(["a"])):
        (tmp_path / "dev.pkl").write_bytes(bad)
        assert refusal(tmp_path).startswith(f"{tmp_path / 'dev.pkl'}: ")
    (tmp_path / "dev.pkl").unlink()
    (tmp_path / "test.pkl").unlink()
    assert refusal(tmp_path) == f"{tmp_path}: the split test is missing"
