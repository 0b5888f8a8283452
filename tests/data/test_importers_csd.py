"""Folders of the CMU-MultimodalSDK: alignment against a plain loop, roles, folds, links, faults, and damage."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from data.foreign import DOWNLOADS, OWN, VARIANTS, faults, real_file, refusal, spoiled, survivors

from grcf_ray.data.importers import ImportOptions, csd, find_importer, import_source

FORCED = dataclasses.replace(OWN, format="csd")
FOLDS = {"train": ["v0", "v1"], "valid": ["v2"], "test": ["v3"]}
WORDS, LABELS, AUDIO, VISION = "words.csd", "labels.csd", "audio.csd", "vision.csd"
SPEECH = ["so", "it", "sp", "was", "good", "sp", "not", "at", "all", "sp", "then", "end"]

Array = npt.NDArray[Any]
Entries = dict[str, tuple[Array, Array]]


def write(path: Path, root: str, entries: Mapping[str, tuple[Any, Any]], *, plain: bool = False) -> Path:
    """A computational sequence as the SDK writes it, or `plain`: not compressed, in HDF5's newest layout."""
    with h5py.File(path, "w", libver="latest" if plain else None) as file:
        group = file.create_group(root)
        data = group.create_group("data")
        how = {} if plain else {"compression": "gzip", "compression_opts": 9}
        for video, (features, intervals) in entries.items():
            entry = data.create_group(video)
            entry.create_dataset("features", data=features, **how)
            entry.create_dataset("intervals", data=intervals, **how)
        metadata = group.create_group("metadata")
        for key in ("root name", "computational sequence description", "uuid"):
            metadata.create_dataset(key, (1,), dtype=h5py.special_dtype(vlen=str))[0] = json.dumps(root)
    return path


def write_folds(folder: Path, folds: Mapping[str, list[str]] = FOLDS) -> Path:
    path = folder / "folds.json"
    path.write_text(json.dumps(folds))
    return path


def spans(start: float, count: int, seconds: float) -> Array:
    edges = start + seconds * np.arange(count + 1)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def made_up() -> dict[str, tuple[str, Entries]]:
    """Four videos of three labels each, the last one without vision; words last half a second, a third are pauses."""
    rng = np.random.default_rng(5)
    words, labels, audio, vision = ({} for _ in range(4))
    for number in range(4):
        video, start = f"v{number}", 0.25 * number
        words[video] = (np.array([[word.encode()] for word in SPEECH]), spans(start, 12, 0.5))
        labels[video] = (rng.integers(-6, 7, (3, 1)) / 2, spans(start, 3, 2))
        # Eighths, whose sums are exact. Longer than the words, and 10 rows a second.
        audio[video] = (rng.integers(-80, 80, (70, 5)) / 8, spans(start - 0.5, 70, 0.1))
        if number < 3:
            vision[video] = ((rng.integers(-80, 80, (21, 3)) / 8).astype(np.float32), spans(start + 0.1, 21, 0.3))
    return {
        WORDS: ("words", words),
        LABELS: ("Opinion Segment Labels", labels),
        AUDIO: ("COVAREP", audio),
        VISION: ("FACET_4.1", vision),
    }


