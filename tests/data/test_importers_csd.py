"""Folders of the CMU-MultimodalSDK: alignment against a plain loop, roles, folds, and folds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data.csd_files import AUDIO, FOLDS, LABELS, VISION, WORDS, aligned, made_up, spans, write_all, write_folds
from data.foreign import OWN, refusal

from grcf_ray.data.importers import csd, find_importer, import_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "own", made_up())


@pytest.mark.parametrize("plain", [False, True])
def test_sequences_are_aligned_to_words_and_labels(tmp_path: Path, plain: bool) -> None:
    source = write_all(tmp_path / "own", made_up(), plain=plain)
    table, info = import_source(source, OWN)
    assert table.to_pylist() == aligned(made_up())
    assert table["text"].to_pylist()[:3] == ["so it was", "good not at", "all then end"]
    assert table["vision"].null_count == 3
    assert (info.audio_dim, info.vision_dim, info.word_aligned) == (5, 3, True)
    assert info.splits == {"train": 6, "valid": 3, "test": 3}
    assert [item.name for item in info.sources] == [LABELS, WORDS, AUDIO, VISION, "folds.json"]
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
def test_words_of_any_form(tmp_path: Path, form: Callable[[Any], Any]) -> None:
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
    result = import_source(write_all(tmp_path / "own", files), OWN)[0].to_pylist()[:3]
    files[WORDS][1]["v0"] = (words, when)
    assert result == aligned(files)[:3]


def test_a_word_with_a_space_is_several_words(tmp_path: Path) -> None:
    files = made_up()
    words = files[WORDS][1]["v0"][0].astype("S20")
    words[0], words[1], words[3] = b"so  very", b" ", "\xfcn\xef".encode()
    # Aligners write these for a pause and for no word.
    words[2], words[5], words[9] = b" sp ", b"NW", b"NW sp"
    files[WORDS][1]["v0"] = (words, files[WORDS][1]["v0"][1])
    table, _ = import_source(write_all(tmp_path / "own", files), OWN)
    assert table["text"].to_pylist()[:3] == ["so very ünï", "good not at", "all then end"]
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


def test_text_alone_is_enough(tmp_path: Path) -> None:
    files = made_up()
    table, info = import_source(write_all(tmp_path / "own", {name: files[name] for name in (WORDS, LABELS)}), OWN)
    assert table.column_names == ["id", "split", "text", "label"]
    assert (info.audio_dim, info.vision_dim) == (None, None)


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
    folds = {"train": ["v0", "x1", "v0"], "dev": ["v2", "x2"], "test": ["v3"], "other": ["v1"]}
    (folder / "folds.json").write_text(json.dumps(folds), encoding="utf-8-sig")
    table, info = import_source(folder, OWN)
    assert info.splits == {"train": 3, "valid": 3, "test": 3}
    assert "1 video ('v1') with labels in no fold, left out" in info.notes
    assert "2 videos ('x1', 'x2') of the folds without labels" in info.notes
    assert "v1[0]" not in table["id"].to_pylist()
