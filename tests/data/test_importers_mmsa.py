"""MMSA's pickles: whatever form their columns have, padding, splits left out, faults, and damage."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.foreign import OWN, real_file, refusal, write_pickle

from grcf_ray.data.importers import ImportOptions, import_source, mmsa
from grcf_ray.data.schema import SPLITS

AUDIO_ROWS, AUDIO_DIM = 7, 5
VISION_ROWS, VISION_DIM = 6, 3
TEXTS = ["IT WAS GOOD", "not, at all", "ünï", "这部电影很好看", "x", "so so"]

Rows = npt.NDArray[np.float32]
Split = dict[str, Any]


@dataclass
class Sample:
    """An utterance as it was before it was padded."""

    id: str
    text: str
    label: float
    audio: Rows
    vision: Rows


def samples_of(split: str, count: int) -> list[Sample]:
    """Made-up utterances; the rows of every third have a row of zeros within, and every fifth lacks vision."""
    rng = np.random.default_rng(len(split))
    samples = []
    for row in range(count):
        audio, vision = (
            rng.normal(size=(rng.integers(3, most + 1), dim)).astype(np.float32)
            for most, dim in ((AUDIO_ROWS, AUDIO_DIM), (VISION_ROWS, VISION_DIM))
        )
        audio[1] *= row % 3 != 0
        label = round(float(rng.uniform(-3, 3)), 1)
        samples.append(Sample(f"{split}{row // 2}$_${row}", TEXTS[row % 6], label, audio, vision[: row % 5 and None]))
    return samples


MADE_UP = {"train": samples_of("train", 12), "valid": samples_of("valid", 4), "test": samples_of("test", 6)}


def padded(sequences: list[Rows], rows: int, *, front: bool = False) -> Rows:
    array = np.zeros((len(sequences), rows, max(len(one.T) for one in sequences)), np.float32)
    for place, one in zip(array, sequences, strict=True):
        place[rows - len(one) if front else 0 :][: len(one)] = one
    return array


def packed(
    samples: list[Sample], *, lengths: bool = False, front: bool = False, rows: tuple[int, int] = (9, 8)
) -> Split:
    """A split as MMSA writes it."""
    audio, vision = ([getattr(one, name) for one in samples] for name in ("audio", "vision"))
    split: Split = {
        "raw_text": np.array([one.text for one in samples], object),
        "audio": padded(audio, rows[0], front=front).astype(np.float64),
        "vision": padded(vision, rows[1], front=front),
        "id": [one.id for one in samples],
        "text": np.ones((len(samples), 5, 3), np.float32),
        "text_bert": np.ones((len(samples), 3, 5)),
        "annotations": ["Positive"] * len(samples),
        "classification_labels": np.ones(len(samples)),
        "regression_labels": np.array([one.label for one in samples], np.float32),
    }
    if lengths:
        split["audio_lengths"] = [len(one) for one in audio]
        split["vision_lengths"] = np.array([max(len(one), 1) for one in vision])
    return split


def content_of(samples: dict[str, list[Sample]] = MADE_UP, **how: Any) -> dict[str, Split]:
    return {split: packed(samples[split], **how) for split in SPLITS}


def write(folder: Path, content: Any, protocol: int = 4, name: str = "unaligned_50.pkl") -> Path:
    return write_pickle(folder / name, content, protocol)


def check(table: pa.Table, samples: dict[str, list[Sample]] = MADE_UP) -> None:
    """The table holds exactly these utterances."""
    every = [(split, one) for split in SPLITS for one in samples[split]]
    assert table["split"].to_pylist() == [split for split, _ in every]
    assert table["id"].to_pylist() == [one.id for _, one in every]
    assert table["text"].to_pylist() == [one.text for _, one in every]
    np.testing.assert_array_equal(table["label"].to_numpy(), np.array([one.label for _, one in every], np.float32))
    for name in ("audio", "vision"):
        expected = [getattr(one, name) for _, one in every]
        assert table[name].to_pylist() == [rows.tolist() if len(rows) else None for rows in expected]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(("lengths", "front"), [(False, False), (False, True), (True, False), (True, True)])
def test_padding_is_taken_off(tmp_path: Path, protocol: int, lengths: bool, front: bool) -> None:
    path = write(tmp_path, content_of(lengths=lengths, front=front), protocol)
    table, info = import_source(path, OWN)
    check(table)
    assert info.splits == {"train": 12, "valid": 4, "test": 6}
    assert (info.audio_dim, info.vision_dim, info.word_aligned) == (AUDIO_DIM, VISION_DIM, False)
    assert len(info.sources) == 1
    how = "by audio_lengths" if lengths else "where it is zero, at both ends"
    assert mmsa.read(path).notes == (
        "raw_text is tokenised again: the vectors and ids of BERT (text, text_bert) are not used",
        f"audio: padding is removed {how}",
        f"vision: padding is removed {how.replace('audio', 'vision')}",
    )


@pytest.mark.parametrize(
    ("column", "form"),
    [
        ("id", lambda ids: [one.encode() for one in ids]),
        ("id", lambda ids: np.array(ids)),
        ("id", lambda ids: np.array([one.encode() for one in ids])),
        ("id", lambda ids: np.array(ids, object)[:, None]),
        ("id", lambda ids: [np.str_(one) for one in ids]),
        ("raw_text", lambda texts: texts.tolist()),
        ("raw_text", lambda texts: texts.astype(str)[:, None]),
        ("raw_text", lambda texts: tuple(np.str_(one) for one in texts)),
        ("raw_text", lambda texts: [one.encode() for one in texts]),
        ("regression_labels", lambda labels: labels.tolist()),
        ("regression_labels", lambda labels: labels[:, None]),
        ("regression_labels", lambda labels: labels[:, None, None]),
        ("regression_labels", lambda labels: list(labels)),
        ("regression_labels", lambda labels: [[one] for one in labels.tolist()]),
        ("regression_labels", lambda labels: list(labels[:, None])),
        ("regression_labels", lambda labels: labels.astype(object)),
        ("audio_lengths", lambda lengths: np.array(lengths, np.float64)),
        ("audio_lengths", lambda lengths: np.array(lengths, np.uint8)[:, None]),
        ("audio", lambda array: np.asfortranarray(array)),
        ("audio", lambda array: array.astype(">f8")),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_columns_of_any_form(tmp_path: Path, column: str, form: Callable[[Any], Any], protocol: int) -> None:
    content = content_of(lengths=True)
    for split in content.values():
        split[column] = form(split[column])
    check(import_source(write(tmp_path, content, protocol), OWN)[0])


def test_columns_of_sims(tmp_path: Path) -> None:
    content = content_of(lengths=True)
    for split in content.values():
        split |= {f"regression_labels_{part}": np.full(len(split["id"]), 9.0) for part in "TAV"}
        split["classification_labels"] = ["not numbers"]
    table, _ = import_source(write(tmp_path, content), OWN)
    check(table)


def test_videos_are_what_stands_before_the_clip(tmp_path: Path) -> None:
    content = content_of()
    content["test"]["id"][0] = "no clip"
    raw = mmsa.read(write(tmp_path, content), "")
    assert raw.table["video_id"].to_pylist()[:3] == ["train0", "train0", "train1"]
    assert raw.table["video_id"].to_pylist()[16] is None
    assert raw.place(0) == "train row 1"
    assert raw.place(21) == "test row 6"
    with pytest.raises(IndexError):
        raw.place(22)


def test_a_modality_of_zeros_is_missing_in_a_split_and_in_all(tmp_path: Path) -> None:
    content = content_of(lengths=True)
    content["train"]["audio"][:] = 0
    table, info = import_source(write(tmp_path, content), OWN)
    assert table["audio"].null_count == 12
    assert info.audio_dim == AUDIO_DIM
    for split in content.values():
        del split["vision"]
    table, info = import_source(write(tmp_path, content), OWN)
    assert "vision" not in table.column_names
    assert info.vision_dim is None


def test_lengths_that_do_not_fit_are_not_believed(tmp_path: Path) -> None:
    # MMSA's script counts rows up to the first of zeros: 1 for a sequence with padding at the front.
    content = content_of(lengths=True, front=True)
    for split in content.values():
        split["audio_lengths"] = [1] * len(split["id"])
    table, info = import_source(write(tmp_path, content), OWN)
    check(table)
    assert any(note.startswith("audio: 22 sequences do not fit their length") for note in info.notes)
    assert not any(note.startswith("vision:") and "do not fit" in note for note in info.notes)


def test_the_side_of_the_padding_is_where_the_zeros_lie(tmp_path: Path) -> None:
    """Rows of zeros belong to a sequence where its length says so, such as frames without a face."""
    for front in (False, True):
        samples = {split: samples_of(split, len(rows)) for split, rows in MADE_UP.items()}
        for rows in samples.values():
            for one in rows:
                for sequence in (one.audio, one.vision):
                    sequence[-1:], sequence[:1] = (0, sequence[:1]) if front else (sequence[-1:], 0)
        # Its zeros fit either side.
        middle = samples["train"][0]
        middle.audio = np.zeros((5, AUDIO_DIM), np.float32)
        middle.audio[2] = 1
        table, info = import_source(write(tmp_path, content_of(samples, lengths=True, front=front)), OWN)
        check(table, samples)
        assert not any("do not fit" in note for note in info.notes)


def test_aligned_sequences_lose_the_zeros_of_both_ends(tmp_path: Path) -> None:
    content = content_of()
    for split in content.values():
        for name in ("audio", "vision"):
            split[name] = np.pad(split[name], ((0, 0), (1, 1), (0, 0)))
    check(import_source(write(tmp_path, content), OWN)[0])


def test_lengths_beyond_a_cut_array_are_clipped_and_counted(tmp_path: Path) -> None:
    content = content_of(lengths=True)
    content["train"]["audio_lengths"][1] = 375
    content["test"]["audio_lengths"][0] = 10
    table, info = import_source(write(tmp_path, content), OWN)
    check(table)
    assert (
        "audio: 2 sequences are shorter than their length; their rows of zeros at both ends are removed" in info.notes
    )


@pytest.mark.parametrize("empty", ["nan", float("nan"), np.float64("nan")])
def test_a_text_that_was_an_empty_cell_is_empty(tmp_path: Path, empty: Any) -> None:
    content = content_of()
    content["train"]["raw_text"][2] = empty
    content["test"]["raw_text"] = np.array([*content["test"]["raw_text"][:5], empty])
    table, info = import_source(write(tmp_path, content), OWN)
    texts = [one.text for split in SPLITS for one in MADE_UP[split]]
    texts[2] = texts[21] = ""
    assert table["text"].to_pylist() == texts
    assert any(note.startswith("text: 2 texts that are nan") for note in info.notes)


def test_ids_may_be_whole_numbers(tmp_path: Path) -> None:
    content = content_of()
    content["train"]["id"], content["test"]["id"] = list(range(12)), np.arange(12, 18)
    table, _ = import_source(write(tmp_path, content), OWN)
    assert table["id"].to_pylist()[:12] + table["id"].to_pylist()[16:] == [str(number) for number in range(18)]


def test_rows_beyond_a_length_are_left_out(tmp_path: Path) -> None:
    content = content_of(lengths=True)
    content["train"]["audio_lengths"][1] = 2
    table, _ = import_source(write(tmp_path, content), OWN)
    assert table["audio"].to_pylist()[1] == MADE_UP["train"][1].audio[:2].tolist()


@pytest.mark.parametrize("first", [True, False])
def test_rows_without_labels_are_left_out_and_counted(tmp_path: Path, first: bool) -> None:
    mixed = packed(MADE_UP["train"] * 3)
    mixed["mask"] = [1] * 12 + [0] * 24
    del mixed["raw_text"]
    content: dict[str, Any] = content_of()
    content = {"train_mix": mixed, **content} if first else {**content, "train_mix": mixed}
    table, info = import_source(write(tmp_path, content), OWN)
    check(table)
    assert "'train_mix' with its 36 rows is left out: it is train plus rows without labels" in info.notes


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps([1, 2]), "not an MMSA pickle, which is a dict of the splits train, valid, test"),
        (pickle.dumps({"train": [1], "dev": [], "test": []}), "not an MMSA pickle"),
    ],
)
def test_a_forced_format_that_does_not_fit(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "some.pkl"
    path.write_bytes(content)
    forced = ImportOptions(dataset="own", label_range=(-3, 3), format="mmsa")
    assert says in refusal(path, forced)


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
        (lambda content: content.update(test=[1]), "the split test is not a dict"),
        (lambda content: content["train"].pop("id"), "train: missing id; present: raw_text, audio, vision, text, "),
        (lambda content: content["test"].pop("vision"), "test: missing vision; present: raw_text, audio, id, "),
        (change("train", "audio", lambda a: a[:3]), "train: audio has 3 rows, where id has 12"),
        (change("train", "raw_text", lambda a: a[1:]), "train: raw_text has 11 rows, where id has 12"),
        (change("valid", "audio_lengths", lambda a: [*a, 1]), "valid: audio_lengths has 5 rows, where id has 4"),
        (change("test", "audio", lambda a: a[:, 0]), "test: audio is of shape (6, 5)"),
        (change("test", "audio", lambda a: a[:, :, :0]), "test: audio is of shape (6, 9, 0)"),
        (change("test", "vision", lambda a: a.astype(str)), "test: vision is an array of texts of shape (6, 8, 3)"),
        (change("test", "vision", lambda a: a.astype(object)), "test: vision is an array of objects"),
        (change("test", "vision", lambda a: a.tolist()), "test: vision is a list of 6"),
        (change("test", "vision", None), "test: vision is of type NoneType"),
        (change("train", "audio", lambda a: a.swapaxes(1, 2)), "audio differs in width: 9 in train, 5 in valid, 5 in"),
        (change("valid", "id", "x"), "valid: id is of type str"),
        (change("valid", "id", {"a": 1}), "valid: id is of type dict"),
        (change("valid", "regression_labels", np.float32(1)), "valid: regression_labels is of type float"),
        (change("valid", "regression_labels", np.ones((4, 3))), "valid: regression_labels is of shape (4, 3)"),
        (change("valid", "regression_labels", np.array(1.0)), "valid: regression_labels is an array of numbers"),
    ],
)
def test_a_wrong_structure_is_named(tmp_path: Path, damage: Callable[[Any], Any], says: str) -> None:
    content = content_of(lengths=True)
    damage(content)
    path = write(tmp_path, content)
    message = refusal(path)
    assert message.startswith(f"{path}: {says}"), message
    assert "\n" not in message


def test_all_that_is_wrong_with_the_structure_is_named_at_once(tmp_path: Path) -> None:
    content = content_of()
    del content["valid"]["id"]
    content["train"] |= {"audio": 1, "regression_labels": [1.0]}
    del content["test"]["raw_text"]
    path = write(tmp_path, content)
    assert refusal(path).splitlines() == [
        f"{path}: 4 faults",
        "  train: regression_labels has 1 rows, where id has 12",
        "  train: audio is of type int, not an array of numbers",
        "  valid: missing id; present: raw_text, audio, vision, text, text_bert, annotations, classification_labels, "
        "regression_labels",
        "  test: missing raw_text; present: audio, vision, id, text, text_bert, annotations, classification_labels, "
        "regression_labels",
    ]


def test_a_file_of_another_release_says_what_it_lacks(tmp_path: Path) -> None:
    old = {split: {"vision": np.ones((2, 3, 4)), "labels": np.ones((2, 1, 1))} for split in SPLITS}
    message = refusal(write(tmp_path, old))
    assert "train: missing id, raw_text, regression_labels; present: vision, labels" in message


@pytest.mark.parametrize("without", ["", "id", "vision"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_file_of_vectors_without_texts_says_what_is_needed(tmp_path: Path, without: str, protocol: int) -> None:
    """As MFN and the Multimodal Transformer have them."""
    rows = np.ones((2, 3, 4), np.float32)
    split = {"vision": rows, "labels": rows[:, :1, :1], "text": rows, "audio": rows, "id": np.array([["a", "b"]] * 2)}
    split.pop(without, None)
    path = write(tmp_path, dict.fromkeys(SPLITS, split), protocol, "mosi_data.pkl")
    for source in (path, tmp_path):
        assert refusal(source) == (
            f"{path}: it has no texts (raw_text), only word vectors (text), as in files of MFN and of the Multimodal "
            "Transformer. Needed is aligned_50.pkl or unaligned_50.pkl of MMSA, or the mosi.pkl or mosei.pkl that "
            "MAG-BERT reads"
        )


def test_all_faults_of_all_rows_are_named_at_once(tmp_path: Path) -> None:
    content = content_of(lengths=True)
    train, valid, test = content.values()
    train["regression_labels"] = ["nice", None, float("nan"), 4, True, 10**400, [1, 2], *[0.5] * 5]
    valid["raw_text"][2] = 3.5
    valid["id"][3] = b"valid0$_$0"
    test["vision_lengths"] = [-1, 2.5, "x", 3, 3, 3]
    test["id"][5] = "\ud800"
    found = refusal(write(tmp_path, content)).splitlines()
    assert found == [
        "unaligned_50.pkl: 13 faults",
        "  train row 1 (id train0$_$0): regression_labels 'nice' is not a number",
        "  train row 2 (id train0$_$1): regression_labels is missing",
        "  train row 3 (id train1$_$2): label is missing",
        "  train row 4 (id train1$_$3): label 4 lies outside [-3, 3]",
        "  train row 5 (id train2$_$4): regression_labels True is not a number",
        "  train row 6 (id train2$_$5): regression_labels (of type int) is not a number",
        "  train row 7 (id train3$_$6): regression_labels (a list of 2) is not a number",
        "  valid row 3 (id valid1$_$2): raw_text 3.5 is not a text",
        "  valid row 4 (id valid0$_$0): valid row 1 has the same id",
        "  test row 1 (id test0$_$0): vision_lengths is -1, not a number of rows",
        "  test row 2 (id test0$_$1): vision_lengths is 2.5, not a number of rows",
        "  test row 3 (id test1$_$2): vision_lengths 'x' is not a number",
        "  test row 6 (id None): id '\\ud800' is not a text or a whole number",
    ]


@pytest.fixture(scope="module")
def real() -> dict[str, list[Sample]]:
    """Texts and labels of CH-SIMS v2 with the sequences of ICT-MMMO, whose own zeros at both ends count as padding."""
    texts = pq.read_table(
        real_file("sims_v2/utterances.parquet"), columns=["id", "video_id", "split", "text", "label"]
    ).to_pylist()
    features = pq.read_table(real_file("ict_mmmo/utterances.parquet"), columns=["split", "audio", "vision"])
    samples: dict[str, list[Sample]] = {}
    for split in SPLITS:
        rows = features.filter(pa.compute.equal(features["split"], split))
        audio, vision = (np.array(rows[name].to_pylist(), np.float32) for name in ("audio", "vision"))
        said = [row for row in texts if row["split"] == split]
        samples[split] = [
            Sample(clip(row["id"], row["video_id"]), row["text"], row["label"], trimmed(one), trimmed(other))
            for row, one, other in zip(said, audio, vision, strict=False)
        ]
    return samples


def clip(name: str, video: str) -> str:
    return f"{video}$_${name.removeprefix(video)[1:]}"


def trimmed(rows: Rows) -> Rows:
    filled = [place for place, row in enumerate(rows) if any(row)]
    return rows[filled[0] : filled[-1] + 1] if filled else rows[:0]


@pytest.mark.parametrize(("lengths", "front"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("protocol", [2, 4])
def test_real_sequences_come_back(
    tmp_path: Path, real: dict[str, list[Sample]], lengths: bool, front: bool, protocol: int
) -> None:
    content = content_of(real, lengths=lengths, front=front, rows=(24, 21))
    table, info = import_source(write(tmp_path, content, protocol), ImportOptions(dataset="own", label_range=(-1, 1)))
    check(table, real)
    assert info.splits == {"train": 220, "valid": 40, "test": 80}
    assert (info.audio_dim, info.vision_dim) == (74, 36)
