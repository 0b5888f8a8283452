"""HKT's pickles: punchlines and what was said before them, the columns in use, padding, faults, and damage."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from data.foreign import (
    ITSELF,
    content_of,
    in_order,
    put,
    real_file,
    refusal,
    write_pickle,
)

from grcf_ray.data.importers import ImportOptions, find_importer, hkt, import_source

OWN = ImportOptions(dataset="own", task="classification")
FORCED = replace(OWN, format="hkt")
WIDTHS = {"visual": 91, "acoustic": 81}
TEXTS = ["It 's just a privilege.", "ünï 文", "No.", "thatÕs the kind of thing I do", "so"]
SHAPE = "((p_words, p_visual, p_acoustic, p_hcf), (c_words, c_visual, c_acoustic, c_hcf), id, label)"
NOTES = (
    "vision is columns 55 to 90 of the punchline's 91, audio columns 0 to 59 of its 81, as in HKT",
    "the context's features and the humor-centric ones (hcf) are not used",
)

Rows = npt.NDArray[Any]


@dataclass
class Sample:
    """A punchline as its authors had it, with all columns of its features."""

    id: str | int
    text: str
    context: list[str]
    label: int
    visual: Rows | None
    acoustic: Rows | None

    def packed(self) -> Any:
        """As HKT writes it."""
        rows = sum(len(said.split()) for said in self.context)
        before = (np.ones((rows, 91)), np.ones((rows, 81)), np.ones((rows, 4)))
        hcf = np.ones((len(self.text.split()), 4))
        return (self.text, self.visual, self.acoustic, hcf), (self.context, *before), self.id, self.label


Samples = dict[str, list[Sample]]


def features(rng: np.random.Generator, text: str) -> tuple[Rows, Rows]:
    """Rows for each word, the second of them without features."""
    visual, acoustic = (rng.normal(size=(len(text.split()), width)) for width in WIDTHS.values())
    visual[1:-1][:1] = 0
    return visual, acoustic


def samples_of(split: str, count: int) -> list[Sample]:
    rng = np.random.default_rng(len(split))
    start = {"train": 0, "dev": 100, "test": 200}[split]
    samples = []
    for row in range(count):
        text = TEXTS[row % len(TEXTS)]
        context = [TEXTS[(row + place) % len(TEXTS)] for place in range(row % 3)]
        samples.append(Sample(start + row, text, context, row % 2, *features(rng, text)))
    return samples


def made_up() -> Samples:
    return {"train": samples_of("train", 12), "dev": samples_of("dev", 4), "test": samples_of("test", 6)}


def write(folder: Path, content: Any, protocol: int | str = 4, name: str = "mustard.pkl") -> Path:
    return write_pickle(folder / name, content, protocol)


def check(table: pa.Table, samples: Samples, *, but: int | None = None) -> None:
    """The table holds exactly these utterances, but for one row that may be another."""
    every = in_order(samples)
    if but is not None:
        assert table.num_rows == len(every)
        del every[but]
        table = table.take([row for row in range(table.num_rows) if row != but])
    assert table["split"].to_pylist() == [split for split, _ in every]
    assert table["id"].to_pylist() == [str(one.id) for _, one in every]
    assert table["text"].to_pylist() == [one.text for _, one in every]
    assert table["context"].to_pylist() == [one.context or None for _, one in every]
    assert table["label"].to_pylist() == [one.label for _, one in every]
    for column, name, used in (("vision", "visual", slice(55, 91)), ("audio", "acoustic", slice(0, 60))):
        expected = [getattr(one, name) for _, one in every]
        rows = [None if one is None else one[:, used].astype(np.float32).tolist() for one in expected]
        assert table[column].to_pylist() == rows


def test_columns_that_are_not_used_may_be_non_finite(tmp_path: Path) -> None:
    samples = made_up()
    acoustic = samples["dev"][1].acoustic
    assert acoustic is not None
    acoustic[0, 60:] = np.nan
    check(import_source(write(tmp_path, content_of(samples)), OWN)[0], samples)


@pytest.mark.parametrize("protocol", [0, 4, "Python 2"])
def test_punchlines_and_contexts_come_back(tmp_path: Path, protocol: int | str) -> None:
    path = write(tmp_path, content_of(made_up()), protocol)
    assert find_importer(path) is hkt
    table, info = import_source(path, OWN)
    check(table, made_up())
    assert info.splits == {"train": 12, "valid": 4, "test": 6}
    assert (info.audio_dim, info.vision_dim, info.word_aligned) == (60, 36, False)
    raw = hkt.read(path)
    assert (raw.files, raw.notes) == (((path, 22),), NOTES)
    assert [raw.place(row) for row in (0, 12, 21)] == ["train row 1", "dev row 1", "test row 6"]
    assert "video_id" not in raw.table.column_names


def each(member: str, form: Callable[[Any], Any]) -> dict[str, Any]:
    """The made-up samples with one member of each in another form."""
    content = content_of(made_up())
    for samples in content.values():
        for row in range(len(samples)):
            samples[row] = with_member(samples[row], member, form)
    return content


def with_member(sample: Any, member: str, value: Any) -> Any:
    (p_words, visual, acoustic, hcf), (c_words, *before), name, label = sample
    parts = {"text": p_words, "visual": visual, "acoustic": acoustic, "context": c_words, "id": name, "label": label}
    parts[member] = value(parts[member]) if callable(value) else value
    punchline = parts["text"], parts["visual"], parts["acoustic"], hcf
    return punchline, (parts["context"], *before), parts["id"], parts["label"]


@pytest.mark.parametrize(
    ("member", "form"),
    [
        ("text", str.encode),
        ("text", np.str_),
        ("visual", lambda rows: np.asfortranarray(rows).astype(">f8")),
        ("acoustic", lambda rows: np.vstack([rows, np.zeros((5, 81))])),
        ("context", tuple),
        ("context", lambda said: [one.encode() for one in said]),
        ("context", lambda said: [one.split(" ") for one in said]),
        ("context", lambda said: [np.array(one.split(" ")) for one in said]),
        ("context", lambda said: np.array(said, str)),
        ("context", lambda said: np.array(said, object)[:, None]),
        ("context", lambda said: said[0] if len(said) == 1 else said),
        ("context", lambda said: said[0].encode() if len(said) == 1 else said),
        ("context", lambda said: [*said, "", " ", []]),
        ("context", lambda said: said or None),
        ("id", str),
        ("id", lambda name: str(name).encode()),
        ("id", np.int64),
        ("id", lambda name: [np.array(name)]),
        ("label", float),
        ("label", bool),
        ("label", np.bool_),
        ("label", lambda label: np.array([[label]])),
        ("label", lambda label: np.array([label], np.float32)),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_cells_of_any_form(tmp_path: Path, member: str, form: Callable[[Any], Any], protocol: int) -> None:
    check(import_source(write(tmp_path, each(member, form), protocol), OWN)[0], made_up())


def test_rows_of_zeros_at_the_end_are_taken_off(tmp_path: Path) -> None:
    samples = made_up()
    content = content_of(samples)
    one, other = samples["train"][0], samples["train"][3]
    assert one.visual is not None
    one.visual[0] = 0
    # No padding, since columns that are not used are filled.
    one.visual[-1] = np.arange(91) < 55
    content["train"][0] = with_member(one.packed(), "visual", np.vstack([one.visual, np.zeros((3, 91))]))
    content["train"][3] = with_member(other.packed(), "acoustic", lambda rows: rows * 0)
    other.acoustic = None
    path = write(tmp_path, content)
    table, _ = import_source(path, OWN)
    check(table, samples)
    assert hkt.read(path).notes == (
        *NOTES,
        "sequences of audio with rows of zeros removed from their end: 1",
        "sequences of vision with rows of zeros removed from their end: 1",
    )


def test_a_missing_modality_is_null(tmp_path: Path) -> None:
    samples = made_up()
    content = content_of(samples)
    for row, nothing in enumerate([None, [], np.empty((0, 81)), np.array([])]):
        content["train"][row] = with_member(content["train"][row], "acoustic", nothing)
        samples["train"][row].acoustic = None
    table, _ = import_source(write(tmp_path, content), OWN)
    check(table, samples)
    assert table["audio"].null_count == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps([1, 2]), "not an HKT pickle, which is a dict of the splits train, dev, test, each a list of"),
        (pickle.dumps({"train": [1] * 3, "dev": [], "test": []}), f"none of its 3 samples is {SHAPE}"),
        (pickle.dumps({"train": [((["so"], 1, 2), 1.0, "v[1]")]}), f"none of its 1 samples is {SHAPE}"),
        (pickle.dumps({"train": [], "dev": [], "test": []}), "the split train holds no utterance"),
    ],
)
def test_a_forced_format_that_does_not_fit(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "some.pkl"
    path.write_bytes(content)
    assert says in refusal(path, FORCED)


def change(split: str, row: int, member: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one member of one sample."""

    def apply(content: dict[str, Any]) -> None:
        content[split][row] = with_member(content[split][row], member, value)

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content.pop("train"), "the split train is missing"),
        (lambda content: content.update(test={}), "the split test is of type dict"),
        (put("dev", 1, lambda one: one[:3]), f"dev row 2 is a tuple of 3, not {SHAPE}"),
        (put("dev", 1, lambda one: (*one, 0)), f"dev row 2 is a tuple of 5, not {SHAPE}"),
        (put("dev", 1, lambda one: (one[0][:3], *one[1:])), "(id 101): (p_words, p_visual, p_acoustic, p_hcf) is a tu"),
        (put("dev", 1, lambda one: (one[0], None, *one[2:])), "(id 101): (c_words, c_visual, c_acoustic, c_hcf) is of"),
    ],
)
def test_a_wrong_structure_is_named(tmp_path: Path, damage: Callable[[Any], Any], says: str) -> None:
    content = content_of(made_up())
    damage(content)
    message = refusal(write(tmp_path, content), OWN)
    assert says in message and "mustard.pkl" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("member", "value", "says"),
    [
        ("text", 3, "p_words 3"),
        ("text", ["a", "b"], "p_words (a list of 2)"),
        ("text", "\ud800", "p_words '\\ud800'"),
        ("visual", lambda rows: rows.T, "p_visual is of shape (91, 2), not rows of 91 values"),
        ("visual", lambda rows: rows[0], "p_visual is of shape (91,)"),
        ("acoustic", lambda rows: rows[:, :60], "p_acoustic is of shape (2, 60), not rows of 81 values"),
        ("acoustic", lambda rows: np.array([rows[0], rows[0, :3]], object), "p_acoustic is an array of objects"),
        ("acoustic", lambda rows: rows.astype(str), "p_acoustic is an array of texts of shape (2, 81)"),
        ("context", 3, "c_words is of type int"),
        ("context", {"a": 1}, "c_words is of type dict"),
        ("context", ["a", ["b", 3]], "sentence 2 of c_words, (a list of 2)"),
        ("context", ["a", 3], "sentence 2 of c_words, 3"),
        ("context", ITSELF, "sentence 1 of c_words, (a list of 1)"),
        ("id", 2.5, "(id None): id 2.5"),
        ("id", True, "(id None): id True"),
        ("id", lambda _: 10**5000, "(id None): id (of type int)"),
        ("id", b"", "id is missing"),
        ("id", "100", "(id 100): dev row 1 has the same id"),
        ("label", "1", "label '1'"),
        ("label", None, "label is missing"),
        ("label", [0, 1], "label (a list of 2)"),
        ("label", 0.5, "label 0.5 is neither 0 nor 1"),
        ("label", 2, "label 2 lies outside [0, 1]"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, member: str, value: Any, says: str) -> None:
    content = content_of(made_up())
    change("dev", 1, member, value)(content)
    message = refusal(write(tmp_path, content), OWN)
    assert message.startswith("mustard.pkl: dev row 2 (id ") and says in message
    assert member == "id" or "(id 101)" in message
    assert "\n" not in message


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    content = content_of(made_up())
    del content["train"]
    content["test"][3] = (1, 2)
    change("test", 2, "label", "x")(content)
    change("dev", 1, "visual", np.ones((4, 3)))(content)
    path = write(tmp_path, content)
    assert refusal(path, OWN).splitlines() == [
        f"{path}: 4 faults",
        "  the split train is missing",
        f"  test row 4 is a tuple of 2, not {SHAPE}",
        "  dev row 2 (id 101): p_visual is of shape (4, 3), not rows of 91 values",
        "  test row 3 (id 202): label 'x' is not a number",
    ]


@pytest.fixture(scope="module")
def real() -> Samples:
    """MUStARD's texts and labels in as many splits, and as large ones, as HKT's; their features are made up."""
    items = list(json.loads(real_file("mustard/sarcasm_data.json").read_text("utf-8")).items())
    rng = np.random.default_rng(0)
    samples = [
        Sample(name, one["utterance"], one["context"], int(one["sarcasm"]), *features(rng, one["utterance"]))
        for name, one in items[:675]
    ]
    return {"train": samples[:539], "dev": samples[539:607], "test": samples[607:]}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, "Python 2"])
def test_real_punchlines_come_back(tmp_path: Path, real: Samples, protocol: int | str, nested: bool) -> None:
    content = content_of(real)
    if nested:
        for samples in content.values():
            samples[:] = [
                with_member(one, "context", lambda said: [text.split(" ") for text in said]) for one in samples
            ]
    table, info = import_source(write(tmp_path, content, protocol), ImportOptions(dataset="mustard"))
    check(table, real)
    assert info.splits == {"train": 539, "valid": 68, "test": 68}
    assert info.task == "classification"
    assert not any("usually has" in note for note in info.notes)
