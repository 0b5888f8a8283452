"""MAG-BERT's pickles: whatever form their cells have, words and rows that fit each other, older files, and damage."""

from __future__ import annotations

import pickle
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
    content_of,
    in_order,
    put,
    real_file,
    refusal,
    write_pickle,
)

from grcf_ray.data.importers import ImportOptions, find_importer, formats, import_source, mag

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
    known = [name for name, importer in formats().items() if importer.files(path)]
    assert known == ([] if form is tuple else ["mag"])
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


def test_segments_may_be_whole_numbers(tmp_path: Path) -> None:
    content = content_of(made_up())
    for row in range(12):
        put("train", row, lambda sample, row=row: (*sample[:2], row))(content)
    assert import_source(write(tmp_path, content), OWN)[0]["id"].to_pylist()[:12] == [str(row) for row in range(12)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps([1, 2]), "not a MAG-BERT pickle, which is a dict of the splits train, dev, test, each a list of"),
        (pickle.dumps({"train": 1, 3: [1], None: 2}), "not a MAG-BERT pickle, which is a dict"),
        (pickle.dumps({"train": [1] * 3, "dev": [], "test": []}), f"none of its 3 samples is {SHAPE}"),
        (pickle.dumps({"train": {"raw_text": ["a"]}}), "each split is a dict of arrays, as in files of MMSA, which --"),
        (pickle.dumps({"train": {"vision": np.ones(3)}}), "of MFN and of the Multimodal Transformer, which lack the w"),
    ],
)
def test_a_forced_format_that_does_not_fit(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "some.pkl"
    path.write_bytes(content)
    assert says in refusal(path, FORCED)


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
        (lambda content: content.pop("train"), "the split train is missing"),
        (lambda content: content.pop("test"), "the split test is missing"),
        (lambda content: content.update(valid=[]), "dev and valid are names of one split"),
        (lambda content: content.update(dev="abc"), "the split dev is of type str"),
        (put("dev", 1, None), f"dev row 2 is of type NoneType, not {SHAPE}"),
        (put("dev", 1, lambda one: one[:2]), f"dev row 2 is a tuple of 2, not {SHAPE}"),
        (put("dev", 1, lambda one: [*one, 1]), f"dev row 2 is a list of 4, not {SHAPE}"),
        (
            put("dev", 1, lambda one: (one[0][:2], *one[1:])),
            "row 2 (id dev_0[1]): (words, visual, acoustic) is a tuple",
        ),
        (put("dev", 1, lambda one: ("so good", *one[1:])), "(id dev_0[1]): (words, visual, acoustic) is of type"),
    ],
)
def test_a_wrong_structure_is_named(tmp_path: Path, damage: Callable[[Any], Any], says: str) -> None:
    content = content_of(made_up())
    damage(content)
    message = refusal(write(tmp_path, content))
    assert says in message and "mosi.pkl" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("member", "value", "says"),
    [
        ("words", "ünï 文 (umm)", "words is of type str"),
        ("words", ["a", 3, None], "word 2, 3,"),
        ("words", ["a", "\ud800", "b"], "word 2, '\\ud800',"),
        ("visual", lambda rows: rows.T, "visual has 4 rows for 1 words"),
        ("visual", lambda rows: rows[:, :2], "vision has rows of 2 values, where most have 4"),
        ("visual", lambda rows: rows[0], "visual is of shape (4,)"),
        ("visual", lambda rows: rows.tolist(), "visual is a list of 1"),
        ("visual", lambda rows: rows.astype(object), "visual is an array of objects of shape (1, 4)"),
        ("acoustic", lambda rows: rows.astype(str), "acoustic is an array of texts of shape (1, 5)"),
        ("acoustic", "loud", "acoustic is of type str"),
        ("label", "good", "label 'good'"),
        ("label", True, "label True"),
        ("label", lambda _: 10**400, "label (of type int)"),
        ("label", ITSELF, "label (a list of 1)"),
        ("label", np.ones((1, 7)), "label (an array of numbers of shape (1, 7))"),
        ("label", None, "label is missing"),
        ("label", np.nan, "label is missing"),
        ("label", 3.5, "label 3.5 lies outside [-3, 3]"),
        ("segment", 7.5, "(id None): segment 7.5"),
        ("segment", "", "id is missing"),
        ("segment", "test_0[1]", "test row 2 has the same id"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, member: str, value: Any, says: str) -> None:
    content = content_of(made_up())
    change("test", 3, member, value)(content)
    message = refusal(write(tmp_path, content))
    assert message.startswith("mosi.pkl: test row 4 (id ") and says in message
    assert member == "segment" or "(id test_1[3])" in message
    assert "\n" not in message


def test_each_modality_needs_a_row_for_each_word(tmp_path: Path) -> None:
    content = content_of(made_up())
    change("test", 2, "words", ["a"])(content)
    assert refusal(write(tmp_path, content)).splitlines() == [
        "mosi.pkl: 2 faults",
        "  test row 3 (id test_1[2]): visual has 3 rows for 1 words",
        "  test row 3 (id test_1[2]): acoustic has 3 rows for 1 words",
    ]


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


@pytest.fixture(scope="module")
def real() -> Samples:
    """CMU-MOSI with a row of audio for each word; some columns of the audio stand for vision."""
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