def write_all(folder: Path, files: Mapping[str, tuple[str, Entries]], *, plain: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for name, (root, entries) in files.items():
        write(folder / name, root, entries, plain=plain)
    write_folds(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "own", made_up())


def aligned(files: Mapping[str, tuple[str, Entries]], folds: Mapping[str, list[str]] = FOLDS) -> list[dict[str, Any]]:
    """What the table should hold, by a plain loop."""
    words, labels = files[WORDS][1], files[LABELS][1]
    rows = []
    for split, video in ((split, video) for split, videos in folds.items() for video in videos):
        values, times = labels[video]
        for place in sorted(range(len(times)), key=lambda place: times[place][0]):
            low, high = times[place]
            said = [
                (word, start, end)
                for (word,), (start, end) in zip(*words[video], strict=True)
                if low <= (start + end) / 2 < high and word != b"sp"
            ]
            rows.append(
                {
                    "id": f"{video}[{place}]",
                    "split": split,
                    "text": " ".join(word.decode() for word, _, _ in said),
                    "label": float(np.float32(values[place][0])),
                    "audio": means(files[AUDIO][1].get(video), said),
                    "vision": means(files[VISION][1].get(video), said),
                }
            )
    return rows


def means(entry: tuple[Array, Array] | None, said: list[tuple[bytes, float, float]]) -> list[list[float]] | None:
    if entry is None or not said:
        return None
    rows = []
    for _, start, end in said:
        over = [row for row, (low, high) in zip(*entry, strict=True) if min(high, end) - max(low, start) > 1e-5]
        rows.append([float(np.float32(sum(column) / len(column))) for column in zip(*over, strict=True)])
    return rows


@pytest.mark.parametrize("plain", [False, True])
def test_sequences_are_aligned_to_words_and_labels(tmp_path: Path, plain: bool) -> None:
    source = write_all(tmp_path / "own", made_up(), plain=plain)
    table, info = import_source(source, OWN)
    assert table.to_pylist() == aligned(made_up())
    assert table["text"].to_pylist()[:3] == ["so it was", "good not at", "all then end"]
    assert table["vision"].null_count == 3
    assert (info.audio_dim, info.vision_dim, info.word_aligned) == (5, 3, True)
    assert info.splits == {"train": 6, "valid": 3, "test": 3}
    assert [one.name for one in info.sources] == [LABELS, WORDS, AUDIO, VISION, "folds.json"]
    raw = csd.read(source)
    assert raw.notes == (
        "an utterance has the words with their middle in its label's interval",
        "labels from Opinion Segment Labels (labels.csd), words from words (words.csd), audio from COVAREP "
        "(audio.csd), vision from FACET_4.1 (vision.csd)",
        "videos without vision: 1",
    )
    assert [rows for _, rows in raw.files] == [12, 0, 0, 0, 0]
    assert raw.place(3) == "labels.csd: row 4"
    assert raw.table["video_id"].to_pylist()[2:4] == ["v0", "v1"]


@pytest.mark.parametrize(
    "form",
    [
        lambda words: words[:, 0],
        lambda words: words.astype(object),
        lambda words: np.array([word.decode() for word in words[:, 0]], object)[:, None],
        lambda words: words.astype("S32"),
    ],
)
def test_words_of_any_form(tmp_path: Path, form: Callable[[Array], Array]) -> None:
    files = made_up()
    expected = aligned(files)
    for video, (words, times) in files[WORDS][1].items():
        files[WORDS][1][video] = (form(words), times)
    path = write_all(tmp_path / "own", {name: files[name] for name in (LABELS, AUDIO, VISION)})
    with h5py.File(path / WORDS, "w") as file:
        for video, (words, times) in files[WORDS][1].items():
            kind = h5py.string_dtype() if words.dtype == object else words.dtype
            file.create_dataset(f"words/data/{video}/features", data=words, dtype=kind)
            file.create_dataset(f"words/data/{video}/intervals", data=times.astype(np.float32))
    assert import_source(path, OWN)[0].to_pylist() == expected


def test_labels_of_mosei(tmp_path: Path) -> None:
    # In no order of time, one begins before the video, two overlap, one is of no length.
    files = made_up()
    times = np.array([[3.0, 5.0], [-0.5, 1.0], [0.5, 3.0], [2.0, 2.0]])
    values = np.arange(28).reshape(4, 7) / 10
    for video in FOLDS["train"]:
        files[LABELS][1][video] = (values, times)
    for video in ("v2", "v3"):
        files[LABELS][1][video] = (values[:1], times[:1])
    files[LABELS] = ("All Labels", files[LABELS][1])
    files[VISION] = ("FACET 4.2", files[VISION][1])
    source = write_all(tmp_path / "own", files)
    table, info = import_source(source, OWN)
    assert table.to_pylist() == aligned(files)
    assert table["id"].to_pylist()[:4] == ["v0[1]", "v0[2]", "v0[3]", "v0[0]"]
    assert table["text"].to_pylist()[:4] == ["so it", "it was good", "", "not at all"]
    assert table["label"].to_pylist()[:4] == pytest.approx([0.7, 1.4, 2.1, 0.0])
    assert table["audio"].to_pylist()[2] is None
    assert "the label is the first of 7 columns of All Labels" in info.notes


def test_words_without_rows_have_zeros_and_are_counted(tmp_path: Path) -> None:
    files = made_up()
    files[AUDIO][1]["v1"] = (np.ones((4, 5)), np.array([[0.25, 0.7], [0.7, 0.75], [0.75000001, 0.7500001], [9, 10]]))
    table, info = import_source(write_all(tmp_path / "own", files), OWN)
    assert [[row[0] for row in rows] for rows in table["audio"].to_pylist()[3:6]] == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert "words without a row of audio, which get zeros: 8" in info.notes


def test_rows_in_no_order_and_over_each_other(tmp_path: Path) -> None:
    files = made_up()
    features, times = files[AUDIO][1]["v0"]
    times = times + np.array([0, 1.5]) * (np.arange(70)[:, None] % 7 == 0)
    order = np.random.default_rng(0).permutation(70)
    files[AUDIO][1]["v0"] = (features[order], times[order])
    words, when = files[WORDS][1]["v0"]
    files[WORDS][1]["v0"] = (words[::-1], when[::-1])
    found = import_source(write_all(tmp_path / "own", files), OWN)[0].to_pylist()[:3]
    files[WORDS][1]["v0"] = (words, when)
    assert found == aligned(files)[:3]


def test_a_word_with_a_space_is_several_words(tmp_path: Path) -> None:
    files = made_up()
    words = files[WORDS][1]["v0"][0].astype("S20")
    words[0], words[1], words[3] = b"so  very", b" ", "\xfcn\xef".encode()
    files[WORDS][1]["v0"] = (words, files[WORDS][1]["v0"][1])
    table, _ = import_source(write_all(tmp_path / "own", files), OWN)
    assert table["text"][0].as_py() == "so very ünï"
    rows = table["audio"][0].as_py()
    assert len(rows) == 3 and rows[0] == rows[1] != rows[2]


def test_the_best_of_several_sequences_is_taken(tmp_path: Path) -> None:
    files = made_up()
    phones = {video: (entry[0][:6], entry[1][:6]) for video, entry in files[WORDS][1].items()}
    wide = {video: (np.ones((len(entry[0]), 300)), entry[1]) for video, entry in files[WORDS][1].items()}
    few = {video: (np.ones((1, 6)), spans(0, 1, 9)) for video in files[WORDS][1]}
    files |= {
        "a.csd": ("OpenSMILE", files[VISION][1]),
        "b.csd": ("OpenFace_2", files[AUDIO][1]),
        "c.csd": ("FACET_4.2", files[AUDIO][1]),
        "d.csd": ("phones", phones),
        "e.csd": ("glove_vectors", wide),
        "f.csd": ("Emotion Labels", few),
        "g.csd": ("Transcript", phones),
        "h.csd": ("Segment Labels", few),
    }
    table, info = import_source(write_all(tmp_path / "own", files), OWN)
    assert table.to_pylist() == aligned(files)
    assert (
        "not used: OpenSMILE (a.csd), OpenFace_2 (b.csd), FACET_4.2 (c.csd), phones (d.csd), glove_vectors (e.csd), "
        "Emotion Labels (f.csd), Transcript (g.csd), Segment Labels (h.csd)"
    ) in info.notes


def test_sequences_of_other_names_are_known_by_their_content(tmp_path: Path) -> None:
    files = made_up()
    for name, root in (
        (WORDS, "Transcript"),
        (LABELS, "ratings"),
        (AUDIO, "openSMILE_IS09"),
        (VISION, "Visual OpenFace"),
    ):
        files[name] = (root, files[name][1])
    source = write_all(tmp_path / "own", files)
    for place, path in enumerate(sorted(source.glob("*.csd"))):
        path.rename(source / f"download{place}")
    assert find_importer(source) is csd
    assert import_source(source, OWN)[0].to_pylist() == aligned(files)


@pytest.mark.parametrize("name", [WORDS, LABELS, AUDIO, VISION])
def test_a_root_of_any_name_keeps_its_role(tmp_path: Path, name: str) -> None:
    files = made_up()
    files[name] = ("renamed", files[name][1])
    assert import_source(write_all(tmp_path / "own", files), OWN)[0].to_pylist() == aligned(files)


def test_moseis_covarep_is_known_as_its_file_spells_it_and_by_its_width(tmp_path: Path) -> None:
    for place, (root, width) in enumerate([("COAVAREP", 5), ("renamed", 74)]):
        files = made_up()
        wide = {video: (np.resize(rows, (len(rows), width)), when) for video, (rows, when) in files[AUDIO][1].items()}
        del files[AUDIO]
        files["download.csd"] = (root, wide)
        table, info = import_source(write_all(tmp_path / str(place), files), OWN)
        assert info.audio_dim == width
        files[AUDIO] = files.pop("download.csd")
        assert table.to_pylist() == aligned(files)


@pytest.mark.parametrize("width", [5, 300])
def test_a_sequence_that_nothing_tells_is_an_error_unless_it_is_to_be_left_out(tmp_path: Path, width: int) -> None:
    files = made_up()
    wide = {video: (np.ones((len(rows), width)), when) for video, (rows, when) in files.pop(AUDIO)[1].items()}
    source = write_all(tmp_path / "own", files | {"prosody.csd": ("pitch", wide)})
    message = refusal(source)
    assert "prosody.csd: 'pitch', rows of" in message and "--variant known" in message
    table, info = import_source(source, dataclasses.replace(OWN, variant="known"))
    assert "audio" not in table.column_names
    assert "not used: pitch (prosody.csd)" in info.notes


@pytest.mark.parametrize("what", DOWNLOADS)
def test_downloads_that_went_wrong_are_named(folder: Path, what: str) -> None:
    for name in (AUDIO, VISION):
        (folder / name).write_bytes(DOWNLOADS[what])
    found = faults(refusal(folder))
    assert [line.partition(f": {what}")[0] for line in found] == [str(folder / name) for name in (AUDIO, VISION)]


def test_what_aligners_write_between_words_is_no_word(tmp_path: Path) -> None:
    files = made_up()
    plain = aligned(files)
    for video, (words, times) in files[WORDS][1].items():
        other = words.astype("S20")
        other[2], other[5], other[9] = b" sp ", b"NW", b"NW sp"
        files[WORDS][1][video] = (other, times)
    assert import_source(write_all(tmp_path / "own", files), OWN)[0].to_pylist() == plain


def test_a_small_file_cannot_become_a_large_table(folder: Path) -> None:
    def overlap(root: Any) -> None:
        for part, values in (("features", np.zeros((9000, 1))), ("intervals", np.tile([0.0, 99.0], (9000, 1)))):
            del root[f"data/v0/{part}"]
            root.create_dataset(f"data/v0/{part}", data=values, compression="gzip")

    def share(root: Any) -> None:
        del root["data/v1"]
        root["data/v1"] = root["data/v0"]

    replace(folder, LABELS, overlap)
    assert refusal(folder).startswith("video 'v0': the intervals of its labels overlap")
    replace(folder, LABELS, share)
    assert "has more than one name in the file" in refusal(folder)


def test_text_alone_is_enough(tmp_path: Path) -> None:
    files = made_up()
    table, info = import_source(write_all(tmp_path / "own", {name: files[name] for name in (WORDS, LABELS)}), OWN)
    assert table.column_names == ["id", "split", "text", "label"]
    assert (info.audio_dim, info.vision_dim) == (None, None)


def test_sequences_that_the_sdk_has_aligned_are_refused(tmp_path: Path) -> None:
    files = {
        name: (root, {f"{video}[{place}]": entry for video, entry in entries.items() for place in range(2)})
        for name, (root, entries) in made_up().items()
    }
    message = refusal(write_all(tmp_path / "own", files))
    assert message.endswith("own: its labels are of utterances, not of videos: give the files as downloaded")


def test_a_video_may_lack_words_or_have_no_row(tmp_path: Path) -> None:
    files = made_up()
    del files[WORDS][1]["v1"]
    files[AUDIO][1]["v0"] = (np.empty((0, 5)), np.empty((0, 2)))
    files[LABELS][1]["v2"] = (np.empty((0, 1)), np.empty((0, 2)))
    source = write_all(tmp_path / "own", files)
    write_folds(source, {"train": ["v0", "v1"], "valid": ["v3"], "test": ["v2"]})
    assert refusal(source) == "own: the split test holds no utterance"
    write_folds(source, {"train": ["v0"], "valid": ["v1", "v2"], "test": ["v3"]})
    table, info = import_source(source, OWN)
    assert table["text"].to_pylist()[3:6] == [""] * 3
    assert table["audio"].is_null().to_pylist() == [True] * 6 + [False] * 3
    assert "videos without words: 1" in info.notes
    assert "videos without audio: 1" in info.notes


SDK_FOLDS = """# The standard folds.
standard_train_fold=['v0', 'v1']
standard_valid_fold = [
    "v2",  # a comment
]
standard_test_fold = ['v3',]
# standard_test_fold = ['v0']
open({marker!r}, 'w').close()
"""


def test_the_folds_of_the_sdk_are_read_and_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "folds.json").unlink()
    marker = tmp_path / "was run"
    (folder / "cmu_mosi_std_folds.py").write_text(SDK_FOLDS.format(marker=str(marker)))
    table, info = import_source(folder, OWN)
    assert table.to_pylist() == aligned(made_up())
    assert info.sources[-1].name == "cmu_mosi_std_folds.py"
    assert not marker.exists()


