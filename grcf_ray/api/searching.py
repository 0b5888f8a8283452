"""Searches: what `grcf search` does, as functions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grcf_ray import console
from grcf_ray.api.run import Run
from grcf_ray.config import check_read, config_faults
from grcf_ray.data.store import find_data
from grcf_ray.errors import ConfigError
from grcf_ray.report.card import write_card
from grcf_ray.report.listener import PageListener
from grcf_ray.report.progress_lines import ProgressLines
from grcf_ray.report.tensorboard import TensorBoardListener
from grcf_ray.report.view import RunView
from grcf_ray.search.direct_baseline import DIRECT, direct_space
from grcf_ray.search.preflight import Capacity
from grcf_ray.search.run_lookup import find_run, grown, kept_budgets, run_name, runs_place, space_on
from grcf_ray.search.session import Session
from grcf_ray.search.space import Space
from grcf_ray.search.stopping import parse_duration


def run_search(
    dataset: str,
    *,
    data: str | Path | None = None,
    label_range: tuple[float, float] | None = None,
    space: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    backbone: str | None = None,
    stage1_trials: int | None = None,
    stage2_trials: int | None = None,
    finalists: int | None = None,
    seeds: int = 0,
    direct: bool = False,
    concurrent: int | None = None,
    name: str | None = None,
    storage: str | None = None,
    time_budget: str | float | None = None,
    seed: int | None = None,
    reopen: bool = False,
    force: bool = False,
) -> Run:
    """Search both stages, evaluate the winner once on test, and return the run; resume it if it exists.

    dataset: a known data set, or a name for your own. data: its files. space: a search space file. settings: fixed
    settings by path, such as {"stage1.epochs": 5, "search.workers": 2}. time_budget: seconds, or a text such as "2h".
    The other arguments are those of `grcf search`, which prints the same progress. Every error is a
    `grcf_ray.errors.GrcfError`.

    >>> run = run_search("mosi", data="mosi.pkl", stage1_trials=20)
    """
    arguments = {key: value for key, value in locals().items() if value is not None and value is not False}
    flags = {
        "model.backbone": str(Path(backbone).resolve()) if backbone and Path(backbone).is_dir() else backbone,
        "search.stage1_trials": stage1_trials,
        "search.stage2_trials": stage2_trials,
        "search.finalists": finalists,
        "search.concurrent": concurrent,
        "seed": seed,
    }
    given = {path: value for path, value in flags.items() if value is not None}
    if faults := config_faults(given):
        raise ConfigError("\n".join(faults))
    fixed = dict(settings or {})
    words = ", ".join([repr(arguments.pop("dataset")), *(f"{key}={value!r}" for key, value in arguments.items())])
    space_ = chosen_space(dataset, given | fixed, data=data, label_range=label_range, space=space, direct=direct)
    with prepared_search(
        dataset,
        space_,
        flags=given,
        settings=fixed,
        data=data,
        label_range=label_range,
        direct=direct,
        name=name,
        storage=storage,
        force=force,
        seeds=seeds,
        reopen=reopen,
        time_budget=parse_duration(time_budget) if isinstance(time_budget, str) else time_budget,
        command=f"grcf_ray.run_search({words})",
    ) as search:
        if search.session.finished():
            console.progress(f"{search.session.record} is finished")
        else:
            search.run(search.session.check())
    return Run(search.session.record)


def chosen_space(
    dataset: str,
    settings: Mapping[str, Any],
    *,
    data: str | Path | None,
    label_range: tuple[float, float] | None,
    space: str | Path | None,
    direct: bool,
) -> Space:
    """Return the search space with the settings fixed; the direct baseline's if `direct`."""
    chosen = space_on(dataset, _path(space), _path(data), label_range).with_settings(settings)
    return direct_space(chosen) if direct else chosen


@dataclasses.dataclass(frozen=True)
class PreparedSearch:
    """A search that can run: its session, and the listener that shows the result."""

    session: Session
    tensorboard: TensorBoardListener

    def run(self, capacity: Capacity) -> None:
        """Run the search to its end. capacity: what `session.check()` returned."""
        self.session.run(capacity)
        self.tensorboard.finish(RunView.read(self.session.record))


@contextlib.contextmanager
def prepared_search(
    dataset: str,
    space: Space,
    *,
    flags: Mapping[str, Any],
    settings: Mapping[str, Any],
    data: str | Path | None,
    label_range: tuple[float, float] | None,
    direct: bool,
    name: str | None,
    storage: str | None,
    force: bool,
    seeds: int,
    reopen: bool,
    time_budget: float | None,
    command: str,
    shared: bool = False,
) -> Iterator[PreparedSearch]:
    """Prepare a search whose progress goes to the terminal, TensorBoard and the report page.

    flags: settings that have an option of their own. settings: other fixed settings. time_budget: seconds. command: the
    command or call that resumes the search.
    """
    store = find_data(dataset, _path(data), label_range)
    check_read(store.info.task, settings)
    name = name or run_name(dataset, space.config(), store.info.task) + (DIRECT if direct else "")
    record = find_run(runs_place(storage), name, space, store, force=force)
    for note in kept_budgets(record, {**flags, **settings}):
        console.progress(note)
    with PageListener(record) as page, TensorBoardListener(record) as tensorboard:
        session = Session(
            record=record,
            space=grown(record, space),
            store=store,
            seeds=seeds,
            reopen=reopen,
            time_budget=time_budget,
            shared=shared,
            command=command,
            write_card=write_card,
            listeners=(ProgressLines(), tensorboard, page),
        )
        yield PreparedSearch(session, tensorboard)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
