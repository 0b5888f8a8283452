"""MUStARD: the authors' files exactly, features in any layout, what belongs to a source, and faults."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from data.foreign import faults, real_file, write_pickle
from data.formats import FORMATS, Utterance, check, hdf5, mustard_folds, mustard_items

from grcf_ray.data.importers import ImportOptions, import_source, mustard
from grcf_ray.data.raw import RawTable
from grcf_ray.data.schema import conform
from grcf_ray.data.validation import validate
from grcf_ray.errors import DataError

JSON, FOLDS, AUDIO, VISION = "sarcasm_data.json", "split_indices.p", "audio_features.p", "resnet_pool5.hdf5"
MUSTARD = FORMATS["mustard"]

Array = npt.NDArray[Any]
Items = dict[str, dict[str, Any]]


@pytest.fixture
def utterances() -> list[Utterance]:
    """Sixteen of train and four of test, each with two to four rows of five and three values."""
    return MUSTARD.utterances({"train": 16, "test": 4})


@pytest.fixture
def items(utterances: list[Utterance]) -> Items:
    return mustard_items(utterances)


def arrays_of(utterances: list[Utterance]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Audio, features first, and vision, frames first."""
    return {item.id: item.audio.T for item in utterances}, {item.id: item.vision for item in utterances}


def write_json(folder: Path, items: Any, name: str = JSON) -> None:
    (folder / name).write_text(json.dumps(items, indent=4), "utf-8")


@pytest.fixture
def folder(tmp_path: Path, utterances: list[Utterance], items: Items) -> Path:
    """All files as the authors publish them, with the features of the context beside those of the utterances."""
    folder = tmp_path / "mustard"
    folder.mkdir()
    write_json(folder, items)
    audio, vision = arrays_of(utterances)
    write_pickle(folder / FOLDS, mustard_folds(utterances), 2)
    write_pickle(folder / AUDIO, audio, 2)
    (folder / VISION).write_bytes(hdf5({**vision, **{f"{name}_c": np.ones((2, 3)) for name in items}}))
    return folder


def accepted(raw: RawTable) -> pa.Table:
    """What an import makes of it, but for the draw of a valid split, which needs more rows than these tests have."""
    validate(raw.table, label_range=(0, 1), splits=("train", "test"), parse_faults=raw.faults, place=raw.place)
    return conform(raw.table)


def refusal(source: Path, variant: str = "") -> str:
    with pytest.raises(DataError) as caught:
        accepted(mustard.read(source, variant))
    return str(caught.value)


@pytest.mark.parametrize("protocol", [0, 5])
def test_folds_and_features(folder: Path, utterances: list[Utterance], protocol: int) -> None:
    folds = mustard_folds(utterances)
    write_pickle(folder / AUDIO, arrays_of(utterances)[0], protocol)
    # Folds may be lists.
    write_pickle(folder / FOLDS, [[train.tolist(), test.tolist()] for train, test in folds], protocol)
    for number, (_, test) in enumerate(folds, 1):
        raw = mustard.read(folder, f"fold-{number}")
        assert [row for row, split in enumerate(raw.table["split"].to_pylist()) if split == "test"] == test.tolist()
    # The first fold is the default.
    raw = mustard.read(folder)
    check(accepted(raw), MUSTARD, utterances)
    assert raw.files == ((folder / JSON, 20), *((folder / name, 0) for name in (FOLDS, AUDIO, VISION)))
    assert raw.place(2) == f"{JSON}: row 3"
    assert list(mustard.VARIANTS) == [*(f"fold-{number}" for number in range(1, 6)), "speaker-independent"]


def test_notes_say_which_shows_both_splits_have(folder: Path, items: Items) -> None:
    def note() -> str:
        return next((note for note in mustard.read(folder, "fold-1").notes if "shows" in note), "")

    assert note() == ""
    for name, show in (("test0[0]", "BBT"), ("test1[0]", "GOLDENGIRLS"), ("train0[0]", "FRIENDS")):
        items[name]["show"] = show
    write_json(folder, items)
    start, _, counts = note().rstrip(")").partition(" (utterances in test/train: ")
    assert start == "fold-1: test shares 2 of its 3 shows with train"
    assert sorted(counts.split(", ")) == ["BBT 1/15", "FRIENDS 2/1"]
    items["test1[0]"]["show"] = "BBT"
    write_json(folder, items)
    assert note().startswith("fold-1: test shares its 2 shows with train")


