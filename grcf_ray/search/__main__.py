"""python -m grcf_ray.search: the main job, from data to the best two-stage model that a budget finds."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from grcf_ray import console

# Help must be quick: torch, Ray and the rest are imported once the arguments are parsed.
if TYPE_CHECKING:
    from grcf_ray.data.store import Store
    from grcf_ray.metrics import Protocol
    from grcf_ray.search.record import RunRecord
    from grcf_ray.search.space import Space

app = console.make_app("Search both stages of GRCF and evaluate the winner once on test.")


@app.command()
def search(
    dataset: str = typer.Option(
        ..., metavar="NAME", help="A known data set (python -m grcf_ray.data list), or your own."
    ),
    data: Path | None = typer.Option(
        None, metavar="FILE|DIR", help="Its files; default $GRCF_DATA/NAME, then ./data/NAME."
    ),
    label_range: tuple[float, float] | None = typer.Option(
        None, metavar="A B", help="Lowest and highest label of your own data."
    ),
    space: Path | None = typer.Option(None, metavar="FILE", help="Search space; default the one that ships for NAME."),
    set_: list[str] = typer.Option(
        [], "--set", metavar="PATH=VALUE", help="Fix a setting, searched or not; may be repeated."
    ),
    backbone: str | None = typer.Option(None, metavar="NAME|DIR", help="Text encoder."),
    stage1_trials: int | None = typer.Option(None, metavar="N", help="Trials of Stage 1."),
    stage2_trials: int | None = typer.Option(None, metavar="N", help="Trials of Stage 2."),
    finalists: int | None = typer.Option(None, metavar="N", help="Stage 1 checkpoints that Stage 2 may start from."),
    concurrent: int | None = typer.Option(None, metavar="N", help="Trials at a time; default as many as fit."),
    cpus_per_worker: int | None = typer.Option(None, metavar="C", help="CPUs, and so threads, of a trial."),
    gpus_per_worker: float | None = typer.Option(None, metavar="G", help="GPUs of a trial; a fraction shares one."),
    name: str | None = typer.Option(None, metavar="NAME", help="Run name; default dataset-backbone-seed."),
    storage: str | None = typer.Option(None, metavar="DIR", help="Where runs go; default $GRCF_RUNS, then ./runs."),
    seed: int | None = typer.Option(None, metavar="S", help="Seed of everything; default 42."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check and print the plan, run nothing."),
    print_config: bool = typer.Option(
        False, "--print-config", help="Print the starting configuration as YAML, run nothing."
    ),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Search Stage 1, hand its best checkpoints to a search of Stage 2, evaluate the winner once on test.

    \b
    Examples:
      python -m grcf_ray.search --dataset demo
      python -m grcf_ray.search --dataset mosi --data mosi.parquet
      python -m grcf_ray.search --dataset mosi --gpus-per-worker 0.5 --stage1-trials 60
      python -m grcf_ray.search --dataset reviews --data reviews.csv --label-range 1 5 --space my_space.yaml
      python -m grcf_ray.search --dataset mosi --set model.modalities=text --set stage1.epochs=5

    The same command again goes on with an interrupted run. --debug shows tracebacks.
    """
    from grcf_ray.config import parse_assignments, to_yaml
    from grcf_ray.search.space import space_for

    flags = {
        "model.backbone": str(Path(backbone).resolve()) if backbone and Path(backbone).is_dir() else backbone,
        "search.stage1_trials": stage1_trials,
        "search.stage2_trials": stage2_trials,
        "search.finalists": finalists,
        "search.concurrent": concurrent,
        "search.cpus_per_worker": cpus_per_worker,
        "search.gpus_per_worker": gpus_per_worker,
        "seed": seed,
    }
    settings = {path: value for path, value in flags.items() if value is not None} | parse_assignments(set_)
    chosen = space_for(dataset, space).with_settings(settings)
    if print_config:
        print(to_yaml(chosen.config()), end="")
        return
    from grcf_ray.data.store import find_data

    store = find_data(dataset, data, label_range)
    _run(chosen, store, _run_folder(chosen, dataset, name, storage), dry_run=dry_run, as_json=json)


