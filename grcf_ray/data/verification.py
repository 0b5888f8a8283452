"""Verify that an imported data set is undamaged and agrees with its fact sheet."""

from __future__ import annotations

from typing import NamedTuple

from grcf_ray.data import datasets
from grcf_ray.data.schema import SPLITS, Source, split_sizes
from grcf_ray.data.store import DatasetStore


class Check(NamedTuple):
    """One comparison."""

    subject: str
    expected: str
    actual: str
    verdict: str
    """`ok`, `damaged` (the file changed since the import), `differs` (from the fact sheet) or `unknown`."""


def verify_store(store: DatasetStore) -> list[Check]:
    """Check the file of each split by its hash; then sources, split sizes and widths by the fact sheet."""
    checks = [_file(store, split) for split in SPLITS]
    info = store.info
    if (facts := datasets.find(info.name)) is None:
        return checks
    for source in info.sources:
        known = facts.sha256.get(source.name)
        verdict = "unknown" if known is None else "ok" if known == source.sha256 else "differs"
        checks.append(Check(f"source {source.name}", (known or "-")[:12], source.sha256[:12], verdict))
    releases = [split_sizes(release) for release in facts.splits]
    sizes = split_sizes(info.splits)
    checks.append(Check("train/valid/test", " or ".join(releases), sizes, "ok" if sizes in releases else "differs"))
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
        current = Source.of(store.folder / expected.name)
    except OSError as error:
        return Check(expected.name, expected.sha256[:12], str(error.strerror), "damaged")
    verdict = "ok" if current == expected else "damaged"
    return Check(expected.name, expected.sha256[:12], current.sha256[:12], verdict)
