"""Save the winner in `best/`, then measure it on the test split, which nothing has read before.

The other members of the ensemble are saved too, and measured in the same reading of test. Nothing is chosen by it. The
finalists' predictions on the valid split are saved for the report.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from grcf_ray import console
from grcf_ray._version import __version__
from grcf_ray.config import ModelConfig, RunConfig, flatten, short_name
from grcf_ray.data import datasets
from grcf_ray.data.features import SplitFeatures, build_split, lowercases
from grcf_ray.data.schema import labels_of, split_sizes
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import DamagedError, DataError
from grcf_ray.metrics import finite_metrics, split_metrics
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.model.text_encoder import TextEncoder
from grcf_ray.search.ensemble import ensemble_metrics, member_places
from grcf_ray.search.events import StepStarted
from grcf_ray.search.lease import fence
from grcf_ray.search.predictions import keep_predictions
from grcf_ray.search.record import RunRecord, TrialRecord, now
from grcf_ray.search.saved_model import open_model
from grcf_ray.search.schema import SCHEMA_VERSION, MetricsFile, ProvenanceFile, RunInfo, read_file
from grcf_ray.storage import StoragePath
from grcf_ray.train.assemble import initial_model, pretrained_backbone, select_modalities, text_vectors
from grcf_ray.train.checkpoint import load_weights
from grcf_ray.train.curve import objective_name
from grcf_ray.train.export import SavedModel, save_model
from grcf_ray.train.manifest import MANIFEST, extend_manifest, is_complete
from grcf_ray.train.stage import predict, use_deterministic_torch

if TYPE_CHECKING:
    import pyarrow as pa

    from grcf_ray.search.stages import Search

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-3, 3, 13))
MEASURED = ("predictions/valid.parquet", "predictions/test.parquet", "metrics.json")
"""Files that measuring adds to the files of `save_model`."""


def export_winner(job: Search, winner: TrialRecord, store: DatasetStore, *, to: str = "best") -> None:
    """Write the winner's model and its provenance to `best/` or another folder of the run.

    Raises DataError and leaves the folder unchanged if the winner's checkpoint is missing.
    """
    record, config = job.record, job.config_of(winner)
    fence(record.place)
    place = record.at(to)
    if winner.checkpoint is None:
        raise DataError(f"{record}: {winner.name} has no checkpoint, so {place} cannot be written")
    seen = select_modalities(job.features, config.model.modalities)
    model = initial_model(config.model, seen, seed=winner.seed)
    load_weights(record.at(winner.checkpoint), model, sha256=winner.checkpoint_sha256)
    # Otherwise the former model's metrics would seem to belong to this model.
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
            protocol=job.protocol,
            lowercase=lowercases(store, config.features),
        )
    provenance = place / "provenance.json"
    # A search that was interrupted after it read test reads test again; both reads stay on record.
    if provenance.exists():
        reads = read_file(provenance, ProvenanceFile)["test_reads"]
    else:
        reads = _lost_reads(record) if to == "best" else []
    provenance.write_json(
        {
            "schema_version": SCHEMA_VERSION,
            "trial": winner.name,
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


def export_members(job: Search, members: Sequence[TrialRecord], store: DatasetStore) -> list[TrialRecord]:
    """Write the models of the ensemble, the winner's to `best/`; return the members whose weights are intact.

    Raises DataError if the winner's are not.
    """
    record = job.record
    export_winner(job, members[0], store)
    fence(record.place)
    (record.place / "ensemble").delete()
    intact, places = [members[0]], member_places(record, [trial.name for trial in members])
    for trial, place in zip(members[1:], places[1:], strict=True):
        try:
            export_winner(job, trial, store, to=record.relative(place))
        except DamagedError as error:
            console.progress(f"Leaving {trial.name} out of the ensemble: {error}")
            trial.notes.append(str(error))
            trial.checkpoint = trial.checkpoint_sha256 = None
            record.write_trial(trial)
        else:
            intact.append(trial)
    return intact


def keep_finalists(job: Search, store: DatasetStore) -> None:
    """Write `finalists/0007/predictions/valid.parquet` for each finalist without one, in the format of `best/`.

    Skips a finalist with damaged weights and prints its name.
    """
    record = job.record
    for number in record.info().finalists:
        folder = record.finalist_folder(int(number))
        place = folder / "predictions" / "valid.parquet"
        if place.exists():
            continue
        trial = record.trial(1, int(number))
        config = job.config_of(trial)
        seen = select_modalities(job.features, config.model.modalities)
        model = initial_model(config.model, seen, seed=trial.seed)
        try:
            load_weights(folder / "model.safetensors", model, sha256=record.read_finalist(int(number))["sha256"])
        except DamagedError as error:
            console.progress(f"Skipping the predictions of finalist {trial.name}: {error}")
            continue
        state_ND = np.empty((len(seen.valid), model.width), np.float32)
        score_N = predict(
            model,
            seen,
            seen.valid,
            device=torch.device("cpu"),
            token_budget=config.pairs.micro_batch_tokens,
            state_ND=state_ND,
        )
        table = store.read("valid")
        label_N = labels_of(table)
        center = 0.0 if seen.task == "classification" else seen.center
        keep_predictions(place, table, label_N, score_N + center, state_ND)


def measure_model(place: StoragePath, tables: Mapping[str, pa.Table], *, threads: int) -> None:
    """Write the predictions and `metrics.json` of a saved model that is not the winner. tables: valid and test."""
    metrics = _keep_measured(place, open_model(place), tables, threads=threads)
    (place / "metrics.json").write_json({"schema_version": SCHEMA_VERSION, **metrics})
    extend_manifest(place, MEASURED)


def _keep_measured(
    place: StoragePath, saved: SavedModel, tables: Mapping[str, pa.Table], *, threads: int
) -> dict[str, dict[str, float]]:
    """Write the predictions of a saved model on splits, and return its metrics by split.

    Both are computed on the CPU in float32. The same number of threads on the same machine type gives bit-identical
    metrics.
    """
    use_deterministic_torch(threads)
    metrics = {}
    for split, table in tables.items():
        label_N = labels_of(table)
        score_N, state_ND = saved.describe(table)
        keep_predictions(place / "predictions" / f"{split}.parquet", table, label_N, score_N, state_ND)
        metrics[split] = saved.metrics(score_N, label_N)
    return metrics


def measure_winner(job: Search, members: Sequence[TrialRecord], store: DatasetStore) -> dict[str, Any]:
    """Read the test split, once, for all members of the ensemble, the winner first.

    Write the predictions and `metrics.json` of each model, those of `best/` last, and return the latter.
    """
    names = [trial.name for trial in members]
    place, config = job.record.place / "best", job.config_of(members[0])
    threads = available_threads()
    note_test_read(place, "search", names)
    tables = {split: store.read(split) for split in ("valid", "test")}
    places = member_places(job.record, names)
    for other in places[1:]:
        measure_model(other, tables, threads=threads)
    saved = open_model(place)
    metrics = {
        "schema_version": SCHEMA_VERSION,
        "trial": names[0],
        **_keep_measured(place, saved, tables, threads=threads),
        **({"ensemble": {"members": names, **ensemble_metrics(saved, places)}} if len(names) > 1 else {}),
        "threads": threads,
        "paper": dict(printed_results(config, store)),
        "not_comparable": comparability(config, store),
        "baselines": [],
    }
    if config.search.ridge_baseline:
        job.tell(StepStarted("fitting the ridge baseline"))
        metrics["baselines"] = [_linear_baseline(job, tables["test"], store, config)]
    (place / "metrics.json").write_json(metrics)
    extend_manifest(place, MEASURED)
    return metrics


def measured(record: RunRecord) -> list[str]:
    """Return the measured members of the ensemble, or the winner alone; empty if `best/` is missing or incomplete."""
    place = record.place / "best"
    try:
        metrics = read_file(place / "metrics.json", MetricsFile)
    except FileNotFoundError:
        return []
    members = metrics["ensemble"]["members"] if metrics.get("ensemble") else [metrics["trial"]]
    return members if is_complete(place, ["metrics.json", "provenance.json"]) else []


def note_test_read(place: StoragePath, command: str, models: Sequence[str]) -> None:
    """Note in the provenance that these models are about to be measured on the test split.

    Raises DataError if the provenance is missing, so that test is not read.
    """
    # A search that has lost its lease must not read test.
    fence(place)
    path = place / "provenance.json"
    try:
        provenance = read_file(path, ProvenanceFile)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: missing, and each reading of test is noted there; repeat the search's command, which writes "
            f"{place.name} again"
        ) from error
    read = {"time": now(), "command": command, "models": list(models), "argv": sys.argv[1:]}
    path.write_json({**provenance, "test_reads": [*provenance["test_reads"], read]})


def test_was_read(record: RunRecord) -> bool:
    """Return whether the run has read the test split."""
    path = record.place / "best" / "provenance.json"
    return bool(read_file(path, ProvenanceFile)["test_reads"] if path.exists() else _lost_reads(record))


def _lost_reads(record: RunRecord) -> list[dict[str, Any]]:
    """Return the known readings of test of a run without `best/`: run.json names the winner only after one."""
    info = record.info()
    if not isinstance(info, RunInfo) or info.winner is None:
        return []
    return [{"time": info.ended or "unknown", "command": "search, best/ lost since", "models": [info.winner]}]


def available_threads() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def printed_results(config: RunConfig, store: DatasetStore) -> Mapping[str, float]:
    """Return the paper's figures of GRCF on a data set (Tables 1 and 2).

    {} for another model, or if the paper has none of the data set for this task.
    """
    facts = datasets.find(store.info.name)
    known = facts and facts.task == store.info.task and config.model.name == ModelConfig.name
    return facts.paper_results if facts and known else {}


def comparability(config: RunConfig, store: DatasetStore) -> list[str]:
    """Return the reasons why the metrics are not comparable with the paper's; empty if none is known."""
    facts = datasets.find(store.info.name)
    if facts is None or not facts.paper_results:
        return []
    reasons = []
    if store.info.task != facts.task:
        reasons.append(f"labels for {store.info.task} instead of {facts.task}")
    if not config.model.sees_text:
        reasons.append("no text")
    elif short_name(config.model.backbone) != short_name(facts.paper_backbone or ""):
        reasons.append(f"backbone {short_name(config.model.backbone)}")
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
    """Return the versions that results depend on, besides the configuration."""
    packages = ("torch", "transformers", "ray", "optuna", "numpy", "pyarrow")
    base = {"grcf_ray": __version__, "python": platform.python_version(), "machine": platform.machine()}
    return base | _commit() | {package: version(package) for package in packages}


