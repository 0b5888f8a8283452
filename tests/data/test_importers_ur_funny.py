"""UR-FUNNY: the five pickles in any form, which modality is which, what belongs to a source, faults, and damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from data.foreign import dumped, faults, refusal

from grcf_ray.data.importers import ImportOptions, find_importer, import_source, ur_funny

LANGUAGE, LABELS, FOLDS = "language_sdk.pkl", "humor_label_sdk.pkl", "data_folds.pkl"
COVAREP, OPENFACE = "covarep_features_sdk.pkl", "openface_features_sdk.pkl"
NAMES = (LANGUAGE, LABELS, FOLDS, COVAREP, OPENFACE)
MINE = ImportOptions(dataset="mine", label_range=(0, 1))
FORCED = replace(MINE, format="ur_funny")
WIDTHS = {COVAREP: 81, OPENFACE: 371}
MODALITIES = {"audio": COVAREP, "vision": OPENFACE}
IDS = {"train": [5, 64, 1001, 7, 8, 12], "dev": [6, 30], "test": [2, 99, 3]}
ALL = [name for ids in IDS.values() for name in ids]
IN_NO_FOLD = 70

Content = dict[str, Any]


def words_of(name: int) -> list[str]:
    return ["so", "it's", f"number{name}", "ünï"][: 2 + name % 3]


def sentences_of(name: int) -> list[str]:
    return [f"first of {name}", "and the second.", "\u2026"][: name % 4]


def rows_of(name: int, width: int) -> npt.NDArray[np.float64]:
    """A row for each word, or one more."""
    return np.random.default_rng(name + width).normal(size=(len(words_of(name)) + name % 2, width))


def language_of(name: int) -> dict[str, Any]:
    context = [sentence.split() for sentence in sentences_of(name)]
    return {
        "punchline_embedding_indexes": list(range(len(words_of(name)))),
        "context_embedding_indexes": [list(range(len(words))) for words in context],
        "punchline_sentence": " ".join(words_of(name)) + " .",
        "context_sentences": sentences_of(name),
        "punchline_intervals": [[0.0, 1.5] for _ in words_of(name)],
        "context_intervals": [[[0.0, 1.5] for _ in words] for words in context],
        "punchline_features": words_of(name),
        "context_features": context,
    }


def features_of(name: int, width: int) -> dict[str, Any]:
    context = [np.ones((len(sentence.split()), width)) for sentence in sentences_of(name)]
    return {"punchline_features": rows_of(name, width), "context_features": context}


def content_of(*, form: Callable[[int], Any] = int) -> Content:
    """The five files, by name; form makes the ids."""
    names = [IN_NO_FOLD, *reversed(ALL)]
    content: Content = {
        LANGUAGE: {form(name): language_of(name) for name in names},
        LABELS: {form(name): name % 2 for name in names},
        FOLDS: {fold: [form(name) for name in ids] for fold, ids in IDS.items()},
    }
    for file, width in WIDTHS.items():
        content[file] = {form(name): features_of(name, width) for name in names}
    return content


def write(folder: Path, content: Content, protocol: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in content.items():
        (folder / name).write_bytes(dumped(value, protocol))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "own", content_of())


def check(table: pa.Table, files: dict[str, str] | None = None) -> None:
    """The table holds exactly these samples; files tells the modalities' files."""
    assert table["id"].to_pylist() == [str(name) for name in ALL]
    splits = [split for split, fold in (("train", "train"), ("valid", "dev"), ("test", "test")) for _ in IDS[fold]]
    assert table["split"].to_pylist() == splits
    assert table["text"].to_pylist() == [" ".join(words_of(name)) + " ." for name in ALL]
    assert table["context"].to_pylist() == [sentences_of(name) or None for name in ALL]
    assert table["label"].to_pylist() == [float(name % 2) for name in ALL]
    for modality, file in (MODALITIES if files is None else files).items():
        expected = [rows_of(name, WIDTHS[file]).astype(np.float32).tolist() for name in ALL]
        assert table[modality].to_pylist() == expected


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("form", [int, str])
def test_samples_of_ids_of_any_kind(tmp_path: Path, protocol: int, form: Callable[[int], Any]) -> None:
    folder = write(tmp_path / "own", content_of(form=form), protocol)
    table, info = import_source(folder, MINE)
    check(table)
    assert info.splits == {"train": 6, "valid": 2, "test": 3}
    assert (info.audio_dim, info.vision_dim, info.word_aligned) == (81, 371, False)
    assert [source.name for source in info.sources] == list(NAMES)


