"""Measure the driver's cost against recorded trials: a proposal, resuming, and a trial's record."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState as OptunaState
from scaling import Cost, Scaling, function_times

from grcf_ray.bench.setup import Setup
from grcf_ray.config import check_margins, flatten
from grcf_ray.search.callback import RecordCallback
from grcf_ray.search.record import RunRecord, TrialRecord, now
from grcf_ray.search.scheduler import build_scheduler
from grcf_ray.search.searcher import OptunaSearcher, distributions, startup_trials
from grcf_ray.search.stages import config_of
from grcf_ray.storage import storage_path
from grcf_ray.tables import Column, Table
from grcf_ray.train.stage import stage_seed

TRIALS = (10, 30, 100, 300, 1000)
EPOCHS = 4
"""Epochs of a complete trial. A third of the trials are complete, the others were stopped after one epoch."""


def trials_table(setup: Setup, metrics: Mapping[str, Any], folder: Path) -> Table:
    """Measure on synthetic records. metrics: those of an epoch."""
    scaling = Scaling(
        [
            Cost("propose", "one proposal", "recorded trial"),
            Cost("resume", "resume", "recorded trial"),
            Cost("record", "one trial's record", "recorded trial"),
        ],
        setup.repetitions,
        setup.say,
    )
    for n in TRIALS:
        setup.say(f"writing {n:,} trials")
        record = RunRecord(storage_path(folder / f"trials-{n}"))
        record.write_run({"state": "running", "settings": flatten(setup.config)})
        for trial in _trials(setup, metrics, n):
            record.write_trial(trial)
        trials = record.trials(1)
        scaling.begin(n)
        scaling.measure("resume", n, functools.partial(_resume, setup, record))
        scaling.measure(
            "propose",
            n,
            lambda searcher: searcher.suggest("next"),
            functools.partial(_searcher, setup, trials),
        )
        scaling.measure(
            "record",
            n,
            functools.partial(_record_trial, setup, metrics, n),
            functools.partial(_callback, setup, record, trials),
        )
    return Table(
        "growth trials",
        "Cost of the driver against recorded trials, CPU seconds",
        (Column("name", "recorded trials"), *scaling.columns()),
        scaling.rows,
        (
            f"{len(setup.space.stage1)} searched settings, {EPOCHS} epochs of {len(metrics)} metrics; resume: read the "
            "record and rebuild the state of Optuna and ASHA; one trial's record: its launch, epochs and end, without "
            "the time of the disk",
            f"a proposal and a record take all earlier trials into account: {scaling.together('propose'):.1f} s and "
            f"{scaling.together('record'):.1f} s in total in a search of {scaling.rows[-1]['name']} trials",
            *scaling.rises(function_times),
            *scaling.notes(function_times),
        ),
    )


def _trials(setup: Setup, metrics: Mapping[str, Any], n: int) -> Iterator[TrialRecord]:
    """Yield trials with random parameters and values."""
    rng = np.random.default_rng(n)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=n))
    space = distributions(setup.space.stage1)
    for number in range(n):
        asked = study.ask(space)
        study.tell(asked, state=OptunaState.FAIL)
        complete = number % 3 == 0
        yield TrialRecord(
            number=number,
            stage=1,
            attempt=1,
            params=asked.params,
            seed=stage_seed(n, number),
            state="complete" if complete else "pruned",
            curve=_curve(metrics, EPOCHS if complete else 1, rng.uniform(0.5, 0.8)),
            started=now(),
            ended=now(),
        )


def _curve(metrics: Mapping[str, Any], epochs: int, value: float) -> list[dict[str, Any]]:
    return [{**metrics, "epoch": epoch, "valid/pairwise_acc": value} for epoch in range(1, epochs + 1)]


def _searcher(setup: Setup, trials: Sequence[TrialRecord]) -> OptunaSearcher:
    info, budget = setup.store.info, len(trials) + 1
    half_range = (info.label_range[1] - info.label_range[0]) / 2
    return OptunaSearcher(
        distributions(setup.space.stage1),
        starts=[setup.space.start(1)],
        budget=budget,
        trials=trials,
        stage=1,
        epochs=EPOCHS,
        seed=setup.config.seed,
        n_startup_trials=startup_trials(budget),
        feasible=lambda params: not check_margins(setup.space.config(params), half_range, info.task),
        launch=lambda number, params: params,
    )


def _resume(setup: Setup, record: RunRecord) -> None:
    trials = record.trials(1)
    _searcher(setup, trials)
    build_scheduler(setup.config.search, stage=1, epochs=EPOCHS, trials=trials)


def _callback(setup: Setup, record: RunRecord, trials: list[TrialRecord]) -> RecordCallback:
    return RecordCallback(
        record,
        1,
        trials=trials,
        config=setup.config,
        protocol="mosi",
        seed_of=lambda params, number: stage_seed(number),
        epochs=EPOCHS,
        choices=setup.config.search.finalists,
        config_of=lambda trial: config_of(setup.space, record, trial),
        tell=lambda event: None,
    )


def _record_trial(setup: Setup, metrics: Mapping[str, Any], number: int, callback: RecordCallback) -> None:
    """Launch a trial of medium value, report each epoch, and end it."""
    curve, trial = _curve(metrics, EPOCHS, 0.6), SimpleNamespace(config={"number": number})
    callback.launch(number, setup.space.start(1))
    for epoch in range(1, EPOCHS + 1):
        result = {"notes": [], "checkpoint_sha256": "0" * 64, "curve": curve[:epoch], "done": epoch == EPOCHS}
        callback.on_trial_result(epoch, [], trial, result)
