"""Searches: what `grcf search` does, as functions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grcf_ray.cluster import starts_own

from grcf_ray import console
from grcf_ray.api.run import Run
from grcf_ray.config import RunConfig, build_config, check_read, config_faults
from grcf_ray.data import datasets
from grcf_ray.data.store import DatasetStore, find_data, resolve_data
from grcf_ray.errors import ConfigError
from grcf_ray.report.card import write_card
from grcf_ray.report.listener import PageListener
from grcf_ray.report.progress_lines import ProgressLines
from grcf_ray.report.tensorboard import TensorBoardListener
from grcf_ray.search.direct_baseline import DIRECT, direct_space
from grcf_ray.search.made_for import find_machine, made_for, this_machine
from grcf_ray.search.made_space import Machine, MadeSpace
from grcf_ray.search.model_space import model_space
from grcf_ray.search.planning import Plan, plan_search
from grcf_ray.search.record import RunRecord
from grcf_ray.search.run_lookup import (
    find_run,
    grown,
    kept_budgets,
    recorded_made,
    run_name,
    runs_place,
    space_on,
)
from grcf_ray.search.session import Session
from grcf_ray.search.space import Space
from grcf_ray.search.space_file import write_space
from grcf_ray.search.stopping import parse_duration
from grcf_ray.search.trial_sources import known_trials

_OPTIONS = {"backbone": "model.backbone", "seed": "seed"} | {
    name: f"search.{name}"
    for name in (
        "stage1_trials",
        "stage2_trials",
        "finalists",
        "workers",
        "concurrent",
        "cpus_per_worker",
        "gpus_per_worker",
        "accelerator_type",
    )
}
"""Paths of the settings that have an option of their own, by its name."""


def run_search(
    dataset: str | None = None,
    *,
    data: str | Path | None = None,
    label_range: tuple[float, float] | None = None,
    columns: Mapping[str, str] | None = None,
    space: str | Path | None = None,
    allow_download: bool = False,
    settings: Mapping[str, Any] | None = None,
    backbone: str | None = None,
    stage1_trials: int | None = None,
    stage2_trials: int | None = None,
    finalists: int | None = None,
    seeds: int = 0,
    direct: bool = False,
    workers: int | None = None,
    concurrent: int | None = None,
    cpus_per_worker: int | None = None,
    gpus_per_worker: float | None = None,
    accelerator_type: str | None = None,
    name: str | None = None,
    storage: str | None = None,
    shared: bool = False,
    time_budget: str | float | None = None,
    seed: int | None = None,
    reopen: bool = False,
    force: bool = False,
) -> Run:
    """Search both stages, evaluate the winner once on test, and return the run; resume it if it exists.

    dataset: a known data set, or a name for your own, by default that of its file. data: its files. label_range: its
    lowest and highest label, by default from the labels. columns: the columns of a table by role (text, label, id,
    split, group), by default from their names. space: a search space file; without it, a space is made for your own
    data, this machine and the time budget. allow_download: whether its text encoder may be downloaded. settings: fixed
    settings by path, such as {"stage1.epochs": 5}. time_budget: seconds, or a text such as "2h"; for a made space by
    default 30 minutes, on GPUs two hours. The other arguments are those of `grcf search`, which prints the same
    progress. Every error is a `grcf_ray.errors.GrcfError`.

    >>> run = run_search("mosi", data="mosi.pkl", stage1_trials=20)
    """
    options = locals()
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    first = [repr(given.pop("dataset"))] if dataset is not None else []
    words = ", ".join([*first, *(f"{key}={value!r}" for key, value in given.items())])
    options["dataset"], options["data"] = resolve_data(dataset, data, label_range, columns)
    with prepared_search(options, f"grcf_ray.run_search({words})") as session:
        if session.finished():
            console.progress(f"{session.record} is finished")
        else:
            session.run(session.check())
    return Run(session.record)


def _fixed_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fixed settings of all options, by path. Raises ConfigError with all faults, by option."""
    given = {path: options[name] for name, path in _OPTIONS.items() if options[name] is not None}
    if (backbone := options["backbone"]) and Path(backbone).is_dir():
        given["model.backbone"] = str(Path(backbone).resolve())
    if faults := config_faults(given):
        parts = [fault.partition(" = ") for fault in faults]
        raise ConfigError("\n".join(f"--{path.rpartition('.')[2].replace('_', '-')} {rest}" for path, _, rest in parts))
    return {**given, **(options["settings"] or {})}


def requested_space(options: Mapping[str, Any]) -> Space:
    """Return the search space with all given settings fixed; the direct baseline's if asked for.

    options: the arguments of `run_search`, by name. A space is made for the cluster, if there is one, without starting
    Ray here.
    """
    fixed = _fixed_settings(options)
    return _space_with(fixed, options, _made_space(fixed, options, this_machine if starts_own() else find_machine))