def test_speaker_independent_is_by_show_and_needs_no_folds(
    folder: Path, items: Items, utterances: list[Utterance]
) -> None:
    (folder / FOLDS).unlink()
    # A byte order mark, and sorted keys.
    text = json.dumps({name: dict(sorted(item.items())) for name, item in items.items()}, ensure_ascii=False)
    (folder / JSON).write_text(text, "utf-8-sig")
    # Folds that are not read may be damaged.
    for names in ((), ("first.p", "second.p")):
        for name in names:
            write_pickle(folder / name, mustard_folds(utterances[1:]))
        raw = mustard.read(folder, "speaker-independent")
        check(accepted(raw), MUSTARD, utterances)
        assert "speaker-independent: test is the 4 utterances of FRIENDS, train the 16 others" in raw.notes
        assert len(raw.files) == 3
    for name in ("first.p", "second.p"):
        (folder / name).unlink()
    assert refusal(folder) == (
        f"{folder}: no file of folds: copy split_indices.p here from data/ of "
        "https://github.com/soujanyaporia/MUStARD, or give --variant speaker-independent, which needs no folds"
    )


def test_a_show_is_needed_where_it_decides(folder: Path, items: Items, utterances: list[Utterance]) -> None:
    del items["train1[0]"]["show"]
    items["train2[0]"]["show"] = 3
    write_json(folder, items)
    assert faults(refusal(folder, "speaker-independent")) == [
        f"{JSON}: row 2 (id train1[0]): show is missing",
        f"{JSON}: row 3 (id train2[0]): show 3 is not a text",
    ]
    check(accepted(mustard.read(folder)), MUSTARD, utterances)


def test_files_are_known_by_their_content(folder: Path, utterances: list[Utterance]) -> None:
    names = {JSON: "a", FOLDS: "b.pkl", AUDIO: "c.json", VISION: "d.p"}
    for name, other in names.items():
        (folder / name).rename(folder / other)
    write_pickle(folder / "glove_full_dict.p", {"the": np.ones(3), "so": np.ones(3)})
    (folder / "context.hdf5").write_bytes(hdf5({"1_1_c": np.ones((2, 3)), "2_2_c": np.ones((2, 3))}))
    write_json(folder, {"MELD": {"utterance": "oh", "speaker": "Ross"}}, "meld.json")
    (folder / "videos").mkdir()
    assert mustard.files(folder) == [folder / name for name in names.values()]
    assert mustard.files(folder / "glove_full_dict.p") == mustard.files(folder / "meld.json") == []
    check(accepted(mustard.read(folder)), MUSTARD, utterances)


@pytest.mark.parametrize("content", ["{}", "[]", '{"a": 1}', '{"a": {"utterance": "x"}}', "", "id,text\n"])
def test_other_files_are_not_mustard(folder: Path, content: str) -> None:
    (folder / JSON).write_text(content)
    for source in (folder, folder / JSON, folder / FOLDS):
        assert mustard.files(source) == []
        message = refusal(source)
        assert "no sarcasm_data.json of MUStARD" in message or "the file is empty" in message


def test_one_of_several_files_must_be_kept(folder: Path, items: Items, utterances: list[Utterance]) -> None:
    write_json(folder, items, "second.json")
    (folder / "c3d_fc7.hdf5").write_bytes(hdf5(arrays_of(utterances)[1]))
    assert refusal(folder) == f"{folder}: several files of MUStARD's items ({JSON}, second.json). Keep one"
    assert "several files of MUStARD's video features (c3d_fc7.hdf5, resnet_pool5.hdf5)" in refusal(folder / JSON)


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, ">f4"])
def test_audio_is_turned_by_the_size_that_all_share(
    folder: Path, utterances: list[Utterance], time_first: bool, kind: Any
) -> None:
    utterances = [replace(item, audio=(10 * item.audio).astype(kind)) for item in utterances]
    write_pickle(folder / AUDIO, {item.id: item.audio if time_first else item.audio.T for item in utterances})
    raw = mustard.read(folder)
    check(accepted(raw), MUSTARD, utterances)
    which = "second" if time_first else "first"
    assert f"audio: features are on the {which} axis of its arrays, 5 values a row" in raw.notes
    # Arrays of one shape have the features first.
    utterances = [replace(item, audio=np.full((9, 3), float(row))) for row, item in enumerate(utterances)]
    write_pickle(folder / AUDIO, arrays_of(utterances)[0])
    check(accepted(mustard.read(folder)), MUSTARD, utterances)