def test_videos_outside_the_folds_and_folds_without_videos_are_noted(folder: Path) -> None:
    write_folds(folder, {"train": ["v0", "x1", "v0"], "dev": ["v2", "x2"], "test": ["v3"], "other": ["v1"]})
    table, info = import_source(folder, OWN)
    assert info.splits == {"train": 3, "valid": 3, "test": 3}
    assert "1 video ('v1') with labels in no fold, left out" in info.notes
    assert "2 videos ('x1', 'x2') of the folds without labels" in info.notes
    assert "v1[0]" not in table["id"].to_pylist()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"train": ["v0"], "test": ["v0"]}', "1 video ('v0') in more than one fold"),
        ('{"train": ["v0"], "valid": ["v1"]}', "no list of videos for test"),
        ('{"train": ["v0"], "test": "v1"}', "not readable as folds"),
        ('{"train": ["v0"], "test": [1]}', "not readable as folds"),
        ('{"train": ["v0"], "test": ["\\ud800"]}', "not readable as folds"),
        ('{"train": ["v0"], "dev": ["v1"], "valid": ["v2"], "test": ["v3"]}', "not readable as folds"),
        ('{"train": ["v0"', "not readable as folds"),
        ('{"train": [' + "[" * 100_000, "not readable as folds"),
        ("standard_train_fold = [v0]\nstandard_test_fold = []", "no list of videos for train"),
        ("standard_train_fold = ['v0']\nstandard_test_fold = list('v1')", "no list of videos for test"),
        ("standard_train_fold = [" + "-" * 100_000 + "1]\nstandard_test_fold = []", "no list of videos for train"),
        ("standard_train_fold = ['v0' # ]\n", "no list of videos for train and test"),
        ("standard_train_fold = ['v0']\nstandard_test_fold = ['v1'", "no list of videos for test"),
    ],
)
def test_folds_that_cannot_be_used(folder: Path, text: str, says: str) -> None:
    (folder / "folds.json").write_text(text)
    message = refusal(folder)
    assert message.startswith(f"{folder / 'folds.json'}: "), message
    assert says in message


