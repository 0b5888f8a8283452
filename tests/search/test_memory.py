"""Features exist once on a node: trials read them, and none has a copy of its own."""

from __future__ import annotations

import dataclasses
import gc
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grcf_ray.data.features import Features, Ragged, SplitFeatures
from grcf_ray.search.trial import Shared

ROWS, WIDTH = 1_000_000, 50
SIZE = ROWS * WIDTH * 4
ALLOWED = 0.2 * SIZE
"""Growth of a reader's private memory that passes; a copy would be all of it."""

needs_smaps = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="private memory is read from Linux's smaps_rollup"
)

# Memory that no other process shares, and a read of every page of an array.
MEASURE = """
def private():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(("Private_Clean", "Private_Dirty")))

def total(features):
    splits = (features.train, features.valid)
    parts = [part for split in splits for part in (split.tokens, split.audio, split.vision) if part is not None]
    arrays = [array for part in parts for array in (part.values, part.offsets)] + [split.label_N for split in splits]
    assert not any(array.flags.writeable for array in arrays)
    return float(sum(array.reshape(-1)[::256].sum(dtype="float64") for array in arrays))
"""


@pytest.fixture(scope="module")
def big_features(tiny_features: Features) -> Features:
    """The tiny data set with 200 MB of audio."""
    rows_RA = np.full((ROWS, WIDTH), 0.5, np.float32)
    offsets = np.linspace(0, ROWS, len(tiny_features.train) + 1).astype(np.int64)
    train: SplitFeatures = dataclasses.replace(tiny_features.train, audio=Ragged(rows_RA, offsets))
    return dataclasses.replace(tiny_features, train=train)


@needs_smaps
def test_a_trials_process_has_no_copy_of_the_features(ray_session: None, big_features: Features) -> None:
    """The way of the search: the driver puts the features in the object store, and trials get `Shared` with their
    reference."""
    import ray

    measure = MEASURE

    @ray.remote(num_cpus=1)
    class Reader:
        def read(self, references: list[Any]) -> tuple[int, float]:
            import grcf_ray.search.trial  # noqa: F401 - its own memory is not the features'

            names: dict[str, Any] = {}
            exec(measure, names)
            names["private"]()
            before = names["private"]()
            self.features = ray.get(ray.get(references[0]).features)
            summed = names["total"](self.features)
            return names["private"]() - before, summed

    reference = ray.put(Shared(ray.put(big_features), workers=1, resources={}, interfaces={}))
    reader = Reader.remote()
    try:
        growth, summed = ray.get(reader.read.remote([reference]))
    finally:
        ray.kill(reader)
    assert summed > ROWS * WIDTH / 256 * 0.5 * 0.99
    assert growth < ALLOWED


@needs_smaps
def test_a_copy_would_be_seen(big_features: Features) -> None:
    """The measure itself: an array of one's own is private."""
    names: dict[str, Any] = {}
    exec(MEASURE, names)
    # What earlier tests have left must not be freed in between.
    gc.collect()
    before = names["private"]()
    assert big_features.train.audio is not None
    # In new memory: a copy by malloc may lie in what earlier tests have freed, which is private already.
    copied = np.frombuffer(mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.float32)
    copied[:] = big_features.train.audio.values.reshape(-1)
    assert names["private"]() - before > 0.9 * SIZE
    assert copied.nbytes == SIZE
