"""Ablations that are searched anew: each by a search of its own, of as many epochs as the run's own had.

They lie below the run that they start from, `reproduce/retuned/<ablation>/`, and are runs like any other.
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
    """What the search of an ablation varies; it has as many epochs altogether as both stages of the space, stops aside.

    Without Stage 1, Stage 2 searches what Stage 1 searched of model, pairs and margins too.
    """
    if ablation == "direct-mae":
        return direct_space(space)
    config, own = space.config(), space.with_settings(ABLATIONS[ablation])
    first, second, search = config.stage1.epochs, config.stage2.epochs, config.search
    epochs = first * search.stage1_trials + second * search.stage2_trials
    if ablation == "no-stage1":
        inherited = {path: dim for path, dim in own.stage1.items() if not path.startswith("stage1.")}
        own = own.with_settings(ONE_DROPOUT)
        own = dataclasses.replace(own, stage1={}, stage2={**inherited, **own.stage2})
        return own.with_settings({"search.stage2_trials": round(epochs / second)})
    if ablation == "no-stage2":
        own = dataclasses.replace(own, stage2={})
        return own.with_settings({"search.stage1_trials": round(epochs / first)})
    return own


def spent(context: ExperimentContext) -> Space:
    """What the run searched, with the trials that it had in each stage: fewer than asked for where its time was up."""
    asked = grown(context.record, context.space)
    budgets = flatten(asked.config())
    had = {f"search.stage{stage}_trials": len(trials) for stage, trials in context.view.trials.items() if trials}
    return asked.with_settings({path: min(number, budgets[path]) for path, number in had.items()})


def retuned_arm(context: ExperimentContext, arm: Arm, ablation: str) -> Arm:
    """The ablation's arm with the parameters that its own search finds; a search that has ended is not run again."""
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
        # Before hours of search, whose parameters would be those of another encoder.
        context.check_encoder()
        console.progress(f"Searching {arm.title} anew")
        room = session.check()
        # Its winner is measured too, once it is fixed.
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