def test_features_may_be_missing(folder: Path, utterances: list[Utterance]) -> None:
    audio, vision = arrays_of(utterances)
    del audio["train1[0]"], vision["train2[0]"]
    audio |= {"train0[0]": np.empty((5, 0)), "other": np.ones((5, 2))}
    vision["train4[0]"] = np.empty((0, 3))
    write_pickle(folder / AUDIO, audio)
    (folder / VISION).write_bytes(hdf5(vision))
    raw = mustard.read(folder)
    for rows, name in (((0, 1), "audio"), ((2, 4), "vision")):
        for row in rows:
            utterances[row] = replace(utterances[row], **{name: None})
    check(accepted(raw), MUSTARD, utterances)
    assert "audio: 1 arrays belong to no utterance and are left out" in raw.notes
    (folder / VISION).unlink()
    write_pickle(folder / AUDIO, {item.id: np.empty((5, 0)) for item in utterances})
    raw = mustard.read(folder)
    assert accepted(raw).column_names == ["id", "split", "text", "label", "context"]
    assert "no vision: the folder has no file of video features for these items" in raw.notes
    # A file of no known kind may be the modality that is missing.
    write_pickle(folder / "features.p", {"x": np.ones((2, 3))})
    assert "not MUStARD's, while no file has video features" in refusal(folder)


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
        f"{JSON}: row 1 (id train0[0]): utterance is missing",
        f"{JSON}: row 2 (id train1[0]): utterance 5 is not a text",
        f"{JSON}: row 2 (id train1[0]): sarcasm 'true' is not true or false",
        f"{JSON}: row 2 (id train1[0]): context 'said' is not a list of texts",
        f"{JSON}: row 3 (id train2[0]): sarcasm is missing",
        f"{JSON}: row 3 (id train2[0]): context (a list of 2) is not a list of texts",
        f"{JSON}: row 4 (id train3[0]): sarcasm 2 is not true or false",
        f"{JSON}: row 5 (id train4[0]): utterance '\\ud800' is not a text",
        f"{JSON}: row 6 (id train5[0]): utterance is missing",
        f"{JSON}: row 6 (id train5[0]): sarcasm is missing",
        f"{JSON}: row 6 (id train5[0]): context is missing",
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
def test_folds_of_another_structure(folder: Path, utterances: list[Utterance], change: Callable[[Any], Any]) -> None:
    write_pickle(folder / FOLDS, change(mustard_folds(utterances)))
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
def test_folds_that_do_not_fit(
    folder: Path, utterances: list[Utterance], change: Callable[[Array, Array], Any], says: list[str]
) -> None:
    first, *others = mustard_folds(utterances)
    write_pickle(folder / FOLDS, [change(*first), *others])
    message = refusal(folder)
    assert message.startswith(f"{folder / FOLDS}: ") and "20 items" in message
    for line, problem in zip(faults(message), says, strict=True):
        assert line.startswith(f"fold 1: {problem}")


