"""python -m grcf_ray.reproduce: the paper's experiments on a run's data, one command each."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from grcf_ray import console
from grcf_ray.data.datasets import spelled

if TYPE_CHECKING:
    from grcf_ray.experiments.context import ExperimentContext
    from grcf_ray.experiments.options import Options
    from grcf_ray.experiments.registry import Experiment
    from grcf_ray.experiments.result import ExperimentResult
    from grcf_ray.search.record import RunRecord
    from grcf_ray.storage import StoragePath

app = console.make_app("Run the paper's experiments from a finished search.")


@app.command()
def reproduce(
    name: str = typer.Argument(..., help="An experiment; `list` names them, `all` runs all that the data admit."),
    dataset: str | None = typer.Option(
        None, metavar="NAME", callback=spelled, help="Data set whose finished search is taken."
    ),
    run: str | None = typer.Option(None, "--from", metavar="RUN", help="The search to start from: a folder or a URI."),
    data: Path | None = typer.Option(
        None, metavar="FILE|DIR", help="The data, where they no longer lie where the run read them."
    ),
    seeds: int = typer.Option(5, metavar="N", min=1, help="Fresh seeds that each row is trained under."),
    retune: bool = typer.Option(False, "--retune", help="ablation: also search each ablation anew, for the same cost."),
    backbones: list[str] = typer.Option(
        [], metavar="NAME|DIR", help="backbones: a text encoder to train with; may be repeated; default the paper's."
    ),
    onto: str | None = typer.Option(
        None, metavar="NAME", callback=spelled, help="transfer: the data set that the models are taken to."
    ),
    onto_data: Path | None = typer.Option(
        None, metavar="FILE|DIR", help="transfer: its files; default $GRCF_DATA/NAME, then ./data/NAME."
    ),
    backbone: str | None = typer.Option(None, metavar="NAME|DIR", help="Text encoder; for complexity."),
    storage: str | None = typer.Option(
        None, metavar="DIR|URI", help="Where runs lie, without --from; default $GRCF_RUNS, then ./runs."
    ),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Run one of the paper's experiments: its numbers and yours side by side, over seeds.

    \b
    Examples:
      python -m grcf_ray.reproduce list
      python -m grcf_ray.reproduce complexity --dataset mosi
      python -m grcf_ray.reproduce ablation --from runs/mosi-all-MiniLM-L6-v2-seed42 --seeds 5
      python -m grcf_ray.reproduce ablation --from runs/mosi-all-MiniLM-L6-v2-seed42 --retune
      python -m grcf_ray.reproduce transfer --from runs/mosei-deberta-v3-base-seed42 --onto mosi

    The same command again goes on with what was interrupted, and trains nothing twice. Results lie in
    RUN/reproduce/NAME: a page, figures, Markdown, LaTeX and JSON.
    """
    from grcf_ray.config import nearest
    from grcf_ray.errors import ConfigError
    from grcf_ray.experiments.options import Options
    from grcf_ray.experiments.registry import EXPERIMENTS

    if name == "list":
        console.print_table(("name", "paper", "what"), [(e.name, e.paper, e.what) for e in EXPERIMENTS.values()])
        return
    if name != "all" and name not in EXPERIMENTS:
        raise ConfigError(f"no experiment {name!r}{nearest(name, list(EXPERIMENTS))}; `list` names them")
    options = Options(retune=retune, backbone=backbone, backbones=tuple(backbones), onto=onto, onto_data=onto_data)
    options.check(name)
    if name == "complexity" and run is None:
        if dataset is None:
            raise ConfigError("complexity needs the data set whose features the model takes: --dataset NAME")
        _show([_complexity(dataset, backbone)], json, None)
        return
    if backbone is not None:
        raise ConfigError("--backbone is for complexity without a run; a run has its own")
    _from_run(name, _chosen(name, run, dataset, storage), data, seeds, options, as_json=json)


