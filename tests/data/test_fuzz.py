"""Damaged files of every format, each imported in a process whose memory and processor time are limited."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
from data import fuzz

COUNT = int(os.environ.get("GRCF_TEST_FUZZ", "20"))
"""Damaged sets of files of each format; 300 for a thorough search."""


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_damage_follows_from_the_seed(name: str) -> None:
    files = fuzz.FORMATS[name].files(random.Random(0))
    assert fuzz.damaged(files, random.Random(1)) == fuzz.damaged(files, random.Random(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_damaged_files_are_refused_or_keep_their_modalities(name: str) -> None:
    outcomes = list(fuzz.run(COUNT, [name]))
    assert len(outcomes) == COUNT
    assert [one for one in outcomes if one[2] not in ("imported", "refused")] == []
    assert set(Counter(what for _, _, what, _ in outcomes)) == {"imported", "refused"}