def test_folds_in_json_may_begin_with_a_byte_order_mark(folder: Path) -> None:
    (folder / "folds.json").write_text(json.dumps(FOLDS), encoding="utf-8-sig")
    assert import_source(folder, OWN)[0].num_rows == 12


def test_folds_must_be_there_once(folder: Path) -> None:
    (folder / "std_folds.py").write_text("standard_train_fold = ['v0']\nstandard_test_fold = ['v1']\n")
    assert refusal(folder) == f"{folder}: several files of folds (folds.json, std_folds.py). Keep one"
    for name in ("folds.json", "std_folds.py"):
        (folder / name).unlink()
    (folder / "readme.txt").write_text("see standard_train_fold = [...]")
    message = refusal(folder)
    assert message.startswith(f"{folder}: no file of folds")
    assert "cmu_mosi_std_folds.py" in message and '{"train": ["a video", ...]' in message


def test_all_that_lacks_is_named_at_once(folder: Path) -> None:
    for name in (WORDS, LABELS, "folds.json"):
        (folder / name).unlink()
    found = faults(refusal(folder))
    assert found[:2] == [
        "no sequence of labels, such as CMU_MOSI_Opinion_Labels.csd",
        "no sequence of words (features of text), such as CMU_MOSI_TimestampedWords.csd",
    ]
    assert found[2].startswith("no file of folds")
    write_folds(folder)
    assert len(faults(refusal(folder))) == 2


