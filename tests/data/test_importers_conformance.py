"""The guarantees of every importer; each format has another test file for its special cases."""

from __future__ import annotations

import os
import pickle
import random
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from data.foreign import DOWNLOADS, SPLITS, faults, real_file, refusal
from data.formats import FILLERS, FORMATS, Format, Utterance, check, imported, put_files
from data.fuzz import limited_memory, outcome

from grcf_ray import console
from grcf_ray.data.importers import ImportOptions, formats, import_source
from grcf_ray.data.importers import table as table_importer

VARIANTS = int(os.environ.get("GRCF_TEST_FUZZ", "40"))
"""Damaged sets of files of each format; 300 for a thorough search."""
MOST_SECONDS = 20
SEVERAL_FILES = ["misa", "mustard", "ur_funny"]
NAMED_BY_SUFFIX = ["misa", "csv", "semicolons", "tsv", "jsonl"]
PICKLES = ["mag", "misa", "mmsa", "hkt", "ur_funny", "mustard"]

each_format = pytest.mark.parametrize("name", FORMATS)


def put(folder: Path, kind: Format, utterances: list[Utterance] | None = None, seed: int = 0) -> Path:
    return put_files(folder, kind.write(random.Random(seed), utterances or kind.utterances()))


@each_format
@pytest.mark.parametrize("seed", range(4))
def test_utterances_come_back_however_they_are_written(name: str, seed: int, tmp_path: Path) -> None:
    kind = FORMATS[name]
    folder = put(tmp_path / "own", kind, seed=seed)
    assert [importer for importer, module in formats().items() if module.files(folder)] == [kind.importer]
    table, info = imported(folder, kind)
    check(table, kind, kind.utterances())
    assert (info.audio_dim, info.vision_dim) == kind.widths
    assert sorted(source.name for source in info.sources) == sorted(path.name for path in folder.iterdir())
    assert info.word_aligned == (name in ("mag", "misa", "csd"))
    if name != "mustard":
        assert info.splits == {"train": 4, "valid": 2, "test": 2}


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"mmsa", "mustard"}))
def test_a_long_import_tells_its_progress(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the other two formats, the pickle's reader tells it."""
    monkeypatch.setattr(console, "_QUIET_S", 0)
    monkeypatch.setattr(table_importer, "_ROWS_AT_A_TIME", 3)
    imported(put(tmp_path / "own", FORMATS[name]), FORMATS[name])
    lines = capsys.readouterr().err.splitlines()
    assert any(re.search(r"  (parsing samples|aligning videos|reading rows)[^/]*\d/\d+  ETA ", line) for line in lines)


@pytest.fixture(scope="module")
def mosi() -> list[dict[str, Any]]:
    """Utterances of CMU-MOSI that have a row of audio for each word."""
    rows = pq.read_table(real_file("mosi/utterances.parquet")).to_pylist()
    return [row for row in rows if len(row["text"].split(" ")) == len(row["audio"])]


@each_format
def test_real_utterances_come_back(name: str, mosi: list[dict[str, Any]], tmp_path: Path) -> None:
    """With features made of their audio."""
    kind = FORMATS[name]
    utterances = []
    for alias, split in SPLITS.items():
        for row in [row for row in mosi if row["split"] == split][:40]:
            words = row["text"].split(" ")
            # No row of zeros, which may count as padding.
            audio, vision = (1 + np.resize(np.float32(row["audio"]), (len(words), width)) for width in kind.widths)
            label = float(row["label"] > 0) if kind.options.task else row["label"]
            utterances.append(Utterance(alias, f"{row['id']}[0]", words, label, audio, vision))
    table, info = imported(put(tmp_path / "own", kind, utterances), kind)
    check(table, kind, utterances)
    assert info.transcripts == ("mixed" if name == "mustard" else "upper")


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in NAMED_BY_SUFFIX])
def test_files_are_known_by_their_content(name: str, tmp_path: Path) -> None:
    kind = FORMATS[name]
    folder = put(tmp_path / "own", kind)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{9 - number}.download")
    if name in ("parquet", "arrow"):
        # A folder's tables are known by their suffix.
        folder = next(folder.iterdir())
    check(imported(folder, kind)[0], kind, kind.utterances())


