"""Command `train`: train one configuration through both stages; several workers run under Ray."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from grcf_ray import console
from grcf_ray.cli import options

if TYPE_CHECKING:
    from grcf_ray.config import RunConfig, SearchConfig
    from grcf_ray.data.features import Features
    from grcf_ray.data.store import DatasetStore
    from grcf_ray.metrics import MetricProtocol
    from grcf_ray.storage import StoragePath
    from grcf_ray.train.distributed import WorkerGroup
    from grcf_ray.train.job import JobRunner, StageJob

app = console.make_app("Train one configuration through both stages")


@app.command()
def train(
    dataset: options.OptionalDataset = None,
    data: options.Data = None,
    label_range: options.LabelRange = None,
    space: Path | None = typer.Option(
        None, metavar="FILE", help="Search space; its starting point is trained [default: the shipped space for NAME]"
    ),
    set_: options.Settings = [],  # noqa: B006
    backbone: options.Backbone = None,
    ablation: str = typer.Option("full", metavar="NAME", help="Row of the paper's Table 3; see the list below"),
    out: Path | None = typer.Option(
        None, metavar="DIR", help="Folder of checkpoints; training resumes from those it holds [default: runs/train]"
    ),
    threads: int | None = typer.Option(
        None, metavar="N", help="Torch threads of a process [default: all CPUs, or those of a worker]"
    ),
    workers: int = typer.Option(1, metavar="W", min=1, help="Processes that train together; several run under Ray"),
    cpus_per_worker: int = typer.Option(1, metavar="C", min=1, help="CPUs of a worker, if there are several"),
    gpus_per_worker: float = typer.Option(
        0.0, metavar="G", min=0.0, help="GPUs of a worker, if there are several; with a fraction, workers share a GPU"
    ),
    from_: str | None = typer.Option(
        None, "--from", metavar="RUN", help="Run whose trial (--trial) to train again and compare with its record"
    ),
    trial: str | None = typer.Option(
        None, metavar="NAME", help="Trial to repeat: stage2/7, or seeds/stage2/0 for a retraining"
    ),
    print_model: bool = typer.Option(False, "--print-model", help="Print the parameter table and exit"),
    print_config: bool = typer.Option(False, "--print-config", help="Print the configuration as YAML and exit"),
) -> None:
    """Train one configuration through both stages, and print validation metrics after each epoch.

    The test split is not read. Run the same command again to resume.

    \b
    Examples:
      python -m grcf_ray.train --dataset demo
      python -m grcf_ray.train --dataset mosi --print-model
      python -m grcf_ray.train --dataset mosi --data mosi.parquet --set stage1.epochs=5
      python -m grcf_ray.train --dataset demo --ablation no-advantage --out runs/no-advantage
      python -m grcf_ray.train --dataset demo --workers 2 --set pairs.groups_per_step=2
      python -m grcf_ray.train --from runs/demo-all-MiniLM-L6-v2-seed42 --trial stage2/3

    \b
    Ablations: full, no-advantage, static-margin, no-stage1, no-stage2, direct-mae (MAE alone, no Stage 1).
    """
    from grcf_ray.config import ABLATIONS, build_config, check_read, flatten, nearest, parse_assignments, reads, to_yaml
    from grcf_ray.errors import ConfigError
    from grcf_ray.search.run_lookup import space_on

    if from_ is not None and trial is not None:
        conflicting = {
            "--dataset": dataset,
            "--label-range": label_range,
            "--space": space,
            "--set": set_,
            "--backbone": backbone,
            "--ablation": ablation != "full",
            "--threads": threads,
            "--workers": workers > 1,
            "--cpus-per-worker": cpus_per_worker > 1,
            "--gpus-per-worker": gpus_per_worker,
            "--print-model": print_model,
            "--print-config": print_config,
        }
        if given := [name for name, value in conflicting.items() if value]:
            raise ConfigError(f"--from repeats a trial with its recorded settings: leave out {', '.join(given)}")
        _replay(from_, trial, data, out)
        return
    if dataset is None or from_ is not None or trial is not None:
        raise ConfigError("give --dataset NAME to train a configuration, or --from RUN --trial NAME to repeat a trial")
    if ablation not in ABLATIONS:
        raise ConfigError(
            f"--ablation: unknown ablation {ablation!r}{nearest(ablation, list(ABLATIONS))} "
            f"(accepted: {', '.join(ABLATIONS)})"
        )
    start = flatten(space_on(dataset, space, data, label_range).config())
    asked = ({"model.backbone": backbone} if backbone else {}) | parse_assignments(set_)
    config = build_config({**start, **ABLATIONS[ablation], **asked})
    if print_config:
        console.say(to_yaml(config).rstrip("\n"))
    elif print_model:
        _print_model(config, dataset, data, label_range)
    else:
        # Workers do not change the results, so they are not among the settings that a folder of checkpoints is tied to.
        sharing = dataclasses.replace(
            config.search, workers=workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker
        )
        out = out or Path("runs/train")
        store = _ready(config, sharing, dataset, data, label_range, out)
        task = store.info.task
        check_read(task, parse_assignments(set_))
        if ablation != "full" and not any(reads(task, path) for path in ABLATIONS[ablation]):
            raise ConfigError(f"--ablation {ablation}: changes no setting that {task} uses. Choose another ablation")
        _train(config, sharing, store, out, threads)


def _replay(run: str, name: str, data: Path | None, out: Path | None) -> None:
    """Train a recorded trial again, up to its last epoch. GrcfError if a figure differs in any bit."""
    import tempfile

    from grcf_ray.errors import ConfigError, DataError, GrcfError, faults_message
    from grcf_ray.search.replay import epochs_to_repeat, find_trial, other_versions, replay_job, unlike
    from grcf_ray.search.run_lookup import encoder_of, recorded_store
    from grcf_ray.storage import storage_path
    from grcf_ray.train.assemble import prepare_features

    record, holder, trial = find_trial(run, name)
    if not trial.epoch and not trial.finished:
        raise DataError(f"{name} of {run} has no recorded epoch yet, so there is nothing to repeat")
    if out is not None and out.exists() and any(out.iterdir()):
        raise ConfigError(
            f"{out} is not empty, but a trial is repeated from its start. Give an empty folder: --out DIR"
        )
    store = recorded_store(record, data)
    with tempfile.TemporaryDirectory(prefix="grcf-replay-") as scratch:
        place = storage_path(out or Path(scratch) / "trial")
        job, config = replay_job(record, holder, trial, place)
        if config.search.workers > 1:
            _join_cluster(config, config.search, place)
        epochs = config.stage1.epochs if job.stage == 1 else config.stage2.epochs
        with _runner(prepare_features(store, config), config.search) as runner:
            runner.start(job)
            result: dict[str, Any] = {"epoch": 0, "done": False}
            while not result["done"] and result["epoch"] < max(1, epochs_to_repeat(trial)):
                result = runner.step()
                if "failure" not in result:
                    console.progress(_line(job.stage, epochs, result["curve"][-1]))
    if differences := unlike(trial, result):
        described = record.read_search()
        versions = other_versions(described["versions"])
        before, now = described.get("encoder"), encoder_of(config)
        if before and now and before != now:
            weights = f"{before['weights_sha256']} recorded, {now['weights_sha256']} now"
            versions.append(f"weights of {now['name']}: {weights}")
        raise GrcfError(
            faults_message(f"{name} of {run} did not reproduce:", differences)
            + "\n"
            + (faults_message("Versions that changed:", versions) if versions else "The versions are the same.")
        )
    if trial.error is not None:
        console.say(f"Recorded: {trial.state} in epoch {trial.epoch + 1}, {trial.cause}: {trial.error}")
        console.say(f"Now: {result.get('failure', 'it continued')}")
    epochs_again = f"{trial.epoch} epoch{'s' if trial.epoch != 1 else ''}"
    console.say(f"Reproduced: {name}, {trial.state}, {epochs_again}, every figure the same")


def _print_model(config: RunConfig, dataset: str, data: Path | None, label_range: tuple[float, float] | None) -> None:
    """Print the parameter table (Table 12). Needs no weights, and no data for a known data set."""
    import torch

    from grcf_ray.data import datasets
    from grcf_ray.data.store import find_data
    from grcf_ray.model.build import build_model, parameter_table
    from grcf_ray.model.text_encoder import backbone_config, backbone_from_config

    if data is not None:
        info = find_data(dataset, data, label_range).info
        task = info.task
        dims = {"audio": info.audio_dim, "vision": info.vision_dim}
    else:
        facts = datasets.get(dataset)
        task = facts.task
        dims = {"audio": facts.audio_dim, "vision": facts.vision_dim}
    dims = {name: dim if config.model.sees(name) else None for name, dim in dims.items()}
    with torch.device("meta"):
        described = backbone_config(config.model.backbone) if config.model.sees_text else None
        backbone = None if described is None else backbone_from_config(described)
        model = build_model(
            backbone, config.model, task=task, audio_dim=dims["audio"], vision_dim=dims["vision"], half_range=3.0
        )
    table = parameter_table(model)
    total = sum(count for _, count in table)
    console.print_table(
        ("component", "parameters"),
        [(name, f"{count:,}") for name, count in [*table, ("GRCF (total)", total)]],
    )


def _ready(
    config: RunConfig,
    sharing: SearchConfig,
    dataset: str,
    data: Path | None,
    label_range: tuple[float, float] | None,
    out: Path,
) -> DatasetStore:
    """Open the data, and check that the configuration can be trained on them."""
    from grcf_ray.config import check_margins
    from grcf_ray.data.store import find_data
    from grcf_ray.errors import ConfigError, faults_message
    from grcf_ray.storage import storage_path
    from grcf_ray.train.stage import choose_device

    store = find_data(dataset, data, label_range)
    for note in store.check_trainable():
        console.progress(f"Note: {note}")
    low, high = store.info.label_range
    if faults := check_margins(config, (high - low) / 2, store.info.task):
        raise ConfigError(faults_message("the settings contradict themselves", faults))
    if sharing.workers == 1:
        choose_device(config.train, granted=True)
    else:
        _join_cluster(config, sharing, storage_path(out))
    return store


def _join_cluster(config: RunConfig, sharing: SearchConfig, out: StoragePath) -> None:
    """Connect to Ray, and refuse workers that no node can hold: Ray would wait for them forever."""
    from grcf_ray.errors import ConfigError

    if sharing.workers > config.pairs.groups_per_step:
        raise ConfigError(
            f"--workers {sharing.workers}: a step has pairs.groups_per_step = {config.pairs.groups_per_step} groups, "
            f"at least one per worker. Use fewer workers, or more groups: --set pairs.groups_per_step={sharing.workers}"
        )
    if config.train.device == "cuda" and not sharing.gpus_per_worker:
        raise ConfigError("train.device = cuda, but the workers have no GPU. Give each worker one: --gpus-per-worker 1")

    from grcf_ray.cluster import connect

    from grcf_ray.search.nodes import check_nodes, cluster_nodes
    from grcf_ray.search.preflight import find_capacity

    connect()
    nodes, shared = cluster_nodes(), dataclasses.replace(config, search=sharing)
    find_capacity(nodes, shared, [1])
    check_nodes(nodes, shared, out, remedy="--out with a folder on a network disk")


def _train(config: RunConfig, sharing: SearchConfig, store: DatasetStore, out: Path, threads: int | None) -> None:
    """Train both stages, or their remaining epochs."""
    import os

    from grcf_ray.data import datasets
    from grcf_ray.storage import storage_path
    from grcf_ray.train.assemble import prepare_features, select_modalities

    features = prepare_features(store, config)
    select_modalities(features, config.model.modalities)
    _claim(out, config, store.info.fingerprint)
    jobs = _stage_jobs(
        config,
        datasets.protocol_of(store.info.name, store.info.task),
        storage_path(out),
        threads=threads or (sharing.cpus_per_worker if sharing.workers > 1 else os.cpu_count() or 1),
        gpu=sharing.workers == 1 or sharing.gpus_per_worker > 0,
    )
    with _runner(features, sharing) as runner:
        for job, epochs in jobs:
            _run(runner, job, epochs)
    console.say(f"checkpoints: {out}")


def _stage_jobs(
    config: RunConfig, protocol: MetricProtocol, out: StoragePath, *, threads: int, gpu: bool
) -> list[tuple[StageJob, int]]:
    """Return a job and its number of epochs for each stage that has any. Stage 2 starts from Stage 1's checkpoint."""
    from grcf_ray.config import flatten
    from grcf_ray.train.job import StageJob
    from grcf_ray.train.stage import stage_seed

    stages: list[tuple[Literal[1, 2], int]] = [(1, config.stage1.epochs), (2, config.stage2.epochs)]
    jobs, initial = [], None
    for stage, epochs in stages:
        if epochs:
            job = StageJob(
                stage=stage,
                seed=stage_seed(config.seed, stage),
                settings=flatten(config),
                protocol=protocol,
                folder=(out / f"stage{stage}").uri,
                initial=initial,
                initial_sha256=None,
                threads=threads,
                gpu=gpu,
            )
            jobs.append((job, epochs))
            initial = (out / f"stage{stage}" / f"{config.stage2.start}.safetensors").uri
    return jobs