def test_what_a_reader_of_results_should_know(folder: Path) -> None:
    raw = ur_funny.read(folder)
    assert raw.files == ((folder / LANGUAGE, 11), *((folder / name, 0) for name in NAMES[1:]))
    assert raw.notes == (
        "1 of 12 labelled samples are in no fold and are left out",
        f"audio from {COVAREP}, rows of 81 values",
        f"vision from {OPENFACE}, rows of 371 values",
    )
    assert [raw.place(row) for row in (0, 5, 6, 10)] == ["train row 1", "train row 6", "valid row 1", "test row 3"]
    with pytest.raises(IndexError):
        raw.place(11)
    assert raw.table["audio"].type == raw.table["audio"].type == pa.list_(pa.list_(pa.float32(), 81))


def test_ids_are_matched_across_their_kinds(tmp_path: Path) -> None:
    content, texts = content_of(), content_of(form=str)
    for kind in (LABELS, COVAREP):
        content[kind] = texts[kind]
    check(import_source(write(tmp_path / "own", content), MINE)[0])


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    content = content_of()
    renamed = {"e": LANGUAGE, "d.pkl": LABELS, "c": FOLDS, "b": COVAREP, "a": OPENFACE}
    folder = write(tmp_path / "own", {new: content[name] for new, name in renamed.items()})
    others: Content = {
        "word_embedding_list.pkl": [np.ones(3), np.ones(3)],
        "glove.pkl": {"so": np.ones(3), "it": np.ones(3)},
        "lists.pkl": {"so": [1, 2], "it": [3]},
        "nested.pkl": {1: {"so": 1}},
        "mmsa.pkl": {"train": {"id": ["a"]}},
        "mag.pkl": {"train": [((["so"], np.ones((1, 2)), np.ones((1, 2))), 1.0, "v[1]")], "dev": [], "test": []},
        "hkt.pkl": {"train": [(("so it", np.ones((2, 2)), np.ones((2, 2)), 1), "5", 1)], "dev": [], "test": []},
    }
    for name in others:
        write(folder, {name: others[name]})
        assert ur_funny.files(folder / name) == []
    (folder / "readme.txt").write_text("five pickles")
    assert [path.name for path in ur_funny.files(folder)] == ["e", "d.pkl", "c", "a", "b"]
    table, info = import_source(folder, FORCED)
    check(table)
    assert "audio from b, rows of 81 values" in info.notes


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
    lacking, _, found = message.partition("Found: ")
    for name in NAMES:
        assert (f"({name})" in lacking) == (name in missing)
        assert (f"{name} (" in found) == (name not in missing)


@pytest.mark.parametrize("name", [COVAREP, OPENFACE])
def test_a_modality_may_be_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    table, info = import_source(folder, MINE)
    modality, other = ("audio", "vision") if name == COVAREP else ("vision", "audio")
    check(table, {other: OPENFACE if name == COVAREP else COVAREP})
    assert modality not in table.column_names
    assert f"no {modality}: the folder has no file such as {name}" in info.notes


def resized(content: Content, **widths: int) -> Content:
    for name, width in zip((COVAREP, OPENFACE), widths.values(), strict=True):
        content[name] = {key: features_of(key, width) for key in content[LABELS]}
    return content


