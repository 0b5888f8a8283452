"""The winner: saved on its own in `best/`, then measured on the test split, which nothing has read until then."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grcf_ray._version import __version__
from grcf_ray.config import RunConfig, flatten
from grcf_ray.data.datasets import DatasetFacts
from grcf_ray.data.features import LABEL_DECIMALS, Features, build_split, lowercases
from grcf_ray.data.schema import split_sizes
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import DataError
from grcf_ray.metrics import MetricProtocol, split_metrics
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.search.baseline import ridge_metrics
from grcf_ray.search.lease import fence
from grcf_ray.search.record import RunRecord, TrialRecord, now
from grcf_ray.search.saved_model import open_model
from grcf_ray.search.schema import SCHEMA_VERSION, MetricsFile, ProvenanceFile, RunInfo, read_file
from grcf_ray.storage import StoragePath
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.checkpoint import load_weights
from grcf_ray.train.export import SavedModel, save_model
from grcf_ray.train.manifest import MANIFEST, extend_manifest, is_complete
from grcf_ray.train.stage import use_deterministic_torch

if TYPE_CHECKING:
    import pyarrow as pa

MEASURED = ("predictions/valid.parquet", "predictions/test.parquet", "metrics.json")
"""What a saved model is given when it is measured, beside what `save_model` writes."""


def export_winner(
    record: RunRecord,
    winner: TrialRecord,
    config: RunConfig,
    features: Features,
    store: DatasetStore,
    protocol: MetricProtocol,
    *,
    to: str = "best",
) -> StoragePath:
    """Write `best/`, or another folder of the run: the winner's model on its own, and where it comes from.

    DataError where the winner's checkpoint is gone: what the folder holds stays as it is then.
    """
    fence(record.place)
    place = record.at(to)
    if winner.checkpoint is None:
        raise DataError(f"{record}: {trial_name(winner)} has no checkpoint, of which {place} could be made")
    seen = select_modalities(features, config.model.modalities)
    model = initial_model(config.model, seen, seed=winner.seed)
    load_weights(record.at(winner.checkpoint), model, sha256=winner.checkpoint_sha256)
    # The figures of the model that was here before would be taken for this one's.
    for name in (MANIFEST, "metrics.json", "predictions", "README.md"):
        (place / name).delete()
    with place.writing_folder() as folder:
        save_model(
            folder,
            model,
            load_tokenizer(config.model.backbone) if config.model.sees_text else None,
            seen,
            config,
            label_range=store.info.label_range,
            protocol=protocol,
            lowercase=lowercases(store, config.features),
        )
    provenance = place / "provenance.json"
    # A search that was cut off after its look at test looks again; the first look stays on record.
    if provenance.exists():
        reads = read_file(provenance, ProvenanceFile)["test_reads"]
    else:
        reads = _lost_reads(record) if to == "best" else []
    provenance.write_json(
        {
            "schema_version": SCHEMA_VERSION,
            "trial": trial_name(winner),
            "params": winner.params,
            "seed": winner.seed,
            "settings": flatten(config),
            "data": {
                "name": store.info.name,
                "fingerprint": store.info.fingerprint,
                "sources": [dataclasses.asdict(source) for source in store.info.sources],
            },
            "versions": versions(),
            "test_reads": reads,
        },
    )
    return place


def trial_name(trial: TrialRecord) -> str:
    """A trial as commands name it, such as stage2/7."""
    return f"stage{trial.stage}/{trial.number}"


def measure(saved: SavedModel, table: pa.Table, *, threads: int, keep: StoragePath | None = None) -> dict[str, float]:
    """Metrics of a saved model on a split's rows, on the CPU in float32.

    The same threads on the same machine type give the same bits. keep: a Parquet file to be written of what the
    metrics were computed from, in the table's order: id, text, label, score, and the state before the head.
    """
    use_deterministic_torch(threads)
    low, high = saved.label_range
    label_N = np.round(table["label"].to_numpy().astype(np.float64), LABEL_DECIMALS)
    if keep is None:
        score_N = saved.score(table)
    else:
        score_N, state_ND = saved.describe(table)
        keep_predictions(keep, table, label_N, score_N, state_ND)
    return finite_metrics(
        split_metrics(
            score_N,
            label_N,
            protocol=saved.protocol,
            limit=(high - low) / 2,
            center=(low + high) / 2,
            ties=saved.config.metrics.ties,
        )
    )


def measure_winner(
    record: RunRecord,
    winner: TrialRecord,
    config: RunConfig,
    features: Features,
    store: DatasetStore,
    facts: DatasetFacts | None,
    protocol: MetricProtocol,
    *,
    step: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Read the test split, once; write `best/predictions/`, then write and return `best/metrics.json`.

    The manifest, with all of them in it, is written last. step: is told what is done after the winner has been
    measured.
    """
    place = record.place / "best"
    threads = available_threads()
    saved = open_model(place)
    note_test_read(place, "search", [trial_name(winner)])
    table = store.read("test")
    valid, test = (
        measure(saved, rows, threads=threads, keep=place / "predictions" / f"{split}.parquet")
        for split, rows in (("valid", store.read("valid")), ("test", table))
    )
    metrics = {
        "schema_version": SCHEMA_VERSION,
        "trial": trial_name(winner),
        "valid": valid,
        "test": test,
        "threads": threads,
        "paper": dict(facts.paper_results) if facts else {},
        "not_comparable": comparability(facts, config, store),
        "baselines": [],
    }
    if config.search.ridge_baseline:
        step("fitting the ridge baseline")
        metrics["baselines"] = [_ridge(features, table, store, config, protocol)]
    (place / "metrics.json").write_json(metrics)
    extend_manifest(place, MEASURED)
    return metrics