def other_hdf5(folder: Path) -> None:
    """What is HDF5 and no computational sequence: MUStARD's video features, and two more."""
    with h5py.File(folder / "features.csd", "w") as file:
        for number in range(3):
            file.create_dataset(f"1_{number}", data=np.ones((2, 2048), np.float32))
    with h5py.File(folder / "one.csd", "w") as file:
        file.create_dataset("1_1", data=np.ones((2, 2048), np.float32))
    with h5py.File(folder / "group.csd", "w") as file:
        file.create_group("words").create_dataset("v0", data=np.ones(2))


def test_every_file_of_the_folder_is_accounted_for(folder: Path, tmp_path: Path) -> None:
    other_hdf5(folder)
    (folder / "readme.csd").write_text("no HDF5")
    for name in ("readme.md", ".hidden.csd", "notes.txt", "run.sh"):
        (folder / name).write_text("see the paper")
    assert [path.name for path in csd.files(folder)] == [AUDIO, LABELS, VISION, WORDS]
    found = faults(refusal(folder))
    assert [line.partition(": ")[0] for line in found] == [
        str(folder / name) for name in ("features.csd", "group.csd", "one.csd", "readme.csd")
    ]
    known = dataclasses.replace(OWN, variant="known")
    assert refusal(folder, known) == (
        f"{folder / 'readme.csd'}: not HDF5, although its name says so: download it again, or move it out of the folder"
    )
    (folder / "readme.csd").unlink()
    assert import_source(folder, known)[0].to_pylist() == aligned(made_up())
    (tmp_path / "other").mkdir()
    other_hdf5(tmp_path / "other")
    assert csd.files(tmp_path / "other") == []
    for name in ("features.csd", "one.csd", "group.csd"):
        path = tmp_path / "other" / name
        assert csd.files(path) == []
        assert "no computational sequence" in refusal(path, FORCED)
    assert "no computational sequence" in refusal(tmp_path / "other", FORCED)
    (tmp_path / "some.zip").write_bytes(b"PK\x03\x04")
    assert "a zip archive" in refusal(tmp_path / "some.zip", FORCED)