@contextlib.contextmanager
def _runner(features: Features, sharing: SearchConfig) -> Iterator[JobRunner | WorkerGroup]:
    """Yield the runner of the jobs: this process, or workers that end with the context."""
    from grcf_ray.errors import GrcfError
    from grcf_ray.train.job import JobRunner

    if sharing.workers == 1:
        yield JobRunner(features)
        return

    from grcf_ray.train.distributed import WorkerGroup, WorkersDiedError, share
    from grcf_ray.train.interfaces import named_interfaces

    console.progress(f"Starting {sharing.workers} workers")
    group = WorkerGroup(
        share(features),
        workers=sharing.workers,
        resources=sharing.worker_resources,
        interfaces=named_interfaces(),
    )
    try:
        with contextlib.closing(group):
            yield group
    except WorkersDiedError as error:
        raise GrcfError(
            f"workers exited unexpectedly ({error}). Finished epochs are kept; resume with the same command"
        ) from error


def _run(runner: JobRunner | WorkerGroup, job: StageJob, epochs: int) -> None:
    """Train a stage's remaining epochs, print a line for each, then its best epoch. A known failure is raised."""
    from grcf_ray import errors
    from grcf_ray.storage import storage_path
    from grcf_ray.train.checkpoint import read_state

    folder, name = storage_path(job.folder), f"stage {job.stage}"
    if trained := _trained_epochs(folder):
        console.progress(f"{name}: resumes after epoch {trained}")
    runner.start(job)
    noted: list[str] = []
    done = False
    while not done:
        result = runner.step()
        for note in result["notes"][len(noted) :]:
            console.progress(f"{name}: {note}")
        noted, done = result["notes"], result["done"]
        if "failure" in result:
            raise getattr(errors, result["error"], errors.GrcfError)(result["failure"])
        # A stage that was finished before has no new epoch, unless its checkpoints turned out to be damaged.
        if result["epoch"] > trained or noted:
            console.progress(_line(job.stage, epochs, result["curve"][-1]))
    best = read_state(folder / "best.safetensors")["curve"][-1]
    console.say(f"{name}: best epoch {best['epoch']}, " + ", ".join(_figures(best)))


