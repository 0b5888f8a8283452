"""python -m grcf_ray.search: the main job, from data to the best two-stage model that a budget finds."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from grcf_ray import console
from grcf_ray.data.datasets import spelled

# Help must be quick: torch, Ray and the rest are imported once the arguments are parsed.
if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore
    from grcf_ray.search.preflight import Capacity
    from grcf_ray.search.record import RunRecord
    from grcf_ray.search.session import Session
    from grcf_ray.search.space import Space

app = console.make_app("Search both stages of GRCF and evaluate the winner once on test.")


@app.command()
def search(
    dataset: str = typer.Option(
        ..., metavar="NAME", callback=spelled, help="A known data set (python -m grcf_ray.data list), or your own."
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
    seeds: int = typer.Option(
        0, metavar="N", help="Retrain the winner and the starting point under N fresh seeds, and compare them on test."
    ),
    direct: bool = typer.Option(
        False, "--direct", help="Search the baseline instead: MAE alone, no Stage 1, for the same cost."
    ),
    workers: int | None = typer.Option(None, metavar="W", help="Processes that train one trial together."),
    concurrent: int | None = typer.Option(None, metavar="N", help="Trials at a time; default as many as fit."),
    cpus_per_worker: int | None = typer.Option(None, metavar="C", help="CPUs, and so threads, of a worker."),
    gpus_per_worker: float | None = typer.Option(None, metavar="G", help="GPUs of a worker; a fraction shares one."),
    accelerator_type: str | None = typer.Option(
        None, metavar="KIND", help="Kind of GPU that a worker's node has to have, such as A100 (see ray status -v)."
    ),
    name: str | None = typer.Option(None, metavar="NAME", help="Run name; default dataset-backbone-seed."),
    storage: str | None = typer.Option(
        None,
        metavar="DIR|URI",
        help="Where runs go, such as s3://bucket/runs; default $GRCF_RUNS, then ./runs, in a Ray job ~/grcf_runs.",
    ),
    shared: bool = typer.Option(
        False, "--shared", help="Let others read the run, as your umask allows; without it, you alone."
    ),
    time_budget: str | None = typer.Option(
        None,
        metavar="TIME",
        help="Time for the search, such as 2h: each stage hands on what it has by then. --seeds come after it.",
    ),
    seed: int | None = typer.Option(None, metavar="S", help="Seed of everything; default 42."),
    reopen: bool = typer.Option(
        False, "--reopen", help="Let a finished Stage 2 search on from the finalists of an extended Stage 1."
    ),
    force: bool = typer.Option(
        False, "--force", help="Where the name holds a run with other settings, take a new name."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check and print the plan, run nothing."),
    calibrate: bool = typer.Option(
        False, "--calibrate", help="Time trials side by side, and print how many to run at a time; run nothing."
    ),
    print_config: bool = typer.Option(
        False, "--print-config", help="Print the starting configuration as YAML, run nothing."
    ),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON; with --dry-run the plan."),
) -> None:
    """Search Stage 1, hand its best checkpoints to a search of Stage 2, evaluate the winner once on test.

    \b
    Examples:
      python -m grcf_ray.search --dataset demo
      python -m grcf_ray.search --dataset mosi --data mosi.parquet
      python -m grcf_ray.search --dataset mosi --gpus-per-worker 0.5 --stage1-trials 60
      python -m grcf_ray.search --dataset reviews --data reviews.csv --label-range 1 5 --space my_space.yaml
      python -m grcf_ray.search --dataset mosi --set model.modalities=text --set stage1.epochs=5
      python -m grcf_ray.search --dataset mosi --time-budget 2h --seeds 5 --storage s3://bucket/runs

    The same command again goes on with an interrupted run; a larger --stage1-trials or --stage2-trials extends one.
    --debug shows tracebacks, --version the version; so does every command.
    """
    from grcf_ray.config import check_read, config_faults, parse_assignments, to_yaml
    from grcf_ray.errors import ConfigError
    from grcf_ray.search.direct_baseline import DIRECT, direct_space
    from grcf_ray.search.stopping import parse_duration

    flags = {
        "model.backbone": str(Path(backbone).resolve()) if backbone and Path(backbone).is_dir() else backbone,
        "search.stage1_trials": stage1_trials,
        "search.stage2_trials": stage2_trials,
        "search.finalists": finalists,
        "search.workers": workers,
        "search.concurrent": concurrent,
        "search.cpus_per_worker": cpus_per_worker,
        "search.gpus_per_worker": gpus_per_worker,
        "search.accelerator_type": accelerator_type,
        "seed": seed,
    }
    given = {path: value for path, value in flags.items() if value is not None}
    if faults := config_faults(given):
        raise ConfigError("\n".join(_as_typed(fault) for fault in faults))
    settings = given | parse_assignments(set_)
    budget = parse_duration(time_budget) if time_budget else None
    from grcf_ray.search.run_lookup import find_run, grown, kept_budgets, run_name, runs_place, space_on

    chosen = space_on(dataset, space, data, label_range).with_settings(settings)
    if direct:
        chosen = direct_space(chosen)
    if print_config:
        console.say(to_yaml(chosen.config()).rstrip("\n"))
        return
    from grcf_ray.data.store import find_data

    store = find_data(dataset, data, label_range)
    check_read(store.info.task, parse_assignments(set_))
    name = name or run_name(dataset, chosen.config(), store.info.task) + (DIRECT if direct else "")
    record = find_run(runs_place(storage), name, chosen, store, force=force)
    for note in kept_budgets(record, settings):
        console.progress(note)
    _run(
        record,
        grown(record, chosen),
        store,
        seeds,
        reopen,
        budget,
        shared=shared,
        dry_run=dry_run,
        calibrate=calibrate,
        as_json=json,
    )


def _as_typed(fault: str) -> str:
    """A setting's fault under the name of its own option."""
    path, _, rest = fault.partition(" = ")
    return f"--{path.rpartition('.')[2].replace('_', '-')} {rest}"


