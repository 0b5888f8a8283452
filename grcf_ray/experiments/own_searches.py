"""Searches of an experiment: of a changed space, at the cost of the run's own search.

Each is a run in `reproduce/retuned/<name>/` of the run that it starts from. It chooses on valid and opens no test
split: the experiment trains its winner's parameters under fresh seeds, and measures those models.
"""

from __future__ import annotations

from typing import Any

from grcf_ray import console
from grcf_ray.config import flatten
from grcf_ray.experiments.context import ExperimentContext
from grcf_ray.report.card import write_card
from grcf_ray.search.record import RunRecord
from grcf_ray.search.run_lookup import grown
from grcf_ray.search.session import Session
from grcf_ray.search.space import Space, run_space, stage_epochs
from grcf_ray.search.stages import config_of


def spent(context: ExperimentContext) -> Space:
    """Return the run's space with the trials that each stage ran: fewer than requested if its time budget ended."""
    requested = grown(context.record, context.space)
    budgets = flatten(requested.config())
    ran = {f"search.stage{stage}_trials": len(trials) for stage, trials in context.view.trials.items() if trials}
    return requested.with_settings({path: min(number, budgets[path]) for path, number in ran.items()})


def search_session(context: ExperimentContext, name: str, space: Space) -> Session:
    """Return the search of a space, new or recorded under this name."""
    return Session(
        record=RunRecord(context.record.place / "reproduce" / "retuned" / name),
        space=space,
        store=context.store,
        seeds=0,
        reopen=False,
        time_budget=None,
        command=context.command,
        write_card=write_card,
        listeners=context.listeners,
        measures=False,
    )


def search_anew(context: ExperimentContext, session: Session, title: str) -> None:
    """Run what a search lacks. title: of its arm, for progress. NoWinnerError if no trial has a usable result."""
    if not session.finished():
        # Checked first: hours of search with another encoder would be useless.
        context.check_encoder(context.config)
        console.progress(f"Searching {title} anew")
        session.run(session.check())


def winner_settings(context: ExperimentContext, record: RunRecord) -> dict[str, Any]:
    """Return the settings by which a search's winner differs from the run's, except those of the search itself."""
    space = run_space(record.search_info(), str(record))
    winner = record.ranked(max(stage_epochs(space.config())))[0]
    base = flatten(context.config)
    return {
        path: value
        for path, value in flatten(config_of(space, record, winner)).items()
        if (path not in base or value != base[path]) and not path.startswith("search.")
    }
