"""MMSA's pickles: whatever form their columns have, padding, splits left out, and faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.foreign import OWN, SPLITS, refusal, write_pickle
from data.formats import FORMATS, Utterance, check, imported, mmsa_content

from grcf_ray.data.importers import mmsa

MMSA = FORMATS["mmsa"]
Change = Callable[[Any], Any]


def written(folder: Path, content: Any, protocol: int = 4) -> Path:
    return write_pickle(folder / "unaligned_50.pkl", content, protocol)


def content_of(utterances: list[Utterance] | None = None, **how: Any) -> dict[str, dict[str, Any]]:
    return mmsa_content(utterances or MMSA.utterances(), **how)


@pytest.mark.parametrize(("lengths", "front"), [(False, False), (False, True), (True, False), (True, True)])
def test_padding_is_taken_off(tmp_path: Path, lengths: bool, front: bool) -> None:
    utterances = MMSA.utterances()
    # A row of zeros within a sequence is no padding.
    utterances[2].audio[1] = 0
    utterances[4] = replace(utterances[4], vision=None)
    path = written(tmp_path, content_of(utterances, lengths=lengths, front=front))
    check(imported(path, MMSA)[0], MMSA, utterances)
    how = "by audio_lengths" if lengths else "where it is zero, at both ends"
    assert mmsa.read(path).notes == (
        "raw_text is tokenised again: the vectors and ids of BERT (text, text_bert) are not used",
        f"audio: padding is removed {how}",
        f"vision: padding is removed {how.replace('audio', 'vision')}",
    )


@pytest.mark.parametrize(
    ("column", "form"),
    [
        ("id", lambda ids: [item.encode() for item in ids]),
        ("id", np.array),
        ("id", lambda ids: np.array([item.encode() for item in ids])),
        ("id", lambda ids: np.array(ids, object)[:, None]),
        ("id", lambda ids: [np.str_(item) for item in ids]),
        ("raw_text", lambda texts: np.array(texts, object)),
        ("raw_text", lambda texts: np.array(texts)[:, None]),
        ("raw_text", lambda texts: tuple(np.str_(item) for item in texts)),
        ("regression_labels", lambda labels: labels.tolist()),
        ("regression_labels", lambda labels: labels[:, None, None]),
        ("regression_labels", list),
        ("regression_labels", lambda labels: [[item] for item in labels.tolist()]),
        ("regression_labels", lambda labels: list(labels[:, None])),
        ("regression_labels", lambda labels: labels.astype(object)),
        ("audio_lengths", lambda lengths: np.array(lengths, np.float64)),
        ("audio_lengths", lambda lengths: np.array(lengths, np.uint8)[:, None]),
        ("audio", np.asfortranarray),
        ("audio", lambda array: array.astype(">f8")),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_columns_of_any_form(tmp_path: Path, column: str, form: Change, protocol: int) -> None:
    content = content_of()
    for split in content.values():
        split[column] = form(split[column])
        # Columns of CH-SIMS, which are not used.
        split |= {f"regression_labels_{part}": np.full(len(split["id"]), 9.0) for part in "TAV"}
        split["classification_labels"] = ["not numbers"]
    check(imported(written(tmp_path, content, protocol), MMSA)[0], MMSA, MMSA.utterances())


def test_videos_places_and_ids_that_are_numbers(tmp_path: Path) -> None:
    content = content_of()
    content["train"]["id"] = ["a$_$0", "a$_$1", "b$_$0", "no clip"]
    content["test"]["id"] = np.arange(2)
    raw = mmsa.read(written(tmp_path, content))
    assert raw.table["video_id"].to_pylist() == ["a", "a", "b", *[None] * 5]
    assert raw.table["id"].to_pylist()[6:] == ["0", "1"]
    assert [raw.place(row) for row in (0, 7)] == ["train row 1", "test row 2"]
    with pytest.raises(IndexError):
        raw.place(8)


def test_a_modality_of_zeros_is_missing(tmp_path: Path) -> None:
    content = content_of()
    content["train"]["audio"][:] = 0
    table, info = imported(written(tmp_path, content), MMSA)
    assert (table["audio"].null_count, info.audio_dim) == (4, 5)


def test_lengths_that_do_not_fit_are_not_believed(tmp_path: Path) -> None:
    # MMSA's script counts rows up to the first of zeros: 1 for a sequence with padding at the front.
    content = content_of(front=True)
    for split in content.values():
        split["audio_lengths"] = [1] * len(split["id"])
    table, info = imported(written(tmp_path, content), MMSA)
    check(table, MMSA, MMSA.utterances())
    assert any(note.startswith("audio: 8 sequences do not fit their length") for note in info.notes)
    assert not any(note.startswith("vision:") and "do not fit" in note for note in info.notes)


@pytest.mark.parametrize("front", [False, True])
def test_the_side_of_the_padding_is_where_the_zeros_lie(tmp_path: Path, front: bool) -> None:
    """Rows of zeros belong to a sequence where its length says so, such as frames without a face."""
    utterances = MMSA.utterances()
    for item in utterances:
        item.audio[-1 if front else 0] = item.vision[-1 if front else 0] = 0
    # Its zeros fit either side.
    audio = np.zeros((5, 5), np.float32)
    audio[2] = 1
    utterances[0] = replace(utterances[0], audio=audio)
    table, info = imported(written(tmp_path, content_of(utterances, front=front)), MMSA)
    check(table, MMSA, utterances)
    assert not any("do not fit" in note for note in info.notes)


def test_aligned_sequences_lose_the_zeros_of_both_ends(tmp_path: Path) -> None:
    content = content_of(lengths=False)
    for split in content.values():
        for name in ("audio", "vision"):
            split[name] = np.pad(split[name], ((0, 0), (1, 1), (0, 0)))
    check(imported(written(tmp_path, content), MMSA)[0], MMSA, MMSA.utterances())


def test_lengths_beyond_a_cut_array_are_counted_and_rows_beyond_a_length_left_out(tmp_path: Path) -> None:
    content, utterances = content_of(), MMSA.utterances()
    content["train"]["audio_lengths"][1] = 375
    content["test"]["audio_lengths"][0] = 10
    content["train"]["audio_lengths"][2] = 2
    utterances[2] = replace(utterances[2], audio=utterances[2].audio[:2])
    table, info = imported(written(tmp_path, content), MMSA)
    check(table, MMSA, utterances)
    assert (
        "audio: 2 sequences are shorter than their length; their rows of zeros at both ends are removed" in info.notes
    )


@pytest.mark.parametrize("empty", ["nan", float("nan"), np.float64("nan")])
def test_a_text_that_was_an_empty_cell_is_empty(tmp_path: Path, empty: Any) -> None:
    content, utterances = content_of(), MMSA.utterances()
    content["train"]["raw_text"][2] = empty
    content["test"]["raw_text"] = np.array([content["test"]["raw_text"][0], empty])
    for row in (2, 7):
        utterances[row] = replace(utterances[row], words=[])
    table, info = imported(written(tmp_path, content), MMSA)
    check(table, MMSA, utterances)
    assert any(note.startswith("text: 2 texts that are nan") for note in info.notes)


@pytest.mark.parametrize("first", [True, False])
def test_rows_without_labels_are_left_out_and_counted(tmp_path: Path, first: bool) -> None:
    content: dict[str, Any] = content_of()
    mixed = {**content["train"], "id": ["x"] * 36, "mask": [1] * 36}
    del mixed["raw_text"]
    table, info = imported(
        written(tmp_path, {"train_mix": mixed, **content} if first else {**content, "train_mix": mixed}), MMSA
    )
    check(table, MMSA, MMSA.utterances())
    assert "'train_mix' with its 36 rows is left out: it is train plus rows without labels" in info.notes


def test_a_forced_format_that_does_not_fit(tmp_path: Path) -> None:
    for content in ([1, 2], {"train": [1], "dev": [], "test": []}):
        message = refusal(write_pickle(tmp_path / "some.pkl", content), replace(OWN, format="mmsa"))
        assert "not an MMSA pickle, which is a dict of the splits train, valid, test" in message


def change(split: str, column: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        old = content[split][column]
        content[split][column] = value(old) if callable(value) else value

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content.pop("train"), "the split train is missing"),
        (lambda content: content.update(valid=[1]), "the split valid is not a dict"),
        (lambda content: content["train"].pop("id"), "train: missing id; present: raw_text, regression_labels, audio"),
        (lambda content: content["test"].pop("vision"), "test: missing vision; present: raw_text, id, "),
        (change("train", "audio", lambda a: a[:3]), "train: audio has 3 rows, where id has 4"),
        (change("train", "raw_text", lambda a: a[1:]), "train: raw_text has 3 rows, where id has 4"),
        (change("valid", "audio_lengths", lambda a: [*a, 1]), "valid: audio_lengths has 3 rows, where id has 2"),
        (change("test", "audio", lambda a: a[:, 0]), "test: audio is of shape (2, 5)"),
        (change("test", "audio", lambda a: a[:, :, :0]), "test: audio is of shape (2, 6, 0)"),
        (change("test", "vision", lambda a: a.astype(str)), "test: vision is an array of texts of shape (2, 6, 3)"),
        (change("test", "vision", lambda a: a.astype(object)), "test: vision is an array of objects"),
        (change("test", "vision", lambda a: a.tolist()), "test: vision is a list of 2"),
        (change("test", "vision", None), "test: vision is of type NoneType"),
        (change("train", "audio", lambda a: a.swapaxes(1, 2)), "audio differs in width: 6 in train, 5 in valid, 5 in"),
        (change("valid", "id", "x"), "valid: id is of type str"),
        (change("valid", "id", {"a": 1}), "valid: id is of type dict"),
        (change("valid", "regression_labels", np.float32(1)), "valid: regression_labels is of type float"),
        (change("valid", "regression_labels", np.ones((2, 3))), "valid: regression_labels is of shape (2, 3)"),
        (change("valid", "regression_labels", np.array(1.0)), "valid: regression_labels is an array of numbers"),
    ],
)
def test_a_wrong_structure_is_named(tmp_path: Path, damage: Change, says: str) -> None:
    content = content_of()
    damage(content)
    path = written(tmp_path, content)
    message = refusal(path)
    assert message.startswith(f"{path}: {says}"), message
    assert "\n" not in message


def test_all_that_is_wrong_with_the_structure_is_named_at_once(tmp_path: Path) -> None:
    content = content_of(lengths=False)
    del content["valid"]["id"], content["test"]["raw_text"]
    content["train"] |= {"audio": 1, "regression_labels": [1.0]}
    path = written(tmp_path, content)
    assert refusal(path).splitlines() == [
        f"{path}: 4 faults",
        "  train: regression_labels has 1 rows, where id has 4",
        "  train: audio is of type int, not an array of numbers",
        "  valid: missing id; present: raw_text, regression_labels, audio, vision",
        "  test: missing raw_text; present: id, regression_labels, audio, vision",
    ]


@pytest.mark.parametrize("without", ["", "id", "vision"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_file_of_vectors_without_texts_says_what_is_needed(tmp_path: Path, without: str, protocol: int) -> None:
    """As MFN and the Multimodal Transformer have them."""
    rows = np.ones((2, 3, 4), np.float32)
    split = {"vision": rows, "labels": rows[:, :1, :1], "text": rows, "audio": rows, "id": np.array([["a", "b"]] * 2)}
    split.pop(without, None)
    path = written(tmp_path, dict.fromkeys(SPLITS.values(), split), protocol)
    for source in (path, tmp_path):
        assert refusal(source) == (
            f"{path}: it has no texts (raw_text), only word vectors (text), as in files of MFN and of the Multimodal "
            "Transformer. Needed is aligned_50.pkl or unaligned_50.pkl of MMSA, or the mosi.pkl or mosei.pkl that "
            "MAG-BERT reads"
        )


def test_all_faults_of_all_rows_are_named_at_once(tmp_path: Path) -> None:
    content = content_of(MMSA.utterances({"train": 7, "dev": 3, "test": 4}))
    train, valid, test = content.values()
    train["regression_labels"] = ["nice", None, float("nan"), 4, True, 10**400, [1, 2]]
    valid["raw_text"][1] = 3.5
    valid["id"][2] = b"dev0[0]"
    test["vision_lengths"] = [-1, 2.5, "x", 3]
    test["id"][3] = "\ud800"
    test["regression_labels"] = [0] * 4
    assert refusal(written(tmp_path, content)).splitlines() == [
        "unaligned_50.pkl: 13 faults",
        "  train row 1 (id train0[0]): regression_labels 'nice' is not a number",
        "  train row 2 (id train1[0]): regression_labels is missing",
        "  train row 3 (id train2[0]): label is missing",
        "  train row 4 (id train3[0]): label 4 lies outside [-3, 3]",
        "  train row 5 (id train4[0]): regression_labels True is not a number",
        "  train row 6 (id train5[0]): regression_labels (of type int) is not a number",
        "  train row 7 (id train6[0]): regression_labels (a list of 2) is not a number",
        "  valid row 2 (id dev1[0]): raw_text 3.5 is not a text",
        "  valid row 3 (id dev0[0]): valid row 1 has the same id",
        "  test row 1 (id test0[0]): vision_lengths is -1, not a number of rows",
        "  test row 2 (id test1[0]): vision_lengths is 2.5, not a number of rows",
        "  test row 3 (id test2[0]): vision_lengths 'x' is not a number",
        "  test row 4 (id None): id '\\ud800' is not a text or a whole number",
    ]
