"""Command `search`: search both stages of GRCF on a data set, and test the winner once."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from grcf_ray import console
from grcf_ray.cli import options

# `--help` must be quick, so torch and Ray are imported after the arguments are parsed.
if TYPE_CHECKING:
    from grcf_ray.search.preflight import Capacity
    from grcf_ray.search.record import RunRecord
    from grcf_ray.search.session import Session

app = console.make_app("Search both stages and test the winner once")


@app.command()
def search(
    dataset: options.Dataset = None,
    data: options.Data = None,
    label_range: options.LabelRange = None,
    text_column: options.TextColumn = None,
    label_column: options.LabelColumn = None,
    id_column: options.IdColumn = None,
    split_column: options.SplitColumn = None,
    group_column: options.GroupColumn = None,
    space: options.Space = None,
    init_space: Path | None = typer.Option(
        None, metavar="FILE", help="Make a search space for the data and the machine, write it to a new file and exit"
    ),
    allow_download: bool = typer.Option(
        False, "--allow-download", help="Let a made space choose a text encoder that has to be downloaded"
    ),
    set_: list[str] = typer.Option(
        [], "--set", metavar="PATH=VALUE", help="Fix a setting, even if the space searches it; may be repeated"
    ),
    backbone: options.Backbone = None,
    stage1_trials: int | None = typer.Option(None, metavar="N", help="Trials of Stage 1 [default: from the space]"),
    stage2_trials: int | None = typer.Option(None, metavar="N", help="Trials of Stage 2 [default: from the space]"),
    finalists: int | None = typer.Option(
        None, metavar="N", help="Number of Stage 1 checkpoints to hand to Stage 2 [default: from the space]"
    ),
    seeds: int = typer.Option(
        0, metavar="N", help="Retrain the winner and the starting point under N fresh seeds and compare them on test"
    ),
    direct: bool = typer.Option(
        False, "--direct", help="Search the baseline instead, at the same cost: MAE (or BCE) alone, no Stage 1"
    ),
    workers: int | None = typer.Option(None, metavar="W", help="Processes that train one trial together [default: 1]"),
    concurrent: int | None = typer.Option(None, metavar="N", help="Trials at a time [default: as many as fit]"),
    cpus_per_worker: int | None = typer.Option(
        None, metavar="C", help="CPUs and torch threads of a worker [default: 1]"
    ),
    gpus_per_worker: float | None = typer.Option(
        None,
        metavar="G",
        help="GPUs of a worker, at most 1; with a fraction, trials share a GPU [default: 1 if the cluster has GPUs]",
    ),
    accelerator_type: str | None = typer.Option(
        None, metavar="KIND", help="GPU type of the workers, such as A100 (see ray status -v) [default: any]"
    ),
    name: str | None = typer.Option(None, metavar="NAME", help="Run name [default: dataset-backbone-seed]"),
    storage: str | None = typer.Option(
        None,
        metavar="DIR|URI",
        help="Folder of runs, or a URI such as s3://bucket/runs "
        "[default: $GRCF_RUNS, then ./runs; in a Ray job ~/grcf_runs]",
    ),
    shared: bool = typer.Option(
        False, "--shared", help="Let other users read the run, as your umask allows [default: only you]"
    ),
    time_budget: str | None = typer.Option(
        None,
        metavar="TIME",
        help="Time limit, such as 2h; a stage that runs out of time hands on its best results (--seeds run later) "
        "[default: none; with a made space 30m, on GPUs 2h]",
    ),
    seed: int | None = typer.Option(None, metavar="S", help="Seed of all random numbers [default: 42]"),
    reopen: bool = typer.Option(
        False, "--reopen", help="After Stage 1 was extended, continue a finished Stage 2 with the new finalists"
    ),
    force: bool = typer.Option(False, "--force", help="If the run name is taken by other settings, append a number"),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check the search, print its plan and exit"),
    calibrate: bool = typer.Option(
        False, "--calibrate", help="Time trials side by side, suggest how many to run at a time and exit"
    ),
    simulate: str | None = typer.Option(
        None,
        metavar="N,N,...",
        help="Print time, cost and expected result of the search with these numbers of GPUs (CPUs if workers have no "
        "GPU) and exit; trains nothing",
    ),
    print_config: bool = typer.Option(
        False, "--print-config", help="Print the starting configuration as YAML and exit"
    ),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON; with --dry-run or --simulate, the plan"),
) -> None:
    """Search both stages of GRCF, then measure the winner once on the test split.

    Stage 2 starts from the best checkpoints of Stage 1. The winner is chosen on validation data alone.

    \b
    Examples:
      python -m grcf_ray.search --dataset demo
      python -m grcf_ray.search --dataset mosi --data mosi.parquet
      python -m grcf_ray.search --dataset mosi --gpus-per-worker 0.5 --stage1-trials 60
      python -m grcf_ray.search --dataset reviews --data reviews.csv --label-range 1 5
      python -m grcf_ray.search --dataset reviews --data reviews.csv --label-range 1 5 --init-space my_space.yaml
      python -m grcf_ray.search --dataset reviews --data reviews.csv --label-range 1 5 --space my_space.yaml
      python -m grcf_ray.search --dataset mosi --set model.modalities=text --set stage1.epochs=5
      python -m grcf_ray.search --dataset mosi --gpus-per-worker 1 --simulate 1,8,64
      python -m grcf_ray.search --dataset mosi --time-budget 2h --seeds 5 --storage s3://bucket/runs

    Run the same command again to resume an interrupted search. A larger --stage1-trials or --stage2-trials extends a
    finished one. Without --space, your own data get a space that is made for them, the machine and the time limit;
    later starts of the run use the same. Every command takes --debug (show tracebacks) and --version.
    """
    given = locals()
    from grcf_ray.api.searching import init_space as write_made_space
    from grcf_ray.api.searching import prepared_search, requested_space
    from grcf_ray.config import parse_assignments, to_yaml
    from grcf_ray.data.store import resolve_data

    given["settings"] = parse_assignments(set_)
    columns = options.columns(
        text=text_column, label=label_column, id=id_column, split=split_column, group=group_column
    )
    given["dataset"], given["data"] = resolve_data(dataset, data, label_range, columns)
    if init_space is not None:
        console.progress(f"Space:   {write_made_space(given, init_space)}")
        console.say(f"{init_space}: search it with --space {shlex.quote(str(init_space))}")
        return
    if print_config:
        console.say(to_yaml(requested_space(given).config()).rstrip("\n"))
        return
    if simulate is not None:
        _print_simulated(given, simulate, json)
        return
    with prepared_search(given, shlex.join(["python", "-m", "grcf_ray.search", *sys.argv[1:]])) as session:
        if session.finished() and not dry_run and not calibrate:
            console.progress(f"{session.record} is finished; this is its result")
        else:
            capacity = session.check()
            cut = session.count_cut()
            _print_plan(session, capacity, cut)
            if calibrate:
                _print_calibration(session, json)
            elif dry_run and json:
                _print_plan_json(session, capacity, cut)
            if dry_run or calibrate:
                return
            session.run(capacity)
    _print(session.record, json)


def _print_plan(session: Session, room: Capacity, cut: tuple[int, int]) -> None:
    """Print the plan on standard error. cut: number of texts that are too long for the model, and of all texts.

    The import cannot count long texts, because the number of subwords depends on the encoder.
    """
    from grcf_ray.data.schema import split_sizes
    from grcf_ray.report.terminal import typed

    config, info, space = session.config, session.store.info, session.space
    console.progress(f"Data:    {info.name}, {split_sizes(info.splits)} utterances, {' + '.join(['text', *info.dims])}")
    for note in info.notes:
        console.progress(f"         {note}")
    if cut[0]:
        console.progress(
            f"         {cut[0]} of {cut[1]} texts of train and valid have more than "
            f"features.max_tokens = {config.features.max_tokens} subwords and are cut"
        )
    low = ", in bfloat16" if config.train.precision == "bfloat16" else ""
    encoder = f"{config.model.backbone}, {config.model.frozen_layers} frozen layers{low}"
    console.progress(f"Model:   {encoder if config.model.sees_text else 'no text encoder'}")
    written_for = "" if space.dataset == info.name else f", written for {space.dataset}"
    made = f"{session.made.summary}; --init-space FILE to edit it" if session.made else None
    console.progress(f"Space:   {made or typed(Path(space.source)) + written_for}")
    stages = [f"stage {stage}: {trials} x {epochs} epochs" for stage, (trials, epochs) in session.budgets.items()]
    after = [f"{config.search.finalists} finalists"] if len(stages) > 1 else []
    after += [f"at most {session.time_budget / 60:g} minutes of search"] if session.time_budget is not None else []
    after += [f"winner and starting point retrained under {session.seeds} seeds"] if session.seeds else []
    console.progress("Budget:  " + "; ".join([", then ".join(stages), *after]))
    per = f"{config.search.cpus_per_worker} CPU" + (f" + {config.search.gpus:g} GPU" if config.search.gpus else "")
    each = f"{per} each" if config.search.workers == 1 else f"{config.search.workers} workers of {per} each"
    console.progress(
        f"Cluster: {room.nodes} node(s), {room.cpus:g} CPUs, {room.gpus:g} GPUs; "
        f"{room.concurrent} trials at a time, {each}"
    )
    for note in room.notes:
        console.progress(f"Note:    {note}")
    console.progress(f"Run:     {typed(session.record.place)}")


def _print_plan_json(session: Session, room: Capacity, cut: tuple[int, int]) -> None:
    """Print the same plan as JSON on standard output, with every setting by its path."""
    from grcf_ray.config import flatten

    info, space = session.store.info, session.space
    plan = {
        "run": str(session.record.place),
        "data": {
            "name": info.name,
            "task": info.task,
            "fingerprint": info.fingerprint,
            "splits": dict(info.splits),
            "audio_dim": info.audio_dim,
            "vision_dim": info.vision_dim,
            "notes": list(info.notes),
        },
        "texts": {"cut": cut[0], "of": cut[1]},
        "space": {"source": str(space.source), "dataset": space.dataset},
        "stages": {f"stage{stage}": {"trials": n, "epochs": epochs} for stage, (n, epochs) in session.budgets.items()},
        "seeds": session.seeds,
        "time_budget": session.time_budget,
        "cluster": {"nodes": room.nodes, "cpus": room.cpus, "gpus": room.gpus, "concurrent": room.concurrent},
        "notes": list(room.notes),
        "settings": flatten(session.config),
    }
    console.print_json(plan)


def _print_simulated(options: Mapping[str, Any], counts: str, as_json: bool) -> None:
    from grcf_ray.api.searching import simulated_search
    from grcf_ray.search.planning import parse_counts

    plan = simulated_search(options, parse_counts(counts))
    if as_json:
        console.print_json(plan.as_dict())
    else:
        plan.table().print()


def _print_calibration(session: Session, as_json: bool) -> None:
    import contextlib

    from grcf_ray.errors import ClusterError
    from grcf_ray.search.calibration import suggestion

    # Ray reports dead processes on standard output, which is reserved for the answer.
    with contextlib.redirect_stdout(sys.stderr):
        placements = session.calibrate()
    best = suggestion(placements)
    if best is None:
        raise ClusterError(f"no trial could be timed: {placements[0].fault}")
    if as_json:
        answer = {"ways": [vars(placement) for placement in placements], "suggested": vars(best)}
        console.print_json(answer, indent=None)
        return
    single = placements[0].rate
    console.print_table(
        ["trials", "CPUs each", "GPU each", "utterances/s", "against one trial"],
        [
            (
                str(placement.trials),
                str(placement.cpus),
                f"{placement.gpus:.3g}",
                f"{placement.rate:.1f}" if placement.rate else placement.fault or "-",
                f"{placement.rate / single:.2f}" if placement.rate and single else "-",
            )
            for placement in placements
        ],
    )
    each, unit = (
        (f"--gpus-per-worker {best.gpus:g}", "GPU") if best.gpus else (f"--cpus-per-worker {best.cpus}", "node")
    )
    alone = "" if best.gpus or best.trials > 1 else " --concurrent 1"
    console.say(f"Suggested: {each}{alone}, {best.trials} trial{'s' * (best.trials > 1)} at a time on a {unit}")


def _print(record: RunRecord, as_json: bool) -> None:
    from grcf_ray.report.summary import RunSummary
    from grcf_ray.report.terminal import print_result
    from grcf_ray.report.view import RunView

    summary = RunSummary.of(RunView.read(record))
    if as_json:
        console.print_json(summary.as_json())
    else:
        print_result(summary)