@pytest.mark.parametrize("name", SEVERAL_FILES)
def test_a_file_stands_for_its_folder(name: str, tmp_path: Path) -> None:
    kind = FORMATS[name]
    folder = put(tmp_path / "own", kind)
    table, info = import_source(folder, kind.options)
    for path in folder.iterdir():
        assert formats()[kind.importer].files(path) == formats()[kind.importer].files(folder)
        alone, other = import_source(path, kind.options)
        assert alone.equals(table)
        assert other.notes == info.notes


@pytest.mark.parametrize("name", ["mag", "mmsa", "hkt"])
def test_one_of_several_files_must_be_named(name: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "own", FORMATS[name])
    (path,) = folder.iterdir()
    (folder / "second.pkl").write_bytes(path.read_bytes())
    message = refusal(folder, FORMATS[name].options)
    assert path.name in message and "second.pkl" in message
    check(imported(path, FORMATS[name])[0], FORMATS[name], FORMATS[name].utterances())


@each_format
def test_failed_downloads_are_named(name: str, tmp_path: Path) -> None:
    kind = FORMATS[name]
    files = kind.files(random.Random(0))
    for file in files:
        for problem, content in DOWNLOADS.items():
            folder = put_files(tmp_path / "own", {**files, file: content})
            assert f"{folder / file}: {problem}" in refusal(folder, kind.options)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("csv", "semicolons", "tsv")])
def test_files_cut_short_are_named_at_once(name: str, tmp_path: Path) -> None:
    kind = FORMATS[name]
    files = kind.files(random.Random(0))
    for file, content in files.items():
        folder = put_files(tmp_path / "own", {**files, file: content[:-10]})
        assert str(folder / file) in refusal(folder, kind.options)


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_would_run_code_is_refused(name: str, tmp_path: Path) -> None:
    kind = FORMATS[name]
    files = kind.files(random.Random(0))
    for file in [file for file in files if file.endswith((".pkl", ".p"))]:
        # Drop the value, and ask for a function.
        folder = put_files(tmp_path / "own", {**files, file: files[file][:-1] + b"0cos\ngetcwd\n."})
        message = refusal(folder, kind.options)
        assert f"{folder / file}: refused" in message and "os.getcwd" in message


@each_format
def test_bad_labels_are_named_by_their_rows(name: str, tmp_path: Path) -> None:
    kind = FORMATS[name]
    utterances = kind.utterances()
    utterances[1] = replace(utterances[1], label=None)
    utterances[6] = replace(utterances[6], label=99)
    result = faults(refusal(put(tmp_path / "own", kind, utterances), kind.options))
    assert len(result) == 2
    for line, utterance in zip(result, (utterances[1], utterances[6]), strict=True):
        assert f"(id {utterance.id})" in line and ("label" in line or "sarcasm" in line)
    assert "missing" in result[0] and "99" in result[1]


@each_format
def test_non_finite_values_are_named_or_set_to_zero(name: str, tmp_path: Path) -> None:
    kind = FORMATS[name]
    utterances = kind.utterances()
    utterances[1].audio[:2, 0] = [-np.inf, np.nan]
    utterances[4].vision[0, 1:] = np.inf
    folder = put(tmp_path / "own", kind, utterances)
    message = refusal(folder, replace(kind.options, non_finite="fail"))
    assert f"(id {utterances[1].id}): audio has 2 non-finite values" in message
    assert f"(id {utterances[4].id}): vision has {kind.widths[1] - 1} non-finite values" in message
    assert message.endswith("--non-finite zero")
    table, info = imported(folder, kind)
    utterances[1].audio[:2, 0] = utterances[4].vision[0, 1:] = 0
    check(table, kind, utterances)
    assert "audio: 2 non-finite values set to 0" in info.notes