@pytest.mark.parametrize(("covarep", "openface"), [(81, 75), (74, 371), (5, 9), (400, 371), (81, 371)])
def test_modalities_of_other_widths(tmp_path: Path, covarep: int, openface: int) -> None:
    folder = write(tmp_path / "own", resized(content_of(), covarep=covarep, openface=openface))
    table, info = import_source(folder, MINE)
    assert (info.audio_dim, info.vision_dim) == (covarep, openface)
    assert any("the wider file is vision" in note for note in info.notes) == ((covarep, openface) != (81, 371))
    assert table["audio"].to_pylist()[0] == rows_of(ALL[0], covarep).astype(np.float32).tolist()


def test_modalities_that_cannot_be_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "own", resized(content_of(), covarep=9, openface=9))
    assert refusal(folder, FORCED) == (
        f"{COVAREP} and {OPENFACE} both have rows of 9 values: keep one file of audio and one of vision"
    )
    (folder / OPENFACE).unlink()
    assert "rows of 9 values, but audio has 81 and vision 371" in refusal(folder, FORCED)


def test_one_file_of_each_kind_is_kept(folder: Path) -> None:
    write(folder, {"old_labels.pkl": {5: 1}, "other.pkl": {5: features_of(5, 3)}})
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
    for file in WIDTHS:
        for sample in content[file].values():
            sample["punchline_features"] = form(sample["punchline_features"])
    check(import_source(write(tmp_path / "own", content, protocol), MINE)[0])


def test_samples_without_rows_have_none(tmp_path: Path) -> None:
    content = content_of()
    for name, empty in zip(ALL[:4], ([], np.empty((0, 81)), np.array([]), ()), strict=True):
        content[COVAREP][name]["punchline_features"] = empty
    del content[COVAREP][ALL[4]]
    content[COVAREP] = dict(reversed(content[COVAREP].items()))
    table, info = import_source(write(tmp_path / "own", content), MINE)
    assert [rows is None for rows in table["audio"].to_pylist()] == [True] * 5 + [False] * 6
    assert "audio: 5 of 11 utterances have none" in info.notes


def test_numbers_beyond_float32_are_not_finite(tmp_path: Path) -> None:
    content = content_of()
    content[OPENFACE][30]["punchline_features"][0, 0] = 1e300
    message = refusal(write(tmp_path / "own", content), FORCED)
    assert "valid row 2 (id 30): vision has 1 non-finite value" in message


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
    content[LANGUAGE][5] |= {"punchline_sentence": value, "context_sentences": [value, [value] if value else ""]}
    if isinstance(value, list):
        content[LANGUAGE][5]["context_sentences"] = [value, value]
    table, _ = import_source(write(tmp_path / "own", content), MINE)
    assert table["text"][0].as_py() == text
    assert table["context"][0].as_py() == [text, text]


@pytest.mark.parametrize("value", [1.0, True, np.int64(1), np.float32(1), np.array(1), np.array([1])])
def test_labels_of_any_form(tmp_path: Path, value: Any) -> None:
    content = content_of()
    content[LABELS] = {name: value if label else label for name, label in content[LABELS].items()}
    check(import_source(write(tmp_path / "own", content), MINE)[0])


