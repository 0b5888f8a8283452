"""MAG-BERT's pickles: whatever form their cells have, words and rows that fit each other, older files, and damage."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.foreign import (
    ITSELF,
    OWN,
    SPLITS,
    STRANGE,
    VARIANTS,
    content_of,
    dumped,
    in_order,
    put,
    real_file,
    refusal,
    spoiled,
    survivors,
    write_pickle,
)

from grcf_ray.data.importers import ImportOptions, find_importer, import_source, mag

ZEROED = replace(OWN, non_finite="zero")
FORCED = replace(OWN, format="mag")
VISUAL_DIM, ACOUSTIC_DIM = 4, 5
TEXTS = ["IT WAS GOOD", "not , at all", "ünï 文 (umm)", "so", "it 's fine , really it is", "a b c d"]
SHAPE = "((words, visual, acoustic), label, segment)"

Rows = npt.NDArray[Any]


@dataclass
class Sample:
    """An utterance as its authors had it."""

    id: str
    words: list[str]
    label: float
    visual: Rows | None
    acoustic: Rows | None

    def packed(self) -> Any:
        """As MAG-BERT writes it."""
        return (self.words, self.visual, self.acoustic), np.array([[self.label]], np.float32), self.id


Samples = dict[str, list[Sample]]


def samples_of(split: str, count: int) -> list[Sample]:
    rng = np.random.default_rng(len(split))
    samples = []
    for row in range(count):
        words = TEXTS[row % len(TEXTS)].split()
        visual, acoustic = (rng.normal(size=(len(words), dim)).astype(np.float32) for dim in (VISUAL_DIM, ACOUSTIC_DIM))
        # A row of zeros at the end is a word without features, no padding.
        visual[-1] *= row % 2
        samples.append(
            Sample(f"{split}_{row // 2}[{row}]", words, round(float(rng.uniform(-3, 3)), 1), visual, acoustic)
        )
    return samples


def made_up() -> Samples:
    return {"train": samples_of("train", 12), "dev": samples_of("dev", 4), "test": samples_of("test", 6)}


def write(folder: Path, content: Any, protocol: int | str = 4, name: str = "mosi.pkl") -> Path:
    return write_pickle(folder / name, content, protocol)


def check(table: pa.Table, samples: Samples, *, but: int | None = None) -> None:
    """The table holds exactly these utterances, but for one row that may be another."""
    every = in_order(samples)
    if but is not None:
        assert table.num_rows == len(every)
        del every[but]
        table = table.take([row for row in range(table.num_rows) if row != but])
    assert table["split"].to_pylist() == [split for split, _ in every]
    assert table["id"].to_pylist() == [one.id for _, one in every]
    assert [text.split(" ") for text in table["text"].to_pylist()] == [one.words for _, one in every]
    np.testing.assert_array_equal(table["label"].to_numpy(), np.array([one.label for _, one in every], np.float32))
    for column, name in (("vision", "visual"), ("audio", "acoustic")):
        expected = [getattr(one, name) for _, one in every]
        assert table[column].to_pylist() == [None if rows is None else rows.tolist() for rows in expected]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5, "Python 2"])
def test_words_and_rows_come_back(tmp_path: Path, protocol: int | str) -> None:
    path = write(tmp_path, content_of(made_up()), protocol)
    assert find_importer(path) is mag
    table, info = import_source(path, OWN)
    check(table, made_up())
    assert info.splits == {"train": 12, "valid": 4, "test": 6}
    assert (info.audio_dim, info.vision_dim, info.word_aligned) == (ACOUSTIC_DIM, VISUAL_DIM, True)
    raw = mag.read(path)
    assert (raw.files, raw.notes) == (((path, 22),), ())
    assert [raw.place(row) for row in (0, 12, 21)] == ["train row 1", "dev row 1", "test row 6"]
    assert raw.table["video_id"].to_pylist()[:3] == ["train_0", "train_0", "train_1"]
    with pytest.raises(IndexError):
        raw.place(22)


def each(member: str, form: Callable[[Any], Any]) -> dict[str, Any]:
    """The made-up samples with one member of each in another form."""
    content = content_of(made_up())
    for samples in content.values():
        for row, ((words, visual, acoustic), label, segment) in enumerate(samples):
            parts = {"words": words, "visual": visual, "acoustic": acoustic, "label": label, "segment": segment}
            parts[member] = form(parts[member])
            samples[row] = (parts["words"], parts["visual"], parts["acoustic"]), parts["label"], parts["segment"]
    return content


@pytest.mark.parametrize(
    ("member", "form"),
    [
        ("words", tuple),
        ("words", lambda words: [word.encode() for word in words]),
        ("words", lambda words: [np.str_(word) for word in words]),
        ("words", np.array),
        ("words", lambda words: np.array(words, object)),
        ("words", lambda words: np.array([word.encode() for word in words])[:, None]),
        ("visual", lambda rows: rows.astype(np.float64)),
        ("visual", lambda rows: np.asfortranarray(rows).astype(">f4")),
        ("label", lambda label: label.item()),
        ("label", lambda label: label[0, 0]),
        ("label", lambda label: label[0]),
        ("label", lambda label: np.array(label.item())),
        ("label", lambda label: label.astype(np.float64)),
        ("label", lambda label: [label.item()]),
        ("label", lambda label: [[label.item()]]),
        ("segment", str.encode),
        ("segment", np.str_),
        ("segment", lambda segment: [segment]),
        ("segment", lambda segment: np.array([segment.encode()])),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_cells_of_any_form(tmp_path: Path, member: str, form: Callable[[Any], Any], protocol: int) -> None:
    path = write(tmp_path, each(member, form), protocol)
    # A tuple leaves no trace in how a pickle begins, so one of words is read only where the format is named.
    assert (mag.files(path) == [path]) == (form is not tuple)
    check(import_source(path, FORCED)[0], made_up())


def test_integer_features_and_other_names_of_splits(tmp_path: Path) -> None:
    samples = made_up()
    for one in (one for rows in samples.values() for one in rows):
        one.visual = np.arange(len(one.words) * VISUAL_DIM, dtype=np.uint8).reshape(-1, VISUAL_DIM)
    content = content_of(samples)
    # Lists for tuples, and splits in the order of a dict of Python 2.
    listed = {"Test": content["test"], "valid": tuple(content["dev"]), "train": [list(one) for one in content["train"]]}
    check(import_source(write(tmp_path, listed | {"info": "x", 3: None}), OWN)[0], samples)
    assert mag.read(tmp_path).notes == (
        "'info', of type str, is left out",
        "3, of type NoneType, is left out",
    )


def test_a_missing_modality_is_null(tmp_path: Path) -> None:
    samples = made_up()
    content = content_of(samples)
    lacking = [None, [], np.empty((0, ACOUSTIC_DIM)), np.array([])]
    for row, nothing in enumerate(lacking):
        (words, visual, _), label, segment = content["dev"][row]
        content["dev"][row] = (words, visual, nothing), label, segment
        samples["dev"][row].acoustic = None
    table, info = import_source(write(tmp_path, content), OWN)
    check(table, samples)
    assert (table["audio"].null_count, info.audio_dim) == (4, ACOUSTIC_DIM)
    for one in (one for rows in samples.values() for one in rows):
        one.acoustic = None
    table, info = import_source(write(tmp_path, content_of(samples)), OWN)
    assert "audio" not in table.column_names
    assert info.audio_dim is None


def test_a_word_with_white_space_is_several_and_an_empty_one_none(tmp_path: Path) -> None:
    samples = made_up()
    content = content_of(samples)
    odd, plain = samples["train"][:2]
    rows = np.arange(6 * VISUAL_DIM, dtype=np.float32).reshape(6, VISUAL_DIM)
    words = ["all", " right\n", "", "New York\tCity", "\xa0", "x"]
    content["train"][0] = (words, rows, None), odd.label, odd.id
    content["train"][1] = ([" "], rows[:1], rows[:1, :0]), plain.label, plain.id
    samples["train"][0] = replace(
        odd, words=["all", "right", "New", "York", "City", "x"], visual=rows[[0, 1, 3, 3, 3, 5]], acoustic=None
    )
    samples["train"][1] = replace(plain, words=[""], visual=None, acoustic=None)
    table, info = import_source(write(tmp_path, content), OWN)
    check(table, samples)
    assert info.notes == (
        "empty words, left out with their rows: 3",
        "words with white space, split into several words with the same rows: 1",
        "audio: 2 of 22 utterances have none",
        "vision: 1 of 22 utterances have none",
        "1 of 22 utterances have no text",
        *info.notes[5:],
    )


def test_segments_without_a_number_have_no_video(tmp_path: Path) -> None:
    content = content_of(made_up())
    for row, name in enumerate(("no video", "[3]", "a[b][3]")):
        content["test"][row] = (*content["test"][row][:2], name)
    assert mag.read(write(tmp_path, content)).table["video_id"].to_pylist()[16:19] == [None, None, "a[b]"]


def test_infinite_audio_is_left_to_the_check(tmp_path: Path) -> None:
    samples = made_up()
    acoustic = samples["dev"][1].acoustic
    assert acoustic is not None
    acoustic[0] = [-np.inf, np.nan, np.inf, 1, 2]
    path = write(tmp_path, content_of(samples))
    message = refusal(path)
    assert f"dev row 2 (id {samples['dev'][1].id}): audio has 3 non-finite values. Clean it: " in message
    acoustic[0, :3] = 0
    table, info = import_source(path, ZEROED)
    check(table, samples)
    assert "audio: 3 non-finite values set to 0" in info.notes


def test_pickles_are_known_by_their_content(tmp_path: Path) -> None:
    path = write(tmp_path, content_of(made_up()), name="download")
    rows = np.ones((2, 3))
    hkt = {"train": [(("so good", rows, rows, rows), (["a"], rows, rows, rows), 1, 1)], "dev": [], "test": []}
    others: dict[str, Any] = {
        "hkt.pkl": hkt,
        "mmsa.pkl": {"train": {"raw_text": ["so"], "audio": rows}},
        "mult.pkl": {"train": {"vision": rows, "labels": rows}},
        "folds.pkl": {"train": ["a"], "dev": ["b"], "test": ["c"]},
        "nested.pkl": {"train": [["a"], ["b"]], "test": [["c"]]},
        "arrays.pkl": {"train": [rows, rows]},
        "sdk.pkl": {"a": {"punchline_features": rows}},
        "indices.p": [[[0], [1]]],
        "number.pkl": {"train": 1, "dev": []},
        "no.pkl": "id,split",
    }
    for name, other in others.items():
        assert mag.files(write(tmp_path, other, 2, name)) == []
    assert mag.files(tmp_path) == mag.files(path) == [path]
    check(mag.read(tmp_path).table.set_column(1, "split", import_source(path, OWN)[0]["split"]), made_up())


def test_a_long_first_sentence_is_known_too(tmp_path: Path) -> None:
    words = [f"word{place}" for place in range(200)]
    content = {"train": [((words, np.ones((200, 3)), np.ones((200, 2))), 1.0, "v[1]")], "dev": [], "test": []}
    assert mag.files(write(tmp_path, content))


def test_one_of_several_pickles_must_be_named(tmp_path: Path) -> None:
    for name in ("mosei.pkl", "mosi.pkl"):
        write(tmp_path, content_of(made_up()), name=name)
    assert refusal(tmp_path) == f"{tmp_path} holds 2 files, each a MAG-BERT pickle (mosei.pkl, mosi.pkl). Name one"


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
    write(tmp_path, content_of(made_up()), name="later.pkl")
    check(import_source(tmp_path, OWN)[0], made_up())


def test_the_first_release_has_numbers_for_words(tmp_path: Path) -> None:
    for form in (lambda words: [7] * len(words), lambda words: np.arange(len(words))):
        path = write(tmp_path, each("words", form))
        assert refusal(path).startswith(f"{path}: its words are numbers of the word2id.pickle")


def misa(samples: Samples, *, mmim: bool = False) -> dict[str, Any]:
    """As MISA writes the samples, or MMIM, whose features have rows of their own."""
    content = {}
    for split, rows in samples.items():
        content[split] = [
            (
                ([], one.visual, one.acoustic[:1], one.words, np.int64(9), np.int64(9))
                if mmim
                else (np.arange(len(one.words)), one.visual, one.acoustic, one.words),
                np.array([[one.label]], np.float32),
                one.id,
            )
            for one in rows
            if one.acoustic is not None
        ]
    return content


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("mmim", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_lists_of_misa_and_mmim(tmp_path: Path, whole: bool, mmim: bool, protocol: int) -> None:
    content = misa(made_up(), mmim=mmim)
    for split, rows in ({"mosi": content} if whole else content).items():
        write(tmp_path, rows, protocol, f"{split}.pkl")
    assert find_importer(tmp_path) is mag
    table, info = import_source(tmp_path, OWN)
    samples = made_up()
    for one in (one for rows in samples.values() for one in rows if mmim):
        assert one.acoustic is not None
        one.acoustic = one.acoustic[:1]
    check(table, samples)
    assert info.word_aligned != mmim
    assert any("not aligned to words" in note for note in info.notes) == mmim
    assert [source.name for source in info.sources] == (["mosi.pkl"] if whole else ["train.pkl", "dev.pkl", "test.pkl"])
    if not whole:
        assert import_source(tmp_path / "dev.pkl", OWN)[0].equals(table)


def test_a_list_of_misa_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for split, rows in misa(made_up()).items():
        write(tmp_path, rows, name=f"{split}.pkl")
    for bad in (b"<html>Quota exceeded</html>", b"no pickle", pickle.dumps(["a"])):
        (tmp_path / "dev.pkl").write_bytes(bad)
        assert refusal(tmp_path).startswith(f"{tmp_path / 'dev.pkl'}: ")
    (tmp_path / "dev.pkl").unlink()
    (tmp_path / "test.pkl").unlink()
    assert refusal(tmp_path) == f"{tmp_path}: the split test is missing"


def test_a_missing_dev_split_is_drawn(tmp_path: Path) -> None:
    content = content_of({"train": samples_of("train", 240), "test": samples_of("test", 6)})
    _, info = import_source(write(tmp_path, content), OWN)
    assert info.splits["train"] + info.splits["valid"] == 240 and info.splits["valid"] >= 20


def test_segments_may_be_whole_numbers(tmp_path: Path) -> None:
    content = content_of(made_up())
    for row in range(12):
        put("train", row, lambda sample, row=row: (*sample[:2], row))(content)
    assert import_source(write(tmp_path, content), OWN)[0]["id"].to_pylist()[:12] == [str(row) for row in range(12)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"id,split,text,label\n", "some.pkl: not a pickle"),
        (b"", "the file is empty"),
        (b"\x80\x04}", "the pickle is cut short"),
        (b"PK\x03\x04", "a zip archive"),
        (pickle.dumps([1, 2]), "not a MAG-BERT pickle, which is a dict of the splits train, dev, test, each a list of"),
        (pickle.dumps({"train": 1, "dev": {}}), "not a MAG-BERT pickle, which is a dict"),
        (pickle.dumps({3: [1], None: 2}), "not a MAG-BERT pickle, which is a dict"),
        (pickle.dumps({"train": [1] * 3, "dev": [], "test": []}), f"none of its 3 samples is {SHAPE}"),
        (pickle.dumps({"train": [[1, 2]], "dev": [], "test": []}), f"none of its 1 samples is {SHAPE}"),
        (pickle.dumps({"train": {"raw_text": ["a"]}}), "each split is a dict of arrays, as in files of MMSA, which --"),
        (pickle.dumps({"train": {"vision": np.ones(3)}}), "of MFN and of the Multimodal Transformer, which lack the w"),
        (pickle.dumps({"train": [os.getcwd]}), "refused, no code of it was run"),
        (pickle.dumps({"train": [], "dev": [], "test": []}), "the split train holds no utterance"),
    ],
)
def test_a_forced_format_that_does_not_fit(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "some.pkl"
    path.write_bytes(content)
    assert says in refusal(path, FORCED)
    assert refusal(tmp_path, FORCED) == f"{tmp_path}: none of its files is a MAG-BERT pickle"


def change(split: str, row: int, member: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one member of one sample."""

    def apply(content: dict[str, Any]) -> None:
        (words, visual, acoustic), label, segment = content[split][row]
        old = {"words": words, "visual": visual, "acoustic": acoustic, "label": label, "segment": segment}
        old[member] = value(old[member]) if callable(value) else value
        content[split][row] = (old["words"], old["visual"], old["acoustic"]), old["label"], old["segment"]

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content.pop("train"), "{path}: the split train is missing"),
        (lambda content: content.pop("dev"), "the split valid is missing, and the 12 training utterances"),
        (lambda content: content.pop("test"), "{path}: the split test is missing"),
        (lambda content: content.update(valid=[]), "{path}: dev and valid are names of one split"),
        (lambda content: content.update(dev="abc"), "{path}: the split dev is of type str, not a list of samples"),
        (put("dev", 1, None), f"{{path}}: dev row 2 is of type NoneType, not {SHAPE}"),
        (put("dev", 1, lambda one: one[:2]), f"{{path}}: dev row 2 is a tuple of 2, not {SHAPE}"),
        (put("dev", 1, lambda one: [*one, 1]), f"{{path}}: dev row 2 is a list of 4, not {SHAPE}"),
        (
            put("dev", 1, lambda one: (one[0][:2], *one[1:])),
            "mosi.pkl: dev row 2 (id dev_0[1]): (words, visual, acoustic) is a tuple of 2",
        ),
        (
            put("dev", 1, lambda one: ("so good", *one[1:])),
            "mosi.pkl: dev row 2 (id dev_0[1]): (words, visual, acoustic) is of type str",
        ),
        (
            change("test", 2, "words", "ünï 文 (umm)"),
            "mosi.pkl: test row 3 (id test_1[2]): words is of type str, not a list of texts",
        ),
        (
            change("test", 2, "words", ["a", 3, None]),
            "mosi.pkl: test row 3 (id test_1[2]): word 2, 3, is not a text (1 more)",
        ),
        (
            change("test", 2, "words", ["a", "\ud800", "b"]),
            "mosi.pkl: test row 3 (id test_1[2]): word 2, '\\ud800', is not a text",
        ),
        (change("test", 2, "words", ["a"]), None),
        (
            change("test", 3, "visual", lambda rows: rows.T),
            "mosi.pkl: test row 4 (id test_1[3]): visual has 4 rows for 1 words",
        ),
        (
            change("test", 3, "visual", lambda rows: rows[:, :2]),
            "mosi.pkl: test row 4 (id test_1[3]): vision has rows of 2 values, where most have 4",
        ),
        (
            change("test", 3, "visual", lambda rows: rows[0]),
            "mosi.pkl: test row 4 (id test_1[3]): visual is of shape (4,), not rows of values",
        ),
        (
            change("test", 3, "visual", lambda rows: rows.tolist()),
            "mosi.pkl: test row 4 (id test_1[3]): visual is a list of 1, not an array of numbers",
        ),
        (
            change("test", 3, "visual", lambda rows: rows.astype(object)),
            "mosi.pkl: test row 4 (id test_1[3]): visual is an array of objects of shape (1, 4), not an array of n",
        ),
        (
            change("test", 3, "acoustic", lambda rows: rows.astype(str)),
            "mosi.pkl: test row 4 (id test_1[3]): acoustic is an array of texts of shape (1, 5), not an array of n",
        ),
        (
            change("test", 3, "acoustic", "loud"),
            "mosi.pkl: test row 4 (id test_1[3]): acoustic is of type str, not an array of numbers",
        ),
        (change("dev", 0, "label", "good"), "mosi.pkl: dev row 1 (id dev_0[0]): label 'good' is not a number"),
        (change("dev", 0, "label", True), "mosi.pkl: dev row 1 (id dev_0[0]): label True is not a number"),
        (change("dev", 0, "label", 10**400), "mosi.pkl: dev row 1 (id dev_0[0]): label (of type int) is not a nu"),
        (change("dev", 0, "label", ITSELF), "mosi.pkl: dev row 1 (id dev_0[0]): label (a list of 1) is not a numb"),
        (
            change("dev", 0, "label", np.ones((1, 7))),
            "mosi.pkl: dev row 1 (id dev_0[0]): label (an array of numbers of shape (1, 7)) is not a number",
        ),
        (change("dev", 0, "label", None), "mosi.pkl: dev row 1 (id dev_0[0]): label is missing"),
        (change("dev", 0, "label", np.nan), "mosi.pkl: dev row 1 (id dev_0[0]): label is missing"),
        (change("dev", 0, "label", 3.5), "mosi.pkl: dev row 1 (id dev_0[0]): label 3.5 lies outside [-3, 3]"),
        (
            change("dev", 0, "segment", 7.5),
            "mosi.pkl: dev row 1 (id None): segment 7.5 is not a text or a whole number",
        ),
        (change("dev", 0, "segment", ""), "mosi.pkl: dev row 1 (id ): id is missing"),
        (change("dev", 0, "segment", "dev_0[1]"), "mosi.pkl: dev row 2 (id dev_0[1]): dev row 1 has the same id"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, damage: Callable[[Any], Any], says: str | None) -> None:
    content = content_of(made_up())
    damage(content)
    path = write(tmp_path, content)
    message = refusal(path)
    if says is None:
        assert message.splitlines() == [
            "mosi.pkl: 2 faults",
            "  test row 3 (id test_1[2]): visual has 3 rows for 1 words",
            "  test row 3 (id test_1[2]): acoustic has 3 rows for 1 words",
        ]
    else:
        assert message.startswith(says.format(path=path)), message
        assert "\n" not in message


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    content = content_of(made_up())
    del content["test"]
    content["train"][3] = "no sample"
    change("train", 2, "label", "x")(content)
    change("dev", 3, "acoustic", np.ones((1, 3)))(content)
    path = write(tmp_path, content)
    assert refusal(path).splitlines() == [
        f"{path}: 4 faults",
        "  the split test is missing",
        f"  train row 4 is of type str, not {SHAPE}",
        "  train row 3 (id train_1[2]): label 'x' is not a number",
        "  dev row 4 (id dev_1[3]): audio has rows of 3 values, where most have 5",
    ]


