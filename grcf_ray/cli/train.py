"""Command `train`: train one configuration through both stages; several workers run under Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from grcf_ray import console
from grcf_ray.cli import options

if TYPE_CHECKING:
    from grcf_ray.config import RunConfig

app = console.make_app("Train one configuration through both stages")


@app.command()
def train(
    dataset: options.Dataset = None,
    data: options.Data = None,
    label_range: options.LabelRange = None,
    text_column: options.TextColumn = None,
    label_column: options.LabelColumn = None,
    id_column: options.IdColumn = None,
    split_column: options.SplitColumn = None,
    group_column: options.GroupColumn = None,
    space: Path | None = typer.Option(
        None, metavar="FILE", help="Search space; its starting point is trained [default: the shipped space for NAME]"
    ),
    set_: options.Settings = [],  # noqa: B006
    backbone: options.Backbone = None,
    ablation: str | None = typer.Option(
        None, metavar="NAME", help="Row of the paper's Table 3; see the list above [default: full; a rival: direct-mae]"
    ),
    out: Path | None = typer.Option(
        None, metavar="DIR", help="Folder of checkpoints; training resumes from those it holds [default: runs/train]"
    ),
    threads: int | None = typer.Option(
        None, metavar="N", min=1, help="Torch threads of a process [default: all CPUs, or those of a worker]"
    ),
    workers: int = typer.Option(1, metavar="W", min=1, help="Processes that train together; several run under Ray"),
    cpus_per_worker: int = typer.Option(1, metavar="C", min=1, help="CPUs of a worker, if there are several"),
    gpus_per_worker: float | None = typer.Option(
        None,
        metavar="G",
        min=0.0,
        help="GPUs of a worker, at most 1, if there are several workers [default: 1 if the cluster has GPUs]",
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
      python -m grcf_ray.train --dataset demo --set model.name=tfn --set tfn.fusion_width=64
      python -m grcf_ray.train --dataset demo --workers 2 --set pairs.groups_per_step=2
      python -m grcf_ray.train --from runs/demo-all-MiniLM-L6-v2-seed42 --trial stage2/3

    \b
    Ablations: full, no-advantage, static-margin, no-stage1, no-stage2, direct-mae (MAE alone, no Stage 1).
    """
    from grcf_ray.api.training import figures, starting_config, train_model
    from grcf_ray.config import parse_assignments, to_yaml
    from grcf_ray.data.columns import option
    from grcf_ray.data.store import resolve_data
    from grcf_ray.errors import ConfigError

    columns = options.columns(
        text=text_column, label=label_column, id=id_column, split=split_column, group=group_column
    )
    if from_ is not None and trial is not None:
        conflicting = {
            "--dataset": dataset,
            "--label-range": label_range,
            **{option(role): name for role, name in columns.items()},
            "--space": space,
            "--set": set_,
            "--backbone": backbone,
            "--ablation": ablation,
            "--threads": threads,
            "--workers": workers > 1,
            "--cpus-per-worker": cpus_per_worker > 1,
            "--gpus-per-worker": gpus_per_worker is not None,
            "--print-model": print_model,
            "--print-config": print_config,
        }
        if given := [name for name, value in conflicting.items() if value]:
            raise ConfigError(f"--from repeats a trial with its recorded settings: leave out {', '.join(given)}")
        _replay(from_, trial, data, out)
        return
    if (dataset is None and data is None) or from_ is not None or trial is not None:
        raise ConfigError(
            "give --dataset NAME or --data FILE to train a configuration, or --from RUN --trial NAME to repeat a trial"
        )
    dataset, data = resolve_data(dataset, data, label_range, columns)
    settings = parse_assignments(set_)
    if print_config or print_model:
        config = starting_config(dataset, data, label_range, space, settings, backbone, ablation)
        if print_config:
            console.say(to_yaml(config).rstrip("\n"))
        else:
            _print_model(config, dataset, data, label_range)
        return
    training = train_model(
        dataset,
        data=data,
        label_range=label_range,
        space=space,
        settings=settings,
        backbone=backbone,
        ablation=ablation,
        out=out or Path("runs/train"),
        threads=threads,
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
    )
    for stage, best in training.best.items():
        console.say(f"stage {stage}: best epoch {best['epoch']}, " + ", ".join(figures(best)))
    console.say(f"checkpoints: {training.folder}")


def _replay(run: str, name: str, data: Path | None, out: Path | None) -> None:
    """Train a recorded trial again, up to its last epoch. GrcfError if a figure differs in any bit."""
    import tempfile

    from grcf_ray.api.training import epoch_line, job_runner, join_cluster
    from grcf_ray.errors import ConfigError, DataError, GrcfError, faults_message
    from grcf_ray.search.replay import epochs_to_repeat, find_trial, other_versions, replay_job, unlike
    from grcf_ray.search.run_lookup import encoder_of, recorded_store
    from grcf_ray.search.space import stage_epochs
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
            join_cluster(config, config.search, place)
        epochs = stage_epochs(config)[job.stage]
        with job_runner(prepare_features(store, config), config.search) as runner:
            runner.start(job)
            result: dict[str, Any] = {"epoch": 0, "done": False}
            while not result["done"] and result["epoch"] < max(1, epochs_to_repeat(trial)):
                result = runner.step()
                if "failure" not in result:
                    console.progress(epoch_line(job.stage, epochs, result["curve"][-1]))
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
    from grcf_ray.model.build import described_model, parameter_table
    from grcf_ray.model.card import card_of

    info = datasets.get(dataset) if data is None else find_data(dataset, data, label_range).info
    with torch.device("meta"):
        table = parameter_table(described_model(config, info))
    total = sum(count for _, count in table)
    console.print_table(
        ("component", "parameters"),
        [(name, f"{count:,}") for name, count in [*table, (f"{card_of(config.model.name).title} (total)", total)]],
    )
