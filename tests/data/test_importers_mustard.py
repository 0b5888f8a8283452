"""MUStARD: the authors' files exactly, features in any layout, what belongs to a source, faults, and damage."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from data.foreign import faults, real_file, write_pickle

from grcf_ray.data.importers import ImportOptions, import_source, mustard
from grcf_ray.data.raw import RawTable
from grcf_ray.data.schema import conform
from grcf_ray.data.validation import validate
from grcf_ray.errors import DataError

JSON, FOLDS, AUDIO, VISION = "sarcasm_data.json", "split_indices.p", "audio_features.p", "resnet_pool5.hdf5"
MINE = ImportOptions(dataset="mine", label_range=(0, 1))
AUDIO_DIM, VISION_DIM = 7, 4
SHOWS = ["BBT", "FRIENDS", "FRIENDS", "GOLDENGIRLS"]

Array = npt.NDArray[Any]
Items = dict[str, dict[str, Any]]


def items_of(count: int) -> Items:
    return {
        f"{row % 3}_{row}": {
            "utterance": f"it's “{row}”, donÕt you think?" if row % 2 else f"So {row}.",
            "speaker": "SHELDON",
            "context": [f"said {row}", "and then", "…"][: 1 + row % 3],
            "context_speakers": ["PENNY"] * (1 + row % 3),
            "show": SHOWS[row % 4],
            "sarcasm": row % 3 == 0,
        }
        for row in range(count)
    }


def folds_of(count: int) -> list[tuple[Array, Array]]:
    order = np.random.default_rng(3).permutation(count)
    parts = [np.sort(part) for part in np.array_split(order, 5)]
    return [(np.setdiff1d(np.arange(count), test), test) for test in parts]


def audio_of(items: Items) -> dict[str, Array]:
    """Features in the first axis, 2 to 4 frames."""
    rng = np.random.default_rng(4)
    return {name: rng.normal(size=(AUDIO_DIM, 2 + row % 3)) for row, name in enumerate(items)}


def vision_of(items: Items) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    return {name: rng.normal(size=(1 + row % 4, VISION_DIM)).astype(np.float32) for row, name in enumerate(items)}


def write_json(folder: Path, items: Any, name: str = JSON) -> Path:
    path = folder / name
    path.write_text(json.dumps(items, indent=4), "utf-8")
    return path


def write_video(folder: Path, arrays: dict[str, Any], name: str = VISION) -> Path:
    path = folder / name
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array)
    return path


def write_all(folder: Path, items: Items, protocol: int = 2) -> Path:
    """All files as the authors publish them, with the features of the context beside those of the utterances."""
    folder.mkdir(exist_ok=True)
    write_json(folder, items)
    write_pickle(folder / FOLDS, folds_of(len(items)), protocol)
    write_pickle(folder / AUDIO, audio_of(items), protocol)
    context = {f"{name}_c": np.ones((2, VISION_DIM)) for name in items}
    write_video(folder, {**vision_of(items), **context})
    return folder


@pytest.fixture
def items() -> Items:
    return items_of(20)


@pytest.fixture
def folder(tmp_path: Path, items: Items) -> Path:
    return write_all(tmp_path / "mustard", items)


def check(table: pa.Table, items: Items, audio: dict[str, Array] | None = None) -> None:
    """The table holds exactly these items, and the features made for them."""
    assert table["id"].to_pylist() == list(items)
    assert table["text"].to_pylist() == [item["utterance"] for item in items.values()]
    assert table["context"].to_pylist() == [item["context"] for item in items.values()]
    assert table["label"].to_pylist() == [float(item["sarcasm"]) for item in items.values()]
    turned = {name: array.T for name, array in (audio or audio_of(items)).items()}
    for column, arrays in (("audio", turned), ("vision", vision_of(items))):
        if column in table.column_names:
            rows = {name: array.astype(np.float32).tolist() for name, array in arrays.items()}
            assert table[column].to_pylist() == [rows.get(name) for name in items]


def accepted(raw: RawTable) -> pa.Table:
    """What an import makes of it, but for the draw of a valid split, which needs more rows than these tests have."""
    validate(raw.table, label_range=(0, 1), splits=("train", "test"), parse_faults=raw.faults, place=raw.place)
    return conform(raw.table)


def refusal(source: Path, variant: str = "") -> str:
    with pytest.raises(DataError) as caught:
        accepted(mustard.read(source, variant))
    return str(caught.value)


@pytest.mark.parametrize(("number", "protocol"), [(1, 0), (4, 5)])
def test_a_fold_with_all_features(tmp_path: Path, items: Items, number: int, protocol: int) -> None:
    folder = write_all(tmp_path / "own", items, protocol)
    raw = mustard.read(folder, f"fold-{number}")
    table = accepted(raw)
    check(table, items)
    test = folds_of(20)[number - 1][1]
    assert [row for row, split in enumerate(table["split"].to_pylist()) if split == "test"] == test.tolist()
    assert raw.files == ((folder / JSON, 20), *((folder / name, 0) for name in (FOLDS, AUDIO, VISION)))
    assert raw.place(2) == f"{JSON}: row 3"
    assert list(mustard.VARIANTS) == [*(f"fold-{number}" for number in range(1, 6)), "speaker-independent"]
    # The first fold is the default, and folds may be lists.
    write_pickle(folder / FOLDS, [[train.tolist(), test.tolist()] for train, test in folds_of(20)])
    assert mustard.read(folder).table["split"].equals(raw.table["split"]) == (number == 1)


def test_notes_say_which_shows_both_splits_have(folder: Path, items: Items) -> None:
    test = set(folds_of(20)[1][1].tolist())
    tested, trained = (
        Counter(item["show"] for row, item in enumerate(items.values()) if (row in test) == answer)
        for answer in (True, False)
    )
    (note,) = (note for note in mustard.read(folder, "fold-2").notes if "shows" in note)
    start, _, counts = note.rstrip(")").partition(" (utterances in test/train: ")
    assert start == f"fold-2: test shares its {len(tested)} shows with train"
    assert sorted(counts.split(", ")) == sorted(f"{show} {tested[show]}/{trained[show]}" for show in tested)


def test_shows_may_be_of_one_split_or_missing(folder: Path, items: Items) -> None:
    items[list(items)[folds_of(20)[0][1][0]]]["show"] = "SARCASMOHOLICS"
    write_json(folder, items)
    (note,) = (note for note in mustard.read(folder).notes if "shows" in note)
    assert "test shares 2 of its 3 shows with train" in note
    for item in items.values():
        item["show"] = None
    del items["1_1"]["show"]
    write_json(folder, items)
    raw = mustard.read(folder)
    assert not any("shows" in note for note in raw.notes)
    check(accepted(raw), items)
    # They are needed where they decide.
    message = refusal(folder, "speaker-independent")
    assert "20 times: show is missing" in message and f"{JSON}: row 2 (id 1_1): show is missing" in message
    items["1_1"]["show"] = 3
    write_json(folder, items)
    assert f"{JSON}: row 2 (id 1_1): show 3 is not a text" in refusal(folder, "speaker-independent")


def test_speaker_independent_is_by_show_and_needs_no_folds(folder: Path, items: Items) -> None:
    (folder / FOLDS).unlink()
    # A byte order mark, and sorted keys.
    text = json.dumps({name: dict(sorted(item.items())) for name, item in items.items()}, ensure_ascii=False)
    (folder / JSON).write_text(text, "utf-8-sig")
    raw = mustard.read(folder, "speaker-independent")
    check(accepted(raw), items)
    expected = ["test" if item["show"] == "FRIENDS" else "train" for item in items.values()]
    assert raw.table["split"].to_pylist() == expected
    assert "speaker-independent: test is the 10 utterances of FRIENDS, train the 10 others" in raw.notes
    assert FOLDS not in [path.name for path, _ in raw.files]
    # Folds that are not read may be damaged.
    for name in ("first.p", "second.p"):
        write_pickle(folder / name, folds_of(19))
    check(accepted(mustard.read(folder, "speaker-independent")), items)
    for name in ("first.p", "second.p"):
        (folder / name).unlink()
    assert refusal(folder) == (
        f"{folder}: no file of folds: copy split_indices.p here from data/ of "
        "https://github.com/soujanyaporia/MUStARD, or give --variant speaker-independent, which needs no folds"
    )


def test_files_are_known_by_their_content(folder: Path, items: Items) -> None:
    names = {JSON: "a", FOLDS: "b.pkl", AUDIO: "c.json", VISION: "d.p"}
    for name, other in names.items():
        (folder / name).rename(folder / other)
    write_pickle(folder / "glove_full_dict.p", {"the": np.ones(3), "so": np.ones(3)})
    write_video(folder, {"1_1_c": np.ones((2, 3)), "2_2_c": np.ones((2, 3))}, "context.hdf5")
    write_json(folder, {"MELD": {"utterance": "oh", "speaker": "Ross"}}, "meld.json")
    (folder / "videos").mkdir()
    assert mustard.files(folder) == [folder / name for name in names.values()]
    assert mustard.files(folder / "glove_full_dict.p") == mustard.files(folder / "meld.json") == []
    check(accepted(mustard.read(folder)), items)


@pytest.mark.parametrize("content", ["{}", "[]", '{"a": 1}', '{"a": {"utterance": "x"}}', "", "id,text\n"])
def test_other_files_are_not_mustard(tmp_path: Path, content: str) -> None:
    path = tmp_path / JSON
    path.write_text(content)
    write_pickle(tmp_path / FOLDS, folds_of(20))
    assert mustard.files(tmp_path) == mustard.files(path) == mustard.files(tmp_path / FOLDS) == []
    for source in (tmp_path, path, tmp_path / FOLDS):
        message = refusal(source)
        assert "no sarcasm_data.json of MUStARD" in message or "the file is empty" in message


def test_one_of_several_files_must_be_kept(folder: Path, items: Items) -> None:
    write_json(folder, items_of(5), "second.json")
    write_video(folder, vision_of(items), "c3d_fc7.hdf5")
    assert refusal(folder) == f"{folder}: several files of MUStARD's items ({JSON}, second.json). Keep one"
    assert "several files of MUStARD's video features (c3d_fc7.hdf5, resnet_pool5.hdf5)" in refusal(folder / JSON)


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, ">f4"])
def test_audio_is_turned_by_the_size_that_all_share(folder: Path, items: Items, time_first: bool, kind: Any) -> None:
    audio = {name: (10 * array).astype(kind) for name, array in audio_of(items).items()}
    write_pickle(folder / AUDIO, {name: array.T if time_first else array for name, array in audio.items()})
    raw = mustard.read(folder)
    check(accepted(raw), items, audio)
    which = "second" if time_first else "first"
    assert f"audio: features are on the {which} axis of its arrays, 7 values a row" in raw.notes
    # Arrays of one shape have the features first.
    audio = {name: np.full((3, 9), float(row)) for row, name in enumerate(items)}
    write_pickle(folder / AUDIO, audio)
    check(accepted(mustard.read(folder)), items, audio)


def test_features_of_an_utterance_may_be_missing(folder: Path, items: Items) -> None:
    audio, vision = audio_of(items), vision_of(items)
    del audio["1_1"], vision["2_2"]
    audio |= {"0_0": np.empty((AUDIO_DIM, 0)), "9_9": np.ones((AUDIO_DIM, 2))}
    vision["1_4"] = np.empty((0, VISION_DIM))
    write_pickle(folder / AUDIO, audio)
    write_video(folder, vision)
    raw = mustard.read(folder)
    table = accepted(raw)
    assert [row for row, rows in enumerate(table["audio"].to_pylist()) if rows is None] == [0, 1]
    assert [row for row, rows in enumerate(table["vision"].to_pylist()) if rows is None] == [2, 4]
    assert "audio: 1 arrays belong to no utterance and are left out" in raw.notes
    (folder / VISION).unlink()
    write_pickle(folder / AUDIO, {name: np.empty((AUDIO_DIM, 0)) for name in items})
    raw = mustard.read(folder)
    assert accepted(raw).column_names == ["id", "split", "text", "label", "context"]
    assert "no vision: the folder has no file of video features for these items" in raw.notes


def test_all_faults_of_the_items_are_named_at_once(folder: Path, items: Items) -> None:
    names = list(items)
    del items[names[0]]["utterance"]
    items[names[1]] |= {"utterance": 5, "sarcasm": "true", "context": "said"}
    items[names[2]] |= {"sarcasm": None, "context": ["so", None]}
    items[names[3]]["sarcasm"] = 2
    items[names[4]] |= {"utterance": "\ud800", "sarcasm": 1}
    items[names[5]] = [1]
    items["\udc00"] = items.pop(names[19])
    write_json(folder, items)
    assert faults(refusal(folder)) == [
        f"{JSON}: row 1 (id 0_0): utterance is missing",
        f"{JSON}: row 2 (id 1_1): utterance 5 is not a text",
        f"{JSON}: row 2 (id 1_1): sarcasm 'true' is not true or false",
        f"{JSON}: row 2 (id 1_1): context 'said' is not a list of texts",
        f"{JSON}: row 3 (id 2_2): sarcasm is missing",
        f"{JSON}: row 3 (id 2_2): context (a list of 2) is not a list of texts",
        f"{JSON}: row 4 (id 0_3): sarcasm 2 is not true or false",
        f"{JSON}: row 5 (id 1_4): utterance '\\ud800' is not a text",
        f"{JSON}: row 6 (id 2_5): utterance is missing",
        f"{JSON}: row 6 (id 2_5): sarcasm is missing",
        f"{JSON}: row 6 (id 2_5): context is missing",
        f"{JSON}: row 20 (id None): id '\\udc00' is not a text",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"1_1": {"utterance": "so", "sarcasm": true, ', "not readable as JSON"),
        ('{"1_1": {"utterance": "so", "sarcasm": true}, "1_1": {}}', "the name '1_1' occurs twice"),
        ('{"1_1": {"utterance": "so", "sarcasm": ' + "9" * 5000 + "}}", "not readable as JSON"),
        ('{"1_1": {"utterance": "so", "sarcasm": ' + "[" * 10**5 + "}}", "not readable as JSON"),
    ],
)
def test_json_that_cannot_be_read(folder: Path, text: str, says: str) -> None:
    (folder / JSON).write_text(text)
    message = refusal(folder)
    assert message.startswith(f"{folder / JSON}: ")
    assert says in message


@pytest.mark.parametrize(
    "change",
    [
        lambda folds: folds[:4],
        lambda folds: [fold[0] for fold in folds],
        lambda folds: [(train, test.astype(float)) for train, test in folds],
        lambda folds: [(train, test[:, None]) for train, test in folds],
        lambda folds: [*folds[:4], (folds[4][0], np.array(3))],
        lambda folds: [*folds[:4], (folds[4][0], "ab")],
    ],
)
def test_folds_of_another_structure(folder: Path, change: Callable[[Any], Any]) -> None:
    write_pickle(folder / FOLDS, change(folds_of(20)))
    assert refusal(folder).startswith(f"{folder / FOLDS}: not 5 folds")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda train, test: (train + 20, test), ["16 indices outside", "16 items in neither"]),
        (lambda train, test: (train, np.r_[test, test[:1]]), ["1 indices more than once"]),
        (lambda train, test: (train, train), ["16 indices more than once", "4 items in neither"]),
        (lambda train, test: (train, test.astype("u8") + 2**63), ["4 indices outside", "4 items in neither"]),
    ],
)
def test_folds_that_do_not_fit(folder: Path, change: Callable[[Array, Array], Any], says: list[str]) -> None:
    first, *others = folds_of(20)
    write_pickle(folder / FOLDS, [change(*first), *others])
    message = refusal(folder)
    assert message.startswith(f"{folder / FOLDS}: ") and "20 items" in message
    for line, problem in zip(faults(message), says, strict=True):
        assert line.startswith(f"fold 1: {problem}")


def test_all_faults_of_the_features_are_named_at_once(folder: Path, items: Items) -> None:
    audio, vision = audio_of(items), {**vision_of(items)}
    audio |= {"1_1": audio["1_1"].T, "2_2": np.ones(7), "0_3": None, "1_4": np.array([["a"]])}
    # Beyond float32.
    audio["2_14"][0, 0] = 1e300
    vision |= {
        "2_5": np.ones((2, 3)),
        "0_6": np.ones((2, VISION_DIM, 7, 7)),
        "1_7": "text",
        "2_8": h5py.Empty("f4"),
        "0_9": np.ones(3),
    }
    for name in ("1_10", "2_11", "0_12", "1_13"):
        del vision[name]
    write_pickle(folder / AUDIO, audio)
    with h5py.File(write_video(folder, vision), "a") as file:
        file["1_10"] = h5py.SoftLink("/0_0")
        file["2_11"] = h5py.ExternalLink("other.h5", "/0_0")
        file.create_group("0_12")
        file.create_dataset("1_13", (1000, VISION_DIM), "f4")
    assert faults(refusal(folder))[:-1] == [
        f"{JSON}: row 2 (id 1_1): audio has rows of 3 values, where most have 7",
        f"{JSON}: row 3 (id 2_2): audio (an array of numbers of shape (7,)) is not an array of features by time",
        f"{JSON}: row 4 (id 0_3): audio (of type NoneType) is not an array of features by time",
        f"{JSON}: row 5 (id 1_4): audio (an array of texts of shape (1, 1)) is not an array of features by time",
        f"{JSON}: row 6 (id 2_5): vision has rows of 3 values, where most have 4",
        f"{JSON}: row 7 (id 0_6): vision is of shape (2, 4, 7, 7), not rows of values",
        f"{JSON}: row 8 (id 1_7): vision is of shape (), not rows of values",
        f"{JSON}: row 9 (id 2_8): vision is of shape None, not rows of values",
        f"{JSON}: row 10 (id 0_9): vision is of type float64 and of shape (3,), not frames of numbers",
        f"{JSON}: row 11 (id 1_10): vision is a link, which is not followed",
        f"{JSON}: row 12 (id 2_11): vision is a link, which is not followed",
        f"{JSON}: row 13 (id 0_12): vision is not a dataset",
        f"{JSON}: row 14 (id 1_13): vision is of shape (1000, 4), but the file holds little of it",
        f"{JSON}: row 15 (id 2_14): audio has 1 non-finite value",
    ]


def test_an_id_is_no_path_into_a_file(folder: Path) -> None:
    items = items_of(20)
    items["0_0/1"] = items.pop("0_0")
    write_json(folder, items)
    with h5py.File(folder / VISION, "a") as file:
        del file["0_0"]
        file["0_0/1"] = np.ones((2, VISION_DIM))
    raw = mustard.read(folder)
    assert not raw.faults
    assert raw.table["vision"].null_count == 1


def test_a_file_of_no_known_kind_may_be_the_modality_that_is_missing(folder: Path) -> None:
    write_pickle(folder / "features.p", {"x": np.ones((2, 3))})
    accepted(mustard.read(folder))
    (folder / AUDIO).unlink()
    assert "not MUStARD's, while no file has audio features" in refusal(folder)


def test_all_damaged_files_are_named_at_once(folder: Path) -> None:
    for name in (FOLDS, AUDIO, VISION):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) - 10])
    found = faults(refusal(folder))
    assert [line.partition(": ")[0] for line in found] == [str(folder / name) for name in (FOLDS, AUDIO, VISION)]


@pytest.fixture(scope="module")
def real() -> Path:
    """The folder of the authors' files."""
    return real_file(f"mustard/{JSON}").parent