def damaged(rng: random.Random) -> tuple[bytes, int | None]:
    """A pickle with something wrong in it, and the row where that is, None where it may be anywhere."""
    content: dict[str, Any] = content_of(made_up())
    kind = rng.choice(["cut", "flip", "flip", "type", "type", "swap", "sample", "split"])
    split = rng.choice(list(SPLITS))
    row = rng.randrange(len(content[split]))
    at = row + {"train": 0, "dev": 12, "test": 16}[split]
    if kind == "type":
        change(split, row, rng.choice(["words", "visual", "acoustic", "label", "segment"]), rng.choice(STRANGE))(
            content
        )
    elif kind == "swap":
        for one in range(len(content[split])) if rng.random() < 0.5 else [row]:
            change(split, one, rng.choice(["visual", "acoustic"]), lambda rows: rows.T)(content)
    elif kind == "sample":
        content[split][row] = rng.choice(STRANGE)
    elif kind == "split":
        content[split] = rng.choice(STRANGE)
    data = spoiled(dumped(content, rng.choice([0, 2, 4, "Python 2"])), kind, rng)
    return data, None if kind == "flip" else at


def test_damaged_files_are_refused_or_read_correctly(tmp_path: Path) -> None:
    path = tmp_path / "damaged.pkl"

    def damage(rng: random.Random) -> int | None:
        content, at = damaged(rng)
        path.write_bytes(content)
        return at

    found = survivors(path, damage, replace(ZEROED, format="mag"), ZEROED)
    for at, table, _ in found:
        assert table.num_rows == 22
        if at is not None:
            check(table, made_up(), but=at)
        for name in ("audio", "vision"):
            rows = pa.compute.list_value_length(table[name]).to_pylist()
            words = [len(text.split(" ")) for text in table["text"].to_pylist()]
            assert all(count in (None, wanted) for count, wanted in zip(rows, words, strict=True))
    assert 0 < len(found) < VARIANTS * 0.3