def test_all_faults_of_the_features_are_named_at_once(folder: Path, utterances: list[Utterance]) -> None:
    audio, vision = arrays_of(utterances)
    names = [item.id for item in utterances]
    audio[names[0]] = np.ones((3, 4))
    audio |= {names[1]: np.ones(7), names[2]: None, names[3]: np.array([["a"]])}
    # Beyond float32.
    audio[names[13]] = np.full((5, 1), 1e300)
    wrong = [np.ones((2, 4)), np.ones((2, 3, 7, 7)), "text", h5py.Empty("f4"), np.ones(3)]
    vision |= dict(zip(names[4:9], wrong, strict=True))
    for name in names[9:13]:
        del vision[name]
    write_pickle(folder / AUDIO, audio)
    (folder / VISION).write_bytes(hdf5(vision))
    with h5py.File(folder / VISION, "a") as file:
        file[names[9]] = h5py.SoftLink("/train0[0]")
        file[names[10]] = h5py.ExternalLink("other.h5", "/train0[0]")
        file.create_group(names[11])
        file.create_dataset(names[12], (1000, 3), "f4")
    assert faults(refusal(folder))[:-1] == [
        f"{JSON}: row {row} (id train{row - 1}[0]): {problem}"
        for row, problem in enumerate(
            [
                "audio has rows of 3 values, where most have 5",
                "audio (an array of numbers of shape (7,)) is not an array of features by time",
                "audio (of type NoneType) is not an array of features by time",
                "audio (an array of texts of shape (1, 1)) is not an array of features by time",
                "vision has rows of 4 values, where most have 3",
                "vision is of shape (2, 3, 7, 7), not rows of values",
                "vision is of shape (), not rows of values",
                "vision is of shape None, not rows of values",
                "vision is of type float64 and of shape (3,), not frames of numbers",
                "vision is a link, which is not followed",
                "vision is a link, which is not followed",
                "vision is not a dataset",
                "vision is of shape (1000, 3), but the file holds little of it",
                "audio has 5 non-finite values",
            ],
            1,
        )
    ]


def test_an_id_is_no_path_into_a_file(folder: Path, items: Items) -> None:
    items["train0[0]/1"] = items.pop("train0[0]")
    write_json(folder, items)
    with h5py.File(folder / VISION, "a") as file:
        del file["train0[0]"]
        file["train0[0]/1"] = np.ones((2, 3))
    raw = mustard.read(folder)
    assert not raw.faults
    assert raw.table["vision"].null_count == 1


def test_all_damaged_files_are_named_at_once(folder: Path) -> None:
    for name in (FOLDS, AUDIO, VISION):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) - 10])
    lines = faults(refusal(folder))
    assert [line.partition(": ")[0] for line in lines] == [str(folder / name) for name in (FOLDS, AUDIO, VISION)]


@pytest.fixture(scope="module")
def real() -> Path:
    """The folder of the authors' files."""
    return real_file(f"mustard/{JSON}").parent


def test_the_authors_folds(real: Path) -> None:
    items = json.loads((real / JSON).read_text("utf-8"))
    with (real / FOLDS).open("rb") as file:
        train, test = pickle.load(file, encoding="latin1")[4]
    raw = mustard.read(real, "fold-5")
    assert Counter(raw.table["split"].to_pylist()) == {"train": 552, "test": 138}
    splits = np.array(raw.table["split"].to_pylist())
    assert set(splits[train]) == {"train"} and set(splits[test]) == {"test"}
    (note,) = (note for note in raw.notes if note.startswith("fold-5"))
    shared = {items[name]["show"] for name in np.array(list(items))[test]}
    assert f"test shares its {len(shared)} shows with train" in note


@pytest.mark.parametrize(("variant", "splits"), [("", (496, 56, 138)), ("speaker-independent", (300, 34, 356))])
def test_the_authors_files_through_an_import(real: Path, variant: str, splits: tuple[int, ...]) -> None:
    items = json.loads((real / JSON).read_text("utf-8"))
    options = ImportOptions(dataset="mine", label_range=(0, 1), task="classification", variant=variant)
    table, info = import_source(real / JSON, options)
    assert tuple(info.splits.values()) == splits
    assert (info.task, info.label_range, pc.sum(table["label"]).as_py()) == ("classification", (0, 1), 345)
    assert table["id"].to_pylist() == list(items)
    for column, name in (("text", "utterance"), ("context", "context"), ("label", "sarcasm")):
        assert table[column].to_pylist() == [item[name] for item in items.values()]
    if variant:
        friends = [item["show"] == "FRIENDS" for item in items.values()]
        assert table.filter(pa.array(friends))["split"].unique().to_pylist() == ["test"]