@each_format
def test_a_modality_may_be_missing(name: str, tmp_path: Path) -> None:
    """It is null if one utterance lacks it, and has no column if all do."""
    kind = FORMATS[name]
    utterances = kind.utterances()
    utterances[1] = replace(utterances[1], vision=None)
    utterances[4] = replace(utterances[4], audio=None)
    table, info = imported(put(tmp_path / "own", kind, utterances), kind)
    check(table, kind, utterances)
    for modality in ("audio", "vision"):
        missing = 1 + FILLERS * (name == "mustard")
        assert any(note.startswith(f"{modality}: {missing} of ") and "have none" in note for note in info.notes)
    utterances = [replace(utterance, vision=None) for utterance in utterances]
    table, info = imported(put(tmp_path / "without", kind, utterances), kind)
    assert "vision" not in table.column_names
    check(table, kind, utterances)
    assert (info.audio_dim, info.vision_dim) == (kind.widths[0], None)


@each_format
def test_a_missing_valid_split_is_drawn(name: str, tmp_path: Path) -> None:
    kind = FORMATS[name]
    utterances = kind.utterances({"train": 200, "test": 4})
    table, info = imported(put(tmp_path / "own", kind, utterances), kind)
    assert any(note.startswith("no valid split given") for note in info.notes)
    assert sum(info.splits.values()) == len(utterances) + FILLERS * (name == "mustard")
    assert 20 <= info.splits["valid"] <= 60
    assert table["id"].to_pylist() == [utterance.id for utterance in utterances]
    few = kind.utterances({"train": 12, "test": 6})
    if name != "mustard":
        assert "enough to draw" in refusal(put(tmp_path / "few", kind, few), kind.options)


@pytest.mark.parametrize("importer", formats())
def test_a_forced_format_that_does_not_fit(importer: str, tmp_path: Path) -> None:
    options = ImportOptions(dataset="own", label_range=(0, 1), format=importer)
    folder = put_files(tmp_path / "own", {"some.data": b"no,data,at,all\n"})
    for source in (folder, folder / "some.data"):
        assert refusal(source, options).startswith(str(source))


NEAR_MISSES: dict[str, Any] = {
    "numbers": {"train": [1, 2], "dev": [3], "test": [4]},
    "ids": {"train": ["a"], "dev": ["b"], "test": ["c"]},
    "lists": {"train": [["a"], ["b"]], "test": [["c"]]},
    "arrays": {"train": [np.ones((2, 3)), np.ones((2, 3))]},
    "no list": {"train": 1, "dev": []},
    "features alone": {"a": {"punchline_features": np.ones((2, 3))}},
    "indices": [[[0], [1]]],
    "vectors": {"the": np.ones(3), "so": np.ones(3)},
    "a vocabulary": {"the": 1, "so": 2},
    "words": {"so": [1, 2], "it": [3]},
    "nested": {1: {"so": 1}},
    "labels alone": {5: 1, 6: 0},
    "a text": "id,split",
}


@pytest.mark.parametrize("kind", NEAR_MISSES)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_of_something_else_is_of_no_format(kind: str, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(NEAR_MISSES[kind], protocol))
    if kind == "features alone":
        assert formats()["ur_funny"].files(path)
    else:
        assert [name for name, importer in formats().items() if importer.files(path)] == []


@each_format
def test_damaged_files_are_refused_or_read_correctly(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # One import first, so that memory of libraries does not count as memory of a file.
    assert outcome(name, 0, tmp_path) == outcome(name, 0, tmp_path)
    outcomes: dict[str, list[str]] = {}
    for seed in range(VARIANTS):
        start = time.process_time()
        with limited_memory():
            state, details = outcome(name, seed, tmp_path)
        outcomes.setdefault(state, []).append(f"{seed}: {details}")
        assert time.process_time() - start < MOST_SECONDS, seed
    accepted, refused = outcomes.pop("imported"), outcomes.pop("refused")
    assert outcomes == {}
    assert 0 < len(accepted) < len(refused) * 2
    assert capfd.readouterr() == ("", "")
