"""The pickles that are lists of samples, MAG-BERT's and HKT's: cells of any form, and all faults by row and id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.foreign import ITSELF, changed, refusal, write_pickle
from data.formats import FORMATS, check, hkt_content, imported, mag_content

from grcf_ray.data.importers import formats

CONTENT = {"mag": mag_content, "hkt": hkt_content}
MEMBERS = {
    "mag": {"text": (0, 0), "visual": (0, 1), "acoustic": (0, 2), "label": (1,), "id": (2,)},
    "hkt": {"text": (0, 0), "visual": (0, 1), "acoustic": (0, 2), "context": (1, 0), "id": (2,), "label": (3,)},
}
"""The place of each member in a nested sample."""
SHAPES = {
    "mag": "((words, visual, acoustic), label, segment)",
    "hkt": "((p_words, p_visual, p_acoustic, p_hcf), (c_words, c_visual, c_acoustic, c_hcf), id, label)",
}
Change = Callable[[Any], Any]

both = pytest.mark.parametrize("name", ["mag", "hkt"])


def content_of(name: str) -> dict[str, Any]:
    return CONTENT[name](FORMATS[name].utterances())


def put(content: dict[str, Any], name: str, member: str, value: Any, split: str = "dev", row: int = 1) -> None:
    content[split][row] = changed(content[split][row], MEMBERS[name][member], value)


FORMS: list[tuple[str, str, Change]] = [
    ("mag", "text", tuple),
    ("mag", "text", lambda words: [word.encode() for word in words]),
    ("mag", "text", lambda words: [np.str_(word) for word in words]),
    ("mag", "text", np.array),
    ("mag", "text", lambda words: np.array(words, object)),
    ("mag", "text", lambda words: np.array([word.encode() for word in words])[:, None]),
    ("mag", "visual", lambda rows: rows.astype(np.float64)),
    ("mag", "visual", lambda rows: np.asfortranarray(rows).astype(">f4")),
    ("mag", "label", lambda label: label.item()),
    ("mag", "label", lambda label: label[0, 0]),
    ("mag", "label", lambda label: np.array(label.item())),
    ("mag", "label", lambda label: [[label.item()]]),
    ("mag", "id", str.encode),
    ("mag", "id", np.str_),
    ("mag", "id", lambda segment: np.array([segment.encode()])),
    ("hkt", "text", str.encode),
    ("hkt", "text", np.str_),
    ("hkt", "visual", lambda rows: np.asfortranarray(rows).astype(">f8")),
    ("hkt", "acoustic", lambda rows: np.vstack([rows, np.zeros((5, 81))])),
    ("hkt", "context", tuple),
    ("hkt", "context", lambda said: [item.encode() for item in said]),
    ("hkt", "context", lambda said: [item.split(" ") for item in said]),
    ("hkt", "context", lambda said: [np.array(item.split(" ")) for item in said]),
    ("hkt", "context", lambda said: np.array(said, object)[:, None]),
    ("hkt", "context", lambda said: said[0]),
    ("hkt", "context", lambda said: said[0].encode()),
    ("hkt", "context", lambda said: [*said, "", " ", []]),
    ("hkt", "id", lambda name: [np.array(name)]),
    ("hkt", "label", bool),
    ("hkt", "label", np.bool_),
    ("hkt", "label", lambda label: np.array([[label]])),
]


@pytest.mark.parametrize(("name", "member", "form"), FORMS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_cells_of_any_form(tmp_path: Path, name: str, member: str, form: Change, protocol: int) -> None:
    content = content_of(name)
    for rows in content.values():
        rows[:] = [changed(sample, MEMBERS[name][member], form) for sample in rows]
    path = write_pickle(tmp_path / "some.pkl", content, protocol)
    # A tuple leaves no trace in how a pickle begins, so one of words is read only where the format is named.
    known = [importer for importer, module in formats().items() if module.files(path)]
    assert known == ([] if (name, form) == ("mag", tuple) else [name])
    check(imported(path, FORMATS[name], format=name)[0], FORMATS[name], FORMATS[name].utterances())


@both
def test_ids_may_be_whole_numbers_and_rows_empty(tmp_path: Path, name: str) -> None:
    content, utterances = content_of(name), FORMATS[name].utterances()
    for row, nothing in enumerate([None, [], np.empty((0, 81)), np.array([])]):
        put(content, name, "acoustic", nothing, "train", row)
        put(content, name, "id", row, "train", row)
        utterances[row] = replace(utterances[row], id=str(row), audio=None)
    check(imported(write_pickle(tmp_path / "some.pkl", content), FORMATS[name])[0], FORMATS[name], utterances)


WRONG: dict[str, Change] = {
    "the split train is missing": lambda content: content.pop("train"),
    "the split test is missing": lambda content: content.pop("test"),
    "dev and valid are names of one split": lambda content: content.update(valid=[]),
    "the split dev is of type str": lambda content: content.update(dev="abc"),
    "dev row 2 is of type NoneType, not {shape}": lambda content: content["dev"].__setitem__(1, None),
    "dev row 2 is a tuple of 2, not {shape}": lambda content: content["dev"].__setitem__(1, content["dev"][1][:2]),
    "dev row 2 is a list of 5, not {shape}": lambda content: content["dev"].__setitem__(1, [0] * 5),
}


@both
@pytest.mark.parametrize("says", WRONG)
def test_a_wrong_structure_is_named(tmp_path: Path, name: str, says: str) -> None:
    content = content_of(name)
    WRONG[says](content)
    path = write_pickle(tmp_path / "some.pkl", content)
    assert refusal(path, FORMATS[name].options) == f"{path}: {says.format(shape=SHAPES[name])}" + (
        ", not a list of samples" if "of type str" in says else ""
    )


@both
def test_a_forced_format_that_does_not_fit(tmp_path: Path, name: str) -> None:
    for content, says in (
        ([1, 2], "which is a dict of the splits train, dev, test, each a list of"),
        ({"train": 1, 3: [1], None: 2}, "which is a dict of the splits"),
        ({"train": [1] * 3, "dev": [], "test": []}, f"none of its 3 samples is {SHAPES[name]}"),
        ({"train": [], "dev": [], "test": []}, "the split train holds no utterance"),
    ):
        path = write_pickle(tmp_path / "some.pkl", content)
        assert says in refusal(path, replace(FORMATS[name].options, format=name))


@pytest.mark.parametrize(
    ("name", "member", "value", "says"),
    [
        ("mag", "text", "ünï 文 (umm)", "words is of type str"),
        ("mag", "text", ["a", 3, None], "word 2, 3,"),
        ("mag", "text", ["a", "\ud800", "b"], "word 2, '\\ud800',"),
        ("mag", "visual", lambda rows: rows[:2], "visual has 2 rows for 3 words"),
        ("mag", "visual", lambda rows: rows[:, :2], "vision has rows of 2 values, where most have 3"),
        ("mag", "visual", lambda rows: rows[0], "visual is of shape (3,)"),
        ("mag", "visual", lambda rows: rows.tolist(), "visual is a list of 3"),
        ("mag", "visual", lambda rows: rows.astype(object), "visual is an array of objects of shape (3, 3)"),
        ("mag", "acoustic", lambda rows: rows.astype(str), "acoustic is an array of texts of shape (3, 5)"),
        ("mag", "acoustic", "loud", "acoustic is of type str"),
        ("mag", "label", True, "label True"),
        ("mag", "label", lambda _: 10**400, "label (of type int)"),
        ("mag", "label", ITSELF, "label (a list of 1)"),
        ("mag", "label", np.ones((1, 7)), "label (an array of numbers of shape (1, 7))"),
        ("mag", "label", None, "label is missing"),
        ("mag", "label", np.nan, "label is missing"),
        ("mag", "label", 6.5, "label 6.5 lies outside [-3, 6]"),
        ("mag", "id", 7.5, "(id None): segment 7.5"),
        ("hkt", "text", 3, "p_words 3"),
        ("hkt", "text", ["a", "b"], "p_words (a list of 2)"),
        ("hkt", "visual", lambda rows: rows.T, "p_visual is of shape (91, 3), not rows of 91 values"),
        ("hkt", "acoustic", lambda rows: rows[:, :60], "p_acoustic is of shape (3, 60), not rows of 81 values"),
        ("hkt", "context", 3, "c_words is of type int"),
        ("hkt", "context", {"a": 1}, "c_words is of type dict"),
        ("hkt", "context", ["a", ["b", 3]], "sentence 2 of c_words, (a list of 2)"),
        ("hkt", "context", ["a", 3], "sentence 2 of c_words, 3"),
        ("hkt", "context", ITSELF, "sentence 1 of c_words, (a list of 1)"),
        ("hkt", "id", True, "(id None): id True"),
        ("hkt", "id", lambda _: 10**5000, "(id None): id (of type int)"),
        ("hkt", "id", b"", "id is missing"),
        ("hkt", "id", "dev0[0]", "(id dev0[0]): dev row 1 has the same id"),
        ("hkt", "label", "1", "label '1'"),
        ("hkt", "label", [0, 1], "label (a list of 2)"),
        ("hkt", "label", 0.5, "label 0.5 is neither 0 nor 1"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, name: str, member: str, value: Any, says: str) -> None:
    content = content_of(name)
    put(content, name, member, value)
    message = refusal(write_pickle(tmp_path / "some.pkl", content), FORMATS[name].options)
    assert message.startswith("some.pkl: dev row 2 (id ") and says in message
    assert member == "id" or "(id dev1[0])" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "place", "value", "says"),
    [
        ("mag", (0,), lambda part: part[:2], "(words, visual, acoustic) is a tuple of 2"),
        ("mag", (0,), "so good", "(words, visual, acoustic) is of type str"),
        ("hkt", (0,), lambda part: part[:3], "(p_words, p_visual, p_acoustic, p_hcf) is a tuple of 3"),
        ("hkt", (1,), None, "(c_words, c_visual, c_acoustic, c_hcf) is of type NoneType"),
    ],
)
def test_a_part_of_another_structure_is_named(
    tmp_path: Path, name: str, place: tuple[int], value: Any, says: str
) -> None:
    content = content_of(name)
    content["dev"][1] = changed(content["dev"][1], place, value)
    message = refusal(write_pickle(tmp_path / "some.pkl", content), FORMATS[name].options)
    assert message == f"some.pkl: dev row 2 (id dev1[0]): {says}"


@both
def test_all_that_is_wrong_is_named_at_once(tmp_path: Path, name: str) -> None:
    content = content_of(name)
    del content["test"]
    content["train"][3] = (1, 2)
    put(content, name, "label", "x", "train", 2)
    put(content, name, "text", 3)
    path = write_pickle(tmp_path / "some.pkl", content)
    text = {"mag": "words is of type int, not a list of texts", "hkt": "p_words 3 is not a text"}
    assert refusal(path, FORMATS[name].options).splitlines() == [
        f"{path}: 4 faults",
        "  the split test is missing",
        f"  train row 4 is a tuple of 2, not {SHAPES[name]}",
        "  train row 3 (id train2[0]): label 'x' is not a number",
        f"  dev row 2 (id dev1[0]): {text[name]}",
    ]
