"""Ablations that are searched anew, each by a search with as many epochs as the run's own search.

They lie below the run that they start from, in `reproduce/retuned/<ablation>/`, and are ordinary runs.
"""

from __future__ import annotations

import dataclasses

from grcf_ray import console
from grcf_ray.config import ABLATIONS, flatten
from grcf_ray.experiments.context import ExperimentContext
from grcf_ray.experiments.model_pool import Arm
from grcf_ray.report.card import write_card
from grcf_ray.report.view import RunView
from grcf_ray.search.direct_baseline import ONE_DROPOUT, direct_space
from grcf_ray.search.record import RunRecord
from grcf_ray.search.run_lookup import grown
from grcf_ray.search.session import Session
from grcf_ray.search.space import Space
from grcf_ray.search.stages import config_of
from grcf_ray.search.winner import note_test_read


def retuned_space(space: Space, ablation: str) -> Space:
    """Return the space of an ablation's search; its total epochs are those of both stages, early stops aside.

    Without Stage 1, Stage 2 also searches the parameters of model, pairs and margins that Stage 1 searched.
    """
    if ablation == "direct-mae":
        return direct_space(space)
    config, retuned = space.config(), space.with_settings(ABLATIONS[ablation])
    first, second, search = config.stage1.epochs, config.stage2.epochs, config.search
    epochs = first * search.stage1_trials + second * search.stage2_trials
    if ablation == "no-stage1":
        inherited = {path: dim for path, dim in retuned.stage1.items() if not path.startswith("stage1.")}
        retuned = retuned.with_settings(ONE_DROPOUT)
        retuned = dataclasses.replace(retuned, stage1={}, stage2={**inherited, **retuned.stage2})
        return retuned.with_settings({"search.stage2_trials": round(epochs / second)})
    if ablation == "no-stage2":
        retuned = dataclasses.replace(retuned, stage2={})
        return retuned.with_settings({"search.stage1_trials": round(epochs / first)})
    return retuned


def spent(context: ExperimentContext) -> Space:
    """Return the run's space with the trials that each stage ran: fewer than requested if its time budget ended."""
    requested = grown(context.record, context.space)
    budgets = flatten(requested.config())
    ran = {f"search.stage{stage}_trials": len(trials) for stage, trials in context.view.trials.items() if trials}
    return requested.with_settings({path: min(number, budgets[path]) for path, number in ran.items()})


def retuned_arm(context: ExperimentContext, arm: Arm, ablation: str) -> Arm:
    """Return the ablation's arm with the parameters that its own search finds; a finished search is not repeated."""
    space = retuned_space(spent(context), ablation)
    record = RunRecord(context.record.place / "reproduce" / "retuned" / ablation)
    session = Session(
        record=record,
        space=space,
        store=context.store,
        seeds=0,
        reopen=False,
        time_budget=None,
        command=context.command,
        write_card=write_card,
        listeners=context.listeners,
    )
    if not session.finished():
        # Checked first: hours of search with another encoder would be useless.
        context.check_encoder(context.config)
        console.progress(f"Searching {arm.title} anew")
        room = session.check()
        # The search measures its winner on test.
        note_test_read(context.record.place / "best", "reproduce ablation --retune", [f"reproduce/retuned/{ablation}"])
        session.run(room)
    winner = RunView.read(record).winner
    assert winner is not None
    base = flatten(context.config)
    settings = {
        path: value
        for path, value in flatten(config_of(space, record, winner)).items()
        if value != base[path] and not path.startswith("search.")
    }
    return Arm(f"{arm.name}-retuned", f"{arm.title}, retuned", settings, stage=arm.stage)