def measured(record: RunRecord, winner: str) -> bool:
    """Whether `best/` holds this trial, whole, and what it scores on test, so that nothing need be read again."""
    place = record.place / "best"
    try:
        trial = read_file(place / "metrics.json", MetricsFile)["trial"]
    except FileNotFoundError:
        return False
    return bool(trial == winner) and is_complete(place, ["metrics.json", "provenance.json"])


def note_test_read(place: StoragePath, command: str, models: Sequence[str]) -> None:
    """Append to the model's provenance that these models are about to be measured on the test split.

    DataError where the provenance is gone: test is not read then.
    """
    # A search that has lost its lease reads no test.
    fence(place)
    path = place / "provenance.json"
    try:
        provenance = read_file(path, ProvenanceFile)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: missing, and each reading of test is noted there; run the search's command again, which makes "
            f"{place.name} anew"
        ) from error
    read = {"time": now(), "command": command, "models": list(models), "argv": sys.argv[1:]}
    path.write_json({**provenance, "test_reads": [*provenance["test_reads"], read]})


def test_was_read(record: RunRecord) -> bool:
    """Whether the run has looked at the test split."""
    path = record.place / "best" / "provenance.json"
    return bool(read_file(path, ProvenanceFile)["test_reads"] if path.exists() else _lost_reads(record))


def _lost_reads(record: RunRecord) -> list[dict[str, Any]]:
    """The looks at test of a run whose `best/` is gone, as far as run.json knows: the winner is named after one."""
    info = record.info()
    if not isinstance(info, RunInfo) or info.winner is None:
        return []
    return [{"time": info.ended or "unknown", "command": "search, best/ lost since", "models": [info.winner]}]


def available_threads() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def comparability(facts: DatasetFacts | None, config: RunConfig, store: DatasetStore) -> list[str]:
    """Why the figures cannot stand beside the paper's; empty where nothing differs that is known to matter."""
    if facts is None or not facts.paper_results:
        return []
    reasons = []
    if store.info.task != facts.task:
        reasons.append(f"labels for {store.info.task} instead of {facts.task}")
    if not config.model.sees_text:
        reasons.append("no text")
    elif config.model.backbone.rpartition("/")[2] != (facts.paper_backbone or "").rpartition("/")[2]:
        reasons.append(f"backbone {config.model.backbone.rpartition('/')[2]}")
    for name, here, paper in (
        ("audio", store.info.audio_dim, facts.audio_dim),
        ("vision", store.info.vision_dim, facts.vision_dim),
    ):
        if paper and (here is None or not config.model.sees(name)):
            reasons.append(f"no {name}")
        elif paper and here != paper:
            reasons.append(f"{name} of {here} columns instead of {paper}")
    if dict(store.info.splits) != dict(facts.splits[0]):
        reasons.append(f"split of {split_sizes(store.info.splits)} instead of {split_sizes(facts.splits[0])}")
    return reasons


def versions() -> dict[str, str]:
    """What the numbers depend on, beyond the configuration."""
    packages = ("torch", "transformers", "ray", "optuna", "numpy", "pyarrow")
    own = {"grcf_ray": __version__, "python": platform.python_version(), "machine": platform.machine()}
    return own | _commit() | {package: version(package) for package in packages}


def _commit() -> dict[str, str]:
    """The commit that runs, where this is a checkout; `-dirty` where files of it have changed since."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return {}
    words = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    # No git here, or a folder that git takes for another user's.
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": done.stdout.strip()}


def finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are defined: JSON has no NaN, which a correlation of constant scores is."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def keep_predictions(
    place: StoragePath,
    table: pa.Table,
    label_N: NDArray[np.float64],
    score_N: NDArray[np.float64],
    state_ND: NDArray[np.float32],
) -> None:
    """Write what a model makes of a table's rows, in their order: id, text, label, score, z_final."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": table["id"],
        "text": table["text"],
        "label": pa.array(label_N.astype(np.float32)),
        "score": pa.array(score_N),
        "state": pa.FixedSizeListArray.from_arrays(pa.array(state_ND.reshape(-1)), state_ND.shape[1]),
    }
    with place.writing() as path:
        pq.write_table(pa.table(columns), path, write_page_checksum=True)


def _ridge(
    features: Features, table: pa.Table, store: DatasetStore, config: RunConfig, protocol: MetricProtocol
) -> dict[str, Any]:
    bare = dataclasses.replace(
        features,
        train=dataclasses.replace(features.train, hidden=None, vector_ND=None),
        valid=dataclasses.replace(features.valid, hidden=None, vector_ND=None),
    )
    test = build_split(
        table,
        load_tokenizer(config.model.backbone),
        config.features,
        center=features.center,
        lowercase=lowercases(store, config.features),
        standardisers=features.standardisers,
    )
    ridge = ridge_metrics(bare, test, config, protocol=protocol)
    return ridge | {split: finite_metrics(ridge[split]) for split in ("valid", "test")}