def test_a_sequence_alone_asks_for_its_folder(folder: Path) -> None:
    assert find_importer(folder / WORDS) is csd
    assert refusal(folder / WORDS) == (
        f"{folder / WORDS}: a single sequence: give the folder with the other sequences and the folds"
    )


def replace(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    with h5py.File(folder / name, "a") as file:
        change(file[next(iter(file))])


@pytest.mark.parametrize("link", [h5py.ExternalLink("links/other.h5", "/x"), h5py.SoftLink("/COVAREP/data/v1")])
@pytest.mark.parametrize("at", ["data", "data/v0", "data/v0/features", "data/v1/intervals"])
def test_links_are_refused(folder: Path, link: Any, at: str) -> None:
    (folder / "links").mkdir()
    with h5py.File(folder / "links" / "other.h5", "w") as file:
        file.create_dataset("x/y", data=np.ones((70, 5)))

    def relink(root: Any) -> None:
        del root[at]
        root[at] = link

    replace(folder, AUDIO, relink)
    message = refusal(folder)
    assert message.startswith(f"{folder / AUDIO}: ")
    assert message.endswith(f"'{at.rpartition('/')[2]}' is a link, which is not followed")


def test_a_root_that_is_a_link_is_refused(folder: Path) -> None:
    with h5py.File(folder / AUDIO, "r+") as file:
        file.move("COVAREP", "other")
        file.create_group("rest")
        del file["other"], file["rest"]
        file["COVAREP"] = h5py.ExternalLink("words.csd", "/words")
    assert refusal(folder) == f"{folder / AUDIO}: 'COVAREP' is a link, which is not followed"


def test_arrays_that_lie_in_other_files_are_refused(folder: Path) -> None:
    (folder / "raw").write_bytes(bytes(70 * 5 * 8))
    layout = h5py.VirtualLayout((70, 5), np.float64)
    layout[:] = h5py.VirtualSource(folder / AUDIO, "COVAREP/data/v0/features", (70, 5))

    def change(root: Any) -> None:
        del root["data/v1/features"], root["data/v2/features"]
        root.create_virtual_dataset("data/v1/features", layout)
        root.create_dataset("data/v2/features", (70, 5), np.float64, external=[(folder / "raw", 0, 2800)])

    replace(folder, AUDIO, change)
    assert faults(refusal(folder)) == [
        f"{folder / AUDIO}: video 'v{number}': 'features' is stored in another file, which is not read"
        for number in (1, 2)
    ]


def test_sizes_that_the_file_cannot_hold_are_refused(folder: Path) -> None:
    def change(root: Any) -> None:
        del root["data/v1"]
        for name in ("features", "intervals"):
            width = 5 if name == "features" else 2
            root.create_dataset(f"data/v1/{name}", (2**40, width), np.float64, chunks=(4096, width))

    replace(folder, AUDIO, change)
    assert "video 'v1': 'features' is of shape (1099511627776, 5), but the file holds little of it" in refusal(folder)


def wrong(name: str, value: Any) -> Callable[[Any], None]:
    def change(root: Any) -> None:
        del root[name]
        if value is not None:
            root[name] = value

    return change


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (AUDIO, wrong("data/v1/features", None), "video 'v1': 'features' is missing"),
        (AUDIO, wrong("data/v1/intervals", None), "video 'v1': 'intervals' is missing"),
        (AUDIO, wrong("data/v1", np.ones(3)), "video 'v1': 'v1' is not a group"),
        (AUDIO, wrong("data", np.ones(3)), "'data' is not a group"),
        (
            AUDIO,
            wrong("data/v1/features", np.ones((69, 5))),
            "intervals of shape (70, 2) for features of shape (69, 5)",
        ),
        (AUDIO, wrong("data/v1/features", np.ones((70, 4))), "features of shape (70, 4), where others have 5 columns"),
        (AUDIO, wrong("data/v1/features", np.ones((5, 70))), "features of shape (5, 70), where others have 5 columns"),
        (
            AUDIO,
            wrong("data/v1/features", np.ones((70, 1, 5))),
            "'features' is of shape (70, 1, 5), not rows of values",
        ),
        (AUDIO, wrong("data/v1/features", np.ones(())), "'features' is of shape (), not rows of values"),
        (AUDIO, wrong("data/v1/features", h5py.Empty("f8")), "'features' is of shape None, not rows of values"),
        (
            AUDIO,
            wrong("data/v1/features", np.full((70, 5), b"x")),
            "features of type |S1, unlike those of other videos",
        ),
        (AUDIO, wrong("data/v1/features", np.ones((70, 5), bool)), "not numbers or texts"),
        (AUDIO, wrong("data/v1/features", np.ones((70, 5), "c16")), "not numbers or texts"),
        (AUDIO, wrong("data/v1/features", np.zeros(70, "f8,i4")), "not numbers or texts"),
        (
            AUDIO,
            wrong("data/v1/intervals", np.ones((2, 70))),
            "intervals of shape (2, 70) for features of shape (70, 5)",
        ),
        (AUDIO, wrong("data/v1/intervals", np.full((70, 2), b"x")), "video 'v1': intervals of texts"),
        (AUDIO, wrong("data/v1/intervals", np.full((70, 2), np.nan)), "intervals that are not finite"),
        (WORDS, wrong("data/v1/features", np.ones((12, 1))), "features of type float64, unlike those of other videos"),
        (
            LABELS,
            wrong("data/v1/features", np.full((3, 1), b"x")),
            "features of type |S1, unlike those of other videos",
        ),
    ],
)
def test_a_wrong_structure_is_named(folder: Path, file: str, change: Callable[[Any], None], says: str) -> None:
    replace(folder, file, change)
    message = refusal(folder)
    assert message.startswith(f"{folder / file}: "), message
    assert message.endswith(says) and "\n" not in message, message