def _trained_epochs(folder: StoragePath) -> int:
    """Return the epochs of a stage's last checkpoint; 0 if it is missing or damaged."""
    from grcf_ray.errors import DataError
    from grcf_ray.train.checkpoint import read_state

    try:
        return int(read_state(folder / "last.safetensors")["epoch"])
    except DataError:
        return 0


def _claim(out: Path, config: RunConfig, fingerprint: str) -> None:
    """Write the configuration beside the checkpoints. ConfigError if they belong to another configuration."""
    import json

    from grcf_ray.config import flatten
    from grcf_ray.errors import ConfigError, faults_message
    from grcf_ray.files import write_json

    settings = {"data": fingerprint, **flatten(config)}
    path = out / "train.json"
    if path.exists():
        recorded = json.loads(path.read_text(encoding="utf-8"))
        changed = [f"{k}: {recorded.get(k)} -> {v}" for k, v in settings.items() if recorded.get(k) != v]
        if changed:
            raise ConfigError(
                faults_message(f"{out} holds checkpoints of other settings:", changed)
                + "\nGive another folder: --out DIR"
            )
    write_json(path, settings)


def _line(stage: int, epochs: int, metrics: dict[str, Any]) -> str:
    left = (epochs - metrics["epoch"]) * metrics["seconds"]
    loss = metrics["loss/total"]
    figures = "  ".join(_figures(metrics))
    return (
        f"stage {stage}  epoch {metrics['epoch']}/{epochs}  loss {loss:.4f}  {figures}  "
        f"{metrics['utterances_per_s']:.0f} utterances/s  ETA {left:.0f} s"
    )


def _figures(metrics: dict[str, Any]) -> list[str]:
    keys = (("PairwiseAcc", "valid/pairwise_acc"), ("MAE", "valid/mae"), ("Corr", "valid/corr"))
    return [f"{title} {metrics[key]:.4f}" for title, key in keys if metrics.get(key) is not None]