def _complexity(dataset: str, backbone: str | None) -> ExperimentResult:
    from grcf_ray.config import build_config
    from grcf_ray.data import datasets
    from grcf_ray.experiments.complexity import complexity
    from grcf_ray.search.winner import available_threads

    facts = datasets.get(dataset)
    config = build_config({"model.backbone": backbone or facts.default_backbone})
    dims = {"audio": facts.audio_dim, "vision": facts.vision_dim}
    return complexity(config, dataset, task=facts.task, dims=dims, threads=available_threads())


def _chosen(name: str, run: str | None, dataset: str | None, storage: str | None) -> RunRecord:
    """The search to start from."""
    from grcf_ray.errors import ConfigError
    from grcf_ray.search.record import RunRecord
    from grcf_ray.search.run_lookup import finished_run, runs_place
    from grcf_ray.storage import storage_path

    if run is None and dataset is None:
        raise ConfigError(f"{name} starts from a finished search: --dataset NAME, or --from RUN")
    if run is None:
        assert dataset is not None
        return finished_run(runs_place(storage), dataset)
    record = RunRecord(storage_path(run, check=True))
    if dataset is not None and (searched := record.read_search()["data"]["name"]) != dataset:
        raise ConfigError(f"{record} is a search of {searched}, not of {dataset}")
    return record


def _from_run(name: str, record: RunRecord, data: Path | None, seeds: int, options: Options, *, as_json: bool) -> None:
    from grcf_ray.errors import ConfigError, DataError, NoWinnerError
    from grcf_ray.experiments.context import ExperimentContext
    from grcf_ray.experiments.registry import EXPERIMENTS
    from grcf_ray.report.terminal import ProgressLines
    from grcf_ray.search.run_lookup import recorded_store

    command = shlex.join(["python", "-m", "grcf_ray.reproduce", *sys.argv[1:]])
    lab = ExperimentContext(
        record,
        recorded_store(record, data),
        seeds=seeds,
        command=command,
        listeners=(ProgressLines(),),
        options=options,
    )
    if name != "all":
        _show([_written(EXPERIMENTS[name], lab)], as_json, record.place / "reproduce")
        return
    outcomes = []
    for experiment in EXPERIMENTS.values():
        try:
            # Each is written when it is there: what comes after it may take hours, or fail.
            outcomes.append(_written(experiment, lab))
        except (ConfigError, DataError, NoWinnerError) as error:
            # Those that the data do not admit, or that came to nothing, are named, and the others run.
            console.progress(f"{experiment.name} is left out: {error}")
    _show(outcomes, as_json, record.place / "reproduce", several=True)


def _written(experiment: Experiment, lab: ExperimentContext) -> ExperimentResult:
    """The experiment's outcome, written beside the run."""
    from grcf_ray.experiments.result import write_result

    outcome = lab.noted(_outcome(experiment, lab), trains=experiment.trains)
    write_result(outcome, lab.record.place / "reproduce" / outcome.name)
    return outcome


def _outcome(experiment: Experiment, lab: ExperimentContext) -> ExperimentResult:
    from importlib import import_module

    from grcf_ray.search.winner import available_threads

    module = import_module(f"grcf_ray.reproduce.{experiment.module}")
    function = getattr(module, experiment.name.replace("-", "_"))
    if experiment.name == "complexity":
        # What a model costs is known from its shape.
        info = lab.store.info
        dims = {"audio": info.audio_dim, "vision": info.vision_dim}
        described: ExperimentResult = function(
            lab.config, info.name, task=info.task, dims=dims, threads=available_threads()
        )
        return described
    found: ExperimentResult = function(lab)
    return found


def _show(outcomes: list[ExperimentResult], as_json: bool, place: StoragePath | None, *, several: bool = False) -> None:
    from grcf_ray.report.terminal import typed

    answers: list[dict[str, Any]] = []
    for outcome in outcomes:
        if as_json:
            answers.append(outcome.as_dict())
            continue
        outcome.print()
        if place is not None:
            console.say(f"\nPage: {typed(place / outcome.name / 'index.html')}")
    if as_json:
        console.print_json(answers if several else answers[0])
