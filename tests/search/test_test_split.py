"""After the import, a search opens the test split only once validation has chosen the winner.

The fixture `recorded` takes the file away before the command starts, and puts it back at WinnerFixed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Recorded


def reads(files: tuple[str, ...], name: str) -> int:
    """How often a split was opened; predictions on it, of which the manifest has a checksum, have the same name."""
    return sum(Path(file).name == name and Path(file).parent.name != "predictions" for file in files)


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