def _commit() -> dict[str, str]:
    """Return the commit of a checkout, with `-dirty` if its files have changed; empty for an installed package."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return {}
    words = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    # git is not installed, or refuses a folder of another user.
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": done.stdout.strip()}


def _linear_baseline(job: Search, table: pa.Table, store: DatasetStore, config: RunConfig) -> dict[str, Any]:
    """Return metrics of ridge regression on the pretrained encoder's text vectors, with alpha chosen by validation MAE.

    For classification: logistic regression with the same penalty, alpha chosen by validation BCE. table: the test rows.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    # Without frozen hidden states, the whole encoder computes the vectors.
    train, valid = (
        dataclasses.replace(split, hidden=None, vector_ND=None) for split in (job.features.train, job.features.valid)
    )
    features = dataclasses.replace(job.features, train=train, valid=valid)
    test = build_split(
        table,
        load_tokenizer(config.model.backbone),
        config.features,
        center=features.center,
        lowercase=lowercases(store, config.features),
        standardisers=features.standardisers,
    )
    encoder = TextEncoder(
        copy.deepcopy(pretrained_backbone(config.model.backbone)), config.model.text_vector, "all"
    ).eval()
    # Sentence vectors are nearly collinear, so float32 is too coarse for the small alphas.
    train_ND, valid_ND, test_ND = (
        text_vectors(features, split, encoder).astype(np.float64) for split in (train, valid, test)
    )
    classes = features.task == "classification"
    if classes:
        fits = [LogisticRegression(C=1 / alpha, max_iter=1000).fit(train_ND, train.label_N > 0) for alpha in ALPHAS]
        scores = [fit.decision_function for fit in fits]
    else:
        scores = [Ridge(alpha=alpha).fit(train_ND, train.label_N).predict for alpha in ALPHAS]

    def metrics(score: Any, vector_ND: NDArray[np.float64], split: SplitFeatures) -> dict[str, float]:
        return finite_metrics(
            split_metrics(
                score(vector_ND),
                split.label_N,
                protocol=job.protocol,
                limit=features.half_range,
                origin=features.center,
                ties=config.metrics.ties,
            )
        )

    figures = [metrics(score, valid_ND, valid) for score in scores]
    best = int(np.argmin([entry[objective_name(2, features.task)] for entry in figures]))
    return {
        "name": f"{'logistic' if classes else 'ridge'} regression on the frozen text vectors",
        "alpha": ALPHAS[best],
        "valid": figures[best],
        "test": metrics(scores[best], test_ND, test),
    }
