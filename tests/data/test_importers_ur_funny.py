"""UR-FUNNY: the five pickles in any form, which modality is which, what belongs to a source, and faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.foreign import faults, refusal, write_pickle
from data.formats import FORMATS, Utterance, check, imported, ur_funny_content

from grcf_ray.data.importers import find_importer, ur_funny

LANGUAGE, LABELS, FOLDS = "language_sdk.pkl", "humor_label_sdk.pkl", "data_folds.pkl"
COVAREP, OPENFACE = "covarep_features_sdk.pkl", "openface_features_sdk.pkl"
NAMES = (LANGUAGE, LABELS, FOLDS, COVAREP, OPENFACE)
UR_FUNNY = FORMATS["ur_funny"]
FORCED = replace(UR_FUNNY.options, format="ur_funny", non_finite="fail")

Content = dict[str, Any]


def utterances_of() -> list[Utterance]:
    """Their ids are whole numbers."""
    return [replace(item, id=str(row)) for row, item in enumerate(UR_FUNNY.utterances())]


def content_of(form: Callable[[str], Any] = int) -> Content:
    return ur_funny_content(utterances_of(), form)


def write(folder: Path, content: Content, protocol: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in content.items():
        write_pickle(folder / name, value, protocol)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "own", content_of())


def test_ids_are_matched_across_their_kinds_and_notes_say_what_is_read(tmp_path: Path) -> None:
    content, texts = content_of(), content_of(str)
    content[LABELS], content[COVAREP] = {**texts[LABELS], "70": 1}, dict(reversed(texts[COVAREP].items()))
    folder = write(tmp_path / "own", content)
    check(imported(folder, UR_FUNNY)[0], UR_FUNNY, utterances_of())
    raw = ur_funny.read(folder)
    assert raw.files == ((folder / LANGUAGE, 8), *((folder / name, 0) for name in NAMES[1:]))
    assert raw.notes == (
        "1 of 9 labelled samples are in no fold and are left out",
        f"audio from {COVAREP}, rows of 81 values",
        f"vision from {OPENFACE}, rows of 371 values",
    )
    assert [raw.place(row) for row in (0, 3, 4, 7)] == ["train row 1", "train row 4", "valid row 1", "test row 2"]


def test_folds_or_labels_alone_may_be_anybodys(tmp_path: Path) -> None:
    content = content_of()
    for name in (FOLDS, LABELS):
        folder = write(tmp_path / name, {name: content[name]})
        assert ur_funny.files(folder) == ur_funny.files(folder / name) == []
    both = write(tmp_path / FOLDS, {LABELS: content[LABELS]})
    assert len(ur_funny.files(both)) == 2
    assert find_importer(both) is ur_funny


@pytest.mark.parametrize("missing", [(LANGUAGE,), (LABELS,), (FOLDS,), (LANGUAGE, FOLDS), (LABELS, FOLDS)])
def test_missing_files_are_named(folder: Path, missing: tuple[str, ...]) -> None:
    for name in missing:
        (folder / name).unlink()
    message = refusal(folder, FORCED)
    assert message.startswith(f"{folder}: no file of UR-FUNNY's ")
    lacking, _, present = message.partition("Found: ")
    for name in NAMES:
        assert (f"({name})" in lacking) == (name in missing)
        assert (f"{name} (" in present) == (name not in missing)


@pytest.mark.parametrize(("modality", "name"), [("audio", COVAREP), ("vision", OPENFACE)])
def test_a_modality_may_be_missing(folder: Path, modality: str, name: str) -> None:
    (folder / name).unlink()
    table, info = imported(folder, UR_FUNNY)
    check(table, UR_FUNNY, [replace(item, **{modality: None}) for item in utterances_of()])
    assert f"no {modality}: the folder has no file such as {name}" in info.notes
    # A file of no known kind may be the modality that is missing.
    write(folder, {"features.pkl": {"x": np.ones((2, 3))}})
    assert "not UR-FUNNY's, while the folder has 1 of 2 files of features" in refusal(folder, FORCED)


def resized(folder: Path, covarep: int, openface: int) -> list[Utterance]:
    utterances = replace(UR_FUNNY, widths=(covarep, openface)).utterances()
    write(folder, ur_funny_content(utterances))
    return utterances


@pytest.mark.parametrize(("covarep", "openface"), [(81, 75), (74, 371), (5, 9), (400, 371), (81, 371)])
def test_modalities_of_other_widths(tmp_path: Path, covarep: int, openface: int) -> None:
    utterances = resized(tmp_path / "own", covarep, openface)
    table, info = imported(tmp_path / "own", UR_FUNNY)
    check(table, UR_FUNNY, utterances)
    assert any("the wider file is vision" in note for note in info.notes) == ((covarep, openface) != (81, 371))


def test_modalities_that_cannot_be_told(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    resized(folder, 9, 9)
    assert refusal(folder, FORCED) == (
        f"{COVAREP} and {OPENFACE} both have rows of 9 values: keep one file of audio and one of vision"
    )
    (folder / OPENFACE).unlink()
    assert "rows of 9 values, but audio has 81 and vision 371" in refusal(folder, FORCED)


def test_one_file_of_each_kind_is_kept(folder: Path) -> None:
    write(folder, {"old_labels.pkl": {5: 1}, "other.pkl": {5: {"punchline_features": np.ones((2, 3))}}})
    assert refusal(folder, FORCED) == (
        f"{folder}: too many files of UR-FUNNY's labels (humor_label_sdk.pkl) (humor_label_sdk.pkl, old_labels.pkl). "
        "Keep 1"
    )
    (folder / "old_labels.pkl").unlink()
    assert "too many files of UR-FUNNY's features (covarep_features_sdk.pkl, openface_features_sdk.pkl, " in refusal(
        folder, FORCED
    )


@pytest.mark.parametrize(
    "form",
    [
        lambda rows: rows.tolist(),
        lambda rows: list(rows),
        lambda rows: tuple(map(tuple, rows.tolist())),
        lambda rows: rows.astype(object),
        lambda rows: rows.astype(">f4"),
        lambda rows: np.asfortranarray(rows),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_rows_of_any_form(tmp_path: Path, form: Callable[[Any], Any], protocol: int) -> None:
    content = content_of()
    for name in (COVAREP, OPENFACE):
        for sample in content[name].values():
            sample["punchline_features"] = form(sample["punchline_features"])
    check(imported(write(tmp_path / "own", content, protocol), UR_FUNNY)[0], UR_FUNNY, utterances_of())


def test_samples_without_rows_have_none(tmp_path: Path) -> None:
    content = content_of()
    for name, empty in enumerate(([], np.empty((0, 81)), np.array([]), ())):
        content[COVAREP][name]["punchline_features"] = empty
    del content[COVAREP][4]
    folder = write(tmp_path / "own", content)
    table, _ = imported(folder, UR_FUNNY)
    check(table, UR_FUNNY, [replace(item, audio=None) if int(item.id) < 5 else item for item in utterances_of()])
    # Numbers beyond float32 are not finite.
    content[OPENFACE][5]["punchline_features"] = np.full((1, 371), 1e300)
    assert "(id 5): vision has 371 non-finite values" in refusal(write(folder, content), FORCED)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("it’s", "it’s"),
        ("it’s".encode(), "it’s"),
        (["so", "it", "was"], "so it was"),
        ("caf\xc3\xa9", "café"),
        ("", ""),
    ],
)
def test_sentences_of_any_form(tmp_path: Path, value: Any, text: str) -> None:
    content = content_of()
    content[LANGUAGE][0] |= {"punchline_sentence": value, "context_sentences": [value, value]}
    table, _ = imported(write(tmp_path / "own", content), UR_FUNNY)
    assert (table["text"][0].as_py(), table["context"][0].as_py()) == (text, [text, text])


@pytest.mark.parametrize("value", [1.0, True, np.int64(1), np.float32(1), np.array([1])])
def test_labels_of_any_form(tmp_path: Path, value: Any) -> None:
    content = content_of()
    content[LABELS] = {name: value if label else label for name, label in content[LABELS].items()}
    check(imported(write(tmp_path / "own", content), UR_FUNNY)[0], UR_FUNNY, utterances_of())


def test_all_faults_of_the_samples_are_named_at_once(tmp_path: Path) -> None:
    content = ur_funny_content(
        [replace(item, id=str(row)) for row, item in enumerate(UR_FUNNY.utterances({"train": 6, "dev": 2, "test": 3}))],
        int,
    )
    language, labels = content[LANGUAGE], content[LABELS]
    language[0]["punchline_sentence"] = 3.5
    language[1] = ["so"]
    del language[2], labels[3]
    del language[4]["context_sentences"]
    language[5] |= {"punchline_sentence": "\ud800", "context_sentences": "so"}
    labels |= {0: 2, 1: "1", 6: float("nan"), 7: None}
    content[COVAREP][8] = [1]
    content[COVAREP][9]["punchline_features"] = np.ones((81, 2))
    content[COVAREP][10]["punchline_features"] = [[1.0, 2.0], ["1.0", 2.0]]
    content[OPENFACE][8]["punchline_features"] = np.ones((2, 2, 371))
    content[OPENFACE][9]["punchline_features"] = np.array([["1"] * 371])
    content[OPENFACE][10]["punchline_features"] = 1.5
    content[FOLDS]["dev"].append(0)
    rows = "is not rows of numbers of one length (punchline_features)"
    assert set(faults(refusal(write(tmp_path / "own", content), FORCED))) == {
        "train row 1 (id 0): punchline_sentence 3.5 is not a text",
        "train row 1 (id 0): label 2 is not 0 or 1",
        "train row 2 (id 1): the sample is a list of 1, not a dict of sentences",
        "train row 2 (id 1): label '1' is not 0 or 1",
        f"train row 3 (id 2): {LANGUAGE} does not have this id",
        "train row 4 (id 3): label is missing",
        "train row 5 (id 4): context_sentences is missing",
        "train row 6 (id 5): punchline_sentence '\\ud800' is not a text",
        "train row 6 (id 5): context_sentences 'so' is not a list of texts",
        "valid row 1 (id 6): label nan is not 0 or 1",
        "valid row 2 (id 7): label is missing",
        "valid row 3 (id 0): train row 1 has the same id",
        "valid row 3 (id 0): punchline_sentence 3.5 is not a text",
        "valid row 3 (id 0): label 2 is not 0 or 1",
        f"test row 1 (id 8): audio {rows}",
        f"test row 1 (id 8): vision {rows}",
        "test row 2 (id 9): audio has rows of 2 values, where most have 81",
        f"test row 2 (id 9): vision {rows}",
        f"test row 3 (id 10): audio {rows}",
        f"test row 3 (id 10): vision {rows}",
    }


NO_IDS = "dev is not a list of ids, which are whole numbers or texts"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (FOLDS, lambda folds: {**folds, "dev": "ab"}, NO_IDS),
        (FOLDS, lambda folds: {**folds, "dev": [1, 2.5]}, NO_IDS),
        (FOLDS, lambda folds: {**folds, "dev": [1, True]}, NO_IDS),
        (FOLDS, lambda folds: {**folds, "dev": [10**5000]}, NO_IDS),
        (FOLDS, lambda folds: {"train": folds["train"], "test": [1]}, "not folds, a dict of train, dev, test"),
        (FOLDS, lambda folds: {**folds, "more": [1]}, "not folds, a dict of train, dev, test"),
        (LABELS, lambda labels: {**labels, "5": 0}, "the id '5' occurs twice, as a number and as a text"),
        (LABELS, lambda labels: {**labels, None: 0}, "the id (of type NoneType) is neither a whole number nor a text"),
        (LABELS, lambda labels: {**labels, "\ud800": 0}, "the id '\\ud800' is neither a whole number nor a text"),
        (LANGUAGE, lambda texts: {5: {"punchline_embedding_indexes": [1]}}, "no punchline_sentence"),
        (COVAREP, lambda features: {"a": features[5]}, "none of its 1 ids is in the folds"),
        (COVAREP, lambda features: {**features, 5.5: 1}, "the id 5.5 is neither a whole number nor a text"),
        (
            COVAREP,
            lambda features: {name: {"punchline_features": []} for name in features} | {70: features[5]},
            "no sample in the folds has rows of punchline_features",
        ),
    ],
)
def test_a_wrong_structure_is_named(folder: Path, name: str, change: Callable[[Any], Any], says: str) -> None:
    write(folder, {name: change(content_of()[name])})
    message = refusal(folder, FORCED)
    assert message.startswith(f"{folder / name}: {says}")
    assert "\n" not in message


def test_all_damaged_files_are_named_at_once(folder: Path) -> None:
    cut = "the pickle is cut short; download it again"
    for names in ((FOLDS, LANGUAGE, LABELS), (COVAREP, OPENFACE)):
        write(folder, content_of())
        for name in names:
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) - 2])
        assert faults(refusal(folder, FORCED)) == [f"{folder / name}: {cut}" for name in names]


def test_empty_folds(folder: Path) -> None:
    write(folder, {FOLDS: {"train": [5], "dev": [], "test": []}})
    assert refusal(folder, FORCED) == f"{folder.name}: the split test holds no utterance"
    write(folder, {FOLDS: {"train": [], "dev": [], "test": []}})
    assert "no file of UR-FUNNY's folds" in refusal(folder, FORCED)
