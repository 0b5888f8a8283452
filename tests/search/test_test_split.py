"""After the import, a search opens the test split only once validation has chosen the winner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import DataError

if TYPE_CHECKING:
    from tests.conftest import Recorded


def reads(files: tuple[str, ...], name: str) -> int:
    """How often a split was opened; predictions on it, of which the manifest has a checksum, have the same name."""
    return sum(Path(file).name == name and Path(file).parent.name != "predictions" for file in files)


def test_a_search_succeeds_with_the_test_file_gone_until_the_winner_is_fixed(recorded: Recorded) -> None:
    """The fixture took the file away before the command started, and put it back at WinnerFixed."""
    assert json.loads((recorded.folder / "run.json").read_text())["state"] == "finished"
    assert recorded.events.count("WinnerFixed") == 1
    fixed = recorded.events.index("WinnerFixed")
    assert set(recorded.events[fixed + 1 :]) == {"StepStarted"}


def test_without_the_file_the_final_look_fails(tmp_path: Path, recorded: Recorded) -> None:
    """So the search above cannot have done without it."""
    (tmp_path / "dataset.json").write_bytes((recorded.data / "dataset.json").read_bytes())
    with pytest.raises(DataError, match=r"test\.parquet cannot be read"):
        DatasetStore.open(tmp_path).read("test")


def test_no_open_of_the_test_file_before_the_winner_is_fixed(recorded: Recorded) -> None:
    fixed = recorded.opened.index("WinnerFixed")
    before, after = recorded.opened[:fixed], recorded.opened[fixed:]
    assert reads(before, "test.parquet") == 0
    # The hook sees what Python opens; the store hashes a split in Python each time that it reads it.
    assert reads(before, "train.parquet") > 0
    assert reads(before, "valid.parquet") > 0
    # Putting the file back opens it, as source and as target, and then the store reads it: once, for ridge and winner.
    assert reads(after, "test.parquet") == 3


def test_provenance_has_one_test_read_by_the_search(recorded: Recorded) -> None:
    (read,) = json.loads((recorded.folder / "best" / "provenance.json").read_text())["test_reads"]
    assert read["command"] == "search"
    assert read["argv"] == list(recorded.argv)
    assert read["time"]


def test_nothing_of_the_record_before_the_final_part_speaks_of_test(recorded: Recorded) -> None:
    for path in [*(recorded.folder / "stage1").rglob("*.json"), *(recorded.folder / "stage2").rglob("*.json")]:
        for epoch in json.loads(path.read_text())["curve"]:
            assert not [name for name in epoch if "test" in name], path
