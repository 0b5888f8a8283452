"""Command `reproduce`: run the paper's experiments from a finished search."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from grcf_ray import console
from grcf_ray.cli import options as cli_options
from grcf_ray.data.datasets import spelled

if TYPE_CHECKING:
    from grcf_ray.experiments.registry import Options
    from grcf_ray.experiments.result import ExperimentResult
    from grcf_ray.search.record import RunRecord
    from grcf_ray.storage import StoragePath

app = console.make_app("Run the paper's experiments")


@app.command()
def reproduce(
    name: str = typer.Argument(
        ..., metavar="NAME", help="Experiment; `list` lists them, `all` runs all that the data allow"
    ),
    dataset: str | None = typer.Option(
        None, metavar="NAME", callback=spelled, help="Data set whose finished search to start from"
    ),
    run: str | None = typer.Option(None, "--from", metavar="RUN", help="Path or URI of the search to start from"),
    data: cli_options.MovedData = None,
    seeds: int = typer.Option(5, metavar="N", min=1, help="Fresh seeds to train each row under"),
    models: list[str] = typer.Option(
        [], metavar="NAME", help="For main: model to search and train at the same cost; may be repeated; `all` for all"
    ),
    two_stage: bool = typer.Option(
        False, "--two-stage", help="For main --models: also search and train each of them in two stages"
    ),
    retune: bool = typer.Option(
        False, "--retune", help="For ablation: also give each ablation its own search, at the same cost"
    ),
    backbones: list[str] = typer.Option(
        [], metavar="NAME|DIR", help="For backbones: text encoder to train; may be repeated [default: the paper's]"
    ),
    onto: str | None = typer.Option(
        None, metavar="NAME", callback=spelled, help="For transfer: data set to move the models to"
    ),
    onto_data: Path | None = typer.Option(
        None,
        metavar="FILE|DIR",
        help="For transfer: path to that data set [default: $GRCF_DATA/NAME, then ./data/NAME]",
    ),
    backbone: str | None = typer.Option(None, metavar="NAME|DIR", help="For complexity without a run: text encoder"),
    storage: str | None = typer.Option(
        None, metavar="DIR|URI", help="Folder or URI of runs, without --from [default: $GRCF_RUNS, then ./runs]"
    ),
    json: cli_options.Json = False,
) -> None:
    """Run one of the paper's experiments over several seeds, and print the paper's numbers beside yours.

    \b
    Examples:
      python -m grcf_ray.reproduce list
      python -m grcf_ray.reproduce complexity --dataset mosi
      python -m grcf_ray.reproduce main --dataset mosi --models all --two-stage
      python -m grcf_ray.reproduce ablation --from runs/mosi-all-MiniLM-L6-v2-seed42 --seeds 5
      python -m grcf_ray.reproduce ablation --from runs/mosi-all-MiniLM-L6-v2-seed42 --retune
      python -m grcf_ray.reproduce transfer --from runs/mosei-deberta-v3-base-seed42 --onto mosi

    Run the same command again to resume; no model is trained twice. The results are in RUN/reproduce/NAME: a page,
    figures, Markdown, LaTeX and JSON.
    """
    from grcf_ray.config import build_config, nearest
    from grcf_ray.data import datasets
    from grcf_ray.errors import ConfigError
    from grcf_ray.experiments.registry import EXPERIMENTS, Options

    if name == "list":
        console.print_table(("name", "paper", "what"), [(e.name, e.paper, e.summary) for e in EXPERIMENTS.values()])
        return
    if name != "all" and name not in EXPERIMENTS:
        raise ConfigError(
            f"no experiment {name!r}{nearest(name, list(EXPERIMENTS))} (list them: python -m grcf_ray.reproduce list)"
        )
    options = Options(
        models=tuple(models),
        two_stage=two_stage,
        retune=retune,
        backbone=backbone,
        backbones=tuple(backbones),
        onto=onto,
        onto_data=onto_data,
    )
    options.check(name)
    place: StoragePath | None = None
    if name == "complexity" and run is None:
        if dataset is None:
            raise ConfigError("complexity needs a data set, for the widths of its features: --dataset NAME")
        from grcf_ray.experiments.complexity import complexity_of

        facts = datasets.get(dataset)
        config = build_config({"model.backbone": backbone or facts.default_backbone})
        results = [complexity_of(config, facts).named(EXPERIMENTS[name])]
    elif backbone is not None:
        raise ConfigError("--backbone is for complexity without a run. A run has its own text encoder, so leave it out")
    else:
        record = _chosen(name, run, dataset, storage)
        place = record.place / "reproduce"
        results = _run(name, record, data, seeds, options)
    if json:
        answers = [result.as_dict() for result in results]
        console.print_json(answers if name == "all" else answers[0])
        return
    from grcf_ray.report.terminal import typed

    for result in results:
        result.print()
        if place is not None:
            console.say(f"\nPage: {typed(place / result.name / 'index.html')}")


def _chosen(name: str, run: str | None, dataset: str | None, storage: str | None) -> RunRecord:
    """Return the record of the search to start from."""
    from grcf_ray.errors import ConfigError
    from grcf_ray.search.record import RunRecord
    from grcf_ray.search.run_lookup import finished_run, runs_place
    from grcf_ray.storage import storage_path

    if run is None:
        if dataset is None:
            raise ConfigError(f"{name} starts from a finished search. Name it: --dataset NAME, or --from RUN")
        return finished_run(runs_place(storage), dataset)
    record = RunRecord(storage_path(run, check=True))
    if dataset is not None and (searched := record.read_search()["data"]["name"]) != dataset:
        raise ConfigError(f"{record} is a search of {searched}, not of {dataset}. Leave out --dataset or --from")
    return record


def _run(name: str, record: RunRecord, data: Path | None, seeds: int, options: Options) -> list[ExperimentResult]:
    """Run an experiment, or all that the data allow, and write each result into the run."""
    from importlib import import_module

    from grcf_ray.errors import ConfigError, DataError, NoWinnerError
    from grcf_ray.experiments.context import ExperimentContext
    from grcf_ray.experiments.registry import EXPERIMENTS
    from grcf_ray.experiments.result import write_result
    from grcf_ray.report.progress_lines import ProgressLines
    from grcf_ray.search.run_lookup import recorded_store

    context = ExperimentContext(
        record,
        recorded_store(record, data),
        seeds=seeds,
        command=shlex.join(["python", "-m", "grcf_ray.reproduce", *sys.argv[1:]]),
        listeners=(ProgressLines(),),
        options=options,
    )
    results: list[ExperimentResult] = []
    for experiment in EXPERIMENTS.values() if name == "all" else [EXPERIMENTS[name]]:
        module = import_module(f"grcf_ray.experiments.{experiment.module}")
        try:
            result = context.noted(getattr(module, experiment.name.replace("-", "_"))(context), experiment)
            # Written at once, because later experiments may take hours or fail.
            write_result(result, record.place / "reproduce" / result.name)
            results.append(result)
        except (ConfigError, DataError, NoWinnerError) as error:
            if name != "all":
                raise
            # An experiment that the data do not allow must not stop the others.
            console.progress(f"{experiment.name} is skipped: {error}")
    return results