def _run_folder(space: Space, dataset: str, name: str | None, storage: str | None) -> Path:
    from grcf_ray.errors import ConfigError

    config = space.config()
    if storage is None:
        # The working directory of a Ray job is a cache that may vanish.
        default = Path.home() / "grcf_runs" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path("runs")
        storage = os.environ.get("GRCF_RUNS") or str(default)
    if "://" in storage:
        raise ConfigError(f"--storage {storage}: runs go to a folder; object storage is not supported yet")
    backbone = Path(config.model.backbone).name
    return Path(storage).expanduser().absolute() / (name or f"{dataset}-{backbone}-seed{config.seed}")


def _run(space: Space, store: Store, folder: Path, *, dry_run: bool, as_json: bool) -> None:
    from grcf_ray.data import datasets
    from grcf_ray.errors import ConfigError, faults_message
    from grcf_ray.model.text_encoder import resolve_backbone
    from grcf_ray.search.preflight import connect, find_room
    from grcf_ray.search.record import RunRecord

    config = space.config()
    half_range = (store.info.label_range[1] - store.info.label_range[0]) / 2
    if faults := space.margin_faults(half_range):
        raise ConfigError(faults_message(f"{space.source}: the starting point contradicts itself", faults))
    _check_modalities(space, store)
    if not config.stage1.epochs and not config.stage2.epochs:
        raise ConfigError("stage1.epochs and stage2.epochs are both 0: there is nothing to train")
    if config.train.device == "cuda" and not config.search.gpus_per_worker:
        raise ConfigError("train.device = cuda, but trials are given no GPU: --gpus-per-worker 1, or a share of one")
    resolve_backbone(config.model.backbone)
    facts = datasets.get(store.info.name) if store.info.name in datasets.names() else None
    record = RunRecord(folder)
    finished = _check_record(record, space, store)
    if finished and not dry_run:
        console.progress(f"{folder} is finished; this is its result")
        _print(record, as_json)
        return
    connect()
    from grcf_ray.search.stages import cluster_nodes

    budgets = {
        stage: (trials, epochs)
        for stage, trials, epochs in (
            (1, config.search.stage1_trials, config.stage1.epochs),
            (2, config.search.stage2_trials, config.stage2.epochs),
        )
        if epochs
    }
    room = find_room(cluster_nodes(), config, [trials for trials, _ in budgets.values()])
    _print_plan(space, store, folder, room, budgets)
    if dry_run:
        return
    _check_writable(folder)
    _search(record, space, store, facts, room.concurrent, budgets)
    _print(record, as_json)


def _check_writable(folder: Path) -> None:
    """ConfigError where the run cannot be written, before anything is computed for it; leaves nothing behind."""
    import tempfile

    from grcf_ray.errors import ConfigError

    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}); give another place: --storage DIR"
        ) from error


def _check_modalities(space: Space, store: Store) -> None:
    """ConfigError where the space names audio or vision that the data lack: it would search nothing."""
    from grcf_ray.errors import ConfigError
    from grcf_ray.search.space import Choice

    dimension = space.stage1.get("model.modalities")
    named = dimension.choices if isinstance(dimension, Choice) else (space.config().model.modalities,)
    for name, dim in (("audio", store.info.audio_dim), ("vision", store.info.vision_dim)):
        if dim is None and any(name in str(choice) for choice in named):
            raise ConfigError(
                f"{space.source}: model.modalities names {name}, which the data do not have; "
                "give --set model.modalities=all for what they have"
            )


def _check_record(record: RunRecord, space: Space, store: Store) -> bool:
    """Whether the run is finished. ConfigError where the folder holds another run."""
    from grcf_ray.config import flatten
    from grcf_ray.errors import ConfigError, faults_message

    if not record.exists:
        return False
    run = record.read_run()
    # How many trials run at a time changes no number of theirs.
    free = {"search.concurrent"}
    before = {"data": run["data"]["fingerprint"], **run["settings"], **_searched(run["space"])}
    after = {"data": store.info.fingerprint, **flatten(space.config()), **_searched(space.as_dict())}
    changed = [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in free
    ]
    if changed:
        raise ConfigError(
            faults_message(f"{record.folder} holds a run with other settings:", changed)
            + "\nGive the old settings to go on with it, or a name of its own to this one: --name NAME"
        )
    return bool(run["state"] == "finished")


def _searched(space: dict[str, Any]) -> dict[str, Any]:
    return {f"{path} (searched)": value for stage in ("stage1", "stage2") for path, value in space[stage].items()}


