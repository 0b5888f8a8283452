"""Whether an imported data set is whole, and whether it is what its fact sheet says."""

from __future__ import annotations

from typing import NamedTuple

from grcf_ray.data import datasets
from grcf_ray.data.schema import SPLITS, Source, split_sizes
from grcf_ray.data.store import DatasetStore


class Check(NamedTuple):
    """One thing that was looked at."""

    what: str
    expected: str
    found: str
    verdict: str
    """`ok`, `damaged` for a file that is not the one that was written, `differs` from the fact sheet, or `unknown`."""


def verify_store(store: DatasetStore) -> list[Check]:
    """Every split's file by its hash, then the sources, the splits' sizes and the widths by the fact sheet."""
    checks = [_file(store, split) for split in SPLITS]
    info = store.info
    if (facts := datasets.find(info.name)) is None:
        return checks
    for source in info.sources:
        known = facts.sha256.get(source.name)
        verdict = "unknown" if known is None else "ok" if known == source.sha256 else "differs"
        checks.append(Check(f"source {source.name}", (known or "-")[:12], source.sha256[:12], verdict))
    releases = [split_sizes(release) for release in facts.splits]
    here = split_sizes(info.splits)
    checks.append(Check("train/valid/test", " or ".join(releases), here, "ok" if here in releases else "differs"))
    for name, known_dim, dim in (
        ("audio", facts.audio_dim, info.audio_dim),
        ("vision", facts.vision_dim, info.vision_dim),
    ):
        if known_dim is not None or dim is not None:
            verdict = "ok" if known_dim == dim else "differs"
            checks.append(Check(f"{name} values a row", str(known_dim or "-"), str(dim or "-"), verdict))
    if facts.task != info.task:
        checks.append(Check("task", facts.task, info.task, "differs"))
    return checks


def _file(store: DatasetStore, split: str) -> Check:
    expected = store.files[split]
    try:
        found = Source.of(store.folder / expected.name)
    except OSError as error:
        return Check(expected.name, expected.sha256[:12], str(error.strerror), "damaged")
    verdict = "ok" if found == expected else "damaged"
    return Check(expected.name, expected.sha256[:12], found.sha256[:12], verdict)
