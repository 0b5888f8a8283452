"""Training of one configuration: what `grcf train` does, as a function."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from grcf_ray import console, errors
from grcf_ray.config import (
    ABLATIONS,
    build_config,
    check_gpus,
    check_margins,
    check_read,
    flatten,
    nearest,
    reads,
    recorded_settings,
)
from grcf_ray.data import datasets
from grcf_ray.data.store import DatasetStore, find_data, resolve_data
from grcf_ray.errors import ConfigError, GrcfError, faults_message
from grcf_ray.files import write_json
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.search.model_space import model_space
from grcf_ray.search.run_lookup import FREE, space_on
from grcf_ray.search.space import stage_epochs
from grcf_ray.storage import storage_path
from grcf_ray.train.assemble import prepare_features, select_modalities
from grcf_ray.train.job import JobRunner, StageJob
from grcf_ray.train.precision import precision_here
from grcf_ray.train.resuming import find_best
from grcf_ray.train.stage import choose_device, stage_seed
from grcf_ray.train.stages import train_stages

if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from grcf_ray.settings import RunConfig, SearchConfig
    from grcf_ray.storage import StoragePath
    from grcf_ray.train.distributed import WorkerGroup


@dataclasses.dataclass(frozen=True)
class Training:
    """One trained configuration."""

    folder: Path
    """Its checkpoints: stage1/ and stage2/, each with the weights of the best epoch and of the last."""
    best: Mapping[int, Mapping[str, Any]]
    """By stage, the metrics of the epoch that validation chose."""


def train_model(
    dataset: str | None = None,
    *,
    data: str | Path | None = None,
    label_range: tuple[float, float] | None = None,
    columns: Mapping[str, str] | None = None,
    space: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    backbone: str | None = None,
    ablation: str | None = None,
    out: str | Path = "runs/train",
    threads: int | None = None,
    workers: int = 1,
    cpus_per_worker: int = 1,
    gpus_per_worker: float | None = None,
) -> Training:
    """Train one configuration through both stages, and return its checkpoints; resume if `out` has some.

    dataset, data, label_range, columns: as in `run_search`. The configuration is the starting point of the search space
    with `settings`, by path, in place of its own. The test split is not read. ablation: a switch of Table 3, by default
    `full`, for a rival of GRCF `direct-mae`. workers: processes that train together, several under Ray. Every
    error is a `grcf_ray.errors.GrcfError`.

    >>> training = train_model("mosi", data="mosi.pkl", settings={"stage1.epochs": 5})
    >>> training.best[2]["valid/mae"]
    """
    settings = dict(settings or {})
    dataset, data = resolve_data(dataset, data, label_range, columns)
    config = starting_config(dataset, data, label_range, space, settings, backbone, ablation)
    # Workers do not change the results, so they are not among the settings that a folder of checkpoints is tied to.
    gpus = config.search.gpus_per_worker if gpus_per_worker is None else gpus_per_worker
    sharing = dataclasses.replace(config.search, workers=workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus)
    out = Path(out)
    store = find_data(dataset, data, label_range)
    for note in (*store.info.notes, *store.check_trainable()):
        console.progress(f"Note: {note}")
    task = store.info.task
    if faults := check_margins(config, store.info.half_range, task):
        raise ConfigError(faults_message("the settings contradict themselves", faults))
    if sharing.workers == 1:
        choose_device(config.train, granted=1)
    else:
        check_gpus(sharing.gpus)
        sharing = join_cluster(config, sharing, storage_path(out))
    config = with_precision(config, sharing, out)
    check_read(task, settings)
    if ablation is not None and ablation != "full" and not any(reads(task, path) for path in ABLATIONS[ablation]):
        raise ConfigError(f"--ablation {ablation}: changes no setting that {task} uses. Choose another ablation")
    return Training(out, _train(config, sharing, store, out, threads))


def starting_config(
    dataset: str,
    data: Path | None,
    label_range: tuple[float, float] | None,
    space: str | Path | None,
    settings: Mapping[str, Any],
    backbone: str | None,
    ablation: str | None,
) -> RunConfig:
    """Return the space's starting point with an ablation's settings and the given ones.

    Without an ablation, a model that the space was not written for is trained as `model_space` says.
    """
    if ablation is not None and ablation not in ABLATIONS:
        raise ConfigError(
            f"--ablation: unknown ablation {ablation!r}{nearest(ablation, list(ABLATIONS))} "
            f"(accepted: {', '.join(ABLATIONS)})"
        )
    asked = {**({"model.backbone": backbone} if backbone else {}), **settings}
    written = space_on(dataset, space, data, label_range, asked)
    if ablation is None:
        # A rival's space has the epochs of both stages together, unless they are given.
        return model_space(written, asked).with_settings(asked).config()
    return build_config({**flatten(written.with_settings(asked).config()), **ABLATIONS[ablation], **asked})


def join_cluster(config: RunConfig, sharing: SearchConfig, out: StoragePath) -> SearchConfig:
    """Connect to Ray; return the sharing with the cluster's value of `gpus_per_worker`.

    Raises ClusterError for workers that no node can hold: Ray would wait for them forever.
    """
    if sharing.workers > config.pairs.groups_per_step:
        raise ConfigError(
            f"--workers {sharing.workers}: a step has pairs.groups_per_step = {config.pairs.groups_per_step} groups, "
            f"at least one per worker. Use fewer workers, or more groups: --set pairs.groups_per_step={sharing.workers}"
        )
    if config.train.device == "cuda" and sharing.gpus_per_worker == 0:
        raise ConfigError("train.device = cuda, but the workers have no GPU. Give each worker one: --gpus-per-worker 1")
    # Training in one process works without Ray.
    from grcf_ray.cluster import connect

    from grcf_ray.search.nodes import check_nodes, cluster_nodes
    from grcf_ray.search.preflight import find_capacity, resolve_gpus

    connect()
    nodes, shared = cluster_nodes(), dataclasses.replace(config, search=sharing)
    sharing = dataclasses.replace(sharing, gpus_per_worker=resolve_gpus(shared, nodes, []))
    shared = dataclasses.replace(config, search=sharing)
    find_capacity(nodes, shared, [1])
    check_nodes(nodes, shared, out, remedy="--out with a folder on a network disk")
    return sharing


def with_precision(config: RunConfig, sharing: SearchConfig, out: Path) -> RunConfig:
    """Return the configuration with its precision; `auto` is that of the checkpoints in `out`, if it has some."""
    recorded = out / "train.json"
    if config.train.precision == "auto" and recorded.exists():
        precision = recorded_settings(json.loads(recorded.read_text(encoding="utf-8")))["train.precision"]
    elif sharing.workers == 1:
        precision = precision_here(config.train, choose_device(config.train, granted=1))
    else:
        from grcf_ray.search.nodes import cluster_nodes
        from grcf_ray.search.preflight import resolve_precision

        precision = resolve_precision(dataclasses.replace(config, search=sharing), cluster_nodes())
    return build_config({**flatten(config), "train.precision": precision})


def _train(
    config: RunConfig, sharing: SearchConfig, store: DatasetStore, out: Path, threads: int | None
) -> dict[int, dict[str, Any]]:
    features = prepare_features(store, config)
    select_modalities(features, config.model.modalities)
    _claim(out, config, store.info.fingerprint)
    epochs = stage_epochs(config)
    jobs = [
        StageJob(
            stage=stage,
            seed=stage_seed(config.seed, stage),
            settings=flatten(config),
            protocol=datasets.protocol_of(store.info.name, store.info.task),
            folder=(storage_path(out) / f"stage{stage}").uri,
            keeps_last=True,
            initial=None,
            initial_sha256=None,
            threads=threads or (sharing.cpus_per_worker if sharing.workers > 1 else os.cpu_count() or 1),
            gpu=1.0 if sharing.workers == 1 else sharing.gpus,
        )
        for stage in epochs
    ]
    progress = _Progress(epochs)
    if sharing.workers > 1:
        _run_ray_job(features, jobs, sharing, config.stage2.start, progress)
    else:
        with contextlib.closing(JobRunner(features)) as runner:
            for metrics in train_stages(runner, jobs, start=config.stage2.start):
                progress.show(metrics)
    progress.raise_failure()
    best: dict[int, dict[str, Any]] = {}
    for job in jobs:
        checkpoint = find_best([storage_path(job.folder)])
        assert checkpoint is not None
        best[job.stage] = checkpoint.state["curve"][-1]
    return best


class _Progress:
    """Print a line for each epoch of a training.

    epochs: of each stage.
    """

    def __init__(self, epochs: Mapping[Literal[1, 2], int]) -> None:
        self._epochs = epochs
        self._last: dict[str, Any] = {}
        self._begun: tuple[int, int] | None = None
        self._noted: set[tuple[int, str]] = set()

    def show(self, metrics: dict[str, Any]) -> None:
        """Print what is new in the metrics of an epoch, as `train_stages` yields them."""
        self._last, stage, resumed = metrics, metrics["stage"], metrics["resumed"]
        if resumed and self._begun != (stage, resumed):
            console.progress(f"stage {stage}: resumes after epoch {resumed}")
        self._begun = stage, resumed
        for note in metrics["notes"]:
            if (stage, note) not in self._noted:
                console.progress(f"stage {stage}: {note}")
                self._noted.add((stage, note))
        # A stage that was finished before has no new epoch.
        if "failure" not in metrics and metrics["epoch"] > resumed:
            console.progress(epoch_line(stage, self._epochs[stage], metrics))

    def raise_failure(self) -> None:
        """Raise the known failure that ended the training, if there was one."""
        if "failure" in self._last:
            raise getattr(errors, self._last["error"], GrcfError)(self._last["failure"])


def _run_ray_job(
    features: Features,
    jobs: Sequence[StageJob],
    sharing: SearchConfig,
    start: Literal["best", "last"],
    progress: _Progress,
) -> None:
    """Train with several workers."""
    with _workers(sharing):
        from grcf_ray.train.distributed import share
        from grcf_ray.train.interfaces import named_interfaces
        from grcf_ray.train.ray_job import run_ray_job

        run_ray_job(
            share(features),
            jobs,
            start=start,
            workers=sharing.workers,
            resources=sharing.worker_resources,
            interfaces=named_interfaces(),
            show=progress.show,
            warn=lambda fault: console.progress(f"workers exited unexpectedly ({fault})"),
        )


@contextlib.contextmanager
def job_runner(features: Features, sharing: SearchConfig) -> Iterator[JobRunner | WorkerGroup]:
    """Yield a runner of single epochs: this process, or workers that end with the context."""
    if sharing.workers == 1:
        with contextlib.closing(JobRunner(features)) as runner:
            yield runner
        return
    with _workers(sharing):
        from grcf_ray.train.distributed import WorkerGroup, share
        from grcf_ray.train.interfaces import named_interfaces

        group = WorkerGroup(
            share(features),
            workers=sharing.workers,
            resources=sharing.worker_resources,
            interfaces=named_interfaces(),
        )
        with contextlib.closing(group):
            yield group


@contextlib.contextmanager
def _workers(sharing: SearchConfig) -> Iterator[None]:
    """Say how to resume if the workers exit, or if their cluster is lost."""
    from grcf_ray.cluster import leave, watched

    from grcf_ray.train.distributed import WorkersDiedError

    console.progress(f"Starting {sharing.workers} workers")
    resume = "finished epochs are kept; resume with the same command"
    try:
        # Ray reports dead processes on standard output, which is reserved for the result.
        with contextlib.redirect_stdout(sys.stderr), watched(lambda loss: leave(f"{loss}; {resume}")):
            yield
    except WorkersDiedError as error:
        raise GrcfError(f"workers exited unexpectedly ({error}); {resume}") from error


def _claim(out: Path, config: RunConfig, fingerprint: str) -> None:
    """Write the configuration beside the checkpoints. ConfigError if they belong to another configuration."""
    settings = {"data": fingerprint, **flatten(config)}
    path = out / "train.json"
    if path.exists():
        recorded = recorded_settings(json.loads(path.read_text(encoding="utf-8")))
        changed = [
            f"{k}: {recorded.get(k)} -> {v}"
            for k, v in settings.items()
            # Resources do not change the results.
            if recorded.get(k) != v and k not in FREE and not k.startswith("search.")
        ]
        if changed:
            raise ConfigError(
                faults_message(f"{out} holds checkpoints of other settings:", changed)
                + "\nGive another folder: --out DIR"
            )
    write_json(path, settings)


def epoch_line(stage: int, epochs: int, metrics: Mapping[str, Any]) -> str:
    """Return an epoch's progress line."""
    left = (epochs - metrics["epoch"]) * metrics["seconds"]
    loss = metrics["loss/total"]
    shown = "  ".join(figures(metrics))
    return (
        f"stage {stage}  epoch {metrics['epoch']}/{epochs}  loss {loss:.4f}  {shown}  "
        f"{metrics['utterances_per_s']:.0f} utterances/s  ETA {left:.0f} s"
    )


def figures(metrics: Mapping[str, Any]) -> list[str]:
    """Return the validation figures of an epoch, each with its name."""
    shown = ("pairwise_acc", "mae", "corr", "bce", "acc2", "auroc")
    values = {METRIC_TITLES[name]: metrics.get(f"valid/{name}") for name in shown}
    return [f"{title} {value:.4f}" for title, value in values.items() if value is not None]