def test_all_that_is_wrong_is_named_at_once(folder: Path) -> None:
    replace(folder, AUDIO, wrong("data/v1/features", np.ones((70, 4))))
    replace(folder, AUDIO, wrong("data/v3/intervals", None))
    replace(folder, WORDS, wrong("data/v1/features", np.ones((12, 1))))
    replace(folder, LABELS, wrong("data/v2/intervals", np.ones((3, 3))))
    assert faults(refusal(folder)) == [
        f"{folder / WORDS}: video 'v1': features of type float64, unlike those of other videos",
        f"{folder / AUDIO}: video 'v1': features of shape (70, 4), where others have 5 columns",
        f"{folder / LABELS}: video 'v2': intervals of shape (3, 3) for features of shape (3, 1)",
        f"{folder / AUDIO}: video 'v3': 'intervals' is missing",
    ]


def test_values_are_left_to_the_check(tmp_path: Path) -> None:
    files = made_up()
    files[LABELS][1]["v1"][0][:] = [[np.nan], [9], [1]]
    files[AUDIO][1]["v2"][0][:12] = -np.inf
    source = write_all(tmp_path / "own", files)
    found = faults(refusal(source))
    assert found[0] == "labels.csd: row 4 (id v1[0]): label is missing"
    assert found[1] == "labels.csd: row 5 (id v1[1]): label 9 lies outside [-3, 3]"
    assert found[2] == "labels.csd: row 7 (id v2[0]): audio has 10 non-finite values"


def test_a_damaged_file_of_a_folder_is_named_and_not_ignored(folder: Path) -> None:
    for name in (AUDIO, VISION):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    found = faults(refusal(folder))
    assert len(found) == 2
    for line, name in zip(found, (AUDIO, VISION), strict=True):
        assert line.startswith(f"{folder / name}: damaged (")
        assert line.endswith("; download it again")
    assert "damaged" in refusal(folder / AUDIO)


def test_an_empty_sequence_is_refused(folder: Path) -> None:
    write(folder / AUDIO, "COVAREP", {})
    assert refusal(folder) == f"{folder / AUDIO}: it has no videos"