def init_space(options: Mapping[str, Any], path: Path) -> str:
    """Make a search space, write it to a new file, and return its summary. options: the arguments of `run_search`."""
    if options["space"] is not None:
        raise ConfigError("--init-space makes a space, and --space gives one; remove one of them")
    if path.exists():
        raise ConfigError(f"--init-space {path}: the file exists; give another name")
    fixed = _fixed_settings(options)
    store = find_data(options["dataset"], options["data"], options["label_range"])
    made = _new_space(store, fixed, options, find_machine)
    write_space(path, model_space(made.space, fixed), made.summary)
    return made.summary


def _made_space(
    fixed: Mapping[str, Any], options: Mapping[str, Any], machine: Callable[[RunConfig], Machine]
) -> MadeSpace | None:
    """Return the made space of the run that the options name, else a new one; None if there is a file for the data."""
    if options["space"] is not None or options["dataset"] in datasets.names():
        return None
    store = find_data(options["dataset"], options["data"], options["label_range"])
    runs = runs_place(options["storage"])
    recorded = recorded_made(runs, options["name"], options["dataset"], store, fixed)
    return recorded or _new_space(store, fixed, options, machine)


def _new_space(
    store: DatasetStore,
    fixed: Mapping[str, Any],
    options: Mapping[str, Any],
    machine: Callable[[RunConfig], Machine],
) -> MadeSpace:
    return made_for(
        store,
        fixed,
        machine(build_config(fixed)),
        seconds=_seconds(options),
        allow_download=options["allow_download"],
    )


def _seconds(options: Mapping[str, Any]) -> float | None:
    budget = options["time_budget"]
    return parse_duration(budget) if isinstance(budget, str) else budget


def _space_with(fixed: Mapping[str, Any], options: Mapping[str, Any], made: MadeSpace | None) -> Space:
    written = (
        made.space
        if made
        else space_on(options["dataset"], options["space"], options["data"], options["label_range"], fixed)
    )
    space = model_space(written, fixed)
    return direct_space(space) if options["direct"] else space


@dataclasses.dataclass(frozen=True)
class _Request:
    """What a search is asked to do: its space and data, and its run, new or recorded."""

    space: Space
    store: DatasetStore
    record: RunRecord
    made: MadeSpace | None
    """The made space that `space` comes from; None for a space file."""

    @staticmethod
    def of(options: Mapping[str, Any], machine: Callable[[RunConfig], Machine]) -> _Request:
        """Return what the options ask for. machine: returns the resources that a space is made for."""
        fixed = _fixed_settings(options)
        made = _made_space(fixed, options, machine)
        space = _space_with(fixed, options, made)
        store = find_data(options["dataset"], options["data"], options["label_range"])
        check_read(store.info.task, options["settings"] or {})
        direct = DIRECT if options["direct"] else ""
        name = options["name"] or run_name(options["dataset"], space.config(), store.info.task) + direct
        record = find_run(runs_place(options["storage"]), name, space, store, force=options["force"])
        for note in kept_budgets(record, fixed):
            console.progress(note)
        return _Request(grown(record, space), store, record, made)


def simulated_search(options: Mapping[str, Any], counts: Sequence[int]) -> Plan:
    """Plan a search with each number of GPUs or CPUs, by simulating it; start no Ray and train nothing.

    options: the arguments of `run_search`, by name. counts: ascending.
    """
    request = _Request.of(options, this_machine)
    space, config = request.space, request.space.config()
    if config.search.gpus_per_worker == "auto":
        space = space.with_settings({"search.gpus_per_worker": float(this_machine(config).gpus > 0)})
    return plan_search(known_trials(request.record, space, request.store), space, counts)


@contextlib.contextmanager
def prepared_search(options: Mapping[str, Any], command: str) -> Iterator[Session]:
    """Prepare a search whose progress goes to the terminal, TensorBoard and the report page.

    options: the arguments of `run_search`, by name. command: the command or call that resumes the search.
    """
    seconds, request = _seconds(options), _Request.of(options, find_machine)
    record, made = request.record, request.made
    with PageListener(record) as page, TensorBoardListener(record) as tensorboard:
        yield Session(
            record=record,
            space=request.space,
            store=request.store,
            seeds=options["seeds"],
            reopen=options["reopen"],
            time_budget=made.seconds if made and seconds is None else seconds,
            shared=options["shared"],
            command=command,
            write_card=write_card,
            listeners=(ProgressLines(), tensorboard, page),
            made=made,
        )