@pytest.fixture(scope="module")
def real() -> Samples:
    """CMU-MOSI where it has a row of audio for each word; some columns of the audio stand for vision."""
    samples: Samples = {"train": [], "dev": [], "test": []}
    for row in pq.read_table(real_file("mosi/utterances.parquet")).to_pylist():
        audio, words = np.array(row["audio"], np.float32), row["text"].split(" ")
        if len(audio) == len(words):
            name = f"{row['video_id']}[{row['id'].rpartition('_')[2]}]"
            split = next(theirs for theirs, ours in SPLITS.items() if ours == row["split"])
            samples[split].append(Sample(name, words, row["label"], audio[:, 20:67], audio[:, 1:]))
    return samples


@pytest.mark.parametrize("protocol", [0, 4, "Python 2"])
def test_real_utterances_come_back(tmp_path: Path, real: Samples, protocol: int | str) -> None:
    # Protocol 0 spells every byte out.
    samples = {split: rows[:100] for split, rows in real.items()} if protocol == 0 else real
    table, info = import_source(write(tmp_path, content_of(samples), protocol), ImportOptions(dataset="mosi"))
    every = [one for _, one in in_order(samples)]
    assert table["id"].to_pylist() == [one.id for one in every]
    assert [text.split(" ") for text in table["text"].to_pylist()] == [one.words for one in every]
    np.testing.assert_array_equal(table["label"].to_numpy(), np.array([one.label for one in every], np.float32))
    for column, name in (("vision", "visual"), ("audio", "acoustic")):
        arrays = [getattr(one, name) for one in every]
        flat = pa.compute.list_flatten(pa.compute.list_flatten(table[column])).to_numpy()
        assert pa.compute.list_value_length(table[column]).to_pylist() == [len(rows) for rows in arrays]
        np.testing.assert_array_equal(flat, np.concatenate(arrays).reshape(-1))
    assert (info.audio_dim, info.vision_dim, info.word_aligned, info.transcripts) == (74, 47, True, "upper")
    assert protocol == 0 or info.splits == {"train": 1167, "valid": 212, "test": 616}