def damage(folder: Path, files: dict[str, tuple[str, Entries]], rng: random.Random) -> bool:
    """Something wrong in one of the files; returns whether its values may be others."""
    name = rng.choice(sorted(files))
    path, (root, entries) = folder / name, files[name]
    kind = rng.choice(["cut", "flip", "flip", "flip", "type", "swap"])
    video = rng.choice(sorted(entries))
    features, times = entries[video]
    if kind == "type":
        strange = [
            features.astype("S8"),
            np.ones(3),
            np.array(7),
            np.full((12, 2), b"x"),
            times[:1],
            np.ones((2, 2, 2)),
        ]
        entry = [features, times]
        entry[rng.randrange(2)] = rng.choice(strange)
        write(path, root, {**entries, video: tuple(entry)}, plain=True)
    elif kind == "swap":
        write(path, root, {**entries, video: rng.choice([(features.T, times), (features, times.T), (times, features)])})
    else:
        path.write_bytes(spoiled(path.read_bytes(), kind, rng, head=2000))
    return kind in ("flip", "type")


def test_damaged_files_are_refused_or_read_correctly(tmp_path: Path) -> None:
    files = made_up()
    folder = write_all(tmp_path / "own", files)
    whole = {name: (folder / name).read_bytes() for name in files}
    expected = aligned(files)

    def damage_one(rng: random.Random) -> bool:
        for name, content in whole.items():
            (folder / name).write_bytes(content)
        return damage(folder, files, rng)

    found = survivors(folder, damage_one, dataclasses.replace(OWN, non_finite="zero"))
    for others, table, _ in found:
        assert others or table.to_pylist() == expected
    assert 0 < len(found) < VARIANTS * 0.6


@pytest.fixture(scope="module")
def mosi() -> list[dict[str, Any]]:
    """Utterances of CMU-MOSI that have a row of audio for each word."""
    rows = pq.read_table(real_file("mosi/utterances.parquet")).to_pylist()
    return [row for row in rows if len(row["text"].split(" ")) == len(row["audio"]) and row["audio"][0][73] > 0]


def test_real_mosi_comes_back(tmp_path: Path, mosi: list[dict[str, Any]]) -> None:
    """Its words with their durations and pauses, one utterance after another; each word's audio twice, as two rows."""
    clock: dict[str, float] = {}
    words, labels, audio = ({row["video_id"]: ([], []) for row in mosi} for _ in range(3))
    expected = []
    for row in mosi:
        video, now = row["video_id"], clock.get(row["video_id"], 0.0)
        start = now
        for word, features in zip(row["text"].split(" "), row["audio"], strict=True):
            end, pause = now + max(features[73], 0.01), features[74]
            middle = (now + end) / 2
            words[video][0].append([word.lower().encode()])
            words[video][1].append([now, end])
            audio[video][0].extend([features] * 2)
            audio[video][1].extend([[now, middle], [middle, end]])
            if pause > 0:
                words[video][0].append([b"sp"])
                words[video][1].append([end, end + pause])
            now = end + max(pause, 0)
        expected.append((row["split"], f"{video}[{len(labels[video][0])}]", row["text"].lower(), row["label"]))
        labels[video][0].append([row["label"]])
        labels[video][1].append([start, now])
        clock[video] = now + 1
    for name, root, entries in (
        ("CMU_MOSI_TimestampedWords.csd", "words", words),
        ("CMU_MOSI_Opinion_Labels.csd", "Opinion Segment Labels", labels),
        ("CMU_MOSI_COVAREP.csd", "COVAREP", audio),
    ):
        write(
            tmp_path / name, root, {video: (np.array(one), np.array(other)) for video, (one, other) in entries.items()}
        )
    folds: dict[str, list[str]] = {split: [] for split in ("train", "valid", "test")}
    for row in mosi:
        if row["video_id"] not in folds[row["split"]]:
            folds[row["split"]].append(row["video_id"])
    write_folds(tmp_path, folds)
    table, info = import_source(tmp_path, ImportOptions(dataset="mosi"))
    found = zip(*(table[name].to_pylist() for name in ("split", "id", "text", "label")), strict=True)
    assert list(found) == expected
    assert table["audio"].to_pylist() == [row["audio"] for row in mosi]
    assert info.splits == {split: sum(row["split"] == split for row in mosi) for split in folds}
    assert (info.audio_dim, info.word_aligned, info.transcripts) == (75, True, "mixed")