def _run(
    record: RunRecord,
    space: Space,
    store: DatasetStore,
    seeds: int,
    reopen: bool,
    time_budget: float | None,
    *,
    shared: bool,
    dry_run: bool,
    calibrate: bool,
    as_json: bool,
) -> None:
    from grcf_ray.report.listener import PageListener
    from grcf_ray.report.tensorboard import TensorBoardListener
    from grcf_ray.report.terminal import ProgressLines
    from grcf_ray.report.view import RunView
    from grcf_ray.search.session import Session

    with PageListener(record) as page, TensorBoardListener(record) as tensorboard:
        session = Session(
            record=record,
            space=space,
            store=store,
            seeds=seeds,
            reopen=reopen,
            time_budget=time_budget,
            shared=shared,
            command=shlex.join(["python", "-m", "grcf_ray.search", *sys.argv[1:]]),
            listeners=(ProgressLines(), tensorboard, page),
        )
        if session.finished() and not dry_run and not calibrate:
            console.progress(f"{record} is finished; this is its result")
        else:
            room = session.check()
            cut = session.count_cut()
            _print_plan(session, room, cut)
            if calibrate:
                _print_calibration(session, as_json)
            elif dry_run and as_json:
                _print_plan_json(session, room, cut)
            if dry_run or calibrate:
                return
            session.run(room)
            tensorboard.finish(RunView.read(record))
    _print(record, as_json)


def _print_plan(session: Session, room: Capacity, cut: tuple[int, int]) -> None:
    """What will run, on standard error. cut: texts that are longer than the model reads, of so many.

    An import cannot count those: how many subwords a text has hangs on the encoder, which is chosen here.
    """
    from grcf_ray.data.schema import split_sizes
    from grcf_ray.report.terminal import typed

    config, info, space = session.config, session.store.info, session.space
    modalities = [m for m, dim in (("audio", info.audio_dim), ("vision", info.vision_dim)) if dim]
    console.progress(
        f"Data:    {info.name}, {split_sizes(info.splits)} utterances, {' + '.join(['text', *modalities])}"
    )
    for note in info.notes:
        console.progress(f"         {note}")
    if cut[0]:
        console.progress(
            f"         {cut[0]} of {cut[1]} texts of train and valid are cut: they have more than "
            f"features.max_tokens = {config.features.max_tokens} subwords"
        )
    encoder = f"{config.model.backbone}, {config.model.frozen_layers} frozen layers"
    console.progress(f"Model:   {encoder if config.model.sees_text else 'no text encoder'}")
    written_for = "" if space.dataset == info.name else f", written for {space.dataset}"
    console.progress(f"Space:   {typed(Path(space.source))}{written_for}")
    stages = [f"stage {stage}: {trials} x {epochs} epochs" for stage, (trials, epochs) in session.budgets.items()]
    after = [f"{config.search.finalists} finalists"] if len(stages) > 1 else []
    after += [f"at most {session.time_budget / 60:g} minutes of search"] if session.time_budget is not None else []
    after += [f"winner and start under {session.seeds} seeds"] if session.seeds else []
    console.progress("Budget:  " + "; ".join([", then ".join(stages), *after]))
    per = f"{config.search.cpus_per_worker} CPU" + (
        f" + {config.search.gpus_per_worker:g} GPU" if config.search.gpus_per_worker else ""
    )
    each = f"{per} each" if config.search.workers == 1 else f"{config.search.workers} workers of {per} each"
    console.progress(
        f"Cluster: {room.nodes} node(s), {room.cpus:g} CPUs, {room.gpus:g} GPUs; "
        f"{room.concurrent} trials at a time, {each}"
    )
    for note in room.notes:
        console.progress(f"Note:    {note}")
    console.progress(f"Run:     {typed(session.record.place)}")


def _print_plan_json(session: Session, room: Capacity, cut: tuple[int, int]) -> None:
    """The same plan as JSON on standard output; settings have the names of the configuration."""

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


def _print_calibration(session: Session, as_json: bool) -> None:
    import contextlib

    from grcf_ray.errors import ClusterError
    from grcf_ray.search.calibration import suggestion

    # Ray prints what befalls its processes on standard output, which is the answer's.
    with contextlib.redirect_stdout(sys.stderr):
        ways = session.calibrate()
    best = suggestion(ways)
    if best is None:
        raise ClusterError(f"no trial could be timed: {ways[0].fault}")
    if as_json:
        console.print_json({"ways": [vars(way) for way in ways], "suggested": vars(best)}, indent=None)
        return
    one = ways[0].rate
    console.print_table(
        ["trials", "CPUs each", "GPU each", "utterances/s", "of one trial's"],
        [
            (
                str(way.trials),
                str(way.cpus),
                f"{way.gpus:.3g}",
                f"{way.rate:.1f}" if way.rate else way.fault or "-",
                f"{way.rate / one:.2f}" if way.rate and one else "-",
            )
            for way in ways
        ],
    )
    each, of = (f"--gpus-per-worker {best.gpus:g}", "GPU") if best.gpus else (f"--cpus-per-worker {best.cpus}", "node")
    alone = "" if best.gpus or best.trials > 1 else " --concurrent 1"
    console.say(f"Suggested: {each}{alone}, {best.trials} trial{'s' * (best.trials > 1)} at a time on a {of}")


def _print(record: RunRecord, as_json: bool) -> None:
    from grcf_ray.report.terminal import print_result, summarise

    summary = summarise(record)
    if as_json:
        console.print_json(summary)
    else:
        print_result(summary)