@pytest.mark.parametrize("number", [1, 5])
def test_the_authors_folds(real: Path, number: int) -> None:
    items = json.loads((real / JSON).read_text("utf-8"))
    with (real / FOLDS).open("rb") as file:
        train, test = pickle.load(file, encoding="latin1")[number - 1]
    raw = mustard.read(real, f"fold-{number}")
    assert Counter(raw.table["split"].to_pylist()) == {"train": 552, "test": 138}
    splits = np.array(raw.table["split"].to_pylist())
    assert set(splits[train]) == {"train"} and set(splits[test]) == {"test"}
    check(raw.table, items)
    (note,) = (note for note in raw.notes if note.startswith(f"fold-{number}"))
    shared = {items[name]["show"] for name in np.array(list(items))[test]}
    assert f"test shares its {len(shared)} shows with train" in note


def test_the_authors_files_through_an_import(real: Path) -> None:
    items = json.loads((real / JSON).read_text("utf-8"))
    for variant, splits in (("", (496, 56, 138)), ("speaker-independent", (300, 34, 356))):
        options = ImportOptions(dataset="mine", label_range=(0, 1), task="classification", variant=variant)
        table, info = import_source(real / JSON, options)
        assert tuple(info.splits.values()) == splits
        assert (info.task, info.label_range, pc.sum(table["label"]).as_py()) == ("classification", (0, 1), 345)
        check(table, items)
        friends = pc.is_in(table["id"], pa.array([name for name in items if items[name]["show"] == "FRIENDS"]))
        if variant:
            assert table.filter(friends)["split"].unique().to_pylist() == ["test"]