def test_all_faults_of_the_samples_are_named_at_once(tmp_path: Path) -> None:
    content = content_of()
    language, labels = content[LANGUAGE], content[LABELS]
    language[5]["punchline_sentence"] = 3.5
    language[64] = ["so"]
    del language[1001], labels[7]
    del language[8]["context_sentences"]
    language[12] |= {"punchline_sentence": "\ud800", "context_sentences": "so"}
    labels |= {5: 2, 64: "1", 6: float("nan"), 30: None}
    content[COVAREP][2] = [1]
    content[COVAREP][99]["punchline_features"] = np.ones((81, 2))
    content[COVAREP][3]["punchline_features"] = [[1.0, 2.0], ["1.0", 2.0]]
    content[OPENFACE][2]["punchline_features"] = np.ones((2, 2, 371))
    content[OPENFACE][99]["punchline_features"] = np.array([["1"] * 371])
    content[OPENFACE][3]["punchline_features"] = 1.5
    content[FOLDS]["dev"].append(5)
    found = faults(refusal(write(tmp_path / "own", content), FORCED))
    rows = "is not rows of numbers of one length (punchline_features)"
    assert set(found) == {
        "train row 1 (id 5): punchline_sentence 3.5 is not a text",
        "train row 1 (id 5): label 2 is not 0 or 1",
        "train row 2 (id 64): the sample is a list of 1, not a dict of sentences",
        "train row 2 (id 64): label '1' is not 0 or 1",
        f"train row 3 (id 1001): {LANGUAGE} does not have this id",
        "train row 4 (id 7): label is missing",
        "train row 5 (id 8): context_sentences is missing",
        "train row 6 (id 12): punchline_sentence '\\ud800' is not a text",
        "train row 6 (id 12): context_sentences 'so' is not a list of texts",
        "valid row 1 (id 6): label nan is not 0 or 1",
        "valid row 2 (id 30): label is missing",
        "valid row 3 (id 5): train row 1 has the same id",
        "valid row 3 (id 5): punchline_sentence 3.5 is not a text",
        "valid row 3 (id 5): label 2 is not 0 or 1",
        f"test row 1 (id 2): audio {rows}",
        f"test row 1 (id 2): vision {rows}",
        "test row 2 (id 99): audio has rows of 2 values, where most have 81",
        f"test row 2 (id 99): vision {rows}",
        f"test row 3 (id 3): audio {rows}",
        f"test row 3 (id 3): vision {rows}",
    }


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (FOLDS, lambda folds: {**folds, "dev": "ab"}, "dev is not a list of ids, which are whole numbers or texts"),
        (FOLDS, lambda folds: {**folds, "dev": [1, 2.5]}, "dev is not a list of ids, which are whole numbers or texts"),
        (
            FOLDS,
            lambda folds: {**folds, "dev": [1, True]},
            "dev is not a list of ids, which are whole numbers or texts",
        ),
        (
            FOLDS,
            lambda folds: {**folds, "dev": [10**5000]},
            "dev is not a list of ids, which are whole numbers or texts",
        ),
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
            lambda features: {name: {"punchline_features": []} for name in features} | {IN_NO_FOLD: features[5]},
            "no sample in the folds has rows of punchline_features",
        ),
    ],
)
def test_a_wrong_structure_is_named(folder: Path, name: str, change: Callable[[Any], Any], says: str) -> None:
    write(folder, {name: change(content_of()[name])})
    message = refusal(folder, FORCED)
    assert message.startswith(f"{folder / name}: {says}")
    assert "\n" not in message


def test_a_file_of_no_known_kind_may_be_the_modality_that_is_missing(folder: Path) -> None:
    write(folder, {"features.pkl": {"x": np.ones((2, 3))}})
    import_source(folder, MINE)
    (folder / COVAREP).unlink()
    assert "not UR-FUNNY's, while the folder has 1 of 2 files of features" in refusal(folder, FORCED)


def test_all_damaged_files_are_named_at_once(folder: Path) -> None:
    for name in NAMES[:3]:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) - 2])
    cut = "the pickle is cut short; download it again"
    assert faults(refusal(folder, FORCED)) == [f"{folder / name}: {cut}" for name in (FOLDS, LANGUAGE, LABELS)]
    write(folder, content_of())
    for name in NAMES[3:]:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    assert faults(refusal(folder, FORCED)) == [f"{folder / name}: {cut}" for name in NAMES[3:]]


def test_empty_folds(folder: Path) -> None:
    write(folder, {FOLDS: {"train": [5], "dev": [], "test": []}})
    assert refusal(folder, FORCED) == f"{folder.name}: the split test holds no utterance"
    write(folder, {FOLDS: {"train": [], "dev": [], "test": []}})
    assert "no file of UR-FUNNY's folds" in refusal(folder, FORCED)