def _print_plan(space: Space, store: Store, folder: Path, room: Any, budgets: dict[int, tuple[int, int]]) -> None:
    from grcf_ray.report.terminal import typed

    config, info = space.config(), store.info
    modalities = [m for m, dim in (("audio", info.audio_dim), ("vision", info.vision_dim)) if dim]
    sizes = "/".join(str(info.splits[split]) for split in ("train", "valid", "test"))
    console.progress(f"Data:    {info.name}, {sizes} utterances, {' + '.join(['text', *modalities])}")
    for note in info.notes:
        console.progress(f"         {note}")
    console.progress(f"Model:   {config.model.backbone}, {config.model.frozen_layers} frozen layers")
    written_for = "" if space.dataset == info.name else f", written for {space.dataset}"
    console.progress(f"Space:   {typed(Path(space.source))}{written_for}")
    stages = ", then ".join(f"stage {stage}: {trials} x {epochs} epochs" for stage, (trials, epochs) in budgets.items())
    console.progress(f"Budget:  {stages}; {config.search.finalists} finalists")
    per = f"{config.search.cpus_per_worker} CPU" + (
        f" + {config.search.gpus_per_worker:g} GPU" if config.search.gpus_per_worker else ""
    )
    console.progress(
        f"Cluster: {room.nodes} node(s), {room.cpus:g} CPUs, {room.gpus:g} GPUs; "
        f"{room.concurrent} trials at a time, {per} each"
    )
    for note in room.notes:
        console.progress(f"Note:    {note}")
    console.progress(f"Run:     {typed(folder)}")


def _search(
    record: RunRecord,
    space: Space,
    store: Store,
    facts: Any,
    concurrent: int,
    budgets: dict[int, tuple[int, int]],
) -> None:
    import torch
    import yaml

    from grcf_ray.config import flatten
    from grcf_ray.report.tensorboard import TensorBoardListener
    from grcf_ray.report.terminal import ProgressLines
    from grcf_ray.search.record import now
    from grcf_ray.search.stages import Search
    from grcf_ray.search.winner import export_winner, measure_winner, versions
    from grcf_ray.train.assemble import prepare_features

    config = space.config()
    protocol: Protocol = facts.metrics if facts else "mosi"
    torch.set_num_threads(os.cpu_count() or 1)
    console.progress("Preparing features")
    features = prepare_features(store, config)
    if not record.exists:
        record.write_space(yaml.safe_dump(space.as_dict(), sort_keys=False))
        record.write_run(
            {
                "state": "running",
                "argv": sys.argv[1:],
                "started": now(),
                "space": space.as_dict(),
                "settings": flatten(config),
                "data": {
                    "folder": str(store.folder.absolute()),
                    "name": store.info.name,
                    "fingerprint": store.info.fingerprint,
                },
                "versions": versions(),
            }
        )
    record.update_run(state="running")
    with TensorBoardListener(record.folder / "tensorboard") as tensorboard:
        lines = ProgressLines(concurrent=concurrent, budgets=budgets)
        job = Search(
            record=record,
            space=space,
            features=features,
            protocol=protocol,
            concurrent=concurrent,
            listeners=(lines, tensorboard),
        )
        try:
            winner = job.run()
            config = job.config_of(winner)
            export_winner(record, winner, config, features, store, protocol)
            measure_winner(record, winner, config, features, store, facts, protocol)
        except KeyboardInterrupt:
            record.update_run(state="interrupted")
            command = shlex.join(["python", "-m", "grcf_ray.search", *sys.argv[1:]])
            console.progress(f"Interrupted; every finished epoch is kept. To go on: {command}")
            raise
        except Exception:
            record.update_run(state="failed")
            raise
        record.update_run(state="finished", ended=now(), winner=f"stage{winner.stage}/{winner.number}")


def _print(record: RunRecord, as_json: bool) -> None:
    import json

    from grcf_ray.report.terminal import print_result, summarise

    metrics = json.loads((record.folder / "best" / "metrics.json").read_text(encoding="utf-8"))
    stage, number = record.read_run()["winner"].removeprefix("stage").split("/")
    winner = next(trial for trial in record.trials(int(stage)) if trial.number == int(number))
    summary = summarise(record, metrics, winner)
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        print_result(summary)


if __name__ == "__main__":
    console.run(app)
