"""Damaged files of every format, each imported in a process whose memory and processor time are limited."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest
from data import fuzz

COUNT = int(os.environ.get("GRCF_TEST_FUZZ", "20"))
"""Damaged sets of files of each format; 300 for a search that is worth the name."""


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_whole_files_are_imported_and_damage_is_of_the_seed(name: str, tmp_path: Path) -> None:
    kind = fuzz.FORMATS[name]
    files = kind.files(random.Random(0))
    counts, _ = fuzz.imported(tmp_path / "whole", files, kind.options)
    assert counts["audio"] == counts["vision"] == sum(fuzz.SPLITS.values())
    assert fuzz.damaged(files, random.Random(1)) == fuzz.damaged(files, random.Random(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_damaged_files_are_refused_or_keep_their_modalities(name: str) -> None:
    outcomes = list(fuzz.run(COUNT, [name]))
    assert len(outcomes) == COUNT
    assert [one for one in outcomes if one[2] not in ("imported", "refused")] == []
    assert set(Counter(what for _, _, what, _ in outcomes)) == {"imported", "refused"}
